"""Labels the features of a folder by the weights that train_cls.py saved: a JSON file {feature path: label}.

With --probabilities: {feature path: {"label": label, "probabilities": {label: probability}}}.
"""

import argparse
import sys

from clamplib.evaluation.labels import save_labels
from clamplib.evaluation.probe import classify_folder
from clamplib.files import InputError


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python inference_cls.py weights-tunes.pth features/more_tunes labels.json --probabilities",
    )
    parser.add_argument("weights_path", help="weights file (.pth) of train_cls.py")
    parser.add_argument("feature_folder", help="folder of .npy files of global vectors; sub-folders count")
    parser.add_argument("output_file", help="JSON file to write")
    parser.add_argument("--probabilities", action="store_true", help="write the probability of every label, too")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        probe, features, probabilities = classify_folder(args.weights_path, args.feature_folder)
        found = {}
        for path, row in zip(features.paths, probabilities, strict=True):
            label = probe.classes[row.argmax()]
            each = dict(zip(probe.classes, row.tolist(), strict=True))
            found[str(path)] = {"label": label, "probabilities": each} if args.probabilities else label
        save_labels(args.output_file, found)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{len(features)} features labeled, saved in '{args.output_file}'.")
    for failure in features.failures:
        print(f"left out: {failure}", file=sys.stderr)
    return 1 if features.failures else 0


if __name__ == "__main__":
    sys.exit(main())

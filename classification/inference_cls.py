"""Labels the features of a folder with the weights that train_cls.py saved, and writes JSON: {feature path: label}.

With --probabilities: {feature path: {"label": label, "probabilities": {label: probability}}}.

example: python inference_cls.py weights-tunes.pth features/more_tunes labels.json --probabilities
"""

import sys

from clamplib.command import guarded, make_parser, report_left_out
from clamplib.evaluation.labels import save_labels


@guarded
def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__)
    parser.add_argument("weights_path", help="weights file (.pth) of train_cls.py")
    parser.add_argument("feature_folder", help="folder of .npy files of global vectors, with its sub-folders")
    parser.add_argument("output_file", help="JSON file to write")
    parser.add_argument("--probabilities", action="store_true", help="also write the probability of every label")
    args = parser.parse_args(argv)
    from clamplib.evaluation.probe import classify_folder  # imports torch, which --help does not need

    probe, features, probabilities = classify_folder(args.weights_path, args.feature_folder)
    found: dict[str, object] = {}
    for path, row in zip(features.paths, probabilities, strict=True):
        label = probe.classes[row.argmax()]
        if args.probabilities:
            found[str(path)] = {
                "label": label,
                "probabilities": dict(zip(probe.classes, row.tolist(), strict=True)),
            }
        else:
            found[str(path)] = label
    save_labels(args.output_file, found)
    print(f"{len(features)} features labeled, saved in '{args.output_file}'.")
    return report_left_out(features.failures)


if __name__ == "__main__":
    sys.exit(main())

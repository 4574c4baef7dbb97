"""Labels music without training: by the class whose description in words is closest.

class_folder holds the features of texts, one class a key: jig.npy, or jig.1.npy, jig.2.npy for several prompts,
whose directions are averaged. With true labels, accuracy, macro F1 and the confusion matrix are shown.
"""

import argparse
import sys

from clamplib.evaluation.classification import describe_confusion, draw_confusion
from clamplib.evaluation.labels import save_labels
from clamplib.evaluation.zero_shot import Labeling, judge, label_folder, save_prototypes
from clamplib.files import InputError, show


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python zero_shot.py features/scores features/classes --labels kinds.csv --output labels.json",
    )
    parser.add_argument("feature_folder", help="folder of .npy files of global vectors to label; sub-folders count")
    parser.add_argument("class_folder", help="folder of .npy files of global vectors of texts about the classes")
    parser.add_argument(
        "--labels",
        metavar="TABLE",
        help="true labels: a .csv, .tsv or .jsonl with `path` or `key`, and `label`; "
        'or the word "names": what stands before the first _ of a file name',
    )
    parser.add_argument("--output", help="JSON file for {feature path: label}; without it, labels are printed")
    parser.add_argument("--plot", help="picture of the confusion matrix, such as confusion.png; needs --labels")
    parser.add_argument("--prototypes", metavar="FOLDER", help="folder to keep the prototypes in, for semantic_search")
    return parser


def show_labels(found: Labeling, output: str | None) -> None:
    if output:
        labels = [found.classes[number] for number in found.predicted]
        save_labels(output, {str(path): label for path, label in zip(found.features.paths, labels, strict=True)})
        print(f"Labels saved in '{output}'.")
        return
    for key, number, similarity in zip(found.features.keys, found.predicted, found.similarities, strict=True):
        print(show(key), found.classes[number], f"{similarity:.4f}")


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.plot and not args.labels:
        parser.error("--plot needs --labels")
    try:
        found = label_folder(args.feature_folder, args.class_folder)
        print(f"{len(found.features)} features, {len(found.classes)} classes, {len(found.prompts)} prompts")
        show_labels(found, args.output)
        if args.prototypes:
            save_prototypes(args.prototypes, found)
        if args.labels:
            confusion, left_out = judge(found, args.feature_folder, args.labels)
            if left_out:
                print(f"{left_out} features have no true label, or one that is no class: they are not judged.")
            print(describe_confusion(confusion, found.classes))
            if args.plot:
                draw_confusion(args.plot, confusion, found.classes)
    except (InputError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    failures = found.features.failures + found.prompts.failures
    for failure in failures:
        print(f"left out: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

"""Labels music without training: each feature gets the class whose description in words is closest.

class_folder holds the features of texts. The key of a text names its class: jig.npy, or jig.1.npy and jig.2.npy for
several prompts, whose directions are averaged. With true labels, the script prints accuracy, macro F1 and the confusion
matrix.

example: python zero_shot.py features/scores features/classes --labels kinds.csv --output labels.json
"""

import argparse
import sys

from clamplib.command import guarded, make_parser, report_left_out
from clamplib.evaluation.classification import draw_confusion
from clamplib.evaluation.labels import feature_labels, save_labels
from clamplib.evaluation.zero_shot import Labeling, describe_judgment, judge, label_folder, save_prototypes
from clamplib.files import show


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    parser.add_argument("feature_folder", help="folder of .npy files to label, global vectors, with its sub-folders")
    parser.add_argument("class_folder", help="folder of .npy files of texts about the classes, global vectors")
    parser.add_argument(
        "--labels",
        metavar="TABLE",
        help="true labels: a .csv, .tsv or .jsonl with `path` or `key`, and `label`; "
        'or the word "names" for the part of each file name before its first _',
    )
    parser.add_argument("--output", help="JSON file for {feature path: label} (default: print the labels)")
    parser.add_argument("--plot", help="picture of the confusion matrix, such as confusion.png; needs --labels")
    parser.add_argument(
        "--prototypes", metavar="FOLDER", help="folder for the prototypes, to use in semantic_search.py"
    )
    return parser


def show_labels(found: Labeling, output: str | None) -> None:
    """Saves the labels, or prints them with their similarities."""
    labels = [found.classes[number] for number in found.predicted]
    if output:
        save_labels(output, {str(path): label for path, label in zip(found.features.paths, labels, strict=True)})
        print(f"Labels saved in '{output}'.")
        return
    for key, label, similarity in zip(found.features.keys, labels, found.similarities, strict=True):
        print(show(key), label, f"{similarity:.4f}")


@guarded
def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.plot and not args.labels:
        parser.error("--plot needs --labels")
    found = label_folder(args.feature_folder, args.class_folder)
    features = found.features
    print(f"{len(features)} features, {len(found.classes)} classes, {len(found.prompts)} prompts")
    show_labels(found, args.output)
    if args.prototypes:
        save_prototypes(args.prototypes, found)
    if args.labels:
        truth = feature_labels(features.paths, features.keys, args.feature_folder, args.labels)
        confusion, left_out = judge(found.predicted, truth, found.classes)
        print(describe_judgment(confusion, left_out, found.classes))
        if args.plot:
            draw_confusion(args.plot, confusion, found.classes)
    return report_left_out(features.failures + found.prompts.failures)


if __name__ == "__main__":
    sys.exit(main())

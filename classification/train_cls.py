"""Trains a linear probe: a classifier of one layer on the global features of a folder.

The label of a feature is its file name up to the first _, or the label in a table (--labels). The probe is evaluated
after every epoch, and the epoch of the best accuracy is kept. That choice favors the evaluation pieces: to measure the
probe, keep other pieces apart. Training starts from nothing each time and takes seconds. It writes three files, named
after the training folder, and replaces those of an earlier run:

    weights-NAME.pth     for inference_cls.py; fc.weight and fc.bias apply to the features as they are
    logs-NAME.txt        the numbers of every epoch
    confusion-NAME.png   the confusion matrix, if matplotlib is installed

example: python train_cls.py --train_folder features/tunes --balanced_training
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from clamplib.command import guarded, make_parser, positive, report_left_out
from clamplib.evaluation.classification import (
    LabeledVectors,
    ProbeSettings,
    describe_confusion,
    draw_confusion,
    label_features,
    split,
)
from clamplib.evaluation.labels import FROM_NAMES, merged_warning
from clamplib.files import atomic_path
from clamplib.models import distributed
from clamplib.retrieval.similarity import Features, load_features, load_folders


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    settings = ProbeSettings()
    add = parser.add_argument
    add("--train_folder", required=True, help="folder of .npy files of global vectors, with its sub-folders")
    add("--eval_folder", help="folder to evaluate on (default: hold out some of the training pieces)")
    add(
        "--eval_split", type=float, default=0.2, help="share of the pieces to hold out per label (default: %(default)s)"
    )
    add("--num_epochs", type=positive, default=settings.epochs, help="maximum number of epochs (default: %(default)s)")
    add("--learning_rate", type=float, default=settings.learning_rate, help="default: %(default)s")
    add(
        "--balanced_training",
        action="store_true",
        help="train on as many items per label as the rarest label has, drawn again every epoch",
    )
    add(
        "--patience",
        type=int,
        default=settings.patience,
        help="stop after so many epochs without a better accuracy or a lower loss; 0: never (default: %(default)s)",
    )
    add("--labels", default=FROM_NAMES, help=".csv, .tsv or .jsonl with `path` or `key`, and `label`, for both folders")
    add("--seed", type=int, default=settings.seed, help="seed of the split and the draws (default: %(default)s)")
    add("--output_dir", default=".", help="folder to write to (default: the current one)")
    add("--wandb_log", action="store_true", help="send the numbers to Weights & Biases")
    add("--wandb_key", default="", help="its key (default: the environment variable WANDB_API_KEY)")
    return parser


def load(args: argparse.Namespace) -> tuple[LabeledVectors, LabeledVectors, Features, list[Exception]]:
    """Returns examples to train and to evaluate on, the training features, and the errors of files left out."""
    if args.eval_folder is None:
        features = load_features(args.train_folder)
        training, evaluation = split(
            label_features(features, args.train_folder, args.labels), args.eval_split, args.seed
        )
        return training, evaluation, features, features.failures
    eval_features, features = load_folders(args.eval_folder, args.train_folder)
    training = label_features(features, args.train_folder, args.labels)
    evaluation = label_features(eval_features, args.eval_folder, args.labels)
    return training, evaluation, features, features.failures + eval_features.failures


@contextmanager
def logged(path: Path, args: argparse.Namespace) -> Iterator[Callable[[dict], None]]:
    """Yields a function that writes the numbers of an epoch to the log, and to wandb if asked."""
    from clamplib.training.state import start_curves

    send = start_curves(
        project="clamp3-probe", name=path.stem, settings=vars(args), key=args.wandb_key, wanted=args.wandb_log
    )
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as log:

        def report(numbers: dict) -> None:
            log.write(f"Epoch {numbers['epoch']}\n")
            for name, value in numbers.items():
                if name not in ("epoch", "best"):
                    log.write(f"{name}: {value}\n")
            log.write(f"time: {time.asctime()}\n\n")
            if numbers["best"]:
                log.write("Best so far\n\n")
            if send:
                send(numbers)

        yield report


def draw(picture: Path, confusion: np.ndarray, classes: list[str]) -> None:
    """Draws the confusion matrix, or prints why it cannot."""
    try:
        draw_confusion(picture, confusion, classes)
    except ImportError as error:
        print(f"No picture: {error}")
    else:
        print(f"Confusion matrix drawn in '{picture}'.")


@guarded
def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    from clamplib.evaluation.probe import train_probe  # imports torch, which --help does not need

    name = Path(args.train_folder).resolve().name
    weights = Path(args.output_dir, f"weights-{name}.pth")
    log = Path(args.output_dir, f"logs-{name}.txt")
    picture = Path(args.output_dir, f"confusion-{name}.png")
    settings = ProbeSettings(args.num_epochs, args.learning_rate, args.balanced_training, args.patience, args.seed)
    training, evaluation, features, failures = load(args)
    if args.labels == FROM_NAMES and (warning := merged_warning(features.paths)):
        print(f"warning: {warning}", file=sys.stderr)
    counts = f"{len(training)} features to train on, {len(evaluation)} to evaluate on"
    print(f"{counts}, {len(set(training.labels))} labels")
    try:
        distributed.start()
        device = distributed.own_device()
        with logged(log, args) as report:
            probe = train_probe(training, evaluation, settings, device=device, space=features.space, report=report)
    finally:
        distributed.stop()
    confusion = probe.confusion(evaluation)
    print(f"Epochs: {probe.epoch}\nBest Eval Epoch : {probe.best_epoch}\nMax Eval Accuracy : {probe.max_eval_acc}")
    print(describe_confusion(confusion, probe.classes))
    earlier = " in place of those of an earlier run" if weights.exists() else ""
    probe.save(weights)
    print(f"Weights saved in '{weights}'{earlier}, the log in '{log}'.")
    draw(picture, confusion, probe.classes)
    return report_left_out(failures)


if __name__ == "__main__":
    sys.exit(main())

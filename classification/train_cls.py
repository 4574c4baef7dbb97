"""Trains a linear probe: a classifier of one layer on the global features of a folder.

The label of a feature is its file name up to the first _, or what a table says (--labels). After every epoch the
probe is evaluated, and the epoch of the best accuracy is kept: to know what it is worth, keep other pieces apart
that neither folder holds. Training starts anew each time, and takes seconds; it writes, NAME being the name of the
training folder, and replaces what an earlier run left:

    weights-NAME.pth     for inference_cls.py; fc.weight and fc.bias take the features as they are
    logs-NAME.txt        the numbers of every epoch
    confusion-NAME.png   the confusion matrix, where matplotlib is installed
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from clamplib.command import positive
from clamplib.evaluation.classification import Examples, describe_confusion, draw_confusion, labeled, split
from clamplib.evaluation.labels import FROM_NAMES, merged_warning
from clamplib.evaluation.probe import Recipe, train
from clamplib.files import InputError, atomic_path
from clamplib.models import distributed
from clamplib.retrieval.similarity import Features, load_features, load_folders
from clamplib.training.state import start_curves


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python train_cls.py --train_folder features/tunes --balanced_training",
    )
    add, recipe = parser.add_argument, Recipe()
    add("--train_folder", required=True, help="folder of .npy files of global vectors; sub-folders count")
    add("--eval_folder", help="the same to evaluate on; without it a share of the training pieces is held out")
    add("--eval_split", type=float, default=0.2, help="that share, of every label (default: %(default)s)")
    add("--num_epochs", type=positive, default=recipe.epochs, help="at most so many (default: %(default)s)")
    add("--learning_rate", type=float, default=recipe.learning_rate, help="default: %(default)s")
    add(
        "--balanced_training",
        action="store_true",
        help="train on as many items of each label as the rarest one has, drawn anew every epoch",
    )
    add(
        "--patience",
        type=int,
        default=recipe.patience,
        help="stop after so many epochs without a better accuracy or a lower loss; 0: never (default: %(default)s)",
    )
    add("--labels", default=FROM_NAMES, help=".csv, .tsv or .jsonl with `path` or `key`, and `label`, for both folders")
    add("--seed", type=int, default=recipe.seed, help="of the split and the draws (default: %(default)s)")
    add("--output_dir", default=".", help="folder to write to (default: the current one)")
    add("--wandb_log", action="store_true", help="send the numbers to Weights & Biases")
    add("--wandb_key", default="", help="its key; default: what WANDB_API_KEY says")
    return parser


def load(args: argparse.Namespace) -> tuple[Examples, Examples, Features, list[Exception]]:
    """Examples to train and to evaluate on, the features of the first, and the files that were left out."""
    if args.eval_folder is None:
        features = load_features(args.train_folder)
        examples = labeled(features, args.train_folder, args.labels)
        return *split(examples, args.eval_split, args.seed), features, features.failures
    evaluation, features = load_folders(args.eval_folder, args.train_folder)
    parts = [labeled(features, args.train_folder, args.labels), labeled(evaluation, args.eval_folder, args.labels)]
    return *parts, features, features.failures + evaluation.failures


@contextmanager
def logged(path: Path, args: argparse.Namespace) -> Iterator[Callable[[dict], None]]:
    """A function that takes the numbers of an epoch to the log, and to wandb if that is wanted."""
    send = start_curves(
        project="clamp3-probe", name=path.stem, settings=vars(args), key=args.wandb_key, wanted=args.wandb_log
    )
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as log:

        def report(numbers: dict) -> None:
            lines = [f"Epoch {numbers['epoch']}"]
            lines += [f"{name}: {value}" for name, value in numbers.items() if name not in ("epoch", "best")]
            log.write("\n".join([*lines, f"time: {time.asctime()}", ""]) + "\n" + "Best so far\n\n" * numbers["best"])
            if send:
                send(numbers)

        yield report


def draw(picture: Path, confusion: np.ndarray, classes: list[str]) -> None:
    """Draws the confusion matrix, or says why not."""
    try:
        draw_confusion(picture, confusion, classes)
    except ImportError as error:
        print(f"No picture: {error}")
    else:
        print(f"Confusion matrix drawn in '{picture}'.")


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    name = Path(args.train_folder).resolve().name
    weights, log, picture = (
        Path(args.output_dir, file) for file in (f"weights-{name}.pth", f"logs-{name}.txt", f"confusion-{name}.png")
    )
    recipe = Recipe(args.num_epochs, args.learning_rate, args.balanced_training, args.patience, args.seed)
    try:
        training, evaluation, features, failures = load(args)
        if warning := args.labels == FROM_NAMES and merged_warning(features.paths):
            print(f"warning: {warning}", file=sys.stderr)
        counts = f"{len(training)} features to train on, {len(evaluation)} to evaluate on"
        print(f"{counts}, {len(set(training.labels))} labels")
        with logged(log, args) as report:
            probe = train(training, evaluation, recipe, device=distributed.start(), space=features.space, report=report)
        confusion = probe.confusion(evaluation)
        print(f"Epochs: {probe.epoch}\nBest Eval Epoch : {probe.best_epoch}\nMax Eval Accuracy : {probe.max_eval_acc}")
        print(describe_confusion(confusion, probe.classes))
        earlier = " in place of those of an earlier run" * weights.exists()
        probe.save(weights)
        print(f"Weights saved in '{weights}'{earlier}, the log in '{log}'.")
        draw(picture, confusion, probe.classes)
    except (InputError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        distributed.stop()
    for failure in failures:
        print(f"left out: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

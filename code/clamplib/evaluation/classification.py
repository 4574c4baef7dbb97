"""Labeled vectors, to train and evaluate a classifier on, and its confusion matrix as text and as a picture."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clamplib.evaluation.labels import FROM_NAMES, feature_labels
from clamplib.evaluation.metrics import classification_metrics, wilson_interval
from clamplib.files import InputError, atomic_path, show
from clamplib.retrieval.similarity import Features

logger = logging.getLogger(__name__)

NUMBERED_CLASSES = 30  # with more classes the cells of the picture show no counts
SMALLEST_PICTURE = 4.0  # inches
LARGEST_PICTURE = 24.0  # inches
INCHES_PER_CLASS = 0.35


@dataclass(frozen=True)
class ProbeSettings:
    """How to train a probe."""

    epochs: int = 1000
    learning_rate: float = 1e-5  # larger ones score better on the evaluation items and worse on others
    balanced: bool = False  # draw as many items of each class as the smallest one has, again every epoch
    patience: int = 50  # epochs without a better accuracy or a lower loss, after which training stops; 0: never
    seed: int = 42


@dataclass(frozen=True)
class LabeledVectors:
    """Feature vectors and their labels."""

    vectors: np.ndarray  # float32 [N, D], not normalized
    labels: list[str]  # N
    keys: list[str]  # N; features of the same key are parts of one piece

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: np.ndarray) -> "LabeledVectors":
        """Returns some of them, by their rows [n]."""
        return LabeledVectors(self.vectors[rows], [self.labels[i] for i in rows], [self.keys[i] for i in rows])

    def numbers(self, index: dict[str, int]) -> np.ndarray:
        """Returns the labels as numbers, int64 [N], by an index that holds all of them."""
        return np.array([index[label] for label in self.labels], np.int64)


def label_features(features: Features, folder: str | Path, source: str | Path = FROM_NAMES) -> LabeledVectors:
    """Selects the features of a folder that have a label. Warns about the number of others.

    Args:
        features: the features of `folder`.
        folder: the folder that they were read from.
        source: "names", or the file of a table (see `labels`).

    Raises:
        InputError: no feature has a label, or the table cannot be read.
    """
    labels = feature_labels(features.paths, features.keys, folder, source)
    rows = [row for row, label in enumerate(labels) if label is not None]
    if len(rows) < len(labels):
        without = show(features.paths[labels.index(None)])
        logger.warning("%d features have no label and are left out, such as %s", labels.count(None), without)
    return LabeledVectors(features.raw[rows], [labels[row] for row in rows], [features.keys[row] for row in rows])


def split(examples: LabeledVectors, share: float, seed: int) -> tuple[LabeledVectors, LabeledVectors]:
    """Splits labeled vectors into some to train on and some to evaluate on.

    Of each label a share of the pieces, at least one, is held out. A label of only one piece is not held out.

    Args:
        examples: the labeled vectors.
        share: the share to evaluate on, between 0 and 1.
        seed: the seed of the random choice.

    Returns:
        The vectors to train on, and the vectors to evaluate on.

    Raises:
        InputError: `share` is out of range, or nothing can be held out.
    """
    if not 0 < share < 1:
        raise InputError(f"expected a share between 0 and 1 to evaluate on, got {share}")
    rng = np.random.default_rng(seed)
    labels = np.array(examples.labels)
    keys = np.array(examples.keys)
    held_out = np.zeros(len(examples), bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        pieces = np.unique(keys[rows])
        count = min(max(1, round(share * len(pieces))), len(pieces) - 1)
        held_out[rows] = np.isin(keys[rows], rng.permutation(pieces)[:count])
    if not held_out.any():
        raise InputError(
            "expected a label with two pieces, one to train and one to evaluate on; "
            f"got {len(examples)} features with {len(np.unique(labels))} labels, such as {examples.labels[0]!r}"
        )
    return examples.take(np.flatnonzero(~held_out)), examples.take(np.flatnonzero(held_out))


def number_labels(training: LabeledVectors, evaluation: LabeledVectors) -> dict[str, int]:
    """Numbers the labels in alphabetical order.

    Returns:
        {label: number from 0}.

    Raises:
        InputError: all vectors to train on have the same label, or a label to evaluate on does not occur in training.
    """
    classes = sorted(set(training.labels))
    if len(classes) < 2:
        raise InputError(
            f"expected at least two labels to tell apart, but all {len(training)} features to train on "
            f"are {classes[0]!r}"
        )
    unknown = sorted(set(evaluation.labels) - set(classes))
    if unknown:
        raise InputError(
            "expected to evaluate on labels that are trained on, but no feature to train on is labeled "
            + " or ".join(map(repr, unknown[:10]))
        )
    return {label: number for number, label in enumerate(classes)}


def describe_confusion(confusion: np.ndarray, classes: Sequence[str]) -> str:
    """Formats accuracy with its 95 % interval, macro F1, and the matrix [C, C] with one row per true class."""
    metrics = classification_metrics(confusion)
    count = int(confusion.sum())
    low, high = wilson_interval(metrics["accuracy"], count)
    width = max(len(str(confusion.max())), len(str(len(classes)))) + 2
    name_width = max(map(len, classes))
    head = " " * (len(str(len(classes))) + 1 + name_width)
    lines = [
        f"Accuracy: {metrics['accuracy']:.4f} of {count} (95 % interval {low:.4f} to {high:.4f})",
        f"Macro F1: {metrics['f1_macro']:.4f}",
        "Confusion matrix, a row a true class and a column a predicted one:",
        head + "".join(f"{number:{width}}" for number in range(len(classes))),
    ]
    for number, (name, row) in enumerate(zip(classes, confusion.tolist(), strict=True)):
        cells = "".join(f"{cell or '.':>{width}}" for cell in row)
        lines.append(f"{number:{len(str(len(classes)))}} {name:{name_width}}{cells}")
    return "\n".join(lines)


def draw_confusion(path: str | Path, confusion: np.ndarray, classes: Sequence[str]) -> None:
    """Draws the matrix [C, C] as a picture (.png, .pdf or .svg), shaded by the share of each true class.

    Raises:
        ImportError: matplotlib is not installed.
        InputError: the suffix is not one that matplotlib can write.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("a picture of the confusion matrix needs matplotlib: pip install matplotlib") from error
    size = min(SMALLEST_PICTURE + INCHES_PER_CLASS * len(classes), LARGEST_PICTURE)
    figure = Figure((size, size), layout="constrained")
    axes = figure.add_subplot(xlabel="predicted", ylabel="true")
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    # names are data: a `$` does not begin a formula
    axes.set_xticks(range(len(classes)), classes, rotation=90, parse_math=False)
    axes.set_yticks(range(len(classes)), classes, parse_math=False)
    if len(classes) <= NUMBERED_CLASSES:
        for (row, column), count in np.ndenumerate(confusion):
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=color)
    with atomic_path(path) as temporary:
        try:
            figure.savefig(temporary)
        except ValueError as error:
            raise InputError(f"{path}: expected the name of a picture, such as confusion.png ({error})") from error

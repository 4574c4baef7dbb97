"""Labeled vectors, which a classifier is trained and judged on, and how it errs: in text and as a picture."""

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

NUMBERED_CLASSES = 30  # with more classes the cells of the picture hold no numbers
INCHES = (4.0, 0.35, 24.0)  # of the picture: at the least, a class, at the most


@dataclass(frozen=True)
class Examples:
    """Features that have a label."""

    vectors: np.ndarray  # float32 [N, D], as they were extracted
    labels: list[str]  # N
    keys: list[str]  # N; features of one key are parts of one piece

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: np.ndarray) -> "Examples":
        return Examples(self.vectors[rows], [self.labels[i] for i in rows], [self.keys[i] for i in rows])

    def numbers(self, index: dict[str, int]) -> np.ndarray:
        """The labels as int64 [N], by an index that knows them all."""
        return np.array([index[label] for label in self.labels], np.int64)


def labeled(features: Features, folder: str | Path, source: str | Path = FROM_NAMES) -> Examples:
    """The features of a folder that have a label, from their names or a table; the number of others is a warning.

    InputError where none has a label (see `labels.feature_labels`).
    """
    labels = feature_labels(features.paths, features.keys, folder, source)
    rows = [row for row, label in enumerate(labels) if label is not None]
    if len(rows) < len(labels):
        without = show(features.paths[labels.index(None)])
        logger.warning("%d features have no label and are left out, such as %s", labels.count(None), without)
    return Examples(features.raw[rows], [labels[row] for row in rows], [features.keys[row] for row in rows])


def split(examples: Examples, share: float, seed: int) -> tuple[Examples, Examples]:
    """Examples to train on and to evaluate on: of each label a share of the pieces is held out, at least one.

    A label of one piece is trained on only. InputError where nothing can be held out.
    """
    if not 0 < share < 1:
        raise InputError(f"expected a share between 0 and 1 to evaluate on, got {share}")
    rng = np.random.default_rng(seed)
    labels, keys = np.array(examples.labels), np.array(examples.keys)
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


def number_labels(training: Examples, evaluation: Examples) -> dict[str, int]:
    """label -> index, in alphabetical order. InputError where nothing can be learned or evaluated."""
    classes = sorted(set(training.labels))
    if len(classes) < 2:
        raise InputError(
            f"expected at least two labels to tell apart, but all {len(training)} features to train on "
            f"are {classes[0]!r}"
        )
    unknown = sorted(set(evaluation.labels) - set(classes))
    if unknown:
        raise InputError(
            "expected to evaluate on labels that are trained on, but nothing to train on is "
            + " or ".join(map(repr, unknown[:10]))
        )
    return {label: number for number, label in enumerate(classes)}


def describe_confusion(confusion: np.ndarray, classes: Sequence[str]) -> str:
    """Accuracy with its 95 % interval, macro F1, and the matrix [C, C] with a row a true class."""
    metrics, count = classification_metrics(confusion), int(confusion.sum())
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
    """The matrix [C, C] as a picture (.png, .pdf or .svg), shaded by the share of each true class.

    ImportError where matplotlib is not installed, InputError for a suffix that it cannot write.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("a picture of the confusion matrix needs matplotlib: pip install matplotlib") from error
    least, each, most = INCHES
    size = min(least + each * len(classes), most)
    figure = Figure((size, size), layout="constrained")
    axes = figure.add_subplot(xlabel="predicted", ylabel="true")
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    # names are data: `$` begins no formula
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

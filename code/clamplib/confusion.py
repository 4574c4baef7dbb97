"""What a classifier got right, for people: accuracy, macro F1 and the confusion matrix, in text and as a picture."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clamplib.files import InputError, atomic_path
from clamplib.metrics import classification_metrics, wilson_interval

NUMBERED_CLASSES = 30  # with more classes the cells of the picture hold no numbers
INCHES = (4.0, 0.35, 24.0)  # of the picture: at the least, a class, at the most


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
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=colour)
    with atomic_path(path) as temporary:
        try:
            figure.savefig(temporary)
        except ValueError as error:
            raise InputError(f"{path}: expected the name of a picture, such as confusion.png ({error})") from error

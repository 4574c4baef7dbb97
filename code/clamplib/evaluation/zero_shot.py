"""Classification without training: music gets the class whose description in words is the most similar.

A class is a key of the folder of text features (see `retrieval.similarity`): `jig.npy`, or `jig.1.npy`, `jig.2.npy`, …
if there are several prompts. The prototype of a class is the mean of its prompts' directions. Each feature of music
gets the class whose prototype has the highest cosine.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clamplib.evaluation.classification import describe_confusion
from clamplib.evaluation.metrics import confusion_matrix
from clamplib.files import InputError, atomic_path, show, walk
from clamplib.retrieval.similarity import Features, load_folders, normalize, search
from clamplib.space import write_space


@dataclass(frozen=True)
class Labeling:
    """The features of a folder, and the class that each of them was given."""

    features: Features
    prompts: Features
    classes: list[str]
    prototypes: np.ndarray  # float32 [C, D], unit rows
    predicted: np.ndarray  # int64 [N], numbers of classes
    similarities: np.ndarray  # float32 [N], the cosine with the prototype of that class


def label_folder(feature_folder: str | Path, class_folder: str | Path) -> Labeling:
    """Gives each feature of a folder the most similar class.

    Args:
        feature_folder: the features of music, N of them.
        class_folder: the features of texts, one key per class.

    Raises:
        InputError: the folders cannot be compared, or there are fewer than two classes.
    """
    features, prompts = load_folders(feature_folder, class_folder)
    classes, prototypes = class_prototypes(prompts)
    if len(classes) < 2:
        raise InputError(f"{show(class_folder)}: expected at least two classes to choose from, got {classes[0]!r} only")
    rows, similarities = search(features.matrix, prototypes, top_k=1)
    return Labeling(features, prompts, classes, prototypes, rows[:, 0], similarities[:, 0])


def class_prototypes(prompts: Features) -> tuple[list[str], np.ndarray]:
    """Averages the prompts of each class.

    Returns:
        The classes in alphabetical order, and their prototypes, float32 [C, D], unit rows.

    Raises:
        InputError: the prompts of a class add up to zero.
    """
    classes, numbers = np.unique(prompts.keys, return_inverse=True)
    sums = np.zeros((len(classes), prompts.matrix.shape[1]), np.float32)
    np.add.at(sums, numbers, prompts.matrix)
    for name in classes[~sums.any(1)]:
        raise InputError(f"class {str(name)!r}: expected prompts with a common direction, but they add up to zero")
    return classes.tolist(), normalize(sums)[0]


def save_prototypes(folder: str | Path, labeling: Labeling) -> None:
    """Writes one .npy file [1, D] per class, and their space.json, for `semantic_search.py`.

    Raises:
        InputError: the folder already holds other features.
    """
    targets = [Path(folder, f"{name}.npy") for name in labeling.classes]
    if any(Path(folder).rglob("*.npy")):
        others = set(walk(folder, (".npy",))) - set(targets)
        if others:
            raise InputError(f"{show(folder)}: expected a folder for prototypes only, but {show(min(others))} is in it")
    for target, prototype in zip(targets, labeling.prototypes, strict=True):
        with atomic_path(target) as temporary:
            np.save(temporary, prototype[None])
    if labeling.prompts.space:
        write_space(folder, labeling.prompts.space)


def judge(predicted: Sequence[int], truth: Sequence[str | None], classes: Sequence[str]) -> tuple[np.ndarray, int]:
    """Compares predicted classes [N] with true labels [N].

    Args:
        predicted: indices of classes.
        truth: labels; None, or a label that is not a class, leaves an item out.

    Returns:
        The confusion matrix, int64 [C, C] with a row per true class, and the number of items that were left out.

    Raises:
        InputError: all items are left out.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    known = [row for row, label in enumerate(truth) if label in numbers]
    if not known:
        label = next(filter(None, truth), None)
        raise InputError(f"expected true labels such as {classes[0]!r}, got none that is a class, such as {label!r}")
    true = [numbers[truth[row]] for row in known]
    return confusion_matrix(true, np.asarray(predicted)[known], len(classes)), len(truth) - len(known)


def describe_judgment(confusion: np.ndarray, left_out: int, classes: Sequence[str]) -> str:
    """Returns what `judge` found in words: the number of items left out, accuracy, macro F1 and the matrix."""
    text = describe_confusion(confusion, classes)
    if left_out:
        text = f"{left_out} features have no true label, or one that is no class: they are not judged.\n{text}"
    return text

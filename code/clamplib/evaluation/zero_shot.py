"""Classes without training: the features of a few words about each class are compared with those of music.

A class is a key of the folder of texts' features (see `retrieval`): `jig.npy`, or `jig.1.npy`, `jig.2.npy`, ...
for several prompts. Its prototype is the mean of its prompts' directions; music is given the class whose
prototype is closest by cosine.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clamplib.evaluation.labels import feature_labels
from clamplib.evaluation.metrics import confusion_matrix
from clamplib.files import InputError, atomic_path, show, walk
from clamplib.retrieval.similarity import Features, load_folders, normalize, search
from clamplib.space import write_space


@dataclass(frozen=True)
class Labeling:
    """The features of a folder, and the class that each was given."""

    features: Features
    prompts: Features
    classes: list[str]
    prototypes: np.ndarray  # float32 [C, D], unit rows
    predicted: np.ndarray  # int64 [N], indices of classes
    similarities: np.ndarray  # float32 [N], to the prototype of that class


def label_folder(feature_folder: str | Path, class_folder: str | Path) -> Labeling:
    """Labels every feature of a folder. InputError where the two folders cannot be compared, or hold one class."""
    features, prompts = load_folders(feature_folder, class_folder)
    classes, prototypes = class_prototypes(prompts)
    if len(classes) < 2:
        raise InputError(f"{show(class_folder)}: expected at least two classes to choose from, got {classes[0]!r} only")
    rows, similarities = search(features.matrix, prototypes, top_k=1)
    return Labeling(features, prompts, classes, prototypes, rows[:, 0], similarities[:, 0])


def class_prototypes(prompts: Features) -> tuple[list[str], np.ndarray]:
    """The classes, in alphabetical order, and their prototypes: float32 [C, D], unit rows.

    InputError where the prompts of a class point in opposite directions.
    """
    classes, numbers = np.unique(prompts.keys, return_inverse=True)
    sums = np.zeros((len(classes), prompts.matrix.shape[1]), np.float32)
    np.add.at(sums, numbers, prompts.matrix)
    for name in classes[~sums.any(1)]:
        raise InputError(f"class {str(name)!r}: expected prompts with a common direction, but they add up to zero")
    return classes.tolist(), normalize(sums)[0]


def save_prototypes(folder: str | Path, labeling: Labeling) -> None:
    """Writes a .npy [1, D] a class, and their space.json, for `semantic_search.py`.

    InputError where the folder holds other features already.
    """
    targets = [Path(folder, f"{name}.npy") for name in labeling.classes]
    others = {*walk(folder, (".npy",))} - {*targets} if any(Path(folder).rglob("*.npy")) else ()
    if others:
        raise InputError(f"{show(folder)}: expected a folder for prototypes alone, but {show(min(others))} is in it")
    for target, prototype in zip(targets, labeling.prototypes, strict=True):
        with atomic_path(target) as temporary:
            np.save(temporary, prototype[None])
    if labeling.prompts.space:
        write_space(folder, labeling.prompts.space)


def judge(labeling: Labeling, feature_folder: str | Path, source: str | Path) -> tuple[np.ndarray, int]:
    """The confusion matrix [C, C] by true labels (see `labels.feature_labels`), and how many features it leaves out.

    Left out are features without a label, or with one that is no class. InputError where all are.
    """
    index = {name: number for number, name in enumerate(labeling.classes)}
    features = labeling.features
    truth = feature_labels(features.paths, features.keys, feature_folder, source)
    known = [row for row, label in enumerate(truth) if label in index]
    if not known:
        label = next(filter(None, truth))
        raise InputError(f"expected true labels such as {labeling.classes[0]!r}, but all are others, such as {label!r}")
    numbers = np.array([index[truth[row]] for row in known])
    return confusion_matrix(numbers, labeling.predicted[known], len(index)), len(truth) - len(known)

"""Labelled features: what a classifier is trained and judged on."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clamplib.files import InputError, show
from clamplib.labels import FROM_NAMES, feature_labels
from clamplib.retrieval import Features

logger = logging.getLogger(__name__)


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


def raw_vectors(features: Features) -> np.ndarray:
    """float32 [N, D]: the vectors with the lengths that they were extracted with."""
    return features.matrix * features.lengths[:, None]


def labelled(features: Features, folder: str | Path, source: str | Path = FROM_NAMES) -> Examples:
    """The features of a folder that have a label, from their names or a table; the number of others is a warning.

    InputError where none has a label (see `labels.feature_labels`).
    """
    labels = feature_labels(features.paths, features.keys, folder, source)
    rows = [row for row, label in enumerate(labels) if label is not None]
    if len(rows) < len(labels):
        without = show(features.paths[labels.index(None)])
        logger.warning("%d features have no label and are left out, such as %s", labels.count(None), without)
    return Examples(raw_vectors(features)[rows], [labels[row] for row in rows], [features.keys[row] for row in rows])


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
    """label -> index, in alphabetical order. InputError where nothing can be learnt or evaluated."""
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

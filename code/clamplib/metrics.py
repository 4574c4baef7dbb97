"""Metrics of retrieval and classification: arrays in, numbers out.

Conventions, for every function here: a similarity matrix has one row a query and one column a reference;
larger is closer; ranks start at 1; a tie counts for the right reference. MRR is the mean of 1 / rank, Hit@k
the share of queries whose right reference is among the first k. A confusion matrix has one row a true class
and one column a predicted one.
"""

import math
from collections.abc import Sequence

import numpy as np

# A float32 dot product varies by about 1e-7 with its place in a matrix product. What is closer than this is
# a tie, so that exact duplicates always are one.
TIE_TOLERANCE = 1e-6


def ranks(similarity: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The rank of each query's right reference.

    similarity: [Q, N]; target: [Q], the column of the right reference. Returns int64 [Q], from 1 to N.
    """
    similarity, target = np.asarray(similarity), np.asarray(target)
    if similarity.ndim != 2 or target.shape != similarity.shape[:1]:
        raise ValueError(f"expected similarity [Q, N] and target [Q], got {similarity.shape} and {target.shape}")
    right = np.take_along_axis(similarity, target[:, None], axis=1)
    return 1 + (similarity > right + TIE_TOLERANCE).sum(axis=1)


def retrieval_metrics(ranks: np.ndarray, at: Sequence[int] = (1, 10, 100)) -> dict[str, float]:
    """{"mrr": ..., "hit@1": ..., ...} of the ranks [Q]. ValueError where there are none."""
    ranks = np.asarray(ranks)
    if not ranks.size:
        raise ValueError("no ranks: a metric needs at least one query")
    hits = {f"hit@{k}": float((ranks <= k).mean()) for k in at}
    return {"mrr": float((1 / ranks).mean()), **hits}


def confusion_matrix(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """How many items of each class were taken for each: int64 [C, C].

    truth, predicted: [N], class numbers from 0 to `classes` - 1.
    """
    truth, predicted = np.asarray(truth, np.int64), np.asarray(predicted, np.int64)
    if truth.shape != predicted.shape or truth.ndim != 1:
        raise ValueError(f"expected truth and predictions of one length, got {truth.shape} and {predicted.shape}")
    return np.bincount(truth * classes + predicted, minlength=classes**2).reshape(classes, classes)


def classification_metrics(confusion: np.ndarray) -> dict[str, float]:
    """{"accuracy": ..., "f1_macro": ...} of a confusion matrix [C, C]. ValueError where it counts nothing.

    Macro F1 is the plain mean over the classes that occur, as truth or as a prediction.
    """
    right, both = np.diag(confusion), confusion.sum(0) + confusion.sum(1)
    if not both.any():
        raise ValueError("an empty confusion matrix: a metric needs at least one item")
    occurs = both > 0
    return {
        "accuracy": float(right.sum() / confusion.sum()),
        "f1_macro": float((2 * right[occurs] / both[occurs]).mean()),
    }


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """The 95 % confidence interval (Wilson's) of a share that was seen in `count` items."""
    z = 1.96
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return centre - half, centre + half

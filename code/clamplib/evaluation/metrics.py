"""Metrics of retrieval and classification: arrays in, numbers out.

Conventions, for every function here: a similarity matrix has one row a query and one column a reference;
larger is closer; ranks start at 1; a tie counts for the right reference. MRR is the mean of 1 / rank, Hit@k
the share of queries whose right reference is among the first k. A confusion matrix has one row a true class
and one column a predicted one.

For a paper, `rank_values` (one right reference a query) or `relevance_values` (any number, also graded) gives
what each query scores, and `summarize` the means of that with their confidence intervals.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

# A float32 dot product varies by about 1e-7 with its place in a matrix product. What is closer than this is
# a tie, so that exact duplicates always are one.
TIE_TOLERANCE = 1e-6
BLOCK_VALUES = 1 << 22  # values drawn at a time for a bootstrap: 32 MiB of indices


class Estimate(NamedTuple):
    """A number with its confidence interval."""

    value: float
    low: float
    high: float


def ranks(similarity: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The rank of each query's right reference.

    similarity: [Q, N]; target: [Q], the column of the right reference. Returns int64 [Q], from 1 to N.
    ValueError where a similarity is NaN.
    """
    similarity, target = np.asarray(similarity), np.asarray(target)
    if similarity.ndim != 2 or target.shape != similarity.shape[:1]:
        raise ValueError(f"expected similarity [Q, N] and target [Q], got {similarity.shape} and {target.shape}")
    _refuse_nan(similarity)
    right = np.take_along_axis(similarity, target[:, None], axis=1)
    return 1 + (similarity > right + TIE_TOLERANCE).sum(axis=1)


def retrieval_metrics(ranks: np.ndarray, at: Sequence[int] = (1, 10, 100)) -> dict[str, float]:
    """{"mrr": ..., "hit@1": ..., ...} of the ranks [Q]. ValueError where there are none."""
    ranks = np.asarray(ranks)
    if not ranks.size:
        raise ValueError("no ranks: a metric needs at least one query")
    hits = {f"hit@{k}": float((ranks <= k).mean()) for k in at}
    return {"mrr": float((1 / ranks).mean()), **hits}


def rank_values(ranks: np.ndarray, at: Sequence[int] = (1, 10, 100)) -> dict[str, np.ndarray]:
    """What each query scores that has one right reference, of rank [Q]: {"rank", "rr", "hit@k", "ndcg@k"}, each [Q].

    rr is 1 / rank, and the average precision too; nDCG@k is 1 / log2(1 + rank) as far as rank k, then 0.
    ValueError where there are no ranks, or one is below 1.
    """
    ranks = np.asarray(ranks)
    if ranks.ndim != 1 or not ranks.size or not (ranks >= 1).all():
        raise ValueError(f"expected ranks [Q] from 1 on, at least one, got {ranks}")
    hits = {k: (ranks <= k).astype(np.int64) for k in at}
    return {
        "rank": ranks,
        "rr": 1 / ranks,
        **{f"hit@{k}": hit for k, hit in hits.items()},
        **{f"ndcg@{k}": hit / np.log2(1 + ranks) for k, hit in hits.items()},
    }


def relevance_values(
    blocks: Iterable[tuple[np.ndarray, np.ndarray]], at: Sequence[int] = (1, 10, 100)
) -> dict[str, np.ndarray]:
    """What each query scores that has any number of right references: each [Q], in the order of the queries.

    blocks: (similarity [q, N], gains [q, N]) of some queries at a time, so that the whole matrix need not
    exist. A gain is 0 for a wrong reference and above 0 for a right one: a bool, or a grade. Gains count as
    they are, as in trec_eval and scikit-learn; the other custom is to give 2**grade - 1 here.

    Returns rank, rr and hit@k of the first right reference, ndcg@k, ap (average precision: the mean, over the
    right references, of the precision at each) and ap@k (which counts those among the first k, and divides by
    how many could be there, min(k, right ones)). The last two take every gain above 0 for 1.
    A wrong reference stands before a right one only if it is more similar by more than TIE_TOLERANCE; among
    right ones of equal similarity the greater gain stands first.
    ValueError where a similarity is NaN, a gain negative or NaN, or no reference of a query is right.
    """
    queries: list[dict[str, float]] = []
    for similarity, gains in blocks:
        similarity, gains = np.asarray(similarity), np.asarray(gains)
        if similarity.ndim != 2 or similarity.shape != gains.shape:
            raise ValueError(f"expected similarity and gains [q, N], got {similarity.shape} and {gains.shape}")
        _refuse_nan(similarity)
        if not (gains >= 0).all():
            raise ValueError("expected gains of 0 or more, got a negative one or NaN")
        right = gains.any(axis=1)
        if not right.all():
            raise ValueError(f"query {len(queries) + right.argmin()} has no right reference: leave it out")
        queries += [_query_values(*row, at) for row in zip(similarity, gains, strict=True)]
    if not queries:
        raise ValueError("no blocks: a metric needs at least one query")
    return {name: np.array([values[name] for values in queries]) for name in queries[0]}


def _query_values(similarity: np.ndarray, gains: np.ndarray, at: Sequence[int]) -> dict[str, float]:
    """`relevance_values` of one query: similarity, gains: [N]."""
    wrong = np.sort(similarity[gains == 0])
    right, gains = similarity[gains > 0], gains[gains > 0].astype(np.float64)
    order = np.lexsort((-gains, -right))
    right, gains = right[order], gains[order]
    numbers = np.arange(1, len(right) + 1)
    ranks = numbers + len(wrong) - np.searchsorted(wrong, right + TIE_TOLERANCE, side="right")
    best = np.sort(gains)[::-1]
    precisions = numbers / ranks
    return {
        "rank": ranks[0],
        "rr": 1 / ranks[0],
        **{f"hit@{k}": int(ranks[0] <= k) for k in at},
        **{f"ndcg@{k}": _discounted(gains, ranks, k) / _discounted(best, numbers, k) for k in at},
        "ap": precisions.mean(),
        **{f"ap@{k}": precisions[ranks <= k].sum() / min(k, len(right)) for k in at},
    }


def _discounted(gains: np.ndarray, ranks: np.ndarray, k: int) -> float:
    return float((gains / np.log2(1 + ranks))[ranks <= k].sum())


def _refuse_nan(similarity: np.ndarray) -> None:
    if np.isnan(similarity).any():
        raise ValueError("expected similarities, got NaN: a vector is not finite")


def summarize(
    values: Mapping[str, np.ndarray], resamples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> dict[str, Estimate]:
    """The metrics of all queries, from `rank_values` or `relevance_values`, each with its interval by `bootstrap`.

    rank gives "median_rank"; of all others the mean is taken: rr gives "mrr", ap "map", ap@k "map@k", and the rest
    keep their names.
    """
    summary = {}
    for name, scores in values.items():
        statistic = np.median if name == "rank" else np.mean
        title = "median_rank" if name == "rank" else f"m{name}" if name.startswith(("rr", "ap")) else name
        summary[title] = bootstrap(scores, statistic, resamples, confidence, seed)
    return summary


def bootstrap(
    values: np.ndarray,
    statistic: Callable[..., np.ndarray] = np.mean,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """A statistic of the values [N] with its percentile bootstrap interval; a single value is its own interval.

    `statistic` takes an axis, as np.mean does. Equal N and seeds give equal resamples: to compare two systems,
    give the differences of their values query by query. ValueError where there is no value, or one is NaN.
    """
    values = np.asarray(values)
    if values.ndim != 1 or not values.size or np.isnan(values).any():
        raise ValueError(f"expected values [N] without NaN, at least one, got {values}")
    generator, count = np.random.default_rng(seed), len(values)
    step = max(1, BLOCK_VALUES // count)
    sizes = [min(step, resamples - start) for start in range(0, resamples, step)]
    found = [statistic(values[generator.integers(count, size=(size, count))], axis=1) for size in sizes]
    low, high = np.quantile(np.concatenate(found), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(float(statistic(values, axis=0)), float(low), float(high))


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
    center = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return center - half, center + half

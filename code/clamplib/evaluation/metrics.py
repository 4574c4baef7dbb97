"""Metrics of retrieval and classification: arrays in, numbers out.

Conventions of every function here: a similarity matrix has one row per query and one column per reference; larger is
closer; ranks start at 1; ties are resolved in favor of the correct reference. MRR is the mean of 1 / rank, and Hit@k is
the share of queries whose correct reference is among the first k. A confusion matrix has one row per true class and one
column per predicted class.

For a paper, compute per-query scores with `rank_values` (exactly one correct reference per query) or `relevance_values`
(any number, optionally graded), and average them with `summarize`, which adds confidence intervals.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

# A float32 dot product varies by about 1e-7 with its position in a matrix product. Similarities that differ by less
# than this are ties, so that exact duplicates always tie.
TIE_TOLERANCE = 1e-6
BOOTSTRAP_BLOCK_VALUES = 1 << 22  # values drawn at a time: 32 MiB of indices


class Estimate(NamedTuple):
    """A number with its confidence interval."""

    value: float
    low: float
    high: float


def ranks(similarity: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Ranks the correct reference of each query.

    Args:
        similarity: [Q, N].
        target: [Q], the column of each query's correct reference.

    Returns:
        Ranks from 1 to N, int64 [Q].

    Raises:
        ValueError: the shapes do not fit, or a similarity is NaN.
    """
    similarity, target = np.asarray(similarity), np.asarray(target)
    if similarity.ndim != 2 or target.shape != similarity.shape[:1]:
        raise ValueError(f"expected similarity [Q, N] and target [Q], got {similarity.shape} and {target.shape}")
    _refuse_nan(similarity)
    correct = np.take_along_axis(similarity, target[:, None], axis=1)
    return 1 + (similarity > correct + TIE_TOLERANCE).sum(axis=1)


def retrieval_metrics(ranks: np.ndarray, at: Sequence[int] = (1, 10, 100)) -> dict[str, float]:
    """Averages ranks [Q] to MRR and Hit@k.

    Returns:
        {"mrr": ..., "hit@1": ..., ...}, with one Hit@k for each k in `at`.

    Raises:
        ValueError: there are no ranks.
    """
    ranks = np.asarray(ranks)
    if not ranks.size:
        raise ValueError("no ranks: a metric needs at least one query")
    hits = {f"hit@{k}": float((ranks <= k).mean()) for k in at}
    return {"mrr": float((1 / ranks).mean()), **hits}


def rank_values(ranks: np.ndarray, at: Sequence[int] = (1, 10, 100)) -> dict[str, np.ndarray]:
    """Computes per-query scores when each query has exactly one correct reference, given its rank [Q].

    Returns:
        {"rank", "rr", "hit@k", "ndcg@k"}, each [Q], with one Hit@k and nDCG@k for each k in `at`. rr is 1 / rank, which
        here equals the average precision. nDCG@k is 1 / log2(1 + rank) up to rank k, and 0 beyond.

    Raises:
        ValueError: there are no ranks, or one is below 1.
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
    """Computes per-query scores when each query has any number of correct references, optionally graded.

    A wrong reference ranks before a correct one only if its similarity is higher by more than TIE_TOLERANCE. Correct
    references of equal similarity are ranked by gain.

    Args:
        blocks: similarity [q, N] and gains [q, N] of some queries at a time, so that the whole matrix need not be in
            memory. A gain is 0 for a wrong reference and above 0 for a correct one: a bool or a grade. nDCG uses gains
            as they are, like trec_eval and scikit-learn; for the other convention pass 2**grade - 1.
        at: the values of k.

    Returns:
        Arrays [Q] in the order of the queries. rank, rr and hit@k are of the first correct reference. ndcg@k is
        graded; all others treat every gain above 0 as 1. ap is the average precision: the mean of the precision at each
        correct reference. ap@k counts the correct references among the first k, and divides by min(k, their number).

    Raises:
        ValueError: a similarity is NaN, a gain is negative or NaN, or a query has no correct reference.
    """
    queries: list[dict[str, float]] = []
    for similarity, gains in blocks:
        similarity, gains = np.asarray(similarity), np.asarray(gains)
        if similarity.ndim != 2 or similarity.shape != gains.shape:
            raise ValueError(f"expected similarity and gains [q, N], got {similarity.shape} and {gains.shape}")
        _refuse_nan(similarity)
        if not (gains >= 0).all():
            raise ValueError("expected gains of 0 or more, got a negative one or NaN")
        answered = gains.any(axis=1)
        if not answered.all():
            raise ValueError(f"query {len(queries) + answered.argmin()} has no correct reference: leave it out")
        for own_similarity, own_gains in zip(similarity, gains, strict=True):
            queries.append(_query_values(own_similarity, own_gains, at))
    if not queries:
        raise ValueError("no blocks: a metric needs at least one query")
    columns = {}
    for name in queries[0]:
        columns[name] = np.array([values[name] for values in queries])
    return columns


def _query_values(similarity: np.ndarray, gains: np.ndarray, at: Sequence[int]) -> dict[str, float]:
    """Computes `relevance_values` of one query from similarity [N] and gains [N]."""
    wrong = np.sort(similarity[gains == 0])
    correct, gains = similarity[gains > 0], gains[gains > 0].astype(np.float64)
    order = np.lexsort((-gains, -correct))
    correct, gains = correct[order], gains[order]
    numbers = np.arange(1, len(correct) + 1)
    ranks = numbers + len(wrong) - np.searchsorted(wrong, correct + TIE_TOLERANCE, side="right")
    best = np.sort(gains)[::-1]
    precisions = numbers / ranks
    return {
        "rank": ranks[0],
        "rr": 1 / ranks[0],
        **{f"hit@{k}": int(ranks[0] <= k) for k in at},
        **{f"ndcg@{k}": _discounted(gains, ranks, k) / _discounted(best, numbers, k) for k in at},
        "ap": precisions.mean(),
        **{f"ap@{k}": precisions[ranks <= k].sum() / min(k, len(correct)) for k in at},
    }


def _discounted(gains: np.ndarray, ranks: np.ndarray, k: int) -> float:
    return float((gains / np.log2(1 + ranks))[ranks <= k].sum())


def _refuse_nan(similarity: np.ndarray) -> None:
    if np.isnan(similarity).any():
        raise ValueError("expected similarities, got NaN: a vector is not finite")


def summarize(
    values: Mapping[str, np.ndarray], resamples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> dict[str, Estimate]:
    """Averages per-query scores, with a confidence interval for each by `bootstrap`.

    Args:
        values: what `rank_values` or `relevance_values` returns.
        resamples: the number of bootstrap resamples.
        confidence: the level of the intervals.
        seed: the seed of the resamples.

    Returns:
        {metric: estimate}. rank becomes "median_rank". All others are means: rr becomes "mrr", ap "map" and ap@k
        "map@k"; Hit@k and nDCG@k keep their names.
    """
    summary = {}
    for name, scores in values.items():
        if name == "rank":
            summary["median_rank"] = bootstrap(scores, np.median, resamples, confidence, seed)
        else:
            title = f"m{name}" if name.startswith(("rr", "ap")) else name
            summary[title] = bootstrap(scores, np.mean, resamples, confidence, seed)
    return summary


def bootstrap(
    values: np.ndarray,
    statistic: Callable[..., np.ndarray] = np.mean,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Computes a statistic of values [N] with its percentile bootstrap interval.

    The same N and seed give the same resamples. To compare two systems, pass the per-query differences of their values.

    Args:
        values: [N]. The interval of a single value is the value itself.
        statistic: a function of an array that takes an `axis`, like np.mean.
        resamples: the number of resamples.
        confidence: the level of the interval.
        seed: the seed of the resamples.

    Raises:
        ValueError: there are no values, or one is NaN.
    """
    values = np.asarray(values)
    if values.ndim != 1 or not values.size or np.isnan(values).any():
        raise ValueError(f"expected values [N] without NaN, at least one, got {values}")
    generator = np.random.default_rng(seed)
    count = len(values)
    step = max(1, BOOTSTRAP_BLOCK_VALUES // count)
    found = []
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        found.append(statistic(values[generator.integers(count, size=(size, count))], axis=1))
    low, high = np.quantile(np.concatenate(found), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(float(statistic(values, axis=0)), float(low), float(high))


def confusion_matrix(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Counts the items of each true class by predicted class.

    Args:
        truth: [N], class numbers from 0 to C - 1.
        predicted: [N], class numbers from 0 to C - 1.
        classes: C.

    Returns:
        int64 [C, C].

    Raises:
        ValueError: the lengths of `truth` and `predicted` differ.
    """
    truth, predicted = np.asarray(truth, np.int64), np.asarray(predicted, np.int64)
    if truth.shape != predicted.shape or truth.ndim != 1:
        raise ValueError(f"expected truth and predictions of one length, got {truth.shape} and {predicted.shape}")
    return np.bincount(truth * classes + predicted, minlength=classes**2).reshape(classes, classes)


def classification_metrics(confusion: np.ndarray) -> dict[str, float]:
    """Computes accuracy and macro F1 from a confusion matrix [C, C].

    Macro F1 is the unweighted mean over the classes that occur, as truth or as a prediction.

    Returns:
        {"accuracy": ..., "f1_macro": ...}.

    Raises:
        ValueError: the matrix counts no items.
    """
    correct = np.diag(confusion)
    both = confusion.sum(0) + confusion.sum(1)
    if not both.any():
        raise ValueError("an empty confusion matrix: a metric needs at least one item")
    occurs = both > 0
    return {
        "accuracy": float(correct.sum() / confusion.sum()),
        "f1_macro": float((2 * correct[occurs] / both[occurs]).mean()),
    }


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """Returns the 95 % confidence interval (Wilson's) of a share that was observed in `count` items."""
    z = 1.96
    center = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return center - half, center + half

"""Distances between two sets of vectors: arrays in, numbers out.

Conventions of every function here: a set is [N, D], one vector per row, in any order. The first set is judged against
the second, the reference. The distances are of vectors as they are given, which is how papers report them; nothing is
scaled. Two numbers are comparable only if one model made all vectors and all were scaled alike. Intervals are of 95 %,
by the delta method, and assume that the vectors are independent of each other.
"""

import math
from collections.abc import Callable

import numpy as np

from clamplib.evaluation.metrics import Estimate
from clamplib.files import InputError
from clamplib.retrieval.similarity import unit_mean

KAD_SCALE = 100.0
MEDIAN_VECTORS = 4096  # the most vectors whose median distance is computed: 128 MiB of float64
ADVISED = 10  # vectors per dimension, for a Frechet distance
DISTANCE_BLOCK_VALUES = 1 << 22  # values in memory at a time: 32 MiB of float64
Z = 1.96


def frechet_distance(vectors: np.ndarray, reference: np.ndarray) -> float:
    """Computes the squared Frechet distance between normal distributions with the sets' means and covariances.

    It is symmetric and never below 0. `sample_size_remark` says when there are too few vectors for a number to report.

    Args:
        vectors: [N, D], with N of at least 2. N may be smaller than D.
        reference: [M, D], with M of at least 2.

    Raises:
        InputError: a set is too small or not finite, or the widths differ.
    """
    vectors, reference = _check(vectors, reference, least=2)
    return _frechet(_moments(vectors), _moments(reference))


def frechet_distance_infinity(vectors: np.ndarray, reference: np.ndarray, points: int = 15, seed: int = 0) -> float:
    """Extrapolates the Frechet distance to infinitely many vectors (FAD-infinity).

    The bias of the distance falls as 1 / N. A line is fitted to the distances of random subsets of `vectors` and read
    off at 1 / N = 0. The bias that comes from the size of the reference stays. The result may be below 0 by chance.

    Args:
        vectors: [N, D], with N of at least ADVISED x D; with fewer the bias is not linear yet.
        reference: [M, D], all of which is used each time.
        points: the number of subsets, of N / 5 to N vectors.
        seed: the seed of the subsets.

    Raises:
        InputError: a set is too small or not finite, or the widths differ.
    """
    vectors, reference = _check(vectors, reference, least=2)
    count, width = vectors.shape
    if count < ADVISED * width:
        raise InputError(f"expected {ADVISED * width} vectors or more to judge, {ADVISED} per dimension, got {count}")
    generator = np.random.default_rng(seed)
    reference_moments = _moments(reference)
    sizes = np.linspace(count / 5, count, points).astype(np.int64)
    distances = []
    for size in sizes:
        subset = vectors[generator.choice(count, size, replace=False)]
        distances.append(_frechet(_moments(subset), reference_moments))
    return float(np.polyfit(1 / sizes, distances, 1)[1])


def sample_size_remark(count: int, reference_count: int, width: int) -> str | None:
    """Returns a warning to print with a Frechet distance, or None if both sets are large enough.

    Fewer vectors than dimensions give a singular covariance. Up to several times as many still give a distance that is
    too large, by an amount that depends on their number.

    Args:
        count: the number of vectors judged.
        reference_count: the number of vectors in the reference.
        width: the number of values per vector.
    """
    fewest = min(count, reference_count)
    advised = ADVISED * width
    if fewest >= advised:
        return None
    fault = "has a singular covariance" if fewest <= width else "is small"
    return (
        f"The Frechet distance is too large here: a set of {fewest} vectors of {width} values {fault}. Compare "
        f"{advised} vectors or more per set, or report the kernel distance, which is unbiased at any number."
    )


def kernel_distance(vectors: np.ndarray, reference: np.ndarray, kernel: str = "gaussian") -> Estimate:
    """Computes the unbiased squared maximum mean discrepancy of two sets. For similar sets it may be below 0 by chance.

    Time grows with (N + M)^2, memory with N + M.

    Args:
        vectors: [N, D], with N of at least 2.
        reference: [M, D], with M of at least 2.
        kernel: "gaussian" gives the Kernel Audio Distance: exp(-|x - y|^2 / (2 s^2)), where s is the median distance
            between vectors of the reference, times KAD_SCALE. "polynomial" gives the Kernel Inception Distance:
            (x . y / D + 1)^3, of all vectors instead of random subsets, not scaled.

    Raises:
        InputError: a set is too small or not finite, the widths differ, or s is 0.
        ValueError: there is no such kernel.
    """
    if kernel not in ("gaussian", "polynomial"):
        raise ValueError(f"expected the kernel gaussian or polynomial, got {kernel!r}")
    vectors, reference = _check(vectors, reference, least=2)
    vectors, reference = vectors.astype(np.float64), reference.astype(np.float64)
    if kernel == "polynomial":
        return _discrepancy(vectors, reference, lambda x, y: (x @ y.T / x.shape[1] + 1) ** 3, 1.0)
    center = reference.mean(axis=0)  # keeps distances, and loses fewer digits
    vectors, reference = vectors - center, reference - center
    exponent = -1 / (2 * _median_distance(reference) ** 2)
    return _discrepancy(vectors, reference, lambda x, y: np.exp(exponent * _squared_distances(x, y)), KAD_SCALE)


def centroid_similarity(vectors: np.ndarray, reference: np.ndarray) -> Estimate:
    """Computes the cosine between the mean vectors of two sets. The vectors are not normalized.

    Args:
        vectors: [N, D], with N of at least 1. A set of one vector adds nothing to the width of the interval.
        reference: [M, D], with M of at least 1.

    Raises:
        InputError: a set is empty or not finite, the widths differ, or a mean is zero.
    """
    vectors, reference = _check(vectors, reference, least=1)
    own, own_length = unit_mean(vectors)
    other, other_length = unit_mean(reference)
    cosine = float(own @ other)
    value, low, high = _estimate(
        cosine,
        vectors @ (other - cosine * own) / own_length,
        reference @ (own - cosine * other) / other_length,
    )
    return Estimate(value, max(low, -1.0), min(high, 1.0))


def _check(vectors: np.ndarray, reference: np.ndarray, least: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns both sets as arrays. Raises InputError if they cannot be compared."""
    vectors, reference = np.asarray(vectors), np.asarray(reference)
    shapes = f"{list(vectors.shape)} and {list(reference.shape)}"
    if vectors.ndim != 2 or reference.ndim != 2 or vectors.shape[1] != reference.shape[1] or not vectors.shape[1]:
        raise InputError(f"expected two sets of vectors of one width, [N, D] and [M, D], got {shapes}")
    if min(len(vectors), len(reference)) < least:
        raise InputError(f"expected {least} or more vectors in each set, got sets of shapes {shapes}")
    if not (np.isfinite(vectors).all() and np.isfinite(reference).all()):
        raise InputError("expected finite values in both sets, got NaN or infinity")
    return vectors, reference


def _moments(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean [D] of vectors [N, D], and a factor F [up to D, D] of their covariance F.T @ F."""
    count, width = vectors.shape
    mean = vectors.mean(axis=0, dtype=np.float64)
    factor = np.empty((0, width))
    step = max(width, DISTANCE_BLOCK_VALUES // width)
    for start in range(0, count, step):
        factor = np.linalg.qr(np.vstack([factor, vectors[start : start + step] - mean]), mode="r")
    return mean, factor / math.sqrt(count - 1)


def _frechet(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> float:
    (mean_a, factor_a), (mean_b, factor_b) = a, b
    # The eigenvalues of A.T A B.T B are the squared singular values of A B.T, so the trace of its square root is their
    # sum. It is real at any rank, and keeps the digits that squaring the vectors would lose.
    root = np.linalg.norm(factor_a @ factor_b.T, "nuc")
    spread = np.square(factor_a).sum() + np.square(factor_b).sum() - 2 * root
    return max(0.0, float(np.square(mean_a - mean_b).sum() + spread))


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns the squared distances [N, M] between vectors [N, D] and [M, D]."""
    squares = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1)
    return np.maximum(squares - 2 * (a @ b.T), 0)


def _median_distance(vectors: np.ndarray) -> float:
    """Returns the median distance between two of the vectors [N, D], or of a fixed random subset if there are many."""
    if len(vectors) > MEDIAN_VECTORS:
        vectors = vectors[np.random.default_rng(0).choice(len(vectors), MEDIAN_VECTORS, replace=False)]
    pairs = np.triu(np.ones((len(vectors), len(vectors)), bool), 1)
    median = float(np.median(np.sqrt(_squared_distances(vectors, vectors)[pairs])))
    # rounding gives equal vectors a distance that is not exactly 0
    if median <= 1e-7 * math.sqrt(np.square(vectors).sum(axis=1).max()):
        raise InputError("expected a reference of different vectors, but half of its pairs or more are equal")
    return median


def _discrepancy(
    vectors: np.ndarray, reference: np.ndarray, kernel: Callable[[np.ndarray, np.ndarray], np.ndarray], scale: float
) -> Estimate:
    """Computes `kernel_distance` for a kernel that maps [N, D] and [M, D] to [N, M]."""
    count, reference_count = len(vectors), len(reference)
    everything = np.concatenate([vectors, reference])
    # the sum of each vector's kernel with all other vectors of the first set, and of the second
    sums = np.empty((len(everything), 2))
    step = max(1, DISTANCE_BLOCK_VALUES // len(everything))
    for start in range(0, len(everything), step):
        values = kernel(everything[start : start + step], everything)
        np.fill_diagonal(values[:, start:], 0)
        sums[start : start + step] = np.add.reduceat(values, [0, count], axis=1)
    # how much more similar each vector is to its own set than to the other
    excess = scale * (sums[:count, 0] / (count - 1) - sums[:count, 1] / reference_count)
    reference_excess = scale * (sums[count:, 1] / (reference_count - 1) - sums[count:, 0] / count)
    return _estimate(float(excess.mean() + reference_excess.mean()), 2 * excess, 2 * reference_excess)


def _estimate(value: float, *influences: np.ndarray) -> Estimate:
    """Adds the interval to a value. The influences, [N] per set, are N times what each vector adds to the value."""
    half = Z * math.sqrt(sum(influence.var() / max(1, len(influence) - 1) for influence in influences))
    return Estimate(value, value - half, value + half)

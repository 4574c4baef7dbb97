"""How far apart two sets of vectors are, as sets: arrays in, numbers out.

Conventions, for every function here: a set is [N, D], a vector a row, in any order; the first set is judged
against the second, the reference. Nothing is scaled here: the distances are of vectors as they come, which is
how papers give them, and two numbers compare only where the vectors of both were scaled alike and one model
made them all. Intervals are of 95 %, by the spread of what each vector adds to the number (the delta method),
and take the vectors for independent of each other.
"""

import math
from collections.abc import Callable

import numpy as np

from clamplib.evaluation.metrics import Estimate
from clamplib.files import InputError
from clamplib.retrieval.similarity import unit_mean

KAD_SCALE = 100.0
MEDIAN_VECTORS = 4096  # at most, for the median of their distances: 128 MiB of float64
ADVISED = 10  # vectors for each of their values, for a Frechet distance
BLOCK_VALUES = 1 << 22  # values worked on at a time: 32 MiB of float64
Z = 1.96


def frechet_distance(vectors: np.ndarray, reference: np.ndarray) -> float:
    """The squared Frechet distance of two normal distributions with the means and covariances of the sets.

    vectors: [N, D], reference: [M, D], two vectors or more each, also fewer than D; `sample_size_remark` says when
    they are too few for a number to report. The same whichever set comes first, and never below 0.
    InputError where a set is too small or not finite, or the widths differ.
    """
    vectors, reference = _check(vectors, reference, least=2)
    return _frechet(_moments(vectors), _moments(reference))


def frechet_distance_infinity(vectors: np.ndarray, reference: np.ndarray, points: int = 15, seed: int = 0) -> float:
    """The Frechet distance that endless vectors would have: its bias falls as 1 / N, and 1 / N goes to 0.

    A line is fitted to the distances of `points` random parts of `vectors` [N, D], of N / 5 to N vectors, each
    against the whole reference [M, D], whose own bias stays. Chance may bring it below 0.
    InputError as for `frechet_distance`, and for fewer than ADVISED x D vectors, whose bias is no line yet.
    """
    vectors, reference = _check(vectors, reference, least=2)
    count, width = vectors.shape
    if count < ADVISED * width:
        raise InputError(f"expected {ADVISED * width} vectors or more to judge, {ADVISED} a value, got {count}")
    generator, whole = np.random.default_rng(seed), _moments(reference)
    sizes = np.linspace(count / 5, count, points).astype(np.int64)
    parts = (vectors[generator.choice(count, size, replace=False)] for size in sizes)
    distances = [_frechet(_moments(part), whole) for part in parts]
    return float(np.polyfit(1 / sizes, distances, 1)[1])


def sample_size_remark(count: int, reference_count: int, width: int) -> str | None:
    """What to say with a Frechet distance of `count` and `reference_count` vectors of `width` values; None if enough.

    Fewer vectors than values leave a covariance without full rank, and up to several times as many a distance
    that is too large by an amount that depends on the count.
    """
    fewest, advised = min(count, reference_count), ADVISED * width
    if fewest >= advised:
        return None
    fault = "has a singular covariance" if fewest <= width else "is small"
    return (
        f"The Frechet distance is too large here: a set of {fewest} vectors of {width} values {fault}. Compare "
        f"{advised} vectors or more a set, or report the kernel distance, which is unbiased at any number."
    )


def kernel_distance(vectors: np.ndarray, reference: np.ndarray, kernel: str = "gaussian") -> Estimate:
    """The unbiased squared maximum mean discrepancy of two sets; below 0 by chance where they are alike.

    vectors: [N, D], reference: [M, D], two vectors or more each.
    "gaussian" is the Kernel Audio Distance: exp(-|x - y|^2 / (2 s^2)), s the median distance between vectors of
    the reference, times KAD_SCALE. "polynomial" is the Kernel Inception Distance: (x . y / D + 1)^3, not scaled,
    of all vectors and not of random parts. Time grows with (N + M)^2, memory with N + M.
    InputError where a set is too small or not finite, the widths differ, or s is 0.
    """
    if kernel not in ("gaussian", "polynomial"):
        raise ValueError(f"expected the kernel gaussian or polynomial, got {kernel!r}")
    vectors, reference = _check(vectors, reference, least=2)
    vectors, reference = vectors.astype(np.float64), reference.astype(np.float64)
    if kernel == "polynomial":
        return _discrepancy(vectors, reference, lambda x, y: (x @ y.T / x.shape[1] + 1) ** 3, 1.0)
    center = reference.mean(axis=0)  # distances stay, and lose fewer digits
    vectors, reference = vectors - center, reference - center
    exponent = -1 / (2 * _median_distance(reference) ** 2)
    return _discrepancy(vectors, reference, lambda x, y: np.exp(exponent * _squared_distances(x, y)), KAD_SCALE)


def centroid_similarity(vectors: np.ndarray, reference: np.ndarray) -> Estimate:
    """The cosine of the mean vectors of two sets, each vector with its own length.

    vectors: [N, D], reference: [M, D]. A set of one vector counts as known exactly.
    InputError where a set is empty or not finite, the widths differ, or a mean is zero.
    """
    vectors, reference = _check(vectors, reference, least=1)
    (own, own_length), (other, other_length) = unit_mean(vectors), unit_mean(reference)
    cosine = float(own @ other)
    value, low, high = _estimate(
        cosine,
        vectors @ (other - cosine * own) / own_length,
        reference @ (own - cosine * other) / other_length,
    )
    return Estimate(value, max(low, -1.0), min(high, 1.0))


def _check(vectors: np.ndarray, reference: np.ndarray, least: int) -> tuple[np.ndarray, np.ndarray]:
    """Both as arrays. InputError where they are not two sets that compare."""
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
    """The mean [D] of vectors [N, D], and a factor F [up to D, D] of their covariance F.T @ F."""
    count, width = vectors.shape
    mean = vectors.mean(axis=0, dtype=np.float64)
    factor = np.empty((0, width))
    step = max(width, BLOCK_VALUES // width)
    for start in range(0, count, step):
        factor = np.linalg.qr(np.vstack([factor, vectors[start : start + step] - mean]), mode="r")
    return mean, factor / math.sqrt(count - 1)


def _frechet(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> float:
    (mean_a, factor_a), (mean_b, factor_b) = a, b
    # The eigenvalues of A.T A B.T B are the squared singular values of A B.T, so that the trace of its root is
    # their sum: real for every rank, and without the digits that squaring the vectors would lose.
    root = np.linalg.norm(factor_a @ factor_b.T, "nuc")
    spread = np.square(factor_a).sum() + np.square(factor_b).sum() - 2 * root
    return max(0.0, float(np.square(mean_a - mean_b).sum() + spread))


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[N, D], [M, D] -> [N, M]."""
    squares = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1)
    return np.maximum(squares - 2 * (a @ b.T), 0)


def _median_distance(vectors: np.ndarray) -> float:
    """The median distance between two of the vectors [N, D]; of many, between two of a fixed random part."""
    if len(vectors) > MEDIAN_VECTORS:
        vectors = vectors[np.random.default_rng(0).choice(len(vectors), MEDIAN_VECTORS, replace=False)]
    pairs = np.triu(np.ones((len(vectors), len(vectors)), bool), 1)
    median = float(np.median(np.sqrt(_squared_distances(vectors, vectors)[pairs])))
    # equal vectors get a distance of rounding, not of 0
    if median <= 1e-7 * math.sqrt(np.square(vectors).sum(axis=1).max()):
        raise InputError("expected a reference of different vectors, but half of its pairs or more are equal")
    return median


def _discrepancy(
    vectors: np.ndarray, reference: np.ndarray, kernel: Callable[[np.ndarray, np.ndarray], np.ndarray], scale: float
) -> Estimate:
    """`kernel_distance` for a kernel [N, D], [M, D] -> [N, M]."""
    count, reference_count = len(vectors), len(reference)
    everything = np.concatenate([vectors, reference])
    sums = np.empty((len(everything), 2))  # of each vector's kernel with all others of the first set, of the second
    step = max(1, BLOCK_VALUES // len(everything))
    for start in range(0, len(everything), step):
        values = kernel(everything[start : start + step], everything)
        np.fill_diagonal(values[:, start:], 0)
        sums[start : start + step] = np.add.reduceat(values, [0, count], axis=1)
    # how much more alike each vector is to its own set than to the other
    excess = scale * (sums[:count, 0] / (count - 1) - sums[:count, 1] / reference_count)
    reference_excess = scale * (sums[count:, 1] / (reference_count - 1) - sums[count:, 0] / count)
    return _estimate(float(excess.mean() + reference_excess.mean()), 2 * excess, 2 * reference_excess)


def _estimate(value: float, *influences: np.ndarray) -> Estimate:
    """A value with its interval; influences: [N] of each set, what each vector adds to it, times N."""
    half = Z * math.sqrt(sum(influence.var() / max(1, len(influence) - 1) for influence in influences))
    return Estimate(value, value - half, value + half)

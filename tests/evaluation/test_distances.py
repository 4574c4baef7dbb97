import math
from itertools import combinations, product

import numpy as np
import pytest

from clamplib.evaluation import distances
from clamplib.evaluation.distances import (
    centroid_similarity,
    frechet_distance,
    frechet_distance_infinity,
    kernel_distance,
    sample_size_remark,
)
from clamplib.files import InputError


def some_sets(count=40, reference_count=30, width=6):
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(reference_count, width)) @ rng.normal(size=(width, width))
    return rng.normal(size=(count, width)) + 0.5, mixed


def naive_kernel_distance(vectors, reference, kernel):
    def mean(a, b, same):
        values = []
        for i, x in enumerate(a):
            values += [kernel(x, y) for j, y in enumerate(b) if not (same and i == j)]
        return np.mean(values)

    within = mean(vectors, vectors, True) + mean(reference, reference, True)
    return within - 2 * mean(vectors, reference, False)


def gaussian(reference):
    """The kernel, computed by its definition."""
    pairs = [np.linalg.norm(x - y) for x, y in combinations(reference, 2)]
    return lambda x, y: math.exp(-np.square(x - y).sum() / (2 * np.median(pairs) ** 2))


def polynomial(x, y):
    return (x @ y / len(x) + 1) ** 3


def test_frechet_by_hand():
    # in one dimension (difference of the means)^2 + (difference of the standard deviations)^2
    assert frechet_distance([[0], [2]], [[3], [9]]) == pytest.approx((6 - 1) ** 2 + (18**0.5 - 2**0.5) ** 2)
    # in two, on different axes, the covariances have no direction in common: their traces add up
    assert frechet_distance([[-1, 0], [1, 0]], [[0, -1], [0, 1]]) == pytest.approx(2 + 2)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_frechet_equals_the_root_of_scipy(dtype):
    linalg = pytest.importorskip("scipy.linalg")
    a, b = (vectors.astype(dtype) for vectors in some_sets())
    covariances = [np.cov(vectors.astype(np.float64), rowvar=False) for vectors in (a, b)]
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(sum(covariances)) - 2 * np.trace(root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-5 if dtype == np.float32 else 1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a))


@pytest.mark.parametrize("count", [2, 5, 60])  # fewer vectors than values, and more
def test_frechet_of_a_shifted_set_is_the_squared_shift(count):
    vectors = np.random.default_rng(0).normal(size=(count, 16))
    shift = np.linspace(-1, 2, 16)
    assert frechet_distance(vectors, vectors + shift) == pytest.approx(shift @ shift)
    assert 0 <= frechet_distance(vectors, vectors[::-1]) < 1e-12


def test_frechet_is_the_same_in_any_blocks(monkeypatch):
    expected = frechet_distance(*some_sets())
    monkeypatch.setattr(distances, "DISTANCE_BLOCK_VALUES", 7 * 6)  # seven vectors at a time
    assert frechet_distance(*some_sets()) == pytest.approx(expected, rel=1e-12)


def test_frechet_infinity_removes_most_of_the_bias():
    rng = np.random.default_rng(0)
    reference, truth = rng.normal(size=(10_000, 8)), 8 * 0.3**2
    sets = [1.3 * rng.normal(size=(100, 8)) for _ in range(20)]
    bias = np.mean([frechet_distance(vectors, reference) for vectors in sets]) - truth
    left = np.mean([frechet_distance_infinity(vectors, reference, points=5) for vectors in sets]) - truth
    assert bias > 0.2 and abs(left) < bias / 2
    assert frechet_distance_infinity(sets[0], reference) == frechet_distance_infinity(sets[0], reference)
    with pytest.raises(InputError, match="expected 80 vectors or more to judge, 10 per dimension, got 79"):
        frechet_distance_infinity(sets[0][:79], reference)


def test_remark_on_small_sets():
    assert sample_size_remark(7680, 10_000, 768) is None
    assert "a set of 768 vectors of 768 values has a singular covariance" in sample_size_remark(768, 10_000, 768)
    remark = sample_size_remark(10_000, 769, 768)
    assert "is small" in remark and "Compare 7680 vectors or more per set, or report the kernel distance" in remark


def test_kernel_distances_by_hand():
    # the only distance in the reference is 2, so that the kernel is exp(-d^2 / 8)
    within, across = math.exp(-36 / 8) + math.exp(-4 / 8), (1 + math.exp(-4 / 8) + 2 * math.exp(-36 / 8)) / 4
    across += (math.exp(-64 / 8) - math.exp(-36 / 8)) / 4
    assert kernel_distance([[0], [6]], [[0], [-2]]).value == pytest.approx(100 * (within - 2 * across))
    # (x y + 1)^3: within 1 + 27, across 1, 1, 8, 27
    assert kernel_distance([[0], [1]], [[1], [2]], "polynomial").value == pytest.approx(1 + 27 - 2 * 37 / 4)


@pytest.mark.parametrize("block_values", [1 << 22, 70 * 9, 1])  # all vectors at a time, nine, one
def test_kernel_distance_equals_the_double_loop(monkeypatch, block_values):
    monkeypatch.setattr(distances, "DISTANCE_BLOCK_VALUES", block_values)
    vectors, reference = some_sets()
    expected = 100 * naive_kernel_distance(vectors, reference, gaussian(reference))
    assert kernel_distance(vectors, reference).value == pytest.approx(expected, rel=1e-9)
    expected = naive_kernel_distance(vectors, reference, polynomial)
    assert kernel_distance(vectors, reference, "polynomial").value == pytest.approx(expected, rel=1e-9)


def test_kernel_distance_of_a_set_to_itself():
    vectors, _ = some_sets()
    kernel = gaussian(vectors)
    matrix = np.array([kernel(x, y) for x, y in product(vectors, vectors)]).reshape(len(vectors), -1)
    # below 0: each vector has an equal one in the other set, and none in its own
    others = (matrix.sum() - len(vectors)) / (len(vectors) * (len(vectors) - 1))
    assert kernel_distance(vectors, vectors).value == pytest.approx(100 * 2 * (others - matrix.mean()))


def test_gaussian_kernel_is_invariant_to_shift_and_scale():
    vectors, reference = some_sets()
    moved = kernel_distance(1e3 * vectors + 1e6, 1e3 * reference + 1e6)
    assert moved == pytest.approx(kernel_distance(vectors, reference), rel=1e-6)


def test_median_distance_of_a_part_is_near_that_of_all(monkeypatch):
    vectors, reference = some_sets(reference_count=400)
    expected = kernel_distance(vectors, reference).value
    monkeypatch.setattr(distances, "MEDIAN_VECTORS", 200)
    found = kernel_distance(vectors, reference).value
    assert found != expected and found == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("kernel", ["gaussian", "polynomial"])
@pytest.mark.parametrize("shift", [0, 0.5])
def test_kernel_interval_covers_the_truth_as_often_as_it_says(kernel, shift):
    rng = np.random.default_rng(0)
    sets = [(rng.normal(size=(100, 3)) + shift, rng.normal(size=(150, 3))) for _ in range(300)]
    values, lows, highs = np.array([kernel_distance(*pair, kernel) for pair in sets]).T
    truth = values.mean() if shift else 0  # no bias: the mean of many is the truth
    assert 0.9 < np.mean((lows <= truth) & (truth <= highs)) < 0.995
    assert abs(values.mean() - truth) < 3 * values.std() / 300**0.5


def test_centroid_similarity_by_hand():
    value, low, high = centroid_similarity([[3, 0], [0, 1]], [[1, 0]])
    assert value == pytest.approx(3 / 10**0.5)
    assert low < value < high <= 1
    assert centroid_similarity([[3, 0]], [[1, 1]]) == pytest.approx([0.5**0.5] * 3)  # one vector per set has no spread
    assert centroid_similarity([[1, 2], [2, 1]], [[1, 2], [2, 1]]) == pytest.approx([1, 1, 1])


def test_centroid_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    sets = [(rng.normal(size=(60, 4)) + [2, 0, 0, 0], rng.normal(size=(40, 4)) + [2, 2, 0, 0]) for _ in range(400)]
    covered = [low <= 0.5**0.5 <= high for _, low, high in (centroid_similarity(*pair) for pair in sets)]
    assert 0.91 < np.mean(covered) < 0.98


@pytest.mark.parametrize(
    "distance", [frechet_distance, frechet_distance_infinity, kernel_distance, centroid_similarity]
)
@pytest.mark.parametrize(
    "vectors, message",
    [
        (np.zeros((5, 3)), r"one width.*got \[5, 3\] and \[4, 2\]"),
        (np.zeros(5), r"one width.*got \[5\] and \[4, 2\]"),
        (np.zeros((0, 2)), r"or more vectors in each set, got sets of shapes \[0, 2\] and \[4, 2\]"),
        (np.array([[1, 2], [np.nan, 1]]), "expected finite values"),
        (np.array([[1, 2], [np.inf, 1]]), "expected finite values"),
    ],
)
def test_sets_that_cannot_be_compared_are_refused(distance, vectors, message):
    reference = np.arange(8.0).reshape(4, 2)
    with pytest.raises(InputError, match=message):
        distance(vectors, reference)


def test_one_vector_has_no_spread():
    for distance in (frechet_distance, kernel_distance):
        with pytest.raises(InputError, match=r"expected 2 or more vectors in each set.*\[1, 2\]"):
            distance([[1, 2], [2, 1]], [[1, 2]])


def test_no_direction_no_bandwidth_no_such_kernel():
    with pytest.raises(InputError, match="add up to zero"):
        centroid_similarity([[1, 0], [-1, 0]], [[1, 0]])
    equal = np.tile(np.random.default_rng(0).normal(size=100), (5, 1))
    with pytest.raises(InputError, match="half of its pairs or more are equal"):
        kernel_distance(np.eye(5, 100), equal)
    with pytest.raises(ValueError, match="gaussian or polynomial, got 'linear'"):
        kernel_distance(np.eye(2), np.eye(2), "linear")

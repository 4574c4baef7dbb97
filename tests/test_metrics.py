import numpy as np
import pytest

from clamplib.metrics import ranks, retrieval_metrics


def test_ranks_by_hand():
    similarity = [
        [0.9, 0.1, 0.5],  # the right one is 0: first
        [0.9, 0.1, 0.5],  # 1: last
        [0.9, 0.1, 0.5],  # 2: second
        [0.3, 0.3, 0.3],  # a tie of all counts for the right one
        [0.2, 0.7, 0.7],  # a tie for the first place too
    ]
    assert ranks(np.array(similarity), np.array([0, 1, 2, 1, 2])).tolist() == [1, 3, 2, 1, 1]


def test_metrics_by_hand():
    metrics = retrieval_metrics(np.array([1, 2, 4, 100]))
    assert metrics == {"mrr": pytest.approx(1.76 / 4), "hit@1": 0.25, "hit@10": 0.75, "hit@100": 1.0}
    assert retrieval_metrics([3], at=[5]) == {"mrr": pytest.approx(1 / 3), "hit@5": 1.0}


def test_rounding_does_not_break_a_tie():
    similarity = np.array([[0.5, np.nextafter(np.float32(0.5), np.float32(1))]], np.float32)
    assert ranks(similarity, np.array([0])).tolist() == [1]


def test_bad_shapes_and_no_ranks():
    with pytest.raises(ValueError, match=r"got \(2, 3\) and \(3,\)"):
        ranks(np.zeros((2, 3)), np.zeros(3, int))
    with pytest.raises(ValueError, match="at least one query"):
        retrieval_metrics([])

import numpy as np
import pytest

from clamplib.metrics import classification_metrics, confusion_matrix, ranks, retrieval_metrics, wilson_interval


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


def test_classification_by_hand():
    confusion = confusion_matrix([0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 1, 0], classes=4)
    assert confusion.tolist() == [[2, 1, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    f1 = [2 * 2 / (3 + 3), 2 * 2 / (2 + 3), 0]  # nothing speaks of the fourth class
    assert classification_metrics(confusion) == {"accuracy": 4 / 6, "f1_macro": pytest.approx(sum(f1) / 3)}


def test_classification_equals_scikit_learn():
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    truth, predicted = np.random.default_rng(0).integers(0, 5, (2, 40))
    confusion = confusion_matrix(truth, predicted, 5)
    assert (confusion == sklearn_metrics.confusion_matrix(truth, predicted)).all()
    assert classification_metrics(confusion) == {
        "accuracy": pytest.approx(sklearn_metrics.accuracy_score(truth, predicted)),
        "f1_macro": pytest.approx(sklearn_metrics.f1_score(truth, predicted, average="macro")),
    }


def test_no_items_and_items_of_two_lengths():
    with pytest.raises(ValueError, match="at least one item"):
        classification_metrics(np.zeros((2, 2), int))
    with pytest.raises(ValueError, match="one length"):
        confusion_matrix([0, 1], [0], 2)


def test_wilson_interval():
    # a share of 1 has an interval too
    assert wilson_interval(0.9, 20) == pytest.approx((0.6990, 0.9721), abs=1e-3)
    low, high = wilson_interval(1.0, 20)
    assert 0.8 < low < 0.9 and high == pytest.approx(1)

import numpy as np
import pytest

from clamplib.evaluation import metrics as metrics_module
from clamplib.evaluation.metrics import (
    bootstrap,
    classification_metrics,
    confusion_matrix,
    rank_values,
    ranks,
    relevance_values,
    retrieval_metrics,
    summarize,
    wilson_interval,
)


def test_ranks_by_hand():
    similarity = [
        [0.9, 0.1, 0.5],  # the correct one is 0: first
        [0.9, 0.1, 0.5],  # 1: last
        [0.9, 0.1, 0.5],  # 2: second
        [0.3, 0.3, 0.3],  # a tie of all is resolved in favor of the correct one
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
    with pytest.raises(ValueError, match="got NaN"):  # which would rank first everywhere
        ranks(np.full((1, 2), np.nan), [0])
    with pytest.raises(ValueError, match="at least one query"):
        retrieval_metrics([])


def some_queries(queries=30, references=20, grades=2):
    """Similarities without ties and gains, every query with a correct reference."""
    rng = np.random.default_rng(0)
    gains = rng.integers(0, grades, (queries, references))
    gains[np.arange(queries), rng.integers(0, references, queries)] = 1
    return rng.permuted(np.tile(np.linspace(-1, 1, references), (queries, 1)), axis=1), gains


def listed(values):
    return {name: scores.tolist() for name, scores in values.items()}


def test_values_of_one_correct_reference_by_hand():
    assert listed(rank_values([1, 3], at=[1, 3])) == {
        "rank": [1, 3],
        "rr": [1, 1 / 3],
        "hit@1": [1, 0],
        "hit@3": [1, 1],
        "ndcg@1": [1, 0],
        "ndcg@3": [1, 0.5],  # 1 / log2(4)
    }


def test_values_of_several_correct_references_by_hand():
    # in order of similarity: wrong, grade 1, wrong, grade 3
    values = relevance_values([(np.array([[0.1, 0.9, 0.5, 0.7]]), np.array([[3, 0, 0, 1]]))], at=[1, 2, 4])
    best = 3 + 1 / np.log2(3)
    assert {name: scores.item() for name, scores in values.items()} == {
        "rank": 2,
        "rr": 0.5,
        "hit@1": 0,
        "hit@2": 1,
        "hit@4": 1,
        "ndcg@1": 0,
        "ndcg@2": pytest.approx(1 / np.log2(3) / best),
        "ndcg@4": pytest.approx((1 / np.log2(3) + 3 / np.log2(5)) / best),
        "ap": pytest.approx((1 / 2 + 2 / 4) / 2),
        "ap@1": 0,
        "ap@2": pytest.approx(1 / 2 / 2),
        "ap@4": pytest.approx((1 / 2 + 2 / 4) / 2),
    }


def test_ties_favor_correct_references_and_then_the_greater_gain():
    just_above = 0.5 + metrics_module.TIE_TOLERANCE / 2
    similarity = np.array([[just_above, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 0.6]])
    values = relevance_values([(similarity, np.array([[0, 1, 2, 0], [0, 1, 0, 0]]))], at=[4])
    assert listed(values) == {"rank": [1, 2], "rr": [1, 0.5], "hit@4": [1, 1], "ndcg@4": [1, 1 / np.log2(3)]} | {
        "ap": [1, 0.5],
        "ap@4": [1, 0.5],
    }


def test_one_correct_reference_gives_the_same_either_way():
    similarity = np.random.default_rng(1).integers(0, 6, (50, 12)).astype(np.float32) / 6  # many ties
    target = np.arange(50) % 12
    values = listed(relevance_values([(similarity, np.eye(12, dtype=bool)[target])]))
    assert values["ap"] == values["rr"]
    assert {name: scores for name, scores in values.items() if not name.startswith("ap")} == {
        name: pytest.approx(scores) for name, scores in rank_values(ranks(similarity, target)).items()
    }


def test_blocks_give_what_the_whole_matrix_gives():
    similarity, gains = some_queries(grades=4)
    blocks = ((similarity[i : i + 7], gains[i : i + 7]) for i in range(0, 30, 7))
    assert listed(relevance_values(blocks)) == listed(relevance_values([(similarity, gains)]))


def test_retrieval_equals_scikit_learn():
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    similarity, gains = some_queries()
    values = relevance_values([(similarity, gains)])
    precisions = [sklearn_metrics.average_precision_score(g, s) for g, s in zip(gains, similarity, strict=True)]
    assert values["ap"] == pytest.approx(precisions)
    ranking = sklearn_metrics.label_ranking_average_precision_score(gains, similarity)
    assert summarize(values, resamples=1)["map"].value == pytest.approx(ranking)
    similarity, gains = some_queries(grades=4)
    for k in (1, 5, 20):
        for given in (gains, 2.0**gains - 1):
            gained = relevance_values([(similarity, given)], at=[k])[f"ndcg@{k}"].mean()
            assert gained == pytest.approx(sklearn_metrics.ndcg_score(given, similarity, k=k, ignore_ties=True))


@pytest.mark.parametrize(
    "similarity, gains, message",
    [
        ([[0.5, 0.1]], [[True]], r"got \(1, 2\) and \(1, 1\)"),
        ([[np.nan, 0.1]], [[1, 0]], "expected similarities, got NaN"),
        ([[0.5, 0.1]], [[1, -1]], "negative one or NaN"),
        ([[0.5, 0.1]], [[1, np.nan]], "negative one or NaN"),
        ([[0.5, 0.1], [0.5, 0.1]], [[1, 0], [0, 0]], "query 2 has no correct reference"),  # after query 0
    ],
)
def test_bad_blocks_are_refused(similarity, gains, message):
    with pytest.raises(ValueError, match=message):
        relevance_values([(np.ones((1, 1)), np.ones((1, 1))), (similarity, gains)])


def test_no_queries_are_refused():
    with pytest.raises(ValueError, match="at least one query"):
        relevance_values([])
    for bad in ([], [0, 1], [1, np.nan]):
        with pytest.raises(ValueError, match="ranks .* from 1 on"):
            rank_values(bad)
    for bad in ([], [0.5, np.nan]):
        with pytest.raises(ValueError, match="without NaN, at least one"):
            bootstrap(bad)


def test_summary_names_means_and_the_median_rank():
    similarity, gains = some_queries()
    values = relevance_values([(similarity, gains)], at=[10])
    summary = summarize(values)
    assert list(summary) == ["median_rank", "mrr", "hit@10", "ndcg@10", "map", "map@10"]
    assert summary["median_rank"].value == np.median(values["rank"])
    assert summary["map@10"].value == pytest.approx(values["ap@10"].mean())
    assert all(low <= value <= high for value, low, high in summary.values())
    found = np.array([1, 2, 4, 100])
    means = {name: estimate.value for name, estimate in summarize(rank_values(found)).items()}
    assert retrieval_metrics(found).items() <= means.items()


def test_bootstrap_covers_the_truth_as_often_as_it_says():
    samples = np.random.default_rng(0).geometric(0.3, (400, 60))  # of ranks, with a mean 1 / rank known in closed form
    truth = 0.3 / 0.7 * -np.log(0.3)
    intervals = [bootstrap(1 / sample, resamples=200) for sample in samples]
    assert 0.91 < np.mean([low <= truth <= high for _, low, high in intervals]) < 0.98
    narrower = [bootstrap(1 / sample, resamples=200, confidence=0.5) for sample in samples]
    assert 0.42 < np.mean([low <= truth <= high for _, low, high in narrower]) < 0.58


def test_bootstrap_depends_on_the_seed_alone(monkeypatch):
    values = np.random.default_rng(0).random(50)
    estimate = bootstrap(values)
    assert bootstrap(values, seed=1) != estimate
    monkeypatch.setattr(metrics_module, "BOOTSTRAP_BLOCK_VALUES", 150)  # three resamples at a time
    assert bootstrap(values) == estimate


def test_one_query_is_its_own_interval():
    assert {tuple(estimate) for estimate in summarize(rank_values([2], at=[1])).values()} == {
        (2, 2, 2),
        (0.5, 0.5, 0.5),
        (0, 0, 0),
    }


def test_classification_by_hand():
    confusion = confusion_matrix([0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 1, 0], classes=4)
    assert confusion.tolist() == [[2, 1, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    f1 = [2 * 2 / (3 + 3), 2 * 2 / (2 + 3), 0]  # the fourth class does not occur
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

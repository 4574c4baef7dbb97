"""The linear probe: parity with logistic regression, what it keeps, its file, and what it refuses."""

import math
from itertools import islice, product

import numpy as np
import pytest
import torch

from clamplib.embedding.encoding import encode_scores
from clamplib.evaluation.classification import LabeledVectors, label_features, number_labels, split
from clamplib.evaluation.labels import FROM_NAMES
from clamplib.evaluation.metrics import classification_metrics
from clamplib.evaluation.probe import (
    EpochItems,
    Probe,
    ProbeSettings,
    classify_folder,
    discriminant,
    load_probe,
    standardization,
    train_probe,
)
from clamplib.files import InputError
from clamplib.models.checkpoints import save_checkpoint
from clamplib.models.variants import load_clamp3
from clamplib.retrieval.similarity import load_features
from recipes.mini.convert import without_labels
from recipes.mini.corpus import corpus_pieces

CPU = torch.device("cpu")
QUICK = ProbeSettings(epochs=30)
KINDS = ("jig", "reel", "hornpipe", "march")
COLLECTIONS = ("oneills1850", "ryansMammoth", "airdsAirs")
TUNES_OF_EACH = 20


@pytest.fixture(scope="module")
def tunes() -> dict[str, LabeledVectors]:
    """Global features, by mini, of 240 real tunes without their words: labeled by kind and by collection."""
    groups = {names: [] for names in product(COLLECTIONS, KINDS)}
    for piece in islice(corpus_pieces(), 4000):
        group = groups.get((piece.id.split("/")[0], piece.facts.kind))
        if group is not None:
            group.append(without_labels(piece.abc))
    chosen = [(*names, tune) for names, found in groups.items() for tune in found[:TUNES_OF_EACH]]
    collections, kinds, scores = map(list, zip(*chosen, strict=True))
    vectors = encode_scores(load_clamp3("mini", weights_folder="."), scores)
    keys = [str(number) for number in range(len(scores))]
    return {"kind": LabeledVectors(vectors, kinds, keys), "collection": LabeledVectors(vectors, collections, keys)}


@pytest.fixture
def one_thread():
    """One thread: with matrices this small, several are slow while other tests run."""
    with pytest.importorskip("threadpoolctl").threadpool_limits(1):
        yield


def blobs(counts=(20, 20, 20), size=8, spread=0.5, seed=0) -> LabeledVectors:
    """Classes a, b, c, … around centers of their own."""
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(99).normal(size=(len(counts), size))
    vectors = np.repeat(centers, counts, axis=0) + spread * rng.normal(size=(sum(counts), size))
    labels = np.repeat(list("abcdefgh")[: len(counts)], counts).tolist()
    return LabeledVectors(vectors.astype(np.float32), labels, [str(i) for i in range(len(labels))])


def accuracy(probe: Probe, examples: LabeledVectors) -> float:
    return classification_metrics(probe.confusion(examples))["accuracy"]


def write(root, vectors):
    for name, vector in vectors.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(root / name, np.asarray(vector, np.float32))
    return root


@pytest.mark.parametrize("task", ["kind", "collection"])
@pytest.mark.usefixtures("one_thread")
def test_at_least_logistic_regression_on_real_tunes(tunes, task):
    """On the tunes to evaluate on, where the probe's epoch is chosen, and on others that neither has seen.

    Means over ten splits; the difference of the two on unseen tunes has a standard error of a bit less than a
    point, and two of these are allowed.
    """
    linear_model = pytest.importorskip("sklearn.linear_model")
    scores = []
    for seed in range(10):
        rest, unseen = split(tunes[task], 1 / 3, seed)
        training, evaluation = split(rest, 0.2, seed)
        probe = train_probe(training, evaluation, ProbeSettings(), device=CPU)
        regression = linear_model.LogisticRegression(max_iter=2000).fit(training.vectors, training.labels)
        ours = [accuracy(probe, part) for part in (evaluation, unseen)]
        scores.append([*ours, *(regression.score(part.vectors, part.labels) for part in (evaluation, unseen))])
    ours_seen, ours_unseen, their_seen, their_unseen = np.mean(scores, axis=0)
    print(f"{task}: probe {ours_seen:.3f} {ours_unseen:.3f}, logistic regression {their_seen:.3f} {their_unseen:.3f}")
    assert ours_seen >= their_seen - 0.01
    assert ours_unseen >= their_unseen - 0.02


def test_the_kept_epoch_is_the_first_of_the_best(tmp_path):
    epochs = []
    training, evaluation = blobs(spread=2), blobs(spread=2, seed=1)
    probe = train_probe(training, evaluation, ProbeSettings(epochs=80, patience=0), device=CPU, report=epochs.append)
    assert [each["epoch"] for each in epochs] == list(range(1, 81)) and probe.epoch == 80
    best = max(epochs, key=lambda each: (each["eval_acc"], -each["eval_loss"]))
    assert probe.best_epoch == best["epoch"] == [each["epoch"] for each in epochs if each["best"]][-1]
    assert probe.max_eval_acc == accuracy(probe, evaluation) == pytest.approx(best["eval_acc"])
    assert {"train_loss", "train_acc", "eval_f1_macro"} <= set(best)


def test_training_stops_when_nothing_improves():
    epochs = []
    training = blobs(spread=2)
    probe = train_probe(training, blobs(spread=2, seed=1), ProbeSettings(patience=5), device=CPU, report=epochs.append)
    assert probe.epoch < 200
    losses = [each["eval_loss"] for each in epochs]
    assert not any(each["best"] for each in epochs[-5:]) and min(losses[-5:]) >= min(losses[:-5])
    assert epochs[-6]["best"] or losses[-6] == min(losses)


def test_the_same_seed_gives_the_same_probe():
    parts = blobs((30, 10)), blobs((9, 9), seed=1)
    settings = ProbeSettings(epochs=20, balanced=True)
    first, second = (train_probe(*parts, settings, device=CPU).model.fc.weight for _ in range(2))
    assert torch.equal(first, second)


def test_features_of_any_scale_and_a_constant_one():
    training, evaluation = blobs(), blobs(seed=1)
    expected = train_probe(training, evaluation, QUICK, device=CPU).probabilities(evaluation.vectors)
    scale, shift = np.float32([0.1, 3] * 4), np.float32([5, -5] * 4)
    moved = [LabeledVectors(part.vectors * scale + shift, part.labels, part.keys) for part in (training, evaluation)]
    probe = train_probe(*moved, QUICK, device=CPU)
    np.testing.assert_allclose(probe.probabilities(moved[1].vectors), expected, atol=2e-3)
    constant = [
        LabeledVectors(np.pad(part.vectors, ((0, 0), (0, 1)), constant_values=7), part.labels, part.keys)
        for part in (training, evaluation)
    ]
    probe = train_probe(*constant, QUICK, device=CPU)
    np.testing.assert_allclose(probe.probabilities(constant[1].vectors), expected, atol=2e-3)
    assert standardization(np.ones((3, 2), np.float32))[1].tolist() == [1, 1]


class Shrunk:
    """A covariance as scikit-learn asks for it, shrunk as ours."""

    def __init__(self, count: int):
        self.added = 5 / count + 1e-4

    def fit(self, x):
        self.covariance_ = np.cov(x.T, bias=True) + self.added * np.eye(x.shape[1])
        return self


@pytest.mark.parametrize("balanced", [False, True])
def test_training_begins_at_the_linear_discriminant(balanced):
    analysis = pytest.importorskip("sklearn.discriminant_analysis").LinearDiscriminantAnalysis
    examples = blobs((40, 15, 5))
    y = examples.numbers({"a": 0, "b": 1, "c": 2})
    weight, bias = discriminant(examples.vectors, y, 3, balanced)
    priors = [1 / 3] * 3 if balanced else None
    model = analysis(solver="lsqr", priors=priors, covariance_estimator=Shrunk(len(y))).fit(examples.vectors, y)
    np.testing.assert_allclose(weight, model.coef_, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(bias, model.intercept_, rtol=1e-3, atol=1e-3)


def test_balanced_training_helps_the_rare_class():
    training, evaluation = blobs((200, 6, 40), spread=1.5), blobs((50, 50, 50), spread=1.5, seed=1)
    recall = {}
    for balanced in (False, True):
        probe = train_probe(training, evaluation, ProbeSettings(epochs=50, patience=0, balanced=balanced), device=CPU)
        recall[balanced] = probe.confusion(evaluation)[1, 1]
    assert recall[True] > recall[False]


def test_balanced_draws_are_as_many_of_each_and_new_every_epoch():
    y = torch.tensor([0] * 9 + [1] * 3 + [2] * 5)
    draw = EpochItems(y, ProbeSettings(balanced=True))
    x = torch.arange(len(y))[:, None]
    drawn = [draw(x, y) for _ in range(8)]
    assert all(torch.bincount(own).tolist() == [3, 3, 3] for _, own in drawn)
    assert all(torch.equal(y[rows[:, 0]], own) for rows, own in drawn)
    assert len({tuple(sorted(rows[:, 0].tolist())) for rows, _ in drawn}) > 1
    assert draw.size == 9


def test_one_label_and_unknown_labels_are_refused():
    one = blobs((5,))
    with pytest.raises(InputError, match="at least two labels.*all 5 features to train on are 'a'"):
        train_probe(one, one, QUICK, device=CPU)
    with pytest.raises(InputError, match="no feature to train on is labeled 'c'"):
        number_labels(blobs((5, 5)), blobs())


def test_two_items_are_enough():
    examples = blobs((1, 1))
    probe = train_probe(examples, examples, QUICK, device=CPU)
    assert probe.max_eval_acc == 1.0
    assert train_probe(examples, examples, ProbeSettings(epochs=3, balanced=True), device=CPU).epoch == 3


def test_a_loss_that_is_not_finite_is_an_error():
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        train_probe(blobs(), blobs(), ProbeSettings(learning_rate=math.inf), device=CPU)


def test_split_holds_out_of_every_label_and_keeps_pieces_whole():
    vectors = np.arange(60, dtype=np.float32)[:, None]
    labels = ["a"] * 40 + ["b"] * 18 + ["c"] * 2
    keys = [f"{i // 2}" for i in range(60)]  # two parts a piece
    examples = LabeledVectors(vectors, labels, keys)
    training, evaluation = split(examples, 0.2, seed=0)
    assert [evaluation.labels.count(label) for label in "abc"] == [8, 4, 0]  # c has one piece
    assert not set(training.keys) & set(evaluation.keys)
    assert sorted([*training.vectors[:, 0], *evaluation.vectors[:, 0]]) == list(range(60))
    assert split(examples, 0.2, seed=0)[1].keys == evaluation.keys != split(examples, 0.2, seed=1)[1].keys


def test_impossible_splits_are_refused():
    singles = blobs((1, 1, 1))
    with pytest.raises(InputError, match="two pieces.*3 features with 3 labels, such as 'a'"):
        split(singles, 0.2, 0)
    for share in (0, 1, -1):
        with pytest.raises(InputError, match="share between 0 and 1"):
            split(blobs(), share, 0)


def test_labeled_features_keep_their_length_and_others_are_counted(tmp_path, caplog):
    folder = write(tmp_path, {"a_1.npy": [[3, 4]], "b_1.npy": [0, 2], "_x.npy": [1, 1]})
    examples = label_features(load_features(folder), folder, FROM_NAMES)
    np.testing.assert_allclose(examples.vectors, [[3, 4], [0, 2]], rtol=1e-6)
    assert (examples.labels, examples.keys) == (["a", "b"], ["a_1", "b_1"])
    assert "1 features have no label" in caplog.text and "_x.npy" in caplog.text


def test_the_weights_file_is_complete_and_plain_torch_can_use_it(tmp_path):
    training, evaluation = blobs(), blobs(seed=1)
    space = {"kind": "clamp3 global", "weights_sha256": "ab", "variant": "mini"}
    probe = train_probe(training, evaluation, QUICK, device=CPU, space=space)
    probe.save(tmp_path / "p.pth")
    state = torch.load(tmp_path / "p.pth", weights_only=True)
    assert set(state) == {"model", "labels", "input_size", "epoch", "best_epoch", "max_eval_acc", "space"}
    assert state["labels"] == {"a": 0, "b": 1, "c": 2} and state["input_size"] == 8
    fc = torch.nn.Linear(8, 3)
    fc.load_state_dict({name.removeprefix("fc."): value for name, value in state["model"].items()})
    logits = fc(torch.from_numpy(evaluation.vectors))
    right = (logits.argmax(1) == torch.from_numpy(evaluation.numbers(state["labels"]))).float().mean().item()
    assert right == pytest.approx(state["max_eval_acc"])
    again = load_probe(tmp_path / "p.pth")
    np.testing.assert_allclose(again.probabilities(evaluation.vectors), logits.softmax(1).detach(), atol=1e-6)
    assert (again.labels, again.space, again.best_epoch) == (probe.labels, space, probe.best_epoch)


def test_files_with_numpy_numbers_load(tmp_path):
    probe = train_probe(blobs(), blobs(seed=1), QUICK, device=CPU)
    probe.max_eval_acc, probe.best_epoch = np.float64(0.5), np.int64(3)
    probe.save(tmp_path / "p.pth")
    assert load_probe(tmp_path / "p.pth").max_eval_acc == 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": None}, "expected the weights of a linear probe"),
        ({"labels": {"a": 0, "b": 2, "c": 3}}, "label -> 0, 1"),
        ({"input_size": None}, "input_size"),
        ({"input_size": 9}, r"fc\.weight: expected \[3, 9\], got \[3, 8\]"),
        ({"model": {}}, "fc.weight: expected"),
        ({"model": 3}, "expected a checkpoint"),
    ],
)
def test_other_files_are_refused(tmp_path, change, message):
    model = {"fc.weight": torch.zeros(3, 8), "fc.bias": torch.zeros(3)}
    state = {"model": model, "labels": {"a": 0, "b": 1, "c": 2}, "input_size": 8}
    save_checkpoint(tmp_path / "p.pth", state | change)
    with pytest.raises(InputError, match=rf"p\.pth: .*(?s:.*){message}"):
        load_probe(tmp_path / "p.pth")


def test_no_pickle_is_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"model": {}, "labels": Trap()}, tmp_path / "p.pth")
    with pytest.raises(InputError):
        load_probe(tmp_path / "p.pth")
    assert not (tmp_path / "ran").exists()


def test_features_of_another_width_or_space_are_refused(tmp_path):
    probe = train_probe(
        blobs(), blobs(seed=1), QUICK, device=CPU, space={"kind": "clamp3 global", "weights_sha256": "ab"}
    )
    probe.save(tmp_path / "p.pth")
    narrow = write(tmp_path / "narrow", {"x.npy": [1, 2]})
    with pytest.raises(InputError, match=r"narrow: expected 8 values per feature as in .*p\.pth, got 2"):
        classify_folder(tmp_path / "p.pth", narrow)
    other = write(tmp_path / "other", {"x.npy": np.ones(8)})
    _, features, found = classify_folder(tmp_path / "p.pth", other)  # a folder of unknown space is accepted
    assert found.shape == (1, 3) and features.raw.tolist() == [[pytest.approx(1)] * 8]
    (other / "space.json").write_text('{"kind": "clamp3 global", "weights_sha256": "cd"}')
    with pytest.raises(InputError, match="weights_sha256 differ"):
        classify_folder(tmp_path / "p.pth", other)

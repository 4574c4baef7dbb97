import numpy as np
import pytest

from clamplib.evaluation.classification import describe_confusion
from clamplib.evaluation.zero_shot import (
    class_prototypes,
    describe_judgment,
    judge,
    label_folder,
    save_prototypes,
)
from clamplib.files import InputError
from clamplib.retrieval.similarity import load_features


def write(root, vectors):
    for name, vector in vectors.items():
        path = root / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.asarray([vector], np.float32))
    return root


@pytest.fixture
def music(tmp_path):
    return write(tmp_path / "music", {"jig_1": [9, 1], "more/jig_2": [0.2, 0.1], "reel_1": [0, 3], "air_1": [1, 2]})


@pytest.fixture
def words(tmp_path):
    """jig: the directions (1, 0) and (0, 1) of different lengths; reel: (0, 1)."""
    return write(tmp_path / "words", {"jig.1": [10, 0], "jig.2": [0, 0.1], "jig": [2, 0], "reel": [0, 4]})


def test_prototypes_are_means_of_directions(words):
    classes, prototypes = class_prototypes(load_features(words))
    assert classes == ["jig", "reel"]
    np.testing.assert_allclose(prototypes, [[2 / 5**0.5, 1 / 5**0.5], [0, 1]], rtol=1e-6)


def test_each_feature_gets_the_closest_class(music, words):
    found = label_folder(music, words)
    assert found.features.keys == ["air_1", "jig_1", "more/jig_2", "reel_1"]
    assert [found.classes[number] for number in found.predicted] == ["reel", "jig", "jig", "reel"]
    directions = np.array([[1, 2], [9, 1], [0.2, 0.1], [0, 3]])
    cosines = (directions * found.prototypes[found.predicted]).sum(1) / np.linalg.norm(directions, axis=1)
    np.testing.assert_allclose(found.similarities, cosines, rtol=1e-6)


def test_true_labels_judge_what_has_a_class():
    predicted = [1, 0, 0, 1]
    confusion, left_out = judge(predicted, ["air", "jig", "jig", "reel"], ["jig", "reel"])
    assert confusion.tolist() == [[2, 0], [0, 1]] and left_out == 1  # air is not a class
    confusion, left_out = judge(predicted, ["jig", None, None, "reel"], ["jig", "reel"])
    assert confusion.tolist() == [[0, 1], [0, 1]] and left_out == 2


@pytest.mark.parametrize("truth", [[None, "slow air"], [None, None]])
def test_nothing_to_judge(truth):
    example = repr(truth[1])
    with pytest.raises(InputError, match=f"such as 'jig', got none that is a class, such as {example}"):
        judge([0, 1], truth, ["jig", "reel"])


def test_a_judgment_in_words():
    confusion = np.array([[2, 0], [0, 1]])
    assert describe_judgment(confusion, 0, ["jig", "reel"]) == describe_confusion(confusion, ["jig", "reel"])
    first, rest = describe_judgment(confusion, 2, ["jig", "reel"]).split("\n", 1)
    assert first == "2 features have no true label, or one that is no class: they are not judged."
    assert rest == describe_confusion(confusion, ["jig", "reel"])


def test_saved_prototypes_are_features(music, words, tmp_path):
    (words / "space.json").write_text('{"kind": "clamp3 global", "weights_sha256": "ab"}')
    found = label_folder(music, words)
    for _ in range(2):  # again into the same folder
        save_prototypes(tmp_path / "p", found)
    saved = load_features(tmp_path / "p")
    assert saved.keys == found.classes and saved.space["weights_sha256"] == "ab"
    np.testing.assert_allclose(saved.matrix, found.prototypes, rtol=1e-6)
    write(tmp_path / "p", {"old": [1, 1]})
    with pytest.raises(InputError, match="prototypes only, but .*old.npy is in it"):
        save_prototypes(tmp_path / "p", found)


def test_what_cannot_be_compared(music, tmp_path):
    with pytest.raises(InputError, match="at least two classes.*'jig' only"):
        label_folder(music, write(tmp_path / "one", {"jig.1": [1, 0], "jig.2": [1, 1]}))
    with pytest.raises(InputError, match="'jig': expected prompts with a common direction"):
        label_folder(music, write(tmp_path / "zero", {"jig.1": [1, 0], "jig.2": [-1, 0], "reel": [1, 1]}))
    with pytest.raises(InputError, match="expected 3 values"):
        label_folder(music, write(tmp_path / "wide", {"jig": [1, 0, 0], "reel": [0, 1, 0]}))

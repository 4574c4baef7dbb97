import json
import math

import numpy as np
import pytest

from clamplib.files import InputError
from clamplib.retrieval import similarity
from clamplib.retrieval.similarity import Features, load_features, load_folders, load_vector, normalize, search


def write(root, vectors):
    for name, vector in vectors.items():
        path = root / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.asarray(vector, np.float32))
    return root


def write_space(root, **changes):
    root.mkdir(parents=True, exist_ok=True)
    space = {
        "variant": "mini",
        "weights_sha256": "ab",
        "geometry": {},
        "library": "1",
        "kind": "clamp3 global",
    }
    (root / "space.json").write_text(json.dumps(space | changes))


def test_a_folder_is_one_matrix_of_unit_rows(tmp_path):
    folder = write(tmp_path, {"b": [[3, 4]], "a.0": [0, 2], "sub/ü x.1": [[1, 0]]})
    features = load_features(folder)
    assert features.keys == ["a", "b", "sub/ü x"]
    assert features.matrix.dtype == np.float32
    np.testing.assert_allclose(features.matrix, [[0, 1], [0.6, 0.8], [1, 0]], rtol=1e-6)
    np.testing.assert_allclose(features.lengths, [2, 5, 1])
    assert features.keys == load_features(f"{folder}/").keys
    assert features.space is None and features.failures == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros((1, 3, 4), np.float32), r"\[1, 3, 4\].*--get_global"),
        (np.ones((2, 4), np.float32), r"one vector.*\[2, 4\]"),
        (np.float32(1), r"one vector.*\[\]"),
        (np.ones((1, 0), np.float32), "one vector"),
        (np.array([[1, math.nan]], np.float32), "NaN"),
        (np.array([[1, 1e300]]), "infinity"),
        (np.zeros((1, 4), np.float32), "zeros"),
        (np.array(["a"]), "dtype <U1"),
        (np.array([1j]), "dtype complex"),
        (np.array([{}], object), "dtype object"),
    ],
)
def test_a_file_without_one_vector_is_named(tmp_path, content, message):
    np.save(tmp_path / "bad.npy", content, allow_pickle=True)
    with pytest.raises(InputError, match=rf"bad\.npy: .*{message}"):
        load_vector(tmp_path / "bad.npy")


@pytest.mark.parametrize("content", [b"", b"words", b"\x93NUMPY\x01\x00"])
def test_a_file_of_another_format_is_named(tmp_path, content):
    (tmp_path / "bad.npy").write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.npy: expected a \.npy file"):
        load_vector(tmp_path / "bad.npy")


def test_bad_features_are_left_out_and_listed(tmp_path):
    write(tmp_path, {"a": [1, 2], "b": [2, 1], "wide": [1, 2, 3], "nan": [math.nan, 1]})
    features = load_features(tmp_path)
    assert features.keys == ["a", "b"]
    messages = sorted(str(failure) for failure in features.failures)
    assert "nan.npy" in messages[0] and "wide.npy: expected 2 values" in messages[1]


def test_a_folder_without_a_usable_feature_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        load_features(tmp_path / "absent")
    with pytest.raises(InputError, match=r"\.npy"):
        load_features(tmp_path)
    write(tmp_path, {"nan": [math.nan]})
    with pytest.raises(InputError, match="none of its 1 .npy files"):
        load_features(tmp_path)


def test_search_by_hand():
    references = normalize(np.array([[1.0, 0], [0, 1], [1, 1], [1, 0], [-1, 0]]))[0]
    query = np.array([[1, 0], [0, 1]], np.float32)
    rows, similarities = search(query, references, top_k=3)
    assert rows.tolist() == [[0, 3, 2], [1, 2, 0]]  # ties in the references' order
    np.testing.assert_allclose(similarities, [[1, 1, 0.5**0.5], [1, 0.5**0.5, 0]], atol=1e-6)
    assert search(query, references, top_k=99)[0].shape == (2, 5)
    with pytest.raises(ValueError, match="top_k"):
        search(query, references, top_k=0)


def test_search_equals_a_full_sort(monkeypatch):
    monkeypatch.setattr(similarity, "BLOCK_VALUES", 100)  # many small blocks
    rng = np.random.default_rng(0)
    references, queries = normalize(rng.normal(size=(60, 8)))[0], normalize(rng.normal(size=(20, 8)))[0]
    rows, similarities = search(queries, references, 7)
    naive = np.argsort(-(queries @ references.T), axis=1)[:, :7]
    np.testing.assert_array_equal(rows, naive)
    np.testing.assert_allclose(similarities, np.take_along_axis(queries @ references.T, naive, 1), atol=1e-6)


def test_different_widths_are_refused(tmp_path):
    folders = write(tmp_path / "a", {"x": [1, 2]}), write(tmp_path / "b", {"x": [1, 2, 3]})
    with pytest.raises(InputError, match="expected 3 values.*got 2"):
        load_folders(*folders)
    with pytest.raises(InputError, match="expected 3 values.*got 2"):
        load_folders(folders[0] / "x.npy", folders[1])


def test_different_spaces_are_refused(tmp_path):
    a, b, plain = (write(tmp_path / name, {"sub/x": [1, 2]}) for name in "abc")
    write_space(a)
    write_space(b, library="2", variant="/elsewhere/mini")
    load_folders(a, b)
    load_folders(a, plain)
    write_space(b, weights_sha256="cd")
    for query_folder in (a, a / "sub"):  # also below the folder that holds space.json
        with pytest.raises(InputError, match="weights_sha256 differ"):
            load_folders(query_folder, b)
    with pytest.raises(InputError, match="weights_sha256 differ"):
        load_folders(a / "sub" / "x.npy", b)
    with pytest.raises(InputError, match="weights_sha256 differ"):
        load_features(tmp_path)  # both lie below


def test_a_broken_space_file_is_named(tmp_path):
    write(tmp_path, {"x": [1]})
    for content in ("{", "[]", "[" * 200_000, "\xff", '{"kind": 5}', '{"weights_sha256": null}', '{"front": []}'):
        (tmp_path / "space.json").write_text(content, encoding="latin-1")
        with pytest.raises(InputError, match=r"space\.json: expected"):
            load_features(tmp_path)


def test_a_huge_space_file_is_not_read(tmp_path):
    write(tmp_path, {"x": [1]})
    with open(tmp_path / "space.json", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(InputError, match=r"space\.json: expected .*, at most 16,777,216 bytes, got 1,099,511,627,776"):
        load_features(tmp_path)


@pytest.mark.parametrize("kept", [0.7, 0.1, 0.01, slice(1234, 3210)])
@pytest.mark.parametrize("top_k", [1, 10, 5000])
def test_a_search_among_some_rows_equals_a_full_sort(monkeypatch, top_k, kept):
    """Also among duplicates, which share a similarity, and whatever the size of the blocks."""
    rng = np.random.default_rng(0)
    vectors = normalize(rng.normal(size=(300, 8)))[0][rng.integers(300, size=4000)]
    queries = normalize(rng.normal(size=(9, 8)))[0]
    rows = np.arange(4000)[kept] if isinstance(kept, slice) else np.flatnonzero(rng.random(4000) < kept)
    naive = -np.sort(-(queries @ vectors[rows].T), axis=1)[:, :top_k]
    for block_values in (50 * 8, 1 << 20):
        monkeypatch.setattr(similarity, "BLOCK_VALUES", block_values)
        best, similarities = search(queries, vectors, top_k, rows)
        np.testing.assert_allclose(similarities, naive, atol=1e-6)
        np.testing.assert_allclose(np.einsum("qkd,qd->qk", vectors[best], queries), naive, atol=1e-6)
        assert np.isin(best, rows).all()
        assert all(len(set(row)) == len(row) for row in best.tolist())


def test_ties_keep_the_order_of_the_references_across_blocks(monkeypatch):
    monkeypatch.setattr(similarity, "BLOCK_VALUES", 3 * 2)  # three references at a time
    references = np.array([[1, 0], [0, 1], [1, 0], [1, 0], [0, 1], [1, 0], [1, 0]], np.float32)
    assert search(references[:1], references, 4)[0].tolist() == [[0, 2, 3, 5]]
    assert search(references[:1], references, 9)[0].tolist() == [[0, 2, 3, 5, 6, 1, 4]]
    assert search(references[:1], references, 2, rows=np.array([1, 3, 4, 6]))[0].tolist() == [[3, 6]]


def test_a_search_without_queries_or_references_finds_nothing():
    some = np.eye(3, dtype=np.float32)
    assert search(some[:0], some)[0].shape == (0, 3)
    assert search(some, some[:0])[1].shape == (3, 0)
    assert search(some, some, rows=np.arange(0))[0].shape == (3, 0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_vectors_are_scaled_as_a_copy_or_in_place(dtype):
    vectors = np.random.default_rng(0).normal(size=(9, 4)).astype(dtype)
    before = vectors.copy()
    units, lengths = normalize(vectors)
    np.testing.assert_array_equal(vectors, before)
    own, same = normalize(vectors, in_place=True)
    np.testing.assert_allclose(own, units, rtol=1e-6)
    np.testing.assert_array_equal(same, lengths)
    assert own.dtype == np.float32 and np.shares_memory(own, vectors) == (dtype == np.float32)


def test_features_have_a_length():
    features = Features(["a"], np.ones((1, 1), np.float32), np.ones(1, np.float32), [], [], None)
    assert len(features) == 1


@pytest.mark.parametrize("scale", [1e-30, 1e-19, 1, 3e19, 1e37])
def test_vectors_of_any_length_have_their_cosine(tmp_path, scale):
    write(tmp_path, {"near": [1, 1], "far": [0, 1]})
    np.save(tmp_path / "scaled.npy", np.array([scale, 0], np.float32))
    features = load_features(tmp_path)
    assert not features.failures
    rows, similarities = search(np.array([[1, 0]], np.float32), features.matrix, 3)
    assert [features.keys[row] for row in rows[0]] == ["scaled", "near", "far"]
    np.testing.assert_allclose(similarities[0], [1, 0.5**0.5, 0], atol=1e-6)


@pytest.mark.parametrize("value", [0, 1e-42, 3e38])
def test_vectors_without_a_direction_are_left_out(tmp_path, value):
    write(tmp_path, {"good": [1, 1]})
    np.save(tmp_path / "bad.npy", np.full(2, value, np.float32))
    features = load_features(tmp_path)
    assert features.keys == ["good"]
    assert "bad.npy: expected a " in str(features.failures[0])

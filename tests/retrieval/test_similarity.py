import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from clamplib.evaluation.metrics import relevance_values
from clamplib.evaluation.pairs import (
    group_similarity,
    load_relevance,
    pair,
    pair_ranks,
    pair_records,
    pair_similarities,
    relevance_blocks,
    unmatched_records,
    vector_ranks,
)
from clamplib.files import InputError
from clamplib.retrieval import similarity as retrieval
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
        (np.array([{}], object), "allow_pickle"),
    ],
)
def test_what_is_no_vector_is_named(tmp_path, content, message):
    np.save(tmp_path / "bad.npy", content, allow_pickle=True)
    with pytest.raises(InputError, match=rf"bad\.npy: .*{message}"):
        load_vector(tmp_path / "bad.npy")


@pytest.mark.parametrize("content", [b"", b"words", b"\x93NUMPY\x01\x00"])
def test_what_is_no_npy_file_is_named(tmp_path, content):
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
    monkeypatch.setattr(retrieval, "BLOCK_VALUES", 100)  # many small blocks
    rng = np.random.default_rng(0)
    references, queries = normalize(rng.normal(size=(60, 8)))[0], normalize(rng.normal(size=(20, 8)))[0]
    rows, similarities = search(queries, references, 7)
    naive = np.argsort(-(queries @ references.T), axis=1)[:, :7]
    np.testing.assert_array_equal(rows, naive)
    np.testing.assert_allclose(similarities, np.take_along_axis(queries @ references.T, naive, 1), atol=1e-6)


def test_ranks_in_blocks_equal_one_query_at_a_time(monkeypatch):
    monkeypatch.setattr(retrieval, "BLOCK_VALUES", 128)
    rng = np.random.default_rng(1)
    references = normalize(rng.normal(size=(50, 8)))[0]
    references[10:20] = references[:10]  # exact duplicates are ties
    target = rng.integers(0, 50, 40)
    queries = normalize(references[target] + rng.normal(size=(40, 8)))[0]
    naive = []
    for query, right in zip(queries.astype(float), target, strict=True):
        similarities = [float(query @ reference) for reference in references.astype(float)]
        naive.append(1 + sum(similarity > similarities[right] + 1e-6 for similarity in similarities))
    assert vector_ranks(queries, references, target).tolist() == naive


def test_pairs_by_hand(tmp_path):
    queries = load_features(write(tmp_path / "q", {"a.0": [1, 0], "a.1": [0, 1], "b": [1, 1], "alone": [1, 1]}))
    references = load_features(write(tmp_path / "r", {"a": [2, 0], "b": [0, 3], "b.x": [1, 1], "other": [9, 9]}))
    pairs = pair(queries, references)
    assert [queries.keys[row] for row in pairs.rows] == ["a", "a", "b"]
    # candidates are a = (1, 0) and b = (0, 1) only; the query b is as close to both
    assert pair_ranks(pairs).tolist() == [1, 2, 1]
    np.testing.assert_allclose(pair_similarities(pairs), [1, 0, 0.5**0.5], atol=1e-6)
    records = pair_records(pairs, "rank", pair_ranks(pairs))
    assert records[1] == {"query": f"{tmp_path}/q/a.1.npy", "reference": f"{tmp_path}/r/a.npy", "rank": 2}
    assert unmatched_records(pairs) == [
        {"unmatched_query": [f"{tmp_path}/q/alone.npy"]},
        {"unmatched_reference": [f"{tmp_path}/r/other.npy"]},
    ]


def test_no_common_key_is_refused(tmp_path):
    folders = write(tmp_path / "q", {"a": [1]}), write(tmp_path / "r", {"b": [1]})
    with pytest.raises(InputError, match="expected common keys.*'a'.*'b'"):
        pair(*load_folders(*folders))


def test_group_similarity_weighs_vectors_by_their_length(tmp_path):
    a = load_features(write(tmp_path / "a", {"x": [3, 0], "y": [0, 1]}))
    b = load_features(write(tmp_path / "b", {"x": [1, 0]}))
    assert group_similarity(a, b) == pytest.approx(3 / 10**0.5)
    opposite = load_features(write(tmp_path / "c", {"x": [1, 0], "y": [-1, 0]}))
    with pytest.raises(InputError, match="add up to zero"):
        group_similarity(a, opposite)


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
    for query_folder in (a, a / "sub"):  # below the folder that holds space.json too
        with pytest.raises(InputError, match="weights_sha256 differ"):
            load_folders(query_folder, b)
    with pytest.raises(InputError, match="weights_sha256 differ"):
        load_folders(a / "sub" / "x.npy", b)
    with pytest.raises(InputError, match="weights_sha256 differ"):
        load_features(tmp_path)  # both lie below


def test_a_broken_space_file_is_named(tmp_path):
    write(tmp_path, {"x": [1]})
    for content in ("{", "[]"):
        (tmp_path / "space.json").write_text(content)
        with pytest.raises(InputError, match=r"space\.json: expected"):
            load_features(tmp_path)


def test_features_have_a_length():
    features = Features(["a"], np.ones((1, 1), np.float32), np.ones(1, np.float32), [], [], None)
    assert len(features) == 1


@pytest.fixture
def folders(tmp_path):
    """Queries a/x, b (two files) and c; references u, v (two files) and w."""
    write(tmp_path / "queries", {"a/x": [1, 0], "b.1": [0, 1], "b.2": [1, 1], "c": [2, 1]})
    write(tmp_path / "references", {"u": [1, 0], "v.1": [0, 1], "v.2": [1, 2], "w": [1, -1]})
    return load_folders(tmp_path / "queries", tmp_path / "references")


def test_a_table_says_what_is_right(tmp_path, folders):
    file = tmp_path / "right.csv"
    rows = ["reference,query, relevance ", "v,b,2", "u, a/x , 0.5", "w,a/x, ", "u,c,0", "v,b,2.0"]
    file.write_text("\n".join(rows), encoding="utf-8-sig")
    assert load_relevance(file, *folders) == {0: {0: 0.5, 3: 1}, 1: {1: 2, 2: 2}, 2: {1: 2, 2: 2}}
    file.write_text("query,reference\nc,w\na/x,u\n")
    assert load_relevance(file, *folders) == {0: {0: 1}, 3: {3: 1}}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("query,reference\na/x,u\nd,u\n", "line 3: expected the key of a query .*, such as 'a/x', got 'd'"),
        ("query,reference\na/x,u.abc\n", "line 2: expected the key of a reference .*, such as 'u', got 'u.abc'"),
        ("query,reference\na/x\n", "line 2: expected the key of a reference .*got ''"),
        ("query,relevance\na/x,1\n", "expected the columns query, reference in its first line, found no reference"),
        ("", "found no query and no reference"),
        ("query,reference,grade\na/x,u,2\n", "no columns but query, reference, relevance, found 'grade'; rename"),
        ("query,reference\na/x,u,0\n", "line 2: expected 2 values, got 3"),
        ("query,reference,relevance\na/x,u,good\n", "line 2: expected a relevance of 0 or more, got 'good'"),
        ("query,reference,relevance\na/x,u,-1\n", "got '-1'"),
        ("query,reference,relevance\na/x,u,nan\n", "got 'nan'"),
        ("query,reference,relevance\na/x,u,1\na/x,u,2\n", "line 3: 'a/x' and 'u' have the relevance 2 here, 1 before"),
        ("query,reference,relevance\na/x,u,0\n", "expected rows with a relevance above 0, found none"),
        ("query,reference\n\xe9,u\n".encode("latin-1"), "expected CSV in UTF-8"),
    ],
)
def test_a_bad_table_of_relevance_is_named(tmp_path, folders, table, message):
    (tmp_path / "right.csv").write_bytes(table if isinstance(table, bytes) else table.encode())
    with pytest.raises(InputError, match=rf"right\.csv.*{message}"):
        load_relevance(tmp_path / "right.csv", *folders)


def some_features(rng, count, name):
    matrix, lengths = normalize(rng.standard_normal((count, 8)))
    names = [f"{name}{number}" for number in range(count)]
    return Features(names, matrix, lengths, [Path(name, f"{each}.npy") for each in names], [], None)


def test_relevance_from_a_table_equals_scikit_learn(tmp_path, monkeypatch):
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    queries, references = some_features(rng, 12, "q"), some_features(rng, 30, "r")
    gains = rng.integers(0, 4, (12, 30)) * (rng.random((12, 30)) < 0.3)
    gains[5], gains[:, 0] = 0, np.arange(12) != 5
    rows = [f"{queries.keys[q]},{references.keys[r]},{gains[q, r]}\n" for q, r in rng.permutation(np.argwhere(gains))]
    (tmp_path / "right.csv").write_text("query,reference,relevance\n" + "".join(rows))
    relevance = load_relevance(tmp_path / "right.csv", queries, references)
    monkeypatch.setattr(retrieval, "BLOCK_VALUES", 100)  # three queries at a time
    values = relevance_values(relevance_blocks(queries, references, relevance), at=[5])
    asked = np.delete(np.arange(12), 5)
    assert list(relevance) == asked.tolist()
    for row, ap, ndcg in zip(asked, values["ap"], values["ndcg@5"], strict=True):
        similarity = queries.matrix[row] @ references.matrix.T
        assert ap == pytest.approx(sklearn_metrics.average_precision_score(gains[row] > 0, similarity))
        assert ndcg == pytest.approx(sklearn_metrics.ndcg_score(gains[row][None], similarity[None], k=5))


def test_a_file_does_not_answer_itself(tmp_path):
    both = load_features(write(tmp_path / "tunes", {"a": [1, 0], "b": [1, 0.1], "c": [0, 1]}))
    again = load_features(os.path.relpath(tmp_path / "tunes"))
    values = relevance_values(relevance_blocks(both, again, {0: {1: 1}, 1: {2: 1}, 2: {2: 1, 1: 1}}), at=[1])
    assert values["rank"].tolist() == [1, 2, 1] and values["ap"].tolist() == [1, 0.5, 1]

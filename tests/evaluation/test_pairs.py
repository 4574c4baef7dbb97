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
from clamplib.retrieval import similarity
from clamplib.retrieval.similarity import Features, load_features, load_folders, normalize


def write(root, vectors):
    for name, vector in vectors.items():
        path = root / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.asarray(vector, np.float32))
    return root


def test_ranks_in_blocks_equal_one_query_at_a_time(monkeypatch):
    monkeypatch.setattr(similarity, "BLOCK_VALUES", 128)
    rng = np.random.default_rng(1)
    references = normalize(rng.normal(size=(50, 8)))[0]
    references[10:20] = references[:10]  # exact duplicates are ties
    target = rng.integers(0, 50, 40)
    queries = normalize(references[target] + rng.normal(size=(40, 8)))[0]
    naive = []
    for query, right in zip(queries.astype(float), target, strict=True):
        cosines = references.astype(float) @ query
        naive.append(1 + sum(cosines > cosines[right] + 1e-6))
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


@pytest.fixture
def folders(tmp_path):
    """Queries a/x, b (two files) and c; references u, v (two files) and w."""
    write(tmp_path / "queries", {"a/x": [1, 0], "b.1": [0, 1], "b.2": [1, 1], "c": [2, 1]})
    write(tmp_path / "references", {"u": [1, 0], "v.1": [0, 1], "v.2": [1, 2], "w": [1, -1]})
    return load_folders(tmp_path / "queries", tmp_path / "references")


def test_relevance_is_read_from_a_table(tmp_path, folders):
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
    monkeypatch.setattr(similarity, "BLOCK_VALUES", 100)  # three queries at a time
    values = relevance_values(relevance_blocks(queries, references, relevance), at=[5])
    asked = np.delete(np.arange(12), 5)
    assert list(relevance) == asked.tolist()
    for row, ap, ndcg in zip(asked, values["ap"], values["ndcg@5"], strict=True):
        cosines = queries.matrix[row] @ references.matrix.T
        assert ap == pytest.approx(sklearn_metrics.average_precision_score(gains[row] > 0, cosines))
        assert ndcg == pytest.approx(sklearn_metrics.ndcg_score(gains[row][None], cosines[None], k=5))


def test_a_file_is_not_found_by_itself(tmp_path):
    both = load_features(write(tmp_path / "tunes", {"a": [1, 0], "b": [1, 0.1], "c": [0, 1]}))
    again = load_features(os.path.relpath(tmp_path / "tunes"))
    values = relevance_values(relevance_blocks(both, again, {0: {1: 1}, 1: {2: 1}, 2: {2: 1, 1: 1}}), at=[1])
    assert values["rank"].tolist() == [1, 2, 1] and values["ap"].tolist() == [1, 0.5, 1]

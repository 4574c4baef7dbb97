"""The published comparisons, on vectors whose cosines are known by hand."""

import argparse
import json

import numpy as np
import pytest

from clamplib.app.comparisons import (
    FEATURES,
    pairs_parser,
    run_eval,
    run_raw,
    run_score,
    run_search,
    score_parser,
    search_parser,
)
from clamplib.embedding import collections

DOC = "Compares.\n\nexample: python compare.py a b"


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """queries/ and references/ with the keys a and b; the cosine of a's pair is .8, and of b's 1."""
    vectors = {
        "queries/a": [1, 0],
        "queries/b": [0, 2],
        "references/a.1": [0.8, 0.6],
        "references/b": [0, 3],
    }
    for name, vector in vectors.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        np.save(tmp_path / f"{name}.npy", np.array([vector], np.float32))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def records(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_search(folders, capsys):
    args = search_parser(DOC, FEATURES).parse_args(["queries/a.npy", "references"])
    assert run_search(args) == 0
    assert capsys.readouterr() == ("Top 2 results among 2 candidates:\na 0.8000\nb 0.0000\n", "")


def test_search_takes_one_query(folders, capsys):
    args = search_parser(DOC, FEATURES).parse_args(["queries", "references"])
    assert run_search(args) == 1
    assert capsys.readouterr() == ("", "error: queries: expected one query, got 2\n")


def test_score_of_pairs(folders, capsys):
    args = score_parser(DOC, FEATURES).parse_args(["queries", "references", "--output_dir", "mine"])
    assert run_score(args) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["Query folder: queries", "Reference folder: references"]
    assert lines[-2:] == [
        "Avg. pairwise similarity: 0.9",
        "Pairwise similarity scores saved in 'mine/pairwise_similarities.jsonl'.",
    ]
    first, second = records(folders / "mine/pairwise_similarities.jsonl")
    assert (first["query"], first["similarity"]) == ("queries/b.npy", 1.0)
    assert second["similarity"] == pytest.approx(0.8)


def test_score_of_groups(folders, capsys):
    args = score_parser(DOC, FEATURES).parse_args(["queries", "references", "--group"])
    assert run_score(args) == 0
    a, b = np.array([1, 2]), np.array([0.8, 3.6])
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert f"Group similarity: {cosine:.4f}\n" in capsys.readouterr().out


def test_eval(folders, capsys):
    np.save("references/a.1.npy", np.float32([[0.6, 0.8]]))
    np.save("queries/a.npy", np.float32([[0, 1]]))  # closer to b
    args = pairs_parser(DOC, FEATURES, "retrieval_ranks.jsonl").parse_args(["queries", "references"])
    assert run_eval(args) == 0
    assert capsys.readouterr().out.splitlines()[-5:] == [
        "MRR: 0.75",
        "Hit@1: 0.5",
        "Hit@10: 1.0",
        "Hit@100: 1.0",
        "Rank details saved in 'inference/retrieval_ranks.jsonl'.",
    ]
    assert [record["rank"] for record in records(folders / "inference/retrieval_ranks.jsonl")] == [2, 1]


def test_files_that_are_left_out_are_named(folders, capsys):
    np.save("references/c.npy", np.float32([[np.nan, 1]]))
    args = search_parser(DOC, FEATURES).parse_args(["queries/a.npy", "references"])
    assert run_search(args) == 1
    shown = capsys.readouterr()
    assert "among 2 candidates" in shown.out
    assert shown.err.startswith("left out: references/c.npy: expected finite")


def test_raw_files_are_embedded_by_the_variant_that_is_named(monkeypatch):
    monkeypatch.setattr(collections, "embed_pair", lambda *arguments: arguments)
    loaded = []

    def run(args: argparse.Namespace, load) -> int:
        loaded.append(load(args.query_file, args.reference_folder))
        return 0

    assert run_raw(run, search_parser(DOC, "files"), ["a.abc", "music", "--variant", "mini"]) == 0
    assert loaded == [("a.abc", "music", "mini")]

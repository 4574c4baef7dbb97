"""The retrieval scripts against the golden runs: numbers within 1e-4, order up to ties, records as sets."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "retrieval"
SCRIPTS = {
    "clamp3_search.py": "semantic_search",
    "semantic_search.py": "semantic_search",
    "clamp3_eval.py": "eval_mrr",
    "eval_mrr.py": "eval_mrr",
    "clamp3_score.py": "clamp3_score",
}
# Where the reference's own ways are left on purpose: what is unmatched is reported and the rest compared,
# without a question; sub-folders are searched; keys keep their folder, with a trailing slash too.
LEFT = {
    "search_subfolders_only",
    "eval_un",
    "score_un_no",
    "score_un_noninteractive",
    "eval_seed_dup",
    "eval_dup_trailing_slash",
    "score_abs_paths",
}
RUNS = {run["name"]: run for run in json.loads((GOLDEN / "runs.json").read_text())}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    root = tmp_path_factory.mktemp("golden")
    for name, vector in np.load(GOLDEN / "features.npz").items():
        path = root / "cache" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, vector)
    return root / "cache"


@pytest.fixture
def run(cache, monkeypatch, capsys, request):
    """Runs a script in a new folder beside `cache`: returns (status, stdout, stderr, folder)."""
    folder = cache.parent / re.sub(r"\W", "_", request.node.name)
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(ROOT / "retrieval")

    def run(script, *args):
        status = __import__(script).main([str(arg) for arg in args])
        printed = capsys.readouterr()
        return status, printed.out, printed.err, folder

    return run


def numbers(text):
    return {label: float(value) for label, value in re.findall(r"^(\S.*): ([-\d.]+)$", text, re.M)}


def hits(text):
    return [(key, float(value)) for key, value in re.findall(r"^(\S+) (-?\d\.\d+)$", text, re.M)]


def records(path):
    return sorted((json.loads(line) for line in path.read_text().splitlines()), key=str)


@pytest.mark.parametrize("name", sorted(set(RUNS) - LEFT))
def test_golden(name, run):
    golden = RUNS[name]
    group = ["--group"] if name.startswith("score_seed") else []  # that version knew nothing else
    status, out, err, folder = run(SCRIPTS[golden["script"]], *golden["args"], *group)
    assert (status, err) == (0, "")
    if golden["script"].endswith("search.py"):
        got, expected = hits(out), hits(golden["stdout"])
        values = [value for _, value in expected]
        assert values and [value for _, value in got] == pytest.approx(values, abs=1e-4)
        assert [dict(expected)[key] for key, _ in got] == pytest.approx(values, abs=1e-4)
        return
    expected = numbers(golden["stdout"])
    if name.startswith("score_seed"):
        expected = {"Group similarity": expected.popitem()[1]}
    got = numbers(out)
    assert expected and {label: got[label] for label in expected} == pytest.approx(expected, abs=1e-4)
    for file in (key for key in golden if key.endswith(".jsonl")):
        check_records(records(folder / "inference" / file), sorted(golden[file], key=str))


def check_records(got, expected):
    assert [{k: v for k, v in r.items() if k != "similarity"} for r in got] == [
        {k: v for k, v in r.items() if k != "similarity"} for r in expected
    ]
    for a, b in zip(got, expected, strict=True):
        assert a.get("similarity") == pytest.approx(b.get("similarity"), abs=1e-4)


def test_pairs_are_saved_most_alike_first(run):
    _, _, _, folder = run("clamp3_score", "../cache/flat_q", "../cache/flat_ref", "--output_dir", "mine")
    lines = (folder / "mine" / "pairwise_similarities.jsonl").read_text().splitlines()
    values = [json.loads(line)["similarity"] for line in lines]
    assert len(values) == 50 and values == sorted(values, reverse=True)


@pytest.mark.parametrize("script", ["eval_mrr", "clamp3_score"])
def test_unmatched_files_are_reported_and_the_rest_compared(run, script):
    status, out, _, folder = run(script, "../cache/un_q", "../cache/un_ref")
    assert status == 0
    assert "3 keys are unmatched" in out and "There are 3 common keys" in out
    assert records(folder / "inference" / "unmatched_files.jsonl") == sorted(
        RUNS["score_un"]["unmatched_files.jsonl"], key=str
    )
    run(script, "../cache/flat_q", "../cache/flat_ref")
    assert not (folder / "inference" / "unmatched_files.jsonl").exists()


def test_mrr_of_unmatched_folders_is_over_the_common_references(run):
    _, out, _, _ = run("eval_mrr", "../cache/un_q", "../cache/un_ref")
    assert numbers(out)["MRR"] == pytest.approx(numbers(RUNS["eval_seed_un"]["stdout"])["MRR"], abs=1e-4)


@pytest.mark.parametrize("folder", ["dup", "tree", "tie"])
def test_a_trailing_slash_changes_nothing(run, folder):
    plain = run("eval_mrr", f"../cache/{folder}_q", f"../cache/{folder}_ref")[1]
    slash = run("eval_mrr", f"../cache/{folder}_q/", f"../cache/{folder}_ref//")[1]
    assert numbers(plain) == numbers(slash)
    assert numbers(plain)["MRR"] == pytest.approx(numbers(RUNS[f"eval_{folder}"]["stdout"])["MRR"], abs=1e-4)


def test_sub_folders_are_searched_and_part_of_the_key(run):
    status, out, _, _ = run("semantic_search", "../cache/query/txt-q.npy", "../cache/tree_ref", "--top_k", "50")
    assert status == 0 and "Top 50 results among 50 candidates" in out
    assert {line.split("/")[0] for line in out.splitlines()[1:]} == {"a", "b"}


def test_bad_input_is_an_error_and_status_1(run, cache):
    flat = "../cache/flat_ref"
    for args in (
        ["semantic_search", "absent.npy", flat],
        ["semantic_search", "../cache/query/txt-q.npy", "absent"],
    ):
        status, _, err, _ = run(*args)
        assert status == 1 and "absent" in err
    for script in ("eval_mrr", "clamp3_score"):
        status, _, err, _ = run(script, flat, "absent")
        assert status == 1 and "absent" in err
        status, _, err, _ = run(script, "../cache/dup_q", flat)
        assert status == 1 and "common keys" in err


def test_bad_features_are_left_out_with_status_1(run, tmp_path):
    for name, vector in {"a": [1, 0], "b": [0, 1], "c": [np.nan, 1]}.items():
        np.save(tmp_path / f"{name}.npy", np.array([vector], np.float32))
    for script, query in (("semantic_search", "a.npy"), ("eval_mrr", ""), ("clamp3_score", "")):
        status, out, err, _ = run(script, tmp_path / query, tmp_path)
        assert status == 1 and "c.npy: expected finite" in err
        assert "2 candidates" in out or "There are 2 common keys" in out


def test_top_k_must_be_positive(run, capsys):
    with pytest.raises(SystemExit, match="2"):
        run("semantic_search", "q.npy", "folder", "--top_k", "0")


@pytest.mark.parametrize("script", ["semantic_search", "eval_mrr", "clamp3_score"])
def test_scripts_start_from_any_folder(script, tmp_path):
    command = [sys.executable, ROOT / "retrieval" / f"{script}.py", "--help"]
    printed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert "example:" in printed

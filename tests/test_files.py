"""Walking, naming, resuming, writing whole files, and running a batch."""

import json
import os
import sys
from concurrent.futures import CancelledError
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from clamplib.files import (
    DIED,
    InputError,
    Report,
    _on_dask,
    atomic_path,
    is_done,
    key,
    output_paths,
    run_batch,
    run_jobs,
    walk,
)

ODD_NAMES = [
    "sp ace",
    "quo'te\"s",
    "$HOME $(touch x)",
    "new\nline",
    "Ünïcode 音楽",
    "-rf",
    "..and justice",
    "a;b|c&d",
]
LONG = "ü" * 125 + "a"  # 251 bytes; with .mid it is as long as a name can be


def test_walk_is_sorted_recursive_and_takes_any_case(tmp_path):
    for name in ("b.MID", "a.mid", "sub dir/c.Midi", "d.txt", ".clamp-unfinished.mid"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    expected = [tmp_path / name for name in ("a.mid", "b.MID", "sub dir/c.Midi")]
    assert walk(tmp_path, [".mid", ".midi"]) == expected
    assert walk(f"{tmp_path}/", [".MID", ".midi"]) == expected
    assert walk(tmp_path / "b.MID", [".mid"]) == [tmp_path / "b.MID"]


def test_walk_follows_links_to_folders_once(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.mid").touch()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "loop").symlink_to(tmp_path / "in")
    assert walk(tmp_path / "in", [".mid"]) == [tmp_path / "in" / "link" / "a.mid"]


def test_walk_says_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone"):
        walk(tmp_path / "gone", [".mid"])
    with pytest.raises(InputError, match=r"\.mid \.midi, found none"):
        walk(tmp_path, [".mid", ".midi"])


def test_outputs_keep_sub_folders_and_whatever_stands_before_the_suffix(tmp_path):
    inputs = [tmp_path / "s" / "a.1.mid", tmp_path / "a.mid"]
    assert output_paths(inputs, tmp_path, "out", ".mtf") == [Path("out/s/a.1.mtf"), Path("out/a.mtf")]
    assert output_paths(inputs[1:], inputs[1], "out", ".mtf") == [Path("out/a.mtf")]


def test_inputs_that_would_share_an_output_keep_their_suffix():
    names = ["a.abc", "a.mtf", "a.abc.txt", "b.abc", "s/a.abc", "c.mid", "c.MID"]
    outputs = output_paths([Path("in", name) for name in names], "in", "out", ".npy")
    expected = ["a.abc.npy", "a.mtf.npy", "a.abc.txt.npy", "b.npy", "s/a.npy", "c.mid.npy", "c.MID.npy"]
    assert outputs == [Path("out", name) for name in expected]
    with pytest.raises(InputError, match="a.abc.npy"):
        output_paths([Path("in/a.abc"), Path("in/a.abc")], "in", "out", ".npy")


def test_key_is_the_folder_and_the_name_up_to_the_first_dot(tmp_path):
    assert key(tmp_path / "s" / "t" / "a.b.npy", tmp_path) == "s/t/a"
    assert key(tmp_path / "a.npy", f"{tmp_path}/") == "a"


def test_is_done_compares_times(tmp_path):
    source, target = tmp_path / "a", tmp_path / "b"
    source.touch()
    assert not is_done(source, target)
    target.touch()
    os.utime(source, ns=(1, 1000))
    os.utime(target, ns=(1, 1000))
    assert is_done(source, target)
    os.utime(source, ns=(1, 1001))
    assert not is_done(source, target)
    assert not is_done(tmp_path / "gone", target)


@pytest.mark.parametrize("name", [*ODD_NAMES, LONG])
def test_atomic_path_gives_a_whole_file_or_none(tmp_path, name):
    target = tmp_path / "new folder" / (name + ".abc")
    with pytest.raises(KeyError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert list(target.parent.iterdir()) == []
    with atomic_path(target) as temporary:
        temporary.write_text("whole")
        assert not target.exists()
    assert list(target.parent.iterdir()) == [target]
    assert target.read_text() == "whole"


def copy(source: Path, target: Path) -> str | None:
    text = source.read_text()
    if text == "bad":
        target.write_text("half of it")
        raise InputError(f"{source}: expected good, came bad")
    if text == "killer":
        os._exit(1)
    target.write_text(text)
    return "short" if len(text) < 3 else None


@pytest.fixture
def batch(tmp_path):
    """Writes texts to files, runs copy over them, gives the report and the outputs' texts."""

    def run(texts: dict[str, str], workers: int = 1):
        sources = [tmp_path / "in" / name for name in texts]
        for source, text in zip(sources, texts.values(), strict=True):
            source.parent.mkdir(exist_ok=True, parents=True)
            if not source.exists() or source.read_text() != text:
                source.write_text(text)
        targets = [tmp_path / "out" / name for name in texts]
        report = run_batch(copy, sources, targets, output_root=tmp_path / "out", workers=workers)
        return report, {path.name: path.read_text() for path in sorted((tmp_path / "out").iterdir())}

    return run


def test_a_failure_is_reported_and_does_not_stop_the_others(batch, tmp_path):
    report, outputs = batch({"a": "one", "b": "bad", "c": "3"})
    assert (report.done, report.skipped, report.exit_status) == (2, 0, 1)
    assert report.summary() == "2 done, 0 skipped, 1 failed (see failures.jsonl in the output folder); 1: short"
    failures = outputs.pop("failures.jsonl")
    bad = str(tmp_path / "in" / "b")
    assert [json.loads(line) for line in failures.splitlines()] == [
        {"file": bad, "error": f"{bad}: expected good, came bad"}
    ]
    assert outputs == {"a": "one", "c": "3"}


def test_a_second_run_does_what_is_missing_or_changed(batch, tmp_path):
    batch({"a": "one", "b": "bad", "c": "three"})
    os.utime(tmp_path / "out" / "c", ns=(1, 1))
    report, outputs = batch({"a": "one", "b": "two", "c": "three"})
    assert (report.done, report.skipped, report.exit_status) == (2, 1, 0)
    assert report.summary() == "2 done, 1 skipped, 0 failed"
    assert outputs == {"a": "one", "b": "two", "c": "three"}


def test_workers_and_odd_names(batch):
    texts = {name: "text " + name for name in [*ODD_NAMES, LONG]}
    report, outputs = batch(texts, workers=2)
    assert report.done == len(texts) and outputs == texts


def test_a_worker_that_dies_takes_only_its_own_file(batch, tmp_path):
    texts = {str(number): "text" for number in range(6)} | {"3": "killer"}
    report, outputs = batch(texts, workers=2)
    assert report.done == 5
    assert [failure["file"] for failure in report.failures] == [str(tmp_path / "in" / "3")]
    assert "died" in report.failures[0]["error"]


def test_failures_name_files_whose_name_is_no_text(tmp_path):
    report = Report()
    odd = Path(os.fsdecode(b"latin-1 \xe9\n.mid"))
    report.add_failure(odd, ValueError("no"))
    report.write(tmp_path)
    (line,) = (tmp_path / "failures.jsonl").read_text().splitlines()
    assert json.loads(line) == {"file": str(odd), "error": "ValueError: no"}
    Report().write(tmp_path)
    assert not (tmp_path / "failures.jsonl").exists()


def double(job):
    if job == "killer":
        os._exit(1)
    if job == "bad":
        raise InputError("expected good, came bad")
    return job + job


@pytest.mark.parametrize("workers", [1, 2])
def test_jobs_come_back_by_number(workers):
    jobs = ["a", 2, "bad", None, [1]]
    outcomes = sorted(run_jobs(double, jobs, workers=workers), key=lambda outcome: outcome[0])
    failed = "TypeError: unsupported operand type(s) for +: 'NoneType' and 'NoneType'"
    assert outcomes == [
        (0, "aa", None),
        (1, 4, None),
        (2, None, "expected good, came bad"),
        (3, None, failed),
        (4, [1, 1], None),
    ]
    assert list(run_jobs(double, [], workers=workers)) == []


def test_a_job_that_kills_its_worker_is_alone_in_it():
    jobs = ["a", "b", "killer", "c", "d"]
    outcomes = {number: (result, error) for number, result, error in run_jobs(double, jobs, workers=2)}
    assert outcomes.pop(2)[1].startswith("the process that worked on it died")
    assert outcomes == {number: (2 * jobs[number], None) for number in (0, 1, 3, 4)}


def test_what_a_dask_cluster_did_not_finish_is_named(monkeypatch):
    """As its client hands that over: an error with its type and trace, a cancellation alone."""

    class KilledWorker(Exception):
        pass

    outcomes = {
        "finished": (0, "aa", None),
        "error": (KilledWorker, KilledWorker("one"), None),
        "lost": (ValueError, ValueError("two"), None),
        "cancelled": CancelledError("three"),
    }
    futures = [MagicMock(status=status) for status in outcomes]
    client = MagicMock()
    client.__enter__.return_value.map.return_value = futures
    distributed = SimpleNamespace(
        Client=lambda: client,
        KilledWorker=KilledWorker,
        as_completed=lambda some, **_: zip(some, outcomes.values(), strict=True),
    )
    monkeypatch.setitem(sys.modules, "distributed", distributed)
    assert list(_on_dask(double, dict(enumerate("abcd")))) == [
        (0, "aa", None),
        (1, None, DIED),
        (2, None, "ValueError: two"),
        (3, None, "CancelledError: three"),
    ]

"""Running a batch on all cores: reports, failures, workers that die, clusters."""

import json
import os
import sys
import time
from concurrent.futures import CancelledError
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
from test_files import LONG, ODD_NAMES

from clamplib.files import InputError
from clamplib.jobs import DIED, FEW, SMALL, Outcome, Report, run_batch, run_in_turn, run_jobs


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
        {"file": bad, "stage": "convert", "error": f"{bad}: expected good, came bad"}
    ]
    assert outputs == {"a": "one", "c": "3"}


def test_a_second_run_does_what_is_missing_or_changed(batch, tmp_path):
    batch({"a": "one", "b": "bad", "c": "three"})
    (tmp_path / "in" / "c").write_text("3")
    os.utime(tmp_path / "in" / "c", ns=(1, 1))  # as cp -p and rsync do
    report, outputs = batch({"a": "one", "b": "two", "c": "3"})
    assert (report.done, report.skipped, report.exit_status) == (2, 1, 0)
    assert report.summary() == "2 done, 1 skipped, 0 failed; 1: short"
    assert outputs == {"a": "one", "b": "two", "c": "3"}


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
    report.add_failure(odd, ValueError("no"), "read")
    report.write(tmp_path)
    (line,) = (tmp_path / "failures.jsonl").read_text().splitlines()
    assert json.loads(line) == {"file": str(odd), "stage": "read", "error": "ValueError: no"}
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
        __spec__=object(),
        Client=lambda: client,
        KilledWorker=KilledWorker,
        as_completed=lambda some, **_: zip(some, outcomes.values(), strict=True),
    )
    monkeypatch.setitem(sys.modules, "distributed", distributed)
    assert list(run_jobs(double, "abcd", backend="dask")) == [
        (0, "aa", None),
        (1, None, DIED),
        (2, None, "ValueError: two"),
        (3, None, "CancelledError: three"),
    ]


def test_jobs_in_turn_go_on_after_a_failure():
    def halve(job):
        if job % 2:
            raise InputError("odd")
        return job // 2

    assert list(run_in_turn(halve, [4, 3, 2])) == [Outcome(0, 2), Outcome(1, error="odd"), Outcome(2, 1)]


@pytest.mark.parametrize("at_once", [1, 3, None])
def test_jobs_that_are_given_a_few_at_a_time_are_all_done(at_once):
    outcomes = run_jobs(abs, [-1, -2, -3, -4, -5], workers=2, at_once=at_once)
    assert sorted(outcomes) == [(number, number + 1, None) for number in range(5)]


def test_only_regular_files_are_read(batch, tmp_path):
    (tmp_path / "in").mkdir()
    os.mkfifo(tmp_path / "in" / "pipe")
    (tmp_path / "in" / "zero").symlink_to("/dev/zero")
    sources = [tmp_path / "in" / name for name in ("pipe", "zero", "gone")]
    targets = [tmp_path / "out" / source.name for source in sources]
    report = run_batch(copy, sources, targets, output_root=tmp_path / "out")
    reasons = {Path(failure["file"]).name: failure["error"].partition(": ")[2] for failure in report.failures}
    assert reasons == {
        "pipe": "expected a regular file, got a named pipe",
        "zero": "expected a regular file, got a device",
        "gone": "there is no such file",
    }


def test_an_output_folder_that_takes_nothing_is_noticed_before_the_work(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(InputError, match="out: expected an output folder that can be written to"):
        run_batch(copy, [tmp_path / "a"], [tmp_path / "out" / "a"], output_root=tmp_path / "out")


def test_what_a_kill_left_is_removed_when_it_is_a_day_old(batch, tmp_path):
    (tmp_path / "out").mkdir()
    for name, age in ((".clamp-old.npy", 90_000), (".clamp-new.npy", 0), ("other.npy", 90_000)):
        left = tmp_path / "out" / name
        left.touch()
        os.utime(left, (time.time() - age,) * 2)
    _, outputs = batch({"a": "one"})
    assert outputs.keys() == {".clamp-new.npy", "other.npy", "a"}


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [([9, 9], 1), ([0] * FEW, 1), ([0] * (FEW + 1), "cores"), ([SMALL // 2] * 2, 1), ([SMALL, 1], "cores")],
)
def test_little_work_gets_one_process(tmp_path, monkeypatch, sizes, expected):
    """Starting another takes longer."""
    asked = []

    def run(function, jobs, workers, *_):
        asked.append(workers)
        return []

    monkeypatch.setattr("clamplib.jobs.processes.run", run)
    monkeypatch.setattr("loky.cpu_count", lambda: len(sizes))
    paths = [tmp_path / str(number) for number in range(len(sizes))]
    for path, size in zip(paths, sizes, strict=True):
        path.write_bytes(bytes(size))
    for jobs in (paths, [(path, "target") for path in paths], [bytes(size) for size in sizes]):
        list(run_jobs(len, jobs))
        list(run_jobs(len, jobs, workers=2))
    assert asked == [len(sizes) if expected == "cores" else expected, 2] * 3


def test_work_of_unknown_size_gets_all_cores(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("clamplib.jobs.processes.run", lambda function, jobs, workers, *_: asked.append(workers) or [])
    monkeypatch.setattr("loky.cpu_count", lambda: 2)
    for jobs in ("ab", [1.0, 2.0], [tmp_path / "gone", tmp_path / "gone"]):
        list(run_jobs(len, jobs))
    assert asked == [2, 2, 1]

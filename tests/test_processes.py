"""Processes with limits: jobs that take too long or too much, that crash, and what is left of the processes."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from clamplib import processes
from clamplib.files import InputError
from clamplib.processes import DIED, Limits, run

TIGHT = Limits(seconds=2.0, memory=1.0)


def act(job):
    """Does what a job says."""
    match job:
        case "sleep":
            time.sleep(60)
        case "hold the lock":  # a regular expression holds Python's lock while it searches
            re.match("(a+)+$", "a" * 40 + "b")
        case "allocate":
            np.ones(2**29)  # 4 GiB
        case "exit":
            os._exit(3)
        case "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "raise":
            raise InputError("expected good, got bad")
        case "unpicklable":
            return lambda: None
        case "who":
            return os.getpid()
        case Path():
            with job.open("a") as file:
                file.write("x")
            if len(job.read_text()) == 1:
                os.kill(os.getpid(), signal.SIGKILL)
    return job


def outcomes_of(jobs, workers=2, limits=TIGHT, function=act):
    return sorted(run(function, enumerate(jobs), workers, limits))


@pytest.mark.parametrize(
    "job, error",
    [
        ("sleep", "reading it took more than 2 seconds; --timeout allows more"),
        ("hold the lock", "reading it took more than 2 seconds; --timeout allows more"),
        ("allocate", "reading it took more than 1 GiB of memory; --memory allows more"),
        ("exit", DIED),
        ("crash", DIED),
        ("raise", "expected good, got bad"),
    ],
)
def test_a_job_that_fails_takes_no_other_with_it(job, error):
    if job == "allocate" and sys.platform != "linux":
        pytest.skip("only Linux limits the memory of a process")
    jobs = [0, 1, job, *range(3, 40)]
    outcomes = outcomes_of(jobs)
    assert outcomes.pop(2) == (2, None, error)
    assert outcomes == [(number, number, None) for number in (0, 1, *range(3, 40))]


def test_what_cannot_be_sent_either_way_is_a_failure():
    jobs = ["a", "unpicklable", (x for x in "generator"), "b"]
    (first, *bad, last) = outcomes_of(jobs)
    assert (first.value, last.value) == ("a", "b")
    assert "pickle" in bad[0].error and "pickle" in bad[1].error


def test_a_process_that_is_killed_from_outside_costs_nothing(tmp_path):
    assert outcomes_of([tmp_path / "first"]) == [(0, tmp_path / "first", None)]
    assert (tmp_path / "first").read_text() == "xx"


def test_a_process_is_kept_for_the_next_jobs_unless_it_was_killed():
    [[_, first, _]] = outcomes_of(["who"])
    assert outcomes_of(["who"]) == [(0, first, None)]
    os.kill(first, signal.SIGKILL)
    [[_, other, _]] = outcomes_of(["who"])
    assert other != first


def test_a_caller_who_leaves_ends_the_processes_that_work():
    outcomes = run(act, enumerate(["who", "sleep", "sleep"]), 1, Limits())
    worker = next(outcomes).value
    outcomes.close()
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


def test_outcomes_wait_to_be_taken_and_no_more_than_asked(tmp_path):
    outcomes = run(lambda path: path.touch(), enumerate(tmp_path / str(n) for n in range(100)), 1, Limits(), 3)
    next(outcomes)
    time.sleep(0.5)
    assert len(list(tmp_path.iterdir())) < 100
    assert len(list(outcomes)) == 99


def test_an_error_of_the_jobs_themselves_reaches_the_caller():
    def jobs():
        yield 0, "a"
        raise InputError("no more")

    with pytest.raises(InputError, match="no more"):
        list(run(act, jobs(), 2, None))


def test_a_large_file_gets_more_time(tmp_path):
    file = tmp_path / "large.wav"
    file.touch()
    os.truncate(file, 30_000_000)
    assert Limits(seconds=2).time(file) == Limits(seconds=2).time((file, "target")) == 32
    assert Limits(seconds=2).time("text") == Limits(seconds=2).time(tmp_path / "missing") == 2


SCRIPT = r"""
import os, re, sys, time
from clamplib.processes import Limits, run

def work(job):
    os.write(1, b"%d\n" % os.getpid())
    if job == "search":
        re.match("(a+)+$", "a" * 40 + "b")
    time.sleep(60)

list(run(work, enumerate(sys.argv[1:]), 2, Limits(seconds=3)))
"""


def test_processes_end_with_a_parent_that_is_killed(tmp_path, monkeypatch):
    """Also one that holds Python's lock. The script has no guard, and its function is not in a module."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    with subprocess.Popen([sys.executable, script, "sleep", "search"], stdout=subprocess.PIPE, text=True) as parent:
        workers = [int(parent.stdout.readline()) for _ in range(2)]
        parent.kill()
        parent.wait()
        deadline = time.monotonic() + 30
        while any(Path(f"/proc/{worker}").exists() for worker in workers) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


def test_daemons_work_without_processes(monkeypatch):
    monkeypatch.setattr(processes.multiprocessing.current_process(), "_config", {"daemon": True})
    assert not processes.can_start()


def test_a_kept_process_works_where_its_caller_does(tmp_path, monkeypatch):
    outcomes_of(["who"])
    monkeypatch.chdir(tmp_path)
    assert outcomes_of([None], function=lambda _: os.getcwd()) == [(0, str(tmp_path), None)]

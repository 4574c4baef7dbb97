"""A small run of faults.py, and whether it finds what it looks for; and disks that are full, without root."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import fault_outputs
import faults
import numpy as np
import pytest
from fault_jobs import JOBS, Job

CHEAP = ("batch_midi2mtf", "batch_interleaved_abc", "pack_shards")
CARELESS = """
import subprocess, sys, time
from pathlib import Path

child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3)"])
out = Path(sys.argv[1])
out.mkdir(parents=True, exist_ok=True)
with open(out / "numbers.bin", "wb", buffering=0) as file:
    for number in range(40):
        file.write(bytes(1000))
        time.sleep(0.05)
child.wait()
"""

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are found in /proc")


@pytest.mark.slow
def test_cheap_jobs_lose_nothing(tmp_path, capsys):
    trials = faults.Trials([job for job in JOBS if job.name in CHEAP], tmp_path, seed=1, copies=3)
    trials.run(kills=5, disks=faults.can_mount(tmp_path))
    assert not trials.problems, capsys.readouterr().out
    counts = [row.kills for row in trials.rows.values()]
    assert sum(sum(count.values()) for count in counts) == 5
    assert sum(count["worker"] for count in counts) >= 1
    assert faults.table(trials.rows).count("\n") == len(CHEAP) + 2


@pytest.mark.slow
def test_what_is_half_written_or_left_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(faults, "GONE_SECONDS", 0.5)
    monkeypatch.setattr(faults, "make_inputs", lambda folder, copies: None)
    (tmp_path / "careless.py").write_text(CARELESS)
    job = Job("careless", f"{tmp_path}/careless.py {{run}}/out", workers=False)
    trials = faults.Trials([job], tmp_path, seed=0)
    trials.run_undisturbed(job)
    trials.begins["careless"], trials.durations["careless"] = 0.5, 1.5
    trials.kill(job, ["kill"])
    row = trials.rows["careless"]
    assert (row.kills["kill"], row.half_written, row.left) == (1, 1, 1)
    assert (row.lost, row.differing) == (0, 0)
    assert len(trials.problems) == 2


def test_outputs_are_compared(tmp_path):
    ours, theirs = tmp_path / "a", tmp_path / "b"
    for folder in (ours, theirs):
        folder.mkdir()
        np.save(folder / "vector.npy", np.ones((1, 4), np.float32))
        (folder / "score.abc").write_text("X:1")
        (folder / "log.txt").write_text("epoch 1  loss 2  seconds 3\nepoch 2  loss 1  seconds 3\n")
        (folder / ".clamp-unfinished.abc").write_text(folder.name)
    assert fault_outputs.compare(ours, theirs) == fault_outputs.Comparison()
    np.save(theirs / "vector.npy", np.array([[1, 1, 1, 1 + 1e-6]], np.float32))
    (theirs / "log.txt").write_text("epoch 1  loss 2  seconds 4\n")
    partly = fault_outputs.compare(ours, theirs, finished=False)
    assert not partly.differing and 0 < partly.difference < 1e-6
    np.save(theirs / "vector.npy", np.array([[1, 1, 1, 2]], np.float32))
    (theirs / "score.abc").unlink()
    (theirs / "more.abc").touch()
    wholly = fault_outputs.compare(ours, theirs)
    assert wholly.missing == ["score.abc"]
    assert [problem.partition(":")[0] for problem in wholly.differing] == ["more.abc", "log.txt", "vector.npy"]
    (theirs / "vector.npy").write_bytes((ours / "vector.npy").read_bytes()[:-1])
    assert "vector.npy" in fault_outputs.compare(ours, theirs, finished=False).differing[-1]


def convert(source: Path, target: Path, limit: int | None = None) -> subprocess.CompletedProcess:
    """Runs batch_midi2mtf.py. Files may have `limit` bytes, after which writing fails as on a full disk."""
    script = faults.ROOT / "preprocessing/midi/batch_midi2mtf.py"
    command = [sys.executable, script, source, target, "--workers", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        if limit:
            resource.prlimit(run.pid, resource.RLIMIT_FSIZE, (limit, limit))
        output, errors = run.communicate(timeout=300)
    return subprocess.CompletedProcess(command, run.returncode, output, errors)


def test_a_file_that_does_not_fit_is_a_failure_and_the_next_run_writes_it(tmp_path, golden):
    done = convert(golden / "midi/in/hm_long.mid", tmp_path / "out", limit=5000)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    [failure] = map(json.loads, (tmp_path / "out/failures.jsonl").read_text().splitlines())
    assert "File too large" in failure["error"]
    assert not list((tmp_path / "out").glob("*.mtf")) and not list((tmp_path / "out").glob(".clamp-*.mtf"))
    assert convert(golden / "midi/in/hm_long.mid", tmp_path / "out").returncode == 0
    expected = (golden / "midi/mtf_m3/hm_long.mtf").read_bytes()
    assert (tmp_path / "out/hm_long.mtf").read_bytes() == expected


def test_an_output_folder_that_cannot_be_is_noticed_before_the_work(tmp_path, golden):
    (tmp_path / "file").touch()
    done = convert(golden / "midi/in/hm_long.mid", tmp_path / "file/out")
    assert done.returncode == 1
    assert "file/out: expected an output folder that can be written to (Not a directory)" in done.stderr

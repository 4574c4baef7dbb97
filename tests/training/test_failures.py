"""Trainings that fail: they end at once with a reason, whatever fails, and leave no process."""

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch.utils.data import DataLoader
from training_helpers import AUDIO, CODE, M3, SYMBOLIC, name_of, weights

from clamplib.training import batches
from clamplib.training.batches import BatchLoader, make_loader
from clamplib.training.objectives import M3Objective

SECONDS = 90  # the longest that anything may take here; before, it took for ever
OUTPUT_LIMIT = 300_000  # bytes: less than a checkpoint


# ------------------------------------------------------------------------------------ in this process


def workers_left():
    """The names of the loaders' workers that are left. (Processes that read files are kept for later.)"""
    names = [child.name for child in multiprocessing.active_children()]
    return [name for name in names if not name.startswith("LokyProcess")]


def test_a_loss_that_is_not_finite(run, make_config, capsys):
    assert run(M3, make_config(M3_LEARNING_RATE=1e30, M3_WARMUP_STEPS=0, NUM_WORKERS=2)) == 1
    assert "the loss is nan in epoch" in capsys.readouterr().err
    assert workers_left() == []


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_breaks_after_the_training_has_begun(workers, run, make_config, monkeypatch, capsys):
    config = make_config(NUM_WORKERS=workers)
    iterate = BatchLoader.__iter__

    def damage_and_iterate(loader):
        (config.parent / "music/p3.npy").write_bytes(b"no array")
        return iterate(loader)

    monkeypatch.setattr(BatchLoader, "__iter__", damage_and_iterate)
    assert run(AUDIO, config) == 1
    error = capsys.readouterr().err
    assert f"error: {config.parent}/music/p3.npy: expected a .npy file of numbers" in error
    assert "Traceback" not in error
    assert workers_left() == []


def test_a_bug_keeps_its_traceback(run, make_config, monkeypatch):
    def fail(objective, model, batch):
        raise TypeError("a bug")

    monkeypatch.setattr(M3Objective, "evaluate", fail)
    with pytest.raises(TypeError, match="a bug"):
        run(M3, make_config(NUM_WORKERS=2))
    assert workers_left() == []


class Items:
    """A dataset of numbers."""

    training = False

    def __len__(self):
        return 8

    def length(self, epoch, index):
        return 1

    def __getitem__(self, item):
        return item


class StuckItems(Items):
    """One whose items never arrive."""

    def __init__(self):
        self.asked = multiprocessing.Event()

    def __getitem__(self, item):
        self.asked.set()
        time.sleep(10 * SECONDS)


def test_workers_that_are_stuck_are_killed(monkeypatch):
    monkeypatch.setattr(batches, "ENDING_SECONDS", 0.5)
    dataset = StuckItems()
    loader = make_loader(dataset, 2, list, num_workers=2)
    DataLoader.__iter__(loader)  # starts the workers, and waits for no batch
    handler = signal.getsignal(signal.SIGCHLD)
    assert dataset.asked.wait(SECONDS)
    loader.close()
    assert workers_left() == []
    assert signal.getsignal(signal.SIGCHLD) == handler


def test_a_loader_that_was_closed_begins_again():
    loader = make_loader(Items(), 3, list, num_workers=2)
    for _ in range(2):
        assert sorted(index for batch in loader for _, index in batch) == list(range(8))
        loader.close()
        assert workers_left() == []
    loader.close()


# ------------------------------------------------------------------------------------ whole scripts

needs_proc = pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="processes are found in /proc")


def processes_of(config):
    """The ids of all processes of a training, its workers included: their command lines name its config.py."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.fsencode(config) in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:  # it has just ended
            continue
    return found


def children_of(process):
    """The ids of the processes that a process has started and that are alive."""
    tasks = Path(f"/proc/{process}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def wait_until(condition):
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.1)


class Script:
    """A training script in processes of its own, with two workers for each of its ranks."""

    def __init__(self, script, config, ranks=1, output_limit=None):
        self.config = config
        self.log = config.parent / f"out/{name_of(script)}.txt"
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks > 1 else []
        self.output = open(config.parent / "output", "w+")
        self.process = subprocess.Popen(
            [sys.executable, *launcher, CODE / f"{script}.py", "--config", config],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=self.output,
            stderr=subprocess.STDOUT,
        )
        if output_limit:  # set from here: code between fork and exec may meet threads of gRPC, which end the child
            resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (output_limit,) * 2)

    def wait_for_an_epoch(self):
        wait_until(lambda: self.process.poll() is not None or (self.log.exists() and self.log.stat().st_size))
        assert self.process.poll() is None, self.read()

    def wait(self):
        """Waits for its end and that of all its processes; returns the exit status and what it printed."""
        status = self.process.wait(SECONDS)
        wait_until(lambda: not processes_of(self.config))
        return status, self.read()

    def read(self):
        self.output.seek(0)
        return self.output.read()

    def kill(self):
        for process in processes_of(self.config):
            os.kill(process, signal.SIGKILL)
        self.process.wait()
        self.output.close()


@pytest.fixture
def start(make_config):
    """start(script, ranks=1, output_limit=None, NAME=value, ...): a training that would take very long."""
    scripts = []

    def start(script, ranks=1, output_limit=None, **changes):
        changes = {"NUM_WORKERS": 2, "M3_NUM_EPOCH": 10**6, "CLAMP3_NUM_EPOCH": 10**6, "SAVE_EVERY": 0} | changes
        scripts.append(Script(script, make_config(**changes), ranks, output_limit))
        return scripts[-1]

    yield start
    for script in scripts:
        script.kill()


@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize(("script", "ranks", "name"), [(M3, 1, "p3.abc"), (AUDIO, 2, "p3.npy")])
def test_a_file_that_goes(script, ranks, name, start):
    training = start(script, ranks)
    training.wait_for_an_epoch()
    path = training.config.parent / "music" / name
    path.unlink()
    status, said = training.wait()
    assert status == 1
    assert f"error: {path}: No such file or directory" in said


@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize(("script", "ranks"), [(SYMBOLIC, 1), (M3, 2)])
def test_a_full_disk(script, ranks, start):
    """A limit for the size of files is the disk that is full. Only the first rank writes."""
    training = start(script, ranks, output_limit=OUTPUT_LIMIT)
    status, said = training.wait()
    assert status == 1
    assert f"out/{name_of(script)}.pth: expected to write weights" in said
    assert list((training.config.parent / "out").iterdir()) == []


@needs_proc
@pytest.mark.slow
def test_a_worker_that_is_killed(start):
    training = start(SYMBOLIC)
    training.wait_for_an_epoch()
    os.kill(children_of(training.process.pid)[0], signal.SIGKILL)
    status, said = training.wait()
    assert status == 1
    assert "DataLoader worker" in said


@needs_proc
@pytest.mark.slow
def test_a_training_that_is_killed_leaves_no_workers(start):
    training = start(M3)
    training.wait_for_an_epoch()
    training.process.kill()
    assert training.wait()[0] == -signal.SIGKILL


@needs_proc
@pytest.mark.slow
def test_a_rank_that_is_killed(start):
    training = start(M3, ranks=2)
    training.wait_for_an_epoch()
    os.kill(children_of(training.process.pid)[0], signal.SIGKILL)
    assert training.wait()[0] == 1


@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_torchrun_that_is_ended(number, start):
    """Its ranks save the state first, also if it is killed."""
    training = start(M3, ranks=2)
    training.wait_for_an_epoch()
    training.process.send_signal(number)
    status, said = training.wait()
    assert status == (1 if number == signal.SIGTERM else -number)
    assert "Stopped by SIGTERM; the same command goes on from here." in said
    assert weights(training.config)["epoch"] >= 1

"""Kills commands at random moments, fills their disks and runs two at once, and compares with undisturbed runs.

    make faults
    python tests/reliability/faults.py --kills 10 --seed 2 --jobs batch_xml2abc train_m3

Every job is a real command on small data. It runs undisturbed once, which is the reference. Then it is disturbed:

    kill      SIGKILL to the command
    term      SIGTERM to the command, or to all its processes
    int       SIGINT to the command, or to all its processes, as Ctrl-C sends it
    worker    SIGKILL to one of the processes that the command has started

After each disturbance every output is whole or absent, and no process is left. If a process of a batch was killed, the
batch ends with status 0 all the same, and with all outputs. A training ends with status 1. Then the same command runs
to its end, and its outputs equal those of the reference. Conversions, trainings and indexes of them are equal to the
byte. Features may differ by 2e-6 of their length, because what shares a batch changes the rounding.

A full or read-only disk is a tmpfs, which takes root on Linux; without it, these checks are left out and the table says
so. The exit status is 1 if anything was lost, half-written, different or left.
"""

import argparse
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from fault_jobs import COPIES, JOBS, Job, make_inputs
from fault_outputs import compare, output_files

ROOT = Path(__file__).parents[2]

MARK = "CLAMP3_FAULTS"  # an environment variable, by which the processes of a run are found, orphans too
LOOK_SECONDS = 0.05
GONE_SECONDS = 15.0  # after which a process that is still there counts as left
HANG_SECONDS = 120.0  # beside twenty times the undisturbed duration
DAMAGED_CACHE = "expected a cache"  # in the warning
WORKERS = 0.4  # share of the kills that are of workers
BLOCK = 4096  # bytes that a tmpfs gives at a time

SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "int": signal.SIGINT}
STATUSES = {"kill": {-9}, "term": {-15, 143}, "int": {-2, 130}}  # negative: before or after the command's own code


# ------------------------------------------------------------------------------------ processes


class Command:
    """A command that runs, with all its processes."""

    def __init__(self, job: Job, inputs: Path, run: Path):
        run.mkdir(parents=True, exist_ok=True)
        if job.settings is not None:
            (run / "config.py").write_text(job.settings.replace("{inputs}", str(inputs)))
        words = [word.replace("{inputs}", str(inputs)).replace("{run}", str(run)) for word in job.words.split()]
        self.mark = uuid.uuid4().hex
        self.printed = run / f"printed-{self.mark}.txt"
        own = {"HF_HUB_OFFLINE": "1", "CLAMP3_CACHE": str(run / "cache"), "OMP_NUM_THREADS": "1", MARK: self.mark}
        with open(self.printed, "wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, *words],
                cwd=ROOT,
                env={**os.environ, **own},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.started = time.monotonic()

    @property
    def seconds(self) -> float:
        """The time since its start."""
        return time.monotonic() - self.started

    def wait_until(self, seconds: float) -> bool:
        """Waits for a moment after its start. Returns whether it runs then."""
        try:
            self.process.wait(max(seconds - self.seconds, 0))
        except subprocess.TimeoutExpired:
            return True
        return False

    def workers(self) -> list[int]:
        """The processes of Python that it has started, without those that only watch over resources."""
        return [process for process in processes_of(self.mark) if process != self.process.pid and _works(process)]

    def disturb(self, kind: str, rng: Random) -> bool:
        """Kills it or a worker. Returns whether there was anything to kill; waits for a worker."""
        if kind != "worker":
            everyone = kind != "kill" and rng.random() < 0.5
            (os.killpg if everyone else os.kill)(self.process.pid, SIGNALS[kind])
            return True
        while self.process.poll() is None:
            if workers := self.workers():
                try:
                    os.kill(rng.choice(sorted(workers)), signal.SIGKILL)
                    return True
                except ProcessLookupError:
                    pass
            time.sleep(LOOK_SECONDS)
        return False

    def wait(self, seconds: float) -> int | None:
        """Waits for its end, and returns the exit status; None if that takes too long."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def end(self) -> None:
        """Ends all its processes."""
        for process in processes_of(self.mark):
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def wait_for_the_rest(self) -> tuple[int, float]:
        """Waits for the end of all its processes. Returns how many are left, which it ends, and how long it took."""
        began = time.monotonic()
        while (left := processes_of(self.mark)) and time.monotonic() - began < GONE_SECONDS:
            time.sleep(LOOK_SECONDS)
        took = time.monotonic() - began
        self.end()
        return len(left), took

    def said(self) -> str:
        """What it has printed."""
        return self.printed.read_text(encoding="utf-8", errors="replace")


def processes_of(mark: str) -> list[int]:
    """The processes with a mark in their environment."""
    wanted, found = f"{MARK}={mark}".encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:  # it has just ended, or is somebody else's
            continue
    return found


def _works(process: int) -> bool:
    try:
        words = Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return False
    return b"python" in words.split(b"\0")[0] and b"resource_tracker" not in words


# ------------------------------------------------------------------------------------ the trials


@dataclass
class Row:
    """What became of a job: a row of the table."""

    kills: dict[str, int] = field(default_factory=lambda: dict.fromkeys((*SIGNALS, "worker"), 0))
    half_written: int = 0
    lost: int = 0
    differing: int = 0
    left: int = 0
    slowest: float = 0.0  # seconds that processes lived on after their command
    difference: float = 0.0
    problems: list[str] = field(default_factory=list)


class Trials:
    """The trials of some jobs in a folder."""

    def __init__(self, jobs: list[Job], folder: Path, seed: int, copies: int = COPIES):
        self.folder = folder
        self.inputs = folder / "inputs"
        self.rng = Random(seed)
        self.jobs = jobs
        self.rows = {job.name: Row() for job in jobs}
        self.durations: dict[str, float] = {}
        self.begins: dict[str, float] = {}  # when the first worker or output is there
        self._numbers = itertools.count()
        self._commands: list[Command] = []
        self.inputs.mkdir()
        make_inputs(self.inputs, copies)

    @property
    def problems(self) -> list[str]:
        """What went wrong."""
        return [problem for row in self.rows.values() for problem in row.problems]

    def run(self, kills: int, pairs: bool = True, disks: bool = True) -> None:
        """Does everything with all jobs. In the end no process of theirs is left, whatever happens.

        Args:
            kills: the number of kills and signals.
            pairs: also runs two at once.
            disks: also fills disks.
        """
        try:
            for job in self.jobs:
                self.run_undisturbed(job)
            self.kill_all(kills)
            for job in self.jobs:
                if pairs and not job.training:
                    self.run_two(job)
                if disks:
                    self.fill_disk(job)
                if disks and job.cached:
                    self.spoil_cache(job)
        finally:
            for command in self._commands:
                command.end()

    def start(self, job: Job, run: Path) -> Command:
        """Starts the command of a job."""
        self._commands.append(Command(job, self.inputs, run))
        return self._commands[-1]

    def new_run(self, job: Job) -> Path:
        """A new folder for a run."""
        return self.folder / f"{job.name.replace(' ', '_')}-{next(self._numbers)}"

    def reference(self, job: Job) -> Path:
        """The output folder of the undisturbed run."""
        return self.folder / "reference" / job.name / "out"

    def run_undisturbed(self, job: Job) -> None:
        """Makes the reference."""
        command = self.start(job, self.reference(job).parent)
        begin = None
        while command.wait_until(command.seconds + LOOK_SECONDS) and command.seconds < HANG_SECONDS:
            if begin is None and (command.workers() or output_files(self.reference(job))):
                begin = command.seconds
        self.durations[job.name] = command.seconds
        self.begins[job.name] = begin or 0.0
        status, left = command.process.returncode, command.wait_for_the_rest()[0]
        if status or left or not output_files(self.reference(job)):
            raise SystemExit(f"{job.name}: the undisturbed run failed with status {status}:\n{command.said()}")
        say(f"{job.name}: {len(output_files(self.reference(job)))} outputs in {command.seconds:.1f} s, undisturbed")

    def kill_all(self, kills: int) -> None:
        """Kills one job after the other until there were so many kills, a share of WORKERS of them of workers."""
        signals = {job.name: itertools.cycle(self.rng.sample(list(SIGNALS), len(SIGNALS))) for job in self.jobs}
        for job in itertools.cycle(self.rng.sample(self.jobs, len(self.jobs))):
            total, of_workers = self._count_kills()
            if total >= kills:
                return
            kinds = [next(signals[job.name]), "worker" if job.workers else next(signals[job.name])]
            if job.workers and of_workers < WORKERS * total:
                kinds.reverse()
            self.kill(job, kinds[: min(kills - total, self.rng.choice((1, 2)))])

    def _count_kills(self) -> tuple[int, int]:
        """All kills, and those of workers."""
        counts = [row.kills for row in self.rows.values()]
        return sum(sum(count.values()) for count in counts), sum(count["worker"] for count in counts)

    def kill(self, job: Job, kinds: list[str]) -> None:
        """Disturbs one run in turn, and lets it finish."""
        run, row = self.new_run(job), self.rows[job.name]
        for place, kind in enumerate(kinds):
            command = self.start(job, run)
            killed = self._wait_for_moment(job, command, kind, again=place > 0) and command.disturb(kind, self.rng)
            took = command.seconds
            status = self._end(job, command)
            what = f"{job.name}, {kind} after {took:.1f} s, status {status}"
            if not killed:
                say(f"{job.name}: finished in {took:.1f} s, before the kill")
                if place == 0 and took < self.durations[job.name]:  # the machine is less busy than it was
                    self.begins[job.name] *= took / self.durations[job.name]
                    self.durations[job.name] = took
            else:
                row.kills[kind] += 1
                say(what)
                if status not in self._statuses(job, kind):
                    self._note(job, what, command)
                if "Traceback" in command.said() and status not in (-2, 1):
                    self._note(job, f"{what}: a traceback", command)
            if status == 0:
                self._check(job, run, what)
                break
            whole = compare(self.reference(job), run / "out", finished=False)
            row.half_written += len(whole.differing)
            for problem in whole.differing:
                self._note(job, f"{what}: half-written {problem}", command)
        else:
            self._finish(job, run, f"{job.name} after {', '.join(kinds)}")
        shutil.rmtree(run)

    def _wait_for_moment(self, job: Job, command: Command, kind: str, again: bool) -> bool:
        """Waits for a random moment, which is in three of four cases after the first worker or output is there.

        Returns whether the command runs then.
        """
        begin, end = self.begins[job.name], self.durations[job.name]
        if kind != "worker" and self.rng.random() < 0.25:
            return command.wait_until(self.rng.uniform(0, begin))
        delay = self.rng.uniform(0, (end - begin) / (2 if again else 1))  # again: a part of the work is done
        if not job.workers:
            return command.wait_until(begin + delay)
        while not command.workers():
            if not command.wait_until(command.seconds + LOOK_SECONDS):
                return False
        return command.wait_until(command.seconds + delay)

    def _statuses(self, job: Job, kind: str) -> set[int]:
        """The exit statuses that are right. A signal may come when all is done."""
        if kind == "worker":
            return {0, 1} if job.training else {0}
        return STATUSES[kind] | {0}

    def _finish(self, job: Job, run: Path, what: str) -> None:
        """Runs a command again to its end."""
        command = self.start(job, run)
        status = self._end(job, command)
        if status != 0:
            self._note(job, f"{what}: the run to the end has status {status}", command)
        if job.cached and DAMAGED_CACHE in command.said():
            self._note(job, f"{what}: the cache is damaged", command)
        self._check(job, run, what)

    def _end(self, job: Job, command: Command) -> int | None:
        """Waits for the end of all processes of a command; returns the exit status."""
        row = self.rows[job.name]
        status = command.wait(HANG_SECONDS + 20 * self.durations[job.name])
        if status is None:
            self._note(job, f"{job.name}: did not end", command)
        left, took = command.wait_for_the_rest()
        row.left += left
        row.slowest = max(row.slowest, took)
        if left:
            self._note(job, f"{job.name}: {left} processes were left", command)
        return status

    def _check(self, job: Job, run: Path, what: str) -> None:
        """Compares a finished run with the reference."""
        row, result = self.rows[job.name], compare(self.reference(job), run / "out")
        row.lost += len(result.missing)
        row.differing += len(result.differing)
        row.difference = max(row.difference, result.difference)
        for problem in [*(f"{name} is lost" for name in result.missing), *result.differing]:
            self._note(job, f"{what}: {problem}")

    def _note(self, job: Job, problem: str, command: Command | None = None) -> None:
        say(f"  PROBLEM {problem}")
        if command:
            say("".join(f"    | {line}\n" for line in command.said().splitlines()[-30:]))
        self.rows[job.name].problems.append(problem)

    def run_two(self, job: Job) -> None:
        """Runs a command twice at once, with one output folder."""
        run = self.new_run(job)
        commands = [self.start(job, run) for _ in range(2)]
        for command in commands:
            if status := self._end(job, command):
                self._note(job, f"{job.name}, two at once: status {status}", command)
        say(f"{job.name}: two at once")
        self._check(job, run, f"{job.name}, two at once")
        shutil.rmtree(run)

    def fill_disk(self, job: Job) -> None:
        """Lets the disk be full in the middle, then read-only from the beginning, then large enough."""
        run = self.new_run(job)
        out = run / "out"
        sizes = [path.stat().st_size for path in self.reference(job).rglob("*") if path.is_file()]
        needed = sum(-(-size // BLOCK) * BLOCK for size in sizes)
        with disk(out, needed // 2 // BLOCK * BLOCK) as remount:
            for state in ("full", "read-only"):
                if state == "read-only":
                    remount("ro")
                command = self.start(job, run)
                status = self._end(job, command)
                what = f"{job.name}, {state} disk, status {status}"
                say(what)
                if status != 1 or "Traceback" in command.said():
                    self._note(job, what, command)
                whole = compare(self.reference(job), out, finished=False)
                half = [problem for problem in whole.differing if not problem.startswith("failures.jsonl")]
                self.rows[job.name].half_written += len(half)
                for problem in half:
                    self._note(job, f"{what}: half-written {problem}", command)
            remount(f"rw,size={4 * needed + 2**20}")
            self._finish(job, run, f"{job.name} after a full disk")
        shutil.rmtree(run)

    def spoil_cache(self, job: Job) -> None:
        """Lets the cache of vectors be full, and read-only."""
        for state in ("full", "read-only"):
            run = self.new_run(job)
            cache = run / "cache"
            with disk(cache, 16 * BLOCK) as remount:
                if state == "full":
                    fill(cache / "other")
                else:
                    remount("ro")
                command = self.start(job, run)
                status = self._end(job, command)
                what = f"{job.name}, {state} cache, status {status}"
                say(what)
                if status != 0 or DAMAGED_CACHE not in command.said() or "Traceback" in command.said():
                    self._note(job, what, command)
                self._check(job, run, what)
            shutil.rmtree(run)


# ------------------------------------------------------------------------------------ disks


@contextmanager
def disk(folder: Path, size: int) -> Iterator[Callable[[str], None]]:
    """Mounts a small disk at a folder. Yields a function that mounts it again with other options."""

    def mount(options: str) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)

    folder.mkdir(parents=True)
    mount(f"size={size}")
    try:
        yield lambda options: mount(f"remount,{options}")
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)  # also if a process still uses it


def fill(path: Path) -> None:
    """Writes a file until the disk is full."""
    with open(path, "wb", buffering=0) as file:
        try:
            while file.write(bytes(BLOCK)):
                pass
        except OSError:
            pass


def can_mount(folder: Path) -> bool:
    """Whether this process may mount a disk."""
    try:
        with disk(folder / "probe", BLOCK):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


# ------------------------------------------------------------------------------------ the command line


def say(line: str) -> None:
    print(line, flush=True)


def table(rows: dict[str, Row]) -> str:
    """The result as a table in Markdown."""
    lines = [
        "| job | kills of the command | kills of workers | signals | half-written | lost | differing | left |"
        " slowest end | largest difference |",
        "| --- |" + " ---: |" * 9,
    ]
    total = Row()
    for name, row in [*rows.items(), ("all", total)]:
        counts = row.kills
        lines.append(
            f"| {name} | {counts['kill']} | {counts['worker']} | {counts['term'] + counts['int']} | {row.half_written}"
            f" | {row.lost} | {row.differing} | {row.left} | {row.slowest:.1f} s | {row.difference:.1e} |"
        )
        total.kills = {kind: total.kills[kind] + counts[kind] for kind in counts}
        total.half_written += row.half_written
        total.lost += row.lost
        total.differing += row.differing
        total.left += row.left
        total.slowest = max(total.slowest, row.slowest)
        total.difference = max(total.difference, row.difference)
    return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [job.name for job in JOBS]
    parser.add_argument("--kills", type=int, default=50, help="number of kills and signals (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the order and the moments (default: %(default)s)")
    parser.add_argument("--jobs", nargs="+", choices=names, default=names, metavar="JOB", help=", ".join(names))
    parser.add_argument(
        "--without", nargs="+", choices=("disks", "pairs"), default=(), help="leave out full disks, or two at once"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    began = time.monotonic()
    jobs = [job for job in JOBS if job.name in args.jobs]
    with tempfile.TemporaryDirectory(prefix="clamp3-faults-") as name:
        folder = Path(name)
        trials = Trials(jobs, folder, args.seed)
        disks = "disks" not in args.without and can_mount(folder)
        trials.run(args.kills, "pairs" not in args.without, disks)
    say(table(trials.rows))
    problems = trials.problems
    remark = "" if disks else "; no full disk was tried"
    say(f"{len(problems)} problems in {time.monotonic() - began:.0f} s{remark}")
    for problem in problems:
        say(f"- {problem}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

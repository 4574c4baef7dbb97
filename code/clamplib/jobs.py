"""Many jobs, on all cores or on a cluster; what became of each, and the report of all.

A job that fails never stops the others. Its reason is an Outcome, and in a batch a line of failures.jsonl.
"""

import json
import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import loky
from tqdm import tqdm

from clamplib import processes
from clamplib.files import atomic_path, check_file, check_writable, escape, file_state, show
from clamplib.manifest import Manifest, content_of
from clamplib.processes import DIED, Limits, Outcome, describe

logger = logging.getLogger(__name__)

FAILURES = "failures.jsonl"
BACKENDS = {"ray": "ray", "dask": "distributed"}  # and their packages
RAY_TASKS = 1000  # given to Ray at a time: enough that a cluster which can grow does
FEW, SMALL = 16, 100_000  # files and their bytes that one process converts before a second has started
NOT_FINITE = "expected finite features, but the model gave NaN or infinity"
LIMITS = Limits()


@dataclass
class Report:
    """What became of a batch."""

    done: int = 0
    skipped: int = 0
    failures: list[dict[str, str]] = field(default_factory=list)
    remarks: Counter[str] = field(default_factory=Counter)  # what was noted -> in how many files

    def add_failure(self, path: str | os.PathLike, error: BaseException | str, stage: str) -> None:
        """Adds a file that failed at a stage: read, convert, encode or write."""
        text = error if isinstance(error, str) else describe(error)
        self.failures.append({"file": str(path), "stage": stage, "error": text})
        logger.warning("%s", escape(text if show(path) in text else f"{show(path)}: {text}"))

    def write(self, output_root: str | Path) -> None:
        """failures.jsonl: an object per line, with `file`, `stage` and `error`; without failures an old one goes."""
        path = Path(output_root, FAILURES)
        if not self.failures:
            path.unlink(missing_ok=True)
            return
        with atomic_path(path) as temporary:
            lines = [json.dumps(failure) + "\n" for failure in self.failures]
            temporary.write_text("".join(lines), encoding="utf-8")

    def summary(self) -> str:
        counts = f"{self.done} done, {self.skipped} skipped, {len(self.failures)} failed"
        see = f" (see {FAILURES} in the output folder)" if self.failures else ""
        return counts + see + "".join(f"; {count}: {remark}" for remark, count in self.remarks.items())

    @property
    def exit_status(self) -> int:
        return 1 if self.failures else 0


def run_batch(
    function: Callable[[Path, Path], str | None],
    sources: Sequence[os.PathLike],
    targets: Sequence[Path],
    *,
    output_root: str | Path,
    workers: int | None = None,
    backend: str | None = None,
    limits: Limits | None = LIMITS,
    description: str = "",
) -> Report:
    """Calls function(source, temporary target) for every target that is not done, in parallel, and reports.

    What it returns, if anything, is a remark on the output, which is counted in the report.
    A source may be anything with a path (os.PathLike): a file, or one tune of a file that holds many.
    `workers` None is one per core, or one for little work; `backend` is `ray`, `dask` or None for local processes.
    """
    report = Report()
    check_writable(output_root)
    with Manifest() as manifest:
        jobs = manifest.missing(list(zip(sources, targets, strict=True)))
        report.skipped = len(sources) - len(jobs)
        outcomes = run_jobs(partial(_write, function), jobs, workers=workers, backend=backend, limits=limits)
        for number, written, error in tqdm(outcomes, total=len(jobs), desc=description, unit="file", disable=not jobs):
            if error:
                report.add_failure(jobs[number][0], error, "convert")
                continue
            report.done += 1
            remark, state, content = written
            manifest.add(jobs[number][1], state, content)
            if remark:
                report.remarks[remark] += 1
    report.write(output_root)
    return report


def _write(
    function: Callable[[os.PathLike, Path], str | None], job: tuple[os.PathLike, Path]
) -> tuple[str | None, str | None, str]:
    """Writes a target. Returns the remark on it, and what it was made from: the state and the content of its source."""
    source, target = job
    check_file(source)
    state = file_state(source)
    with atomic_path(target) as temporary:
        remark = function(source, temporary)
    return remark, state, content_of(source, state)


def run_jobs(
    function: Callable[[Any], Any],
    jobs: Sequence[Any],
    *,
    workers: int | None = None,
    backend: str | None = None,
    at_once: int | None = None,
    limits: Limits | None = LIMITS,
) -> Iterator[Outcome]:
    """Calls function(job) for every job in parallel, and gives the outcomes as they are done.

    Args:
        function: is called in other processes, so it must be picklable, as must the jobs.
        workers: processes, here or on Ray; None: one per core, or one for at most FEW files of SMALL bytes in all. Of a
            Dask cluster all workers are used.
        backend: "ray" or "dask" joins the cluster that its own environment variables name, or starts one here. There
            a job that was on a lost machine, or in a process that died, is tried again, three times. None: local
            processes, where a job whose process died is tried again once.
        at_once: outcomes that may wait to be taken; None: any number.
        limits: of time and memory for each job; None: none. Dask's own workers are often daemonic, which means that
            they cannot start the process that has the limits. Then there are none.

    Raises:
        ImportError: the backend is not installed.
    """
    numbered = dict(enumerate(jobs))
    if backend and not find_spec(BACKENDS[backend]):
        raise ImportError(f"--backend {backend} needs a package of its own: pip install {BACKENDS[backend]}")
    if backend == "ray":
        yield from _on_ray(function, numbered, workers or RAY_TASKS, limits)
    elif backend == "dask":
        yield from _on_dask(partial(_one, function, limits), numbered)
    elif processes.can_start():
        workers = workers or (1 if _is_little_work(numbered.values()) else loky.cpu_count())
        workers = min(workers, len(numbered))
        yield from processes.run(function, numbered.items(), workers, limits, at_once)
    else:
        yield from run_in_turn(function, jobs)


def _is_little_work(jobs: Collection[Any]) -> bool:
    """Whether jobs, which are paths, bytes or tuples that begin with one, are few and small."""
    return len(jobs) <= FEW and sum(map(_size, jobs)) <= SMALL


def _size(job: Any) -> float:
    item = job[0] if isinstance(job, tuple) and job else job
    if isinstance(item, bytes):
        return len(item)
    try:
        return os.stat(item).st_size if isinstance(item, os.PathLike) else math.inf
    except (OSError, ValueError):  # there is nothing to read
        return 0


def run_in_turn(function: Callable[[Any], Any], jobs: Iterable[Any]) -> Iterator[Outcome]:
    """`run_jobs` in this process, one job after the other, without limits."""
    for number, job in enumerate(jobs):
        yield _attempt(function, number, job)


def _attempt(function: Callable, number: int, job: Any) -> Outcome:
    """The outcome of one job in this process. Its error is text, since not every exception can be pickled."""
    try:
        return Outcome(number, function(job))
    except Exception as error:  # the job's fault
        logger.debug("job %d failed here:", number, exc_info=True)
        return Outcome(number, error=describe(error))


def _one(function: Callable, limits: Limits | None, number: int, job: Any) -> Outcome:
    """Runs on a cluster. The limits need a process below that of the cluster."""
    if limits and processes.can_start():
        [outcome] = processes.run(function, [(number, job)], 1, limits)
        return outcome
    return _attempt(partial(processes.call, function), number, job)


def _on_ray(function: Callable, jobs: dict[int, Any], at_once: int, limits: Limits | None) -> Iterator[Outcome]:
    """`run_jobs` of numbered jobs, each a task of one CPU."""
    import ray

    if not ray.is_initialized():
        ray.init()
    task, shared = ray.remote(num_cpus=1)(_one), ray.put(function)
    waiting, running = iter(jobs.items()), {}
    try:
        while True:
            for number, job in islice(waiting, at_once - len(running)):
                running[task.remote(shared, limits, number, job)] = number
            if not running:
                return
            [[done], _] = ray.wait(list(running))
            number = running.pop(done)
            try:
                outcome = ray.get(done)
            except ray.exceptions.RayError as error:
                died = isinstance(error, ray.exceptions.WorkerCrashedError)
                outcome = Outcome(number, error=DIED if died else describe(error))
            yield outcome
    finally:
        for left in running:
            ray.cancel(left)


def _on_dask(do: Callable[[int, Any], Outcome], jobs: dict[int, Any]) -> Iterator[Outcome]:
    """`run_jobs` of numbered jobs."""
    import dask
    from distributed import Client, KilledWorker, as_completed

    with dask.config.set({"distributed.worker.daemon": False}), Client() as client:
        futures = client.map(do, jobs.keys(), jobs.values(), pure=False)
        numbers = dict(zip(futures, jobs, strict=True))
        del futures  # a result is kept as long as its future is
        for done, outcome in as_completed(list(numbers), with_results=True, raise_errors=False):
            number = numbers.pop(done)
            if done.status != "finished":
                error = outcome[1] if isinstance(outcome, tuple) else outcome  # alone where it was cancelled
                outcome = Outcome(number, error=DIED if isinstance(error, KilledWorker) else describe(error))
            yield outcome

"""Many jobs, on all cores or on a cluster; what became of each, and the report of all.

A job that fails never stops the others. Its reason is an Outcome, and in a batch a line of failures.jsonl.
"""

import gc
import json
import logging
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import joblib
from joblib.externals.loky.process_executor import TerminatedWorkerError
from tqdm import tqdm

from clamplib.files import InputError, atomic_path, is_done, show

logger = logging.getLogger(__name__)

FAILURES = "failures.jsonl"
BACKENDS = {"ray": "ray", "dask": "distributed"}  # and their packages
RAY_TASKS = 1000  # given to Ray at a time: enough that a cluster which can grow does
NOT_FINITE = "expected finite features, but the model gave NaN or infinity"
DIED = "the process that worked on it died: out of memory, or a crash in a library"


class Outcome(NamedTuple):
    """What became of one of many items: its value, or the reason why there is none."""

    number: int  # of the item, counted from 0
    value: Any = None
    error: str | None = None


@dataclass
class Report:
    """What became of a batch."""

    done: int = 0
    skipped: int = 0
    failures: list[dict[str, str]] = field(default_factory=list)
    remarks: Counter[str] = field(default_factory=Counter)  # what was noted -> in how many files

    def add_failure(self, path: str | os.PathLike, error: BaseException | str) -> None:
        text = error if isinstance(error, str) else describe(error)
        self.failures.append({"file": str(path), "error": text})
        logger.warning("%s", text if show(path) in text else f"{show(path)}: {text}")

    def write(self, output_root: str | Path) -> None:
        """failures.jsonl: an object a line, with `file` and `error`; without failures an old one goes."""
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


def describe(error: BaseException) -> str:
    return str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"


def run_batch(
    function: Callable[[Path, Path], str | None],
    sources: Sequence[os.PathLike],
    targets: Sequence[Path],
    *,
    output_root: str | Path,
    workers: int | None = None,
    backend: str | None = None,
    description: str = "",
) -> Report:
    """Calls function(source, temporary target) for every target that is not done, in parallel, and reports.

    What it returns, if anything, is a remark on the output, which is counted in the report.
    A source may be anything with a path (os.PathLike): a file, or one tune of a file that holds many.
    `workers` None is one a core; `backend` is `ray`, `dask` or None for local processes.
    """
    report = Report()
    jobs = [(s, t) for s, t in zip(sources, targets, strict=True) if not is_done(s, t)]
    report.skipped = len(sources) - len(jobs)
    outcomes = run_jobs(partial(_write, function), jobs, workers=workers, backend=backend)
    for number, remark, error in tqdm(outcomes, total=len(jobs), desc=description, unit="file", disable=not jobs):
        if error:
            report.add_failure(jobs[number][0], error)
            continue
        report.done += 1
        if remark:
            report.remarks[remark] += 1
    report.write(output_root)
    return report


def _write(function: Callable[[os.PathLike, Path], str | None], job: tuple[os.PathLike, Path]) -> str | None:
    source, target = job
    with atomic_path(target) as temporary:
        return function(source, temporary)


def run_jobs(
    function: Callable[[Any], Any],
    jobs: Sequence[Any],
    *,
    workers: int | None = None,
    backend: str | None = None,
    at_once: int | None = None,
) -> Iterator[Outcome]:
    """Calls function(job) for every job in parallel, and gives the outcomes as they are done.

    Args:
        function: is called in other processes, so it must be picklable, as must the jobs.
        workers: processes, here or on Ray; None: one per core. Of a Dask cluster all workers are used.
        backend: "ray" or "dask" joins the cluster that its own environment variables name, or starts one here. There
            a job that was on a lost machine, or in a process that died, is tried again, three times. None: local
            processes.
        at_once: jobs that local processes get at a time, which bounds the outcomes that wait to be taken; None: all.

    Raises:
        ImportError: the backend is not installed.
    """
    numbered = dict(enumerate(jobs))
    if backend and not find_spec(BACKENDS[backend]):
        raise ImportError(f"--backend {backend} needs a package of its own: pip install {BACKENDS[backend]}")
    if backend == "ray":
        yield from _on_ray(function, numbered, workers or RAY_TASKS)
    elif backend == "dask":
        yield from _on_dask(function, numbered)
    else:
        waiting = iter(numbered.items())
        while some := dict(islice(waiting, at_once)):
            with joblib.parallel_config(backend="loky", n_jobs=workers or -1):
                yield from _here(function, some)


def run_in_turn(function: Callable[[Any], Any], jobs: Iterable[Any]) -> Iterator[Outcome]:
    """`run_jobs` in this process, one job after the other."""
    for number, job in enumerate(jobs):
        try:
            yield Outcome(number, function(job))
        except Exception as error:  # one job's fault
            yield Outcome(number, error=describe(error))


def _on_ray(function: Callable, jobs: dict[int, Any], at_once: int) -> Iterator[Outcome]:
    """`run_jobs` of numbered jobs, each a task of one CPU.

    (joblib's own way to Ray, a pool of actors that ask for no CPU, may lie on one node and leaves the others idle.)
    """
    import ray

    if not ray.is_initialized():
        ray.init()
    task, shared = ray.remote(num_cpus=1)(_one), ray.put(function)
    waiting, running = iter(jobs.items()), {}
    try:
        while True:
            for number, job in islice(waiting, at_once - len(running)):
                running[task.remote(shared, number, job)] = number
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


def _on_dask(function: Callable, jobs: dict[int, Any]) -> Iterator[Outcome]:
    """`run_jobs` of numbered jobs."""
    from distributed import Client, KilledWorker, as_completed

    with Client() as client:
        futures = client.map(partial(_one, function), jobs.keys(), jobs.values(), pure=False)
        numbers = dict(zip(futures, jobs, strict=True))
        del futures  # a result is kept as long as its future is
        for done, outcome in as_completed(list(numbers), with_results=True, raise_errors=False):
            number = numbers.pop(done)
            if done.status != "finished":
                error = outcome[1] if isinstance(outcome, tuple) else outcome  # alone where it was cancelled
                outcome = Outcome(number, error=DIED if isinstance(error, KilledWorker) else describe(error))
            yield outcome


def _here(function: Callable, jobs: dict[int, Any]) -> Iterator[Outcome]:
    """`run_jobs` of numbered jobs, with joblib's own processes.

    A job may kill its worker (out of memory, a crash in a C library), and with it the pool; then each half of
    what was left runs in a new one, until the job is alone.
    """
    left = dict(jobs)
    calls = [joblib.delayed(_one)(function, number, job) for number, job in jobs.items()]
    results = joblib.Parallel(return_as="generator_unordered")(calls)
    try:
        for outcome in results:
            del left[outcome.number]
            yield outcome
    except TerminatedWorkerError:
        if len(left) == 1:
            yield Outcome(*left, error=DIED)
            return
        rest = list(left.items())
        yield from _here(function, dict(rest[: len(rest) // 2]))
        yield from _here(function, dict(rest[len(rest) // 2 :]))
    except GeneratorExit:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # joblib says that it was left before the end
            results.close()
        raise


def _one(function: Callable, number: int, job: Any) -> Outcome:
    """Runs in the worker. The error crosses as text, since not every exception can be pickled.

    The garbage collector pauses: looking through the objects of one score again and again takes a third of the time,
    and they are freed by their counts.
    """
    gc.disable()
    try:
        return Outcome(number, function(job))
    except Exception as error:
        return Outcome(number, error=describe(error))
    finally:
        gc.enable()

"""Many files in, one output each: walk, name, skip what is done, run on all cores, report.

Conventions of every batch in this library: the sub-folders of the input folder are kept; an output appears
whole or not at all; an output that is not older than its input is done and is skipped; a file that fails
never stops the others and is listed in `failures.jsonl` in the output folder. File names are data: nothing
here reads a meaning into them but their suffix.
"""

import gc
import hashlib
import json
import logging
import math
import os
import uuid
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from importlib.util import find_spec
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import joblib
import numpy as np
from joblib.externals.loky.process_executor import TerminatedWorkerError
from tqdm import tqdm

logger = logging.getLogger(__name__)

FAILURES = "failures.jsonl"
TEMPORARY = ".clamp-"  # what the names of unfinished outputs begin with
BACKENDS = {"ray": "ray", "dask": "distributed"}  # and their packages
RAY_TASKS = 1000  # given to Ray at a time: enough that a cluster which can grow does
MERT_STATES = 13  # hidden states of MERT-v1-95M
HEAD_BYTES = 4096  # of a .npy file: more than the header of an array of numbers
DIED = "the process that worked on it died: out of memory, or a crash in a library"


class InputError(ValueError):
    """One input is bad; the message says what was expected and what came."""


def show(path: str | os.PathLike) -> str:
    """A path for a message: as it is if it can be printed, else escaped."""
    return str(path) if str(path).isprintable() else ascii(str(path))


def walk(root: str | Path, suffixes: Iterable[str]) -> list[Path]:
    """All files under `root` (or `root` itself) that end in one of `suffixes`, in any case, sorted.

    Raises FileNotFoundError if there is no `root`, InputError if nothing under it matches.
    """
    root, suffixes = Path(root), tuple(suffix.lower() for suffix in suffixes)
    if not root.exists():
        raise FileNotFoundError(f"{show(root)}: expected an input folder or file, there is none")
    files = [root] if root.is_file() else _files_under(root)
    found = [f for f in files if f.name.lower().endswith(suffixes) and not f.name.startswith(TEMPORARY)]
    if not found:
        raise InputError(f"{show(root)}: expected files ending in {' '.join(suffixes)}, found none")
    return sorted(found)


def _files_under(root: Path) -> Iterator[Path]:
    """Links to folders are followed, each folder once; an unreadable folder is an error, not a gap."""

    def fail(error: OSError) -> None:
        raise error

    seen = set()
    for folder, folders, names in os.walk(root, onerror=fail, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(folder, name) for name in names)


def output_paths(inputs: Sequence[Path], root: str | Path, output_root: str | Path, suffix: str) -> list[Path]:
    """One output an input: its path below `root`, with `suffix` in place of its own.

    Inputs that would share an output keep their own suffix in it: a.abc and a.mtf give a.abc.npy, a.mtf.npy.
    """
    relative = [_below(path, root) for path in inputs]
    names = [path.with_suffix(suffix) for path in relative]
    while True:
        shared = {name for name, count in Counter(names).items() if count > 1}
        kept = [p.with_name(p.name + suffix) if n in shared else n for p, n in zip(relative, names, strict=True)]
        if kept == names:
            break
        names = kept
    if shared:
        raise InputError(f"{show(min(shared))}: two inputs would share this output; rename one of them")
    return [Path(output_root, name) for name in names]


def key(path: str | Path, root: str | Path) -> str:
    """What names a piece: its folder below `root` and its name up to the first dot, with / between."""
    relative = _below(path, root)
    return (relative.parent / relative.name.split(".")[0]).as_posix()


def _below(path: str | Path, root: str | Path) -> Path:
    path, root = Path(path), Path(root)
    return Path(path.name) if path == root or root.is_file() else path.relative_to(root)


def is_done(source: str | os.PathLike, target: str | Path) -> bool:
    """Whether `target` is there and not older than `source`. (It is whole: it was renamed into place.)"""
    try:
        return Path(target).stat().st_mtime_ns >= Path(source).stat().st_mtime_ns
    except OSError:  # not there, or a name that the file system does not take: writing it will say so
        return False


def sha256(path: str | os.PathLike) -> str:
    """The hash of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def atomic_path(target: str | Path) -> Iterator[Path]:
    """A temporary path beside `target`, renamed to it at the end and removed on any error.

    Its name is short, so that a target whose name is as long as the file system allows still works.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{TEMPORARY}{uuid.uuid4().hex}{target.suffix}")
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


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
    function: Callable[[Any], Any], jobs: Sequence[Any], *, workers: int | None = None, backend: str | None = None
) -> Iterator[tuple[int, Any, str | None]]:
    """(number, function(job), None) of every job as it is done, or (number, None, why it failed), in parallel.

    `workers` None is one a core; `backend` is `ray`, `dask` or None for local processes. `ray` and `dask` join the
    cluster that their own environment variables name, or start one here; there a job that was on a lost machine, or
    in a process that died, is tried again, three times. Of a Dask cluster all workers are used.
    """
    numbered = dict(enumerate(jobs))
    if backend and not find_spec(BACKENDS[backend]):
        raise ImportError(f"--backend {backend} needs a package of its own: pip install {BACKENDS[backend]}")
    if backend == "ray":
        yield from _on_ray(function, numbered, workers or RAY_TASKS)
    elif backend == "dask":
        yield from _on_dask(function, numbered)
    else:
        with joblib.parallel_config(backend="loky", n_jobs=workers or -1):
            yield from _here(function, numbered)


def _on_ray(function: Callable, jobs: dict[int, Any], at_once: int) -> Iterator[tuple]:
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
                outcome = number, None, DIED if died else describe(error)
            yield outcome
    finally:
        for left in running:
            ray.cancel(left)


def _on_dask(function: Callable, jobs: dict[int, Any]) -> Iterator[tuple]:
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
                outcome = number, None, DIED if isinstance(error, KilledWorker) else describe(error)
            yield outcome


def _here(function: Callable, jobs: dict[int, Any]) -> Iterator[tuple]:
    """`run_jobs` of numbered jobs, with joblib's own processes.

    A job may kill its worker (out of memory, a crash in a C library), and with it the pool; then each half of
    what was left runs in a new one, until the job is alone.
    """
    left = dict(jobs)
    calls = [joblib.delayed(_one)(function, number, job) for number, job in jobs.items()]
    results = joblib.Parallel(return_as="generator_unordered")(calls)
    try:
        for number, *outcome in results:
            del left[number]
            yield number, *outcome
    except TerminatedWorkerError:
        if len(left) == 1:
            yield *left, None, DIED
            return
        rest = list(left.items())
        yield from _here(function, dict(rest[: len(rest) // 2]))
        yield from _here(function, dict(rest[len(rest) // 2 :]))
    except GeneratorExit:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # joblib says that it was left before the end
            results.close()
        raise


def _one(function: Callable, number: int, job: Any) -> tuple:
    """Runs in the worker; the error crosses as text, since not every exception can be pickled.

    The garbage collector pauses: looking through the objects of one score over and over takes a third of the
    time, and they are freed by their counts.
    """
    gc.disable()
    try:
        return number, function(job), None
    except Exception as error:
        return number, None, describe(error)
    finally:
        gc.enable()


# ------------------------------------------------------------------------------------ .npy files


def load_array(path: str | Path) -> np.ndarray:
    """The numbers in a .npy file as float32. InputError where it holds anything but finite real numbers."""
    try:
        with open(path, "rb") as file:
            array = read_array(file)
    except InputError as error:
        raise InputError(f"{show(path)}: {error}") from error
    if not np.isfinite(array).all():
        raise InputError(f"{show(path)}: expected finite float32 numbers, got NaN or infinity")
    return array


def read_array(file: BinaryIO) -> np.ndarray:
    """The numbers of an open .npy file as float32, NaN and infinity among them. InputError at no real numbers."""
    try:
        array = np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InputError(f"expected a .npy file of numbers ({error})") from error
    _check_numbers(array.dtype)
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def stated_shape(head: bytes, size: int) -> tuple[int, ...]:
    """The shape in the header of a .npy file of `size` bytes, by the first HEAD_BYTES of them.

    InputError where these are no .npy file of real numbers, or not all of it.
    """
    start = 10 if head[6:7] == b"\x01" else 12  # of the header's text, by the version of the format
    data = start + int.from_bytes(head[8:start], "little")
    shape, dtype = _parse_header(head[:data])
    _check_numbers(dtype)
    expected = data + math.prod(shape) * dtype.itemsize
    if size < expected:
        raise InputError(f"expected {expected} bytes, as shape {list(shape)} takes, got {size}")
    return shape


@lru_cache(maxsize=4096)  # those of a folder of features differ in few numbers
def _parse_header(header: bytes) -> tuple[tuple[int, ...], np.dtype]:
    file = BytesIO(header)
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version[0] == 1 else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    except (ValueError, EOFError) as error:
        raise InputError(f"expected a .npy file of numbers ({error})") from error
    return shape, dtype


def _check_numbers(dtype: np.dtype) -> None:
    if dtype.kind not in "fiu":
        raise InputError(f"expected real numbers, got dtype {dtype}")


def check_mert_shape(shape: tuple[int, ...], size: int) -> None:
    """InputError unless it is [..., frames, size] of the mean of MERT's hidden states, with at least one frame."""
    if not math.prod(shape) or shape[-1:] != (size,):
        raise InputError(f"expected MERT features [1, frames, {size}], got shape {list(shape)}")
    if len(shape) == 3 and shape[0] == MERT_STATES:
        raise InputError(
            f"expected the mean of MERT's {MERT_STATES} hidden states, got each of them: "
            "extract them with --mean_features"
        )

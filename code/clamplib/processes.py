"""Processes that do jobs within limits of time and memory.

Each job has a process to itself while it runs. A job that takes too long is ended with its process, a job that crashes
ends its process, and no other job notices. (joblib, loky and concurrent.futures have pools that break when one process
dies. Pebble's processes share a lock, which a process that is killed may hold.) loky starts the processes, because its
way needs no `if __name__ == "__main__"` in the caller's script.

Processes that are idle are kept for the next jobs. They end with their parent, even if it is killed.
"""

import faulthandler
import gc
import logging
import math
import multiprocessing
import os
import pickle
import queue
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache, partial
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import cloudpickle
from loky.backend import get_context

from clamplib.files import InputError

try:
    import resource
except ImportError:  # Windows
    resource = None

logger = logging.getLogger(__name__)

BATCH_SECONDS = 0.1  # of short jobs that are sent together, because sending takes .2 ms
MOST_IN_BATCH = 256
LATE_SECONDS = 5.0  # after which the jobs of a batch are tried one by one
BYTES_PER_SECOND = 1_000_000  # of a file, for which it gets more time than the limit
GRACE_SECONDS = 5.0  # after the limit, when a process ends itself that no parent has ended
WATCH_SECONDS = 1.0  # between two looks of a process at whether its parent lives
POLL_SECONDS = 0.1  # between two looks of the parent at whether its caller has had enough
GIB = 2**30
STARTED = b"started"  # the first message of a process
KILL = getattr(signal, "SIGKILL", signal.SIGTERM)  # Windows has the one signal
DIED = "the process that worked on it died: out of memory, or a crash in a library"
# Each worker computes on one core.
ENVIRONMENT = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")


class Outcome(NamedTuple):
    """What became of one of many items: its value, or the reason why there is none."""

    number: int  # of the item, counted from 0
    value: Any = None
    error: str | None = None


@dataclass(frozen=True)
class Limits:
    """What one job may take.

    Args:
        seconds: of time. A large file gets a second more per megabyte.
        memory: GiB that its process may allocate. Only Linux enforces this.
    """

    seconds: float = 60.0
    memory: float = 4.0

    def time(self, job: Any) -> float:
        """Returns the seconds that a job may take: a path, bytes, or a tuple that begins with one."""
        return self.seconds + size_of(job) / BYTES_PER_SECOND


def size_of(job: Any) -> int:
    """Returns the bytes of a job: a path, bytes, or a tuple that begins with one. 0 for others."""
    item = job[0] if isinstance(job, tuple) and job else job
    if isinstance(item, bytes):
        return len(item)
    try:
        return os.stat(item).st_size if isinstance(item, os.PathLike) else 0
    except (OSError, ValueError):  # reading it will say so
        return 0


def describe(error: BaseException) -> str:
    """Returns the reason of a failure, as an Outcome holds it."""
    return str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"


def can_start() -> bool:
    """Whether this process may start others. A daemonic one, such as a worker of Dask's nanny, may not."""
    return not multiprocessing.current_process().daemon


_stop: ContextVar[threading.Event | None] = ContextVar("stop", default=None)


@contextmanager
def stopped_by(event: threading.Event) -> Iterator[None]:
    """Ends the jobs that are run within this block, and their processes, once an event is set in another thread.

    The caller of `run` then gets no outcome of them.
    """
    token = _stop.set(event)
    try:
        yield
    finally:
        _stop.reset(token)


def run(
    function: Callable[[Any], Any],
    jobs: Iterable[tuple[int, Any]],
    workers: int,
    limits: Limits | None,
    ahead: int | None = None,
) -> Iterator[Outcome]:
    """Calls function(job) for every job, in other processes.

    Args:
        function: is sent to the processes by cloudpickle.
        jobs: numbered jobs.
        workers: the number of processes.
        limits: for each job; None: none.
        ahead: outcomes that may wait to be taken; None: any number.

    Yields:
        An outcome per job, as they are done.
    """
    crew = _Crew(function, jobs, workers, limits, ahead or 0)
    thread = threading.Thread(target=crew.run, daemon=True)
    thread.start()
    try:
        while (outcome := crew.outcomes.get()) is not None:
            yield outcome
    finally:
        crew.stopped = True
        while thread.is_alive():  # it may wait for room
            try:
                crew.outcomes.get(timeout=0.01)
            except queue.Empty:
                continue
    if crew.problem:
        raise crew.problem


@dataclass
class _Batch:
    jobs: list[tuple[int, Any]]
    tries: int = 0


class _Crew:
    """The processes that do one list of jobs. A thread runs it, so that they work on while the caller is busy."""

    def __init__(
        self,
        function: Callable[[Any], Any],
        jobs: Iterable[tuple[int, Any]],
        workers: int,
        limits: Limits | None,
        ahead: int,
    ):
        self.function = cloudpickle.dumps(function)
        self.place = os.getcwd(), list(sys.path)  # where a process that was started elsewhere works now
        self.jobs = iter(jobs)
        self.again: deque[_Batch] = deque()
        self.batch_size = 1
        self.workers = workers
        self.limits = limits
        self.outcomes: queue.Queue[Outcome | None] = queue.Queue(ahead)  # None ends them
        self.stopped = False
        self.stop = _stop.get() or threading.Event()
        self.problem: BaseException | None = None  # of the jobs' iterator, or a bug

    def run(self) -> None:
        busy: dict[Connection, _Worker] = {}
        try:
            while not self.stopped and not self.stop.is_set():
                while len(busy) < self.workers and (batch := self._next_batch()):
                    if worker := self._start(batch):
                        busy[worker.connection] = worker
                if not busy:
                    break
                for worker in self._finished(busy):
                    del busy[worker.connection]
        except BaseException as error:
            self.problem = error
        try:
            for worker in busy.values():
                worker.kill()
        finally:
            self.outcomes.put(None)

    def _next_batch(self) -> _Batch | None:
        if self.again:
            return self.again.popleft()
        jobs = []
        for job in self.jobs:
            jobs.append(job)
            if len(jobs) == self.batch_size:
                break
        return _Batch(jobs) if jobs else None

    def _start(self, batch: _Batch) -> "_Worker | None":
        """Sends a batch to a process, if it can be sent."""
        try:
            jobs = cloudpickle.dumps(batch.jobs)
        except Exception as error:  # such as a generator or a socket among the jobs
            if not self._split(batch):
                self._give(Outcome(batch.jobs[0][0], error=describe(error)))
            return None
        seconds = None
        if self.limits:
            seconds = self.limits.time(batch.jobs[0][1])
            if len(batch.jobs) > 1:
                seconds = min(seconds, LATE_SECONDS)
        worker = _idle_worker()
        worker.send(batch, seconds, (self.place, self.function, jobs, self.limits))
        return worker

    def _finished(self, busy: dict[Connection, "_Worker"]) -> list["_Worker"]:
        """Waits for processes, and returns those that have finished, died or been ended."""
        now = time.monotonic()
        patience = min(worker.deadline for worker in busy.values()) - now
        ready = wait(list(busy), min(max(patience, 0), POLL_SECONDS))
        done = [busy[connection] for connection in ready if self._receive(busy[connection])]
        now = time.monotonic()
        late = [worker for worker in busy.values() if worker.deadline <= now and worker not in done]
        for worker in late:
            worker.kill()
            if not self._split(worker.batch):
                self._give(Outcome(worker.batch.jobs[0][0], error=self._too_long()))
        return done + late

    def _too_long(self) -> str:
        return f"reading it took more than {self.limits.seconds:g} seconds; --timeout allows more"

    def _receive(self, worker: "_Worker") -> bool:
        """Takes what a process has sent. Returns whether it has finished, or died."""
        batch = worker.batch
        try:
            message = worker.connection.recv_bytes()
        except (EOFError, OSError):  # the process died
            worker.kill()
            batch.tries += 1
            if not self._split(batch):
                if batch.tries > 1:
                    self._give(Outcome(batch.jobs[0][0], error=DIED))
                else:  # perhaps from outside
                    self.again.append(batch)
            return True
        if message == STARTED:
            worker.starts_batch()
            return False
        outcomes, exhausted, traces = pickle.loads(message)
        for trace in traces:
            logger.debug("%s", trace)
        seconds = time.monotonic() - worker.since
        quick = int(BATCH_SECONDS * len(batch.jobs) / max(seconds, 1e-6))
        self.batch_size = max(1, min(quick, 2 * len(batch.jobs), MOST_IN_BATCH))
        if exhausted:
            worker.kill()
        else:
            _idle.append(worker)
        for outcome in outcomes:
            self._give(pickle.loads(outcome))
        return True

    def _split(self, batch: _Batch) -> bool:
        """Puts the jobs of a batch back, to be done one by one. Returns whether there were several."""
        if len(batch.jobs) == 1:
            return False
        self.again.extend(_Batch([job]) for job in batch.jobs)
        self.batch_size = 1
        return True

    def _give(self, outcome: Outcome) -> None:
        if not self.stopped:
            self.outcomes.put(outcome)


class _Worker:
    """The parent's side of a process."""

    def __init__(self):
        context = get_context("loky")
        self.connection, other = context.Pipe()
        environment = {name: value for name, value in ENVIRONMENT.items() if name not in os.environ}
        self.process = context.Process(target=_serve, args=(other, os.getpid()), daemon=True, env=environment)
        with _starting, _without_interrupts():
            self.process.start()
        other.close()  # so that the end of the process is the end of its messages
        self.started = False  # which may take long on a busy machine, and does not count
        self.deadline = math.inf

    def send(self, batch: _Batch, seconds: float | None, message: tuple) -> None:
        self.batch = batch
        self.seconds = seconds
        if self.started:
            self.starts_batch()
        try:
            self.connection.send_bytes(pickle.dumps((*message, seconds)))
        except OSError:
            pass  # it died while it was idle, which reading from it will show

    def starts_batch(self) -> None:
        self.started = True
        self.since = time.monotonic()
        self.deadline = math.inf if self.seconds is None else self.since + self.seconds

    def kill(self) -> None:
        if self.process.is_alive():
            os.kill(self.process.pid, KILL)
        self.process.join()
        self.connection.close()


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Starts processes that Ctrl-C does not reach, not even while they import: their parent ends them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_idle: deque[_Worker] = deque()  # of this process
_starting = threading.Lock()  # multiprocessing's list of children is not made for threads
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_idle.clear)  # they are the parent's


def _idle_worker() -> _Worker:
    while True:
        try:
            worker = _idle.pop()
        except IndexError:
            return _Worker()
        if worker.process.is_alive():
            return worker
        worker.kill()


# ------------------------------------------------------------------------------------ in the other process


def _serve(connection: Connection, parent: int) -> None:
    """Does jobs until the parent hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends its processes
    watch_parent(parent, partial(os._exit, 1))
    connection.send_bytes(STARTED)
    while True:
        try:
            message = connection.recv_bytes()
        except (EOFError, OSError):
            return
        answer = _answer(message)
        try:
            connection.send_bytes(answer)
        except OSError:
            return


def watch_parent(parent: int, then: Callable[[], None]) -> None:
    """Starts a thread that makes a call when the parent of this process has ended.

    Args:
        parent: its process id.
        then: the call.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_SECONDS)
        then()

    threading.Thread(target=watch, daemon=True).start()


def _answer(message: bytes) -> bytes:
    (folder, path), function, jobs, limits, seconds = pickle.loads(message)
    os.chdir(folder)
    sys.path[:] = path
    if limits:
        _limit_memory(limits.memory)
        # A job that holds Python's lock is not ended by watch_parent; faulthandler needs no lock.
        with open(os.devnull, "w") as nowhere:
            faulthandler.dump_traceback_later(seconds + GRACE_SECONDS, exit=True, file=nowhere)
            try:
                return _outcomes(function, jobs, limits)
            finally:
                faulthandler.cancel_dump_traceback_later()
    return _outcomes(function, jobs, limits)


def _outcomes(function: bytes, jobs: bytes, limits: Limits | None) -> bytes:
    outcomes, traces, exhausted = [], [], False
    for number, job in pickle.loads(jobs):
        try:
            outcome = pickle.dumps(Outcome(number, call(_function(function), job)))
        except MemoryError as error:
            exhausted = True
            outcome = pickle.dumps(Outcome(number, error=_too_much(error, limits)))
        except Exception as error:  # the job's fault. It crosses as text, since not every exception can be pickled
            outcome = pickle.dumps(Outcome(number, error=describe(error)))
            traces.append(traceback.format_exc())
        outcomes.append(outcome)
    return pickle.dumps((outcomes, exhausted, traces))


def _too_much(error: MemoryError, limits: Limits | None) -> str:
    if limits is None:
        return describe(error)
    return f"reading it took more than {limits.memory:g} GiB of memory; --memory allows more"


@lru_cache(maxsize=1)
def _function(pickled: bytes) -> Callable[[Any], Any]:
    return pickle.loads(pickled)


def _limit_memory(memory: float) -> None:
    if resource is None:
        return
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = int(memory * GIB)
    resource.setrlimit(resource.RLIMIT_DATA, (wanted if most < 0 else min(wanted, most), most))


def call(function: Callable[[Any], Any], job: Any) -> Any:
    """Calls function(job) with the garbage collector at rest.

    Looking through the objects of one score again and again takes a third of the time. They are freed by their counts.
    """
    gc.disable()
    try:
        return function(job)
    finally:
        gc.enable()

"""Threads for work that takes long: a bounded number at once, and nobody has to wait for one that is not wanted."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeVar

from loky import cpu_count

from clamplib.processes import stopped_by

T = TypeVar("T")
ENDING = "the server is being stopped"  # why work has no result
AT_ONCE = max(4, cpu_count())  # jobs in other processes; more than one per core, because some may be slow


class Slots:
    """Runs functions in threads of their own, at most `number` at once. The program ends without waiting for them.

    The processes that a function uses (see `processes.run`) end when its caller is cancelled, and with `end`.
    """

    def __init__(self, number: int):
        self._free = asyncio.Semaphore(number)
        self._stops: set[threading.Event] = set()  # of the functions that run
        self._ended = False

    async def run(self, function: Callable[[], T]) -> T:
        """Waits for a free slot, and for the result of the function."""
        await self._free.acquire()
        loop = asyncio.get_running_loop()
        result: Future[T] = Future()
        stop = threading.Event()
        self._stops.add(stop)
        if self._ended:
            stop.set()

        def work() -> None:
            try:
                with stopped_by(stop):
                    result.set_result(function())
            except BaseException as error:
                result.set_exception(error)
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._free.release)

        result.set_running_or_notify_cancel()
        threading.Thread(target=work, daemon=True).start()
        try:
            return await asyncio.wrap_future(result)
        finally:
            stop.set()
            self._stops.discard(stop)

    def end(self) -> None:
        """Ends the processes of all functions, also of those that still wait for a slot."""
        self._ended = True
        for stop in self._stops:
            stop.set()

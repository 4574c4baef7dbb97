"""Saving results soon after they are made, and many at a time."""

from collections.abc import Callable
from queue import SimpleQueue
from threading import Event, Lock, Thread
from typing import Any

SAVE_SECONDS = 0.5  # how long a result may wait; a commit takes some milliseconds, however many results it has
SAVED_AT_ONCE = 1024  # results that may wait: 3 MiB of vectors of 768 values


class Saver:
    """Saves what is added to it, every half second, in a thread of its own.

    Whatever stops the program loses at most a second's results, even while the next one takes long to make. A `with`
    block saves the rest at its end, also after an exception.

    Args:
        save: stores a list of what was added. If it raises an exception, the next `add` or the end of the block raises
            it again, and nothing more is saved.
    """

    def __init__(self, save: Callable[[list], None]):
        self._save = save
        self._waiting: SimpleQueue = SimpleQueue()
        self._saving = Lock()
        self._ended = Event()
        self._thread: Thread | None = None
        self._error: Exception | None = None

    def add(self, result: Any) -> None:
        """Takes a result, which is saved soon. Where very many wait, it saves them first."""
        if self._error:
            raise self._error
        if not self._thread:
            self._thread = Thread(target=self._save_regularly, daemon=True)
            self._thread.start()
        self._waiting.put(result)
        if self._waiting.qsize() >= SAVED_AT_ONCE:
            self._save_waiting()

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self._ended.set()
        self._save_waiting()
        if self._error and kind is None:
            raise self._error

    def _save_regularly(self) -> None:
        while not self._ended.wait(SAVE_SECONDS):
            self._save_waiting()

    def _save_waiting(self) -> None:
        with self._saving:
            results = [self._waiting.get() for _ in range(self._waiting.qsize())]
            if not results or self._error:
                return
            try:
                self._save(results)
            except Exception as error:
                self._error = error
            except BaseException:  # Ctrl-C: the end of the block saves them
                for result in results:
                    self._waiting.put(result)
                raise

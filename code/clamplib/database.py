"""SQLite files in the user's cache folder, which no answer depends on."""

import logging
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from clamplib.files import InputError, show

logger = logging.getLogger(__name__)

ASKED_AT_ONCE = 500  # keys per query; SQLite takes 999
WAIT_SECONDS = 60  # how long another process may write


def cache_folder() -> Path:
    """Returns $CLAMP3_CACHE, or else clamp3/ of the user's cache folder."""
    if own := os.environ.get("CLAMP3_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "clamp3")


class Database:
    """A SQLite file that several processes and threads can use at once: every call opens it again.

    A file that cannot be read and written, or a full disk, costs no answer: a warning says so once, nothing is found
    and nothing is kept.

    Args:
        path: the file.
        tables: SQL that makes its tables.
    """

    def __init__(self, path: str | Path, tables: str):
        self.path = Path(path)
        self._tables = tables
        self._works = True

    def select(self, query: str, names: Iterable[str | bytes]) -> list[tuple]:
        """Returns the rows of a query that ends in "WHERE name IN"."""
        names = list(names)
        rows = []
        with self._warned(), self._open() as database:
            for start in range(0, len(names), ASKED_AT_ONCE):
                asked = names[start : start + ASKED_AT_ONCE]
                rows += database.execute(f"{query} ({','.join('?' * len(asked))})", asked)
            return rows
        return []

    def write(self, statement: str, rows: list[tuple]) -> None:
        """Executes a statement for all rows, or for none."""
        if rows and self._works:
            with self._warned(), self._open() as database:
                database.executemany(statement, rows)

    @contextmanager
    def _warned(self) -> Iterator[None]:
        """Turns the first error into a warning, and others into nothing."""
        try:
            yield
        except InputError as error:
            if self._works:
                logger.warning("%s", error)
            self._works = False

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """A connection whose changes are kept unless an error is raised."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            database = sqlite3.connect(self.path, timeout=WAIT_SECONDS)
            try:
                with database:
                    database.executescript(self._tables)
                    yield database
            finally:
                database.close()
        except (sqlite3.DatabaseError, OSError) as error:
            raise InputError(
                f"{show(self.path)}: expected a cache that can be read and written ({error}), so nothing is kept. "
                "Remove it, or set CLAMP3_CACHE to another folder."
            ) from error


def path_name(path: str | os.PathLike) -> bytes:
    """A path as it is stored: absolute, and in bytes, because not every path is text."""
    return os.fsencode(os.path.abspath(path))

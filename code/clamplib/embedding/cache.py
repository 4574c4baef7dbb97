"""Vectors that were made before, by the content of their file and all that made them.

A SQLite file, so that several processes may use it at once. The hash of a file's content is kept too, as long as
nothing about the file (size, times, inode) has changed.
"""

import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from clamplib.files import InputError, sha256, show

SETTLED_SECONDS = 2  # a file that changed so lately may change again without a trace in its times
ASKED_AT_ONCE = 500  # keys in a query; SQLite takes 999
WAIT_SECONDS = 60  # for another process that writes

TABLES = """
CREATE TABLE IF NOT EXISTS vectors (key TEXT PRIMARY KEY, vector BLOB) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS contents (path BLOB PRIMARY KEY, state TEXT, sha256 TEXT) WITHOUT ROWID;
"""


def default_cache() -> Path:
    """vectors.sqlite in $CLAMP3_CACHE, else in clamp3/ of the user's cache folder."""
    if own := os.environ.get("CLAMP3_CACHE"):
        return Path(own, "vectors.sqlite")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "clamp3", "vectors.sqlite")


class VectorCache:
    """float32 vectors by key. Every call opens the file anew, so that it crosses processes and threads."""

    def __init__(self, path: str | Path | None = None):
        self.path = Path(path or default_cache())

    def content_hashes(self, paths: Iterable[str | os.PathLike]) -> dict[str, str]:
        """SHA-256 of the content of each file, by path; read only if a file may have changed since. Unreadable
        ones are left out.
        """
        states = {path: state for path in {os.fspath(path) for path in paths} if (state := _state(path))}
        known = self._read("SELECT path, state, sha256 FROM contents WHERE path IN", map(_name, states))
        kept = {path: rest for path, *rest in known}
        hashes, new = {}, []
        for path, state in states.items():
            name, began = _name(path), time.time()
            kept_state, content = kept.get(name, (None, None))
            if kept_state != state:
                try:
                    content = sha256(path)
                    stat = os.stat(path)
                    settled = max(stat.st_mtime, stat.st_ctime) < began - SETTLED_SECONDS
                except OSError:
                    continue
                if settled and _state(path) == state:
                    new.append((name, state, content))
            hashes[path] = content
        self._write("REPLACE INTO contents VALUES (?, ?, ?)", new)
        return hashes

    def get(self, keys: Iterable[str]) -> dict[str, np.ndarray]:
        """The vectors [D] that are there."""
        rows = self._read("SELECT key, vector FROM vectors WHERE key IN", keys)
        return {key: np.frombuffer(vector, "<f4") for key, vector in rows}

    def put(self, vectors: Mapping[str, np.ndarray]) -> None:
        """Keeps vectors [D]."""
        rows = [(key, vector.astype("<f4").tobytes()) for key, vector in vectors.items()]
        self._write("REPLACE INTO vectors VALUES (?, ?)", rows)

    def _read(self, query: str, names: Iterable[str | bytes]) -> list[tuple]:
        names, rows = list(names), []
        with self._open() as database:
            for start in range(0, len(names), ASKED_AT_ONCE):
                some = names[start : start + ASKED_AT_ONCE]
                rows += database.execute(f"{query} ({','.join('?' * len(some))})", some)
        return rows

    def _write(self, statement: str, rows: list[tuple]) -> None:
        if rows:
            with self._open() as database:
                database.executemany(statement, rows)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """A connection whose changes are kept if no error comes."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            database = sqlite3.connect(self.path, timeout=WAIT_SECONDS)
            try:
                with database:
                    database.executescript(TABLES)
                    yield database
            finally:
                database.close()
        except (sqlite3.DatabaseError, OSError) as error:
            raise InputError(
                f"{show(self.path)}: expected a cache of vectors that can be read and written ({error}). "
                "Remove it, or set CLAMP3_CACHE to another folder."
            ) from error


def _name(path: str) -> bytes:
    """A path as the cache knows it: not every one is text."""
    return os.fsencode(os.path.abspath(path))


def _state(path: str) -> str | None:
    """What changes when a file's content does; None for what cannot be read."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}"

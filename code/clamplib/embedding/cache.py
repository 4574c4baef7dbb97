"""A cache of embeddings, whose keys name the content of a file and everything that made its embedding.

The cache is a SQLite file, so that several processes can use it at once. It also keeps the hash of each file's content,
which is valid until the file changes in size, times or inode.
"""

import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from clamplib.files import InputError, sha256, show

SETTLED_SECONDS = 2  # a file that changed this recently may change again and keep its times
ASKED_AT_ONCE = 500  # keys per query; SQLite takes 999
WAIT_SECONDS = 60  # how long another process may write

TABLES = """
CREATE TABLE IF NOT EXISTS vectors (key TEXT PRIMARY KEY, vector BLOB) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS contents (path BLOB PRIMARY KEY, state TEXT, sha256 TEXT) WITHOUT ROWID;
"""


def default_cache() -> Path:
    """Returns the path of vectors.sqlite, in $CLAMP3_CACHE or else in clamp3/ of the user's cache folder."""
    if own := os.environ.get("CLAMP3_CACHE"):
        return Path(own, "vectors.sqlite")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "clamp3", "vectors.sqlite")


class VectorCache:
    """Stores float32 vectors by key.

    Every call opens the file again, so that one object can be used in several processes and threads. All methods raise
    InputError for a file that cannot be read and written as a cache.

    Args:
        path: the file; None: `default_cache()`.
    """

    def __init__(self, path: str | Path | None = None):
        self.path = Path(path or default_cache())

    def content_hashes(self, paths: Iterable[str | os.PathLike]) -> dict[str, str]:
        """Computes the SHA-256 of files, and reads only those that may have changed since the last time.

        Args:
            paths: files.

        Returns:
            Hashes by path. Files that cannot be read are left out.
        """
        states = {}
        for path in map(os.fspath, paths):
            if state := _state(path):
                states[path] = state
        kept = {}
        for name, state, content in self._read(
            "SELECT path, state, sha256 FROM contents WHERE path IN", map(_name, states)
        ):
            kept[name] = (state, content)
        hashes = {}
        changed = []
        for path, state in states.items():
            name = _name(path)
            kept_state, content = kept.get(name, (None, None))
            if kept_state != state:
                began = time.time()
                try:
                    content = sha256(path)
                    stat = os.stat(path)
                except OSError:
                    continue
                settled = max(stat.st_mtime, stat.st_ctime) < began - SETTLED_SECONDS
                if settled and _state(path) == state:
                    changed.append((name, state, content))
            hashes[path] = content
        self._write("REPLACE INTO contents VALUES (?, ?, ?)", changed)
        return hashes

    def get(self, keys: Iterable[str]) -> dict[str, np.ndarray]:
        """Returns the vectors float32 [D] of those keys that the cache has."""
        rows = self._read("SELECT key, vector FROM vectors WHERE key IN", keys)
        return {key: np.frombuffer(vector, "<f4") for key, vector in rows}

    def put(self, vectors: Mapping[str, np.ndarray]) -> None:
        """Stores vectors [D] by key."""
        rows = [(key, vector.astype("<f4").tobytes()) for key, vector in vectors.items()]
        self._write("REPLACE INTO vectors VALUES (?, ?)", rows)

    def _read(self, query: str, names: Iterable[str | bytes]) -> list[tuple]:
        names = list(names)
        rows = []
        with self._open() as database:
            for start in range(0, len(names), ASKED_AT_ONCE):
                asked = names[start : start + ASKED_AT_ONCE]
                rows += database.execute(f"{query} ({','.join('?' * len(asked))})", asked)
        return rows

    def _write(self, statement: str, rows: list[tuple]) -> None:
        if rows:
            with self._open() as database:
                database.executemany(statement, rows)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """A connection whose changes are kept unless an error is raised."""
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
    """A path as it is stored: absolute, and in bytes, because not every path is text."""
    return os.fsencode(os.path.abspath(path))


def _state(path: str) -> str | None:
    """Facts about a file that change with its content; None if it cannot be read."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}"

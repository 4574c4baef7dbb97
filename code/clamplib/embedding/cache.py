"""A cache of embeddings, whose keys name the content of a file and everything that made its embedding.

The cache is a SQLite file, so that several processes can use it at once. It also keeps the hash of each file's content,
which is valid until the file changes in size, times or inode.
"""

import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from clamplib.database import Database, cache_folder, path_name
from clamplib.embedding.saving import Saver
from clamplib.files import InputError, file_state, sha256

HASHED_AT_ONCE = 4096  # files whose states and old hashes are in memory together
SETTLED_SECONDS = 2  # a file that changed this recently may change again and keep its times

TABLES = """
CREATE TABLE IF NOT EXISTS vectors (key TEXT PRIMARY KEY, vector BLOB) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS contents (path BLOB PRIMARY KEY, state TEXT, sha256 TEXT) WITHOUT ROWID;
"""


class VectorCache(Database):
    """Stores float32 vectors by key (see `database` for what happens if it cannot).

    Args:
        path: the file; None: vectors.sqlite in the cache folder.
    """

    def __init__(self, path: str | Path | None = None):
        super().__init__(path or cache_folder() / "vectors.sqlite", TABLES)

    def content_hashes(self, paths: Iterable[str | os.PathLike]) -> dict[str, str]:
        """Computes the SHA-256 of files, and reads only those that may have changed since the last time.

        Args:
            paths: files.

        Returns:
            Hashes by path. Files that cannot be read are left out.
        """
        paths = list(map(os.fspath, paths))
        hashes = {}
        with Saver(lambda rows: self.write("REPLACE INTO contents VALUES (?, ?, ?)", rows)) as saver:
            for start in range(0, len(paths), HASHED_AT_ONCE):
                hashes |= self._hashes(paths[start : start + HASHED_AT_ONCE], saver)
        return hashes

    def _hashes(self, paths: list[str], saver: Saver) -> dict[str, str]:
        states = {}
        for path in paths:
            if state := file_state(path):
                states[path] = state
        kept = {}
        for name, state, content in self.select(
            "SELECT path, state, sha256 FROM contents WHERE path IN", map(path_name, states)
        ):
            kept[name] = (state, content)
        hashes = {}
        for path, state in states.items():
            name = path_name(path)
            kept_state, content = kept.get(name, (None, None))
            if kept_state != state:
                began = time.time()
                try:
                    content = sha256(path)
                    stat = os.stat(path)
                except (OSError, InputError):
                    continue
                settled = max(stat.st_mtime, stat.st_ctime) < began - SETTLED_SECONDS
                if settled and file_state(path) == state:
                    saver.add((name, state, content))
            hashes[path] = content
        return hashes

    def get(self, keys: Iterable[str]) -> dict[str, np.ndarray]:
        """Returns the vectors float32 [D] of those keys that the cache has."""
        rows = self.select("SELECT key, vector FROM vectors WHERE key IN", keys)
        whole = [(key, vector) for key, vector in rows if isinstance(vector, bytes) and len(vector) % 4 == 0]
        return {key: np.frombuffer(vector, "<f4") for key, vector in whole}

    def put(self, vectors: Mapping[str, np.ndarray]) -> None:
        """Stores vectors [D] by key."""
        rows = [(key, vector.astype("<f4").tobytes()) for key, vector in vectors.items()]
        self.write("REPLACE INTO vectors VALUES (?, ?)", rows)

"""What each output was made from.

A batch skips an output that is up to date. Time stamps alone do not tell: `cp -p`, rsync and archives give changed
files old ones. So the cache folder holds the size, the times and the SHA-256 of the input of each output. An input
whose size and times are the same is not read again; of others the content decides. Outputs that it does not know, such
as those of other programs or machines, are up to date if they are not older than their input.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path

from clamplib.database import Database, cache_folder, path_name
from clamplib.files import InputError, file_state, not_older, sha256

NOTE_SECONDS = 1.0  # how long outputs wait to be noted together: each time takes some milliseconds
TABLES = "CREATE TABLE IF NOT EXISTS outputs (path BLOB PRIMARY KEY, state TEXT, sha256 TEXT) WITHOUT ROWID;"

Job = tuple[os.PathLike, Path]  # an input, and its output


class Manifest:
    """Notes what outputs were made from. Use it in a `with` block, at whose end all is written."""

    def __init__(self):
        self._database = Database(cache_folder() / "outputs.sqlite", TABLES)
        self._new: list[tuple] = []
        self._written = time.monotonic()

    def __enter__(self) -> "Manifest":
        return self

    def __exit__(self, *_) -> None:
        self._write()

    def missing(self, jobs: Sequence[Job]) -> list[Job]:
        """Returns the jobs whose output is not there, or was not made from the input as it is now."""
        made = [job for job in jobs if os.path.isfile(job[1])]
        names = {path_name(target): (source, target) for source, target in made}
        known = {}
        query = "SELECT path, state, sha256 FROM outputs WHERE path IN"
        for name, state, content in self._database.select(query, names):
            known[name] = (state, content)
        done = {target for name, (source, target) in names.items() if self._is_done(source, target, known.get(name))}
        return [job for job in jobs if job[1] not in done]

    def _is_done(self, source: os.PathLike, target: Path, known: tuple[str, str] | None) -> bool:
        if known is None:
            return not_older(target, source)
        state = file_state(source)
        if state == known[0]:
            return True
        if content_of(source, state) != known[1]:
            return False
        self.add(target, state, known[1])
        return True

    def add(self, target: str | Path, state: str | None, content: str) -> None:
        """Notes what an output was made from: the state and the `content_of` its input."""
        self._new.append((path_name(target), state or "", content))
        if time.monotonic() - self._written >= NOTE_SECONDS:
            self._write()

    def _write(self) -> None:
        self._database.write("REPLACE INTO outputs VALUES (?, ?, ?)", self._new)
        self._new = []
        self._written = time.monotonic()


def content_of(source: str | os.PathLike, state: str | None) -> str:
    """Returns the SHA-256 of a file, or "" if it has changed since it had a state, or cannot be read."""
    try:
        content = sha256(source)
    except (OSError, InputError):
        return ""
    return content if file_state(source) == state else ""

"""Bytes of training files by path: of files of their own, or of members of shards.

A shard is an uncompressed tar, and a path goes through it as through a folder: `packed/shard-00000.tar/a.abc`.
Millions of small files are slow to list, to copy and to keep; a tar holds them in one, and every tool makes one,
lists it and unpacks it (`tar cf scores.tar scores`); WebDataset streams the same files. Its members lie in it
byte by byte, so one walk over its headers tells all sizes before anything is read, and then an item is one read
at its offset, in any order: batches of similar length and exact resuming need just that, which a stream does not
give. (safetensors holds tensors, and a score is text.)

Nothing is unpacked: a member's name is only compared, never a path on the disk.
"""

import os
import posixpath
import re
import stat
import tarfile
import weakref
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from clamplib.files import InputError, show

SUFFIX = ".tar"
OPEN_SHARDS = 64  # in a process, at most
BLOCK = 512  # bytes: a tar is made of blocks of this size


@dataclass(frozen=True, slots=True)
class File:
    """A file of its own, or a member of a shard; it can be sent to other processes."""

    path: Path  # of a member: the shard's, with the member's name behind
    size: int  # bytes
    shard: Path | None = None
    offset: int = 0  # of a member, in its shard

    def read(self, count: int | None = None) -> bytes:
        """All bytes, or the first `count`. InputError where the shard has lost them."""
        if self.shard is None:
            with open(self.path, "rb") as file:
                return file.read(count)
        count = self.size if count is None else min(count, self.size)
        data = _open(self.shard).read(self.offset, count)
        if len(data) < count:
            raise InputError(f"{show(self.path)}: expected {count} bytes in the shard, got {len(data)}: it was cut")
        return data


class _OpenShard:
    """A shard kept open. Reads name their place, so a process and those that it forks do not disturb each other."""

    def __init__(self, path: Path):
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)

    def read(self, offset: int, count: int) -> bytes:
        return os.pread(self._descriptor, count, offset)


_open = lru_cache(maxsize=OPEN_SHARDS)(_OpenShard)  # each process has its own


class Finder:
    """Finds files by their paths; a shard's headers are read once, when the first of its members is asked for."""

    def __init__(self) -> None:
        self._shards: dict[str, dict[str, tuple] | InputError] = {}

    def find(self, path: Path) -> File | None:
        """The file at a path, or None. InputError where the path goes through a shard that cannot be read."""
        name = path.as_posix()
        for place in re.finditer(rf"{re.escape(SUFFIX)}/", name):
            shard, member = name[: place.end() - 1], name[place.end() :]
            if found := self._members(shard).get(member):
                return File(path, *found)
        try:
            status = path.stat()
        except (OSError, ValueError):  # not there, or no name that a file could have
            return None
        return File(path, status.st_size) if stat.S_ISREG(status.st_mode) else None

    def _members(self, shard: str) -> dict[str, tuple]:
        if shard not in self._shards:
            try:
                self._shards[shard] = _read_headers(Path(shard)) if os.path.isfile(shard) else {}
            except InputError as error:
                self._shards[shard] = error
        found = self._shards[shard]
        if isinstance(found, InputError):
            raise InputError(str(found))
        return found


def members(shard: str | Path) -> dict[str, File]:
    """All files in a shard by their names in it. InputError where it cannot be read."""
    shard = Path(shard)
    return {name: File(shard / name, *found) for name, found in _read_headers(shard).items()}


def _read_headers(shard: Path) -> dict[str, tuple[int, Path, int]]:
    """Size, shard and offset of every member; where a name comes twice the later one counts, as in unpacking."""
    found = {}
    try:
        with open(shard, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # else it keeps all that it has read
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    advice = "tar --dereference --hard-dereference packs files"
                    raise tarfile.ReadError(f"{member.name} is a link or the like; {advice}")
                found[posixpath.normpath(member.name).lstrip("/")] = member.size, shard, member.offset_data
            file.seek(tar.offset)
            if file.read(BLOCK) != bytes(BLOCK):  # else a broken header would pass for the end
                raise tarfile.ReadError("there is no end mark after its last member: it was cut or broken")
    except (OSError, tarfile.TarError) as error:
        raise InputError(f"{show(shard)}: expected an uncompressed tar of files ({error})") from error
    return found

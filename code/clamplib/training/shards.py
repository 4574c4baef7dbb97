"""Reads training files by path, from the disk or from shards.

A shard is an uncompressed tar, and a path goes through it as through a folder: `packed/shard-00000.tar/a.abc`.
Millions of small files are slow to list and to copy. A tar keeps them in one file, every system can make, list and
unpack it (`tar cf scores.tar scores`), and WebDataset streams it. One pass over its headers gives the size and the
place of every member; then each item is one read, in any order. Batches of similar length and exact resuming need
that order, which a stream does not give. (safetensors holds tensors, and a score is text.)

Nothing is unpacked: the name of a member is compared, and never used as a path on the disk.
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
    """A file on the disk or a member of a shard. It can be sent to other processes.

    Attributes:
        path: the path on the disk; of a member, the path of the shard followed by the member's name.
        size: in bytes.
        shard: the shard of a member, else None.
        offset: of a member in its shard, in bytes.
    """

    path: Path
    size: int
    shard: Path | None = None
    offset: int = 0

    def read(self, count: int | None = None) -> bytes:
        """Reads all bytes, or the first `count`.

        Raises:
            InputError: the file or the shard cannot be read, or the shard was cut after its headers were read.
        """
        try:
            if self.shard is None:
                with open(self.path, "rb") as file:
                    return file.read(count)
            count = self.size if count is None else min(count, self.size)
            data = _open(self.shard).read(self.offset, count)
        except OSError as error:
            raise InputError(f"{show(self.path)}: {error.strerror or error}") from error
        if len(data) < count:
            raise InputError(f"{show(self.path)}: expected {count} bytes in the shard, got {len(data)}: it was cut")
        return data


class _OpenShard:
    """An open shard. Each read states its offset, so that forked processes can share the descriptor."""

    def __init__(self, path: Path):
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)

    def read(self, offset: int, count: int) -> bytes:
        return os.pread(self._descriptor, count, offset)


_open = lru_cache(maxsize=OPEN_SHARDS)(_OpenShard)  # each process has its own


class Finder:
    """Finds files by their paths. The headers of a shard are read once, when its first member is asked for."""

    def __init__(self) -> None:
        self._shards: dict[str, dict[str, tuple] | InputError] = {}

    def find(self, path: Path) -> File | None:
        """Finds the file at a path.

        Returns:
            The file, or None where there is none.

        Raises:
            InputError: the path leads through a shard that cannot be read.
        """
        name = path.as_posix()
        for place in re.finditer(rf"{re.escape(SUFFIX)}/", name):
            shard, member = name[: place.end() - 1], name[place.end() :]
            if found := self._members(shard).get(member):
                return File(path, *found)
        try:
            status = path.stat()
        except (OSError, ValueError):  # it does not exist, or no file can have this name
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
    """Lists the files in a shard.

    Returns:
        The files by their names in the shard. Where a name occurs twice, the later member counts, as in unpacking.

    Raises:
        InputError: the shard cannot be read, is compressed or cut, or holds a link.
    """
    shard = Path(shard)
    return {name: File(shard / name, *found) for name, found in _read_headers(shard).items()}


def _read_headers(shard: Path) -> dict[str, tuple[int, Path, int]]:
    """Size, shard and offset of every member."""
    found = {}
    try:
        with open(shard, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # else it keeps the headers of all members
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    advice = "tar --dereference --hard-dereference packs files"
                    raise tarfile.ReadError(f"{member.name} is a link or the like; {advice}")
                found[posixpath.normpath(member.name).lstrip("/")] = member.size, shard, member.offset_data
            file.seek(tar.offset)
            if file.read(BLOCK) != bytes(BLOCK):  # tarfile takes a broken header for the end
                raise tarfile.ReadError("there is no end mark after its last member: it was cut or broken")
    except (OSError, ValueError, tarfile.TarError) as error:  # ValueError: a size that no file has
        raise InputError(f"{show(shard)}: expected an uncompressed tar of files ({error})") from error
    return found

"""Files: finding them, naming their outputs, writing whole or not at all, and reading arrays.

Conventions of every batch in this library: the sub-folders of the input folder are kept; an output appears whole or not
at all; an output that is up to date is skipped (see `manifest`). Only regular files are read. File names are data:
nothing here reads a meaning into them but their suffix.
"""

import hashlib
import json
import math
import os
import stat
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from tokenize import TokenError
from typing import BinaryIO, Literal, NamedTuple

import numpy as np

TEMPORARY = ".clamp-"  # what the names of unfinished outputs begin with
CAUSE_LENGTH = 300  # characters of another error in a message
EXCERPT = 60  # characters of a value in a message
MOST_NESTED = 100  # lists and objects within each other; more could exhaust Python's stack later
OBJECT_BYTES = 1 << 24  # of a file that describes a model or a folder; real ones have kilobytes
LEFT_SECONDS = 86_400  # after which an unfinished output is nobody's
PROBE_BYTES = 4096  # that an output folder must take
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
HEAD_BYTES = 4096  # of a .npy file: more than the header of an array of numbers
NPY_VERSIONS = ((1, 0), (2, 0), (3, 0))
# What numpy raises for a header that is none: it evaluates the header as Python's literals.
NOT_NPY = (ValueError, EOFError, SyntaxError, TokenError, TypeError, MemoryError, OverflowError, RecursionError)


class InputError(ValueError):
    """One input is bad; the message says what was expected and what came."""


def show(path: str | os.PathLike) -> str:
    """A path for a message: as it is if it can be printed, else escaped."""
    return str(path) if str(path).isprintable() else ascii(str(path))


def escape(text: str) -> str:
    """A text with escapes in place of what would steer a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def cause_of(error: BaseException) -> str:
    """The kind of an error and the beginning of its message, in one line, for the message of another error."""
    return escape(f"{type(error).__name__}: {' '.join(str(error).split())}"[:CAUSE_LENGTH])


def excerpt(value: object) -> str:
    """The beginning of a value as Python writes it, for a message."""
    text = repr(value)
    return text if len(text) <= EXCERPT else text[:EXCERPT] + " …"


def read_object(path: str | Path, kind: str) -> dict:
    """Reads an object from a JSON file. InputError, which says what `kind` of thing was expected, for anything else."""
    path = Path(path)
    expected = f"{show(path)}: expected the JSON of {kind}, an object"
    check_file(path)
    if (size := path.stat().st_size) > OBJECT_BYTES:
        raise InputError(f"{expected}, at most {OBJECT_BYTES:,} bytes, got {size:,}")
    try:
        return parse_object(path.read_text(encoding="utf-8"), expected)
    except UnicodeDecodeError as error:
        raise InputError(f"{expected} ({cause_of(error)})") from error


def write_json(path: str | Path, value: object) -> None:
    """Writes a value as a JSON file, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def parse_object(text: str, expected: str) -> dict:
    """Parses a JSON object. InputError, which begins with what was `expected`, for anything else."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:  # RecursionError: it is nested too deeply
        raise InputError(f"{expected} ({cause_of(error)})") from error
    if not isinstance(values, dict):
        raise InputError(f"{expected}, got {type(values).__name__}")
    if values_at_depth(values, MOST_NESTED):
        raise InputError(f"{expected}, got one of more than {MOST_NESTED} lists and objects within each other")
    return values


def values_at_depth(value: object, depth: int) -> list:
    """The values that lie within `depth` lists and objects, in what json.loads returned."""
    level = [value]
    for _ in range(depth):
        inner = []
        for outer in level:
            if isinstance(outer, dict):
                inner += outer.values()
            elif isinstance(outer, list):
                inner += outer
        level = inner
    return level


def walk(root: str | Path, suffixes: Iterable[str]) -> list[Path]:
    """All files under `root` (or `root` itself) that end in one of `suffixes`, in any case, sorted.

    Raises FileNotFoundError if there is no `root`, InputError if nothing under it matches.
    """
    root, suffixes = Path(root), tuple(suffix.lower() for suffix in suffixes)
    if not root.exists():
        raise FileNotFoundError(f"{show(root)}: expected an input folder or file, there is none")
    files = _files_under(root) if root.is_dir() else [root]
    found = [f for f in files if f.name.lower().endswith(suffixes) and not f.name.startswith(TEMPORARY)]
    if not found:
        raise InputError(f"{show(root)}: expected files ending in {' '.join(suffixes)}, found none")
    return sorted(found)


def _files_under(root: Path) -> Iterator[Path]:
    """Links to folders are followed, each folder once; an unreadable folder is an error, not a gap."""

    def fail(error: OSError) -> None:
        raise error

    seen = set()
    for folder, folders, names in os.walk(root, onerror=fail, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(folder, name) for name in names)


def output_paths(inputs: Sequence[Path], root: str | Path, output_root: str | Path, suffix: str) -> list[Path]:
    """One output an input: its path below `root`, with `suffix` in place of its own.

    Inputs that would share an output keep their own suffix in it: a.abc and a.mtf give a.abc.npy, a.mtf.npy.
    """
    relative = [_below(path, root) for path in inputs]
    names = [path.with_suffix(suffix) for path in relative]
    while True:
        shared = {name for name, count in Counter(names).items() if count > 1}
        kept = [p.with_name(p.name + suffix) if n in shared else n for p, n in zip(relative, names, strict=True)]
        if kept == names:
            break
        names = kept
    if shared:
        raise InputError(f"{show(min(shared))}: two inputs would share this output; rename one of them")
    return [Path(output_root, name) for name in names]


def key(path: str | Path, root: str | Path) -> str:
    """What names a piece: its folder below `root` and its name up to the first dot, with / between."""
    relative = _below(path, root)
    return (relative.parent / relative.name.split(".")[0]).as_posix()


def _below(path: str | Path, root: str | Path) -> Path:
    path, root = Path(path), Path(root)
    return Path(path.name) if path == root or root.is_file() else path.relative_to(root)


def check_file(path: str | os.PathLike) -> None:
    """Raises InputError unless there is a regular file. Reading a named pipe or a device might never end."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError as error:
        raise InputError(f"{show(path)}: there is no such file") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{show(path)}: expected a file that can be read ({reason})") from error
    if not stat.S_ISREG(mode):
        kind = KINDS.get(stat.S_IFMT(mode), "something else")
        raise InputError(f"{show(path)}: expected a regular file, got {kind}")


def check_writable(folder: str | Path) -> None:
    """Makes an output folder if there is none. InputError if nothing can be written there, before work is lost.

    What kills left unfinished there a day ago or longer is removed.
    """
    try:
        for left in Path(folder).glob(f"{TEMPORARY}*"):
            if left.is_file() and time.time() - left.stat().st_mtime > LEFT_SECONDS:
                left.unlink(missing_ok=True)
        with atomic_path(Path(folder, "probe"), keep=False) as temporary:
            temporary.write_bytes(bytes(PROBE_BYTES))
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{show(folder)}: expected an output folder that can be written to ({reason})") from error


def not_older(target: str | Path, source: str | os.PathLike) -> bool:
    """Whether both files are there, and `target` is not older than `source`."""
    try:
        return os.stat(target).st_mtime_ns >= os.stat(source).st_mtime_ns
    except (OSError, ValueError):  # not there, or a name that no file can have
        return False


def file_state(path: str | os.PathLike) -> str | None:
    """Facts about a file that change with its content: size, times and inode. None if there is no file."""
    try:
        facts = os.stat(path)
    except (OSError, ValueError):
        return None
    return f"{facts.st_size} {facts.st_mtime_ns} {facts.st_ctime_ns} {facts.st_ino}"


def sha256(path: str | os.PathLike) -> str:
    """The hash of a file's content. InputError where there is no regular file."""
    check_file(path)
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def atomic_path(target: str | Path, keep: bool = True) -> Iterator[Path]:
    """A temporary path beside `target`, renamed to it at the end and removed on any error, or unless it is to `keep`.

    Its name is short, so that a target whose name is as long as the file system allows still works.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{TEMPORARY}{uuid.uuid4().hex}{target.suffix}")
    try:
        yield temporary
        if keep:
            os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------ .npy files


class _Layout(NamedTuple):
    """How an array lies in a .npy file."""

    shape: tuple[int, ...]
    order: Literal["C", "F"]
    dtype: np.dtype
    start: int  # of the numbers, in bytes from the beginning of the file


def load_array(path: str | Path) -> np.ndarray:
    """The numbers in a .npy file as float32. InputError where it holds anything but finite real numbers.

    The header is checked against the size of the file before memory is taken.
    """
    check_file(path)
    try:
        with open(path, "rb", buffering=0) as file:
            array = _read_numbers(file, os.fstat(file.fileno()).st_size)
    except InputError as error:
        raise InputError(f"{show(path)}: {error}") from error
    if not np.isfinite(array).all():
        raise InputError(f"{show(path)}: expected finite float32 numbers, got NaN or infinity")
    return array


def read_array(file: BinaryIO) -> np.ndarray:
    """The numbers of an open .npy file as float32, NaN and infinity among them. InputError at no real numbers."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    return _read_numbers(file, size)


def _read_numbers(file: BinaryIO, size: int) -> np.ndarray:
    head = file.read(HEAD_BYTES)
    layout = _layout(head, size)
    stored = np.empty(math.prod(layout.shape), layout.dtype)
    data = memoryview(stored.view(np.uint8))
    file.seek(layout.start)
    while data and (count := file.readinto(data)):  # one call may read less than it could
        data = data[count:]
    if data:
        raise InputError(f"expected {size} bytes, got {len(data)} fewer")
    with np.errstate(over="ignore", invalid="ignore"):
        return stored.reshape(layout.shape, order=layout.order).astype(np.float32, copy=False)


def stated_shape(head: bytes, size: int) -> tuple[int, ...]:
    """The shape in the header of a .npy file of `size` bytes, by the first HEAD_BYTES of them.

    InputError where these are no .npy file of real numbers, or not all of it.
    """
    return _layout(head, size).shape


def _layout(head: bytes, size: int) -> _Layout:
    start = 10 if head[6:7] == b"\x01" else 12  # of the header's text, by the version of the format
    layout = _parse_header(head[: start + int.from_bytes(head[8:start], "little")])
    expected = layout.start + math.prod(layout.shape) * layout.dtype.itemsize
    if size < expected:
        raise InputError(f"expected {expected} bytes, as shape {list(layout.shape)} takes, got {size}")
    return layout


@lru_cache(maxsize=4096)  # those of a folder of features differ in few numbers
def _parse_header(header: bytes) -> _Layout:
    file = BytesIO(header)
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version[0] == 1 else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = read(file)
    except NOT_NPY as error:
        raise InputError(f"expected a .npy file of numbers ({str(error)[:CAUSE_LENGTH]})") from error
    if version not in NPY_VERSIONS:
        raise InputError(f"expected a .npy file of version 1.0, 2.0 or 3.0, got {version[0]}.{version[1]}")
    if any(length < 0 for length in shape):
        raise InputError(f"expected a .npy file of numbers, got shape {list(shape)}")
    if dtype.kind not in "fiu":
        raise InputError(f"expected real numbers, got dtype {dtype}")
    return _Layout(shape, "F" if fortran_order else "C", dtype, file.tell())

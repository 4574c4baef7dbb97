"""What becomes of one input: its value is whole, or there is one reason why there is none. All else is a finding.

This runs in the other processes.
"""

import hashlib
import io
import logging
import os
import shutil
import tempfile
import time
import traceback
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import NamedTuple

from fuzz_mutations import mutate
from fuzz_readers import READERS, Broken

import clamplib
from clamplib.files import InputError

WHOLE, REFUSED = "whole", "refused"
LEAKED, NOT_WHOLE, REASON, PRINTED, LEFT = "leaked", "not whole", "bad reason", "printed", "left files"
UNCHANGED_EVERY = 40  # inputs of a reader, one is a seed as it is, to see whether the inputs before it left a trace
LONGEST_REASON = 2000
TOLERATED_OUTPUT = "Ignored unknown kwarg option"  # printed by tokenizers
TOLERATED = "clamp3-librosa"  # how the lock of an import begins, which is the same file each time
LIBRARY = str(Path(clamplib.__file__).parent)


class Result(NamedTuple):
    """What became of an input."""

    outcome: str
    detail: str = ""  # the reason of a refusal, or what is wrong
    place: str = ""  # in the code; findings that share outcome and place have one cause
    seconds: float = 0.0
    memory: float = 0.0  # MiB that reading it took at the most
    digest: str = ""  # of the value


def make_input(seeds: Path, seed: int, reader: str, number: int) -> bytes:
    """Makes the input of a number: the same one each time."""
    files = _seed_files(seeds, READERS[reader].seeds)
    random = Random(f"{seed} {reader} {number}")
    data = random.choice(files)
    if is_unchanged(number):
        return data
    return mutate(data, READERS[reader].kind, random, files)


def is_unchanged(number: int) -> bool:
    return number % UNCHANGED_EVERY == 0


@lru_cache
def _seed_files(seeds: Path, name: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((seeds / name).iterdir())]


def examine_number(seeds: Path, seed: int, job: tuple[str, int]) -> Result:
    """Reads the mutated input of a reader and a number."""
    reader, number = job
    return examine(seeds, (reader, make_input(seeds, seed, reader, number)))


def examine(seeds: Path, job: tuple[str, bytes]) -> Result:
    """Reads an input, given its reader and its content."""
    name, data = job
    reader = READERS[name]
    with tempfile.TemporaryDirectory(dir=seeds.parent) as folder:
        inside, temporary = Path(folder, "in"), Path(folder, "temporary")
        if reader.beside:
            shutil.copytree(seeds / "with" / reader.beside, inside, copy_function=_link_large)
        inside.mkdir(exist_ok=True)
        temporary.mkdir()
        path = inside / reader.name
        path.unlink(missing_ok=True)
        path.write_bytes(data)
        before = sorted(inside.iterdir())
        with _output() as output, _temporary_folder(temporary):
            result = _read(name, path)
        if result.outcome in (WHOLE, REFUSED):
            left = [each.name for each in temporary.iterdir() if not each.name.startswith(TOLERATED)]
            if reader.writes:
                left += [each.name for each in inside.iterdir() if each.suffix not in (".sqlite", ".f32")]
            elif sorted(inside.iterdir()) != before or path.read_bytes() != data:
                left += [each.name for each in inside.iterdir()]
            if left:
                return result._replace(outcome=LEFT, detail=f"{left[:5]}", place=name)
            text = "".join(output)
            if text and not text.startswith(TOLERATED_OUTPUT):
                return result._replace(outcome=PRINTED, detail=text[:1000], place=_normal(text[:80]))
        return result


def _link_large(source: str, target: str) -> None:
    """Files that no reader writes are not copied."""
    os.symlink(source, target) if source.endswith(".safetensors") else shutil.copy(source, target)


def _read(name: str, path: Path) -> Result:
    reader = READERS[name]
    reset = _reset_peak()
    memory_before = _memory()
    began = time.perf_counter()
    try:
        value = reader.read(path)
        outcome, detail, place = WHOLE, hashlib.sha256(repr(value).encode("utf-8", "replace")).hexdigest()[:16], ""
    except MemoryError:
        raise
    except InputError as error:
        reason = str(error)
        problem = _problem_of(reason, reader.name if reader.names_file else "")
        outcome, detail = (REASON, f"{problem}: {reason}") if problem else (REFUSED, reason)
        place = f"{name}: {problem}" if problem else ""
    except Broken as error:
        outcome, detail, place = NOT_WHOLE, str(error), _normal(f"{name}: {str(error)[:60]}")
    except BaseException as error:  # those of Rust are not Exceptions
        outcome, detail, place = LEAKED, "".join(traceback.format_exception(error))[-3000:], _place_of(error)
    seconds = time.perf_counter() - began
    memory = max(_memory("VmHWM") - memory_before, 0.0) if reset else 0.0
    digest = detail if outcome == WHOLE else ""
    return Result(outcome, "" if outcome == WHOLE else detail, place, seconds, memory, digest)


def _problem_of(reason: str, name: str) -> str:
    """Says what is wrong with the reason of a refusal. Returns "" if it is one."""
    if "expected" not in reason:
        return "it does not say what was expected"
    if name and name not in reason:
        return "it does not name the file"
    if "Traceback" in reason:
        return "it holds a traceback"
    if any(unicodedata.category(character) == "Cc" and character != "\n" for character in reason):
        return "it holds control characters"
    return "it is too long" if len(reason) > LONGEST_REASON else ""


def _place_of(error: BaseException) -> str:
    """The type of an error, and the innermost function of the library through which it came."""
    found = ""
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename.startswith(LIBRARY):
            found = f"{Path(frame.filename).relative_to(LIBRARY)}:{frame.name}"
    return f"{type(error).__name__} in {found}"


def _normal(text: str) -> str:
    return "".join("0" if character.isdigit() else character for character in text)


# ------------------------------------------------------------------------------------ traces


@contextmanager
def _output() -> Iterator[list[str]]:
    """Collects what Python and other code print, warnings, and what other libraries log."""
    found: list[str] = []
    printed = io.StringIO()
    handler = _Collector(found)
    with tempfile.TemporaryFile() as file, warnings.catch_warnings(record=True) as warned:
        saved = {number: os.dup(number) for number in (1, 2)}
        for number in saved:
            os.dup2(file.fileno(), number)
        logging.getLogger().addHandler(handler)
        try:
            with redirect_stdout(printed), redirect_stderr(printed):
                yield found
        finally:
            logging.getLogger().removeHandler(handler)
            for number, kept in saved.items():
                os.dup2(kept, number)
                os.close(kept)
            file.seek(0)
            found += [f"{warning.category.__name__}: {warning.message}\n" for warning in warned]
            found += filter(None, (printed.getvalue(), file.read(10_000).decode("utf-8", "replace")))


class _Collector(logging.Handler):
    """Collects what others than this library log as warnings, which would be printed."""

    def __init__(self, found: list[str]):
        super().__init__(logging.WARNING)
        self.found = found

    def emit(self, record: logging.LogRecord) -> None:
        if not record.name.startswith("clamplib"):
            self.found.append(f"{record.name}: {record.getMessage()}\n")


@contextmanager
def _temporary_folder(folder: Path) -> Iterator[None]:
    before = tempfile.tempdir
    tempfile.tempdir = str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


def _reset_peak() -> bool:
    """Begins to measure the peak of memory again, where the system can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _memory(field: str = "VmRSS") -> float:
    """MiB that this process has, or has had at the most."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return 0.0

"""Compares the outputs of a run with those of an undisturbed one."""

import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

DIFFERENCE = 2e-6  # between two features of a file, as a share of the length of their vectors
HIDDEN = ".clamp-"  # what the names of unfinished outputs and of the manifest begin with
INDEX_TABLE = "records.sqlite"


@dataclass
class Comparison:
    """How the outputs of a run differ from those of the reference."""

    missing: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)  # names, each with the reason
    difference: float = 0.0  # the largest between features


def compare(reference: Path, out: Path, finished: bool = True) -> Comparison:
    """Compares an output folder with the reference.

    Args:
        reference: the output folder of an undisturbed run.
        out: that of another.
        finished: whether the other has finished. Otherwise checkpoints must only be whole, and a log may be shorter.
    """
    result = Comparison()
    expected, found = output_files(reference), output_files(out)
    result.missing = sorted(expected.keys() - found.keys())
    result.differing = [f"{name}: unexpected" for name in sorted(found.keys() - expected.keys())]
    for name in sorted(expected.keys() & found.keys()):
        try:
            difference = _compare_file(expected[name], found[name], finished)
        except Exception as error:  # such as a file that is cut off
            result.differing.append(f"{name}: {type(error).__name__}: {error}")
            continue
        if np.isfinite(difference) and difference <= DIFFERENCE:
            result.difference = max(result.difference, difference)
        else:
            result.differing.append(f"{name}: differs by {difference:.2g}")
    return result


def output_files(folder: Path) -> dict[str, Path]:
    """The outputs in a folder. The matrices of an index are compared with its table."""
    files = {}
    for path in folder.rglob("*"):
        if path.is_file() and not path.name.startswith(HIDDEN) and path.suffix not in (".f32", ".sqlite-journal"):
            files[path.relative_to(folder).as_posix()] = path
    return files


def _compare_file(expected: Path, found: Path, finished: bool) -> float:
    """Returns the difference of two files: 0 if they are equal, infinity if they are not, or that of features."""
    if expected.name == INDEX_TABLE:
        return _compare_indexes(expected.parent, found.parent, finished)
    if expected.suffix == ".npy":
        return _distance(np.load(expected), np.load(found))
    if expected.suffix == ".pth":
        import torch

        state, other = (torch.load(path, map_location="cpu", weights_only=True) for path in (expected, found))
        return 0.0 if _same(state, other) or not finished else np.inf
    if expected.suffix == ".txt":
        lines, others = _log_lines(expected), _log_lines(found)
        return 0.0 if others == (lines if finished else lines[: len(others)]) else np.inf
    return 0.0 if expected.read_bytes() == found.read_bytes() else np.inf


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference of a value, as a share of the length of the longest vector."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return np.inf
    return float(np.abs(a - b).max() / max(np.linalg.norm(a, axis=-1).max(), 1e-30))


def _log_lines(path: Path) -> list[str]:
    """The lines of a log up to what differs from run to run."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line.partition("  seconds")[0] for line in lines if not line.startswith("time:")]


def _same(a: object, b: object) -> bool:
    """Whether two states are equal to the bit."""
    import torch

    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_same(a[name], b[name]) for name in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    return a == b


def _compare_indexes(expected: Path, found: Path, finished: bool) -> float:
    from clamplib.retrieval.index import ExactIndex

    with closing(sqlite3.connect(found / INDEX_TABLE)) as table:
        empty = table.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
    if empty and not finished:  # it was killed before the first record
        return 0.0
    index, other = ExactIndex(expected), ExactIndex(found)
    records, others = set(index.records()), set(other.records())
    if others - records or (finished and records - others):
        return np.inf
    keys = {record.key for record in others}
    vectors, own = index.vectors(keys), other.vectors(keys)
    return float(np.max([_distance(vectors[key], own[key]) for key in keys], initial=0.0))  # NaN if one is

"""Which reference is right for which query: by keys, or by a table; and the ranks and records that follow."""

import csv
import json
import math
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clamplib.evaluation.metrics import ranks
from clamplib.files import InputError, atomic_path, show
from clamplib.retrieval.similarity import BLOCK_VALUES, Features, unit_mean

UNMATCHED_FILE = "unmatched_files.jsonl"


@dataclass(frozen=True)
class Pairs:
    """Queries and the references of the same key; a second reference under one key is not used."""

    queries: Features
    references: Features
    rows: np.ndarray  # int64 [Q], rows of the queries that have a reference
    targets: np.ndarray  # int64 [Q], for each the row of its reference


def pair(queries: Features, references: Features) -> Pairs:
    """Each query with the first reference of its key. InputError where no key is common."""
    first: dict[str, int] = {}
    for row, name in enumerate(references.keys):
        first.setdefault(name, row)
    rows = [row for row, name in enumerate(queries.keys) if name in first]
    if not rows:
        raise InputError(
            f"expected common keys, found none between {len(queries)} queries (such as {queries.keys[0]!r}) "
            f"and {len(references)} references (such as {references.keys[0]!r})"
        )
    targets = [first[queries.keys[row]] for row in rows]
    return Pairs(queries, references, np.array(rows), np.array(targets))


def pair_ranks(pairs: Pairs) -> np.ndarray:
    """The rank of each pair's reference among the references of all pairs: int64 [Q]."""
    candidates, target = np.unique(pairs.targets, return_inverse=True)
    return vector_ranks(pairs.queries.matrix[pairs.rows], pairs.references.matrix[candidates], target)


def vector_ranks(queries: np.ndarray, references: np.ndarray, target: np.ndarray) -> np.ndarray:
    """`metrics.ranks` [Q] of queries [Q, D] among references [N, D] by dot product, block by block."""
    step = max(1, BLOCK_VALUES // len(references))
    starts = range(0, len(queries), step)
    return np.concatenate([ranks(queries[i : i + step] @ references.T, target[i : i + step]) for i in starts])


def load_relevance(file: str | Path, queries: Features, references: Features) -> dict[int, dict[int, float]]:
    """Which references are right for which queries: {row of a query: {row of a reference: its grade, above 0}}.

    file: CSV with the columns `query` and `reference`, which hold keys, and where wanted `relevance`: 0 for a wrong
    reference, more for a better one, and 1 where nothing stands. A key means all files that have it. Queries without a
    right reference are left out. InputError names a column that is none of these, and the line of a key that no file
    has, of a grade that is none or that another line contradicts, or of more values than there are columns.
    """
    rows = {"query": _rows_of_keys(queries), "reference": _rows_of_keys(references)}
    grades: dict[tuple[str, str], float] = {}
    for place, record in _read_csv(file, required=tuple(rows), optional=("relevance",)):
        names = tuple((record[side] or "").strip() for side in rows)
        for (side, known), name in zip(rows.items(), names, strict=True):
            if name not in known:
                example = next(iter(known))
                raise InputError(
                    f"{place}: expected the key of a {side} with a vector, such as {example!r}, got {name!r}"
                )
        grade = _grade((record.get("relevance") or "").strip() or "1", place)
        if grades.setdefault(names, grade) != grade:
            raise InputError(
                f"{place}: {' and '.join(map(repr, names))} have the relevance {grade:g} here, {grades[names]:g} before"
            )
    relevance = defaultdict(dict)
    for (query, reference), grade in grades.items():
        if grade:
            for row in rows["query"][query]:
                relevance[row] |= dict.fromkeys(rows["reference"][reference], grade)
    if not relevance:
        raise InputError(f"{show(file)}: expected rows with a relevance above 0, found none")
    return dict(sorted(relevance.items()))


def _rows_of_keys(features: Features) -> dict[str, list[int]]:
    rows = defaultdict(list)
    for row, name in enumerate(features.keys):
        rows[name].append(row)
    return rows


def _read_csv(
    file: str | Path, required: tuple[str, ...], optional: tuple[str, ...]
) -> Iterator[tuple[str, dict[str, str | None]]]:
    """(file and line for a message, the row) of a table that has the required columns, and at most the optional."""
    try:
        with open(file, encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines)
            columns = reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
            if missing := set(required) - set(columns):
                raise InputError(
                    f"{show(file)}: expected the columns {', '.join(required)} in its first line, "
                    f"found no {' and no '.join(sorted(missing))}"
                )
            if unknown := set(columns) - {*required, *optional}:
                raise InputError(
                    f"{show(file)}: expected no columns but {', '.join(required + optional)}, "
                    f"found {', '.join(map(repr, sorted(unknown)))}; rename or remove it"
                )
            for row in reader:
                place = f"{show(file)}, line {reader.line_num}"
                if more := row.get(reader.restkey):
                    raise InputError(f"{place}: expected {len(columns)} values, got {len(columns) + len(more)}")
                yield place, row
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{show(file)}: expected CSV in UTF-8 ({error})") from error


def _grade(text: str, place: str) -> float:
    try:
        grade = float(text)
    except ValueError:
        grade = math.nan
    if not 0 <= grade < math.inf:
        raise InputError(f"{place}: expected a relevance of 0 or more, got {text!r}")
    return grade


def relevance_blocks(
    queries: Features, references: Features, relevance: Mapping[int, Mapping[int, float]]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(similarity [q, N], gains [q, N]) of the queries of `load_relevance`, some at a time, for `relevance_values`.

    Where a reference is the query's own file, it stands last unless it is called right.
    """
    own_rows = {os.path.abspath(path): row for row, path in enumerate(references.paths)}
    rows = list(relevance)
    step = max(1, BLOCK_VALUES // len(references))
    for start in range(0, len(rows), step):
        some = rows[start : start + step]
        similarity = queries.matrix[some] @ references.matrix.T
        gains = np.zeros_like(similarity)
        for row, similarities, grades in zip(some, similarity, gains, strict=True):
            grades[list(relevance[row])] = list(relevance[row].values())
            own = own_rows.get(os.path.abspath(queries.paths[row]))
            if own is not None and not grades[own]:
                similarities[own] = -np.inf
        yield similarity, gains


def pair_similarities(pairs: Pairs) -> np.ndarray:
    """The cosine of each pair: float32 [Q]."""
    return np.einsum("qd,qd->q", pairs.queries.matrix[pairs.rows], pairs.references.matrix[pairs.targets])


def pair_records(pairs: Pairs, name: str, values: np.ndarray) -> list[dict]:
    """{"query": path, "reference": path, name: value} for each pair, for `save_records`."""
    return [
        {
            "query": str(pairs.queries.paths[row]),
            "reference": str(pairs.references.paths[target]),
            name: value,
        }
        for row, target, value in zip(pairs.rows, pairs.targets, values.tolist(), strict=True)
    ]


def unmatched_records(pairs: Pairs) -> list[dict]:
    """{"unmatched_query": [paths]} or {"unmatched_reference": [paths]} for each key of one side only."""
    records = []
    for name, own, other in (
        ("unmatched_query", pairs.queries, pairs.references),
        ("unmatched_reference", pairs.references, pairs.queries),
    ):
        others = set(other.keys)
        alone = defaultdict(list)
        for piece, path in zip(own.keys, own.paths, strict=True):
            if piece not in others:
                alone[piece].append(str(path))
        records += [{name: paths} for paths in alone.values()]
    return records


def report_pairs(pairs: Pairs, output_dir: str | Path) -> str:
    """The counts in words. Unmatched files are listed in unmatched_files.jsonl; without any it is removed."""
    path = Path(output_dir, UNMATCHED_FILE)
    path.unlink(missing_ok=True)
    unmatched = unmatched_records(pairs)
    lines = []
    if unmatched:
        save_records(path, unmatched)
        lines.append(f"{len(unmatched)} keys are unmatched and left out: see '{path}'.")
    repeated = len(pairs.references) - len(set(pairs.references.keys))
    if repeated:
        lines.append(f"{repeated} reference features repeat a key and are left out: the first of each key is used.")
    lines += [
        f"There are {len(np.unique(pairs.targets))} common keys between query and reference features.",
        f"Total query features: {len(pairs.rows)}",
        f"Total reference features: {len(pairs.references)}",
    ]
    return "\n".join(lines)


def group_similarity(a: Features, b: Features) -> float:
    """The cosine of the mean vectors of two folders, each vector with its own length.

    InputError where a mean is zero.
    """
    (own, _), (other, _) = unit_mean(a.raw), unit_mean(b.raw)
    return float(own @ other)


def save_records(path: str | Path, records: list[dict]) -> Path:
    """Writes JSON lines, whole or not at all, and returns the path."""
    with atomic_path(path) as temporary:
        temporary.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return Path(path)

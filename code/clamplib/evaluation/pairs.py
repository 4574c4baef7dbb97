"""Pairs of queries and their correct references, by keys or by a table of relevance, and how they rank.

The functions here connect the features of folders (`retrieval.similarity`) to the metrics (`evaluation.metrics`), and
write the records that the published scripts leave in their output folder.
"""

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
from clamplib.retrieval.similarity import Features, similarity_blocks, unit_mean

UNMATCHED_FILE = "unmatched_files.jsonl"


@dataclass(frozen=True)
class Pairs:
    """Queries and the reference of the same key. If several references share a key, only the first is used."""

    queries: Features
    references: Features
    rows: np.ndarray  # int64 [Q], the rows of the queries that have a reference
    targets: np.ndarray  # int64 [Q], the row of each one's reference


def pair(queries: Features, references: Features) -> Pairs:
    """Pairs each query with the first reference of the same key.

    Raises:
        InputError: queries and references have no key in common.
    """
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
    """Returns the rank of each pair's reference among the references of all pairs: int64 [Q]."""
    candidates, target = np.unique(pairs.targets, return_inverse=True)
    return vector_ranks(pairs.queries.matrix[pairs.rows], pairs.references.matrix[candidates], target)


def vector_ranks(queries: np.ndarray, references: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Ranks each query's correct reference among all references by dot product.

    Args:
        queries: [Q, D].
        references: [N, D].
        target: int64 [Q], the row of the correct reference of each query.

    Returns:
        Ranks from 1 to N, int64 [Q]; see `metrics.ranks` for ties.
    """
    found = [
        ranks(similarity, target[start : start + len(similarity)])
        for start, similarity in similarity_blocks(queries, references)
    ]
    return np.concatenate(found)


def load_relevance(file: str | Path, queries: Features, references: Features) -> dict[int, dict[int, float]]:
    """Reads from a table which references are correct for which queries.

    Args:
        file: a CSV with the columns `query` and `reference`, which hold keys, and optionally `relevance`: 0 for a wrong
            reference, a higher number for a better one. An empty cell means 1. A key stands for all files that have it.
        queries: the features of the queries.
        references: the features of the references.

    Returns:
        {row of a query: {row of a reference: relevance above 0}}. Queries without a correct reference are left out.

    Raises:
        InputError: a column is missing or unknown, a row has too many values, no file has a key, a relevance is not a
            number of 0 or more or contradicts an earlier row, or no relevance is above 0.
    """
    rows = {"query": _rows_of_keys(queries), "reference": _rows_of_keys(references)}
    grades: dict[tuple[str, str], float] = {}
    for place, record in _read_csv(file, required=("query", "reference"), optional=("relevance",)):
        pair_of_keys = (_known_key(record, "query", rows, place), _known_key(record, "reference", rows, place))
        grade = _grade((record.get("relevance") or "").strip() or "1", place)
        earlier = grades.setdefault(pair_of_keys, grade)
        if earlier != grade:
            query, reference = pair_of_keys
            raise InputError(
                f"{place}: {query!r} and {reference!r} have the relevance {grade:g} here, {earlier:g} before"
            )
    relevance = defaultdict(dict)
    for (query, reference), grade in grades.items():
        if grade:
            for row in rows["query"][query]:
                relevance[row] |= dict.fromkeys(rows["reference"][reference], grade)
    if not relevance:
        raise InputError(f"{show(file)}: expected rows with a relevance above 0, found none")
    return dict(sorted(relevance.items()))


def _known_key(
    record: dict[str, str | None], column: str, rows: Mapping[str, Mapping[str, list[int]]], place: str
) -> str:
    name = (record[column] or "").strip()
    if name not in rows[column]:
        example = next(iter(rows[column]))
        raise InputError(f"{place}: expected the key of a {column} with a vector, such as {example!r}, got {name!r}")
    return name


def _rows_of_keys(features: Features) -> dict[str, list[int]]:
    rows = defaultdict(list)
    for row, name in enumerate(features.keys):
        rows[name].append(row)
    return rows


def _read_csv(
    file: str | Path, required: tuple[str, ...], optional: tuple[str, ...]
) -> Iterator[tuple[str, dict[str, str | None]]]:
    """Yields, for each row of a table, its file and line for a message, and the row itself."""
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
    """Computes the blocks that `metrics.relevance_values` takes.

    A query's own file ranks last among the references, unless the table calls it correct.

    Args:
        queries: the features of the queries.
        references: the features of N references.
        relevance: what `load_relevance` returns.

    Yields:
        Similarities [q, N] and gains [q, N] of some queries at a time, in the order of `relevance`.
    """
    own_rows = {os.path.abspath(path): row for row, path in enumerate(references.paths)}
    asked = list(relevance)
    for start, similarity in similarity_blocks(queries.matrix[asked], references.matrix):
        gains = np.zeros_like(similarity)
        for number, row in enumerate(asked[start : start + len(similarity)]):
            gains[number, list(relevance[row])] = list(relevance[row].values())
            own = own_rows.get(os.path.abspath(queries.paths[row]))
            if own is not None and not gains[number, own]:
                similarity[number, own] = -np.inf
        yield similarity, gains


def pair_similarities(pairs: Pairs) -> np.ndarray:
    """Returns the cosine of each pair: float32 [Q]."""
    return np.einsum("qd,qd->q", pairs.queries.matrix[pairs.rows], pairs.references.matrix[pairs.targets])


def pair_records(pairs: Pairs, name: str, values: np.ndarray) -> list[dict]:
    """Returns one record per pair for `save_records`: {"query": path, "reference": path, name: value}."""
    return [
        {
            "query": str(pairs.queries.paths[row]),
            "reference": str(pairs.references.paths[target]),
            name: value,
        }
        for row, target, value in zip(pairs.rows, pairs.targets, values.tolist(), strict=True)
    ]


def unmatched_records(pairs: Pairs) -> list[dict]:
    """Returns {"unmatched_query": paths} or {"unmatched_reference": paths} for each key that only one side has."""
    queries, references = pairs.queries, pairs.references
    return [
        *({"unmatched_query": paths} for paths in _paths_of_other_keys(queries, references)),
        *({"unmatched_reference": paths} for paths in _paths_of_other_keys(references, queries)),
    ]


def _paths_of_other_keys(features: Features, others: Features) -> list[list[str]]:
    """Returns the paths of each key of `features` that `others` do not have."""
    known = set(others.keys)
    paths = defaultdict(list)
    for name, path in zip(features.keys, features.paths, strict=True):
        if name not in known:
            paths[name].append(str(path))
    return list(paths.values())


def report_pairs(pairs: Pairs, output_dir: str | Path) -> str:
    """Describes the counts. Lists unmatched files in unmatched_files.jsonl, or removes that file if there are none."""
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
    """Returns the cosine between the mean vectors of two folders. The means are of vectors with their original lengths.

    Raises:
        InputError: a mean is zero.
    """
    (own, _), (other, _) = unit_mean(a.raw), unit_mean(b.raw)
    return float(own @ other)


def save_records(path: str | Path, records: list[dict]) -> Path:
    """Writes records as JSON lines, whole or not at all, and returns the path."""
    with atomic_path(path) as temporary:
        temporary.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return Path(path)

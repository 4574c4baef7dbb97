"""Folders of feature vectors, compared by cosine.

A feature file is a .npy of one vector, [D] or [1, D]; its key is its folder below the root and its name up to
the first dot, so that `a.0.npy` and `a.1.npy` share a key. Each folder is read once, into one matrix of unit
rows; every comparison is a matrix product, a block at a time. Vectors of two spaces (see `space`) are not
compared.
"""

import csv
import json
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clamplib.arrays import load_array
from clamplib.distances import centroid_similarity
from clamplib.files import InputError, atomic_path, key, show, walk
from clamplib.metrics import ranks
from clamplib.space import check_same_space, read_space

UNMATCHED_FILE = "unmatched_files.jsonl"
BLOCK_VALUES = 1 << 25  # similarities held at a time: 128 MiB of float32


@dataclass(frozen=True)
class Features:
    """The vectors of one folder, in the order of their paths."""

    keys: list[str]
    matrix: np.ndarray  # float32 [N, D], each row divided by its length
    lengths: np.ndarray  # float32 [N], what the rows were divided by
    paths: list[Path]
    failures: list[Exception]  # files that hold no usable vector, left out
    space: dict | None

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True)
class Pairs:
    """Queries and the references of the same key; a second reference under one key is not used."""

    queries: Features
    references: Features
    rows: np.ndarray  # int64 [Q], rows of the queries that have a reference
    targets: np.ndarray  # int64 [Q], for each the row of its reference


def load_vector(path: str | Path) -> np.ndarray:
    """The vector in a .npy file as float32 [D]; InputError says what is wrong with it."""
    array = load_array(path)
    vector = array[0] if array.ndim == 2 and len(array) == 1 else array
    if vector.ndim != 1 or not vector.size:
        hint = "; global vectors come from extract_clamp3.py --get_global" if array.ndim == 3 else ""
        raise InputError(f"{show(path)}: expected one vector, [1, D] or [D], got shape {list(array.shape)}{hint}")
    if not vector.any():
        raise InputError(f"{show(path)}: expected a direction, got a vector of zeros, which has no cosine")
    return vector


def load_features(folder: str | Path) -> Features:
    """All .npy files under `folder` as one matrix of unit rows.

    A file that holds no usable vector, or one of another width than most, is left out and listed in
    `failures`. InputError where no file is left, or where features of two spaces lie together.
    """
    space = read_space(folder)
    vectors: dict[Path, np.ndarray] = {}
    failures = []
    for path in walk(folder, (".npy",)):
        try:
            vectors[path] = load_vector(path)
        except (InputError, OSError) as error:
            failures.append(error)
    if not vectors:
        raise InputError(
            f"{show(folder)}: none of its {len(failures)} .npy files holds a vector; the first: {failures[0]}"
        )
    width = Counter(vector.size for vector in vectors.values()).most_common(1)[0][0]
    for path in [path for path, vector in vectors.items() if vector.size != width]:
        got = vectors.pop(path).size
        failures.append(InputError(f"{show(path)}: expected {width} values like most features here, got {got}"))
    paths = list(vectors)
    matrix, lengths = normalise(np.stack(list(vectors.values())))
    return Features([key(path, folder) for path in paths], matrix, lengths, paths, failures, space)


def normalise(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[N, D], no row of zeros -> rows of length 1, float32 [N, D], and their former lengths, float32 [N]."""
    lengths = np.linalg.norm(vectors, axis=1).astype(np.float32)
    return (vectors / lengths[:, None]).astype(np.float32, copy=False), lengths


def load_folders(query_folder: str | Path, reference_folder: str | Path) -> tuple[Features, Features]:
    """The features of two folders, or of a file and a folder. InputError where they cannot be compared."""
    queries, references = load_features(query_folder), load_features(reference_folder)
    check_same_space(query_folder, queries.space, reference_folder, references.space)
    width, expected = queries.matrix.shape[1], references.matrix.shape[1]
    if width != expected:
        raise InputError(
            f"{show(query_folder)}: expected {expected} values per vector as in {show(reference_folder)}, got {width}"
        )
    return queries, references


def search(query: np.ndarray, references: np.ndarray, top_k: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """The closest references of each query.

    query: [Q, D] and references: [N, D], unit rows. Returns (rows int64 [Q, k], similarities float32 [Q, k]),
    closest first and ties in the order of the references, with k the smaller of top_k and N.
    """
    if top_k < 1:
        raise ValueError(f"expected top_k of at least 1, got {top_k}")
    top_k = min(top_k, len(references))
    rows = np.empty((len(query), top_k), np.int64)
    scores = np.empty((len(query), top_k), np.float32)
    step = max(1, BLOCK_VALUES // len(references))
    for start in range(0, len(query), step):
        similarity = query[start : start + step] @ references.T
        for i, row in enumerate(similarity, start):
            least = np.partition(row, -top_k)[-top_k]
            best = np.flatnonzero(row >= least)
            rows[i] = best[np.argsort(-row[best], kind="stable")][:top_k]
            scores[i] = row[rows[i]]
    return rows, scores


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
    return centroid_similarity(*(each.lengths[:, None] * each.matrix for each in (a, b))).value


def save_records(path: str | Path, records: list[dict]) -> Path:
    """Writes JSON lines, whole or not at all, and returns the path."""
    with atomic_path(path) as temporary:
        temporary.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return Path(path)

"""Vectors of many files in one place: kept up to date, filtered, and searched by cosine.

A record is a file: its path names it, and its key, a hash of what is in it, says whether its vector is up to date. So
the same content at two paths is two records, and two hits. An index holds vectors of one embedding space (see `space`).
There are two kinds: `ExactIndex`, a folder, and `milvus.MilvusIndex`.

`library.update_index` makes one hold what lies in a folder, and again whenever that has changed.
"""

import json
import os
import sqlite3
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clamplib.files import InputError, show
from clamplib.retrieval import similarity
from clamplib.space import check_same_space

UNIT_TOLERANCE = 1e-3  # how far the length of a unit vector may be from 1
LOCK_SECONDS = 600  # how long a writer waits for a search to end, or for another writer


@dataclass(frozen=True)
class Record:
    """A file of the library, as an index knows it."""

    path: str
    key: str  # a hash of the content
    label: str = ""
    modality: str = ""


@dataclass(frozen=True)
class Hit:
    """A file that a search has found."""

    path: str
    label: str
    modality: str
    similarity: float


class Index(ABC):
    """What every kind of index does. `width` is the number of values in each of its vectors."""

    location: str
    width: int

    @abstractmethod
    def __len__(self) -> int:
        """The number of records."""

    @abstractmethod
    def records(self) -> list[Record]:
        """All records, in no particular order."""

    @abstractmethod
    def vectors(self, keys: Iterable[str]) -> dict[str, np.ndarray]:
        """The vector, float32 [D], of each key that is there: content that is known need not be embedded again."""

    @abstractmethod
    def remove(self, paths: Iterable[str]) -> None:
        """Removes the records of these paths, so far as they are there."""

    @abstractmethod
    def _upsert(self, records: list[Record], vectors: np.ndarray) -> None: ...

    @abstractmethod
    def _search(self, queries: np.ndarray, top_k: int, terms: list[tuple[str, str, str]]) -> list[list[Hit]]: ...

    def close(self) -> None:  # noqa: B027 - a kind need not hold anything open
        """Gives back what the index holds open."""

    def __enter__(self) -> "Index":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def paths(self) -> set[str]:
        """The path of every record."""
        return {record.path for record in self.records()}

    def keys(self) -> set[str]:
        """The key of every record."""
        return {record.key for record in self.records()}

    def refusal(self, record: Record) -> str | None:
        """Why an index of this kind cannot hold the record; None where it can."""
        return None

    def upsert(self, records: Iterable[Record], vectors: np.ndarray) -> None:
        """Adds records, each in place of the one that has its path, if one has.

        vectors: [N, D], unit rows in the order of the records; of a path that comes twice the last counts.
        InputError names the file whose vector is none of length 1.
        """
        records, vectors = list(records), np.asarray(vectors, np.float32)
        if vectors.shape != (len(records), self.width):
            raise InputError(
                f"{show(self.location)}: expected vectors [{len(records)}, {self.width}], got {list(vectors.shape)}"
            )
        _refuse_other_lengths(vectors, [record.path for record in records])
        rows = {record.path: row for row, record in enumerate(records)}
        if rows:
            self._upsert([records[row] for row in rows.values()], vectors[list(rows.values())])

    def search(
        self,
        queries: np.ndarray,
        top_k: int = 10,
        *,
        folder: str | Path | None = None,
        label: str | None = None,
        modality: str | None = None,
    ) -> list[list[Hit]]:
        """The records closest to each query, closest first, among those below `folder`, of `label` and of `modality`.

        queries: [Q, D], unit rows. Returns for each query top_k hits, or as many as there are. InputError where a
        query has another width or length.
        """
        queries = np.asarray(queries, np.float32)
        if top_k < 1:
            raise ValueError(f"expected top_k of at least 1, got {top_k}")
        if queries.ndim != 2 or queries.shape[1] != self.width:
            raise InputError(
                f"{show(self.location)}: expected queries [Q, {self.width}], got {list(queries.shape)}; "
                "were they made with the model of the index?"
            )
        _refuse_other_lengths(queries, [f"{self.location}: query {number}" for number in range(1, len(queries) + 1)])
        terms = [(name, "==", value) for name, value in (("label", label), ("modality", modality)) if value is not None]
        if folder is not None and (below := os.path.join(folder, "")):
            terms += [("path", ">=", below), ("path", "<", below[:-1] + chr(ord(below[-1]) + 1))]
        return self._search(queries, top_k, terms)

    def _check(self, space: dict | None, width: int | None, own_space: dict | None) -> None:
        """InputError unless the index is one for vectors of this space and width, so far as these are known."""
        check_same_space(show(self.location), own_space, "the model that was asked for", space)
        if width not in (None, self.width):
            raise InputError(f"{show(self.location)}: expected vectors of {self.width} values, got {width}")

    def _absent(self) -> InputError:
        return InputError(f"{show(self.location)}: expected an index, there is none; make it with `clamp3 index`")


class ExactIndex(Index):
    """An index in a folder: one matrix, mapped into memory, and a table (SQLite) that says whose row is whose.

    A write appends to the matrix first and commits its rows to the table then, so that one that is cut short has not
    happened, and the next takes its place in the matrix. Rows of the matrix never change while the table knows them; a
    search keeps the table as it found it until it is done. Any number of processes may search; writers take turns.
    """

    TABLE = "records.sqlite"

    def __init__(self, folder: str | Path, space: dict | None = None, width: int | None = None):
        """Opens the index in `folder`; where there is none and `width` is given, makes one.

        InputError where there is none to open, or one of another space or width.
        """
        self.location = str(folder)
        if width:
            self._create(space, width)
        elif not Path(folder, self.TABLE).is_file():
            raise self._absent()
        with self._transaction() as table:
            own_space, self.width = table.execute("SELECT space, width FROM state").fetchone()
        self._check(space, width, json.loads(own_space))

    def _create(self, space: dict | None, width: int) -> None:
        try:
            os.makedirs(self.location, exist_ok=True)
        except FileExistsError:
            raise InputError(f"{show(self.location)}: expected the folder of an index, got a file") from None
        with self._transaction("BEGIN IMMEDIATE") as table:
            if table.execute("SELECT count(*) FROM sqlite_master").fetchone() != (0,):
                return
            # names of files need not be Unicode: texts are bytes here
            table.execute(
                "CREATE TABLE records (path BLOB PRIMARY KEY, key BLOB, label BLOB, modality BLOB, row INTEGER)"
                " WITHOUT ROWID"
            )
            table.execute("CREATE INDEX by_key ON records (key, row)")
            table.execute("CREATE INDEX by_row ON records (row)")
            table.execute("CREATE INDEX by_label ON records (label, modality, row)")
            table.execute("CREATE INDEX by_modality ON records (modality, row)")
            # the matrix: its file, and how many rows of it count
            table.execute("CREATE TABLE state (space TEXT, width INTEGER, matrix TEXT, rows INTEGER)")
            table.execute(
                "INSERT INTO state VALUES (?, ?, ?, 0)", (json.dumps(space), width, self._new_matrix([], width))
            )

    @contextmanager
    def _transaction(self, begin: str = "BEGIN") -> Iterator[sqlite3.Connection]:
        """The table, as it was when it was first read; what is written is committed as one. InputError if it fails."""
        path = Path(self.location, self.TABLE)
        try:
            with closing(sqlite3.connect(path, timeout=LOCK_SECONDS, isolation_level=None)) as table:
                table.execute(begin)
                with table:
                    yield table
        except sqlite3.Error as error:
            raise InputError(f"{show(path)}: expected the table of an index, could not use it ({error})") from error

    def _matrix_file(self, table: sqlite3.Connection) -> tuple[Path, int]:
        """The file of the matrix, and how many of its rows count. InputError where it holds fewer."""
        name, rows = table.execute("SELECT matrix, rows FROM state").fetchone()
        path = Path(self.location, name)
        if not path.is_file() or path.stat().st_size < rows * self.width * 4:
            raise InputError(
                f"{show(path)}: expected {rows} vectors of {self.width} values, the file is shorter or missing; "
                "remove the index and make it again"
            )
        return path, rows

    def _matrix(self, table: sqlite3.Connection) -> np.ndarray:
        """The matrix, float32 [rows, D], of which some rows may belong to no record."""
        path, rows = self._matrix_file(table)
        if not rows:
            return np.empty((0, self.width), np.float32)
        return np.memmap(path, "<f4", "r", shape=(rows, self.width))

    def _new_matrix(self, blocks: Iterable[np.ndarray], width: int) -> str:
        """Writes rows to a file of their own and returns its name."""
        name = f"vectors-{uuid.uuid4().hex}.f32"
        _write_rows(Path(self.location, name), 0, blocks, "xb")
        return name

    def __len__(self) -> int:
        with self._transaction() as table:
            return table.execute("SELECT count(*) FROM records").fetchone()[0]

    def records(self) -> list[Record]:
        return [Record(*fields) for fields in self._fields("path, key, label, modality")]

    def paths(self) -> set[str]:
        return {path for (path,) in self._fields("path")}

    def keys(self) -> set[str]:
        return {key for (key,) in self._fields("DISTINCT key")}

    def _fields(self, columns: str) -> list[tuple[str, ...]]:
        with self._transaction() as table:
            return [tuple(map(os.fsdecode, row)) for row in table.execute(f"SELECT {columns} FROM records")]

    def vectors(self, keys: Iterable[str]) -> dict[str, np.ndarray]:
        with self._transaction() as table:
            matrix = self._matrix(table)
            found = {}
            for key in set(keys):
                [row] = table.execute("SELECT max(row) FROM records WHERE key = ?", (os.fsencode(key),)).fetchone()
                if row is not None:
                    found[key] = np.array(matrix[row])
        return found

    def _upsert(self, records: list[Record], vectors: np.ndarray) -> None:
        with self._transaction("BEGIN IMMEDIATE") as table:
            path, rows = self._matrix_file(table)
            _write_rows(path, rows * self.width * 4, [vectors], "r+b")
            texts = [
                tuple(map(os.fsencode, (record.path, record.key, record.label, record.modality))) for record in records
            ]
            replaced = _delete(table, [path for path, *_ in texts])
            table.executemany(
                "INSERT INTO records VALUES (?, ?, ?, ?, ?)", ((*fields, row) for row, fields in enumerate(texts, rows))
            )
            table.execute("UPDATE state SET rows = ?", (rows + len(records),))
        if replaced:
            self._compact()

    def remove(self, paths: Iterable[str]) -> None:
        with self._transaction("BEGIN IMMEDIATE") as table:
            removed = _delete(table, map(os.fsencode, paths))
        if removed:
            self._compact()

    def _compact(self) -> None:
        """Writes the matrix anew once more than half of its rows belong to no record, then removes the old file."""
        with self._transaction("BEGIN IMMEDIATE") as table:
            matrix, [count] = self._matrix(table), table.execute("SELECT count(*) FROM records").fetchone()
            if len(matrix) > 2 * count:
                name = self._new_matrix(_blocks(matrix, _rows(table)), self.width)
                table.execute(
                    "UPDATE records SET row = place FROM"
                    " (SELECT path AS own, row_number() OVER (ORDER BY row) - 1 AS place FROM records)"
                    " WHERE path = own"
                )
                table.execute("UPDATE state SET matrix = ?, rows = ?", (name, count))
        with self._transaction("BEGIN IMMEDIATE") as table:  # no writer can be between its matrix and its commit
            [name] = table.execute("SELECT matrix FROM state").fetchone()
            for path in Path(self.location).glob("vectors-*.f32"):
                if path.name != name:
                    path.unlink()

    def _search(self, queries: np.ndarray, top_k: int, terms: list[tuple[str, str, str]]) -> list[list[Hit]]:
        with self._transaction() as table:
            best, similarities = _closest(queries, self._matrix(table), _rows(table, terms), top_k)
            found = {}
            for row in np.unique(best).tolist():
                fields = table.execute("SELECT path, label, modality FROM records WHERE row = ?", (row,)).fetchone()
                found[row] = tuple(map(os.fsdecode, fields))
        return [
            [Hit(*found[row], similarity) for row, similarity in zip(*pair, strict=True)]
            for pair in zip(best.tolist(), similarities.tolist(), strict=True)
        ]


def _refuse_other_lengths(vectors: np.ndarray, names: Sequence[str]) -> None:
    """InputError for the first of the vectors [N, D] that is not of length 1, by its name."""
    lengths = np.linalg.norm(vectors, axis=1)
    for row in np.flatnonzero(~(abs(lengths - 1) <= UNIT_TOLERANCE)):
        raise InputError(f"{show(names[row])}: expected a vector of length 1, got length {lengths[row]}")


def _delete(table: sqlite3.Connection, paths: Iterable[bytes]) -> int:
    """Removes records; how many there were."""
    return table.executemany("DELETE FROM records WHERE path = ?", ((path,) for path in paths)).rowcount


def _write_rows(path: Path, start: int, blocks: Iterable[np.ndarray], mode: str) -> None:
    """Writes float32 rows from byte `start` of a file on; they are on the disk when this returns."""
    try:
        with open(path, mode) as file:
            file.seek(start)
            for block in blocks:
                file.write(np.ascontiguousarray(block, "<f4").data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise InputError(f"{show(path)}: expected to write vectors, could not ({error})") from error


def _rows(table: sqlite3.Connection, terms: Sequence[tuple[str, str, str]] = ()) -> np.ndarray:
    """The rows of the records for which all terms hold: int64 [N], ascending."""
    if not terms:
        count, last = table.execute("SELECT count(*), max(row) FROM records").fetchone()
        if count and count == last + 1:  # nothing was removed
            return np.arange(count)
    where = " AND ".join(f"{name} {operator} ?" for name, operator, _ in terms) or "1"
    values = [os.fsencode(value) for *_, value in terms]
    # as one text: a Python object a row would take longer than the search
    [found] = table.execute(f"SELECT group_concat(row) FROM records WHERE {where}", values).fetchone()
    return np.sort(np.fromstring(found or "", np.int64, sep=","))


def _blocks(matrix: np.ndarray, rows: np.ndarray) -> Iterator[np.ndarray]:
    """These rows of the matrix, a block of bounded size at a time; where they lie together, without a copy."""
    step = max(1, similarity.BLOCK_VALUES // matrix.shape[1])
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        together = block[-1] - block[0] + 1 == len(block)
        yield matrix[block[0] : block[-1] + 1] if together else matrix[block]


def _closest(queries: np.ndarray, matrix: np.ndarray, rows: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """`similarity.search` among some rows of the matrix: their numbers [Q, k] and similarities [Q, k]."""
    best: list[np.ndarray] = [np.empty(0, np.int64)] * len(queries)
    similarities: list[np.ndarray] = [np.empty(0, np.float32)] * len(queries)
    start = 0
    for block in _blocks(matrix, rows):
        step = max(1, similarity.BLOCK_VALUES // len(block))
        for first in range(0, len(queries), step):
            for query, row in enumerate(queries[first : first + step] @ block.T, first):
                # only what comes up to the worst of the best so far is sorted: after the first block, next to nothing
                if len(best[query]) == top_k:
                    least = similarities[query][-1]
                else:
                    least = np.partition(row, -min(top_k, len(row)))[-min(top_k, len(row))]
                near = np.flatnonzero(row >= least)
                found = np.concatenate([similarities[query], row[near]])
                order = np.argsort(-found, kind="stable")[:top_k]
                best[query] = np.concatenate([best[query], rows[start + near]])[order]
                similarities[query] = found[order]
        start += len(block)
    shape = len(queries), min(top_k, len(rows))
    return np.reshape(best, shape), np.reshape(similarities, shape)

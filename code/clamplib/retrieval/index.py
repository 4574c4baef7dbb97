"""Indices of vectors of many files: kept up to date, filtered, and searched by cosine.

A record stands for one file. Its path identifies it, and its key, a hash of the file's content, says whether its vector
is up to date. The same content at two paths is two records, and a search finds both. An index holds vectors of one
embedding space (see `space`). There are two kinds: `ExactIndex`, a folder on disk, and `milvus.MilvusIndex`.

`embedding.collections.update_index` brings an index up to date with a folder of files.
"""

import json
import os
import re
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
MAX_WIDTH = 1 << 20  # values per vector
MATRIX_NAME = re.compile(r"vectors-[0-9a-f]{32}\.f32")
FILTERS_KEPT = 8  # whose rows an open index remembers; 8 MB each per million records


@dataclass(frozen=True, slots=True)
class Record:
    """What an index keeps of a file besides its vector."""

    path: str
    key: str  # a hash of the content
    label: str = ""
    modality: str = ""


@dataclass(frozen=True)
class Match:
    """A record that a search has found, and its cosine with the query."""

    path: str
    label: str
    modality: str
    similarity: float


class Index(ABC):
    """An index of any kind. `location` is its folder or address; `width` is the number of values per vector."""

    location: str
    width: int

    @abstractmethod
    def __len__(self) -> int:
        """The number of records."""

    @abstractmethod
    def records(self) -> list[Record]:
        """Returns all records, in no particular order."""

    @abstractmethod
    def vectors(self, keys: Iterable[str]) -> dict[str, np.ndarray]:
        """Returns the vector, float32 [D], of each key that the index holds.

        Content that is already indexed need not be embedded again.
        """

    @abstractmethod
    def remove(self, paths: Iterable[str]) -> None:
        """Removes the records of these paths. A path without a record is passed over."""

    @abstractmethod
    def _upsert(self, records: list[Record], vectors: np.ndarray) -> None: ...

    @abstractmethod
    def _search(self, queries: np.ndarray, top_k: int, terms: list[tuple[str, str, str]]) -> list[list[Match]]: ...

    def close(self) -> None:  # noqa: B027 - not every kind has something to close
        """Closes connections and files."""

    def __enter__(self) -> "Index":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def paths(self) -> set[str]:
        """Returns the path of every record."""
        return {record.path for record in self.records()}

    def keys(self) -> set[str]:
        """Returns the key of every record."""
        return {record.key for record in self.records()}

    def refusal(self, record: Record) -> str | None:
        """Says why an index of this kind cannot hold the record. Returns None if it can."""
        return None

    def upsert(self, records: Iterable[Record], vectors: np.ndarray) -> None:
        """Adds records, and replaces those whose path the index already has.

        Args:
            records: N records. If a path occurs twice, the last record counts.
            vectors: [N, D], unit rows in the order of the records.

        Raises:
            InputError: the shape does not fit the index, or a vector does not have length 1; its file is named.
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
    ) -> list[list[Match]]:
        """Finds the records that are most similar to each query.

        Args:
            queries: [Q, D], unit rows.
            top_k: how many matches to return per query.
            folder: if given, only records whose path is below this folder are searched.
            label: if given, only records with this label.
            modality: if given, only records of this modality.

        Returns:
            For each query up to `top_k` matches, the most similar first.

        Raises:
            InputError: the width of the queries does not fit the index, or a query does not have length 1.
            ValueError: `top_k` is below 1.
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
        """Raises InputError if the index holds vectors of another space or width, so far as these are known."""
        check_same_space(show(self.location), own_space, "the model that was asked for", space)
        if width not in (None, self.width):
            raise InputError(f"{show(self.location)}: expected vectors of {self.width} values, got {width}")

    def _absent(self) -> InputError:
        return InputError(f"{show(self.location)}: expected an index, there is none; make it with `clamp3 index`")


class ExactIndex(Index):
    """An index in a folder: one matrix, mapped into memory, and an SQLite table that assigns its rows to records.

    A write first appends rows to the matrix and then commits them to the table. A write that is interrupted in between
    has no effect, and the next write overwrites its rows. Rows that the table refers to never change, and a search
    reads the table in one transaction. Any number of processes may search at once; writers take turns.

    The files of an index may be damaged or made by someone else. What the table says is checked before it is used.
    """

    TABLE = "records.sqlite"

    def __init__(self, folder: str | Path, space: dict | None = None, width: int | None = None):
        """Opens the index in `folder`. If there is none and `width` is given, creates it.

        Args:
            folder: the folder of the index.
            space: the embedding space of the vectors, if it is known.
            width: the number of values per vector.

        Raises:
            InputError: there is no index to open, or it holds vectors of another space or width.
        """
        self.location = str(folder)
        self._snapshot: _Snapshot | None = None
        if width:
            self._create(space, width)
        elif not Path(folder, self.TABLE).is_file():
            raise self._absent()
        with self._transaction() as table:
            _check_schema(table)
            own_space, self.width, *_ = _state(table)
        self._check(space, width, own_space)

    def _create(self, space: dict | None, width: int) -> None:
        try:
            os.makedirs(self.location, exist_ok=True)
        except FileExistsError:
            raise InputError(f"{show(self.location)}: expected the folder of an index, got a file") from None
        with self._transaction("BEGIN IMMEDIATE") as table:
            if table.execute("SELECT count(*) FROM sqlite_master").fetchone() != (0,):
                return
            # File names need not be Unicode, so texts are stored as bytes.
            table.execute(
                "CREATE TABLE records (path BLOB PRIMARY KEY, key BLOB, label BLOB, modality BLOB, row INTEGER)"
                " WITHOUT ROWID"
            )
            table.execute("CREATE INDEX by_key ON records (key, row)")
            table.execute("CREATE INDEX by_row ON records (row)")
            table.execute("CREATE INDEX by_label ON records (label, modality, row)")
            table.execute("CREATE INDEX by_modality ON records (modality, row)")
            # of the matrix: its file, and how many of its rows are in use
            table.execute("CREATE TABLE state (space TEXT, width INTEGER, matrix TEXT, rows INTEGER)")
            table.execute(
                "INSERT INTO state VALUES (?, ?, ?, 0)", (json.dumps(space), width, self._new_matrix([], width))
            )

    @contextmanager
    def _transaction(self, begin: str = "BEGIN") -> Iterator[sqlite3.Connection]:
        """Opens the table in one transaction. Raises InputError if SQLite fails."""
        path = Path(self.location, self.TABLE)
        try:
            with closing(sqlite3.connect(path, timeout=LOCK_SECONDS, isolation_level=None)) as table:
                table.execute("PRAGMA trusted_schema = OFF")
                table.execute(begin)
                with table:
                    yield table
        except (sqlite3.Error, UnicodeDecodeError) as error:  # the latter at messages that quote damaged bytes
            cause = show(str(error))
            raise InputError(f"{show(path)}: expected the table of an index, could not use it ({cause})") from error

    def _matrix_file(self, table: sqlite3.Connection) -> tuple[Path, int]:
        """Returns the file of the matrix and the number of rows in use. Raises InputError if the file is shorter."""
        _, _, name, rows = _state(table)
        path = Path(self.location, name)
        if not path.is_file() or path.stat().st_size < rows * self.width * 4:
            raise InputError(
                f"{show(path)}: expected {rows} vectors of {self.width} values, the file is shorter or missing; "
                "remove the index and make it again"
            )
        return path, rows

    def _matrix(self, table: sqlite3.Connection) -> np.ndarray:
        """Maps the matrix into memory, float32 [rows, D]. Some rows may belong to no record."""
        path, rows = self._matrix_file(table)
        if not rows:
            return np.empty((0, self.width), np.float32)
        return np.memmap(path, "<f4", "r", shape=(rows, self.width))

    def _current(self, table: sqlite3.Connection) -> "_Snapshot":
        """Returns the matrix as it is now, and what is remembered of it."""
        version = (*self._matrix_file(table), _version(table))
        if not self._snapshot or self._snapshot.version != version:
            self._snapshot = _Snapshot(version, self._matrix(table))
        return self._snapshot

    def _raise_version(self, table: sqlite3.Connection) -> None:
        """Tells everyone who has the index open that what they remember of it is out of date."""
        table.execute(f"PRAGMA user_version = {(_version(table) + 1) % (1 << 31)}")
        self._snapshot = None

    def close(self) -> None:
        self._snapshot = None

    def _new_matrix(self, blocks: Iterable[np.ndarray], width: int) -> str:
        """Writes rows to a new file and returns its name."""
        name = f"vectors-{uuid.uuid4().hex}.f32"
        _write_rows(Path(self.location, name), 0, blocks, "xb")
        return name

    def __len__(self) -> int:
        with self._transaction() as table:
            return table.execute("SELECT count(*) FROM records").fetchone()[0]

    def records(self) -> list[Record]:
        known: dict[str, str] = {}  # a label or modality is one object, however many records have it
        records = []
        for path, key, label, modality in self._fields("path, key, label, modality"):
            records.append(Record(path, key, known.setdefault(label, label), known.setdefault(modality, modality)))
        return records

    def paths(self) -> set[str]:
        return {path for (path,) in self._fields("path")}

    def keys(self) -> set[str]:
        return {key for (key,) in self._fields("DISTINCT key")}

    def _fields(self, columns: str) -> Iterator[tuple[str, ...]]:
        with self._transaction() as table:
            yield from map(_texts, table.execute(f"SELECT {columns} FROM records"))

    def vectors(self, keys: Iterable[str]) -> dict[str, np.ndarray]:
        with self._transaction() as table:
            matrix = self._matrix(table)
            found = {}
            for key in set(keys):
                [row] = table.execute("SELECT max(row) FROM records WHERE key = ?", (os.fsencode(key),)).fetchone()
                if row is not None:
                    _check_rows(np.array([row]), matrix)
                    found[key] = np.array(matrix[row])
        return found

    def _upsert(self, records: list[Record], vectors: np.ndarray) -> None:
        with self._transaction("BEGIN IMMEDIATE") as table:
            path, rows = self._matrix_file(table)
            _write_rows(path, rows * self.width * 4, [vectors], "r+b")
            replaced = _delete(table, [record.path for record in records])
            for row, record in enumerate(records, rows):
                fields = (record.path, record.key, record.label, record.modality)
                table.execute("INSERT INTO records VALUES (?, ?, ?, ?, ?)", (*map(os.fsencode, fields), row))
            table.execute("UPDATE state SET rows = ?", (rows + len(records),))
            self._raise_version(table)
        if replaced:
            self._compact()

    def remove(self, paths: Iterable[str]) -> None:
        with self._transaction("BEGIN IMMEDIATE") as table:
            removed = _delete(table, paths)
            self._raise_version(table)
        if removed:
            self._compact()

    def _compact(self) -> None:
        """Copies the rows in use to a new file if they are less than half, and removes old files."""
        with self._transaction("BEGIN IMMEDIATE") as table:
            matrix = self._matrix(table)
            [count] = table.execute("SELECT count(*) FROM records").fetchone()
            if len(matrix) > 2 * count:
                name = self._new_matrix(similarity.row_blocks(matrix, _rows(table, matrix)), self.width)
                table.execute(
                    "UPDATE records SET row = place FROM"
                    " (SELECT path AS own, row_number() OVER (ORDER BY row) - 1 AS place FROM records)"
                    " WHERE path = own"
                )
                table.execute("UPDATE state SET matrix = ?, rows = ?", (name, count))
                self._raise_version(table)
        with self._transaction("BEGIN IMMEDIATE") as table:  # no other writer has an uncommitted matrix now
            _, _, name, _ = _state(table)
            for path in Path(self.location).glob("vectors-*.f32"):
                if path.name != name:
                    path.unlink()

    def _search(self, queries: np.ndarray, top_k: int, terms: list[tuple[str, str, str]]) -> list[list[Match]]:
        with self._transaction() as table:
            current = self._current(table)
            rows = current.rows(table, terms)
            with np.errstate(all="ignore"):  # of a damaged matrix; see below
                best, similarities = similarity.search(queries, current.matrix, top_k, rows)
            if not (abs(similarities) <= 1 + 3 * UNIT_TOLERANCE).all():
                raise InputError(
                    f"{show(self._matrix_file(table)[0])}: expected vectors of length 1, got others, so that it is "
                    "damaged; remove the index and make it again"
                )
            records = {}
            for row in np.unique(best).tolist():
                fields = table.execute("SELECT path, label, modality FROM records WHERE row = ?", (row,)).fetchone()
                records[row] = _texts(fields)
        found = []
        for rows, values in zip(best.tolist(), similarities.tolist(), strict=True):
            found.append([Match(*records[row], value) for row, value in zip(rows, values, strict=True)])
        return found


class _Snapshot:
    """The matrix at one version of an index, and the rows that the last filters kept of it."""

    def __init__(self, version: tuple, matrix: np.ndarray):
        self.version = version
        self.matrix = matrix
        self._kept: dict[tuple, np.ndarray] = {}  # by the terms of a filter

    def rows(self, table: sqlite3.Connection, terms: Iterable[tuple[str, str, str]]) -> np.ndarray:
        """Returns the rows in the matrix of the records for which all terms hold: int64 [N], ascending."""
        terms = tuple(terms)
        rows = self._kept.pop(terms, None)
        self._kept[terms] = rows = _rows(table, self.matrix, terms) if rows is None else rows
        for forgotten in list(self._kept)[:-FILTERS_KEPT]:
            self._kept.pop(forgotten, None)
        return rows


def _version(table: sqlite3.Connection) -> int:
    """Returns a number that every write raises."""
    return table.execute("PRAGMA user_version").fetchone()[0]


def _refuse_other_lengths(vectors: np.ndarray, names: Sequence[str]) -> None:
    """Raises InputError for the first of the vectors [N, D] that does not have length 1, and names it."""
    lengths = np.linalg.norm(vectors, axis=1)
    for row in np.flatnonzero(~(abs(lengths - 1) <= UNIT_TOLERANCE)):
        raise InputError(f"{show(names[row])}: expected a vector of length 1, got length {lengths[row]}")


def _delete(table: sqlite3.Connection, paths: Iterable[str]) -> int:
    """Removes records and returns how many there were."""
    return table.executemany("DELETE FROM records WHERE path = ?", ((os.fsencode(path),) for path in paths)).rowcount


def _write_rows(path: Path, start: int, blocks: Iterable[np.ndarray], mode: str) -> None:
    """Writes float32 rows to a file, from byte `start` on, and waits until they are on the disk."""
    try:
        with open(path, mode) as file:
            file.seek(start)
            for block in blocks:
                file.write(np.ascontiguousarray(block, "<f4").data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise InputError(f"{show(path)}: expected to write vectors, could not ({error})") from error


def _check_schema(table: sqlite3.Connection) -> None:
    """Refuses views and triggers, by which a table that someone else made could do more than keep records."""
    for kind, name in table.execute("SELECT type, name FROM sqlite_master"):
        if kind not in ("table", "index"):
            raise sqlite3.DatabaseError(f"it has a {kind}, {name}; make the index again")


def _state(table: sqlite3.Connection) -> tuple[dict | None, int, str, int]:
    """Returns the space, the width, the file name of the matrix, and the number of its rows in use."""
    found = table.execute("SELECT space, width, matrix, rows FROM state").fetchone()
    try:
        text, width, name, rows = found
        space = json.loads(text)
        right = isinstance(space, dict | None) and MATRIX_NAME.fullmatch(name)
        right = right and type(width) is type(rows) is int and 0 < width <= MAX_WIDTH and rows >= 0
    except (ValueError, TypeError, RecursionError):
        right = False
    if not right:
        raise sqlite3.DatabaseError("its state is damaged; remove the index and make it again")
    return space, width, name, rows


def _texts(fields: Sequence[bytes] | None) -> tuple[str, ...]:
    """Decodes texts of a record."""
    if fields is None or not all(isinstance(field, bytes) for field in fields):
        raise sqlite3.DatabaseError("a record is damaged; remove the index and make it again")
    return tuple(map(os.fsdecode, fields))


def _check_rows(rows: np.ndarray, matrix: np.ndarray) -> None:
    """Refuses rows, ascending, that the matrix does not have."""
    if rows.dtype.kind != "i" or (len(rows) and not 0 <= rows[0] <= rows[-1] < len(matrix)):
        raise sqlite3.DatabaseError("it names vectors that there are not; remove the index and make it again")


def _rows(table: sqlite3.Connection, matrix: np.ndarray, terms: Sequence[tuple[str, str, str]] = ()) -> np.ndarray:
    """Returns the rows in the matrix of the records for which all terms hold: int64 [N], ascending."""
    if not terms:
        [count] = table.execute("SELECT count(*) FROM records").fetchone()
        [last] = table.execute("SELECT max(row) FROM records").fetchone()  # both at once would read every record
        if count and last == count - 1 and count <= len(matrix):  # no row is unused
            return np.arange(count)
    where = " AND ".join(f"{name} {operator} ?" for name, operator, _ in terms) or "1"
    values = [os.fsencode(value) for *_, value in terms]
    # One text for all rows: one Python object per row would take longer than the search.
    [found] = table.execute(f"SELECT group_concat(row) FROM records WHERE {where}", values).fetchone()
    try:
        rows = np.sort(np.fromstring(found or "", np.int64, sep=","))
    except (ValueError, DeprecationWarning):  # the latter in older numpy
        raise sqlite3.DatabaseError("a record is damaged; remove the index and make it again") from None
    _check_rows(rows, matrix)
    return rows

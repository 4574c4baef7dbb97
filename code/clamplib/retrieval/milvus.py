"""An index in Milvus, either in a local file (Milvus Lite) or on a server. It needs the extra clamplib[milvus]."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from clamplib.files import InputError, show
from clamplib.retrieval.index import Index, Match, Record

BATCH = 1000  # records per message: 3 MB with 768 values each, of the 64 MB that a server accepts
PART = 20_000  # records without their vectors read at a time: typically 6 MB of the 100 MB that a server sends
MAX_MATCHES = 16_384  # Milvus's own limit on results and on queries
CONNECT_SECONDS = 5
# Limits on texts, in bytes. A path may be 4,096 bytes long on Linux, and more if it leads through an archive. Milvus
# sizes its segments for the longest texts allowed, so its own maximum of 65,535 would make many small segments.
TEXT_BYTES = {"path": 8192, "key": 256, "label": 1024, "modality": 64}


class MilvusIndex(Index):
    """An index in a Milvus collection. Searches are exact: every query is compared with every vector (FLAT).

    The primary key of a record is a hash of its path, because Milvus puts primary keys into expressions unquoted. Only
    one process at a time can open a .db file. Milvus decides the order of ties.
    """

    def __init__(
        self, location: str, space: dict | None = None, width: int | None = None, *, collection: str = "clamp3"
    ):
        """Opens the index in a .db file or at http(s)://…. If there is none and `width` is given, creates it.

        A server that requires a login gets user and password from http://user:password@…, or else the content of the
        environment variable MILVUS_TOKEN (user:password or an API key).

        Args:
            location: a file name that ends in .db, or the address of a server.
            space: the embedding space of the vectors, if it is known.
            width: the number of values per vector.
            collection: the name of the Milvus collection.

        Raises:
            ImportError: pymilvus or milvus-lite is not installed.
            InputError: no server answers, there is no index to open, or it holds vectors of another space or width.
        """
        location = str(location)
        self.location, self.collection = hide_password(location), collection
        local = not location.startswith(("http://", "https://"))
        if local and not location.endswith(".db"):
            raise InputError(f"{show(self.location)}: expected a name that ends in .db, or http://… of a Milvus server")
        if local and width:
            Path(location).parent.mkdir(parents=True, exist_ok=True)
        elif local and not Path(location).exists():
            raise self._absent()
        self._client = _Client(location, local)
        if not self._client.has_collection(collection):
            if not width:
                raise self._absent()
            self._create(space, width)
        self._client.load_collection(collection)
        described = self._client.describe_collection(collection)
        try:
            own_space = json.loads(described["properties"]["space"])
            [self.width] = [field["params"]["dim"] for field in described["fields"] if field["name"] == "vector"]
        except (KeyError, ValueError, RecursionError):
            own_space = ""
        if not isinstance(own_space, dict | None):
            raise InputError(f"{show(self.location)}: its collection {collection!r} was not made by `clamp3 index`")
        self._check(space, width, own_space)

    def _create(self, space: dict | None, width: int) -> None:
        from pymilvus import DataType

        schema = self._client.create_schema(auto_id=False)
        schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=64)
        for name, length in TEXT_BYTES.items():
            schema.add_field(name, DataType.VARCHAR, max_length=length)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=width)
        index = self._client.prepare_index_params()
        index.add_index("vector", index_type="FLAT", metric_type="COSINE")
        self._client.create_collection(
            self.collection,
            schema=schema,
            index_params=index,
            consistency_level="Strong",  # a search sees every write before it
            properties={"space": json.dumps(space)},
        )

    def close(self) -> None:
        self._client.close()

    def __len__(self) -> int:
        return self._client.query(self.collection, filter="", output_fields=["count(*)"])[0]["count(*)"]

    def records(self) -> list[Record]:
        # Hashes are evenly distributed, so ranges of ids divide the records. pymilvus's own iterator would do the same,
        # but it warns each time with Milvus Lite.
        parts = 1 + len(self) // PART
        edges = [f"{part * 16**8 // parts:08x}" for part in range(parts)] + ["g"]
        found = []
        for low, high in pairwise(edges):
            found += self._client.query(
                self.collection, filter=f'id >= "{low}" and id < "{high}"', output_fields=list(TEXT_BYTES)
            )
        return [Record(*map(row.__getitem__, TEXT_BYTES)) for row in found]

    def refusal(self, record: Record) -> str | None:
        try:
            _texts(record)
        except InputError as error:
            return str(error)
        return None

    def vectors(self, keys: Iterable[str]) -> dict[str, np.ndarray]:
        found = {}
        for batch in _batches(sorted(set(keys))):
            wanted = f"key in [{', '.join(map(quote_text, batch))}]"
            rows = self._client.query(self.collection, filter=wanted, output_fields=["key"])
            one_each = {row["key"]: row["id"] for row in rows}
            for row in self._client.get(self.collection, ids=list(one_each.values()), output_fields=["key", "vector"]):
                found[row["key"]] = np.array(row["vector"], np.float32)
        return found

    def _upsert(self, records: list[Record], vectors: np.ndarray) -> None:
        rows = [{**_texts(record), "vector": vector} for record, vector in zip(records, vectors, strict=True)]
        for batch in _batches(rows):
            self._client.upsert(self.collection, batch)

    def remove(self, paths: Iterable[str]) -> None:
        for batch in _batches([_id(path) for path in paths]):
            self._client.delete(self.collection, ids=batch)

    def _search(self, queries: np.ndarray, top_k: int, terms: list[tuple[str, str, str]]) -> list[list[Match]]:
        if top_k > MAX_MATCHES:
            raise InputError(
                f"{show(self.location)}: expected top_k of at most {MAX_MATCHES}, Milvus's limit, got {top_k}"
            )
        condition = " and ".join(f"{name} {operator} {quote_text(value)}" for name, operator, value in terms)
        found = []
        for batch in _batches(queries, MAX_MATCHES // top_k):
            results = self._client.search(
                self.collection,
                data=batch,
                limit=top_k,
                filter=condition,
                output_fields=["path", "label", "modality"],
            )
            for hits in results:
                found.append([Match(**hit["entity"], similarity=hit["distance"]) for hit in hits])
        return found


class _Client:
    """A pymilvus client whose methods raise InputError if Milvus refuses a call."""

    def __init__(self, location: str, local: bool):
        try:
            from pymilvus import MilvusClient

            if local:
                import milvus_lite  # noqa: F401
        except ImportError as error:
            raise ImportError(
                'Milvus needs extra packages; in a clone, run: pip install -c constraints.txt -e ".[milvus]"'
            ) from error
        self._location = hide_password(location)
        if local:
            expected = "the .db file of Milvus Lite, which no other process has open"
        else:
            expected = "a Milvus server that answers (for a login: http://user:password@…, or MILVUS_TOKEN)"
        token = "" if local or urlsplit(location).username else os.environ.get("MILVUS_TOKEN", "")
        with self._errors_named(expected):
            self._client = MilvusClient(location, token=token, timeout=CONNECT_SECONDS)

    def __getattr__(self, name: str) -> Callable:
        def call(*arguments: Any, **options: Any) -> Any:
            with self._errors_named(f"Milvus to do {name}"):
                return getattr(self._client, name)(*arguments, **options)

        return call

    @contextmanager
    def _errors_named(self, expected: str) -> Iterator[None]:
        from pymilvus import MilvusException

        try:
            yield
        except MilvusException as error:
            raise InputError(f"{show(self._location)}: expected {expected}, got: {error.message}") from error


def hide_password(location: str) -> str:
    """Removes user and password from an address, so that it can be shown."""
    scheme, separator, rest = location.partition("://")
    return scheme + separator + rest.rpartition("@")[2]


def _id(path: str) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()


def _texts(record: Record) -> dict[str, str]:
    """Returns the text fields of a record's row. Raises InputError if Milvus cannot store one."""
    texts = {name: getattr(record, name) for name in TEXT_BYTES}
    for name, text in texts.items():
        try:
            length = len(text.encode())
        except UnicodeEncodeError:
            raise InputError(
                f"{show(record.path)}: expected a {name} in Unicode, which Milvus requires; rename it"
            ) from None
        if length > TEXT_BYTES[name]:
            raise InputError(
                f"{show(record.path)}: expected a {name} of at most {TEXT_BYTES[name]} bytes, got {length}"
            )
    return {"id": _id(record.path), **texts}


def quote_text(text: str) -> str:
    """Quotes a text as a literal of a Milvus expression. Milvus Lite does not support expression parameters.

    Raises InputError if the text is not Unicode.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{show(text)}: expected a name in Unicode, which Milvus requires") from None
    return '"' + text.translate({ord('"'): r"\"", ord("\\"): r"\\", ord("\n"): r"\n", ord("\r"): r"\r"}) + '"'


def _batches(items: Sequence, size: int = BATCH) -> Iterator[Sequence]:
    return (items[start : start + size] for start in range(0, len(items), size))

"""An index in Milvus: in a file of this machine (Milvus Lite) or on a server. It needs the extra clamplib[milvus]."""

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
from clamplib.retrieval.index import Hit, Index, Record

BATCH = 1000  # records a message: with 768 values each, 3 MB of the 64 MB that a server takes
PART = 20_000  # records without their vectors that are read at a time: typically 6 MB of the 100 that a server gives
MOST_HITS = 16_384  # Milvus's own limit, of hits and of queries
CONNECT_SECONDS = 5
# Bytes of a text. A path may be 4,096 long on Linux, and more where it leads through an archive. Milvus plans its
# segments for the longest texts allowed, so that its own maximum, 65,535, would make many small ones.
TEXT_BYTES = {"path": 8192, "key": 256, "label": 1024, "modality": 64}


class MilvusIndex(Index):
    """An index in a collection of Milvus, compared with every query in full (FLAT).

    Records are identified by a hash of their path: Milvus puts primary keys into expressions without quoting them.
    One process at a time can have a .db open. The order of ties is Milvus's.
    """

    def __init__(
        self, location: str, space: dict | None = None, width: int | None = None, *, collection: str = "clamp3"
    ):
        """Opens the index in a .db (Milvus Lite) or at http(s)://…; where there is none and `width` is given, makes it.

        A server that asks who is there is told user and password of http://user:password@…, else what the environment
        variable MILVUS_TOKEN holds, user:password or a key. ImportError without pymilvus. InputError where no server
        answers, where there is no index to open, or one of another space or width.
        """
        location = str(location)
        self.location, self.collection = _without_password(location), collection
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
        if "space" not in described["properties"]:
            raise InputError(
                f"{show(self.location)}: its collection {collection!r} is none that `clamp3 index` has made"
            )
        [self.width] = [field["params"]["dim"] for field in described["fields"] if field["name"] == "vector"]
        self._check(space, width, json.loads(described["properties"]["space"]))

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
            consistency_level="Strong",  # what was written is found
            properties={"space": json.dumps(space)},
        )

    def close(self) -> None:
        self._client.close()

    def __len__(self) -> int:
        return self._client.query(self.collection, filter="", output_fields=["count(*)"])[0]["count(*)"]

    def records(self) -> list[Record]:
        # Hashes lie evenly. (pymilvus's own iterator warns with Milvus Lite each time.)
        parts = 1 + len(self) // PART
        edges = [f"{part * 16**8 // parts:08x}" for part in range(parts)] + ["g"]
        found = []
        for low, high in pairwise(edges):
            found += self._client.query(
                self.collection, filter=f'id >= "{low}" and id < "{high}"', output_fields=list(TEXT_BYTES)
            )
        return [Record(*(row[name] for name in TEXT_BYTES)) for row in found]

    def refusal(self, record: Record) -> str | None:
        try:
            _texts(record)
        except InputError as error:
            return str(error)
        return None

    def vectors(self, keys: Iterable[str]) -> dict[str, np.ndarray]:
        found = {}
        for batch in _batches(sorted(set(keys))):
            wanted = f"key in [{', '.join(map(_quote, batch))}]"
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

    def _search(self, queries: np.ndarray, top_k: int, terms: list[tuple[str, str, str]]) -> list[list[Hit]]:
        if top_k > MOST_HITS:
            raise InputError(
                f"{show(self.location)}: expected top_k of at most {MOST_HITS}, Milvus's limit, got {top_k}"
            )
        found = []
        for batch in _batches(queries, MOST_HITS // top_k):
            found += self._client.search(
                self.collection,
                data=batch,
                limit=top_k,
                filter=" and ".join(f"{name} {operator} {_quote(value)}" for name, operator, value in terms),
                output_fields=["path", "label", "modality"],
            )
        return [
            [Hit(*(hit["entity"][name] for name in ("path", "label", "modality")), hit["distance"]) for hit in hits]
            for hits in found
        ]


class _Client:
    """pymilvus's client of a .db or a server; InputError says what that refuses."""

    def __init__(self, location: str, local: bool):
        try:
            from pymilvus import MilvusClient

            if local:
                import milvus_lite  # noqa: F401
        except ImportError as error:
            raise ImportError("an index in Milvus needs packages of its own: pip install 'clamplib[milvus]'") from error
        self._location = _without_password(location)
        with self._named(
            "the .db of Milvus Lite that no other process has open"
            if local
            else "a Milvus server that answers (one that wants a user: http://user:password@…, or MILVUS_TOKEN)"
        ):
            token = "" if local or urlsplit(location).username else os.environ.get("MILVUS_TOKEN", "")
            self._client = MilvusClient(location, token=token, timeout=CONNECT_SECONDS)

    def __getattr__(self, name: str) -> Callable:
        def call(*arguments: Any, **options: Any) -> Any:
            with self._named(f"Milvus to do {name}"):
                return getattr(self._client, name)(*arguments, **options)

        return call

    @contextmanager
    def _named(self, expected: str) -> Iterator[None]:
        from pymilvus import MilvusException

        try:
            yield
        except MilvusException as error:
            raise InputError(f"{show(self._location)}: expected {expected}, got: {error.message}") from error


def _without_password(location: str) -> str:
    """A place as it may be shown."""
    scheme, separator, rest = location.partition("://")
    return scheme + separator + rest.rpartition("@")[2]


def _id(path: str) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()


def _texts(record: Record) -> dict[str, str]:
    """The texts of a record's row. InputError where Milvus cannot hold one."""
    texts = {name: getattr(record, name) for name in TEXT_BYTES}
    for name, text in texts.items():
        try:
            length = len(text.encode())
        except UnicodeEncodeError:
            raise InputError(
                f"{show(record.path)}: expected a {name} in Unicode, which Milvus demands; rename it"
            ) from None
        if length > TEXT_BYTES[name]:
            raise InputError(
                f"{show(record.path)}: expected a {name} of at most {TEXT_BYTES[name]} bytes, got {length}"
            )
    return {"id": _id(record.path), **texts}


def _quote(text: str) -> str:
    """A text as a literal of Milvus's expressions. (Their parameters, the other way, Milvus Lite does not know.)

    InputError where it is no Unicode.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{show(text)}: expected a name in Unicode, which Milvus demands") from None
    return '"' + text.translate({ord('"'): r"\"", ord("\\"): r"\\", ord("\n"): r"\n", ord("\r"): r"\r"}) + '"'


def _batches(items: Sequence, size: int = BATCH) -> Iterator[Sequence]:
    return (items[start : start + size] for start in range(0, len(items), size))

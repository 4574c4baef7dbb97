"""What is particular to Milvus. What every index does is in test_index.py."""

import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from clamplib.files import InputError
from clamplib.retrieval.index import Match, Record
from clamplib.retrieval.milvus import MAX_MATCHES, TEXT_BYTES, MilvusIndex, hide_password, quote_text

pytest.importorskip("pymilvus", reason="pymilvus is not installed: extra milvus")
pytest.importorskip("milvus_lite", reason="milvus-lite is not installed: extra milvus")

SPACE = {"weights_sha256": "ab", "kind": "clamp3 global"}
AXES = np.eye(4, dtype=np.float32)


@pytest.fixture(autouse=True)
def released():
    from milvus_lite.server_manager import server_manager_instance

    yield
    server_manager_instance.release_all()


def test_quoted_texts_are_one_literal():
    from milvus_lite.search.filter.tokens import tokenize

    rng = np.random.default_rng(0)
    for _ in range(500):
        text = "".join(rng.choice(list("\"'\\\n\rnx =%_é{}"), rng.integers(0, 12)))
        string, end = tokenize(quote_text(text))
        assert string.value == text and end.text == ""


def test_a_server_is_used_like_a_file(tmp_path):
    from milvus_lite.adapter.grpc.server import start_server_in_thread

    server, data, port = start_server_in_thread(str(tmp_path / "data"))
    try:
        with MilvusIndex(f"http://127.0.0.1:{port}", SPACE, 4) as index:
            index.upsert([Record("a", "k"), Record("b", "l", "jig")], AXES[:2])
        with MilvusIndex(f"http://127.0.0.1:{port}", SPACE) as index:
            assert index.search(AXES[1:2], label="jig") == [[Match("b", "jig", "", 1.0)]]
        with pytest.raises(InputError, match="there is none"):
            MilvusIndex(f"http://127.0.0.1:{port}", SPACE, collection="another")
    finally:
        server.stop(grace=0).wait()
        data.close()


def test_an_address_without_a_server_is_named():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(InputError, match=rf"^{uri}: expected a Milvus server that answers .*MILVUS_TOKEN.*unavail"):
            MilvusIndex(uri, SPACE, 4)
        with pytest.raises(InputError, match=rf"^{uri}/own: expected") as caught:  # a password is never shown
            MilvusIndex(uri.replace("//", "//somebody:se@cret@") + "/own", SPACE, 4)
        assert "cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("http://user:p/q@host:1", "http://host:1"),
        ("https://user:p@q@host/own", "https://host/own"),
        ("http://host:1", "http://host:1"),
        ("me@home/library.db", "me@home/library.db"),
    ],
)
def test_a_location_is_shown_without_its_password(location, shown):
    assert hide_password(location) == shown


@pytest.fixture
def logins(monkeypatch):
    """The arguments that pymilvus's client gets. Every call of it fails."""
    import pymilvus

    calls = []

    def refuse(uri, *, token, timeout):
        calls.append((uri, token))
        raise pymilvus.MilvusException(message="refused")

    monkeypatch.setattr(pymilvus, "MilvusClient", refuse)
    return calls


def test_a_login_goes_to_the_server(logins, monkeypatch, tmp_path):
    monkeypatch.delenv("MILVUS_TOKEN", raising=False)
    for uri in ("http://host", "http://user:password@host"):
        with pytest.raises(InputError, match="^http://host: .*refused"):
            MilvusIndex(uri, SPACE, 4)
        monkeypatch.setenv("MILVUS_TOKEN", "key")
    for place in ("http://host", tmp_path / "own.db"):
        with pytest.raises(InputError):
            MilvusIndex(place, SPACE, 4)
    assert [token for _, token in logins] == ["", "", "key", ""]


def test_a_refused_call_is_named(tmp_path):
    from pymilvus import MilvusClient

    with MilvusIndex(tmp_path / "library.db", SPACE, 4) as index:
        client = MilvusClient(str(tmp_path / "library.db"))
        client.drop_collection(index.collection)
        client.close()
        with pytest.raises(InputError, match=r"library\.db: expected Milvus to do search, got: "):
            index.search(AXES[:1])


def test_other_locations_are_refused(tmp_path):
    for name in (tmp_path / "library", "ftp://host"):
        with pytest.raises(InputError, match=r"expected a name that ends in \.db, or http"):
            MilvusIndex(name, SPACE, 4)


def test_a_foreign_collection_is_refused(tmp_path):
    from pymilvus import MilvusClient

    client = MilvusClient(str(tmp_path / "own.db"))
    client.create_collection("clamp3", dimension=4)
    with pytest.raises(InputError, match=r"own\.db: its collection 'clamp3' was not made by `clamp3 index`"):
        MilvusIndex(tmp_path / "own.db", SPACE, 4)
    with MilvusIndex(tmp_path / "own.db", SPACE, 4, collection="another") as index:
        assert len(index) == 0
    client.close()


def test_texts_have_limits(tmp_path):
    with MilvusIndex(tmp_path / "sub" / "library.db", SPACE, 4) as index:
        longest = Record(*("é" * (TEXT_BYTES[name] // 2) for name in ("path", "key", "label", "modality")))
        index.upsert([longest], AXES[:1])
        assert index.records() == [longest]
        with pytest.raises(InputError, match=r"expected a path of at most 8192 bytes, got 8193"):
            index.upsert([Record("x" * 8193, "k")], AXES[:1])
        assert index.refusal(longest) is None and "expected a label of" in index.refusal(Record("x", "k", "x" * 1025))
        with pytest.raises(InputError, match=r"expected a path in Unicode, .*; rename it"):
            index.upsert([Record(os.fsdecode(b"caf\xe9"), "k")], AXES[:1])
        index.remove([os.fsdecode(b"caf\xe9")])
        with pytest.raises(InputError, match="expected a name in Unicode"):
            index.search(AXES[:1], label=os.fsdecode(b"caf\xe9"))
        with pytest.raises(InputError, match="top_k of at most 16384"):
            index.search(AXES, MAX_MATCHES + 1)


PROCESS = """
import sys
import numpy as np
from clamplib.retrieval.index import Record
from clamplib.retrieval.milvus import MilvusIndex
index = MilvusIndex(sys.argv[1], None, 4)
index.upsert([Record(f"{len(index)} {i}", "k") for i in range(3)], np.eye(4)[:3])
print(len(index), len(index.search(np.eye(4)[:1])[0]))
if sys.argv[2:]:
    import os
    os._exit(9)
index.close()
"""


def test_a_process_finds_what_another_wrote(tmp_path):
    for arguments, count in (([], 3), (["killed"], 6), ([], 9)):
        command = [sys.executable, "-W", "error", "-c", PROCESS, str(tmp_path / "library.db"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 9 * len(arguments), done.stderr
        assert (
            done.stdout.split() == [f"{count}", f"{count}"] or arguments
        )  # a killed process loses its buffered output


@pytest.mark.parametrize("package", ["pymilvus", "milvus_lite"])
def test_the_extra_is_named(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"pip install .*\[milvus\]"):
        MilvusIndex(tmp_path / "library.db", SPACE, 4)

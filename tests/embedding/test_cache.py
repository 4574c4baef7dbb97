"""The cache of vectors: what it keeps, when it reads a file again, and several processes at once."""

import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from clamplib import database
from clamplib.embedding import cache as cache_module
from clamplib.embedding.cache import VectorCache
from clamplib.files import sha256

VECTORS = {f"key {n}": np.arange(n, n + 4, dtype=np.float32) for n in range(3)}


@pytest.fixture
def cache(tmp_path):
    return VectorCache(tmp_path / "new folder/vectors.sqlite")


@pytest.fixture
def counted(monkeypatch):
    """A list of the paths whose content was read."""
    read = []

    def counting(path):
        read.append(Path(path))
        return sha256(path)

    monkeypatch.setattr(cache_module, "sha256", counting)
    return read


def old_file(path: Path, content: bytes) -> Path:
    """A file that was not changed for long, according to its times."""
    path.write_bytes(content)
    os.utime(path, (1e9, 1e9))
    return path


def settle(monkeypatch):
    """Makes the cache take every file for an old one."""
    monkeypatch.setattr(cache_module, "SETTLED_SECONDS", -1e9)


def test_vectors_come_back(cache):
    assert cache.get(VECTORS) == {}
    assert cache.get([]) == {}
    cache.put(VECTORS)
    cache.put({})
    found = VectorCache(cache.path).get([*VECTORS, "another key", "key ' OR 1=1 --"])
    assert found.keys() == VECTORS.keys()
    for key, vector in VECTORS.items():
        assert found[key].dtype == np.float32
        np.testing.assert_array_equal(found[key], vector)
    cache.put({"key 0": np.ones(2, np.float64)})
    np.testing.assert_array_equal(cache.get(["key 0"])["key 0"], [1, 1])


def test_more_keys_than_a_query_takes(cache, monkeypatch):
    monkeypatch.setattr(database, "ASKED_AT_ONCE", 3)
    many = {str(n): np.full(1, n, np.float32) for n in range(10)}
    cache.put(many)
    assert {key: vector.item() for key, vector in cache.get(many).items()} == {str(n): n for n in range(10)}


def test_content_is_read_once(cache, tmp_path, counted, monkeypatch):
    settle(monkeypatch)
    paths = [old_file(tmp_path / name, name.encode()) for name in ("a", "b")]
    hashes = cache.content_hashes([*paths, paths[0], tmp_path / "gone", tmp_path])
    assert hashes == {str(path): sha256(path) for path in paths}
    assert set(counted) >= set(paths)
    counted.clear()
    assert cache.content_hashes(paths) == hashes
    monkeypatch.chdir(tmp_path)
    assert cache.content_hashes(["a", Path("b")]) == {"a": hashes[str(paths[0])], "b": hashes[str(paths[1])]}
    assert counted == []


def test_a_change_is_seen_though_size_and_time_are_the_old_ones(cache, tmp_path, monkeypatch):
    settle(monkeypatch)
    path = old_file(tmp_path / "a", b"one")
    before = cache.content_hashes([path])
    state = path.stat()
    while path.stat().st_ctime_ns == state.st_ctime_ns:  # the clock of files has steps
        old_file(path, b"two")
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (state.st_size, state.st_mtime_ns)
    assert cache.content_hashes([path]) == {str(path): sha256(path)} != before


def test_a_file_just_written_is_read_again(cache, tmp_path, counted):
    """Its next change may leave the same times, because these have steps. An old mtime proves nothing."""
    path = old_file(tmp_path / "a", b"one")
    for content in (b"one", b"two", b"six"):
        old_file(path, content)
        assert cache.content_hashes([path]) == {str(path): sha256(path)}
    assert counted == [path] * 3


def test_a_change_while_it_is_read_is_not_kept(cache, tmp_path, monkeypatch):
    settle(monkeypatch)
    path = old_file(tmp_path / "a", b"one")

    def slow(path):
        digest = sha256(path)
        Path(path).write_bytes(b"longer")
        return digest

    monkeypatch.setattr(cache_module, "sha256", slow)
    cache.content_hashes([path])
    monkeypatch.setattr(cache_module, "sha256", sha256)
    assert cache.content_hashes([path]) == {str(path): sha256(path)}


def test_names_that_are_not_text(cache, tmp_path, counted, monkeypatch):
    settle(monkeypatch)
    names = [os.fsdecode(b"\xff\xfe"), "'; DROP TABLE contents; --", "new\nline", "ü"]
    paths = [old_file(tmp_path / name, name.encode("utf-8", "surrogateescape")) for name in names]
    hashes = cache.content_hashes(paths)
    assert hashes == {str(path): sha256(path) for path in paths}
    counted.clear()
    assert cache.content_hashes(paths) == hashes
    assert counted == []


@pytest.mark.parametrize("damage", ["words", "middle", "other", "folder"])
def test_a_damaged_cache_is_named_once_and_costs_no_answer(cache, damage, caplog):
    cache.put({str(n): np.ones(1000, np.float32) for n in range(100)})
    if damage == "folder":
        cache.path.unlink()
        cache.path.mkdir()
    elif damage == "other":
        cache.path.unlink()
        with sqlite3.connect(cache.path) as database:
            database.execute("CREATE TABLE vectors (color TEXT)")
        database.close()
    else:
        whole = cache.path.read_bytes()
        cache.path.write_bytes(b"words" * 999 if damage == "words" else whole[:8192] + bytes(90_000) + whole[98_192:])
    assert cache.get([str(n) for n in range(100)]).keys() <= VECTORS.keys()
    cache.put(VECTORS)
    [record] = caplog.records
    assert re.search(r"vectors\.sqlite: expected a cache .*Remove it, or set CLAMP3_CACHE", record.message)


def test_a_folder_that_cannot_be_made(tmp_path, caplog):
    (tmp_path / "file").touch()
    cache = VectorCache(tmp_path / "file/vectors.sqlite")
    assert cache.get(["a"]) == {}
    assert cache.content_hashes([tmp_path / "file"]) == {str(tmp_path / "file"): sha256(tmp_path / "file")}
    [record] = caplog.records
    assert "expected a cache" in record.message


def test_many_processes_at_once(cache):
    code = """
import sys
import numpy as np
from clamplib.embedding.cache import VectorCache

cache, own = VectorCache(sys.argv[1]), sys.argv[2]
for n in range(20):
    cache.put({f"{own} {n}": np.full(8, n, np.float32), "shared": np.full(8, n, np.float32)})
    assert cache.get([f"{own} {n}", "shared"]).keys() == {f"{own} {n}", "shared"}
"""
    command = [sys.executable, "-W", "error", "-c", code, str(cache.path)]
    processes = [subprocess.Popen([*command, own]) for own in ("a", "b", "c")]
    assert [process.wait() for process in processes] == [0, 0, 0]
    keys = [f"{own} {n}" for own in "abc" for n in range(20)]
    found = cache.get(keys)
    assert [found[key][0] for key in keys] == list(range(20)) * 3


def test_where_it_lies(monkeypatch, tmp_path):
    monkeypatch.setenv("CLAMP3_CACHE", str(tmp_path / "own"))
    assert VectorCache().path == tmp_path / "own/vectors.sqlite"
    monkeypatch.delenv("CLAMP3_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert VectorCache().path == tmp_path / "clamp3/vectors.sqlite"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert VectorCache().path == Path.home() / ".cache/clamp3/vectors.sqlite"
    assert VectorCache("a.sqlite").path == Path("a.sqlite")

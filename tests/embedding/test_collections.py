"""Folders as vectors: embedded once, by content; what is found again and what is not; the cluster's way."""

import importlib.util
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from clamplib.embedding import cache as cache_module
from clamplib.embedding import collections as library_module
from clamplib.embedding import saving
from clamplib.embedding.cache import VectorCache
from clamplib.embedding.collections import (
    Collection,
    check_found,
    embed_each,
    embed_sources,
    find_sources,
    open_collection,
    update_index,
)
from clamplib.embedding.encoder import CLaMP3Encoder
from clamplib.embedding.reading import IMAGE_SUFFIXES, SUFFIXES
from clamplib.files import InputError
from clamplib.formats.score_files import Tune
from clamplib.models import settings
from clamplib.models.loading import LoadedModel
from clamplib.retrieval.index import ExactIndex
from clamplib.retrieval.similarity import normalize

TUNE = "X:1\nT:A tune\nM:4/4\nL:1/8\nK:C\nCDEF GABc|c8|]\n"
INTERLEAVED = "L:1/8\nM:4/4\nK:C\nV:1 treble\n[V:1]CDEF GABc|\n[V:1]c8|]\n"


@pytest.fixture(scope="module")
def encoder(tiny_variant):
    return CLaMP3Encoder.from_pretrained(tiny_variant, device="cpu")


@pytest.fixture
def folder(tmp_path) -> Path:
    """Texts, a tune, a tunebook, MTF; two bad files, one of another kind."""
    folder = tmp_path / "in"
    (folder / "sub dir").mkdir(parents=True)
    texts = {
        "a.txt": "a slow air",
        "sub dir/B.TXT": "a jig",
        "tune.abc": INTERLEAVED,
        "sub dir/book.abc": TUNE + "\n" + TUNE.replace("CDEF", "EFGA") + "\n" + TUNE.replace("c8", "C8"),
        "a.mtf": "ticks_per_beat 480\nnote_on 0 0 60 64\nnote_on 480 0 60 0\nend_of_track 0",
        "bad.mid": "words",
        "broken.musicxml": "<words",
        "notes.pdf": "words",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def cache(tmp_path):
    return VectorCache(tmp_path / "cache/vectors.sqlite")


@pytest.fixture
def seen(monkeypatch):
    """What the encoders are given, a list a call of theirs."""
    calls = []
    encode_each = CLaMP3Encoder.encode_each

    def counting(self, items, *args, **options):
        calls.append([str(item) for item in items])
        return encode_each(self, items, *args, **options)

    monkeypatch.setattr(CLaMP3Encoder, "encode_each", counting)
    return calls


def embed(encoder, folder, **options) -> Collection:
    return embed_sources(encoder, find_sources(folder), progress=False, **options)


def names(library, folder):
    return [str(source).removeprefix(f"{folder}/") for source in library.sources]


GOOD = ["a.mtf", "a.txt", "sub dir/B.TXT", *(f"sub dir/book.abc#{n}" for n in (1, 2, 3)), "tune.abc"]


def test_sources_are_files_and_tunes(folder):
    found = find_sources(folder)
    assert names(Collection.of(found, np.ones((len(found), 1))), folder) == sorted(
        [*GOOD, "bad.mid", "broken.musicxml"]
    )
    assert find_sources(folder / "sub dir/book.abc") == [Tune(folder / "sub dir/book.abc", n) for n in (1, 2, 3)]
    with pytest.raises(InputError, match=r"notes\.pdf: expected files ending in \.txt"):
        find_sources(folder / "notes.pdf")
    with pytest.raises(FileNotFoundError, match="gone"):
        find_sources(folder / "gone")


@pytest.mark.parametrize("at_once", [1, 2, 4096])
def test_every_file_gets_a_vector_or_a_reason(encoder, folder, at_once, monkeypatch):
    monkeypatch.setattr(library_module, "TAKEN_AT_ONCE", at_once)
    library = embed(encoder, folder)
    assert names(library, folder) == GOOD and len(library) == 7
    np.testing.assert_allclose(
        library.features.raw, encoder.encode(library.sources, normalize_embeddings=False), atol=1e-5
    )
    np.testing.assert_allclose(library.matrix, encoder.encode(library.sources), atol=1e-5)
    assert library.modalities == ["midi", "text", "text", "score", "score", "score", "score"]
    first, second = library.failures
    assert first["file"] == str(folder / "bad.mid") and "expected a MIDI file" in first["error"]
    assert second["file"] == str(folder / "broken.musicxml") and "expected MusicXML" in second["error"]
    assert check_found(library, folder) is library


def test_nothing_to_embed(encoder, folder, cache):
    library = embed_sources(encoder, [], cache=cache, progress=False)
    assert library.features.raw.shape == (0, 96) and library.sources == library.failures == []
    bad = embed_sources(encoder, [folder / "bad.mid"], progress=False)
    with pytest.raises(InputError, match="in: none of its 1 files could be embedded; the first: .*bad.mid"):
        check_found(bad, folder)


def test_a_kind_that_is_unknown_fails_alone(encoder, folder, cache):
    for options in ({}, {"cache": cache}):
        library = embed_sources(encoder, [folder / "notes.pdf", folder / "a.txt"], progress=False, **options)
        assert library.sources == [folder / "a.txt"] and "notes.pdf: expected a file" in library.failures[0]["error"]


def test_a_second_run_asks_no_model(encoder, folder, cache, seen):
    first = embed(encoder, folder, cache=cache)
    assert len(seen) == 1 and len(seen[0]) == 9
    again = embed(encoder, folder, cache=VectorCache(cache.path))
    assert seen[1:] == [[str(folder / "bad.mid"), str(folder / "broken.musicxml")]]  # which may be whole by now
    assert again.sources == first.sources and again.failures == first.failures
    np.testing.assert_array_equal(again.features.raw, first.features.raw)


def change(path: Path, text: str) -> None:
    """Other content of the same size and time."""
    before = path.stat()
    assert len(text.encode()) == before.st_size
    while path.stat().st_ctime_ns == before.st_ctime_ns:  # whose clock has steps
        path.write_text(text)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("settled", [2, -1e9])
def test_changed_content_gives_a_new_vector(encoder, folder, cache, seen, monkeypatch, settled):
    monkeypatch.setattr(cache_module, "SETTLED_SECONDS", settled)
    embed(encoder, folder / "a.txt", cache=cache)
    change(folder / "a.txt", "a fast air")
    library = embed(encoder, folder / "a.txt", cache=cache)
    assert len(seen[-1]) == 1
    np.testing.assert_allclose(library.matrix, encoder.encode(["a fast air"]), atol=1e-5)


def test_a_file_that_is_saved_meanwhile_is_no_vector_of_what_it_held(encoder, folder, cache, index, monkeypatch):
    encode_each = CLaMP3Encoder.encode_each

    def saved_meanwhile(self, items, *args, **options):
        change(folder / "a.txt", "a fast air")
        (folder / "sub dir/B.TXT").unlink()
        yield from encode_each(self, items, *args, **options)

    sources = [folder / "a.mtf", folder / "a.txt", folder / "sub dir/B.TXT"]
    with monkeypatch.context() as patch:
        patch.setattr(CLaMP3Encoder, "encode_each", saved_meanwhile)
        updated = update_index(encoder, sources, index, folder, cache=cache, progress=False)
    assert updated.changed == 1 and found_below(index, folder) == ["a.mtf"]
    assert [failure["error"] for failure in updated.failures] == [
        f"{source}: changed while it was read; run it again" for source in sources[1:]
    ]
    change(folder / "a.txt", "a slow air")
    library = embed_sources(encoder, sources[:2], cache=cache, progress=False)
    np.testing.assert_allclose(library.matrix, encoder.encode(sources[:2]), atol=1e-5)


def test_names_do_not_count(encoder, folder, cache, seen):
    first = embed(encoder, folder / "sub dir", cache=cache)
    shutil.move(folder / "sub dir", folder / "elsewhere")
    (folder / "elsewhere/book.abc").rename(folder / "elsewhere/jigs.ABC")
    shutil.copy(folder / "elsewhere/B.TXT", folder / "elsewhere/copy.txt")
    again = embed(encoder, folder / "elsewhere", cache=cache)
    assert seen[1:] == [[]]
    assert [str(s).rpartition("/")[2] for s in again.sources] == ["B.TXT", "copy.txt"] + [
        f"jigs.ABC#{n}" for n in (1, 2, 3)
    ]
    np.testing.assert_array_equal(again.features.raw, first.features.raw[[0, 0, 1, 2, 3]])


def test_what_a_file_is_taken_for_counts(encoder, folder, cache, seen):
    embed(encoder, folder / "tune.abc", cache=cache)
    shutil.copy(folder / "tune.abc", folder / "tune.txt")
    library = embed(encoder, folder / "tune.txt", cache=cache)
    assert seen[1:] == [[str(folder / "tune.txt")]]
    np.testing.assert_allclose(library.matrix, encoder.encode([INTERLEAVED]), atol=1e-5)


def test_what_made_a_vector_counts(encoder, tiny_variant, folder, cache, seen, monkeypatch):
    rounded = CLaMP3Encoder.from_pretrained(tiny_variant, "cpu", torch.bfloat16)
    other = CLaMP3Encoder(replace_weights(encoder.loaded), device="cpu")
    for each in (encoder, rounded, other):
        library = embed(each, folder / "a.txt", cache=cache)
        np.testing.assert_allclose(
            library.features.raw, each.encode(["a slow air"], normalize_embeddings=False), atol=1e-5
        )
    monkeypatch.setattr(library_module, "__version__", "another")
    embed(encoder, folder / "a.txt", cache=cache)
    paths = [str(folder / "a.txt")]
    assert [call for call in seen if call != ["a slow air"]] == [paths] * 4


def replace_weights(loaded: LoadedModel) -> LoadedModel:
    """The same sizes with weights of another training."""
    model = type(loaded.model).from_geometry(loaded.geometry).eval()
    return replace(loaded, model=model, space={**loaded.space, "weights_sha256": "0" * 64})


def test_an_interrupted_run_keeps_what_was_done(encoder, folder, cache, seen):
    sources = find_sources(folder / "sub dir")
    run = embed_each(encoder, sources, cache=cache)
    done = {number for number, _, _ in itertools.islice(run, 2)}
    run.close()
    assert {number for number, _, _ in embed_each(encoder, sources, cache=cache)} == {0, 1, 2, 3}
    assert len(done) == 2 and seen[1:] == [[str(sources[n]) for n in sorted({0, 1, 2, 3} - done)]]


INTERRUPTED = """
import sys, time
from clamplib.embedding import collections as library
from clamplib.embedding.cache import VectorCache
from clamplib.embedding.encoder import CLaMP3Encoder
from clamplib.retrieval.index import ExactIndex

encode_each = CLaMP3Encoder.encode_each

def two_and_one_that_takes_long(self, *args, **options):
    outcomes = encode_each(self, *args, **options)
    yield next(outcomes)
    yield next(outcomes)
    time.sleep(600)

CLaMP3Encoder.encode_each = two_and_one_that_takes_long
variant, folder, cache, index = sys.argv[1:]
encoder = CLaMP3Encoder.from_pretrained(variant, "cpu")
index = ExactIndex(index, encoder.space, encoder.dimension)
library.update_index(encoder, library.find_sources(folder), index, folder, cache=VectorCache(cache), progress=False)
"""


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_process_that_is_stopped_has_kept_what_was_done(tiny_variant, encoder, folder, cache, index, seen, kind):
    command = [sys.executable, "-c", INTERRUPTED, tiny_variant, folder / "sub dir", cache.path, index.location]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        while len(cache.get(index.keys())) < 2:
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        process.send_signal(kind)
    assert process.wait() != 0
    embed(encoder, folder / "sub dir", cache=cache)
    assert len(seen[0]) == 2 and update(encoder, index, folder / "sub dir", cache=cache).changed == 2
    whole = ExactIndex(Path(index.location).with_name("whole"), encoder.space, encoder.dimension)
    update(encoder, whole, folder / "sub dir")
    assert set(index.records()) == set(whole.records())
    found, expected = index.vectors(index.keys()), whole.vectors(whole.keys())
    for key in expected:
        np.testing.assert_allclose(found[key], expected[key], atol=1e-5)


def test_vectors_are_committed_together(encoder, tmp_path, cache, index, monkeypatch):
    """A commit per vector would take longer than a small model."""
    monkeypatch.setattr(saving, "SAVE_SECONDS", 1000)
    monkeypatch.setattr(saving, "SAVED_AT_ONCE", 40)
    monkeypatch.setattr(library_module, "TAKEN_AT_ONCE", 30)
    monkeypatch.setattr(
        CLaMP3Encoder, "encode_each", lambda self, items, **_: ((n, np.eye(1, 96, n), None) for n in range(len(items)))
    )
    for number in range(90):
        (tmp_path / f"{number}.txt").write_text(str(number))
    put, upserted = [], []
    upsert = ExactIndex.upsert
    monkeypatch.setattr(VectorCache, "put", lambda self, vectors: put.append(len(vectors)))
    monkeypatch.setattr(
        ExactIndex, "upsert", lambda self, rows, vectors: upserted.append(len(rows)) or upsert(self, rows, vectors)
    )
    assert update(encoder, index, tmp_path, cache=cache).changed == 90
    assert put == upserted == [40, 40, 10] and len(index) == 90


@pytest.fixture
def index(encoder, tmp_path):
    return ExactIndex(tmp_path / "index", encoder.space, encoder.dimension)


def update(encoder, index, folder, **options):
    return update_index(encoder, find_sources(folder), index, folder, progress=False, **options)


def found_below(index, folder):
    return sorted(path.removeprefix(f"{folder}/") for path in index.paths())


def test_an_index_follows_its_folder(encoder, folder, index, seen):
    first = update(encoder, index, folder)
    assert (first.changed, first.removed) == (7, 0) and found_below(index, folder) == GOOD
    assert [Path(failure["file"]).name for failure in first.failures] == ["bad.mid", "broken.musicxml"]
    expected = embed(encoder, folder)
    stored = index.vectors(record.key for record in index.records())
    by_path = {record.path: stored[record.key] for record in index.records()}
    for source, vector in zip(expected.sources, expected.matrix, strict=True):
        np.testing.assert_allclose(by_path[str(source)], vector, atol=1e-5)
    (folder / "a.txt").write_text("bad again")
    (folder / "a.mtf").rename(folder / "moved.mtf")
    (folder / "tune.abc").write_text("words")  # was good, is broken
    calls = len(seen)
    again = update(encoder, index, folder)
    assert (again.changed, again.removed) == (2, 2) and len(again.failures) == 3
    assert found_below(index, folder) == sorted({*GOOD, "moved.mtf"} - {"a.mtf", "tune.abc"})
    assert [{Path(name).name for name in call} for call in seen[calls:]] == [
        {"a.txt", "bad.mid", "broken.musicxml", "tune.abc"}
    ]
    labeled = update(encoder, index, folder / "sub dir", labels=["jig", None, "jig", "jig"])
    assert (labeled.changed, labeled.removed, labeled.failures) == (3, 0, [])
    assert sorted(record.label for record in index.records()) == ["", "", "", "jig", "jig", "jig"]


def test_an_index_says_what_cannot_be_read(encoder, folder, index, cache, monkeypatch):
    (folder / "sub dir/gone.txt").symlink_to("nowhere")
    assert update(encoder, index, folder / "sub dir", cache=cache).failures == [
        {
            "file": str(folder / "sub dir/gone.txt"),
            "error": f"{folder}/sub dir/gone.txt: there is no such file",
        }
    ]
    hashed = VectorCache.content_hashes
    monkeypatch.setattr(
        VectorCache,
        "content_hashes",
        lambda self, paths: {path: content for path, content in hashed(self, paths).items() if "B.TXT" not in path},
    )
    again = update(encoder, index, folder / "sub dir", cache=cache)
    assert again.removed == 1 and len(again.failures) == 2 and "can be now; run it again" in again.failures[0]["error"]
    assert found_below(index, folder / "sub dir") == ["book.abc#1", "book.abc#2", "book.abc#3"]


def test_an_index_hashes_once_and_keeps_what_the_cache_may_keep(encoder, folder, index, cache, seen, monkeypatch):
    hashed = []
    content_hashes = VectorCache.content_hashes
    monkeypatch.setattr(
        VectorCache, "content_hashes", lambda self, paths: hashed.append(self.path) or content_hashes(self, paths)
    )
    monkeypatch.chdir(folder)
    update(encoder, index, folder / "sub dir")
    assert len(hashed) == 1 and not cache.path.exists() and not Path(":memory:").exists()
    other = ExactIndex(Path(index.location).with_name("other"), encoder.space, encoder.dimension)
    update(encoder, other, folder / "sub dir", cache=cache)
    assert hashed[1:] == [cache.path] and len(embed(encoder, folder / "sub dir", cache=cache)) == 4
    assert seen[2:] == [[]]


@pytest.mark.parametrize("name", ["tune.abc", "sub dir/book.abc"])
def test_an_index_follows_a_single_file(encoder, folder, index, name, monkeypatch):
    monkeypatch.chdir(folder / "sub dir")
    own = Path("..", name)
    (folder / f"{name}#1.txt").write_text("a name that begins alike")
    update(encoder, index, folder)
    kept = [path for path in found_below(index, folder) if path.partition("#")[0] != name or path.endswith(".txt")]
    own.write_text("\n".join([TUNE, TUNE]))
    assert (update(encoder, index, own).failures, len(index)) == ([], len(kept) + 2)
    assert found_below(index, folder) == sorted([*kept, f"{name}#1", f"{name}#2"])
    own.write_text(INTERLEAVED)
    assert update(encoder, index, own).removed == 2 and found_below(index, folder) == sorted([*kept, name])
    own.write_text("words")
    assert update(encoder, index, own).removed == 1 and found_below(index, folder) == kept


def test_what_an_index_cannot_hold_does_not_stop_the_others(encoder, folder, index, seen, monkeypatch):
    update(encoder, index, folder / "sub dir")
    calls = len(seen)
    monkeypatch.setattr(
        ExactIndex, "refusal", lambda self, record: "too long" if record.path.endswith(("B.TXT", "a.txt")) else None
    )
    again = update(encoder, index, folder)
    refused = [failure["file"] for failure in again.failures if failure["error"] == "too long"]
    assert refused == [str(folder / name) for name in ("a.txt", "sub dir/B.TXT")] and again.removed == 1
    assert found_below(index, folder) == [name for name in GOOD if name not in ("a.txt", "sub dir/B.TXT")]
    assert not any(item.endswith("a.txt") for call in seen[calls:] for item in call)


def test_an_interrupted_update_keeps_what_was_done(encoder, folder, index, seen, monkeypatch):
    encode_each = CLaMP3Encoder.encode_each

    def interrupted(self, *args, **options):
        yield from itertools.islice(encode_each(self, *args, **options), 2)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(CLaMP3Encoder, "encode_each", interrupted)
        update(encoder, index, folder / "sub dir")
    assert len(index) == 2 and update(encoder, index, folder / "sub dir").changed == 2
    assert len(seen[-1]) == 2


def test_an_index_that_cannot_be_written_ends_the_update(encoder, folder, index, monkeypatch):
    def full(self, records, vectors):
        raise InputError("vectors.f32: expected to write vectors, could not")

    monkeypatch.setattr(ExactIndex, "upsert", full)
    with pytest.raises(InputError, match="expected to write vectors"):
        update(encoder, index, folder)


def test_a_collection_is_embedded_or_taken_as_it_is(encoder, folder, tmp_path, seen):
    made = open_collection(encoder, folder / "sub dir")
    assert made.features.keys == ["B", "book-0001", "book-0002", "book-0003"]
    np.testing.assert_allclose(made.features.matrix, encoder.encode(made.sources), atol=1e-5)
    assert made.modalities == ["text", "score", "score", "score"] and made.failures == []
    for name, vector in zip("ab", made.features.matrix, strict=False):
        (tmp_path / "features").mkdir(exist_ok=True)
        np.save(tmp_path / f"features/{name}.npy", 3 * vector)
    (tmp_path / "features/bad.npy").write_bytes(b"words")
    calls = len(seen)
    taken = open_collection(encoder, tmp_path / "features")
    assert taken.features.keys == ["a", "b"] and taken.modalities == ["", ""] and len(seen) == calls
    np.testing.assert_allclose(taken.features.matrix, normalize(made.features.matrix)[0][:2], atol=1e-6)
    assert len(taken.failures) == 1 and "bad.npy" in taken.failures[0]["error"]
    shutil.copy(folder / "a.txt", tmp_path / "features")
    assert open_collection(encoder, tmp_path / "features").modalities == ["text"]


def test_images_beside_features_are_embedded_where_there_is_a_captioner(tmp_path):
    for name in ("a.npy", "cover.PNG"):
        (tmp_path / name).touch()
    assert library_module._holds_features(tmp_path, SUFFIXES)
    assert not library_module._holds_features(tmp_path, SUFFIXES + IMAGE_SUFFIXES)


def test_two_processes_share_a_cache(tiny_variant, folder, cache, encoder, seen):
    code = """
import sys
from clamplib.embedding.cache import VectorCache
from clamplib.embedding.encoder import CLaMP3Encoder
from clamplib.embedding.collections import embed_sources, find_sources

encoder = CLaMP3Encoder.from_pretrained(sys.argv[1], "cpu")
print(len(embed_sources(encoder, find_sources(sys.argv[2]), cache=VectorCache(sys.argv[3]), progress=False)))
"""
    command = [sys.executable, "-W", "error", "-c", code, tiny_variant, folder, cache.path]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0] for process in processes] == ["7\n", "7\n"]
    assert len(embed(encoder, folder, cache=cache)) == 7 and len(seen[0]) == 2


def test_a_damaged_cache_costs_no_answer(encoder, folder, cache, caplog):
    whole = embed(encoder, folder)
    cache.path.parent.mkdir()
    cache.path.write_bytes(b"words" * 99)
    np.testing.assert_array_equal(embed(encoder, folder, cache=cache).matrix, whole.matrix)
    assert sum("expected a cache" in record.message for record in caplog.records) == 1


def test_the_clusters_way_gives_the_same_vectors(encoder, tiny_variant, folder, cache, seen, monkeypatch):
    asked = []

    def run_jobs(function, jobs, *, workers, backend, limits):
        assert limits is None  # reading has its own on the node
        asked.append((len(jobs), workers, backend))
        return ((number, function(job), None) for number, job in reversed(list(enumerate(jobs))))

    expected = embed(encoder, folder)
    monkeypatch.setattr(library_module, "run_jobs", run_jobs)
    monkeypatch.setattr(library_module, "FILES_A_JOB", 4)
    library_module._encoder.cache_clear()
    found = embed(encoder, folder, cache=cache, backend="dask", workers=3)
    assert asked == [(3, 3, "dask")] and [len(call) for call in seen[1:]] == [1, 4, 4]
    assert library_module._encoder.cache_info().misses == 1  # one model a process
    assert found.sources == expected.sources and found.failures == expected.failures
    np.testing.assert_allclose(found.features.raw, expected.features.raw, atol=1e-5)
    again = embed(encoder, folder, cache=cache)
    np.testing.assert_array_equal(again.features.raw, found.features.raw)


def test_the_threads_of_a_node_load_one_model(encoder, folder, monkeypatch):
    loaded = []

    def load(**options):
        loaded.append(options)
        time.sleep(0.1)  # in which other threads ask
        return encoder

    monkeypatch.setattr(CLaMP3Encoder, "from_pretrained", load)
    library_module._encoder.cache_clear()
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(library_module._embed_on_node, [(("name", "x"),)] * 3, [[folder / "a.txt"]] * 3))
    library_module._encoder.cache_clear()
    assert loaded == [{"name": "x"}] and [error for [(_, _, error)] in found] == [None] * 3


def test_a_node_that_fails_names_its_files(encoder, folder, monkeypatch):
    monkeypatch.setattr(library_module, "FILES_A_JOB", 5)
    monkeypatch.setattr(
        library_module, "run_jobs", lambda *_, **__: [(1, None, "MemoryError: "), (0, [(2, np.ones(96), None)], None)]
    )
    outcomes = list(embed_each(encoder, find_sources(folder), backend="ray"))
    assert [outcome[0] for outcome in outcomes] == [5, 6, 7, 8, 2]
    assert outcomes[0][2] == "MemoryError: " and outcomes[-1][1] is not None


def test_nodes_can_only_load_what_was_loaded_by_name(encoder, folder):
    other = CLaMP3Encoder(encoder.loaded, device="cpu")
    with pytest.raises(InputError, match="expected an encoder of from_pretrained"):
        embed(other, folder, backend="dask")


def test_a_real_cluster(encoder, folder):
    """Of Dask; Ray's is in test_cluster."""
    if importlib.util.find_spec("distributed"):
        found, expected = embed(encoder, folder, backend="dask"), embed(encoder, folder)
        np.testing.assert_allclose(found.features.raw, expected.features.raw, atol=1e-5)
        return
    with pytest.raises(ImportError, match="pip install distributed"):
        embed(encoder, folder, backend="dask")
    pytest.skip("distributed is not installed")


def test_from_a_checkpoint_by_name(tiny_weights, tiny_geometry, folder, monkeypatch):
    """What a node is told is enough to make the same encoder."""
    monkeypatch.setattr(settings, "make_geometry", lambda _: tiny_geometry)
    encoder = CLaMP3Encoder.from_pretrained(tiny_weights / "clamp3_tiny.pth", "cpu", torch.bfloat16)
    same = CLaMP3Encoder.from_pretrained(**dict(encoder.pretrained))
    assert (same.space_id, same.precision) == (encoder.space_id, encoder.precision)
    hash(encoder.pretrained)

"""The index on disk: what it finds, and what becomes of it when it is shared, damaged, full or killed."""

import importlib.util
import os
import shutil
import sqlite3
import subprocess
import sys
import uuid
from contextlib import closing

import numpy as np
import pytest

from clamplib.files import InputError
from clamplib.retrieval import similarity
from clamplib.retrieval.index import ExactIndex, Match, Record
from clamplib.retrieval.milvus import MilvusIndex
from clamplib.retrieval.similarity import normalize

SPACE = {"variant": "mini", "weights_sha256": "ab", "geometry": {"text": 'a "quoted" one'}, "kind": "clamp3 global"}
OTHER = {**SPACE, "weights_sha256": "cd"}
WIDTH = 8
AXES = np.eye(WIDTH, dtype=np.float32)
HOSTILE = ['a" or 1==1 or "', "a' or 1==1 --", "100%", "1_0", "b\\slash", 'b\\"', "line\nbreak\r", "\u4e00 é 🎵", "{x}"]
SERVER = os.environ.get("CLAMP3_TEST_MILVUS", "")
PLACE = r"(library\.db|http://\S+)"
NO_MILVUS = None in map(importlib.util.find_spec, ("pymilvus", "milvus_lite"))


def random_rows(count, seed=0, width=WIDTH):
    return normalize(np.random.default_rng(seed).normal(size=(count, width)))[0]


def library(seed, count=60):
    """Records of a few folders, labels and modalities, and their vectors."""
    rng = np.random.default_rng(seed)
    folders, labels, modalities = ("a", "a/b", "ab", "c d"), ("", "jig", "reel"), ("score", "audio")
    records = [
        Record(f"/m/{rng.choice(folders)}/{i}.abc", f"key{i}", str(rng.choice(labels)), str(rng.choice(modalities)))
        for i in range(count)
    ]
    return records, random_rows(count, seed)


def brute_force(records, vectors, query, top_k, folder=None, label=None, modality=None):
    """What a search has to find: every record is compared, in float64."""
    kept = [
        (float(vector.astype(float) @ query.astype(float)), record)
        for record, vector in zip(records, vectors, strict=True)
        if (folder is None or record.path.startswith(folder + "/"))
        and label in (None, record.label)
        and modality in (None, record.modality)
    ]
    return sorted(kept, key=lambda pair: -pair[0])[:top_k]


def assert_found(matches, expected):
    assert [match.path for match in matches] == [record.path for _, record in expected]
    assert [(match.label, match.modality) for match in matches] == [
        (record.label, record.modality) for _, record in expected
    ]
    np.testing.assert_allclose([match.similarity for match in matches], [value for value, _ in expected], atol=1e-5)


STORES = [
    "exact",
    pytest.param(
        "milvus", marks=pytest.mark.skipif(NO_MILVUS, reason="pymilvus or milvus-lite is not installed: extra milvus")
    ),
    # on the server that CLAMP3_TEST_MILVUS names, each test in a collection of its own
    pytest.param(
        "server", marks=pytest.mark.skipif(not SERVER, reason="CLAMP3_TEST_MILVUS=http://… names no Milvus server")
    ),
]


@pytest.fixture(params=STORES)
def opened(request, tmp_path):
    """Opens the index of this test, in either kind of store: opened(space, width)."""
    indices, collection = [], f"test_{uuid.uuid4().hex}"

    def open_one(space=SPACE, width=None):
        if request.param == "server":
            indices.append(MilvusIndex(SERVER, space, width, collection=collection))
        else:
            make = {"exact": ExactIndex, "milvus": MilvusIndex}[request.param]
            indices.append(make(tmp_path / "library.db", space, width))
        return indices[-1]

    yield open_one
    for index in indices:
        index.close()
    if request.param == "milvus":
        from milvus_lite.server_manager import server_manager_instance

        server_manager_instance.release_all()
    if request.param == "server":
        from pymilvus import MilvusClient

        MilvusClient(SERVER).drop_collection(collection)


class TestEveryIndex:
    def test_a_new_index_is_empty(self, opened):
        index = opened(width=WIDTH)
        index.upsert([], np.empty((0, WIDTH)))
        assert len(index) == 0 and index.records() == [] and index.keys() == index.paths() == set()
        assert index.search(AXES[:2], folder="x") == [[], []] and index.search(AXES[:0]) == []
        assert index.vectors(["a"]) == {} and index.refusal(Record("a", "k")) is None
        index.remove(["x"])

    @pytest.mark.parametrize("seed", range(3))
    def test_a_search_equals_brute_force(self, opened, seed, monkeypatch):
        monkeypatch.setattr(similarity, "BLOCK_VALUES", 13 * WIDTH)  # many small blocks
        records, vectors = library(seed)
        queries = random_rows(5, 100 + seed)
        index = opened(width=WIDTH)
        for part in (slice(0, 25), slice(25, 26), slice(26, 60)):
            index.upsert(records[part], vectors[part])
        filters = [
            {},
            {"folder": "/m/a"},
            {"folder": "/m/c d", "label": "jig"},
            {"label": ""},
            {"modality": "audio"},
            {"folder": "/m/a", "label": "reel", "modality": "score"},
            {"label": "none such"},
        ]
        for top_k in (1, 7, 99):
            for terms in filters:
                for query, matches in zip(queries, index.search(queries, top_k, **terms), strict=True):
                    assert_found(matches, brute_force(records, vectors, query, top_k, **terms))
        assert_found(
            index.search(queries[:1], folder="/m/a/")[0], brute_force(records, vectors, queries[0], 10, "/m/a")
        )

    def test_a_match_has_the_fields_of_its_record(self, opened):
        index = opened(width=WIDTH)
        index.upsert([Record("x/1.abc", "k", "jig", "score"), Record("2.abc", "l")], AXES[:2])
        assert index.search(AXES[:1], 1) == [[Match("x/1.abc", "jig", "score", 1.0)]]
        assert index.search(AXES[1:2], 1) == [[Match("2.abc", "", "", 1.0)]]

    def test_equal_vectors_are_all_found(self, opened):
        index = opened(width=WIDTH)
        records = [Record(f"{i}", f"{i}") for i in range(12)]
        index.upsert(records, AXES[[0, 1, 2] * 4])
        [matches] = index.search(AXES[1:2], 4)
        assert sorted(int(match.path) for match in matches) == [1, 4, 7, 10]
        assert {match.similarity for match in matches} == {1.0}

    def test_the_same_content_at_two_paths_is_two_matches(self, opened):
        index = opened(width=WIDTH)
        index.upsert([Record("a", "same"), Record("b", "same"), Record("c", "other")], AXES[[0, 0, 1]])
        assert {match.path for match in index.search(AXES[:1], 2)[0]} == {"a", "b"}
        index.remove(["a"])
        assert index.search(AXES[:1], 1)[0][0].path == "b" and index.keys() == {"same", "other"}

    def test_upsert_replaces_the_record_of_a_path(self, opened):
        index = opened(width=WIDTH)
        index.upsert([Record("a", "old", "jig"), Record("b", "k")], AXES[:2])
        index.upsert([Record("a", "new", "reel")], AXES[2:3])
        index.upsert([Record("c", "1"), Record("c", "2")], AXES[3:5])  # the last counts
        assert len(index) == 3 and index.keys() == {"new", "k", "2"}
        assert set(index.records()) == {Record("a", "new", "reel"), Record("b", "k"), Record("c", "2")}
        [matches] = index.search(AXES[2:3])
        assert matches[0] == Match("a", "reel", "", 1.0) and [match.similarity for match in matches] == [1, 0, 0]
        assert index.search(AXES[4:5], 1)[0][0].path == "c" and index.search(AXES[:1], label="jig") == [[]]

    def test_removed_records_are_gone(self, opened):
        records, vectors = library(7, 40)
        index = opened(width=WIDTH)
        index.upsert(records, vectors)
        for cut in (5, 20, 30, 40):  # past half of them the exact index rewrites its matrix
            index.remove([record.path for record in records[:cut]] + ["absent"])
            assert len(index) == 40 - cut and set(index.records()) == set(records[cut:])
            for vector, matches in zip(vectors, index.search(vectors, 40), strict=True):
                assert_found(matches, brute_force(records[cut:], vectors[cut:], vector, 40))
        index.upsert(records[:3], vectors[:3])
        assert index.paths() == {record.path for record in records[:3]}

    def test_a_reopened_index_continues(self, opened):
        records, vectors = library(1, 30)
        index = opened(width=WIDTH)
        index.upsert(records[:11], vectors[:11])
        again = opened(width=WIDTH)  # creating an index that exists opens it
        assert again.keys() == {record.key for record in records[:11]}
        again.upsert(records[11:], vectors[11:])
        assert len(index) == 30 and index.keys() == {record.key for record in records}  # the first sees it
        found = opened().vectors([records[4].key, "absent", records[20].key, records[4].key])
        assert found.keys() == {records[4].key, records[20].key}
        assert found[records[20].key].dtype == np.float32
        np.testing.assert_array_equal(found[records[4].key], vectors[4])

    def test_records_beyond_one_message(self, opened, monkeypatch):
        monkeypatch.setattr("clamplib.retrieval.milvus.PART", 300)
        index = opened(width=WIDTH)
        records = [Record(f"{i}", f"key {i % 1500}") for i in range(2100)]
        vectors = random_rows(2100)
        index.upsert(records, vectors)
        assert len(index) == 2100 and set(index.records()) == set(records)
        assert len(index.vectors(record.key for record in records)) == 1500
        assert [matches[0].path for matches in index.search(vectors[::2], 1)] == [f"{i}" for i in range(0, 2100, 2)]
        index.remove(record.path for record in records[:1600])
        assert index.paths() == {f"{i}" for i in range(1600, 2100)}

    def test_names_are_data(self, opened):
        index = opened(width=WIDTH)
        own = [Record(f"/{text}/x", text, text, text[:16]) for text in HOSTILE]
        others = [Record("/a/x", "a", "a", "a"), Record("/1x0/x", "b", "100", "b")]
        index.upsert([*own, *others], AXES[[0] * len(own) + [1, 2]])
        assert set(index.records()) == {*own, *others} and index.vectors(HOSTILE).keys() == set(HOSTILE)
        for text, record in zip(HOSTILE, own, strict=True):
            for terms in ({"folder": f"/{text}"}, {"label": text}, {"modality": text[:16]}):
                [matches] = index.search(AXES[:1], **terms)
                assert [match.path for match in matches] == [record.path], terms
        for left, record in enumerate(own, 1):
            index.remove([record.path])
            assert len(index) == len(own) + len(others) - left and record not in index.records()

    def test_another_space_is_refused(self, opened):
        opened(width=WIDTH)
        opened({**SPACE, "variant": "/elsewhere/mini"})
        opened(None)
        for width in (None, WIDTH):
            with pytest.raises(InputError, match=PLACE + r".*the model that was asked for.*weights_sha256 differ"):
                opened(OTHER, width)
        with pytest.raises(InputError, match=PLACE + r": expected vectors of 8 values, got 9"):
            opened(width=9)

    def test_an_index_of_unknown_space_takes_any(self, opened):
        opened(None, WIDTH)
        opened(SPACE)

    def test_an_absent_index_is_an_error(self, opened, tmp_path):
        with pytest.raises(InputError, match=PLACE + r": expected an index, there is none; .*clamp3 index"):
            opened()
        assert list(tmp_path.iterdir()) == []

    def test_vectors_of_other_lengths_are_refused(self, opened):
        index = opened(width=WIDTH)
        for value in (0, 0.5, 2, np.nan, np.inf):
            vectors = np.where(AXES[:2] == 1, [[1], [value]], 0)
            with pytest.raises(InputError, match=r"b\.abc: expected a vector of length 1, got length "):
                index.upsert([Record("a.abc", "a"), Record("b.abc", "b")], vectors)
        assert len(index) == 0

    def test_wrong_shapes_are_refused(self, opened):
        index = opened(width=WIDTH)
        with pytest.raises(InputError, match=PLACE + r": expected vectors \[1, 8\], got \[1, 9\]"):
            index.upsert([Record("a", "a")], np.ones((1, 9)))
        for shape in ((1, 9), (8,)):
            with pytest.raises(InputError, match=r"expected queries \[Q, 8\], got"):
                index.search(np.ones(shape))
        with pytest.raises(ValueError, match="top_k"):
            index.search(AXES, 0)

    def test_queries_of_other_lengths_are_refused(self, opened):
        index = opened(width=WIDTH)
        index.upsert([Record("a", "a")], AXES[:1])
        for value in (0, 0.5, np.nan, np.inf):
            queries = np.where(AXES[:2] == 1, [[1], [value]], 0)
            with pytest.raises(InputError, match=PLACE + r": query 2: expected a vector of length 1, got length "):
                index.search(queries)


def test_what_others_write_is_found(tmp_path, monkeypatch):
    """An open index remembers its matrix, and which rows some filters kept of it, until something is written."""
    records, vectors = library(3)
    index, writer = ExactIndex(tmp_path, SPACE, WIDTH), ExactIndex(tmp_path, SPACE, WIDTH)
    filters = [{}, {"label": "jig"}, {"folder": "/m/a", "modality": "audio"}]
    monkeypatch.setattr("clamplib.retrieval.index.FILTERS_KEPT", 2)

    def check(held):
        for terms in [*filters, *filters]:
            [matches] = index.search(vectors[:1], 60, **terms)
            assert_found(matches, brute_force(records[held], vectors[held], vectors[0], 60, **terms))

    writer.upsert(records[:40], vectors[:40])
    check(slice(40))
    writer.remove([record.path for record in records[:5]])
    check(slice(5, 40))
    writer.upsert(records[40:], vectors[40:])
    check(slice(5, None))
    writer.remove([record.path for record in records[:50]])  # the matrix is another file now
    check(slice(50, None))
    index.remove([record.path for record in records[:55]])
    check(slice(55, None))
    index.close()
    check(slice(55, None))


def test_a_label_is_one_object(tmp_path):
    index = ExactIndex(tmp_path, SPACE, WIDTH)
    index.upsert([Record("a", "1", "a long label", "score"), Record("b", "2", "a long label", "score")], AXES[:2])
    first, second = index.records()
    assert first.label is second.label and first.modality is second.modality


def test_ties_come_in_the_order_of_adding(tmp_path, monkeypatch):
    monkeypatch.setattr(similarity, "BLOCK_VALUES", 3 * WIDTH)
    index = ExactIndex(tmp_path, SPACE, WIDTH)
    index.upsert([Record(f"{i}", f"{i}") for i in (5, 3, 9, 1, 7, 2, 8)], AXES[[0, 0, 1, 0, 0, 1, 0]])
    index.upsert([Record("5", "again")], AXES[:1])
    assert [match.path for match in index.search(AXES[:1], 4)[0]] == ["3", "1", "7", "8"]
    assert [match.path for match in index.search(AXES[:1], 9)[0]] == ["3", "1", "7", "8", "5", "9", "2"]


def test_names_need_not_be_unicode(tmp_path):
    index = ExactIndex(tmp_path, SPACE, WIDTH)
    name = os.fsdecode(b"/caf\xe9/a")
    index.upsert([Record(name, "k", name), Record("/b", "l")], AXES[:2])
    assert index.search(AXES[:1], folder=os.fsdecode(b"/caf\xe9"), label=name) == [[Match(name, name, "", 1.0)]]
    index.remove([name])
    assert index.paths() == {"/b"}


def test_removing_frees_disk_space(tmp_path):
    records, vectors = library(0, 50)
    index = ExactIndex(tmp_path, SPACE, WIDTH)
    index.upsert(records, vectors)
    for _ in range(20):
        index.upsert(records[:10], vectors[:10])
        [matrix] = tmp_path.glob("vectors-*")
        assert matrix.stat().st_size <= (2 * 50 + 10) * WIDTH * 4
    index.remove([record.path for record in records[10:]])
    [matrix] = tmp_path.glob("vectors-*")
    assert matrix.stat().st_size == 10 * WIDTH * 4


def test_a_full_disk_changes_nothing(tmp_path):
    """A limit on the size of files stands in for a full disk."""
    resource = pytest.importorskip("resource")
    records, vectors = library(0, 60)
    index = ExactIndex(tmp_path, SPACE, WIDTH)
    index.upsert(records[:20], vectors[:20])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30 * WIDTH * 4, limits[1]))
    try:
        with pytest.raises(InputError, match=r"vectors-.*\.f32: expected to write vectors, could not"):
            index.upsert(records[20:], vectors[20:])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert set(index.records()) == set(records[:20])
    index.upsert(records[20:], vectors[20:])
    for vector, matches in zip(vectors, index.search(vectors, 60), strict=True):
        assert_found(matches, brute_force(records, vectors, vector, 60))


def test_two_writers_take_turns(tmp_path):
    code = """
import sys
import numpy as np
from clamplib.retrieval.index import ExactIndex, Record
name = sys.argv[2]
index = ExactIndex(sys.argv[1], None, 4)
for turn in range(40):
    index.upsert([Record(f"{name} {turn % 10} {i}", f"{turn}") for i in range(3)], np.eye(4)[[int(name)] * 3])
"""
    command = [sys.executable, "-W", "error", "-c", code, str(tmp_path)]
    writers = [subprocess.Popen([*command, str(name)]) for name in range(4)]
    assert [writer.wait() for writer in writers] == [0] * 4
    index = ExactIndex(tmp_path)
    assert index.paths() == {f"{name} {turn} {i}" for name in range(4) for turn in range(10) for i in range(3)}
    assert index.keys() == {str(turn) for turn in range(30, 40)}
    for name, matches in enumerate(index.search(np.eye(4), 30)):
        assert {match.path[0] for match in matches} == {str(name)} and {match.similarity for match in matches} == {1.0}


def test_writers_wait_for_a_search(tmp_path, monkeypatch):
    records, vectors = library(0, 20)
    index = ExactIndex(tmp_path, SPACE, WIDTH)
    index.upsert(records, vectors)
    monkeypatch.setattr("clamplib.retrieval.index.LOCK_SECONDS", 0.01)
    real = similarity.search

    def search_while_others_write(*arguments):
        for write in (lambda: index.remove([records[0].path]), lambda: index.upsert(records[:1], vectors[1:2])):
            with pytest.raises(InputError, match=r"records\.sqlite.*locked"):
                write()
        return real(*arguments)

    monkeypatch.setattr(similarity, "search", search_while_others_write)
    assert_found(index.search(vectors[:1], 20)[0], brute_force(records, vectors, vectors[0], 20))
    monkeypatch.undo()
    index.upsert(records[:1], vectors[1:2])
    assert index.search(vectors[1:2], 2)[0][1].path == records[0].path


def test_a_folder_that_cannot_be_written_can_be_searched(tmp_path):
    index = ExactIndex(tmp_path / "i", SPACE, WIDTH)
    index.upsert([Record("a", "a")], AXES[:1])
    for path in (*(tmp_path / "i").iterdir(), tmp_path / "i"):
        path.chmod(path.stat().st_mode & ~0o222)
    before = sorted((tmp_path / "i").iterdir())
    assert ExactIndex(tmp_path / "i", SPACE).search(AXES[:1])[0][0].path == "a"
    assert sorted((tmp_path / "i").iterdir()) == before
    (tmp_path / "i").chmod(0o755)


def test_a_damaged_index_is_named(tmp_path):
    index = ExactIndex(tmp_path / "i", SPACE, WIDTH)
    index.upsert([Record("a", "a"), Record("b", "b")], AXES[:2])
    [matrix] = (tmp_path / "i").glob("vectors-*")
    matrix.write_bytes(matrix.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"vectors-.*\.f32: expected 2 vectors of 8 values, .*shorter .*make it again"):
        index.search(AXES[:1])
    with pytest.raises(InputError, match="the file is shorter or missing"):  # the gap is not filled with zeros
        index.upsert([Record("c", "c")], AXES[:1])
    matrix.unlink()
    with pytest.raises(InputError, match="the file is shorter or missing"):
        index.upsert([Record("c", "c")], AXES[:1])
    (tmp_path / "i" / ExactIndex.TABLE).write_text("words" * 1000)
    with pytest.raises(InputError, match=r"records\.sqlite: expected the table of an index, .*not a database"):
        ExactIndex(tmp_path / "i")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file: expected the folder of an index, got a file"):
        ExactIndex(tmp_path / "file", SPACE, WIDTH)


def edit(folder, *statements):
    with closing(sqlite3.connect(folder / ExactIndex.TABLE)) as table:
        for statement in statements:
            table.execute(statement)
        table.commit()


@pytest.fixture
def damaged(tmp_path):
    """An index of three records, to be damaged: its folder."""
    index = ExactIndex(tmp_path / "i", SPACE, WIDTH)
    index.upsert([Record(f"{i}", f"key {i}") for i in range(3)], AXES[:3])
    return tmp_path / "i"


def use(folder):
    """Does all that an index can do."""
    index = ExactIndex(folder, SPACE)
    index.records()
    index.vectors(["key 0", "key 1", "key 2"])
    index.search(AXES[:2], 3)
    index.search(AXES[:2], 3, label="")
    index.upsert([Record("new", "new")], AXES[:1])
    index.remove(["0", "1", "2"])


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM state",
        "UPDATE state SET space = '{'",
        "UPDATE state SET space = '[]'",
        "UPDATE state SET space = printf('%.*c', 200000, '[')",
        "UPDATE state SET space = x'ff'",
        "UPDATE state SET width = 1000000000000",
        "UPDATE state SET width = -8",
        "UPDATE state SET width = 'wide'",
        "UPDATE state SET rows = -1",
        "UPDATE state SET rows = 1.5",
        "UPDATE state SET rows = NULL",
        "UPDATE state SET matrix = NULL",
        "UPDATE state SET matrix = 'records.sqlite'",
        "UPDATE state SET matrix = '../vectors-00000000000000000000000000000000.f32'",
        "UPDATE state SET matrix = '/etc/passwd'",
        "UPDATE records SET row = 1000000000000",
        "UPDATE records SET row = -1",
        "UPDATE records SET row = 'first'",
        "UPDATE records SET row = x'00ff'",
        "UPDATE records SET row = 0.5",
        "UPDATE records SET label = 5",
        "UPDATE records SET modality = NULL",
        "DROP TABLE records",
        "ALTER TABLE state RENAME COLUMN rows TO vectors",  # as in another version
        "CREATE VIEW other AS SELECT 1",
        "CREATE TRIGGER other AFTER INSERT ON records BEGIN DELETE FROM records; END",
    ],
)
def test_a_damaged_table_is_named(damaged, statement):
    edit(damaged, statement)
    with pytest.raises(
        InputError, match=r"i/records\.sqlite: expected the table of an index, could not use it \(.+\)$"
    ):
        use(damaged)


def test_a_table_names_no_file_elsewhere(damaged, tmp_path):
    """An index of someone else's that named one would have it read, and written at the next update."""
    [matrix] = damaged.glob("vectors-*")
    own = tmp_path / matrix.name
    own.write_bytes(bytes(3 * WIDTH * 4))
    edit(damaged, f"UPDATE state SET matrix = '{own}'")
    with pytest.raises(InputError, match="its state is damaged"):
        use(damaged)
    assert own.read_bytes() == bytes(3 * WIDTH * 4)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30, -5.0])
def test_damaged_vectors_are_named(damaged, value):
    [matrix] = damaged.glob("vectors-*")
    vectors = np.fromfile(matrix, "<f4").reshape(3, WIDTH)
    vectors[1] = value
    vectors.tofile(matrix)
    with pytest.raises(InputError, match=r"vectors-.*\.f32: expected vectors of length 1, .* make it again"):
        ExactIndex(damaged).search(AXES[1:2], 3)


@pytest.mark.parametrize("name", ["records.sqlite", "vectors-*"])
@pytest.mark.parametrize("seed", range(12))
def test_an_index_with_flipped_bits_answers_or_is_refused(damaged, name, seed):
    rng = np.random.default_rng(seed)
    [path] = damaged.glob(name)
    data = np.frombuffer(path.read_bytes(), np.uint8).copy()
    for _ in range(20):
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    path.write_bytes(data[: rng.integers(len(data))].tobytes() if seed % 4 == 0 else data.tobytes())
    try:
        use(damaged)
    except InputError as error:
        assert str(error).startswith(f"{damaged}/") and str(error).isprintable()


KILLED_AT_EVERY_LINE = """
import os, shutil, sys
import numpy as np
from clamplib.retrieval import index as module
from clamplib.retrieval.index import ExactIndex, Record

def act(folder, action):
    index = ExactIndex(folder, None, 4)
    if action == "upsert":
        index.upsert([Record(str(i), "new") for i in range(6, 12)], np.eye(4)[[0, 1, 2, 3, 0, 1]])
    if action == "remove":
        index.remove([str(i) for i in range(6)])

def killed_at(line, folder, action):
    lines = 0
    def trace(frame, event, _):
        nonlocal lines
        if not frame.f_code.co_filename.startswith(module.__file__):
            return None
        lines += event == "line"
        if lines == line:
            os._exit(9)
        return trace
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    sys.settrace(trace)
    act(folder, action)
    os._exit(0)

def state(folder):
    found = {}
    if os.path.exists(folder):
        index = ExactIndex(folder, None, 4)
        vectors = {}
        for row, matches in enumerate(index.search(np.eye(4), 99)):
            vectors |= {match.path: row for match in matches if match.similarity > .5}
        found = {record.path: (record.key, vectors.pop(record.path)) for record in index.records()}
        assert not vectors and len(index) == len(found)
    return found

root, action = sys.argv[1:]
before, work, after = (os.path.join(root, name) for name in ("before", "work", "after"))
if action != "create":
    index = ExactIndex(before, None, 4)
    index.upsert([Record(str(i), "old") for i in range(9)], np.eye(4)[[3, 2, 1, 0, 3, 2, 1, 0, 3]])
    shutil.copytree(before, after)
act(after, action)
wanted, kept, line, seen = state(after), state(before), 1, [0, 0]
while True:
    shutil.rmtree(work, ignore_errors=True)
    if action != "create":
        shutil.copytree(before, work)
    if not killed_at(line, work, action):
        break
    found = state(work)
    assert found in (kept, wanted), (line, found)
    seen[found == wanted] += 1
    act(work, action)
    assert state(work) == wanted, line
    line += 1
print(*seen)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forks of a process")
@pytest.mark.parametrize("action", ["create", "upsert", "remove"])
def test_a_write_killed_at_any_line_is_undone_or_complete(tmp_path, action):
    command = [sys.executable, "-W", "error", "-c", KILLED_AT_EVERY_LINE, str(tmp_path), action]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    before, after = map(int, done.stdout.split())
    assert before + after > 20 and (action == "create" or min(before, after) > 5)


def test_an_unfinished_write_has_no_effect(tmp_path):
    records, vectors = library(0, 20)
    index = ExactIndex(tmp_path / "i", SPACE, WIDTH)
    index.upsert(records[:10], vectors[:10])
    [matrix] = (tmp_path / "i").glob("vectors-*")
    with matrix.open("ab") as file:
        file.write(b"\xff" * (5 * WIDTH * 4 + 3))
    shutil.copytree(tmp_path / "i", tmp_path / "copy")
    for folder in ("i", "copy"):
        index = ExactIndex(tmp_path / folder, SPACE)
        assert len(index) == 10
        index.upsert(records[10:], vectors[10:])
        for vector, matches in zip(vectors, index.search(vectors, 20), strict=True):
            assert_found(matches, brute_force(records, vectors, vector, 20))


def test_the_table_is_plain_sqlite(tmp_path):
    ExactIndex(tmp_path, SPACE, WIDTH).upsert([Record("a", "k", "jig")], AXES[:1])
    table = sqlite3.connect(tmp_path / ExactIndex.TABLE)
    assert table.execute("SELECT CAST(path AS TEXT), CAST(label AS TEXT), row FROM records").fetchall() == [
        ("a", "jig", 0)
    ]
    table.close()

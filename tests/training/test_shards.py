"""Shards: read like folders, and packed from a JSONL's files."""

import gzip
import io
import json
import multiprocessing
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from clamplib.files import InputError
from clamplib.training import packing, shards
from clamplib.training.pieces import m3_files, read_pieces
from clamplib.training.shards import Finder, members

CODE = Path(__file__).parents[2] / "code"


def write_tar(path, contents, format=tarfile.GNU_FORMAT, mode="w"):
    with tarfile.open(path, mode, format=format) as tar:
        for name, data in contents.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            if name.endswith("/"):
                header.type = tarfile.DIRTYPE
            tar.addfile(header, io.BytesIO(data))
    return path


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_files_by_path(tmp_path, format):
    long = "l" * 60 + "/" + "m" * 70 + ".abc"
    names = ["./a b.abc", "./sub/ü 曲\n;$(x).mtf", long, "empty.abc", "-.npy"]
    contents = {"sub/": b"", **{name: name.encode() * 90 for name in names}, "empty.abc": b""}
    shard = write_tar(tmp_path / "s.tar", contents, format)
    find, found = Finder().find, members(shard)
    assert set(found) == {name.removeprefix("./") for name in names}
    for name, file in found.items():
        expected = contents[name if name in contents else f"./{name}"]
        assert find(tmp_path / "s.tar" / name) == file and str(file.path) == f"{shard}/{name}"
        assert file.read() == expected and file.read(10) == expected[:10] and file.size == len(expected)
    for nowhere in ("gone.abc", "sub", "../s.tar", "a b.abc/x", "\0", "\ud800"):
        assert find(shard / nowhere) is None


def test_the_later_of_two_members_counts(tmp_path):
    shard = write_tar(tmp_path / "s.tar", {"a.abc": b"old", "b.abc": b"b"})
    write_tar(shard, {"a.abc": b"new"}, mode="a")
    assert [file.read() for file in members(shard).values()] == [b"new", b"b"]


def test_files_of_their_own(tmp_path):
    (tmp_path / "folder.tar").mkdir()
    (tmp_path / "folder.tar/a.abc").write_bytes(b"unpacked")
    write_tar(tmp_path / "folder.tar/s.tar", {"x.tar/a.abc": b"packed"})
    find = Finder().find
    assert find(tmp_path / "folder.tar/a.abc").read() == b"unpacked"
    assert find(tmp_path / "folder.tar/a.abc").read(2) == b"un"
    assert find(tmp_path / "folder.tar/s.tar/x.tar/a.abc").read() == b"packed"
    assert find(tmp_path / "folder.tar") is None and find(tmp_path / "gone.tar/a.abc") is None


def broken_tars():
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as tar:
        for name in ("a.abc", "b.abc", "c.abc"):
            header = tarfile.TarInfo(name)
            header.size = 700
            tar.addfile(header, io.BytesIO(b"x" * 700))
    whole = whole.getvalue()
    return {
        "compressed": gzip.compress(whole),
        "cut in a member": whole[:2300],
        "cut in a header": whole[:1600],
        "cut between": whole[:1536],
        "broken header": whole[:1536] + b"x" * 512 + whole[2048:],
        "empty": b"",
        "text": b"no tar at all\n" * 90,
    }


@pytest.mark.parametrize("kind", broken_tars())
def test_broken_shards(tmp_path, kind):
    (tmp_path / "s.tar").write_bytes(broken_tars()[kind])
    with pytest.raises(InputError, match="s.tar: expected an uncompressed tar"):
        members(tmp_path / "s.tar")
    find = Finder().find
    for _ in range(2):
        with pytest.raises(InputError, match="s.tar: expected an uncompressed tar"):
            find(tmp_path / "s.tar/a.abc")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_are_no_files(tmp_path, kind):
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        header = tarfile.TarInfo("a.abc")
        header.type, header.linkname = kind, "/etc/passwd"
        tar.addfile(header)
    with pytest.raises(InputError, match="s.tar: .*a.abc is a link"):
        members(tmp_path / "s.tar")


def test_a_shard_cut_after_it_was_listed(tmp_path):
    shard = write_tar(tmp_path / "s.tar", {"a.abc": b"a" * 900})
    file = members(shard)["a.abc"]
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(InputError, match="s.tar/a.abc: expected 900 bytes in the shard, got 488"):
        file.read()


def read_all(files):
    return [file.read() for file in files]


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_processes_read_at_once(tmp_path, start):
    """Also from shards that were open before the processes began."""
    if start not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {start} here")
    for number in range(3):
        write_tar(tmp_path / f"{number}.tar", {f"{k}.abc": b"%d %d" % (number, k) * 999 for k in range(40)})
    files = [file for number in range(3) for file in members(tmp_path / f"{number}.tar").values()]
    expected = read_all(files)
    assert len(set(expected)) == 120
    with multiprocessing.get_context(start).Pool(2) as pool:
        assert pool.map(read_all, [files, files[::-1]] * 4) == [expected, expected[::-1]] * 4


def test_few_shards_are_open_at_once(tmp_path, monkeypatch):
    opened, closed = [], []
    open_file, close_file = shards.os.open, shards.os.close
    monkeypatch.setattr(shards.os, "open", lambda *args: opened.append(open_file(*args)) or opened[-1])
    monkeypatch.setattr(shards.os, "close", lambda descriptor: closed.append(close_file(descriptor)))
    count = shards.OPEN_SHARDS + 5
    for number in range(count):
        write_tar(tmp_path / f"{number}.tar", {"a": b"%d" % number})
    opened.clear()
    files = [members(tmp_path / f"{number}.tar")["a"] for number in range(count)]
    shards._open.cache_clear()
    closed.clear()
    assert read_all(files) == [b"%d" % number for number in range(count)]
    assert len(opened) == count and len(closed) == 5
    shards._open.cache_clear()
    assert len(closed) == count


def test_a_broken_shard_ends_no_training(tmp_path):
    write_tar(tmp_path / "good.tar", {"a.abc": b"K:C\nC|"})
    (tmp_path / "bad.tar").write_bytes(b"")
    names = ["good.tar/a.abc", "bad.tar/a.abc", "bad.tar/b.abc", "good.tar/b.abc", "../x/good.tar/a.abc"]
    lines = [json.dumps({"filepaths": [name], "title": "A"}) for name in names]
    (tmp_path / "pieces.jsonl").write_text("\n".join(lines))
    pieces, problems = read_pieces(tmp_path / "pieces.jsonl", "symbolic")
    assert [piece["id"] for piece in pieces] == ["line 1"] and len(problems) == 4
    assert ["bad.tar: expected" in problem for problem in problems] == [True, True, False, False]
    assert pieces == pickle.loads(pickle.dumps(pieces))


def test_m3_reads_a_shard_as_the_folder_that_it_was(tmp_path):
    folder = tmp_path / "music"
    for name in ("b.abc", "a/z.mtf", "a/z.abc", "a-b/c.abc", "a.abc", "other.txt", "none.abc"):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text("" if name == "none.abc" else name)
    with tarfile.open(tmp_path / "music.tar", "w") as tar:
        tar.add(folder, ".")
    (files, problems), (packed, same) = m3_files([folder]), m3_files([str(tmp_path / "music.tar")])
    assert [piece["id"] for piece in files] == [piece["id"] for piece in packed]
    assert [piece["file"].read() for piece in files] == [piece["file"].read() for piece in packed]
    assert len(problems) == len(same) == 1 and "music.tar/none.abc" in same[0]
    with pytest.raises(InputError, match="empty.tar: expected files ending in .abc .mtf, found none"):
        m3_files([write_tar(tmp_path / "empty.tar", {"a.txt": b"a"})])
    with pytest.raises(InputError, match="gone.tar"):
        m3_files([tmp_path / "gone.tar"])


@pytest.fixture
def corpus(tmp_path):
    """A JSONL in data/, with odd lines and paths, and its 14 files of about 1 kB."""
    data = tmp_path / "data"
    lines = []
    for number in range(4):
        for suffix in (".abc", ".mtf"):
            path = data / f"music/p{number}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(f"{number} {suffix} ".encode() * 150)
        np.save(data / f"music/p{number}.npy", np.full((1, 2, 128), number, np.float32))
        names = [f"music/p{number}{suffix}" for suffix in (".abc", ".mtf", ".npy", ".mp3")]
        lines += [json.dumps({"filepaths": names, "title": f"Stück {number}", "tags": ["曲", None]}), ""]
    (tmp_path / "music").mkdir()
    (tmp_path / "music/p0.abc").write_bytes(b"a namesake " * 90)
    (tmp_path / "music/p9.abc").write_bytes(b"elsewhere " * 90)
    names = ["../music/p0.abc", str(tmp_path / "music/p9.abc"), str(data / "music/p1.mtf")]
    lines.append(json.dumps({"filepaths": names, "title": "elsewhere"}))
    lines.append(json.dumps({"id": 7, "filepaths": ["music/p1.abc", "music/p1.abc"], "title": "again"}))
    (data / "pieces.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return data / "pieces.jsonl"


def contents(jsonl, modality):
    pieces, problems = read_pieces(jsonl, modality, audio_size=128)
    return [{**piece, "files": [(file.path.suffix, file.read()) for file in piece["files"]]} for piece in pieces]


def without_paths(pieces):
    return [{**piece, "fields": {**piece["fields"], "filepaths": None}} for piece in pieces]


def test_packed_pieces_are_the_same(corpus, tmp_path):
    report = packing.pack(corpus, tmp_path / "packed", 7000)
    assert (report.done, report.failures) == (14, [])
    tars = sorted((tmp_path / "packed").glob("*.tar"))
    assert [path.name for path in tars] == ["shard-00000.tar", "shard-00001.tar", "shard-00002.tar"]
    assert sum(len(members(tar)) for tar in tars) == 14
    for modality in ("symbolic", "audio"):
        expected = contents(corpus, modality)
        assert without_paths(contents(tmp_path / "packed/pieces.jsonl", modality)) == without_paths(expected)
    assert [list(members(tar))[:3] for tar in tars[:1]] == [["music/p0.abc", "music/p0.mtf", "music/p0.npy"]]


def test_what_is_packed_can_be_unpacked_anywhere(corpus, tmp_path):
    packing.pack(corpus, tmp_path / "packed", 10**9)
    (shard,) = (tmp_path / "packed").glob("*.tar")
    with tarfile.open(shard) as tar:
        assert len(set(tar.getnames())) == 14
        tar.extractall(tmp_path / "unpacked", filter="data")
    assert all(not name.startswith("/") and ".." not in name for name in members(shard))
    unpacked = [path for path in (tmp_path / "unpacked").rglob("*") if path.is_file()]
    assert sorted(path.read_bytes() for path in unpacked) == sorted(file.read() for file in members(shard).values())


def test_packed_shards_can_be_packed_again(corpus, tmp_path):
    packing.pack(corpus, tmp_path / "packed", 3000)
    packing.pack(tmp_path / "packed/pieces.jsonl", tmp_path / "again", 10**9)
    expected = without_paths(contents(corpus, "symbolic"))
    assert without_paths(contents(tmp_path / "again/pieces.jsonl", "symbolic")) == expected


@pytest.fixture
def pack_script(monkeypatch):
    monkeypatch.syspath_prepend(CODE)
    return lambda *args: __import__("pack_shards").main([str(arg) for arg in args])


def test_what_cannot_be_packed_is_reported(corpus, tmp_path, pack_script, capsys):
    (corpus.parent / "music/p0.mtf").unlink()
    (corpus.parent / "music/p3.abc").write_bytes(b"")
    with open(corpus, "a") as lines:
        lines.write('\n{no json\n{"filepaths": ["a.mp3"]}\n{"filepaths": ["gone.abc"], "title": "gone"}\n')
        lines.write('{"filepaths": ["music/p2.abc"], "title": "last"}')
    assert pack_script(corpus, tmp_path / "packed") == 1
    assert "12 done, 0 skipped, 5 failed (see failures.jsonl" in capsys.readouterr().out
    failures = [json.loads(line) for line in (tmp_path / "packed/failures.jsonl").read_text().splitlines()]
    for failure, words in zip(failures, ["p0.mtf", "p3.abc", "line 11", "line 12", "gone.abc"], strict=True):
        assert words in failure["file"] + failure["error"]
    expected = contents(corpus, "symbolic")
    assert expected[-1]["id"] == "line 14"
    assert without_paths(contents(tmp_path / "packed/pieces.jsonl", "symbolic")) == without_paths(expected)


def test_a_file_that_goes_while_packing(corpus, tmp_path, monkeypatch):
    read = shards.File.read

    def read_what_is_there(file):
        if file.path.name == "p2.abc":
            file.path.unlink()
        return read(file)

    monkeypatch.setattr(shards.File, "read", read_what_is_there)
    report = packing.pack(corpus, tmp_path / "packed", 7000)
    assert report.done == 13 and "p2.abc" in report.failures[0]["file"]
    found = without_paths(contents(tmp_path / "packed/pieces.jsonl", "symbolic"))
    assert found == without_paths(contents(corpus, "symbolic"))


def test_packing_goes_on_where_it_was_interrupted(corpus, tmp_path, pack_script, monkeypatch, capsys):
    whole, parts, size = tmp_path / "whole", tmp_path / "parts", ("--shard_size", "7000")
    assert pack_script(corpus, whole, *size) == 0
    read = shards.File.read

    def read_or_stop(file):
        if file.path.name == "p2.mtf":
            raise KeyboardInterrupt
        return read(file)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shards.File, "read", read_or_stop)
        pack_script(corpus, parts, *size)
    assert [path.name for path in parts.iterdir()] == ["shard-00000.tar"]
    capsys.readouterr()
    assert pack_script(corpus, parts, *size) == 0
    assert "8 done, 6 skipped, 0 failed" in capsys.readouterr().out
    assert {p.name: p.read_bytes() for p in whole.iterdir()} == {p.name: p.read_bytes() for p in parts.iterdir()}
    assert pack_script(corpus, parts, *size) == 0
    assert "0 done, 14 skipped, 0 failed" in capsys.readouterr().out


def test_shards_of_other_data_are_kept(corpus, tmp_path, pack_script, capsys):
    packed = tmp_path / "packed"
    assert pack_script(corpus, packed, "--shard_size", "3KB") == 0
    before = (packed / "shard-00000.tar").read_bytes()
    assert pack_script(corpus, packed, "--shard_size", "7KB") == 1
    assert "shard-00000.tar: expected none, or one of these very files" in capsys.readouterr().err
    assert (packed / "shard-00000.tar").read_bytes() == before
    (corpus.parent / "music/p0.abc").write_bytes((corpus.parent / "music/p0.abc").read_bytes()[::-1])
    assert pack_script(corpus, packed, "--shard_size", "3KB") == 1


def test_nothing_to_pack(corpus, tmp_path, pack_script, capsys):
    assert pack_script(corpus, corpus.parent) == 1
    assert "expected a folder other than the JSONL's own" in capsys.readouterr().err
    (tmp_path / "none.jsonl").write_text('{"filepaths": ["gone.abc"], "title": "gone"}')
    assert pack_script(tmp_path / "none.jsonl", tmp_path / "packed") == 1
    assert "none.jsonl: expected pieces with .abc .mtf .npy files, got none" in capsys.readouterr().err
    assert pack_script(tmp_path / "gone.jsonl", tmp_path / "packed") == 1
    assert "gone.jsonl" in capsys.readouterr().err and not (tmp_path / "packed").exists()
    for wrong in ("0", "1XB", "-1"):
        with pytest.raises(SystemExit):
            pack_script(corpus, tmp_path / "packed", f"--shard_size={wrong}")
    assert "expected a size such as 1GB" in capsys.readouterr().err

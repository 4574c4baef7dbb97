"""Shards packed from the files of a JSONL: the same pieces, whole, and packed once."""

import json
import tarfile

import numpy as np
import pytest

from clamplib.training import packing, shards
from clamplib.training.pieces import read_pieces
from clamplib.training.shards import members


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
    """Of each piece its id, its fields apart from the paths, and the suffixes and bytes of its files."""
    pieces, _ = read_pieces(jsonl, modality, audio_size=128)
    found = []
    for piece in pieces:
        fields = {name: value for name, value in piece.fields.items() if name != "filepaths"}
        found.append((piece.id, fields, [(file.path.suffix, file.read()) for file in piece.files]))
    return found


def test_packed_pieces_are_the_same(corpus, tmp_path):
    report = packing.pack(corpus, tmp_path / "packed", 7000)
    assert (report.done, report.failures) == (14, [])
    tars = sorted((tmp_path / "packed").glob("*.tar"))
    assert [path.name for path in tars] == ["shard-00000.tar", "shard-00001.tar", "shard-00002.tar"]
    assert sum(len(members(tar)) for tar in tars) == 14
    for modality in ("symbolic", "audio"):
        assert contents(tmp_path / "packed/pieces.jsonl", modality) == contents(corpus, modality)


def test_the_files_of_a_piece_lie_together(corpus, tmp_path):
    packing.pack(corpus, tmp_path / "packed", 7000)
    names = list(members(tmp_path / "packed/shard-00000.tar"))
    assert names[:3] == ["music/p0.abc", "music/p0.mtf", "music/p0.npy"]


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
    assert contents(tmp_path / "again/pieces.jsonl", "symbolic") == contents(corpus, "symbolic")


@pytest.fixture
def pack_script(call_script):
    return lambda *args: call_script("pack_shards", *args)


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
    assert expected[-1][0] == "line 14"
    assert contents(tmp_path / "packed/pieces.jsonl", "symbolic") == expected


def test_a_file_that_goes_while_packing(corpus, tmp_path, monkeypatch):
    read = shards.File.read

    def read_what_is_there(file):
        if file.path.name == "p2.abc":
            file.path.unlink()
        return read(file)

    monkeypatch.setattr(shards.File, "read", read_what_is_there)
    report = packing.pack(corpus, tmp_path / "packed", 7000)
    assert report.done == 13
    assert "p2.abc" in report.failures[0]["file"]
    assert contents(tmp_path / "packed/pieces.jsonl", "symbolic") == contents(corpus, "symbolic")


def test_packing_goes_on_where_it_was_interrupted(corpus, tmp_path, pack_script, monkeypatch, capsys):
    whole, parts, size = tmp_path / "whole", tmp_path / "parts", ("--shard_size", "7000")
    assert pack_script(corpus, whole, *size) == 0
    read = shards.File.read

    def read_or_stop(file):
        if file.path.name == "p2.mtf":
            raise KeyboardInterrupt
        return read(file)

    with monkeypatch.context() as patch:
        patch.setattr(shards.File, "read", read_or_stop)
        assert pack_script(corpus, parts, *size) == 130
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
    assert "shard-00000.tar: expected no file, or a shard of the same files" in capsys.readouterr().err
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
    assert "gone.jsonl" in capsys.readouterr().err
    assert not (tmp_path / "packed").exists()


@pytest.mark.parametrize("size", ["0", "1XB", "-1"])
def test_sizes_that_are_not_sizes(size, corpus, tmp_path, pack_script, capsys):
    with pytest.raises(SystemExit):
        pack_script(corpus, tmp_path / "packed", f"--shard_size={size}")
    assert "expected a size such as 1GB" in capsys.readouterr().err

import json
import os
import pickle
import re
import tarfile

import numpy as np
import pytest
from training_helpers import FIELDS, write_jsonl

from clamplib.files import InputError
from clamplib.formats.patchilizer import M3Patchilizer
from clamplib.training import pieces
from clamplib.training.datasets import CLaMP3Dataset, read_frames
from clamplib.training.pieces import Piece, find_pieces, read_pieces, split_pieces
from clamplib.training.shards import File


def names(piece):
    return [file.path.name for file in piece.files]


# ------------------------------------------------------------------------------------ M3: folders


def test_music_files_of_a_folder(folder):
    (folder / "sub").mkdir()
    (folder / "sub/a.abc").write_text("")
    found, problems = find_pieces([folder])
    assert [(piece.id, names(piece)) for piece in found] == [
        ("a", ["a.abc"]),
        ("a", ["a.mtf"]),
        ("b", ["b.MTF"]),
        ("long", ["long.abc"]),
    ]
    (problem,) = problems
    assert "sub/a.abc" in problem


def test_folders_of_empty_files(tmp_path):
    (tmp_path / "a.abc").write_text("")
    with pytest.raises(InputError, match="every .abc and .mtf file is empty"):
        find_pieces([tmp_path])


def test_a_shard_gives_the_pieces_of_the_folder_that_it_was(tmp_path):
    folder = tmp_path / "music"
    for name in ("b.abc", "a/z.mtf", "a/z.abc", "a-b/c.abc", "a.abc", "other.txt", "none.abc"):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text("" if name == "none.abc" else name)
    with tarfile.open(tmp_path / "music.tar", "w") as tar:
        tar.add(folder, ".")
    (found, problems), (packed, same) = find_pieces([folder]), find_pieces([str(tmp_path / "music.tar")])
    assert [piece.id for piece in packed] == [piece.id for piece in found]
    assert [piece.files[0].read() for piece in packed] == [piece.files[0].read() for piece in found]
    assert len(problems) == len(same) == 1
    assert "music.tar/none.abc" in same[0]


def test_shards_without_music(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    with tarfile.open(tmp_path / "empty.tar", "w") as tar:
        tar.add(tmp_path / "a.txt", "a.txt")
    with pytest.raises(InputError, match="empty.tar: expected files ending in .abc .mtf, found none"):
        find_pieces([tmp_path / "empty.tar"])
    with pytest.raises(InputError, match="gone.tar"):
        find_pieces([tmp_path / "gone.tar"])


# ------------------------------------------------------------------------------------ CLaMP 3: a JSONL


def test_lines_that_are_not_pieces(folder):
    jsonl = write_jsonl(
        folder,
        {"id": "a", "filepaths": ["a.abc", "gone.mtf"], "title": "A"},
        "",
        "   ",
        "{not json",
        "[1]",
        {"id": "c", "filepaths": ["gone.abc"], "title": "C"},
        {"id": "d", "filepaths": ["a.npy"], "title": "D"},
        {"id": "e", "filepaths": None, "title": "E"},
        {"id": "f", "filepaths": ["b.MTF"], "title": None, "tags": [None, ""]},
        {"filepaths": ["b.MTF"], "analysis": "F"},
    )
    (folder / "empty.abc").write_text("")
    with open(jsonl, "ab") as lines:
        lines.write(b'\n{"id": "g", "title": "\xff"}\n{"id": "h", "filepaths": ["empty.abc"], "title": "H"}')
    found, problems = read_pieces(jsonl, "symbolic")
    assert [(piece.id, names(piece)) for piece in found] == [("a", ["a.abc"]), ("line 10", ["b.MTF"])]
    expected = {
        1: "gone.mtf",
        4: "JSON",
        5: "list",
        6: "gone.abc",
        7: "a.npy",
        8: "None",
        9: "text",
        11: "",
        12: "empty file",
    }
    for problem, (number, words) in zip(problems, expected.items(), strict=True):
        assert f"line {number}: " in problem
        assert words in problem


ODD_LINES = {  # a line, and what is said of it; None where it can be trained on
    "half a surrogate pair": (b'{"title": "\\ud800", %s}', r"line 1: expected Unicode text in 'title', got '\\ud800'"),
    "it as bytes": (b'{"title": "\xed\xa0\x80", %s}', "line 1: expected a JSON object, got 'utf-8' codec"),
    "it as an id": (b'{"id": "\\uDFFF", "title": "A", %s}', "in 'id'"),
    "it in a translation": (b'{"title": "A", "translations": [{"title": "\\udc00"}], %s}', "in 'translations'"),
    "it as a name": (b'{"title": "A", "\\udc00": 1, %s}', "expected Unicode text"),
    "it in a path": (b'{"title": "A", "filepaths": ["a.abc", "\\udcff.mp3"]}', None),
    "a whole pair": (b'{"title": "\\ud83d\\ude00", %s}', None),
    "nesting": (b"[" * 200_000, "line 1: expected at most 20 lists"),
    "nesting in a field": (b'{"title": ' + b"[" * 900 + b"]" * 900 + b", %s}", "expected at most 20 lists"),
    "nested objects": (b'{"title": ' + b'{"a":' * 900 + b"1" + b"}" * 900 + b", %s}", "expected at most 20 lists"),
    "nesting in filepaths": (b'{"filepaths": ' + b"[" * 900 + b"]" * 900 + b"}", "expected at most 20 lists"),
    "some nesting": (b'{"title": ' + b"[" * 19 + b"]" * 19 + b", %s}", None),
    "a huge number": (b'{"title": "A", "year": ' + b"9" * 5000 + b", %s}", "expected a JSON object, got Exceeds"),
    "numbers": (b'{"title": NaN, "year": 1e999, "tags": [1, true, -0.0], "id": [1], %s}', None),
    "a zero byte": (b'{"title": "a\0b", %s}', "expected a JSON object, got Invalid control character"),
    "an escaped one": (b'{"title": "\\u0000", "id": "\\u0000", %s}', None),
    "it in another path": (b'{"title": "A", "filepaths": ["\\u0000.abc"]}', "no file"),
    "another encoding": ('{"title": "A"}'.encode("utf-16"), "got 'utf-8' codec can't decode byte 0xff in position 0"),
    "a byte order mark": (b'\xef\xbb\xbf{"title": "A", %s}', None),
    "ends of lines of old": (b'{"title": "A", %s}\r{"title": "B"}', "expected a JSON object, got Extra data"),
    "a number alone": (b"1", "expected a JSON object, got int"),
    "a folder": (b'{"title": "A", "filepaths": ["folder.abc"]}', "folder.abc, got no file"),
    "a pipe": (b'{"title": "A", "filepaths": ["pipe.abc"]}', "pipe.abc, got no file"),
    "no paths": (b'{"title": "A", "filepaths": []}', "expected .abc or .mtf files in filepaths, got \\[\\]"),
    "a long path": (b'{"title": "A", "filepaths": ["' + b"a" * 5000 + b'.abc"]}', "no file"),
}


@pytest.mark.parametrize("kind", ODD_LINES)
def test_no_line_ends_a_training(kind, folder, tiny_tokenizer):
    line, said = ODD_LINES[kind]
    (folder / "folder.abc").mkdir()
    os.mkfifo(folder / "pipe.abc")
    good = b'\n{"title": "good", "filepaths": ["a.abc"]}'
    (folder / "pieces.jsonl").write_bytes(line.replace(b"%s", b'"filepaths": ["a.abc"]') + good)
    found, problems = read_pieces(folder / "pieces.jsonl", "symbolic")
    assert len(found) == (1 if said else 2)
    for problem in problems:
        assert re.search(said, problem)
        assert "pieces.jsonl, line 1: " in problem
    dataset = CLaMP3Dataset(found, modality="symbolic", tokenizer=tiny_tokenizer, patchilizer=M3Patchilizer())
    for epoch in range(5):
        for index in range(len(found)):
            assert len(dataset[epoch, index]["text"]) >= 2


def test_a_jsonl_without_pieces(folder):
    with pytest.raises(InputError, match="pieces.jsonl: expected pieces .* line 1: .*gone.abc"):
        read_pieces(write_jsonl(folder, {"filepaths": ["gone.abc"], "title": "x"}), "symbolic")


def test_a_piece_keeps_its_fields_and_can_be_sent(folder):
    fields = {"id": 7, "filepaths": ["a.abc"], "title": "A"}
    (piece,), _ = read_pieces(write_jsonl(folder, fields), "symbolic")
    assert piece == Piece("7", (File(folder / "a.abc", (folder / "a.abc").stat().st_size),), (), fields)
    assert pickle.loads(pickle.dumps(piece)) == piece


def test_recordings_with_scores(folder):
    both = {"id": "a", "filepaths": ["a.abc", "a.npy", "b.MTF"], "title": "A"}
    jsonl = write_jsonl(folder, both, {"id": "b", "filepaths": ["a.npy"], "title": "B"})
    (piece,), (problem,) = read_pieces(jsonl, "audio", audio_size=8, with_scores=True)
    assert names(piece) == ["a.npy"]
    assert [file.path.name for file in piece.scores] == ["a.abc", "b.MTF"]
    assert "line 2: expected .abc or .mtf files" in problem
    alone, problems = read_pieces(jsonl, "audio", audio_size=8)
    assert [piece.scores for piece in alone] == [(), ()]
    assert problems == []


def test_a_broken_shard_is_left_out(tmp_path):
    (tmp_path / "a.abc").write_text("K:C\nC|")
    with tarfile.open(tmp_path / "good.tar", "w") as tar:
        tar.add(tmp_path / "a.abc", "a.abc")
    (tmp_path / "bad.tar").write_bytes(b"")
    paths = ["good.tar/a.abc", "bad.tar/a.abc", "bad.tar/b.abc", "good.tar/b.abc", "../x/good.tar/a.abc"]
    jsonl = write_jsonl(tmp_path, *({"filepaths": [path], "title": "A"} for path in paths))
    found, problems = read_pieces(jsonl, "symbolic")
    assert [piece.id for piece in found] == ["line 1"]
    assert ["bad.tar: expected" in problem for problem in problems] == [True, True, False, False]


def test_arrays_that_are_not_features_are_found_before_training(folder):
    """By their headers alone, wherever reading them would fail."""
    ones = np.ones((1, 5, 8), dtype=np.float32)
    whole = (folder / "a.npy").read_bytes()
    arrays = {
        "width": ones[..., :7],
        "states": np.ones((13, 5, 8)),
        "nothing": ones[:, :0],
        "scalar": np.float32(1),
        "words": np.array(["a"] * 8),
        "objects": np.array([{}] * 8),
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array, allow_pickle=name == "objects")
    others = {"cut": whole[:-1], "header": whole[:50], "text": b"no numbers", "word": b"\x93NUMPY\x07\x00" * 9}
    for name, data in others.items():
        (folder / f"{name}.npy").write_bytes(data)
    stems = [*arrays, *others]
    jsonl = write_jsonl(
        folder,
        *({"id": stem, "filepaths": [f"{stem}.npy", "a.npy"], "title": stem} for stem in stems),
        {"id": "alone", "filepaths": ["width.npy"], "title": "it has no other file"},
    )
    found, problems = read_pieces(jsonl, "audio", audio_size=8)
    assert [names(piece) for piece in found] == [["a.npy"]] * len(stems)
    assert len(problems) == len(stems) + 1
    said = ["[1, 5, 7]", "--mean_features", "[1, 0, 8]", "[]", "dtype <U1", "dtype object", f"got {len(whole) - 1}"]
    for stem, problem, words in zip(stems, problems, said + ["numbers"] * 3, strict=False):
        assert f"{stem}.npy: " in problem
        assert words in problem
        with pytest.raises(InputError, match=f"{stem}.npy: "):
            read_frames(File(folder / f"{stem}.npy", 0), 8)


@pytest.mark.parametrize(("version", "dtype"), [((1, 0), ">f8"), ((2, 0), "<i2")])
def test_headers_of_other_makers(folder, version, dtype):
    with open(folder / "other.npy", "wb") as file:
        np.lib.format.write_array(file, np.asfortranarray(np.ones((5, 8), dtype)), version=version)
    jsonl = write_jsonl(folder, {"filepaths": ["other.npy"], "title": "A"})
    (piece,), problems = read_pieces(jsonl, "audio", audio_size=8)
    assert problems == []
    assert read_frames(piece.files[0], 8).sum() == 40


def test_lines_have_numbers_and_blank_ones_are_skipped(tmp_path):
    (tmp_path / "lines").write_bytes(b"a\n\n  \r\nb")
    assert list(pieces.numbered_lines(tmp_path / "lines")) == [(1, b"a\n"), (4, b"b")]


# ------------------------------------------------------------------------------------ split


def test_a_split_keeps_a_piece_on_one_side():
    found = [Piece(str(number % 50), ()) for number in range(100)]
    train, held_out = split_pieces(found, 0.1, seed=1)
    assert (len(train), len(held_out)) == (90, 10)
    assert not {piece.id for piece in train} & {piece.id for piece in held_out}


def test_a_split_depends_on_its_seed_alone():
    found = [Piece(str(number), ()) for number in range(100)]
    assert split_pieces(found, 0.1, seed=1) == split_pieces(found, 0.1, seed=1)
    assert split_pieces(found, 0.1, seed=1) != split_pieces(found, 0.1, seed=2)


def test_a_split_leaves_no_side_empty():
    found = [Piece("a", ()), Piece("b", ())]
    assert [len(side) for side in split_pieces(found, 0.01, seed=1)] == [1, 1]
    with pytest.raises(InputError, match="hold out 0.01 of 1 pieces"):
        split_pieces(found[:1], 0.01, seed=1)


# ------------------------------------------------------------------------------------ texts


def test_text_lines_are_unique_and_in_order():
    assert pieces.text_lines(pieces.describing_fields(FIELDS)) == ["A reel", "fast", "Irish", "fiddle"]
    assert pieces.text_lines({"a": None, "b": "", "c": [], "d": " \n"}) == []
    assert pieces.text_lines({"year": 1850}) == ["1850"]


def test_translations_are_objects():
    assert pieces.translations(FIELDS) == [{"language": "German", "title": "Ein Reel"}]
    assert pieces.translations({"translations": [None, {"title": "A"}, "odd"]}) == [{"title": "A"}]
    assert pieces.translations({}) == []


def test_evaluation_text():
    assert pieces.evaluation_lines({"analysis": "In G\nslow", "title": "A"}) == ["In G", "slow"]
    assert pieces.evaluation_lines({"analysis": None, "title": "A", "id": "x", "filepaths": ["y"]}) == ["A"]
    assert pieces.evaluation_lines({"translations": [{"title": "Ein A"}]}) == ["Ein A"]
    assert pieces.evaluation_lines({"id": "x", "language": "English"}) == []


def test_a_line_is_parsed():
    line = json.dumps({"filepaths": ["a.abc"], "title": "曲"}).encode()
    assert pieces.parse_line(line) == ({"filepaths": ["a.abc"], "title": "曲"}, ["a.abc"])

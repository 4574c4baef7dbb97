"""Score files as found: many tunes per file, old encodings, and the formats that music21 reads."""

import subprocess
import sys
from pathlib import Path

import music21
import pytest

from clamplib.files import InputError
from clamplib.formats.notation import interleave
from clamplib.formats.score_files import Tune, list_tunes, read_text, score_to_abc, score_to_musicxml, split_kern

GOLDEN = Path(__file__).parents[1] / "golden" / "abc"
MUSIC21 = Path(music21.__file__).parent
TUNE = "X:1\nT:Ä tune\nM:4/4\nL:1/8\nK:C\nCDEF GABc|c8|]\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "utf-16"])
def test_abc_is_read_in_every_common_encoding(tmp_path, encoding):
    path = tmp_path / "a.abc"
    path.write_bytes(TUNE.replace("\n", "\r\n").encode(encoding))
    assert read_text(path) == TUNE
    assert "T:Ä tune" in score_to_abc(path)


@pytest.mark.parametrize("data", [b"", b" \n", b"K:C\0\1\2"])
def test_empty_and_binary_files_are_refused(tmp_path, data):
    (tmp_path / "a.abc").write_bytes(data)
    with pytest.raises(InputError, match=r"a\.abc: expected text, got"):
        read_text(tmp_path / "a.abc")


def test_many_tunes_have_keys_of_their_own(tmp_path):
    path = tmp_path / "jigs.v2.abc"
    path.write_text(TUNE + "\n" + TUNE.replace("CDEF", "EFGA"))
    first, second = list_tunes(path)
    assert [first, second] == [Tune(path, 1), Tune(path, 2)]
    assert [tune.alias.name for tune in (first, second)] == ["jigs-0001.v2.abc", "jigs-0002.v2.abc"]
    assert "CDEF" in score_to_abc(first)
    assert "EFGA" in score_to_abc(second)
    assert len(score_to_musicxml(path)) == 2
    with pytest.raises(InputError, match="expected one score, got 2"):
        score_to_abc(path)


def test_a_file_of_one_tune_is_that_tune(tmp_path):
    path = tmp_path / "jig.abc"
    path.write_text(TUNE)
    assert list_tunes(path) == [path]


@pytest.mark.parametrize(
    "source",
    [
        "corpus/palestrina/Agnus_I_55.krn",
        "mei/test/test_file.mei",
        "mei/test/notes_in_utf16.mei",
        "noteworthy/verySimple.nwctxt",
        "noteworthy/cuthbert_test1.nwc",
        "corpus/bach/choraleAnalyses/riemenschneider012.rntxt",
    ],
)
def test_music21s_formats(tmp_path, source):
    path = tmp_path / ("$HOME ~ 'x'" + Path(source).suffix.upper())
    path.write_bytes((MUSIC21 / source).read_bytes())
    assert "[V:1]" in interleave(score_to_abc(path))


def test_kern_sections_are_tunes(tmp_path):
    section = "**kern\n*M4/4\n{}\n=\n*-\n"
    kern = "!!!COM: Nobody\n" + section.format("4c") + "!! second\n" + section.format("4g") + "!!!end\n"
    first, second = split_kern(kern)
    assert first.startswith("!!!COM")
    assert second.startswith("!! second")
    path = tmp_path / "two.krn"
    path.write_text(kern)
    assert ["C2" in score_to_abc(tune) for tune in list_tunes(path)] == [True, False]


@pytest.mark.parametrize("name", ["a.krn", "a.mei", "a.nwc", "a.nwctxt"])
def test_bad_files_for_music21(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match="a\\."):
        score_to_abc(path)


@pytest.mark.parametrize("name", ["bach__bwv154.3.mxl", "handmade__grace.musicxml"])
def test_musicxml_is_given_as_it_is(name):
    (xml,) = score_to_musicxml(GOLDEN / "xml" / name)
    expected = (GOLDEN / "std" / f"{Path(name).stem}.abc").read_bytes().decode()
    assert xml.lstrip().startswith(b"<?xml")
    assert score_to_abc(GOLDEN / "xml" / name) == expected


def test_torch_is_not_imported():
    modules = "mtf, notation, patchilizer, score_files"
    code = f"import sys; from clamplib.formats import {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

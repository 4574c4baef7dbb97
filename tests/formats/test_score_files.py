"""Score files as found: many tunes per file, old encodings, and the formats that music21 reads."""

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import music21
import pytest

from clamplib.files import InputError
from clamplib.formats.notation import interleave
from clamplib.formats.score_files import (
    Tune,
    list_tunes,
    read_text,
    read_title,
    score_text,
    score_to_abc,
    score_to_musicxml,
    split_kern,
)

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


def test_the_reason_names_format_and_file_and_is_no_traceback(tmp_path):
    for name, kind in (("a.mei", "an MEI score"), ("a.nwc", "a NoteWorthy score"), ("a.rntxt", "a RomanText score")):
        path = tmp_path / name
        path.write_text("m1 C: I\nm2-4 = m9\n")
        with pytest.raises(InputError) as caught:
            score_to_abc(path)
        assert f"{name}: expected {kind}, music21 could not read this one (" in str(caught.value)
        assert "Traceback" not in str(caught.value)
        assert "site-packages" not in str(caught.value)


def test_control_characters_in_kern_make_no_broken_xml(tmp_path):
    path = tmp_path / "a.krn"
    path.write_text("!!!OTL: a\x1bb\n**kern\n*M4/4\n=1\n4c\n=2\n4d\n*-\n")
    (xml,) = score_to_musicxml(path)
    assert ElementTree.fromstring(xml).findtext("movement-title") == "ab"
    assert "V:1" in score_to_abc(path)


def test_texts_of_damaged_encodings_are_read_or_refused(tmp_path):
    path = tmp_path / "a.abc"
    path.write_bytes(TUNE.encode("utf-16")[:-1])
    with pytest.raises(InputError, match=r"a\.abc: expected UTF-16, as it begins, got other bytes"):
        read_text(path)
    path = tmp_path / "a.xml"
    path.write_bytes(
        '<?xml version="1.0" encoding="iso-8859-1"?><movement-title>Flöte</movement-title>'.encode("latin-1")
    )
    assert "Flöte" in score_text(path)
    assert read_title(path) == "Flöte"


def test_a_tune_that_is_gone_is_named(tmp_path):
    path = tmp_path / "a.abc"
    path.write_text(TUNE)
    for read in (score_to_abc, score_text):
        with pytest.raises(InputError, match=r"a\.abc: expected at least 3 tunes, got 1"):
            read(Tune(path, 3))
    assert read_title(Tune(path, 3)) is None


def test_a_large_tunebook_is_not_converted_to_be_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("clamplib.formats.score_files.abc_to_xml", lambda abc: pytest.fail("converted"))
    path = tmp_path / "a.abc"
    path.write_text(TUNE * 2)
    with pytest.raises(InputError, match="expected one score, got 2"):
        score_to_abc(path)


@pytest.mark.parametrize("name", ["bach__bwv154.3.mxl", "handmade__grace.musicxml"])
def test_musicxml_is_given_as_it_is(name):
    (xml,) = score_to_musicxml(GOLDEN / "xml" / name)
    expected = (GOLDEN / "std" / f"{Path(name).stem}.abc").read_bytes().decode()
    assert xml.lstrip().startswith(b"<?xml")
    assert score_to_abc(GOLDEN / "xml" / name) == expected


def test_torch_is_not_imported():
    modules = "archives, limits, mtf, notation, patchilizer, score_files"
    code = f"import sys; from clamplib.formats import {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

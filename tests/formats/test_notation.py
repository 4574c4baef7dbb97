"""MusicXML -> ABC -> interleaved ABC -> MusicXML: golden files of the reference, real-world input, bad input."""

import gzip
import io
import json
import re
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from xml.etree import ElementTree

import pytest
from abctoolkit.check import check_alignment_unrotated
from abctoolkit.rotate import rotate_abc
from abctoolkit.utils import remove_bar_no_annotations, strip_empty_bars

from clamplib.files import InputError
from clamplib.formats.notation import abc_to_xml, interleave, interleave_and_compare, split_tunes, xml_to_abc

GOLDEN = Path(__file__).parents[1] / "golden" / "abc"
CASES = json.loads((GOLDEN / "manifest.json").read_text())
TUNE = "X:1\nT:Ä tune\nM:4/4\nL:1/8\nK:C\nCDEF GABc|c8|]\n"
XML = (
    "<score-partwise><part-list><score-part id='P1'><part-name>Flöte</part-name></score-part></part-list>"
    "<part id='P1'><measure number='1'><attributes><divisions>1</divisions></attributes><note><pitch><step>C"
    "</step><octave>4</octave></pitch><duration>4</duration></note></measure></part></score-partwise>"
)


def names(field: str) -> list[str]:
    return [case["input"] for case in CASES if case[field]]


def undated(xml: str) -> str:
    xml = re.sub(r"<encoding-date>[^<]*<", "<encoding-date>DATE<", xml)
    return re.sub(r"abc2xml version \d+", "abc2xml version N", xml)


def zipped(members: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return buffer.getvalue()


@pytest.mark.parametrize("name", names("std"))
def test_abc_equals_golden(name):
    assert xml_to_abc(GOLDEN / "xml" / name) == read(GOLDEN / "std" / f"{Path(name).stem}.abc")


@pytest.mark.parametrize("name", names("interleaved"))
def test_interleaved_equals_golden(name):
    stem = Path(name).stem
    assert interleave(read(GOLDEN / "std" / f"{stem}.abc")) == read(GOLDEN / "interleaved" / f"{stem}.abc")


@pytest.mark.parametrize("name", names("back_xml"))
def test_xml_equals_golden(name):
    stem = Path(name).stem
    expected = gzip.decompress((GOLDEN / "back_xml" / f"{stem}.xml.gz").read_bytes()).decode()
    assert undated(abc_to_xml(read(GOLDEN / "interleaved" / f"{stem}.abc"))) == undated(expected)


def read(path: Path) -> str:
    return path.read_bytes().decode()


def test_conversions_do_not_depend_on_those_before():
    first, second = (GOLDEN / "xml" / name for name in names("std")[:2])
    before = xml_to_abc(second)
    xml_to_abc(first)
    with pytest.raises(InputError):
        xml_to_abc(b"<broken")
    assert xml_to_abc(second) == before


def test_threads_do_not_disturb_each_other():
    paths = [GOLDEN / "xml" / name for name in names("std")[:6]]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(xml_to_abc, paths)) == [xml_to_abc(path) for path in paths]


def test_nothing_is_printed(capfd):
    for name in ("demos__multiple-verses.xml", "handmade__unequal.musicxml"):
        abc = xml_to_abc(GOLDEN / "xml" / name)
        with pytest.raises(InputError) if "unequal" in name else nullcontext():
            interleaved, _ = interleave_and_compare(abc)
            abc_to_xml(interleaved)
    assert capfd.readouterr() == ("", "")


# --- MusicXML, as found


def test_mxl_with_a_musicxml_inside():
    assert xml_to_abc(GOLDEN / "xml" / "verdi__laDonnaEMobile.mxl").startswith("X:1\nT:")


@pytest.mark.parametrize(
    "members",
    [
        {"score.xml": XML},
        {"score.MusicXML": XML},
        {"META-INF/container.xml": "<c><r full-path='in/b.xml'/></c>", "a.xml": "no", "in/b.xml": XML},
        {"META-INF/container.xml": "<c><r full-path='gone.xml'/></c>", "b.xml": XML},
        {"in/._a.xml": "no", "in/a.xml": XML},
    ],
)
def test_mxl_finds_its_score(members):
    assert xml_to_abc(zipped(members)) == xml_to_abc(XML.encode())


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "iso-8859-1"])
def test_xml_is_read_as_it_declares(encoding):
    xml = f'<?xml version="1.0" encoding="{encoding.removesuffix("-sig")}"?>' + XML
    assert 'nm="Flöte"' in xml_to_abc(xml.encode(encoding))


@pytest.mark.parametrize("end", ["|", "||", "|]", ":|", ":||"])
@pytest.mark.parametrize("start", ["", "|", "||", "|:", "[|", "||:"])
def test_nothing_is_lost_after_a_bar_line_written_twice(end, start):
    """Many real tunes end a line with a bar line and begin the next line with another."""
    tune = f"X:1\nM:4/4\nL:1/8\nK:C\nC8|D8{end}\n{start}E8|F8|]\n"
    interleaved = interleave(xml_to_abc(abc_to_xml(tune).encode()))
    assert [bar[5:7] for bar in interleaved.splitlines()[4:]] == ["C8", "D8", "E8", "F8"]


def test_terms_that_xml2abc_does_not_know_cost_no_note():
    """OpenScore has them: an interrupted pedal line, one note value equal to another, an old accidental."""
    note = "<note><pitch><step>D</step><alter>{}</alter><octave>4</octave></pitch><duration>4</duration>{}</note>"
    mark = "<direction><direction-type>{}</direction-type><voice>1</voice></direction>"
    pedals = [mark.format(f"<pedal type='{kind}'/>") for kind in ("start", "discontinue", "resume", "stop", "change")]
    relation = mark.format("<metronome><beat-unit>half</beat-unit><beat-unit>quarter</beat-unit></metronome>")
    sharp = note.format(1, "<accidental>natural-sharp</accidental>")
    odd = XML.replace("</measure>", f"{sharp.join(pedals)}{relation}{note.format(0, '')}</measure>")
    known = [mark.format(f"<pedal type='{kind}'/>") for kind in ("start", "stop", "start", "stop")] + [""]
    plain = XML.replace("</measure>", f"{note.format(1, '').join(known)}{note.format(0, '')}</measure>")
    assert xml_to_abc(odd.encode()) == xml_to_abc(plain.encode())
    assert xml_to_abc(odd.encode()).count("!ped!") == 2


def test_xml_may_begin_with_blank_lines():
    assert xml_to_abc(b"\n \n<?xml version='1.0'?>" + XML.encode()) == xml_to_abc(XML.encode())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "an empty file"),
        (b"hello", "got b'hello'"),
        (XML.encode()[:-40], "expected well-formed MusicXML, got unclosed token: line 1"),
        (b"<score-partwise/>", "expected valid MusicXML"),
        (re.sub("<note>.*</note>", "", XML).encode(), "a score with notes"),
        (b"<mei/>", "kind score-partwise, got <mei>"),
        (b"<!DOCTYPE x [<!ENTITY a 'b'>]>" + XML.encode(), "declares entities"),
        (("\ufeff<!DOCTYPE x [<!ENTITY a 'b'>]>" + XML).encode("utf-16-le"), "declares entities"),
        (XML.replace("<duration>4", "<duration>x").encode(), "xml2abc could not read this one (ValueError"),
        (b"PK\3\4broken", "broken one"),
        (b"<?xml version='1.0' encoding='none-such'?>" + XML.encode(), "none-such"),
        (XML.replace("<part-list>", "<a>" * 9).encode(), "expected well-formed MusicXML, got mismatched tag: line 1"),
        (zipped({"readme.txt": "no"}), "expected a MusicXML file in the archive"),
        (zipped({"a.xml": XML})[:-10], "broken one"),
        (zipped({"a.xml": XML * 9})[:60] + b"?" * 9 + zipped({"a.xml": XML * 9})[69:], "broken one"),
    ],
)
def test_bad_xml_is_an_input_error(data, message):
    with pytest.raises(InputError, match=re.escape(message)):
        xml_to_abc(data)


def test_zip_bombs_are_refused(monkeypatch):
    monkeypatch.setattr("clamplib.formats.archives.MAX_BYTES", 1000)
    with pytest.raises(InputError, match="at most 1000 bytes"):
        xml_to_abc(zipped({"a.xml": XML + " " * 2000}))


# --- interleaving


def test_interleaved_lines_hold_a_bar_of_each_voice():
    abc = "L:1/8\nK:C\nV:1 treble\nV:2 bass\nV:1\n z8 | C8 | D8 |]\nV:2\n z8 | E8 | F8 |]\n"
    head, *bars = interleave(abc).split("[V:1]")
    assert head == "L:1/8\nK:C\nV:1 treble\nV:2 bass\n"
    assert bars == ["C8|[V:2]E8|\n", "D8|][V:2]F8|]\n"]


def test_only_quotes_with_bar_lines_are_removed():
    abc = 'K:C\nV:1\n"^a|b" C8 | "Am" D8 | "^say \\"hi\\"" E8 |]\n'
    assert interleave(abc) == 'K:C\n[V:1]C8|\n[V:1]"Am" D8|\n[V:1]"^say hi" E8|]\n'


@pytest.mark.parametrize(
    ("abc", "message"),
    [
        (TUNE, "expected ABC with V:1 lines"),
        ("", "expected ABC with V:1 lines"),
        ("V:1\nz8 | z8 |]\n", "no notes"),
        ("V:1\nC8 | C8 |]\nV:2\nC8 |]\n", "different numbers of bars"),
        ("V:1\n\nV:2\nC8 |]\n", "expected voices of whole bars"),
    ],
)
def test_bad_abc_is_not_interleaved(abc, message):
    with pytest.raises(InputError, match=message):
        interleave(abc)


HEAD = 'X:1\nM:4/4\nL:1/8\nK:C\nV:1 nm="A"\nV:2 nm="B"\n'


@pytest.mark.parametrize("first", [
    "z8 | C8 | D8 |]", "|: C8 :|: D8 :|", "[K:G]|: C8 |1 D8 :|2 E8 |]", "z8 | z8 | C8 | z8 | z8 |]", "C8 | D8 | E8",
    "C8 || |: D8 || |: E8 |]", "C8 | | D8 |]", "C8 |12", "C8 |1 2 | D8 |]", "2 3C6 | D8 |]", "C8 |: : D8 |]",
    "C8 |:.2 D8 |]", "| [K:G] | C8 | D8 |]", "z8 | [K:G] | C8 |]", "C8 |]1,", "C8 |1 .D8 |]", "C8 |]\n% 5\nD8 |]",
    "C8 |\n D8 |]%12\n", "[CEG] | D8 |]",
])  # fmt: skip
def test_interleaving_splits_voices_as_the_reference_does(first):
    """The reference takes off empty bars, writes the voices again, and splits what it wrote."""
    for second in (first, first.replace("C8", "c4 d4")):
        lines = [line + "\n" for line in f"L:1/8\nK:C\nV:1\n{first}\nV:2\n{second}\n".splitlines()]
        stripped, _ = strip_empty_bars(remove_bar_no_annotations(lines))
        assert interleave("".join(lines)) == "".join(rotate_abc(stripped))


def test_bars_differ():
    def differ(first: str, second: str) -> bool:
        abc = f"{HEAD}V:1\n{first}\nV:2\n{second}\n"
        interleaved, bars_differ = interleave_and_compare(abc)
        assert interleaved == interleave(abc)
        return bars_differ

    assert differ("C8 | C8 |]", "C8 | C4 |]")
    assert not differ("C8 | C8 |]", "C8 | C4 D4 |]")
    assert not differ("C8 | C8 |]\nw: a|b", "C4 D4 | C8 |]")  # words are not notes
    assert not differ('"^(3|x"C8 | "\\"C8" C8 |]', "C4 D4 | C8 |]")
    assert not differ("C8 | [C2E2]4 | C8 |]", "C8 | C8 | C4 |]")  # abctoolkit reads no bar after such a chord


@pytest.mark.parametrize("name", names("interleaved"))
def test_the_remark_is_abctoolkits(name, capsys):
    abc = read(GOLDEN / "std" / f"{Path(name).stem}.abc")
    lines = [line + "\n" for line in abc.split("\n") if not line.startswith("w:")]
    check_alignment_unrotated(remove_bar_no_annotations(lines))
    _, bars_differ = interleave_and_compare(abc)
    assert bars_differ == ("Odd bar duration" in capsys.readouterr().out)


# --- ABC as found


def test_every_tune_gets_the_file_header_and_no_prose():
    abc = (
        "%%scale 1\nA collection of tunes\nM:3/4\n\nX:5\nK:C\nCDE|\n\nFrom my aunt. C D E\n\n"
        "X:7\nK:G\nGAB|\n\nc d e|\nW:la\n"
    )
    first, second = split_tunes(abc)
    assert first == "X:5\n%%scale 1\nM:3/4\nK:C\nCDE|\n"
    assert second == "X:7\n%%scale 1\nM:3/4\nK:G\nGAB|\nc d e|\nW:la\n"


def test_a_file_without_numbers_is_one_tune():
    assert split_tunes("K:C\nCDE|\n") == ["X:1\nK:C\nCDE|\n"]
    assert split_tunes(" \n") == []


@pytest.mark.parametrize(
    ("abc", "message"),
    [
        ("Dear diary, today", "with a K: line"),
        ("K:C\nZ10000|\n", "rests of at most 9999 bars"),
    ],
)
def test_bad_abc_is_not_converted(abc, message):
    with pytest.raises(InputError, match=message):
        abc_to_xml(abc)


def test_what_abc2xml_raises_is_an_input_error(monkeypatch):
    abc_to_xml(TUNE)
    monkeypatch.setattr("abctoolkit.abc2xml.mxm.parse", lambda tune: 1 / 0)
    with pytest.raises(InputError, match="abc2xml could not read this one .ZeroDivisionError"):
        abc_to_xml(TUNE)


CONTROL_CHARACTERS = [chr(code) for code in range(1, 32) if chr(code) not in "\n\r"]


@pytest.mark.parametrize("character", [*CONTROL_CHARACTERS, "\x85", "\u2028", "\ufffe", "\ud800"])
def test_control_characters_make_no_broken_xml(character):
    """Titles, names of voices and lyrics may hold any character, and XML may not. None becomes a note."""
    head = f'X:1\nT:a{character}b\nM:4/4\nL:1/8\nK:C\nV:1 nm="c{character}d"\n'
    abc = head + f'"^e{character}f"CDEF GABc|\nw:g{character}h\n'
    for tune in (abc, *split_tunes(abc)):
        xml = abc_to_xml(tune)
        ElementTree.fromstring(xml)
        assert xml.count("<step>") == 8


def test_a_form_feed_ends_no_tune():
    assert split_tunes("X:1\nK:C\nCDE|\n\f\nFGA|\n") == ["X:1\nK:C\nCDE|\nFGA|\n"]


@pytest.mark.parametrize("character", ["\x85", "\u2028", "\x0c"])
def test_a_word_with_a_rare_line_break_stays_whole(character):
    abc = f'K:C\nV:1\n"^a{character}V:2" C8 | D8 |]\n'
    assert interleave(abc) == f'K:C\n[V:1]"^a{character}V:2" C8|\n[V:1]D8|]\n'


def test_files_named_in_a_tune_are_not_read(tmp_path):
    (tmp_path / "secret").write_text("T:secret\n")
    include = f"%%abc-include {tmp_path / 'secret'}\nI:abc-include {tmp_path / 'secret'}\n"
    assert "secret<" not in abc_to_xml(TUNE.replace("K:C\n", include + "K:C\n"))


def test_a_tune_goes_on_after_any_number_of_blank_lines():
    tune = "X:1\nK:D\nABcd|\n\n\nefga|\n \n\nA remark on the tune.\n"
    assert split_tunes(tune) == ["X:1\nK:D\nABcd|\nefga|\n"]

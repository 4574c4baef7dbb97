"""What no music has is refused by name, and before a converter takes minutes or gigabytes for it."""

import pytest

from clamplib.files import InputError
from clamplib.formats import limits
from clamplib.formats.limits import read_bytes
from clamplib.formats.mtf import mtf_to_midi, parse_midi
from clamplib.formats.notation import abc_to_xml, interleave, interleave_and_compare, split_tunes, xml_to_abc
from clamplib.formats.score_files import score_to_abc

HEAD = "X:1\nM:4/4\nL:1/8\nK:C\n"
NOTE = "<note><pitch><step>C</step><octave>{octave}</octave></pitch><duration>4</duration>{more}</note>"
KERN = "**kern\n{}\n=1\n4c\n4d\n=2\n4e\n*-\n"
MEI = (
    '<mei xmlns="http://www.music-encoding.org/ns/mei"><music><body><mdiv><score><scoreDef meter.count="{count}" '
    'meter.unit="4"><staffGrp><staffDef n="1" lines="5"/></staffGrp></scoreDef><section><measure n="1"><staff n="1">'
    '<layer n="1"><note pname="c" oct="{octave}" dur="4"/></layer></staff></measure></section></score></mdiv></body>'
    "</music></mei>"
)
NOTEWORTHY = '!NoteWorthyComposer(2.0)\n|AddStaff|Name:"a"\n{}|Note|Dur:4th|Pos:{}\n!NoteWorthyComposer-End\n'


def musicxml(octave: int = 4, attributes: str = "", more: str = "", parts: int = 1) -> str:
    names = "".join(f"<score-part id='P{i}'><part-name>F</part-name></score-part>" for i in range(parts))
    measure = f"<measure><attributes><divisions>1</divisions>{attributes}</attributes>"
    note = NOTE.format(octave=octave, more=more)
    return (
        f"<score-partwise><part-list>{names}</part-list><part id='P0'>{measure}{note}</measure></part></score-partwise>"
    )


def spines(count: int) -> str:
    lines = ("**kern", "*M4/4", "=1", "4c", "=2", "4d", "*-")
    return "".join("\t".join([token] * count) + "\n" for token in lines)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.xml", musicxml(octave=2_000_000_000), "from 0 to 9, moved by at most 9, got 2000000000 in line 1"),
        ("a.xml", musicxml(octave=-2_000_000_000), "got -2000000000"),
        (
            "a.xml",
            musicxml(attributes="<clef><sign>G</sign><clef-octave-change>-999999999</clef-octave-change></clef>"),
            "moved by at most 9, got -999999999",
        ),
        (
            "a.xml",
            musicxml(more="<notations><ornaments><tremolo type='single'>999999999</tremolo></ornaments></notations>"),
            "a tremolo of at most 8 strokes, got 999999999",
        ),
        ("a.xml", musicxml(more="<lyric number='999999999'><text>a</text></lyric>"), "at most 999 verses"),
        ("a.xml", musicxml(parts=2000), "it is nested too deeply, or has too many parts"),
        ("a.xml", musicxml(more="<voice>3000</voice>"), "expected voices numbered up to 999, got 3000"),
        ("a.rntxt", "m1 C: I\nm100000 V\n", "a.rntxt: expected measures up to number 9999, got 100000 in line 2"),
        ("a.rtxt", "m1 C: I\nm2-100000 = m1\n", "expected measures up to number 9999, got 100000"),
        ("a.rntxt", "m1 C: I\nm9999 V\n", "at most 1000 measures between two lines, got measure 9999 after measure 1"),
        ("a.rntxt", "Time Signature: 100000/4\nm1 C: I\nm2 V\n", "a meter of at most 999 beats, got 100000"),
        ("a.krn", KERN.format("*M999999999/4"), "a meter of at most 999 beats, got 999999999 in line 2"),
        ("a.krn", spines(2000), "expected at most 500 spines, got 2000"),
        ("a.krn", KERN.format("4" + "c" * 200_000), "lines of at most 100000 characters, got one of 200001"),
        ("a.mei", MEI.format(count=999999999, octave=4), "a meter of at most 999 beats, got 999999999"),
        ("a.mei", MEI.format(count=4, octave=2_000_000_000), "an octave from 0 to 9, got 2000000000"),
        ("a.nwctxt", NOTEWORTHY.format("|TimeSig|Signature:999999999/4\n", 0), "a meter of at most 999 beats"),
        ("a.nwctxt", NOTEWORTHY.format("", 2_000_000_000), "at most 99 staff lines, got 2000000000 in line 3"),
        ("a.nwctxt", NOTEWORTHY.format("|AddStaff\n" * 2000, 0), "at most 500 staves, got 2001"),
        ("a.abc", HEAD + "Z9999 |" * 20 + "\n", "rests of at most 50000 bars in all, got 199980"),
        ("a.abc", HEAD + "Z10000 |\n", "rests of at most 9999 bars, got Z10000"),
        ("a.abc", HEAD + "C|" + "Z" + "9" * 5000 + "|\n", "rests of at most 9999 bars, got Z9999"),
        ("a.abc", HEAD + '"' * 101 + "C|\n", 'expected at most 100 " in a row, got more in line 5'),
        ("a.abc", HEAD + "[" * 5000 + "C|\n", "at most 100 [ in a row"),
        ("a.abc", HEAD + "C" * 1_000_000 + "|\n", "lines of at most 100000 characters, got one of 1000001"),
        ("a.abc", HEAD + "".join(f"V:{i}\nC|\n" for i in range(2000)), "at most 500 voices, got 2000"),
    ],
)  # fmt: skip
def test_what_no_music_has_is_refused(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        score_to_abc(path)
    assert message in str(caught.value)


def test_utf16_hides_nothing():
    xml = '<?xml version="1.0" encoding="utf-16"?>' + musicxml(octave=2_000_000_000)
    with pytest.raises(InputError, match="octaves from 0 to 9, moved by at most 9, got 2000000000"):
        xml_to_abc(xml.encode("utf-16"))


def test_tags_are_counted(monkeypatch):
    monkeypatch.setattr(limits, "MAX_TAGS", 20)
    with pytest.raises(InputError, match="expected at most 20 tags, got 26"):
        xml_to_abc(musicxml().encode())


@pytest.mark.parametrize("bar", ["C" * 20_000_000, "[" * 200_000, "{" * 200_000, "[A:" * 100_000])
def test_endless_bars_are_not_interleaved(bar):
    abc = f"L:1/8\nK:C\nV:1\nV:1\n{bar}|D|\n"
    for convert in (interleave, interleave_and_compare):
        with pytest.raises(InputError, match="this ABC: expected lines of at most 100000 characters"):
            convert(abc)


def test_a_long_file_header_is_not_copied_to_many_tunes():
    with pytest.raises(InputError, match="got 80000 characters for 20000 tunes"):
        split_tunes("%%a\n" * 20_000 + "X:1\nK:C\nC|\n" * 20_000)


def test_long_rests_within_the_bounds_are_read():
    assert abc_to_xml(HEAD + "C8|Z200|C8|\n").count("<measure") == 202


def test_large_files_are_not_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "MAX_BYTES", 10)
    path = tmp_path / "a.abc"
    path.write_bytes(b"X" * 10)
    assert read_bytes(path) == b"X" * 10
    path.write_bytes(b"X" * 11)
    with pytest.raises(InputError, match=r"a\.abc: expected a file of at most 10 bytes, got more"):
        read_bytes(path)


def test_a_number_in_midi_has_few_bytes():
    events = b"\xff" * 1_000_000 + b"\0\x90\x40\x40\0\xff\x2f\0"
    data = b"MThd\0\0\0\6\0\1\0\1\1\xe0MTrk" + len(events).to_bytes(4) + events
    with pytest.raises(InputError, match="times and lengths of at most 4 bytes"):
        parse_midi(data, "a.mid")


def test_data_in_mtf_takes_little_memory_and_no_recursion():
    (track,) = mtf_to_midi("ticks_per_beat 480\nsysex 0 [" + "1, " * 200_000 + "1]").tracks
    assert len(track[0].data) == 200_001
    for data in ("[" * 200_000, "-" * 200_000 + "1"):
        with pytest.raises(InputError, match="line 2: expected an MTF message, .*must be numbers in brackets"):
            mtf_to_midi("ticks_per_beat 480\nsysex 0 " + data)

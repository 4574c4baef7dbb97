"""MIDI <-> MTF: golden files of the reference, round trips, and the errors of bad input."""

import gzip
import io
import json
from contextlib import suppress
from pathlib import Path

import mido
import pytest

from clamplib.files import InputError
from clamplib.formats.mtf import M3_LEFT_OUT, midi_to_mtf, mtf_to_midi, parse_midi

GOLDEN = Path(__file__).parents[1] / "golden" / "midi"
CASES = json.loads((GOLDEN / "manifest.json").read_text())
SMPTE = "raw_smpte_division.mid"  # the reference writes a negative number of ticks; this library refuses it


def names(field: str) -> list[str]:
    return [case["input"] for case in CASES if case.get(field) and case["input"] != SMPTE]


def reloaded(midi: mido.MidiFile) -> dict:
    """The content of a file after it is saved and read again, in the form of the golden files."""
    buffer = io.BytesIO()
    midi.save(file=buffer)
    again = mido.MidiFile(file=io.BytesIO(buffer.getvalue()))
    tracks = [[message.dict() for message in track] for track in again.tracks]
    return json.loads(json.dumps({"type": again.type, "ticks_per_beat": again.ticks_per_beat, "tracks": tracks}))


@pytest.mark.parametrize("form", ["full", "m3"])
@pytest.mark.parametrize("name", names("mtf_full"))
def test_mtf_equals_golden(name, form):
    expected = (GOLDEN / f"mtf_{form}" / f"{Path(name).stem}.mtf").read_bytes().decode()
    assert midi_to_mtf(GOLDEN / "in" / name, m3_compatible=form == "m3") == expected


@pytest.mark.parametrize("form", ["full", "m3"])
@pytest.mark.parametrize("name", names("midi_full") + [SMPTE])
def test_midi_equals_golden(name, form):
    stem = Path(name).stem
    expected = json.loads(gzip.decompress((GOLDEN / f"back_{form}" / f"{stem}.json.gz").read_bytes()))
    assert reloaded(mtf_to_midi((GOLDEN / f"mtf_{form}" / f"{stem}.mtf").read_bytes().decode())) == expected


@pytest.mark.parametrize("name", names("mtf_full"))
def test_lines_are_those_of_midos_merged_track(name):
    midi = mido.MidiFile(GOLDEN / "in" / name)
    expected = []
    for message in midi.merged_track:
        line = " ".join(map(str, message.dict().values()))
        expected.append(line.encode("unicode_escape").decode())
    assert midi_to_mtf(midi, m3_compatible=False).split("\n")[1:] == expected


@pytest.mark.parametrize("name", names("mtf_full"))
def test_round_trip_keeps_every_line_but_unknown_metas(name):
    mtf = midi_to_mtf(GOLDEN / "in" / name, m3_compatible=False)
    known = [line for line in mtf.split("\n") if not line.startswith("unknown_meta")]
    assert midi_to_mtf(mtf_to_midi(mtf), m3_compatible=False) == "\n".join(known)


def test_upper_case_extension():
    assert midi_to_mtf(GOLDEN / "in" / "upper_EXT.MID").startswith("ticks_per_beat ")


def types_of(mtf: str) -> set[str]:
    return {line.split(" ")[0] for line in mtf.split("\n")}


def test_m3_leaves_out_messages_with_words():
    path = GOLDEN / "in" / "hm_text_metas.mid"
    assert types_of(midi_to_mtf(path, m3_compatible=False)) >= M3_LEFT_OUT
    assert not types_of(midi_to_mtf(path, m3_compatible=True)) & M3_LEFT_OUT


@pytest.mark.parametrize(
    "text",
    [
        "unknown_meta",
        "an unknown_meta in words",
        "a\nnote_on 0 0 60 64",
        'tab\tquote"back\\slash',
        "  ",
        "",
        "é\x00ÿ",
    ],
)
def test_words_survive_both_ways(text):
    track = mido.MidiTrack([mido.MetaMessage("lyrics", text=text, time=3), mido.Message("note_on", time=2)])
    mtf = midi_to_mtf(mido.MidiFile(tracks=[track]), m3_compatible=False)
    assert len(mtf.split("\n")) == 4
    (back,) = mtf_to_midi(mtf).tracks
    assert back[0].text == text
    assert [message.time for message in back] == [3, 2, 0]


def test_every_message_type_survives_both_ways():
    messages = [
        mido.Message("sysex", data=[1, 2, 127], time=1),
        mido.Message("sysex", data=[], time=1),
        mido.Message("pitchwheel", pitch=-8192, time=1),
        mido.Message("aftertouch", value=3, time=1),
        mido.Message("polytouch", note=1, value=3, time=1),
        mido.Message("songpos", pos=9, time=1),
        mido.MetaMessage("sequencer_specific", data=(0, 255), time=1),
        mido.MetaMessage("smpte_offset", frame_rate=29.97, hours=1, time=1),
        mido.MetaMessage("key_signature", key="F#m", time=1),
        mido.MetaMessage("time_signature", numerator=6, denominator=8, time=1),
        mido.MetaMessage("midi_port", port=2, time=1),
        mido.MetaMessage("channel_prefix", channel=2, time=1),
        mido.MetaMessage("sequence_number", number=2, time=1),
        mido.MetaMessage("end_of_track", time=1),
    ]
    (back,) = mtf_to_midi(midi_to_mtf(mido.MidiFile(tracks=[mido.MidiTrack(messages)]), False)).tracks
    assert list(back) == messages


@pytest.mark.parametrize(
    ("name", "got"),
    [
        ("bad_empty.mid", "an empty file"),
        ("bad_text.mid", "b'not midi'"),
        ("raw_truncated.mid", "cut short"),
        ("hm_type2.mid", "type 2"),
        (SMPTE, "SMPTE"),
    ],
)
def test_bad_midi_is_named(name, got):
    with pytest.raises(InputError, match=rf"{name}: expected .* got .*{got}"):
        midi_to_mtf(GOLDEN / "in" / name)


def test_the_place_of_a_bad_byte_is_named():
    data = (GOLDEN / "in" / "hm_timesigs.mid").read_bytes()
    with pytest.raises(InputError, match=r"a message that mido cannot read \(OSError: .*\) before byte 2\d$"):
        parse_midi(data[:23] + b"\x40" + data[24:], "damaged")


def test_any_damaged_byte_is_an_input_error_or_midi():
    data = (GOLDEN / "in" / "hm_timesigs.mid").read_bytes()
    for position in range(len(data)):
        for value in (0, 0x7F, 0xFF):
            damaged = data[:position] + bytes([value]) + data[position + 1 :]
            with suppress(InputError):
                midi_to_mtf(parse_midi(damaged, "damaged"))


@pytest.mark.parametrize(
    ("mtf", "message"),
    [
        ("", "first line"),
        ("note_on 0 0 60 64", "first line"),
        ("ticks_per_beat x", "first line"),
        ("ticks_per_beat 480\nnote_on 0 0 60", "line 2: expected an MTF message"),
        ("ticks_per_beat 480\nnote_on 0 0 60 128", "line 2"),
        ("ticks_per_beat 480\nend_of_track 0\nnonsense 0 0", "line 3"),
        ("ticks_per_beat 480\nsysex 0 [1, x]", "line 2"),
        ("ticks_per_beat 480\nsysex 0 __import__('os')", "line 2"),
        ("ticks_per_beat 480\nkey_signature H 0", "line 2"),
        ("ticks_per_beat 480\ntext no time", "line 2"),
        ("ticks_per_beat 99999\n", "N below 32768"),
        ("ticks_per_beat " + "9" * 5000, "N below 32768"),
        ("ticks_per_beat 480\nnote_on -5 0 60 64", r"line 2: .*time must be an integer in range 0\.\.268435455"),
        ("ticks_per_beat 480\nnote_on 268435456 0 60 64", r"line 2: .*time must be an integer in range"),
        ("ticks_per_beat 480\nset_tempo 500000 0.5", r"line 2: .*time must be an integer"),
        ("ticks_per_beat 480\ntext \\u6b4c 0", "line 2: .*latin-1"),
        ("ticks_per_beat 480\nnote_on 0 0 60", "its values are time channel note velocity; there are more or fewer"),
        ("ticks_per_beat 480\nset_tempo 0", "its values are tempo time; there are more"),
        ("ticks_per_beat 480\nnote 0 0 60", "no message has this type"),
    ],
)
def test_bad_mtf_names_the_line(mtf, message):
    with pytest.raises(InputError, match=message):
        mtf_to_midi(mtf)

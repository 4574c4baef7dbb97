"""Pieces that are the same music have the same canonical form."""

import random
import re
from collections.abc import Iterable

import mido
import pytest

from clamplib.formats.canonical import FIRST_LINE, canonical, find_unit, key_name
from clamplib.formats.mtf import midi_to_mtf
from clamplib.formats.notes import Note, read_notes
from clamplib.formats.patchilizer import M3Patchilizer

REEL = """X:1
T:A reel
M:4/4
L:1/8
K:G
D2|:G2BG dGBG|A2cA eAcA|G2BG dGBd|1 cAFA G2D2:|2 cAFA G2Bd||
g2dg bgdg|f2ag fdef|gfed cBAG|FDEF G4|]
"""
WALTZ = """X:2
M:3/4
L:1/8
K:Em
B,2|E4G2|B4A2|G4F2|E4B,2|E4G2|B4d2|e4d2|B4d2|e4d2|B4A2|G4F2|E4|]
"""


def bars(text: str) -> list[str]:
    """The bars of the melody, without the key."""
    return [line[4:] for line in canonical(text).splitlines() if line.endswith("|") and "," not in line]


def key(text: str) -> str:
    return canonical(text).splitlines()[-1][:3]


def field(text: str, letter: str) -> str | None:
    return next((line[2:] for line in canonical(text).splitlines() if line.startswith(f"{letter}:")), None)


def to_mtf(
    parts: Iterable[Iterable[Note]],
    ticks=480,
    off="note_off",
    meter=(4, 4),
    later_meters=(),
    key=None,
    velocity=80,
    head=(),
) -> str:
    """MTF of MIDI with a channel for each part. Later meters are (onset, beats, unit)."""
    timed = []
    for onset, beats, unit in later_meters:
        timed.append((round(onset * ticks), -1, mido.MetaMessage("time_signature", numerator=beats, denominator=unit)))
    for channel, notes in enumerate(parts):
        for note in notes:
            on = mido.Message("note_on", channel=channel, note=note.pitch, velocity=velocity)
            timed.append((round(note.onset * ticks), 1, on))
            end = mido.Message(off, channel=channel, note=note.pitch, velocity=0 if off == "note_on" else 64)
            timed.append((round(note.end * ticks), 0, end))
    track = mido.MidiTrack(head)
    if meter:
        track.append(mido.MetaMessage("time_signature", numerator=meter[0], denominator=meter[1]))
    if key:
        track.append(mido.MetaMessage("key_signature", key=key))
    now = 0
    for time, _, message in sorted(timed, key=lambda event: event[:2]):
        track.append(message.copy(time=time - now))
        now = time
    return midi_to_mtf(mido.MidiFile(type=0, ticks_per_beat=ticks, tracks=[track]))


def test_the_form():
    assert canonical(WALTZ).splitlines()[:6] == [
        "N:canonical",
        "M:3/4",
        "L:1/4",
        "B:12",
        "E m ........E5|",
        "E m A5......C6|",
    ]


@pytest.mark.parametrize("tune", [REEL, WALTZ])
def test_the_form_of_a_form_is_itself(tune):
    assert canonical(canonical(tune)) == canonical(tune)


@pytest.mark.parametrize(
    "other",
    [
        REEL.replace("|", "|\n"),
        REEL.replace("\n", " \n").replace(" ", "  "),
        REEL.replace("dGBG", '"G"d!trill!G{c}B~G'),
        REEL.replace("K:G", "K: G major"),
        REEL.replace("K:G", "Q:1/4=90\nR:reel\nK:Gmaj"),
        REEL.replace("M:4/4", "M:C"),
    ],
)
def test_abc_by_another_hand(other):
    assert unmarked(re.sub(".*,.*\n", "", canonical(other))) == unmarked(canonical(REEL))


def unmarked(text: str) -> str:
    return re.sub("Z:.*\n", "", text)


@pytest.mark.parametrize(
    "abc, marks",
    [
        ("GABc|", None),
        ("uG{c}AB(cd)|", "bow grace slur"),
        ("!trill!G.A~B(3cde|:cHd:|", "fermata repeat roll staccato trill tuplet"),
        ('"Tu.~"GAB[r:{(u}]c||', "section"),
        ("[V:1] T=G !upbow!A !f!B|", "bow trill"),
    ],
)
def test_marks_of_abc_are_named(abc, marks):
    assert field("M:4/4\nL:1/8\nK:G\n" + abc, "Z") == marks


@pytest.mark.parametrize("upbeat", ["", "D2|"])
def test_the_number_of_bars_is_without_upbeat_and_repeats(upbeat):
    eight = "G2BG dGBG|A2cA eAcA|G2BG dGBd|cAFA G2B2|g2dg bgdg|f2ag fdef|gfed cBAG|FDEF G2D2|"
    assert field("M:4/4\nL:1/8\nK:G\n" + upbeat + eight + eight, "B") == "8"


def test_other_note_lengths():
    head, body = WALTZ.split("K:Em\n")
    shorter = body.replace("2", "").replace("4", "2")
    assert canonical(head.replace("L:1/8", "L:1/4") + "K:Em\n" + shorter) == canonical(WALTZ)
    assert bars("L:1/8\nM:2/4\nK:C\nCDEF|GABc|") == bars("L:1/16\nM:2/4\nK:C\nC2D2E2F2|G2A2B2c2|")
    assert bars("L:1/8\nM:4/4\nK:C\nCDEFGABc|") == bars("L:1/16\nM:2/4\nK:C\nCDEFGABc|")  # note values are relative


@pytest.mark.parametrize("moved, name", [(2, "A  "), (5, "C  "), (-5, "D  "), (3, "Bb ")])
def test_another_key_leaves_the_notes(moved, name):
    (part,) = read_notes(REEL).parts
    here, there = (to_mtf([[n._replace(pitch=n.pitch + by) for n in part]]) for by in (0, moved))
    assert [bar.translate(OCTAVES) for bar in bars(here)] == [bar.translate(OCTAVES) for bar in bars(there)]
    assert (key(here), key(there)) == ("G  ", name)


OCTAVES = str.maketrans("0123456789", "oooooooooo")


@pytest.mark.parametrize("tune, meter", [(REEL, (4, 4)), (WALTZ, (3, 4))])
def test_midi_has_the_form_of_its_abc(tune, meter):
    (part,) = read_notes(tune).parts
    for ticks in (96, 120, 480, 1000):
        for off in ("note_on", "note_off"):
            assert bars(to_mtf([part], ticks, off, meter)) == bars(tune)


def test_the_touch_of_a_player_does_not_matter():
    (part,) = read_notes(REEL).parts
    rng = random.Random(1)
    uneven = [Note(max(n.onset + rng.gauss(0, 0.02), 0), n.end - 0.2, n.pitch) for n in part]
    head = [mido.Message("program_change", program=40), mido.Message("control_change", control=64, value=127)]
    assert bars(to_mtf([uneven], velocity=33, head=head)) == bars(REEL)
    for overlap in (0.08, 0.18):
        legato = [n._replace(end=n.end + overlap) for n in part]
        assert bars(to_mtf([legato])) == bars(REEL)


def test_accompaniment_is_not_melody():
    (part,) = read_notes(REEL).parts
    end = part[-1].end
    chords = [Note(1 + 2 * n, 3 + 2 * n, pitch) for n in range(int(end / 2)) for pitch in (43, 47, 50)]
    apart, together = to_mtf([part, chords]), to_mtf([[*part, *chords]])
    first = to_mtf([chords, part])
    assert bars(apart) == bars(first) == bars(together) == bars(REEL)
    assert field(apart, "V") == "4"
    assert "G   C,|" in canonical(apart)  # the bass, where it changes


def test_overtones_are_not_melody():
    """Programs that transcribe sound hear some notes again two octaves higher, beside the chords that they hear."""
    (part,) = read_notes(REEL).parts
    chords = [Note(n, n + 1, pitch) for n in range(1, int(part[-1].end)) for pitch in (43, 47, 50)]
    overtones = [Note(n.onset + 0.02, n.end, n.pitch + 24) for n in part[3::7]]
    assert bars(to_mtf([[*part, *chords, *overtones]])) == bars(REEL)
    lowest = min(part, key=lambda note: note.pitch)
    leaping = [n._replace(pitch=n.pitch + 19) if n is lowest else n for n in part]  # as far as a melody may leap
    assert bars(to_mtf([[*leaping, *chords]])) == bars(to_mtf([leaping, chords])) != bars(REEL)


def test_the_bass_is_heard_where_the_melody_is_silent():
    head = "M:4/4\nL:1/8\nK:C\nV:1\nV:2\n"
    score = head + "[V:1]cdef gfed|[V:2]C,8|\n[V:1]z8|[V:2]F,8|\n[V:1]edcd efge|[V:2]F,8|\n"
    assert [line for line in canonical(score).splitlines() if "," in line] == ["C   C,|", "C   F,|"]


def test_the_bass_of_a_bar_that_is_written_in_two_parts():
    sixteenths = "cdefgfedcdefgfed|" * 2
    score = f"M:4/4\nL:1/16\nK:C\nV:1\nV:2\n[V:1]{sixteenths}\n[V:2]C,4G,,4F,4A,4|C,16|\n"
    assert [line for line in canonical(score).splitlines() if "," in line][0] == "C   " + "G," + ".." * 15 + "F,|"


@pytest.mark.parametrize(
    "voices, number",
    [
        ("GABc dedB|", None),
        ("GABc dedB|[V:2]G,4 D4|", None),  # two parts are a tune and what accompanies it
        ("GABc dedB|[V:2]G,4 D4|[V:3]G,,4 D,4|", "3"),
        ("GABc dedB|[V:2]G,4 D4|[V:3]G,,4 D,4|[V:4]G4 F4|", "4"),
        ("GABc dedB|[V:2]G,4 D4|[V:3][G,,B,,]4 [D,F,]4|", None),  # chords are not one note at a time
        ("GABc dedB|[V:2]G,4 D4|[V:3]G,,8|", None),  # a part that is silent most of the time
    ],
)
def test_parts_that_play_one_note_at_a_time_are_counted_from_three(voices, number):
    score = "M:4/4\nL:1/8\nK:G\nV:1\nV:2\nV:3\nV:4\n[V:1]" + voices + "\n"
    assert field(score, "P") == number
    assert field(to_mtf(read_notes(score).parts), "P") == number


def test_chord_symbols_are_the_bass():
    assert canonical('M:4/4\nL:1/8\nK:G\n"G"GABc dedB|"G"GABc "D7"dedB|"Em"GABc dedB|').splitlines()[4::2] == [
        "G   C,|",
        "G   ................G,|",
        "G   A,|",
    ]


def test_repeats_that_are_played_out_are_heard_once():
    eight = "G2BG dGBG|A2cA eAcA|G2BG dGBd|cAFA G2B2|g2dg bgdg|f2ag fdef|gfed cBAG|FDEF G4|"
    head = "M:4/4\nL:1/8\nK:G\n"
    assert canonical(head + eight + eight) == canonical(head + eight)
    assert unmarked(canonical(head + "|:" + eight[:-1] + ":|")) == canonical(head + eight)
    other_end = eight.replace("FDEF G4", "FDEF G2D2")
    assert canonical(head + other_end + eight) == canonical(head + other_end)
    assert len(bars(head + "GABc dedB|" * 3)) == 3  # a short phrase may be meant


def test_a_phrase_that_midi_repeats_may_end_with_the_next_upbeat():
    """As MIDI has no bar lines, the upbeat of what follows stands in the last bar of the phrase."""
    four, rest = "G2BG dGBG|A2cA eAcA|G2BG dGBd|cAFA G2", "g2dg bgdg|f2ag fdef|gfed cBAG|FDEF G2"
    head = "M:4/4\nL:1/8\nK:G\n"
    (part,) = read_notes(f"{head}D2|{four}D2|{four}ef|{rest}ef|{rest}z2|").parts
    assert field(to_mtf([part]), "B") == "8"


@pytest.mark.parametrize("bass, name", [("E,8", "E m"), ("G,8", "G  ")])
def test_a_score_that_ends_on_the_minor_tonic_is_in_minor(bass, name):
    """Programs write a signature without a mode, or as that of a major key."""
    score = "M:4/4\nL:1/8\nK:G\nV:1\nV:2\n[V:1]GABc dedB|[V:2]E,8|\n[V:1]G8|[V:2]" + bass + "|\n"
    assert key(score) == name


def test_repeats_from_the_beginning_are_heard_once():
    """Some programs go back to the beginning of the tune at every repeat that does not say where it starts."""
    a, b, c = "GABc dedB|A2cA eAcA|GABc d2ef|g2fe d2c2|", "b2ab gabg|f2ag fdef|g4 e4|d8|", "D8|E8|F4 G4|A4 B4|"
    head = "M:4/4\nL:1/8\nK:G\n"
    assert bars(head + a + a + b + a + b + c + a + b + c) == bars(head + a + b + c)


def test_an_upbeat_stands_at_the_end_of_its_bar():
    assert bars(REEL)[:2] == ["........................G5|", "C6......E6..C6..G6..C6..E6..C6|"]


def test_a_dotted_rhythm_is_that_of_a_swinging_player():
    dotted = "M:4/4\nL:1/8\nK:G\nG>FG>A B>cd>B|c>BA>G F>GA>F|G>Bd>g f>ed>c|B>GA>F G4|"
    (part,) = read_notes(dotted).parts
    swung = [n._replace(onset=n.onset - 1 / 12 if n.onset % 1 else n.onset) for n in part]
    assert bars(to_mtf([swung])) == bars(dotted)


def test_time_that_is_lost_between_notes_does_not_matter():
    (part,) = read_notes(REEL).parts
    early = [Note(n.onset - 0.01 * number, n.end - 0.01 * number, n.pitch) for number, n in enumerate(part)]
    assert bars(to_mtf([early], ticks=960)) == bars(REEL)
    assert field(to_mtf([early], ticks=960, key="G"), "M") == "4/4"


def test_the_meter_of_a_program_that_knows_none():
    """Programs that transcribe sound write 4/4 and no key. In a file whose notes stand on its beats, it is meant."""
    jig = "M:6/8\nL:1/8\nK:G\n" + "GAB dBG|c2e g2e|dBG AGE|D3 G3|g2e dBG|c2e gfe|dBG AFD|G3 G3|"
    (part,) = read_notes(jig).parts
    rng = random.Random(0)
    heard = sorted(n._replace(onset=max(n.onset + rng.uniform(-0.03, 0.03), 0)) for n in part)
    assert bars(to_mtf([heard])) == bars(to_mtf([heard], meter=None)) == bars(jig)
    assert field(to_mtf([heard]), "M") is None
    assert field(to_mtf([heard], key="G"), "M") == "4/4"
    assert field(to_mtf([part]), "M") == "4/4"


def test_an_upbeat_may_have_a_meter_of_its_own():
    (part,) = read_notes(REEL).parts
    text = to_mtf([part], meter=(1, 4), later_meters=[(1, 4, 4)])
    assert field(text, "M") == "4/4"
    assert bars(text) == bars(REEL)


def test_an_upbeat_before_several_meters():
    """MIDI does not say that a piece begins with an upbeat, but the change of meter stands on a bar line."""
    (part,) = read_notes("M:4/4\nL:1/8\nK:C\ng2|" + COMMON_TIME + TRIPLE_TIME).parts
    text = to_mtf([part], later_meters=[(33, 3, 4)], key="C")
    assert bars(text)[:2] == bars("M:4/4\nL:1/8\nK:C\ng2|" + COMMON_TIME)[:2]
    (reel,) = read_notes(REEL).parts
    assert bars(to_mtf([reel], later_meters=[(reel[-1].end, 3, 4)])) == bars(REEL)


def test_the_last_of_two_meters_at_one_time_holds():
    (part,) = read_notes(WALTZ).parts
    text = to_mtf([part], meter=(4, 4), later_meters=[(0, 1, 4), (1, 3, 4)])
    assert field(text, "M") == "3/4"
    assert bars(text) == bars(WALTZ)


COMMON_TIME, TRIPLE_TIME = "cdef gfed|edcd efge|" * 4, "c2d2ef|" * 8


def test_notes_before_the_first_of_several_meters_are_in_common_time():
    (part,) = read_notes("M:4/4\nL:1/8\nK:C\n" + COMMON_TIME + TRIPLE_TIME + "c8|").parts
    text = to_mtf([part], meter=None, later_meters=[(32, 3, 4), (56, 4, 4)])
    assert field(text, "M") == "4/4"
    assert bars(text)[0] == bars("M:4/4\nL:1/8\nK:C\n" + COMMON_TIME)[0]


def test_meters_move_with_the_notes_when_time_is_lost():
    (part,) = read_notes("M:4/4\nL:1/8\nK:C\n" + COMMON_TIME + TRIPLE_TIME).parts
    early = [Note(n.onset - 0.01 * number, n.end - 0.01 * number, n.pitch) for number, n in enumerate(part)]
    exact = to_mtf([part], ticks=960, later_meters=[(32, 3, 4)])
    assert bars(to_mtf([early], ticks=960, later_meters=[(early[64].onset, 3, 4)])) == bars(exact)


def test_a_performance_without_beats():
    (part,) = read_notes(REEL).parts
    slow = [Note(n.onset * 1.2345 + 0.21, n.end * 1.2345 + 0.21, n.pitch) for n in part]
    assert bars(to_mtf([slow], meter=None)) == bars(to_mtf([part], meter=None))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "K:C\nz4|",
        "no music",
        "ticks_per_beat 480",
        "ticks_per_beat 480\nset_tempo 500000 0\nnote_off 10 0 60 0\nend_of_track 1",
    ],
)
def test_without_notes_a_text_stays_as_it_is(text):
    assert canonical(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "K:C\nC999999999999|C//////////////////////////////|(9:9:99C|[C]/0|",
        "M:0/0\nL:0/0\nK:C\nCDE|",
        "M:99/1\nK:C\nCDE|c|",
        "K:C\n" + "[K:" * 1000 + "C|",
        "ticks_per_beat 1\n" + "note_on 268435455 0 60 64\nnote_off 268435455 0 60 0\n" * 8,
        "ticks_per_beat 32767\nnote_on 0 0 60 64\nnote_off 1 0 60 0",
        "ticks_per_beat -5\nnote_on 0 0 60 64\nnote_off 1 0 60 0",
        "ticks_per_beat 480\ntime_signature 1 64 24 8 0\nnote_on 0 0 60 64\nnote_off 1 0 60 0",
        "ticks_per_beat 1\nnote_on 0 0 60 64\nnote_off 1 0 60 0\n"
        + "time_signature 1 1048576 24 8 1\ntime_signature 2 1048576 24 8 1\n" * 20_000
        + "note_on 0 0 60 64\nnote_off 1 0 60 0",
        "ticks_per_beat 1\ntime_signature 1 16777216 24 8 0\nnote_on 0 0 60 64\nnote_off 1 0 60 0\n"
        + "set_tempo 500000 268435455\n" * 40_000
        + "note_on 0 0 60 64\nnote_off 1 0 60 0",
    ],
)
def test_odd_numbers_end_soon(text):
    assert canonical(text).startswith(FIRST_LINE)


def test_a_patchilizer_of_this_form_cuts_bars():
    patchilizer = M3Patchilizer(64, 128, "canonical")
    patches = patchilizer.split(REEL)
    assert patches[:4] == ["M:4/4\n", "B:9\n", "Z:repeat section\n", "G   ........................G5|\n"]
    assert patchilizer.split(canonical(REEL)) == patches
    assert M3Patchilizer(64, 128).split(REEL)[0] == "X:1\n"


@pytest.mark.parametrize("step, unit", [(0.25, 0.25), (0.5, 0.5), (1.0, 1.0), (2.0, 2.0), (0.01, 0.0625), (50.0, 2.0)])
def test_the_unit_is_the_usual_note(step, unit):
    assert find_unit([step * number for number in range(20)]) == unit


@pytest.mark.parametrize("signature, name", [("Gb", "F# "), ("Cb", "B  "), ("C#", "Db "), ("Ebm", "Ebm")])
def test_keys_of_many_accidentals(signature, name):
    assert key(f"M:4/4\nL:1/8\nK:{signature}\nCDEF GABc|defg agfe|d8|") == name


def test_key_names():
    assert [key_name(0, tonic) for tonic in (0, 2, 4, 5, 7, 9, 11)] == ["C  ", "D d", "E p", "F l", "G x", "A m", "B o"]

"""The notes of ABC and MTF are those that a musician reads."""

import pytest

from clamplib.files import InputError
from clamplib.formats.notes import parse_key, read_notes


def played(abc: str) -> list[tuple[float, float, int]]:
    (part,) = read_notes(abc).parts
    return [(round(note.onset, 4), round(note.end - note.onset, 4), note.pitch) for note in part]


@pytest.mark.parametrize(
    "music, notes",
    [
        ("C D|", [(0, 0.5, 60), (0.5, 0.5, 62)]),
        ("C,c'|", [(0, 0.5, 48), (0.5, 0.5, 84)]),
        ("C2D/E3/2F//|", [(0, 1, 60), (1, 0.25, 62), (1.25, 0.75, 64), (2, 0.125, 65)]),
        ("C>D E<F|", [(0, 0.75, 60), (0.75, 0.25, 62), (1, 0.25, 64), (1.25, 0.75, 65)]),
        ("(3CDE F|", [(0, 1 / 3, 60), (1 / 3, 1 / 3, 62), (2 / 3, 1 / 3, 64), (1, 0.5, 65)]),
        ("(3:2:2C2D E|", [(0, 2 / 3, 60), (2 / 3, 1 / 3, 62), (1, 0.5, 64)]),
        ("C-C D|", [(0, 1, 60), (1, 0.5, 62)]),
        ("C4-|C4|", [(0, 4, 60)]),
        ("^C C|C|", [(0, 0.5, 61), (0.5, 0.5, 61), (1, 0.5, 60)]),  # an accidental holds until the bar ends
        ("^C c|", [(0, 0.5, 61), (0.5, 0.5, 72)]),  # and in its octave
        ("z2C x Zc|", [(1, 0.5, 60), (6, 0.5, 72)]),
        ('"Am"!trill!{gag}~.C"<hint"D|', [(0, 0.5, 60), (0.5, 0.5, 62)]),
        ("[CEG]2 [c2e]|", [(0, 1, 60), (0, 1, 64), (0, 1, 67), (1, 1, 72), (1, 1, 76)]),
        ("C D & E E|F|", [(0, 0.5, 60), (0.5, 0.5, 62), (1, 0.5, 65)]),  # a second voice within a bar is left out
        ("C[K:D]F[L:1/4]C|", [(0, 0.5, 60), (0.5, 0.5, 66), (1, 1, 61)]),
        ("z>C D C-C>D|", [(0.75, 0.25, 60), (1, 0.5, 62), (1.5, 1.25, 60), (2.75, 0.25, 62)]),
        ("^C-|C C|", [(0, 1, 61), (1, 0.5, 60)]),  # a tie holds an accidental over the bar line, and no longer
        ("^C-|C-|C C|", [(0, 1.5, 61), (1.5, 0.5, 60)]),
        ("[c-E]2[cF]2|", [(0, 2, 72), (0, 1, 64), (1, 1, 65)]),
        ('["Am"!accent!CE]2 D|', [(0, 1, 60), (0, 1, 64), (1, 0.5, 62)]),
        ("[1 C D [EG]2:|[2 F|]", [(0, 0.5, 60), (0.5, 0.5, 62), (1, 1, 64), (1, 1, 67), (2, 0.5, 65)]),
        ("C D| % a bad bag", [(0, 0.5, 60), (0.5, 0.5, 62)]),
        ("C D|!E F|!", [(0, 0.5, 60), (0.5, 0.5, 62), (1, 0.5, 64), (1.5, 0.5, 65)]),  # ! may end a line
        ("+fermata+C D|", [(0, 0.5, 60), (0.5, 0.5, 62)]),
        ("C D & (3E-EF|F F|", [(0, 0.5, 60), (0.5, 0.5, 62), (1, 0.5, 65), (1.5, 0.5, 65)]),
        ("C4|X2|C4|", [(0, 2, 60), (10, 2, 60)]),
        ("cBA:|\nd:|\ne::f|", [(n / 2, 0.5, pitch) for n, pitch in enumerate((72, 71, 69, 74, 76, 77))]),
        ("C|\n%%begintext\nA bad bag|\n%%endtext\nD|", [(0, 0.5, 60), (0.5, 0.5, 62)]),
        ("|:C D:|1 E:|2 F|]", [(0, 0.5, 60), (0.5, 0.5, 62), (1, 0.5, 64), (1.5, 0.5, 65)]),
    ],
)
def test_abc(music, notes):
    expected = [(round(onset, 4), round(length, 4), pitch) for onset, length, pitch in notes]
    assert played(f"L:1/8\nM:4/4\nK:C\n{music}\n") == expected


def test_abc_without_a_unit_takes_it_from_the_meter():
    assert played("M:2/4\nK:C\nC|")[0][1] == 0.25
    assert played("M:6/8\nK:C\nC|")[0][1] == 0.5


@pytest.mark.parametrize("field", ["Em", "E minor", "Emin", "E Aeolian", "Em clef=bass", "EMin"])
def test_spellings_of_a_key(field):
    assert parse_key(field) == (1, 4)


@pytest.mark.parametrize(
    "field, key", [("Edor", (2, 4)), ("D", (2, 2)), ("Bb", (-2, 10)), ("F#m", (3, 6)), ("Amix", (2, 9)), ("HP", (2, 9))]
)
def test_keys(field, key):
    assert parse_key(field) == key


@pytest.mark.parametrize("field", ["", "none", "X"])
def test_no_key(field):
    assert parse_key(field) is None


def test_voices_follow_each_other_or_share_a_line():
    apart = "L:1/8\nM:2/4\nK:D\nV:1\nF4|G4|\nV:2\nD4|E4|\n"
    interleaved = "L:1/8\nM:2/4\nK:D\nV:1\nV:2\n[V:1]F4|[V:2]D4|\n[V:1]G4|[V:2]E4|\n"
    assert read_notes(apart).parts == read_notes(interleaved).parts
    assert read_notes(apart).bars == [[0, 2, 4], [0, 2, 4]]


def test_a_voice_has_its_own_key_and_unit():
    """As of transposing instruments. What stands before the notes is of all voices."""
    score = "L:1/8\nM:4/4\nK:D\nV:1\nV:2\n[V:1]C8|[V:2][K:E][L:1/4]C4|\n[V:1]D8|[V:2]D4|\n"
    first, second = read_notes(score).parts
    assert [note.pitch for note in first] == [61, 62]
    assert [note.pitch for note in second] == [61, 63]
    assert [note.end for note in first] == [note.end for note in second] == [4, 8]


def test_what_stands_around_a_tune_is_not_music():
    header = "\ufeffX:1\nT:A tune\nN:Played at\n a bad bag\n  M:2/4\nV:1\nV:2\n  K:A\n"
    after = "\nA great dance, and a bad one.\n"
    first, second = read_notes(header + "[V:1]C4|[V:2]E4|\n[V:1]A,4|[V:2]c4|\n" + after).parts
    assert first == [(0, 1, 61), (1, 2, 57)]
    assert second == [(0, 1, 64), (1, 2, 73)]
    assert read_notes("N:Oh\x85 a faded deed\nK:C\nC|").parts == [[(0, 0.5, 60)]]


def test_several_tunes_are_refused():
    with pytest.raises(InputError, match="expected one tune of ABC, got 2"):
        read_notes("X:1\nK:C\nC|\n\nX:2\nK:C\nD|\n")


@pytest.mark.parametrize(
    "properties, pitch",
    [
        ("clef=bass", 60),
        ("treble-8", 48),
        ("clef=treble+8", 72),
        ("bass octave=-2", 36),
        ("bass transpose=-3", 57),
        ('nm="treble-8"', 60),
    ],
)
def test_clefs_and_octaves_move_the_notes(properties, pitch):
    for head in (f"K:C\nV:1 {properties}\n", f"K:C {properties}\n", f"K:C\n[K:C {properties}]"):
        assert read_notes(f"L:1/8\nM:4/4\n{head}C|[K:bass octave=0 transpose=0]^C-|C").parts == [
            [(0, 0.5, pitch), (0.5, 1.5, 61)]
        ]


@pytest.mark.parametrize("text, meter", [("6/8", (6, 8)), ("C|", (2, 2)), ("(2+2+3)/8", (7, 8)), ("2+3/4", (5, 4))])
def test_meters(text, meter):
    assert read_notes(f"M:{text}\nK:C\nC|").meters == [(0, *meter)]


def test_the_meter_of_a_voice_is_that_of_its_rests():
    score = "L:1/4\nM:4/4\nK:C\nV:1\nC4|[M:3/4]C3|\nV:2\nZ|C4|\n"
    assert read_notes(score).parts[1] == [(4, 8, 60)]


def test_abc_without_bar_lines_has_no_bars():
    assert read_notes("K:C\nCDEF").bars == []
    assert read_notes("K:C\nCDEF|").bars == [[0, 2]]


def test_chord_symbols_are_roots():
    assert read_notes('L:1/8\nK:C\n"C"C4"G7/B"D4|"Bbmaj7"z4|').roots == [(0, 0), (2, 7), (4, 10)]


def test_mtf():
    text = (
        "ticks_per_beat 100\nset_tempo 500000 0\ntime_signature 3 4 24 8 0\nkey_signature Em 0\n"
        "program_change 0 0 5\nnote_on 0 0 60 90\nnote_on 0 1 48 40\nnote_on 50 0 60 0\nnote_on 0 0 62 1\n"
        "control_change 25 0 64 127\nnote_off 25 0 62 64\nnote_on 10 9 38 99\nnote_off 90 1 48 0\nend_of_track 0"
    )
    music = read_notes(text)
    assert music.parts == [[(0, 0.5, 60), (0.5, 1, 62)], [(0, 2, 48)]]  # drums are left out
    assert music.meters == [(0, 3, 4)]
    assert music.key == (1, 4)


def test_drums_alone_are_notes():
    assert read_notes("ticks_per_beat 10\nnote_on 0 9 38 99\nnote_off 10 9 38 0").parts == [[(0, 1, 38)]]


def test_a_note_that_begins_where_one_of_its_pitch_ends():
    """Two tracks may share a channel, so that the first note's end may follow the second note's beginning."""
    on, off = "note_on {} 0 60 64", "note_off {} 0 60 0"
    lines = ["ticks_per_beat 10", on.format(0), on.format(10), off.format(0), off.format(10), on.format(0)]
    assert read_notes("\n".join(lines)).parts == [[(0, 1, 60), (1, 2, 60)]]


def test_numbers_that_midi_cannot_write():
    huge = "9" * 400
    lines = [f"time_signature 4 {huge} 24 8 0", f"set_tempo {huge} 0", f"note_on {huge} 0 60 64", "note_off 10 0 60 0"]
    music = read_notes("ticks_per_beat 10\n" + "\n".join(lines))
    assert len(music.parts[0]) == 1
    assert (music.meters, music.tempos) == ([], [])


def test_notes_without_length_take_no_time_to_read():
    assert len(read_notes("K:C\n" + "C0>" * 100_000).parts[0]) == 100_000

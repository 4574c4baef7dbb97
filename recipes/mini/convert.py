"""Converts one piece of the corpora to notes without any label: interleaved ABC, raw ABC and MTF."""

import base64
import io
import re
import statistics
from dataclasses import dataclass

import mido
import verovio

from clamplib.formats.mtf import midi_to_mtf
from clamplib.formats.notation import abc_to_xml, interleave, xml_to_abc
from recipes.mini.corpus import CorpusPiece, read_musicxml

LYRIC = re.compile(r"<lyric\b(?:[^>]*/>|.*?</lyric>)", re.DOTALL)
FIELD = re.compile(r"[A-Za-z]:|%")
LABEL_FIELDS = re.compile(r"(?m)^(?:[TRCOSNZBDFGAHQWwrsmNI]:|%).*\n?")
QUOTED = re.compile(r'"([^"]*)"')
CHORD_SYMBOL = re.compile(r"[A-G][b#]?(?:m|min|maj|dim|aug|sus|\+)?\d*(?:/[A-G][b#]?)?")
NOTE = re.compile(r"([_=^]*)([A-Ga-gz])([,']*)(\d*)(/*)(\d*)")
MARKS = re.compile(r'"[^"]*"|![^!]*!|\{[^}]*\}|\[[A-Z]:[^\]]*\]')
STEPS = "CDEFGABcdefgab"
OPENING_BARS = 2  # an opening has at least so many bars
OPENING_NOTES = 8  # and at least so many notes

verovio.enableLog(verovio.LOG_OFF)
_toolkit: verovio.toolkit | None = None


@dataclass(frozen=True)
class Notes:
    """The notes of a piece, without its words."""

    abc: str  # interleaved
    raw: str | None  # a tune as found, without labels
    mtf: str
    opening: str  # steps between the first notes: the same in any key
    key_field: str  # content of the ABC's K: field
    final_bass: int | None  # MIDI pitch of the lowest note that ends the piece


def convert(piece: CorpusPiece) -> Notes:
    """Converts a piece.

    Raises:
        Exception: whatever the converters raise for a broken piece.
    """
    raw = without_labels(piece.abc) if piece.abc is not None else None
    xml = abc_to_xml(raw) if raw is not None else read_musicxml(piece.score)
    abc = interleave(xml_to_abc(xml.encode()))
    midi = to_midi(xml)
    final_bass = _final_bass(midi)
    if final_bass is None:
        raise ValueError("expected notes in the MIDI that verovio makes of the piece, got none")
    key = re.search(r"(?m)^K:(.*)", abc)
    return Notes(abc, raw, midi_to_mtf(midi), opening_steps(abc), key[1].strip() if key else "", final_bass)


def without_labels(abc: str) -> str:
    """Removes titles, kinds, origins, tempo marks, lyrics and remarks from a tune. Chord symbols stay."""
    music = LABEL_FIELDS.sub("", abc)
    return QUOTED.sub(lambda quoted: quoted[0] if CHORD_SYMBOL.fullmatch(quoted[1]) else "", music)


def to_midi(xml: str) -> mido.MidiFile:
    """Converts MusicXML to MIDI with verovio, without its lyrics: MTF would lose the time of every word."""
    global _toolkit  # one per process
    _toolkit = _toolkit or verovio.toolkit()
    if not _toolkit.loadData(LYRIC.sub("", xml)):
        raise ValueError("verovio cannot read this MusicXML")
    return mido.MidiFile(file=io.BytesIO(base64.b64decode(_toolkit.renderToMIDI())))


def opening_steps(abc: str) -> str:
    """Returns the diatonic steps between the first voice's first notes, from the first full bar on."""
    bars = [_bar(line) for line in abc.splitlines() if not FIELD.match(line)]
    bars = [(steps, length) for steps, length in bars if steps]
    if len(bars) > 1 and bars[0][1] <= 0.75 * bars[1][1]:
        bars = bars[1:]  # an upbeat, which other editions of a tune may lack
    steps: list[int] = []
    for number, (bar, _) in enumerate(bars):
        if number >= OPENING_BARS and len(steps) >= OPENING_NOTES:
            break
        steps += bar
    return " ".join(str(b - a) for a, b in zip(steps, steps[1:], strict=False))


def count_bars(abc: str) -> int:
    """Counts the bars of the first voice as written. Parts of bars, at upbeats and repeats, add up to whole ones."""
    lengths = [_bar(line)[1] for line in abc.splitlines() if not FIELD.match(line)]
    full = statistics.mode(filter(None, lengths))
    bars = sum(min(length / full, 1) for length in lengths)  # longer bars hold triplets, or are two bars
    return int(bars + 0.25)  # an upbeat without a matching last bar does not count


def _bar(line: str) -> tuple[list[int], float]:
    """Returns the diatonic numbers of the notes in the first voice's bar, and its length in units of L:."""
    first = re.split(r"\[V:(?!1\])", MARKS.sub(lambda m: m[0] if m[0].startswith("[V:") else "", line))[0]
    first = re.sub(r"\[V:[^\]]*\]|\[([^|\]\[]*)\]", lambda m: _top(m[1]), first)
    steps, length = [], 0.0
    for _, letter, octave, times, slashes, divisor in NOTE.findall(first):
        length += int(times or 1) / (int(divisor) if divisor else 2 ** len(slashes))
        if letter != "z":
            steps.append(STEPS.index(letter) + 7 * (octave.count("'") - octave.count(",")))
    return steps, length


def _top(chord: str | None) -> str:
    notes = [m[0] for m in NOTE.finditer(chord or "")]
    return notes[-1] if notes else ""


def _final_bass(midi: mido.MidiFile) -> int | None:
    """Returns the lowest MIDI pitch among the notes that end the piece."""
    now, starts = 0, []
    for message in mido.merge_tracks(midi.tracks):
        now += message.time
        if message.type == "note_on" and message.velocity:
            starts.append((now, message.note))
    beat = midi.ticks_per_beat
    return min((note for time, note in starts if time >= starts[-1][0] - beat // 8), default=None)

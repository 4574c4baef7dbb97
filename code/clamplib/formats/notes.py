"""The notes of ABC and MTF: what sounds when, whatever program wrote it.

Times are in quarter notes from the beginning. Each voice of ABC and each channel of MIDI is one part.
"""

import re
from collections import defaultdict
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from clamplib.formats.mtf import FIRST_WORD
from clamplib.formats.notation import only_tune

OCTAVE = 12  # semitones
HIGHEST = 127  # pitch of MIDI
DRUMS = 9  # General MIDI's channel for drums
SCALE = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}  # semitones above C
FIFTHS = {"F": -1, "C": 0, "G": 1, "D": 2, "A": 3, "E": 4, "B": 5}  # sharps in the major key
MODES = {"maj": 0, "ion": 0, "m": -3, "min": -3, "aeo": -3, "dor": -2, "mix": -1, "phr": -4, "lyd": 1, "loc": -5}
ORDER_OF_SHARPS = "FCGDAEB"
KEY = re.compile(r"\s*([A-G])([#b]?)\s*([A-Za-z]*)")
METER = re.compile(r"\s*\(?(\d{1,2}(?:\+\d{1,2}){0,9})\)?/(\d{1,2})")
METER_SIGNS = {"C|": (2, 2), "C": (4, 4)}
TUPLET_TIMES = {2: 3, 3: 2, 4: 3, 5: 2, 6: 2, 7: 2, 8: 3, 9: 2}  # ABC: p notes in the time of q
_LENGTH = r"(\d{0,3})(/*)(\d{0,3})"


def _named_length(name: str) -> str:
    return rf"(?P<{name}_times>\d{{0,3}})(?P<{name}_slashes>/*)(?P<{name}_divisor>\d{{0,3}})"


TOKEN = re.compile(  # notes first: most tokens are
    rf"(?P<note>(?P<accidental>\^\^|__|[_^=])?(?P<letter>[A-Ga-g])(?P<octave>[,']*){_named_length('note')})"
    r'|"(?P<quoted>[^"]{0,200})"|\{[^}]{0,200}\}|%.*'  # chord symbols, grace notes, comments
    r"|![^!|\s]{0,50}!|\+(?=[^+|\s]{0,50}[h-z])[^+|\s]{0,50}\+"  # decorations
    r"|\[(?P<field>[A-Za-z]):(?P<value>[^\]]{0,200})\]"
    r"|\((?P<tuplet>[2-9])(?::(?P<times>\d?))?(?::(?P<count>\d{0,2}))?"
    rf"|\[(?P<chord>[^][|:]{{1,200}})\]{_named_length('chord')}"
    rf"|(?P<rest>[zx]){_named_length('rest')}|(?P<bars>[ZX]\d{{0,3}})"
    r"|(?P<bar>[|\]:]{0,8}\|[|\]:]{0,8}|::|:\])|(?P<broken>[<>]+)|(?P<tie>-)|(?P<overlay>&)"
)
MARK = re.compile(
    r'"[^"]{0,200}"|\[[A-Za-z]:[^\]]{0,200}\]|%.*'  # not in quoted words, fields and comments
    r"|(?P<bow>[uv](?=\W{0,4}[A-Ga-g])|!(?:up|down)bow!)|(?P<staccato>\.(?=\W{0,3}[A-Ga-g])|!staccato!)"
    r"|(?P<trill>T(?=\W{0,4}[A-Ga-g])|!trill!)|(?P<fermata>H(?=\W{0,4}[A-Ga-g])|!fermata!)|(?P<roll>~|!roll!)"
    r"|(?P<grace>\{)|(?P<tuplet>\([2-9])|(?P<slur>\()|(?P<repeat>:\||\|:|::)|(?P<section>\|\|)|![^!|\s]{0,50}!"
)
NOTE = re.compile(rf"(\^\^|__|[_^=])?([A-Ga-g])([,']*){_LENGTH}")
NOTE_OF_CHORD = re.compile(NOTE.pattern + r"(-?)")
WORDS = re.compile(r'"[^"]*"|![^!]*!')
RECENT = 16  # notes, at most, whose ends a tie or a broken rhythm moves
LONGEST_DELTA = 2**28 - 1  # ticks that MIDI can write
LARGEST_NUMBER = 2**24  # of a tempo, or of a note value
CACHED = 12  # characters of a note: longer ones would let a file fill the memory
ROOT = re.compile(r"([A-G])([#b]?)")
ALTERS = {"^": 1, "^^": 2, "_": -1, "__": -2, "=": 0}
TICKS = re.compile(r"\S+ +(\d{1,5})")
FIELD_LINE = re.compile(r"([A-Za-z+]):(?![|:])(.*)|%")
KEY_LINE = re.compile(r"(?m)^[ \t]*K:")
LINE_END = re.compile(r"\r\n?|\n")
CLEF = re.compile(r"(?:^|[\s=])(?:treble|alto|tenor|bass|soprano|mezzo|baritone)\d?(?:([+-])(8|15))?(?=\s|$)")
MOVE = re.compile(r"\b(octave|transpose)=(-?\d{1,2})\b")


class Note(NamedTuple):
    """One note. Times are in quarter notes, the pitch is MIDI's."""

    onset: float
    end: float
    pitch: int


@dataclass
class Music:
    """The notes of a piece.

    Attributes:
        parts: the notes of each voice or channel, in order of their onsets.
        bars: for each part, where its bars begin, if the text has bar lines.
        meters: (onset, beats, unit) of each time signature.
        key: (sharps of the signature, pitch class of the tonic) as stated, or None.
        roots: (onset, pitch class) of chord symbols.
        tempos: (onset, seconds of a quarter note) of each change of tempo in MIDI.
        marks: the kinds of marks that ABC is written with (see MARK).
    """

    parts: list[list[Note]]
    bars: list[list[float]] = field(default_factory=list)
    meters: list[tuple[float, int, int]] = field(default_factory=list)
    key: tuple[int, int] | None = None
    roots: list[tuple[float, int]] = field(default_factory=list)
    tempos: list[tuple[float, float]] = field(default_factory=list)
    marks: set[str] = field(default_factory=set)


def read_notes(text: str) -> Music:
    """Reads ABC, interleaved or as found, or MTF."""
    return read_mtf(text) if text.startswith(FIRST_WORD) else read_abc(text)


# ------------------------------------------------------------------------------------ ABC


def read_abc(text: str) -> Music:
    """Reads one tune of ABC. What cannot be read as notes is skipped. Repeats are not played out.

    Raises:
        InputError: there are several tunes.
    """
    reader = _AbcReader()
    in_header = KEY_LINE.search(text) is not None
    is_prose = False
    for line in LINE_END.split(only_tune(text)):
        if in_header:
            line = line.lstrip()
        if line.startswith("%%"):
            is_prose = line.startswith("%%begin") or is_prose and not line.startswith("%%end")
        if is_prose:
            continue
        found = FIELD_LINE.match(line)
        if not found:
            if not in_header:
                reader.read_line(line)
        elif found[1]:
            reader.read_field(found[1], found[2].partition("%")[0].strip())
            in_header = in_header and found[1] != "K"
    return reader.music()


def parse_key(text: str) -> tuple[int, int] | None:
    """Returns (sharps, pitch class of the tonic) of a key such as `Em`, `E minor` or `Edor`; None for others."""
    match = KEY.match(text)
    if not match:
        return (2, 9) if text.strip()[:2].lower() == "hp" else None
    letter, accidental, mode = match.groups()
    change = {"#": 1, "b": -1, "": 0}[accidental]
    sharps = FIFTHS[letter] + 7 * change + MODES.get(mode[:3].lower(), 0)
    return sharps, (SCALE[letter] + change) % 12


def parse_meter(text: str) -> tuple[int, int] | None:
    """Returns (beats, unit) of a meter such as `6/8`, `C|` or `(2+2+3)/8`; None for others."""
    match = METER.match(text)
    if not match:
        return METER_SIGNS.get(text.strip())
    beats, unit = sum(map(int, match[1].split("+"))), int(match[2])
    return (beats, unit) if beats and unit else None


def parse_moves(text: str) -> dict[str, int]:
    """Returns the semitones by which a clef, `octave=` and `transpose=` in a V: or K: field move the notes."""
    text = WORDS.sub("", text)
    moves = {name: int(number) * (OCTAVE if name == "octave" else 1) for name, number in MOVE.findall(text)}
    if clef := CLEF.search(text):
        sign, steps = clef.groups()
        moves["clef"] = {None: 0, "8": OCTAVE, "15": 2 * OCTAVE}[steps] * (-1 if sign == "-" else 1)
    return moves


def _times(times: str, slashes: str, divisor: str) -> float:
    """The factor that follows a note, such as `3/2` or `//`."""
    value = int(times or 1)
    if slashes:
        value /= (int(divisor) or 1) if divisor else 2 ** min(len(slashes), 8)
    return value


class _Symbol(NamedTuple):
    """A note of ABC without its length."""

    alter: int | None  # of its accidental, in semitones
    letter: str
    place: str  # letter and octave, as `c'`: how far an accidental reaches
    pitch: int  # MIDI's, without accidental and signature

    @classmethod
    def of(cls, accidental: str, letter: str, octave: str) -> "_Symbol":
        name = letter.upper()
        octaves = letter.islower() + octave.count("'") - octave.count(",")
        pitch = 60 + SCALE[name] + OCTAVE * octaves
        return cls(ALTERS[accidental] if accidental else None, name, letter + octave, pitch)


@lru_cache(maxsize=4096)  # tunes have few different notes
def _parse_note(text: str) -> tuple[_Symbol, float]:
    """Returns a note such as `^c'3/2`, and how many units it is long."""
    accidental, letter, octave, *length = NOTE.fullmatch(text).groups()
    return _Symbol.of(accidental, letter, octave), _times(*length)


class _Voice:
    def __init__(self):
        self.unit = 0.5  # L: in quarter notes
        self.meter = (4, 4)
        self.signature: dict[str, int] = {}
        self.moves: dict[str, int] = {}  # semitones
        self.move = 0  # their sum
        self.notes: list[Note] = []
        self.bars = [0.0]
        self.now = 0.0
        self.length = 0.0  # of the last note, chord or rest
        self.accidentals: dict[str, int] = {}
        self.tuplet = (0, 1.0)  # notes left, factor of their lengths
        self.factor = 1.0  # of the next note, after > or <
        self.last: list[_Symbol] = []  # note or chord
        self.tied: dict[str, int] = {}  # the pitches of those that a tie holds, by place
        self.held: dict[str, int] = {}  # and of those that a tie has held
        self.muted = False  # after &, until the bar ends


class _AbcReader:
    def __init__(self):
        self.header = _Voice()  # with what all voices have in common
        self.voices: dict[str, _Voice] = {}
        self.begun = False  # the notes, among which L:, M: and K: are those of one voice
        self.has_unit = False
        self.voice = self._voice("1")
        self.meters: list[tuple[float, int, int]] = []
        self.key: tuple[int, int] | None = None
        self.roots: list[tuple[float, int]] = []
        self.marks: set[str] = set()

    def _voice(self, name: str) -> _Voice:
        voice = self.voices.get(name)
        if voice is None:
            voice = self.voices[name] = _Voice()
            if self.begun:
                self._share(voice)
        return voice

    def _share(self, voice: _Voice) -> None:
        """Gives a voice what the header says."""
        voice.unit, voice.meter, voice.signature = self.header.unit, self.header.meter, self.header.signature
        voice.moves = {**self.header.moves, **voice.moves}
        voice.move = sum(voice.moves.values())

    def _begin(self) -> None:
        """Ends the header, whose unit, meter and key are those of all voices until they have their own."""
        if not self.has_unit:
            beats, unit = self.header.meter
            self.header.unit = 0.25 if beats / unit < 0.75 else 0.5
        for voice in self.voices.values():
            self._share(voice)
        self.begun = True

    def read_field(self, letter: str, value: str) -> None:
        scope = self.voice if self.begun else self.header
        if letter == "K":
            self._read_key(value, scope)
            self._move(parse_moves(value), scope)
        elif letter == "M":
            meter = parse_meter(value)
            if meter:
                scope.meter = meter
                self.meters.append((self.voice.now, *meter))
        elif letter == "L":
            match = METER.match(value)
            if match and (meter := parse_meter(value)):
                scope.unit = 4 * meter[0] / meter[1]
                self.has_unit = True
        elif letter == "V":
            name, _, properties = value.strip().partition(" ")
            if name:
                self.voice = self._voice(name)
                self._move(parse_moves(properties), self.voice)

    def _move(self, moves: dict[str, int], scope: _Voice) -> None:
        if moves:
            scope.moves = {**scope.moves, **moves}
            scope.move = sum(scope.moves.values())

    def _read_key(self, value: str, scope: _Voice) -> None:
        key = parse_key(value)
        if key and self.key is None:
            self.key = key
        signature = dict(scope.signature)
        if key:
            letters = ORDER_OF_SHARPS[: key[0]] if key[0] > 0 else ORDER_OF_SHARPS[key[0] :] if key[0] else ""
            signature = dict.fromkeys(letters, 1 if key[0] > 0 else -1)
        for sign, letter in re.findall(r"(?<!\w)(\^|_|=)([a-gA-G])\b", value):
            signature[letter.upper()] = ALTERS[sign]
        scope.signature = signature

    def read_line(self, line: str) -> None:
        if not line.strip():
            return
        self.marks.update(mark.lastgroup for mark in MARK.finditer(line) if mark.lastgroup)
        if not self.begun:
            self._begin()
        for token in TOKEN.finditer(line):
            voice, kind = self.voice, token.lastgroup
            if voice.muted and kind not in ("bar", "value"):
                continue
            if kind == "note":
                text = token[0]
                parse = _parse_note if len(text) <= CACHED else _parse_note.__wrapped__
                note, times = parse(text)
                self._add_notes([note], voice.unit * times)
            elif kind == "bar":
                self._end_bar(voice)
            elif token["rest"]:
                self._advance(self._length(token, "rest"))
            elif token["chord"]:
                self._read_chord(token)
            elif token["quoted"]:
                root = ROOT.match(token["quoted"])
                if root:
                    pitch = SCALE[root[1]] + {"#": 1, "b": -1, "": 0}[root[2]]
                    self.roots.append((voice.now, pitch % 12))
            elif token["field"]:
                self.read_field(token["field"], token["value"])
            elif token["tuplet"]:
                count = int(token["tuplet"])
                times = int(token["times"] or 0) or TUPLET_TIMES[count]
                voice.tuplet = (int(token["count"] or 0) or count, times / count)
            elif token["broken"]:
                self._break(token["broken"])
            elif kind == "tie":
                self._tie(voice.last)
            elif kind == "overlay":
                voice.muted = True
            elif token["bars"]:
                beats, unit = voice.meter
                self._advance(4 * beats / unit * int(token["bars"][1:] or 1))

    def _read_chord(self, token: re.Match) -> None:
        notes = NOTE_OF_CHORD.findall(WORDS.sub("", token["chord"]))
        if not notes:
            return
        symbols = [_Symbol.of(*note[:3]) for note in notes]
        self._add_notes(symbols, self._length(token, "chord") * _times(*notes[0][3:6]))
        tied = [symbol for symbol, note in zip(symbols, notes, strict=True) if note[6]]
        if tied:
            self._tie(tied)

    def _tie(self, symbols: list[_Symbol]) -> None:
        """Ties notes of the last chord to the next one."""
        voice = self.voice
        voice.tied = {s.place: voice.held.get(s.place, self._pitch(s)) for s in symbols}

    def _pitch(self, symbol: _Symbol) -> int:
        """The pitch of a note whose accidental has been read."""
        voice = self.voice
        alter = voice.accidentals.get(symbol.place)
        return symbol.pitch + voice.move + (voice.signature.get(symbol.letter, 0) if alter is None else alter)

    def _length(self, token: re.Match, name: str) -> float:
        return self.voice.unit * _times(token[f"{name}_times"], token[f"{name}_slashes"], token[f"{name}_divisor"])

    def _advance(self, length: float) -> float:
        """Moves on by a length in its tuplet and broken rhythm. Returns the length that it takes."""
        voice = self.voice
        left, factor = voice.tuplet
        if left:
            length *= factor
            voice.tuplet = (left - 1, factor)
        length *= voice.factor
        voice.factor = 1.0
        voice.length = length
        voice.now += length
        return length

    def _add_notes(self, notes: list["_Symbol"], length: float) -> None:
        voice = self.voice
        if voice.tuplet[0] or voice.factor != 1.0:
            length = self._advance(length)
        else:
            voice.length = length
            voice.now += length
        onset = voice.now - length
        voice.last = notes
        tied = voice.tied
        if tied or voice.held:
            voice.tied = {}
            voice.held = {}
        for symbol in notes:
            if symbol.alter is not None:
                voice.accidentals[symbol.place] = symbol.alter
            if not (tied and self._hold(tied, symbol, onset)):
                voice.notes.append(Note(onset, voice.now, self._pitch(symbol)))

    def _hold(self, tied: dict[str, int], symbol: _Symbol, onset: float) -> bool:
        """Makes a tied note longer, if the symbol goes on with one. An accidental goes on over a bar line."""
        voice = self.voice
        pitch = tied.get(symbol.place)
        if pitch is None or symbol.alter is not None and symbol.pitch + voice.move + symbol.alter != pitch:
            return False
        for place in range(max(len(voice.notes) - RECENT, 0), len(voice.notes)):
            note = voice.notes[place]
            if note.pitch == pitch and abs(note.end - onset) < 1e-6:
                voice.notes[place] = note._replace(end=voice.now)
                voice.held[symbol.place] = pitch
                return True
        return False

    def _break(self, marks: str) -> None:
        """A > B is a dotted A before a short B, A < B the reverse."""
        voice = self.voice
        short = 0.5 ** min(len(marks), 3)
        factor = 2 - short if marks[0] == ">" else short
        change = voice.length * (factor - 1)
        for place in range(max(len(voice.notes) - RECENT, 0), len(voice.notes)):
            note = voice.notes[place]
            if note.end == voice.now:
                voice.notes[place] = note._replace(end=note.end + change)
        voice.length += change
        voice.now += change
        voice.factor = 2 - factor

    def _end_bar(self, voice: _Voice) -> None:
        voice.accidentals.clear()
        voice.muted = False
        if voice.now > voice.bars[-1]:
            voice.bars.append(voice.now)

    def music(self) -> Music:
        voices = [voice for voice in self.voices.values() if voice.notes]
        parts, bars = [voice.notes for voice in voices], [voice.bars for voice in voices]
        if all(len(starts) == 1 for starts in bars):
            bars = []
        return Music(parts, bars, self.meters, self.key, self.roots, marks=self.marks)


# ------------------------------------------------------------------------------------ MTF


def read_mtf(text: str) -> Music:
    """Reads MTF. Lines that are not messages are left out. So are drums, unless there is nothing else."""
    first, *lines = text.split("\n")
    reader = _MtfReader()
    for line in lines:
        words = line.split()
        try:
            reader.read_message(words[0], words)
        except (ValueError, IndexError):
            continue
    ticks = TICKS.match(first)
    return reader.music(max(int(ticks[1]), 1) if ticks else 480)


class _MtfReader:
    def __init__(self):
        self.now = 0  # ticks
        self.sounding: dict[tuple[int, int], int] = {}  # when a note began, by channel and pitch
        self.restruck: dict[tuple[int, int], int] = {}  # when a note began that ended one of its pitch
        self.parts: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
        self.meters: list[tuple[int, int, int]] = []
        self.tempos: list[tuple[int, int]] = []
        self.key: tuple[int, int] | None = None

    def read_message(self, type_: str, words: list[str]) -> None:
        """Reads a message. ValueError for one with numbers that MIDI cannot write."""
        if type_ in ("note_on", "note_off"):
            self._pass(words[1])
            key = int(words[2]), int(words[3])
            if not 0 <= key[1] <= HIGHEST:
                key = key[0], min(max(key[1], 0), HIGHEST)
            if type_ == "note_on" and words[4] != "0":
                if key in self.sounding:
                    self._end(key)
                    self.restruck[key] = self.now
                self.sounding[key] = self.now
            elif key in self.sounding and self.restruck.pop(key, None) != self.now:
                self._end(key)  # otherwise it ends the note before, which has ended
        elif type_ in CHANNEL_TYPES:
            self._pass(words[1])
        else:
            self._pass(words[-1])
            if type_ == "time_signature":
                beats, unit = _number(words[1]), _number(words[2])
                if beats and unit:
                    self.meters.append((self.now, beats, unit))
            elif type_ == "set_tempo":
                self.tempos.append((self.now, _number(words[1])))
            elif type_ == "key_signature":
                self.key = self.key or parse_key(words[1])

    def _pass(self, delta: str) -> None:
        self.now += min(abs(int(delta)), LONGEST_DELTA)

    def _end(self, key: tuple[int, int]) -> None:
        start = self.sounding.pop(key)
        if self.now > start:
            self.parts[key[0]].append((start, self.now, key[1]))

    def music(self, ticks: int) -> Music:
        for key in list(self.sounding):
            self._end(key)
        drums = self.parts.pop(DRUMS, [])
        parts = [notes for _, notes in sorted(self.parts.items())] or ([drums] if drums else [])
        return Music(
            [sorted(Note(start / ticks, end / ticks, note) for start, end, note in notes) for notes in parts],
            meters=[(time / ticks, beats, unit) for time, beats, unit in self.meters],
            key=self.key,
            tempos=[(time / ticks, tempo / 1e6) for time, tempo in self.tempos],
        )


def _number(word: str) -> int:
    number = int(word)
    if not 0 <= number <= LARGEST_NUMBER:
        raise ValueError(f"expected a number up to {LARGEST_NUMBER}, got {word[:20]}")
    return number


CHANNEL_TYPES = frozenset("polytouch control_change program_change aftertouch pitchwheel sysex".split())

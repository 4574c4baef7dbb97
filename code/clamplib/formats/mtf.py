"""MIDI <-> MTF, the MIDI text format that M3 and CLaMP 3 read.

An MTF text begins with the line `ticks_per_beat N`. One line per message follows, of all tracks merged by time: the
type of the message, then its values in mido's order. Times are deltas in ticks. A channel message has its time first
(`note_on 10 3 60 64` is time, channel, note, velocity), a meta message has it last (`set_tempo 500000 0`). Lines are
unicode-escaped, so that a text with a line break stays on one line.

Two quirks are kept, because the published weights were trained on data that has them: the delta of a message that
`m3_compatible` leaves out is not added to the next one, and `unknown_meta` lines do not return to MIDI.
"""

import io
import re
from operator import itemgetter
from pathlib import Path

import mido
from mido.messages.specs import SPEC_BY_TYPE

from clamplib.files import InputError, show
from clamplib.formats.limits import read_bytes

FIRST_WORD = "ticks_per_beat"  # every MTF text begins with it
M3_LEFT_OUT = frozenset("text copyright track_name instrument_name lyrics marker cue_marker device_name".split())
NUMERIC_METAS = "sequence_number channel_prefix midi_port end_of_track set_tempo smpte_offset time_signature".split()
MAX_DELTA = 2**28 - 1  # ticks: what four bytes of a MIDI file hold
TICKS = re.compile(r"\s*-?\d{1,5}\s*")
BYTES = re.compile(r"[\[(]([\d, ]*)[\])]")  # the data of sysex and sequencer_specific
MAX_HIGH_BYTES = 100_000  # in a row; mido would read them as one number, in the square of their count
HIGH_BYTES = re.compile(rb"[\x80-\xff]{%d}" % MAX_HIGH_BYTES)
CHANNEL_FIELDS = {type_: ("time", *spec["value_names"]) for type_, spec in SPEC_BY_TYPE.items()}


def _meta_fields(type_: str) -> tuple[str, ...]:
    return tuple(name for name in vars(mido.MetaMessage(type_)) if name != "type")


def _template(fields: tuple[str, ...]) -> str:
    """The %-template of a channel message's values, without its time."""
    return "".join(f" %({name})s" for name in fields[1:])


META_TYPES = [*M3_LEFT_OUT, *NUMERIC_METAS, "key_signature", "sequencer_specific"]
META_FIELDS = {type_: _meta_fields(type_) for type_ in META_TYPES}
META_FIELDS["unknown_meta"] = ("type_byte", "data", "time")
CHANNEL_TEMPLATES = {type_: _template(fields) for type_, fields in CHANNEL_FIELDS.items()}


def midi_to_mtf(midi: str | Path | mido.MidiFile, m3_compatible: bool = True) -> str:
    """Converts a MIDI file to MTF.

    Args:
        midi: the path of a file, or a file that is parsed already.
        m3_compatible: leaves out the messages that hold words (M3_LEFT_OUT), as in the training data of M3.

    Raises:
        InputError: the file is not MIDI, is cut short, is of type 2, or counts time in SMPTE frames.
    """
    if isinstance(midi, mido.MidiFile):
        name = "this MIDI"
    else:
        name = show(midi)
        midi = parse_midi(read_bytes(midi), name)
    if midi.type == 2:
        raise InputError(f"{name}: expected a MIDI file of type 0 or 1, got type 2 (tracks without a common time)")
    if midi.ticks_per_beat <= 0:
        raise InputError(f"{name}: expected a division in ticks per beat, got one in SMPTE frames or zero")
    left_out = M3_LEFT_OUT if m3_compatible else frozenset()
    lines = [f"{FIRST_WORD} {midi.ticks_per_beat}"]
    for delta, message in _merged(midi.tracks):
        if message.type not in left_out:
            lines.append(_format_message(delta, message))
    return "\n".join(lines)


def mtf_to_midi(text: str) -> mido.MidiFile:
    """Converts MTF to a MIDI file of type 1 with one track.

    Raises:
        InputError: the text is not MTF, or holds what a MIDI file cannot. The message names the line.
    """
    lines = text.split("\n")
    word, _, ticks = lines[0].partition(" ")
    if word != FIRST_WORD or not TICKS.fullmatch(ticks) or abs(int(ticks)) >= 2**15:
        raise InputError(f"expected `{FIRST_WORD} N`, N below 32768, in the first line, got {lines[0][:60]!r}")
    track = mido.MidiTrack()
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip() or line.split(" ", 1)[0] == "unknown_meta":
            continue
        try:
            message = _parse_message(line)
            if message.is_meta:
                bytearray(message.bytes())  # mido checks the other messages when they are made
            if message.is_realtime or message.type == "reset":
                raise ValueError("realtime messages are not allowed in MIDI files")
            track.append(message)
        except (ValueError, TypeError, LookupError) as error:  # mido checks the values
            got = f"{line[:60]!r} ({_reason(line, error)})"
            raise InputError(f"line {number}: expected an MTF message, got {got}") from error
    return mido.MidiFile(type=1, ticks_per_beat=int(ticks), tracks=[track])


def parse_midi(data: bytes, name: str) -> mido.MidiFile:
    """Parses the bytes of a MIDI file.

    Args:
        data: the content of the file.
        name: what an error calls it.

    Raises:
        InputError: mido cannot read the bytes.
    """
    if data[:4] != b"MThd":
        got = f"{data[:12]!r}" if data else "an empty file"
        raise InputError(f"{name}: expected a MIDI file (it begins with MThd), got {got}")
    if len(data) > MAX_HIGH_BYTES and HIGH_BYTES.search(data):
        raise InputError(f"{name}: expected times and lengths of at most 4 bytes, got one of {MAX_HIGH_BYTES} or more")
    file = io.BytesIO(data)
    try:
        return mido.MidiFile(file=file)
    except EOFError as error:
        raise InputError(f"{name}: expected whole tracks, got a MIDI file that is cut short") from error
    except Exception as error:  # mido raises whatever a broken byte leads to
        got = f"a message that mido cannot read ({type(error).__name__}: {error}) before byte {file.tell()}"
        raise InputError(f"{name}: expected valid MIDI, got {got}") from error


def _merged(tracks: list[mido.MidiTrack]) -> list[tuple[int, mido.Message]]:
    """Pairs of delta and message, of all tracks in order of time, with one end_of_track."""
    timed = []
    end = 0
    for track in tracks:
        now = 0
        for message in track:
            now += message.time
            if message.type != "end_of_track":
                timed.append((now, message))
        end = max(end, now)
    timed.sort(key=itemgetter(0))
    timed.append((end, mido.MetaMessage("end_of_track")))
    merged = []
    before = 0
    for now, message in timed:
        merged.append((now - before, message))
        before = now
    return merged


def _format_message(delta: int, message: mido.Message) -> str:
    values = vars(message)
    type_ = values["type"]
    if type_ in META_FIELDS:
        words = [str(values[name]) for name in META_FIELDS[type_][:-1]]
        return " ".join([type_, *words, str(delta)]).encode("unicode_escape").decode("ascii")
    if type_ == "sysex":
        return f"sysex {delta} {list(values['data'])}"
    return f"{type_} {delta}" + CHANNEL_TEMPLATES[type_] % values


def _parse_message(line: str) -> mido.Message | mido.MetaMessage:
    if "\\" in line or not line.isascii():
        line = line.encode("latin-1", "backslashreplace").decode("unicode_escape")
    type_, _, rest = line.partition(" ")
    if type_ in META_FIELDS:
        values = dict(zip(META_FIELDS[type_], _meta_values(type_, rest), strict=True))
        message = mido.MetaMessage(type_, **values)
    elif type_ == "sysex":
        time, _, data = rest.partition(" ")
        message = mido.Message(type_, time=int(time), data=_byte_values(data))
    else:
        values = zip(CHANNEL_FIELDS[type_], map(int, rest.split()), strict=True)
        message = mido.Message(type_, **dict(values))
    if not (isinstance(message.time, int) and 0 <= message.time <= MAX_DELTA):
        raise ValueError(f"the time must be an integer in range 0..{MAX_DELTA}")
    return message


def _reason(line: str, error: Exception) -> str:
    """Why a line is not a message."""
    type_ = line.split(" ", 1)[0]
    fields = META_FIELDS.get(type_) or CHANNEL_FIELDS.get(type_)
    if not fields:
        return "no message has this type"
    problem = "there are more or fewer" if str(error).startswith("zip()") else str(error)[:200]
    return f"its values are {' '.join(fields)}; {problem}"


def _meta_values(type_: str, rest: str) -> list:
    """The values after the type. A text keeps its spaces; the time comes last."""
    if type_ in NUMERIC_METAS:
        return [float(word) if "." in word else int(word) for word in rest.split()]
    value, _, time = rest.rpartition(" ")
    if type_ == "sequencer_specific":
        return [_byte_values(value), int(time)]
    value.encode("latin-1")  # raises for a letter that a MIDI file cannot hold
    return [value, int(time)]


def _byte_values(text: str) -> tuple[int, ...]:
    """Reads a list or tuple of numbers, as str() writes it."""
    match = BYTES.fullmatch(text)
    if not match:
        raise ValueError("the data must be numbers in brackets")
    return tuple(int(word) for word in match[1].split(",") if word.strip())

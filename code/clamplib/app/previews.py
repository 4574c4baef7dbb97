"""Previews of sources: engraved notation, a piano roll, and the first minute of sound.

Verovio engraves scores; midirenderer plays scores and MIDI with the sound font of pretty_midi. Both hold Python's
global lock while they work, and an unusual score may crash the engraver or take it hours. So `Previews` runs them in
other processes, within limits of time and memory. `Titles` are read in the same way.
"""

import asyncio
import base64
import io
import itertools
import os
import re
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import mido
import numpy as np

from clamplib.app.slots import AT_ONCE, ENDING, Slots
from clamplib.audio import Waveform
from clamplib.embedding.reading import modality_of
from clamplib.files import InputError, atomic_path, file_state, show
from clamplib.formats.mtf import mtf_to_midi, parse_midi
from clamplib.formats.notation import abc_to_xml
from clamplib.formats.score_files import read_text, read_title, score_text
from clamplib.jobs import LIMITS, Limits, Outcome, run_jobs

try:
    import midirenderer
    import soundfile
    import verovio
except ImportError as error:
    raise ImportError(
        'the search page needs extra packages; in a clone, run: pip install -c constraints.txt -e ".[web]"'
    ) from error

MEASURES = 64  # of a score that are engraved and played
SOUND_SECONDS = 60
ROLL_SECONDS = 20
TAIL_SECONDS = 1.0  # in which the last notes fade
TITLE_SECONDS = 2.0  # in which a title must be read
TITLE_PATIENCE = 5.0  # seconds that an answer waits for titles
RETRY = 600  # seconds until a failed preview is tried again
MOST_BYTES = 512 * 2**20  # of previews on the disk; a minute of sound takes 5 MB

WIDE, NARROW = 1600, 900  # verovio's units, which SCALE turns into pixels
SYSTEM_HEIGHT = 520  # verovio's units; as many systems are drawn as fit, at least one
SCALE = 40  # percent
ROLL_WIDTH, ROLL_HEIGHT = 640, 112  # pixels
DRUMS = 9  # the MIDI channel of percussion, which has no pitches
CHANNEL_COLORS = ("#3f6f8f", "#a2603a", "#5f7d4a", "#7d5a86", "#8a7430", "#4d7f7b")
DRUM_COLOR, LINE_COLOR = "#b9b4ab", "#e4e0d7"

SOUND_RATE = 44_100  # Hz, of decoded recordings
TREBLE = "<attributes><clef><sign>G</sign><line>2</line></clef></attributes>"
BPM = 120  # of the MIDI that is played; tempo changes are already part of the times


def engrave(source: os.PathLike, target: Path, width: int = WIDE) -> None:
    """Writes the first systems of a score as SVG.

    Args:
        source: a score.
        target: the file to write.
        width: of a system, in verovio's units.

    Raises:
        InputError: the source is not a score that verovio can read.
    """
    target.write_text(_loaded(source, width).renderToSVG(1), encoding="utf-8")


def draw_roll(source: os.PathLike, target: Path) -> None:
    """Writes the first ROLL_SECONDS of a MIDI file as a piano roll in SVG, one color per channel, a line at each C.

    Raises:
        InputError: the source is not a MIDI file, or it has no notes.
    """
    notes = _notes(_beginning(_midi(source), ROLL_SECONDS))
    length = max(note.end for note in notes)
    pitches = [note.pitch for note in notes if note.channel != DRUMS] or [60]
    lowest = min(pitches) - 2
    highest = max(pitches) + 2
    row = min(ROLL_HEIGHT / (highest - lowest + 1), 8)  # pixels per semitone

    def top(pitch: int) -> float:
        return ROLL_HEIGHT / 2 + ((lowest + highest) / 2 - pitch - 0.5) * row

    bars = defaultdict(list)
    for note in notes:
        x = note.start / length * ROLL_WIDTH
        y = ROLL_HEIGHT - row if note.channel == DRUMS else top(note.pitch)
        w = max((note.end - note.start) / length * ROLL_WIDTH - 0.8, 1)
        bars[note.channel].append(f"M{x:.1f} {y:.1f}h{w:.1f}v{row * 0.85:.1f}h-{w:.1f}z")
    colors = {DRUMS: DRUM_COLOR}
    for number, channel in enumerate(sorted(bars.keys() - {DRUMS})):
        colors[channel] = CHANNEL_COLORS[number % len(CHANNEL_COLORS)]
    lines = "".join(f"M0 {top(c) + row:.1f}h{ROLL_WIDTH}" for c in range(0, 128, 12) if lowest <= c <= highest)
    paths = [f'<path stroke="{LINE_COLOR}" d="{lines}"/>']
    for channel in sorted(bars):
        paths.append(f'<path fill="{colors[channel]}" d="{"".join(bars[channel])}"/>')
    view = f'viewBox="0 0 {ROLL_WIDTH} {ROLL_HEIGHT}" preserveAspectRatio="none"'
    target.write_text(f'<svg xmlns="http://www.w3.org/2000/svg" {view}>{"".join(paths)}</svg>')


def play(source: os.PathLike, target: Path) -> None:
    """Writes the first minute of a score, a MIDI file or a recording as a mono WAV file.

    Raises:
        InputError: the source cannot be read, or it has no notes.
    """
    if modality_of(source) == "audio":
        sound = _recorded(source)
    else:
        sound = _synthesized(_beginning(_midi(source), SOUND_SECONDS))
    soundfile.write(target, sound.samples, sound.rate, "PCM_16")


class Previews:
    """Makes previews as files of a folder, some at once, and again if their source has changed.

    Of the files the most recently used MOST_BYTES are kept. Reasons of failure are kept for RETRY seconds, since some
    previews take all the time of the limits to fail.
    """

    def __init__(self, folder: str | Path, limits: Limits | None = LIMITS):
        self.folder = Path(folder)
        self.limits = limits
        self._sizes: dict[Path, int] = {}  # of the files, the least recently used first
        self._problems: dict[Path, tuple[str, float]] = {}  # the reason of a failure, and its time
        self._making: dict[Path, asyncio.Task] = {}
        self._slots = Slots(AT_ONCE)

    async def get(self, make: Callable[[os.PathLike, Path], None], source: os.PathLike, name: str) -> Path:
        """Returns the file of a preview, and makes it first if it does not exist.

        Args:
            make: a function that writes the preview of a source to a path.
            source: the source.
            name: the name of the file, to which the source's modification time is prepended.

        Raises:
            InputError: the preview cannot be made; the message says why.
        """
        target = self.folder / f"{os.stat(source).st_mtime_ns}-{name}"
        if not target.is_file() and not self._failed_lately(target):
            if target not in self._making:
                self._making[target] = asyncio.create_task(self._make(make, source, target))
            await asyncio.shield(self._making[target])  # others may wait for it too
        if target in self._problems:
            raise InputError(self._problems[target][0])
        self._use(target)
        return target

    async def _make(self, make: Callable[[os.PathLike, Path], None], source: os.PathLike, target: Path) -> None:
        try:
            await self._slots.run(partial(_write, make, source, target, self.limits))
        except InputError as error:
            self._problems[target] = str(error), time.monotonic()
        finally:
            del self._making[target]

    def _failed_lately(self, target: Path) -> bool:
        """Says whether a preview failed recently. An old failure is forgotten: the machine may have been busy."""
        if target in self._problems and time.monotonic() - self._problems[target][1] > RETRY:
            del self._problems[target]
        return target in self._problems

    def _use(self, target: Path) -> None:
        """Marks a file as the most recently used, and removes the least recently used ones beyond MOST_BYTES."""
        self._sizes.pop(target, None)
        self._sizes[target] = target.stat().st_size
        while sum(self._sizes.values()) > MOST_BYTES and len(self._sizes) > 1:
            first = next(iter(self._sizes))
            del self._sizes[first]
            first.unlink(missing_ok=True)

    def end(self) -> None:
        """Ends the processes that make previews."""
        self._slots.end()


class Titles:
    """Titles of scores, each of which is read once, and again if its file has changed."""

    def __init__(self):
        self._known: dict[os.PathLike, tuple[str | None, str | None]] = {}  # the state of a file, and its title
        self._reading: set[asyncio.Task] = set()
        self._slots = Slots(1)

    def knows(self, source: os.PathLike) -> bool:
        """Whether the title has been read since the file was changed."""
        return source in self._known and self._known[source][0] == file_state(source)

    def get(self, source: os.PathLike) -> str | None:
        """Returns the title that a source stated when `read` read it."""
        return self._known[source][1] if source in self._known else None

    async def read(self, sources: Sequence[os.PathLike]) -> None:
        """Reads titles, or as many as TITLE_PATIENCE allows."""
        reading = asyncio.create_task(self._slots.run(partial(self._read, sources)))
        self._reading.add(reading)  # it goes on when nobody waits any more
        reading.add_done_callback(self._reading.discard)
        await asyncio.wait([reading], timeout=TITLE_PATIENCE)

    def _read(self, sources: Sequence[os.PathLike]) -> None:
        sources = [source for source in sources if not self.knows(source)]  # others may have read them meanwhile
        states = list(map(file_state, sources))
        for number, title, _ in run_jobs(read_title, sources, workers=1, limits=Limits(TITLE_SECONDS)):
            self._known[sources[number]] = states[number], title

    def end(self) -> None:
        """Ends the process that reads titles."""
        self._slots.end()


def run_one(function: Callable[[Any], Any], job: Any, limits: Limits | None) -> Any:
    """Calls function(job) in another process.

    Raises:
        InputError: it failed, went beyond the limits, or its process was ended (see `Slots`).
    """
    outcomes = list(run_jobs(function, [job], workers=1, limits=limits))
    return value_of(outcomes)


def value_of(outcomes: Sequence[Outcome]) -> Any:
    """Returns the value of the one outcome, or raises InputError if there is none."""
    if not outcomes:
        raise InputError(ENDING)
    [(_, value, error)] = outcomes
    if error:
        raise InputError(error)
    return value


def _write(make: Callable[[os.PathLike, Path], None], source: os.PathLike, target: Path, limits: Limits | None) -> None:
    with atomic_path(target) as temporary:
        run_one(partial(_call, make), (source, temporary), limits)


def _call(make: Callable[[os.PathLike, Path], None], job: tuple[os.PathLike, Path]) -> None:
    make(*job)


def _loaded(source: os.PathLike, width: int) -> verovio.toolkit:
    """Returns verovio with the beginning of a score loaded."""
    score = score_text(source)
    suffix = Path(source).suffix.lower()
    if suffix not in (".krn", ".mei"):  # verovio reads these itself
        score = _first_measures(abc_to_xml(score) if suffix == ".abc" else score)
    verovio.enableLog(verovio.LOG_OFF)
    toolkit = verovio.toolkit()
    toolkit.setOptions(
        {
            "pageWidth": width,
            "pageHeight": SYSTEM_HEIGHT,
            "adjustPageHeight": True,
            "pageMarginLeft": 25,
            "pageMarginRight": 5,
            "pageMarginTop": 10,
            "pageMarginBottom": 10,
            "header": "none",
            "footer": "none",
            "scale": SCALE,
            "svgViewBox": True,
        }
    )
    if not toolkit.loadData(score):
        raise InputError(f"{show(source)}: expected a score that verovio can read")
    return toolkit


def _first_measures(xml: str) -> str:
    """Cuts MusicXML after MEASURES measures: engraving a whole symphony to show one line takes a minute."""
    score = ElementTree.fromstring(re.sub(r"^\s*<\?xml[^>]*\?>", "", xml))
    for part in score.iter("part"):
        first, *others = part.findall("measure")
        for measure in others[MEASURES - 1 :]:
            part.remove(measure)
        if first.find(".//clef") is None:  # abc2xml omits treble clefs, and verovio then draws none
            first.insert(0, ElementTree.fromstring(TREBLE))
    return ElementTree.tostring(score, encoding="unicode")


def _midi(source: os.PathLike) -> mido.MidiFile:
    path = Path(source)
    if modality_of(path) == "score":
        return parse_midi(base64.b64decode(_loaded(source, WIDE).renderToMIDI()), show(path))
    if path.suffix.lower() == ".mtf":
        return mtf_to_midi(read_text(path))
    return parse_midi(path.read_bytes(), show(path))


def _beginning(midi: mido.MidiFile, seconds: float) -> list[tuple[float, mido.Message]]:
    """Returns the playable messages of the given seconds from the first note on, each with its time in seconds.

    Raises InputError if there are no notes.
    """
    messages = list(midi)  # with their delays in seconds
    timed = list(zip(itertools.accumulate(message.time for message in messages), messages, strict=True))
    first = next((now for now, message in timed if message.type == "note_on" and message.velocity), None)
    if first is None:
        raise InputError("expected notes, found none")
    kept = [(max(now - first, 0.0), message) for now, message in timed if now - first <= seconds]
    return [(now, message) for now, message in kept if hasattr(message, "channel") and not message.is_meta]


class _Note(NamedTuple):
    start: float  # seconds
    end: float  # seconds
    pitch: int
    channel: int


def _notes(timed: list[tuple[float, mido.Message]]) -> list[_Note]:
    """Pairs note-on and note-off messages. Notes that are still sounding end with the last message."""
    starts = defaultdict(list)  # of the notes that are sounding, by pitch and channel
    notes = []
    for now, message in timed:
        if message.type not in ("note_on", "note_off"):
            continue
        sounding = starts[message.note, message.channel]
        if message.type == "note_on" and message.velocity:
            sounding.append(now)
        elif sounding:
            notes.append(_Note(sounding.pop(0), now, message.note, message.channel))
    end = max(timed[-1][0], 0.1)
    for (pitch, channel), sounding in starts.items():
        notes += [_Note(start, end, pitch, channel) for start in sounding]
    return notes


def _synthesized(timed: list[tuple[float, mido.Message]]) -> Waveform:
    midi = mido.MidiFile(type=0)
    ticks = midi.ticks_per_beat * BPM / 60  # per second
    times = [round(now * ticks) for now, _ in timed]
    delays = np.diff(times, prepend=0).tolist()
    track = [message.copy(time=delay) for delay, (_, message) in zip(delays, timed, strict=True)]
    midi.tracks.append(mido.MidiTrack([*track, mido.MetaMessage("end_of_track", time=round(TAIL_SECONDS * ticks))]))
    score = io.BytesIO()
    midi.save(file=score)
    wave = midirenderer.render_wave_from(_font().read_bytes(), score.getvalue())
    samples, rate = soundfile.read(io.BytesIO(wave), dtype="float32")
    return Waveform(samples.mean(1), rate)


def _font() -> Path:
    """Returns the General MIDI sound font in the package pretty_midi, which is located but not imported."""
    spec = find_spec("pretty_midi")
    if spec is None or spec.origin is None:
        raise InputError("the sound font TimGM6mb.sf2 is part of pretty_midi: pip install pretty_midi")
    return Path(spec.origin).with_name("TimGM6mb.sf2")


def _recorded(source: os.PathLike) -> Waveform:
    from clamplib.audio.decoding import samples  # needs the extra clamplib[audio]

    blocks = []
    count = 0
    for block in samples(source, SOUND_RATE):
        blocks.append(block)
        count += len(block)
        if count >= SOUND_SECONDS * SOUND_RATE:
            break
    return Waveform(np.concatenate(blocks)[: SOUND_SECONDS * SOUND_RATE], SOUND_RATE)

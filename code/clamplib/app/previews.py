"""What a source looks and sounds like: engraved notation, a piano roll, its first minute as sound.

Scores are engraved by verovio, and what is notes is played by midirenderer with the sound font of pretty_midi. All of
that holds Python's lock, and a score that nobody foresaw may crash an engraver, so `Previews` leaves it to a process
of its own.
"""

import asyncio
import base64
import io
import itertools
import os
import re
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

import mido
import numpy as np
from joblib.externals.loky import ProcessPoolExecutor
from joblib.externals.loky.process_executor import BrokenProcessPool

from clamplib.audio import Waveform
from clamplib.embedding.reading import modality_of
from clamplib.files import InputError, atomic_path, describe, show
from clamplib.formats.mtf import mtf_to_midi, parse_midi
from clamplib.formats.notation import abc_to_xml
from clamplib.formats.score_files import read_text, score_text

try:
    import midirenderer
    import soundfile
    import verovio
except ImportError as error:
    raise ImportError('the search page needs packages of its own: pip install "clamplib[web]"') from error

MEASURES = 64  # of a score, that are engraved and played
SECONDS = 60  # of sound
ROLL_SECONDS = 20
TAIL_SECONDS = 1.0  # for the last notes to fade
PATIENCE = 60  # seconds for one preview
RETRY = 600  # seconds until what failed is tried again
MOST_BYTES = 512 * 2**20  # of previews on the disk, of which a minute of sound takes five million

WIDE, NARROW = 1600, 900  # units of verovio; SCALE % of them are pixels
SYSTEM_HEIGHT = 520  # units; as many systems as fit, one at least
SCALE = 40
ROLL = (640, 112)  # pixels
DRUMS = 9  # the channel without pitches
COLORS = ("#3f6f8f", "#a2603a", "#5f7d4a", "#7d5a86", "#8a7430", "#4d7f7b")
DRUM_COLOR, LINE_COLOR = "#b9b4ab", "#e4e0d7"

SOUND_RATE = 44_100  # of a recording that is decoded here
TREBLE = "<attributes><clef><sign>G</sign><line>2</line></clef></attributes>"
BPM = 120  # of the MIDI that is played; its tempo changes are in its times


def engrave(source: os.PathLike, target: Path, width: int = WIDE) -> None:
    """Writes the first systems of a score as SVG. Raises InputError."""
    target.write_text(_loaded(source, width).renderToSVG(1), encoding="utf-8")


def draw_roll(source: os.PathLike, target: Path) -> None:
    """Writes the beginning of a MIDI file as a piano roll, in SVG, a color each channel, with a line at each C.

    Raises InputError.
    """
    notes = _notes(_beginning(_midi(source), ROLL_SECONDS))
    width, height = ROLL
    length = max(end for _, end, _, _ in notes)
    pitches = [pitch for _, _, pitch, channel in notes if channel != DRUMS] or [60]
    lowest, highest = min(pitches) - 2, max(pitches) + 2
    row = min(height / (highest - lowest + 1), 8)

    def top(pitch: int) -> float:
        return height / 2 + ((lowest + highest) / 2 - pitch - 0.5) * row

    bars = defaultdict(list)
    for start, end, pitch, channel in notes:
        y = height - row if channel == DRUMS else top(pitch)
        x, w = start / length * width, max((end - start) / length * width - 0.8, 1)
        bars[channel].append(f"M{x:.1f} {y:.1f}h{w:.1f}v{row * 0.85:.1f}h-{w:.1f}z")
    pitched = sorted(bars.keys() - {DRUMS})
    colors = {DRUMS: DRUM_COLOR} | {c: COLORS[i % len(COLORS)] for i, c in enumerate(pitched)}
    lines = "".join(f"M0 {top(c) + row:.1f}h{width}" for c in range(0, 128, 12) if lowest <= c <= highest)
    paths = f'<path stroke="{LINE_COLOR}" d="{lines}"/>'
    paths += "".join(f'<path fill="{colors[channel]}" d="{"".join(bars[channel])}"/>' for channel in sorted(bars))
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" preserveAspectRatio="none">'
    target.write_text(f"{svg}{paths}</svg>")


def play(source: os.PathLike, target: Path) -> None:
    """Writes the first minute of a score, a MIDI file or a recording as a mono WAV file. Raises InputError."""
    sound = _recorded(source) if modality_of(source) == "audio" else _synthesized(_beginning(_midi(source), SECONDS))
    soundfile.write(target, sound.samples, sound.rate, "PCM_16")


class Previews:
    """Previews in files of a folder, made in another process, one after the other, and again if their source changes.

    It starts with the first preview, and anew where one has killed it. Those that were used last are kept, MOST_BYTES
    of them, and for a while why there are no others: some take PATIENCE to fail.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._sizes: dict[Path, int] = {}  # of those that are there; what was not used for longest comes first
        self._problems: dict[Path, tuple[str, float]] = {}  # and when they were met
        self._process: ProcessPoolExecutor | None = None
        self._turn = asyncio.Lock()

    async def get(self, make: Callable[[os.PathLike, Path], None], source: os.PathLike, name: str) -> Path:
        """The file of that name, with the time of its source in front, written by `make`.

        InputError says why there is none.
        """
        target = self.folder / f"{os.stat(source).st_mtime_ns}-{name}"
        async with self._turn:
            if not target.is_file() and not self._failed_lately(target):
                await self._make(partial(make, source), target)
            if target in self._problems:
                raise InputError(self._problems[target][0])
            self._use(target)
        return target

    async def _make(self, write: Callable[[Path], None], target: Path) -> None:
        self._process = self._process or ProcessPoolExecutor(max_workers=1)
        try:
            job = asyncio.wrap_future(self._process.submit(_write, write, target))
            problem = await asyncio.wait_for(job, PATIENCE)
        except TimeoutError:
            self.close()
            problem = f"it takes more than {PATIENCE} seconds"
        except BrokenProcessPool:
            self._process = None
            problem = "the process that worked on it died: out of memory, or a crash in a library"
        if problem:
            self._problems[target] = problem, time.monotonic()

    def _failed_lately(self, target: Path) -> bool:
        """What has failed a while ago is tried again: the machine may have been busy, or a disk full."""
        if target in self._problems and time.monotonic() - self._problems[target][1] > RETRY:
            del self._problems[target]
        return target in self._problems

    def _use(self, target: Path) -> None:
        """Puts it last, and removes the first while all are too large."""
        self._sizes.pop(target, None)
        self._sizes[target] = target.stat().st_size
        while sum(self._sizes.values()) > MOST_BYTES and len(self._sizes) > 1:
            first = next(iter(self._sizes))
            del self._sizes[first]
            first.unlink(missing_ok=True)

    def close(self) -> None:
        """Ends the process."""
        if self._process:
            self._process.shutdown(kill_workers=True)
            self._process = None


def _write(write: Callable[[Path], None], target: Path) -> str | None:
    """Runs in the process; an error crosses as text, since not every exception can be pickled."""
    try:
        with atomic_path(target) as temporary:
            write(temporary)
    except Exception as error:
        return describe(error)


def _loaded(source: os.PathLike, width: int) -> verovio.toolkit:
    score, suffix = score_text(source), Path(source).suffix.lower()
    if suffix not in (".krn", ".mei"):  # which verovio reads itself
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
        raise InputError(f"{show(source)}: expected a score, verovio cannot read it")
    return toolkit


def _first_measures(xml: str) -> str:
    """The beginning of a score, with its clefs: engraving a symphony to show its first line takes a minute."""
    score = ElementTree.fromstring(re.sub(r"^\s*<\?xml[^>]*\?>", "", xml))
    for part in score.iter("part"):
        first, *others = part.findall("measure")
        for measure in others[MEASURES - 1 :]:
            part.remove(measure)
        if first.find(".//clef") is None:  # abc2xml leaves a treble clef out, and verovio draws none then
            first.insert(0, ElementTree.fromstring(TREBLE))
    return ElementTree.tostring(score, encoding="unicode")


def _midi(source: os.PathLike) -> mido.MidiFile:
    path = Path(source)
    if modality_of(path) == "score":
        return parse_midi(base64.b64decode(_loaded(source, WIDE).renderToMIDI()), show(path))
    return mtf_to_midi(read_text(path)) if path.suffix.lower() == ".mtf" else parse_midi(path.read_bytes(), show(path))


def _beginning(midi: mido.MidiFile, seconds: float) -> list[tuple[float, mido.Message]]:
    """(seconds, message) from the first note on, without what is not played. InputError where there is no note."""
    messages = list(midi)  # with their delays in seconds
    timed = list(zip(itertools.accumulate(message.time for message in messages), messages, strict=True))
    first = next((now for now, message in timed if message.type == "note_on" and message.velocity), None)
    if first is None:
        raise InputError("expected notes, found none")
    kept = [(max(now - first, 0.0), message) for now, message in timed if now - first <= seconds]
    return [(now, message) for now, message in kept if hasattr(message, "channel") and not message.is_meta]


def _notes(timed: list[tuple[float, mido.Message]]) -> list[tuple[float, float, int, int]]:
    """(start, end, pitch, channel) of each note, in seconds."""
    sounding, notes = defaultdict(list), []
    for now, message in timed:
        if message.type == "note_on" and message.velocity:
            sounding[message.note, message.channel].append(now)
        elif message.type in ("note_on", "note_off") and sounding[message.note, message.channel]:
            notes.append((sounding[message.note, message.channel].pop(0), now, message.note, message.channel))
    end = max(timed[-1][0], 0.1)
    return notes + [(start, end, *key) for key, starts in sounding.items() for start in starts]


def _synthesized(timed: list[tuple[float, mido.Message]]) -> Waveform:
    midi = mido.MidiFile(type=0)
    ticks = midi.ticks_per_beat * BPM / 60  # a second
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
    """The General MIDI sound font that pretty_midi brings; the package is found, not imported."""
    spec = find_spec("pretty_midi")
    if spec is None or spec.origin is None:
        raise InputError("the sound font TimGM6mb.sf2 comes with pretty_midi: pip install pretty_midi")
    return Path(spec.origin).with_name("TimGM6mb.sf2")


def _recorded(source: os.PathLike) -> Waveform:
    from clamplib.audio.decoding import samples  # an extra of its own

    blocks, count = [], 0
    for block in samples(source, SOUND_RATE):
        blocks.append(block)
        count += len(block)
        if count >= SECONDS * SOUND_RATE:
            break
    return Waveform(np.concatenate(blocks)[: SECONDS * SOUND_RATE], SOUND_RATE)

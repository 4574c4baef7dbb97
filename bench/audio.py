"""Spectral features of a recording, a minute at a time, against a window at a time."""

import numpy as np
from bench.timing import seconds

from clamplib.audio import Waveform
from clamplib.audio.decoding import windows
from clamplib.audio.spectral import RATE, SECONDS, recording_features, spectral_features, spectrogram

LENGTH = 300  # seconds of sound


def rows() -> list[dict]:
    """Rows: name, naive_s, ours_s, note."""
    sound = np.random.default_rng(0).standard_normal(LENGTH * RATE).astype(np.float32)
    recording = Waveform(sound, RATE)
    recording_features(Waveform(sound[: RATE * 5], RATE))  # librosa compiles
    naive = seconds(lambda: [spectral_features(spectrogram([window])) for window in windows(recording, RATE, SECONDS)])
    ours = seconds(lambda: recording_features(recording))
    note = f"naive: a window at a time; here: {LENGTH / ours:.0f} times as fast as it plays"
    return [
        {
            "name": f"spectral features of {LENGTH // 60} minutes of sound",
            "naive_s": naive,
            "ours_s": ours,
            "note": note,
        }
    ]

"""Spectral features of a recording: computed a minute at a time, against a window at a time."""

from collections.abc import Iterator

import numpy as np

from bench.common import Row, seconds
from clamplib.audio import WINDOW_SECONDS, Waveform
from clamplib.audio.decoding import windows
from clamplib.audio.spectral import RATE, recording_features, spectral_features, spectrogram

LENGTH = 300  # seconds of sound


def rows() -> Iterator[Row]:
    """Yields one comparison."""
    sound = np.random.default_rng(0).standard_normal(LENGTH * RATE).astype(np.float32)
    recording = Waveform(sound, RATE)
    recording_features(Waveform(sound[: RATE * 5], RATE))  # librosa compiles itself on first use
    naive = seconds(lambda: _window_by_window(recording))
    ours = seconds(lambda: recording_features(recording))
    note = f"naive: a window at a time; here: {LENGTH / ours:.0f} times as fast as it plays"
    yield Row(f"spectral features of {LENGTH // 60} minutes of sound", naive, ours, note)


def _window_by_window(recording: Waveform) -> None:
    for window in windows(recording, RATE, WINDOW_SECONDS):
        spectral_features(spectrogram([window]))

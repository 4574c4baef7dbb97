"""Recordings: files, the bytes of files, or samples in memory. `decoding` reads all of them."""

import os
from typing import NamedTuple

import numpy as np

from clamplib.files import show

RECORDING_SUFFIXES = tuple(".wav .mp3 .flac .ogg .oga .opus .m4a .aac .aif .aiff .wma .mp4 .webm".split())
WINDOW_SECONDS = 5.0  # the length of the windows from which both front ends make a frame of features


class Waveform(NamedTuple):
    """Sound in memory: float samples [n] or [channels, n], full scale being 1, and their rate in Hz."""

    samples: np.ndarray
    rate: int


Recording = str | os.PathLike | bytes | Waveform


def recording_name(recording: Recording) -> str:
    """Names a recording for an error: its path, or "this recording"."""
    return "this recording" if isinstance(recording, bytes | Waveform) else show(recording)

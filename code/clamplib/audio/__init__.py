"""What a recording may be: a file, the bytes of one, or sound at hand. Their decoding is in `audio`."""

import os
from typing import NamedTuple

import numpy as np

from clamplib.files import show

SUFFIXES = tuple(".wav .mp3 .flac .ogg .oga .opus .m4a .aac .aif .aiff .wma .mp4 .webm".split())


class Waveform(NamedTuple):
    """Sound at hand: float samples [n] or [channels, n], and their rate in Hz."""

    samples: np.ndarray
    rate: int


Recording = str | os.PathLike | bytes | Waveform


def recording_name(recording: Recording) -> str:
    """What an error calls it."""
    return "this recording" if isinstance(recording, bytes | Waveform) else show(recording)

"""The small front end of `mini`: librosa turns five seconds of sound into 448 numbers, in place of MERT.

A window of 5 s at 22,050 Hz becomes a spectrogram: the levels of 84 semitones from C1 to B7, by a constant-Q transform
in the recording's own tuning. The features of a window are made from it:

| numbers | feature |
| --- | --- |
| 84 | mean level of each semitone, in dB relative to the window's mean |
| 144 | how often one pitch class follows another from onset to onset (its square root): the melody, in any tempo |
| 144 | the same from an onset to the next but one |
| 40 | autocorrelation of the onset strength at lags from 0.07 s to 7 s: tempo and meter |
| 36 | similarity of the chroma to itself 0.4 s to 8.5 s later: meter and form |

The last two are computed over the minute that the window is in, because five seconds hold too few bars. `mini` is
trained on these features. The published weights need those of MERT (see `mert`).
"""

import hashlib
import itertools
import sys
import tempfile
import warnings
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import numpy as np
from filelock import FileLock

from clamplib import __version__
from clamplib.audio import WINDOW_SECONDS, Recording

RATE = 22_050  # Hz
MINIMUM = 1.0  # seconds; a shorter last window is dropped
MINUTE = 12  # windows
HOP = 512  # samples from one frame to the next
OCTAVES, PITCH_CLASSES = 7, 12
BINS = OCTAVES * PITCH_CLASSES
LOWEST_OCTAVE = 2  # counted from C1; lower notes belong to no melody
HARMONICS = {
    19: 0.6,
    28: 0.4,
}  # semitones from a note to its third and fifth harmonic, and their share of its amplitude
ONSET = 0.3  # least strength of an onset, relative to the mean
ONSET_FRAMES = 3  # least distance between two onsets
SHARPNESS = 5  # a power: between two onsets it leaves mostly the strongest pitch class
ONSET_LAGS = np.unique(np.geomspace(3, 300, 45).round().astype(int))  # frames
CHROMA_FRAMES = 4  # frames that are averaged before they are compared
CHROMA_LAGS = np.unique(np.geomspace(4, 92, 43).round().astype(int))  # in such averages
QUIET = 1e-4  # amplitude; softer sound counts as silence
FLOOR = -80.0  # dB relative to the loudest
SPACE = {"kind": "spectral", "library": __version__}  # of a folder of these features
SIZE = BINS + 2 * PITCH_CLASSES**2 + len(ONSET_LAGS) + len(CHROMA_LAGS)


def recording_features(recording: Recording) -> np.ndarray:
    """Computes the features of a recording.

    Returns:
        float32 [1, T, 448], one row per window of 5 s.

    Raises:
        InputError: the recording has no sound or cannot be read.
    """
    from clamplib.audio.decoding import windows  # needs an extra, unlike the features of a spectrogram

    remaining = windows(recording, RATE, WINDOW_SECONDS, minimum=MINIMUM)
    features = []
    while minute := list(itertools.islice(remaining, MINUTE)):
        features.append(spectral_features(spectrogram(minute)))
    return np.concatenate(features)[None]


@lru_cache(maxsize=1)
def import_librosa() -> ModuleType:
    """Imports librosa, an extra that takes a second to import, in one process at a time.

    Its import compiles functions with numba, which keeps them in files. Two processes that did so at once in a new
    environment would damage these files: every later use would end in a segmentation fault. Another environment has its
    own files, and is not waited for.
    """
    environment = hashlib.sha256(sys.prefix.encode(errors="surrogateescape")).hexdigest()[:16]
    with suppress(OSError), FileLock(Path(tempfile.gettempdir(), f"clamp3-librosa-{environment}.lock")):
        import librosa

        tone = np.sin(2 * np.pi * 440 / RATE * np.arange(RATE)).astype(np.float32)
        librosa.estimate_tuning(y=tone, sr=RATE)  # librosa imports its parts when they are used
        librosa.zero_crossings(tone)
    import librosa  # without the lock, where the folder of temporary files cannot be written

    return librosa


def spectrogram(windows: Sequence[np.ndarray]) -> np.ndarray:
    """Computes the levels of the semitones from C1 to B7.

    Args:
        windows: mono sound [n] at 22,050 Hz, at most 5 s each. A shorter window is filled up with silence.

    Returns:
        Decibels from -80 to 0 (the loudest level), float32 [windows, 84, frames].
    """
    librosa = import_librosa()
    length = round(RATE * WINDOW_SECONDS)
    sound = np.stack([np.pad(window, (0, length - len(window))) for window in windows])
    if np.abs(sound).max() < QUIET:
        return np.full((len(sound), BINS, 1 + length // HOP), FLOOR, dtype=np.float32)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Trying to estimate tuning from empty")  # drums have no tuning
        tuning = librosa.estimate_tuning(y=sound.ravel(), sr=RATE)
    pitches = np.abs(librosa.hybrid_cqt(sound, sr=RATE, hop_length=HOP, n_bins=BINS, tuning=tuning))
    return librosa.amplitude_to_db(pitches, ref=pitches.max(), amin=1e-7, top_db=-FLOOR)


def spectral_features(levels: np.ndarray) -> np.ndarray:
    """Computes the features of a spectrogram.

    Args:
        levels: the levels of at most a minute, in dB [windows, 84, frames], as `spectrogram` gives them.

    Returns:
        float32 [windows, 448]; 0 for silent windows.
    """
    librosa = import_librosa()
    amplitudes = librosa.db_to_amplitude(levels)
    mean = librosa.amplitude_to_db(amplitudes.mean(2), ref=1.0, amin=librosa.db_to_amplitude(FLOOR), top_db=None)
    chroma = _chroma(amplitudes)  # [windows, 12, frames]
    onsets = librosa.onset.onset_strength(S=levels, sr=RATE, hop_length=HOP)  # [windows, frames]
    relative = (mean - mean.mean(1, keepdims=True)) / 20
    melody = np.stack([_transitions(*window) for window in zip(chroma, onsets, strict=True)])
    minute = np.concatenate((_pulse(onsets.ravel()), _recurrence(np.concatenate(chroma, axis=1))))
    features = np.concatenate((relative, melody, np.tile(minute, (len(levels), 1))), axis=1)
    features[levels.max((1, 2)) <= FLOOR] = 0
    return features.astype(np.float32)


def _chroma(amplitudes: np.ndarray) -> np.ndarray:
    """Amplitudes of semitones [windows, 84, frames] -> of pitch classes [windows, 12, frames], without harmonics."""
    harmonics = 0
    for semitones, share in HARMONICS.items():
        harmonics = harmonics + share * np.pad(amplitudes, ((0, 0), (semitones, 0), (0, 0)))[:, :BINS]
    notes = np.maximum(amplitudes - harmonics, 0).reshape(len(amplitudes), OCTAVES, PITCH_CLASSES, -1)
    return notes[:, LOWEST_OCTAVE:].sum(1)


def _transitions(chroma: np.ndarray, onsets: np.ndarray) -> np.ndarray:
    """Chroma [12, frames] and onset strength [frames] -> transitions [288], first pitch class by second."""
    from scipy.signal import find_peaks

    librosa = import_librosa()
    starts, _ = find_peaks(onsets, height=onsets.mean() * ONSET, distance=ONSET_FRAMES)
    notes = librosa.util.sync(chroma, starts, aggregate=np.mean)  # [12, starts + 1]
    notes = (notes / np.maximum(notes.max(0), QUIET)) ** SHARPNESS
    notes /= np.maximum(notes.sum(0), QUIET)
    follow = [notes[:, :-gap] @ notes[:, gap:].T / max(notes.shape[1] - gap, 1) for gap in (1, 2)]
    return np.sqrt(follow).ravel()


def _pulse(onsets: np.ndarray) -> np.ndarray:
    """Autocorrelation [40] of the onset strength [frames], 1 at lag 0. It is 0 without onsets and for lags too long."""
    onsets = onsets - onsets.mean()
    energy = onsets @ onsets or 1.0
    pulse = np.zeros(len(ONSET_LAGS))
    for place, lag in enumerate(ONSET_LAGS):
        if lag < len(onsets):
            pulse[place] = onsets[lag:] @ onsets[:-lag] / energy
    return pulse


def _recurrence(chroma: np.ndarray) -> np.ndarray:
    """Mean cosine [36] between centered chroma [12, frames] and itself later; 0 for lags too long."""
    count = chroma.shape[1] // CHROMA_FRAMES
    chroma = chroma[:, : count * CHROMA_FRAMES].reshape(PITCH_CLASSES, count, CHROMA_FRAMES).mean(2)
    chroma = chroma - chroma.mean(0)
    chroma /= np.maximum(np.linalg.norm(chroma, axis=0), QUIET)
    recurrence = np.zeros(len(CHROMA_LAGS))
    for place, lag in enumerate(CHROMA_LAGS):
        if lag < count:
            recurrence[place] = (chroma[:, lag:] * chroma[:, :-lag]).sum() / (count - lag)
    return recurrence

"""A light front end: what can be heard in five seconds as 256 numbers, by librosa, where MERT would be too much.

A window of 5 s at 22,050 Hz becomes

| numbers | what |
| --- | --- |
| 84 | mean level of each semitone from C1 to B7 (constant-Q transform), in dB against the window's mean |
| 120 | chroma of each half second, 12 pitch classes from C, the strongest 1 |
| 52 | autocorrelation of the onset strength at lags from 0.05 s to 2.4 s: tempo and metre |

`mini` is trained on these; the published weights need MERT (see mert).
"""

import numpy as np

from clamplib.sound import Recording

RATE = 22_050  # Hz
SECONDS = 5.0  # a window
MINIMUM = 1.0  # seconds of a last window
HOP = 512  # samples between two frames
OCTAVES, PITCH_CLASSES = 7, 12
CHROMA_PARTS = 10  # of a window
LAGS = range(2, 106, 2)  # frames
QUIET = 1e-4  # amplitude; what is softer is no sound
SIZE = OCTAVES * PITCH_CLASSES + CHROMA_PARTS * PITCH_CLASSES + len(LAGS)


def recording_features(recording: Recording) -> np.ndarray:
    """A recording's features, float32 [1, T, 256], a row for every 5 s. Raises what `audio.windows` raises."""
    from clamplib.audio import windows  # an extra, which the features of sound at hand do not need

    return np.stack([spectral_features(window) for window in windows(recording, RATE, SECONDS, minimum=MINIMUM)])[None]


def spectral_features(window: np.ndarray) -> np.ndarray:
    """A window's features, float32 [256]; zeros for silence.

    Args:
        window: mono samples [n] at 22,050 Hz, at most 5 s of them; silence follows a shorter one.
    """
    import librosa  # takes a second, and an extra

    if np.abs(window).max(initial=0.0) < QUIET:
        return np.zeros(SIZE, dtype=np.float32)
    window = np.pad(window, (0, round(RATE * SECONDS) - len(window)))
    bins = OCTAVES * PITCH_CLASSES
    pitches = np.abs(librosa.hybrid_cqt(window, sr=RATE, hop_length=HOP, n_bins=bins))  # [84, frames]
    level = librosa.amplitude_to_db(pitches.mean(1), ref=1.0, amin=QUIET)
    onsets = librosa.onset.onset_strength(S=librosa.amplitude_to_db(pitches, amin=QUIET), sr=RATE, hop_length=HOP)
    return np.concatenate(((level - level.mean()) / 20, _chroma(pitches), _pulse(onsets))).astype(np.float32)


def transpose(features: np.ndarray, semitones: int) -> np.ndarray:
    """The features [..., 256] of the same music played higher, or lower where `semitones` is below 0."""
    bins, chroma_end = OCTAVES * PITCH_CLASSES, SIZE - len(LAGS)
    places = np.clip(np.arange(bins) - semitones, 0, bins - 1)
    parts = features[..., bins:chroma_end].reshape(*features.shape[:-1], CHROMA_PARTS, PITCH_CLASSES)
    chroma = np.roll(parts, semitones, axis=-1).reshape(*features.shape[:-1], -1)
    return np.concatenate((features[..., places], chroma, features[..., chroma_end:]), axis=-1)


def _chroma(pitches: np.ndarray) -> np.ndarray:
    """Pitch classes of the parts of a window: pitches [84, frames] -> [120]."""
    folded = pitches.reshape(OCTAVES, PITCH_CLASSES, -1).sum(0)
    parts = np.stack([part.mean(1) for part in np.array_split(folded, CHROMA_PARTS, axis=1)])  # [10, 12]
    return (parts / np.maximum(parts.max(1, keepdims=True), QUIET)).ravel()


def _pulse(onsets: np.ndarray) -> np.ndarray:
    """Autocorrelation [52] of the onset strength, 1 at lag 0; zero where there is no pulse or no such lag."""
    onsets = onsets - onsets.mean()
    energy = float(onsets @ onsets)
    if energy <= 0:
        return np.zeros(len(LAGS))
    return np.array([onsets[lag:] @ onsets[:-lag] / energy if lag < len(onsets) else 0.0 for lag in LAGS])

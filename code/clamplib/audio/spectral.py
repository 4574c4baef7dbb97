"""A light front end: what can be heard in five seconds as 448 numbers, by librosa, where MERT would be too much.

A window of 5 s at 22,050 Hz becomes a spectrogram, the levels of 84 semitones from C1 to B7 (constant-Q transform, in
the recording's own tuning), and that

| numbers | what |
| --- | --- |
| 84 | mean level of each semitone, in dB against the window's mean |
| 144 | how often one pitch class follows another from onset to onset, the square root: the melody, in any tempo |
| 144 | the same from an onset to the next but one |
| 40 | autocorrelation of the onset strength at lags from 0.07 s to 7 s: tempo and metre |
| 36 | likeness of the chroma to what follows it by 0.4 s to 8.5 s: metre and form |

The last two are of the minute that the window is in, for five seconds hold too few bars. `mini` is trained on these;
the published weights need MERT (see mert).
"""

import itertools
import warnings
from collections.abc import Sequence

import numpy as np

from clamplib.audio import Recording

RATE = 22_050  # Hz
SECONDS = 5.0  # a window
MINIMUM = 1.0  # seconds of a last window
MINUTE = 12  # windows
HOP = 512  # samples between two frames
OCTAVES, PITCH_CLASSES = 7, 12
BINS = OCTAVES * PITCH_CLASSES
LOWEST = 2  # octave in which melodies begin
HARMONICS = {19: 0.6, 28: 0.4}  # semitones from a note to its third and fifth, and how loud these may be beside it
ONSET = 0.3  # strength, beside the mean
ONSET_FRAMES = 3  # from one to the next, at least
SHARPNESS = 5  # power that leaves of the pitch classes between two onsets mostly the strongest
ONSET_LAGS = np.unique(np.geomspace(3, 300, 45).round().astype(int))  # frames
CHROMA_FRAMES = 4  # that are averaged before they are compared
CHROMA_LAGS = np.unique(np.geomspace(4, 92, 43).round().astype(int))  # of so many frames
QUIET = 1e-4  # amplitude; what is softer is no sound
FLOOR = -80.0  # dB below the loudest
SIZE = BINS + 2 * PITCH_CLASSES**2 + len(ONSET_LAGS) + len(CHROMA_LAGS)


def recording_features(recording: Recording) -> np.ndarray:
    """A recording's features, float32 [1, T, 448], a row for every 5 s. Raises what `audio.windows` raises."""
    from clamplib.audio.decoding import windows  # an extra, which the features of sound at hand do not need

    rest = windows(recording, RATE, SECONDS, minimum=MINIMUM)
    minutes = iter(lambda: list(itertools.islice(rest, MINUTE)), [])
    return np.concatenate([spectral_features(spectrogram(minute)) for minute in minutes])[None]


def spectrogram(windows: Sequence[np.ndarray]) -> np.ndarray:
    """Levels of the semitones from C1 to B7, float32 [windows, 84, frames], from -80 to 0 dB, which is the loudest.

    Args:
        windows: mono samples [n] at 22,050 Hz, at most 5 s of them each; silence follows a shorter one.
    """
    import librosa  # takes a second, and an extra

    length = round(RATE * SECONDS)
    sound = np.stack([np.pad(window, (0, length - len(window))) for window in windows])
    if np.abs(sound).max() < QUIET:
        return np.full((len(sound), BINS, 1 + length // HOP), FLOOR, dtype=np.float32)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Trying to estimate tuning from empty")  # of a drum: then there is none
        tuning = librosa.estimate_tuning(y=sound.ravel(), sr=RATE)
    pitches = np.abs(librosa.hybrid_cqt(sound, sr=RATE, hop_length=HOP, n_bins=BINS, tuning=tuning))
    return librosa.amplitude_to_db(pitches, ref=pitches.max(), amin=1e-7, top_db=-FLOOR)


def spectral_features(levels: np.ndarray) -> np.ndarray:
    """The features of a spectrogram [windows, 84, frames] of at most a minute: float32 [windows, 448]; silence is 0."""
    import librosa

    amplitudes = librosa.db_to_amplitude(levels)
    mean = librosa.amplitude_to_db(amplitudes.mean(2), ref=1.0, amin=librosa.db_to_amplitude(FLOOR), top_db=None)
    chroma = _chroma(amplitudes)  # [windows, 12, frames]
    onsets = librosa.onset.onset_strength(S=levels, sr=RATE, hop_length=HOP)  # [windows, frames]
    melody = [_transitions(*window) for window in zip(chroma, onsets, strict=True)]
    minute = np.concatenate((_pulse(onsets.ravel()), _recurrence(np.concatenate(chroma, axis=1))))
    parts = (mean - mean.mean(1, keepdims=True)) / 20, np.stack(melody), np.tile(minute, (len(levels), 1))
    features = np.concatenate(parts, axis=1)
    features[levels.max((1, 2)) <= FLOOR] = 0
    return features.astype(np.float32)


def _chroma(amplitudes: np.ndarray) -> np.ndarray:
    """Amplitudes of semitones [windows, 84, frames] -> of pitch classes [windows, 12, frames], without harmonics."""
    notes = amplitudes - sum(
        share * np.pad(amplitudes, ((0, 0), (above, 0), (0, 0)))[:, :BINS] for above, share in HARMONICS.items()
    )
    notes = np.maximum(notes, 0).reshape(len(amplitudes), OCTAVES, PITCH_CLASSES, -1)
    return notes[:, LOWEST:].sum(1)


def _transitions(chroma: np.ndarray, onsets: np.ndarray) -> np.ndarray:
    """Chroma [12, frames] and onset strength [frames] -> transitions [288], first pitch class by second."""
    import librosa
    from scipy.signal import find_peaks

    starts, _ = find_peaks(onsets, height=onsets.mean() * ONSET, distance=ONSET_FRAMES)
    notes = librosa.util.sync(chroma, starts, aggregate=np.mean)  # [12, starts + 1]
    notes = (notes / np.maximum(notes.max(0), QUIET)) ** SHARPNESS
    notes /= np.maximum(notes.sum(0), QUIET)
    follow = [notes[:, :-gap] @ notes[:, gap:].T / max(notes.shape[1] - gap, 1) for gap in (1, 2)]
    return np.sqrt(follow).ravel()


def _pulse(onsets: np.ndarray) -> np.ndarray:
    """Autocorrelation [40] of the onset strength [frames], 1 at lag 0; zero where there is no pulse or no such lag."""
    onsets = onsets - onsets.mean()
    energy = onsets @ onsets or 1.0
    return np.array([onsets[lag:] @ onsets[:-lag] / energy if lag < len(onsets) else 0.0 for lag in ONSET_LAGS])


def _recurrence(chroma: np.ndarray) -> np.ndarray:
    """Mean cosine [36] of chroma [12, frames], each frame against its mean, and itself later; zero for no such lag."""
    frames = chroma.shape[1] // CHROMA_FRAMES
    chroma = chroma[:, : frames * CHROMA_FRAMES].reshape(PITCH_CLASSES, frames, CHROMA_FRAMES).mean(2)
    chroma = chroma - chroma.mean(0)
    chroma /= np.maximum(np.linalg.norm(chroma, axis=0), QUIET)
    return np.array(
        [(chroma[:, lag:] * chroma[:, :-lag]).sum() / (frames - lag) if lag < frames else 0.0 for lag in CHROMA_LAGS]
    )

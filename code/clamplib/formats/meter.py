"""Where the bars of a melody begin, for music that does not say so.

MIDI files have no bar lines, and many begin with an upbeat. A beginning of bars is judged by the notes that it puts on
bar lines and on beats, and by how few pitch classes its bars have. The weights are those of a logistic regression over
folk tunes and songs, rounded to whole numbers. Of 646 others that state their meter, it found the upbeat of 88 %, and
the length of the bar of 77 % where it was not told the meter. The weight for the accompaniment was chosen by hand.
"""

from collections.abc import Sequence

import numpy as np

UNIT = 0.5  # quarter notes from one possible beginning to the next; what `find_bars` expects an eighth note to be
IN_TRIAD = np.isin(np.arange(12), (0, 4, 7))  # by semitones above the tonic of a major key
METERS = ((4, 4), (3, 4), (6, 8), (9, 8), (2, 4))
BIAS = (0, -2, 2, 1, -3)  # how common each is
TIME_IN_FIRST, TIME_ON_BEATS = 6, 14  # for the share of the time in notes that begin bars, and beats
LONGER_FIRST, LONGER_HALF, LONGER_ON_BEAT = 4, 3, 11  # for such notes that are longer than the one before
TRIAD_FIRST, AFTER_LONG = 2, 2  # for bars that begin with a note of the triad, or after a long note
HARMONY, MELODIC_HARMONY = 30, 19  # for bars that keep to few pitch classes, in the accompaniment and in the melody
UPBEAT, NO_UPBEAT = -11, -3  # for the length of the upbeat in bars, and for none
NEW_START = -120  # for a change of the upbeat within a piece, as after a repeat
NEAR = 2e-3
MAX_UPBEATS, MAX_BARS = 64, 10_000
PARTS = (1, 2, 3, 4, 6, 8, 12)  # of a quarter note
STEADY, STEADY_GROUP = 0.4, 0.75  # of all onsets, and of neighboring ones
GROUP = 8  # notes
WINDOW = 60.0  # seconds in which the shortest pulse is sought
MAX_ONSETS = 1000  # among which it is sought
PULSES = (0.07, 0.6)  # shortest and longest, in seconds
ALMOST = 0.8  # of the best fit: a slower pulse that fits so well is preferred
CORRECTION = (0.3, 0.05)  # share of an onset's deviation that moves the pulse, and that changes its period


def find_bars(
    onsets: Sequence[float],
    pitches: Sequence[int],
    accompaniment: Sequence[tuple[float, int]],
    tonic: int,
    meter: tuple[int, float] | None = None,
) -> list[float]:
    """Finds where the bars of a melody begin.

    Args:
        onsets: of its notes, in quarter notes; most steps should be eighth notes.
        pitches: of its notes.
        accompaniment: (onset, pitch) of the other notes.
        tonic: pitch class of the tonic of the major key with the signature.
        meter: (beats, unit), if it is known.

    Returns:
        The beginnings of all bars in which a note begins.
    """
    times, pitch = np.asarray(onsets, dtype=float), np.asarray(pitches)
    best, starts = -np.inf, times[:1]
    for candidate, bias in [(meter, 0)] if meter else zip(METERS, BIAS, strict=True):
        length = 4 * candidate[0] / candidate[1]
        bars = max((times[-1] - times[0]) / length, 1)
        scores = _scores(times, pitch, np.asarray(accompaniment, dtype=float).reshape(-1, 2), tonic, candidate)
        score, upbeats = _best_path(scores)
        if score / bars + bias > best:
            best = score / bars + bias
            starts = times - np.mod(times - upbeats * UNIT + NEAR, length) + NEAR
    return sorted({round(start, 3) for start in starts.tolist()})


def _scores(
    onsets: np.ndarray, pitches: np.ndarray, accompaniment: np.ndarray, tonic: int, meter: tuple[int, float]
) -> np.ndarray:
    """What each note says for each upbeat of 0, 0.5, 1, … quarter notes: [upbeats, notes]."""
    beats, unit = meter
    length = 4 * beats / unit
    beat = 1.5 if beats % 3 == 0 and beats > 3 else 1.0
    upbeats = np.arange(min(max(1, round(length / UNIT)), MAX_UPBEATS))[:, None] * UNIT
    durations = np.ones(len(onsets))
    durations[:-1] = np.minimum(np.diff(onsets), 4.0)
    before = np.concatenate(([0.0], durations[:-1]))
    longer = durations > before + NEAR
    place = np.mod(onsets - upbeats + NEAR, length) - NEAR
    first = np.abs(place) < 2 * NEAR
    half = np.abs(place - length / 2) < 2 * NEAR
    on_beat = np.abs(np.mod(place + NEAR, beat) - NEAR) < 2 * NEAR
    bars = max((onsets[-1] - onsets[0]) / length, 1)
    scores = (TIME_IN_FIRST * first + TIME_ON_BEATS * on_beat) * durations * (bars / max(durations.sum(), NEAR))
    scores += (LONGER_FIRST * first + LONGER_HALF * half + LONGER_ON_BEAT * bars / len(onsets) * on_beat) * longer
    scores += TRIAD_FIRST * first * IN_TRIAD[(pitches - tonic) % 12]
    scores += AFTER_LONG * first * (before > durations + NEAR)
    harmony = MELODIC_HARMONY * _concentration(onsets, pitches, durations, upbeats, length)
    if len(accompaniment):
        times, low = accompaniment.T
        harmony += HARMONY * _concentration(times, low.astype(int), np.ones(len(low)), upbeats, length)
    scores[:, 0] += bars * harmony
    scores[:, 0] += bars * (UPBEAT * upbeats[:, 0] / length + NO_UPBEAT * (upbeats[:, 0] == 0))
    return scores


def _concentration(
    onsets: np.ndarray, pitches: np.ndarray, weights: np.ndarray, upbeats: np.ndarray, length: float
) -> np.ndarray:
    """How few pitch classes the bars have that begin with each upbeat: [upbeats], from 1/12 to 1.

    If bars begin where the harmony changes, each has the notes of one chord.
    """
    bars = np.floor((onsets - upbeats + NEAR) / length)  # [upbeats, notes]
    bars -= bars.min()
    if bars.max() >= MAX_BARS:
        return np.zeros(len(upbeats))
    bars = bars.astype(int)
    shares = np.zeros((len(upbeats), bars.max() + 1, 12))
    np.add.at(shares, (np.arange(len(upbeats))[:, None], bars, pitches % 12), weights)
    return (shares**2).sum((1, 2)) / np.maximum((shares.sum(2) ** 2).sum(1), NEAR)


def _best_path(scores: np.ndarray) -> tuple[float, np.ndarray]:
    """The best sum over the notes of [upbeats, notes], and the upbeat of each note in it. A change has its price."""
    sums = scores.cumsum(1)
    likely = int(sums[:, -1].argmax())
    if _is_steady(sums - sums[likely]):
        return float(sums[likely, -1]), np.full(scores.shape[1], likely)
    total = scores[:, 0].copy()
    came_from = np.zeros(scores.shape, dtype=int)
    own = np.arange(len(scores))
    for note in range(1, scores.shape[1]):
        best = int(total.argmax())
        change = total[best] + NEW_START > total
        came_from[:, note] = np.where(change, best, own)
        total = np.where(change, total[best] + NEW_START, total) + scores[:, note]
    path = np.zeros(scores.shape[1], dtype=int)
    path[-1] = total.argmax()
    for note in range(scores.shape[1] - 1, 0, -1):
        path[note - 1] = came_from[path[note], note]
    return float(total.max()), path


def _is_steady(lead: np.ndarray) -> bool:
    """Tells whether no change of the upbeat can be worth its price.

    Args:
        lead: [upbeats, notes], how much more the notes up to here speak for an upbeat than for the likeliest one.
    """
    lead = np.concatenate((np.zeros((len(lead), 1)), lead), axis=1)
    at_first = lead.max()
    at_last = (lead[:, -1:] - lead).max()
    between = (lead - np.minimum.accumulate(lead, axis=1)).max()
    return at_first + at_last <= -NEW_START and between <= -NEW_START


def has_beat(onsets: Sequence[float]) -> bool:
    """Tells whether notes keep to the beats of a MIDI file or to parts of them, as those of a metronome do."""
    times = np.asarray(onsets, dtype=float)
    return any(_steadiness(times, (count,)) >= STEADY for count in reversed(PARTS))


def without_drift(onsets: Sequence[float]) -> np.ndarray | None:
    """Corrects onsets that keep to beats which are not those of the file, but equally long.

    MTF loses the time of the words that it leaves out, such as lyrics, so that its notes come ever earlier.

    Args:
        onsets: in quarter notes, in order.

    Returns:
        Onsets with steps of twelfths of a quarter note; None where neighboring notes share no beat.
    """
    times = np.asarray(onsets, dtype=float)
    groups = [times[start : start + GROUP] for start in range(0, max(len(times) - GROUP, 1), GROUP)]
    if np.mean([_steadiness(group, PARTS[:4]) for group in groups]) < STEADY_GROUP:
        return None
    steps = np.round(np.diff(times) * 12) / 12
    return times[0] + np.concatenate(([0.0], np.cumsum(steps)))


def _steadiness(times: np.ndarray, parts: tuple[int, ...] = PARTS) -> float:
    """1: every onset has the same place in one of the parts of a beat; 0: none has."""
    turns = 2j * np.pi * times
    return max(abs(np.exp(count * turns).mean()) for count in parts)


def on_pulse(seconds: Sequence[float]) -> np.ndarray:
    """Counts a performance by its shortest pulse, which may become faster or slower.

    Args:
        seconds: when notes begin, in order.

    Returns:
        float [n], the number of each onset's pulse.
    """
    times = np.asarray(seconds, dtype=float)
    period = _pulse(times[times < times[0] + WINDOW][:MAX_ONSETS])
    counts = np.zeros(len(times))
    anchor, number = times[0], 0.0  # the time of a pulse, and its number
    for place in range(1, len(times)):
        steps = np.round((times[place] - anchor) / period)
        error = times[place] - anchor - steps * period
        number += steps
        counts[place] = number
        anchor += steps * period + CORRECTION[0] * error
        if 0 < steps <= 8:
            period += CORRECTION[1] * error / steps
    return counts


def _pulse(times: np.ndarray) -> float:
    """The period in seconds of the slowest pulse that these onsets keep."""
    span = max(times[-1] - times[0], 1.0)
    rates = np.arange(1 / PULSES[1], 1 / PULSES[0], 1 / (6 * span))
    fit = np.abs(np.exp(2j * np.pi * rates[:, None] * times).mean(1))
    place = int(np.argmax(fit >= ALMOST * fit.max()))
    while place + 1 < len(fit) and fit[place + 1] > fit[place]:  # to the top of this peak
        place += 1
    return 1 / rates[place]

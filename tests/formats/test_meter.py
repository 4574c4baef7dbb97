"""Bars are found where a musician hears them."""

import itertools
import random

import numpy as np
import pytest

from clamplib.formats.meter import NEW_START, _best_path, _concentration, find_bars, has_beat, on_pulse
from clamplib.formats.notes import read_notes

JIG = """M:6/8
L:1/8
K:D
A|def afd|gfe dcB|Adf afd|e3 e2A|def afd|gfe dcB|ABA GFE|D3 D2:|
"""
HORNPIPE = """M:4/4
L:1/8
K:G
dc|B2G2 GABc|d2e2 d2BG|c2A2 ABcd|B2G2 G2dc|B2G2 GABc|d2e2 d2g2|fedc BAGF|G2G2 G2:|
"""


def melody(abc: str) -> tuple[list[float], list[int]]:
    (part,) = read_notes(abc).parts
    return [note.onset for note in part], [note.pitch for note in part]


@pytest.mark.parametrize("abc, meter, tonic, upbeat, bar", [(JIG, (6, 8), 2, 0.5, 3), (HORNPIPE, (4, 4), 7, 1.0, 4)])
def test_an_upbeat_and_the_meter_are_found(abc, meter, tonic, upbeat, bar):
    onsets, pitches = melody(abc)
    for stated in (meter, None):
        starts = find_bars(onsets, pitches, [], tonic, stated)
        assert starts == pytest.approx([upbeat - bar + bar * number for number in range(len(starts))], abs=0.01)


@pytest.mark.parametrize("size", [1, 20, 80, 200])
def test_the_best_path_is_that_of_all_paths(size):
    """Also where no change pays, which is found without a search."""
    rng = np.random.default_rng(size)
    for _ in range(20):
        scores = rng.normal(0, size, (3, 5))
        best = max(itertools.product(range(3), repeat=5), key=lambda path: path_score(scores, path))
        score, upbeats = _best_path(scores)
        assert upbeats.tolist() == list(best) and score == pytest.approx(path_score(scores, best))


def path_score(scores: np.ndarray, path: tuple[int, ...]) -> float:
    changes = sum(a != b for a, b in itertools.pairwise(path))
    return sum(scores[upbeat, note] for note, upbeat in enumerate(path)) + NEW_START * changes


def test_bars_that_begin_with_the_chords_have_the_fewest_pitch_classes():
    upbeats = np.arange(8)[:, None] * 0.5
    for upbeat in (0.5, 1.0, 2.5):
        onsets = np.array([upbeat + 0.5 * number for number in range(64)])
        pitches = np.array([36 + 5 * (number // 8) for number in range(64)])
        found = _concentration(onsets, pitches, np.ones(64), upbeats, 4.0)
        assert upbeats[found.argmax(), 0] == upbeat
        assert found.max() == pytest.approx(1)


def test_one_note_has_a_bar():
    assert find_bars([0.0], [60], [], 0, (4, 4)) and find_bars([3.0], [60], [], 0)


def test_a_beat_is_kept_by_a_metronome_alone():
    rng = random.Random(2)
    steps = [rng.choice((0.25, 0.5, 0.5, 1.0)) for _ in range(200)]
    onsets = np.cumsum(steps)
    assert has_beat(onsets)
    assert has_beat([time + rng.gauss(0, 0.03) for time in onsets])
    assert not has_beat(onsets * 1.2345)
    assert not has_beat([rng.uniform(0, 100) for _ in range(200)])


def test_a_pulse_is_followed_when_it_drifts():
    rng = random.Random(3)
    counts = np.cumsum([rng.choice((1, 1, 2, 4)) for _ in range(300)])
    lengths = 0.2 * (1 + 0.1 * np.sin(np.arange(counts[-1] + 1) / 150))  # of the pulses in seconds
    seconds = np.cumsum(lengths)[counts]
    heard = on_pulse(seconds)
    assert np.mean(np.diff(heard) == np.diff(counts)) > 0.97

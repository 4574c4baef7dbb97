"""The small front end: its features of known sounds."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sound import sine, write

from clamplib.audio import WINDOW_SECONDS, Waveform
from clamplib.audio.spectral import (
    BINS,
    CHROMA_FRAMES,
    CHROMA_LAGS,
    HOP,
    ONSET_LAGS,
    PITCH_CLASSES,
    RATE,
    SIZE,
    recording_features,
    spectral_features,
    spectrogram,
)

SCRIPT = Path(__file__).parents[2] / "preprocessing/audio/extract_spectral.py"
TIME = np.arange(round(RATE * WINDOW_SECONDS)) / RATE


def tone(midi_pitch, seconds=WINDOW_SECONDS):
    return np.sin(2 * np.pi * 440 * 2 ** ((midi_pitch - 69) / 12) * TIME[: round(RATE * seconds)]).astype(np.float32)


def note(midi_pitch, seconds):
    """A tone that dies away."""
    sound = tone(midi_pitch, seconds)
    return sound * np.linspace(1, 0, len(sound), dtype=np.float32)


def heard(*sounds):
    """The features of the first window: levels [84], transitions [12, 12] twice, pulse [40], recurrence [36]."""
    features = spectral_features(spectrogram(sounds))[0]
    levels, *transitions, pulse, recurrence = np.split(features, np.cumsum([BINS, 144, 144, len(ONSET_LAGS)]))
    return levels, *(each.reshape(PITCH_CLASSES, PITCH_CLASSES) for each in transitions), pulse, recurrence


@pytest.mark.parametrize("pitch", [45, 60, 69, 88])
def test_a_tone_is_where_it_sounds(pitch):
    assert heard(tone(pitch))[0].argmax() == pitch - 24  # C1 is MIDI pitch 24


@pytest.mark.parametrize("seconds", [0.2, 0.3])
@pytest.mark.parametrize("cents", [0, -40, 40])
def test_transitions_follow_a_melody_in_any_tempo_and_tuning(seconds, cents):
    melody = np.concatenate([note(pitch + cents / 100, seconds) for pitch in [60, 64, 67, 69] * 7])[: len(TIME)]
    _, *follow, _, _ = heard(melody)
    for gap, transitions in enumerate(follow, start=1):
        frequent = [divmod(place, PITCH_CLASSES) for place in transitions.ravel().argsort()[-4:].tolist()]
        expected = {(0, 4), (4, 7), (7, 9), (9, 0)} if gap == 1 else {(0, 7), (4, 9), (7, 0), (9, 4)}
        assert set(frequent) == expected


def test_harmonics_are_not_heard_as_notes():
    melody = [sum(note(pitch + above, 0.4) / (1 + above / 12) for above in (0, 12, 19, 24)) for pitch in [60, 62] * 7]
    to_next = heard(np.concatenate(melody)[: len(TIME)])[1]
    assert to_next[[7, 9]].max() < 0.1 * to_next[0, 2]  # the fifths above


@pytest.mark.parametrize("beat", [0.4, 0.6, 1.0])
def test_pulse_peaks_at_the_beat(beat):
    clicks = np.zeros(len(TIME), dtype=np.float32)
    for start in np.arange(0, WINDOW_SECONDS - 0.1, beat):
        begin = round(start * RATE)
        clicks[begin : begin + 2000] += tone(72)[:2000] * np.linspace(1, 0, 2000)
    pulse = heard(clicks)[3]
    others = ONSET_LAGS > 8  # at smaller lags an onset meets itself
    lag = ONSET_LAGS[others][pulse[others].argmax()] * HOP / RATE
    assert min(lag % beat, beat - lag % beat) < 0.05


@pytest.mark.parametrize("bar", [1.2, 2.0])
def test_music_recurs_after_a_bar(bar):
    """Four notes, again and again, over several windows."""
    melody = np.concatenate([note(pitch, bar / 4) for pitch in [60, 64, 67, 65] * 20])[: 2 * len(TIME)]
    recurrence = heard(*np.split(melody, 2))[4]
    seconds = CHROMA_LAGS * CHROMA_FRAMES * HOP / RATE
    early = seconds < 1.7 * bar
    assert seconds[early][recurrence[early].argmax()] == pytest.approx(bar, rel=0.08)


def test_loudness_does_not_matter():
    music = tone(60) + tone(64) + 0.3 * tone(67)
    assert recording_features(Waveform(music, RATE)) == pytest.approx(
        recording_features(Waveform(0.1 * music, RATE)), abs=0.05
    )


def test_silence_and_short_sounds_have_finite_features():
    assert not spectral_features(spectrogram([np.zeros(RATE, dtype=np.float32)])).any()
    for count in (1, 100, 5000):
        features = spectral_features(spectrogram([tone(69)[:count], np.zeros(9, np.float32)]))
        assert features.shape == (2, SIZE)
        assert features.dtype == np.float32
        assert np.isfinite(features).all()
        assert not features[1].any()


def test_windows_do_not_depend_on_each_other():
    """Except for the tuning, which they share."""
    sounds = [tone(60), tone(64, 2.0), tone(67)]
    together = spectrogram(sounds)
    assert together.shape == (3, BINS, 216)
    for sound, levels in zip(sounds, together, strict=True):
        alone = spectrogram([sound])[0] + levels.max()
        loud = levels > levels.max() - 20
        np.testing.assert_allclose(alone[loud], levels[loud], atol=1)


def test_recordings_become_features(tmp_path, capsys):
    """One row per five seconds, at any sample rate. A file that cannot be read is reported."""
    (tmp_path / "in/sub").mkdir(parents=True)
    write(tmp_path / "in/a.wav", tone(60)[None], RATE, "pcm_s16le")
    write(tmp_path / "in/sub/B.FLAC", sine(7.0, 44_100, 220.0, 220.0), 44_100, "flac")
    (tmp_path / "in/c.mp3").write_text("words")
    main = runpy.run_path(str(SCRIPT))["main"]
    assert main([str(tmp_path / "in"), str(tmp_path / "out"), "--workers", "1"]) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("2 done, 0 skipped, 1 failed")
    a, b = np.load(tmp_path / "out/a.npy"), np.load(tmp_path / "out/sub/B.npy")
    assert a.shape == (1, 1, SIZE) and b.shape == (1, 2, SIZE)
    assert b[0, 0, :BINS].argmax() == 57 - 24
    np.testing.assert_allclose(a[0], spectral_features(spectrogram([tone(60)])), atol=0.05)  # 16 bits


@pytest.mark.slow
def test_processes_that_start_at_once_in_a_new_environment(tmp_path):
    """What numba compiles for librosa is not damaged by two processes that compile it at the same time."""
    code = "from clamplib.audio.spectral import import_librosa; import_librosa()"
    command = [sys.executable, "-W", "error", "-c", code]
    env = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    processes = [subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors

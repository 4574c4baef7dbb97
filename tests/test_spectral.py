"""The light front end: what its numbers say of sounds that are known."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from sound import sine, write

from clamplib.spectral import (
    CHROMA_PARTS,
    HOP,
    LAGS,
    OCTAVES,
    PITCH_CLASSES,
    RATE,
    SECONDS,
    SIZE,
    spectral_features,
    transpose,
)

BINS = OCTAVES * PITCH_CLASSES
SCRIPT = Path(__file__).parents[1] / "preprocessing/audio/extract_spectral.py"
TIME = np.arange(round(RATE * SECONDS)) / RATE


def tone(midi_pitch, seconds=SECONDS):
    return np.sin(2 * np.pi * 440 * 2 ** ((midi_pitch - 69) / 12) * TIME[: round(RATE * seconds)]).astype(np.float32)


def parts(features):
    """Levels [84], chroma [10, 12], pulse [52]."""
    chroma = features[BINS : BINS + CHROMA_PARTS * PITCH_CLASSES]
    return features[:BINS], chroma.reshape(CHROMA_PARTS, PITCH_CLASSES), features[-len(LAGS) :]


@pytest.mark.parametrize("pitch", [45, 60, 69, 88])
def test_a_tone_is_where_it_sounds(pitch):
    levels, chroma, _ = parts(spectral_features(tone(pitch)))
    assert levels.argmax() == pitch - 24  # C1 is MIDI pitch 24
    assert (chroma.argmax(1) == pitch % 12).all() and chroma.max() == pytest.approx(1)


def test_chroma_follows_a_melody():
    scale = [60, 62, 64, 65, 67, 69, 71, 72, 71, 69]
    melody = np.concatenate([tone(pitch, 0.5) for pitch in scale])
    assert list(parts(spectral_features(melody))[1].argmax(1)) == [pitch % 12 for pitch in scale]


@pytest.mark.parametrize("semitones", [-5, 0, 3, 12])
def test_transposed_features_are_those_of_transposed_music(semitones):
    moved = transpose(spectral_features(tone(64)), semitones)
    levels, chroma, pulse = parts(moved)
    expected = parts(spectral_features(tone(64 + semitones)))
    assert levels.argmax() == expected[0].argmax() and (chroma.argmax(1) == expected[1].argmax(1)).all()
    np.testing.assert_array_equal(pulse, parts(spectral_features(tone(64)))[2])
    assert moved.dtype == np.float32 and transpose(np.stack([moved] * 2)[None], 1).shape == (1, 2, SIZE)


@pytest.mark.parametrize("beat", [0.4, 0.6, 1.0])
def test_pulse_peaks_at_the_beat(beat):
    clicks = np.zeros(len(TIME), dtype=np.float32)
    for start in np.arange(0, SECONDS - 0.1, beat):
        begin = round(start * RATE)
        clicks[begin : begin + 2000] += tone(72)[:2000] * np.linspace(1, 0, 2000)
    pulse = parts(spectral_features(clicks))[2]
    lag = LAGS[pulse[4:].argmax() + 4] * HOP / RATE  # behind the lags of one onset with itself
    assert min(lag % beat, beat - lag % beat) < 0.05


def test_loudness_does_not_matter():
    music = tone(60) + tone(64) + 0.3 * tone(67)
    assert spectral_features(music) == pytest.approx(spectral_features(0.1 * music), abs=0.05)


def test_silence_and_short_sounds_have_finite_features():
    assert not spectral_features(np.zeros(RATE, dtype=np.float32)).any()
    for count in (1, 100, 5000):
        features = spectral_features(tone(69)[:count])
        assert features.shape == (SIZE,) and features.dtype == np.float32 and np.isfinite(features).all()


def test_recordings_become_features(tmp_path, capsys):
    """A row for every five seconds, at any sample rate; what is no sound is reported."""
    (tmp_path / "in/sub").mkdir(parents=True)
    write(tmp_path / "in/a.wav", tone(60)[None], RATE, "pcm_s16le")
    write(tmp_path / "in/sub/B.FLAC", sine(7.0, 44_100, 220.0, 220.0), 44_100, "flac")
    (tmp_path / "in/c.mp3").write_text("words")
    main = runpy.run_path(str(SCRIPT))["main"]
    assert main([str(tmp_path / "in"), str(tmp_path / "out"), "--workers", "1"]) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("2 done, 0 skipped, 1 failed")
    a, b = np.load(tmp_path / "out/a.npy"), np.load(tmp_path / "out/sub/B.npy")
    assert a.shape == (1, 1, SIZE) and b.shape == (1, 2, SIZE)
    assert parts(b[0, 0])[0].argmax() == 57 - 24
    np.testing.assert_allclose(a[0, 0], spectral_features(tone(60)), atol=0.05)  # 16 bits

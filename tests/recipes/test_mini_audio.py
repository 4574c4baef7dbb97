"""What mini learns to hear: pieces rendered by sound fonts, varied, and described."""

import json
import random
from dataclasses import asdict

import numpy as np
import pytest

from clamplib.audio.spectral import BINS, PITCH_CLASSES, RATE, SIZE
from clamplib.formats.mtf import midi_to_mtf
from clamplib.formats.notes import Music, Note
from recipes.mini.build import held_out_clips
from recipes.mini.build_audio import KEYS, audio_lines, hear, play, stretched, transposed, tune_of
from recipes.mini.forms import save_forms
from recipes.mini.render import CLIP_SECONDS, INSTRUMENTS, MERLIN, TIMGM6MB, Timbre, beginning, render, to_midi
from recipes.mini.texts import Facts


@pytest.fixture
def music() -> Music:
    """Forty seconds of quarter notes by two parts, at 120."""
    return Music([[Note(step, step + 1, pitch + step % 5) for step in range(80)] for pitch in (72, 48)])


def test_each_part_gets_an_instrument(music):
    programs = [40, 73]
    result = to_midi(music, programs, random.Random(1))
    messages = [message for message in result.tracks[0] if not message.is_meta]
    assert {message.channel for message in messages} == {0, 1}
    assert {message.program for message in messages if message.type == "program_change"} <= set(programs)
    assert result.length < CLIP_SECONDS + 1


def test_tempo_is_varied_and_order_kept(music):
    seconds = {round(beginning(music, random.Random(seed))[0][1].onset, 4) for seed in range(5)}
    assert len(seconds) == 5 and all(0.4 <= each <= 0.625 for each in seconds)
    notes = [m for m in to_midi(music, [0], random.Random(0)).tracks[0] if m.type == "note_on" and m.channel == 0]
    assert [message.note for message in notes[:3]] == [72, 73, 74]


@pytest.mark.parametrize("font", [TIMGM6MB, MERLIN, None])
def test_sound_depends_on_the_generator_alone(music, font):
    sound = render(music, font, random.Random(3))
    assert sound.dtype == np.float32 and np.isfinite(sound).all() and 0.001 < np.abs(sound).max() < 2
    assert len(sound) == pytest.approx(RATE * CLIP_SECONDS, rel=0.05)
    np.testing.assert_array_equal(sound, render(music, font, random.Random(3)))
    assert not np.array_equal(sound, render(music, font, random.Random(4)))


def test_a_new_sound_has_the_pitch_of_its_note():
    for seed in range(5):
        tone = Timbre(np.random.default_rng(seed)).tone(440.0, 1.0)
        spectrum = np.abs(np.fft.rfft(tone))
        peaks = np.flatnonzero(spectrum > spectrum.max() / 2) * RATE / len(tone) / 440
        assert np.abs(peaks - peaks.round()).max() < 0.02


def test_training_and_judging_share_no_instrument():
    assert not set(INSTRUMENTS[TIMGM6MB]) & set(INSTRUMENTS[MERLIN])


@pytest.fixture
def data(music, tmp_path):
    """A tune as build.py leaves it."""
    path = tmp_path / "mtf/train/a.mtf"
    path.parent.mkdir(parents=True)
    path.write_text("\nkey_signature Dm 0\n".join(midi_to_mtf(to_midi(music, [0], random.Random(0))).split("\n", 1)))
    return tmp_path


@pytest.fixture
def lines(data):
    """Its lines."""
    facts = asdict(Facts(kind="reel", tonic="D", mode="minor", metre="4/4"))
    files = ["abc/train/a.abc", "raw/train/a.abc", "mtf/train/a.mtf"]
    names = save_forms(["N:canonical\nD m A5..C6|\n", "N:canonical\nD m A5..C6..E6|\n"], data / "notes", "a")
    return audio_lines(({"id": "a", "facts": facts, "files": {"": files}}, names), data)


def test_a_tune_is_heard_in_several_keys(lines, data):
    own, *others = lines
    assert own["filepaths"] == ["notes/0/a.abc", "notes/1/a.abc", "audio/train/a.npy", "audio/train/a~.npy"]
    assert len({line["id"] for line in others}) == KEYS - 1
    assert " in D minor" in own["analysis"]
    for line in others:
        score, _, audio, _ = line["filepaths"]
        semitones = int(line["id"].removeprefix("a@"))
        assert audio == f"audio/moved/a@{semitones:+d}.npy" and tune_of(audio) == "audio/train/a.npy"
        tonic = "C C# D Eb E F F# G G# A Bb B".split()[(2 + semitones) % 12]
        assert (data / score).read_text() == f"N:canonical\n{tonic:2}m A5..C6|\n"
        assert f" in {tonic.replace('b', ' flat').replace('#', ' sharp')} minor" in line["analysis"]


def test_features_lie_beside_the_scores(lines, data):
    names = [file for line in lines for file in line["filepaths"] if file.startswith("audio/")]
    assert hear(names, data, workers=1).done == 0  # what was not played
    assert play(names[:1], data, TIMGM6MB, workers=1).done == 1
    report = hear(names, data, workers=1)
    assert (report.done, report.exit_status) == (2 * KEYS, 0)
    features = [np.load(data / name) for name in names]
    assert all(each.shape[2] == SIZE and np.isfinite(each).all() for each in features)
    assert features[0].shape[:2] in ((1, 5), (1, 6), (1, 7)) and 2 <= features[1].shape[1] <= 7
    assert len({each.tobytes() for each in features}) == 2 * KEYS
    assert play(names[:1], data, TIMGM6MB, workers=1).skipped == 1
    assert hear(names, data, workers=1).skipped == 2 * KEYS
    (data / names[1]).unlink()
    hear(names, data, workers=1)
    np.testing.assert_array_equal(np.load(data / names[1]), features[1])


def test_copies_sound_as_their_tune_in_their_key(data):
    names = ["audio/train/a.npy", "audio/moved/a@+3.npy"]
    play(names[:1], data, TIMGM6MB, workers=1)
    hear(names, data, workers=1)
    tune, copy = (np.load(data / name)[0, :, BINS:] for name in names)
    follow = tune[:, : PITCH_CLASSES**2].reshape(-1, PITCH_CLASSES, PITCH_CLASSES)
    moved = np.roll(follow, (3, 3), axis=(1, 2)).reshape(len(tune), -1)
    np.testing.assert_allclose(copy[:, : PITCH_CLASSES**2], moved, atol=0.1)  # the lowest and highest levels go
    np.testing.assert_allclose(copy[:, 2 * PITCH_CLASSES**2 :], tune[:, 2 * PITCH_CLASSES**2 :], atol=0.05)


def test_a_spectrogram_is_transposed_and_stretched():
    levels = np.random.default_rng(0).normal(size=(2, BINS, 216)).astype(np.float32)
    np.testing.assert_array_equal(transposed(levels, 0), levels)
    np.testing.assert_array_equal(transposed(transposed(levels, 4), -4)[:, :-4], levels[:, :-4])
    np.testing.assert_allclose(stretched(levels, 1.0), levels, atol=1e-6)
    clicks = np.zeros((2, BINS, 216), np.float32)
    clicks[:, :, ::20] = 1
    longer = stretched(clicks, 1.5)
    assert longer.shape == (3, BINS, 216)
    assert np.diff(np.flatnonzero(longer[0, 0] > 0.5)).mean() == pytest.approx(30, abs=1)


def test_clips_are_drawn_by_their_ids(tmp_path):
    records = [{"id": str(number)} for number in range(400)]
    drawn = []
    for order in (records, records[::-1]):
        (tmp_path / "heldout.jsonl").write_text("".join(json.dumps(record) + "\n" for record in order))
        drawn.append([record["id"] for record in held_out_clips(tmp_path)])
    assert drawn[0] == drawn[1] and len(set(drawn[0])) == 300

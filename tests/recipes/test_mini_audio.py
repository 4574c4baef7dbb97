"""What mini learns to hear: pieces rendered by sound fonts, varied, and described."""

import json
import random
import re
from dataclasses import asdict

import mido
import numpy as np
import pytest

from clamplib.audio.spectral import BINS, PITCH_CLASSES, RATE, SIZE
from clamplib.formats.mtf import midi_to_mtf
from recipes.mini.build import held_out_clips
from recipes.mini.build_audio import KEYS, audio_lines, hear, moved_midi, play, stretched, transposed, tune_of
from recipes.mini.render import CLIP_SECONDS, DRUMS, INSTRUMENTS, MERLIN, TIMGM6MB, played, render
from recipes.mini.texts import Facts


@pytest.fixture
def midi() -> mido.MidiFile:
    """Forty seconds of quarter notes by two parts and drums, at 120."""
    piece = mido.MidiFile(ticks_per_beat=480)
    for channel, pitch in ((0, 72), (1, 48), (DRUMS, 38)):
        track = mido.MidiTrack()
        piece.tracks.append(track)
        track.append(mido.Message("program_change", channel=channel, program=13))
        for step in range(80):
            track.append(mido.Message("note_on", channel=channel, note=pitch + step % 5, velocity=90, time=0))
            track.append(mido.Message("note_off", channel=channel, note=pitch + step % 5, time=480))
    return piece


def test_each_part_gets_an_instrument_and_drums_none(midi):
    programs = [40, 73]
    result = played(midi, programs, random.Random(1))
    messages = [message for message in result.tracks[0] if not message.is_meta]
    assert {message.channel for message in messages} == {0, 1}
    assert {message.program for message in messages if message.type == "program_change"} <= set(programs)
    assert result.length < CLIP_SECONDS + 1


def test_tempo_is_varied_and_order_kept(midi):
    lengths = {round(played(midi, [0], random.Random(seed)).tracks[0][0].tempo) for seed in range(5)}
    assert len(lengths) == 5 and all(400_000 <= tempo <= 625_000 for tempo in lengths)
    notes = [message.note for message in played(midi, [0], random.Random(0)).tracks[0] if message.type == "note_on"]
    assert notes[:6:2] == [72, 73, 74]


@pytest.mark.parametrize("font", [TIMGM6MB, MERLIN])
def test_sound_depends_on_the_generator_alone(midi, font):
    sound = render(midi, font, random.Random(3))
    assert sound.dtype == np.float32 and np.isfinite(sound).all() and 0.001 < np.abs(sound).max() < 1
    assert len(sound) == pytest.approx(RATE * CLIP_SECONDS, rel=0.03)
    np.testing.assert_array_equal(sound, render(midi, font, random.Random(3)))
    assert not np.array_equal(sound, render(midi, font, random.Random(4)))


def test_training_and_judging_share_no_instrument():
    assert not set(INSTRUMENTS[TIMGM6MB]) & set(INSTRUMENTS[MERLIN])


@pytest.fixture
def data(midi, tmp_path):
    """A tune as build.py leaves it."""
    path = tmp_path / "mtf/train/a.mtf"
    path.parent.mkdir(parents=True)
    path.write_text("ticks_per_beat 480\nkey_signature Dm 0\n" + midi_to_mtf(midi).partition("\n")[2])
    return tmp_path


@pytest.fixture
def lines(data):
    """Its lines."""
    facts = asdict(Facts(kind="reel", tonic="D", mode="minor", metre="4/4"))
    files = ["abc/train/a.abc", "raw/train/a.abc", "mtf/train/a.mtf"]
    return list(audio_lines({"id": "a", "facts": facts, "files": {"": files}}, data))


def test_a_tune_is_heard_in_several_keys(lines, data, midi):
    own, *others = lines
    assert own["filepaths"] == ["abc/train/a.abc", "mtf/train/a.mtf", "audio/train/a.npy", "audio/train/a~.npy"]
    assert len({line["id"] for line in others}) == KEYS - 1
    assert " in D minor" in own["analysis"]
    first = int(re.search(r"note_on 0 0 (\d+)", (data / own["filepaths"][1]).read_text())[1])
    for line in others:
        score, audio, _ = line["filepaths"]
        semitones = int(line["id"].removeprefix("a@"))
        text = (data / score).read_text()
        assert audio == f"audio/moved/a@{semitones:+d}.npy" and tune_of(audio) == "audio/train/a.npy"
        assert int(re.search(r"note_on 0 0 (\d+)", text)[1]) == first + semitones
        tonic = "C C# D Eb E F F# G G# A Bb B".split()[(2 + semitones) % 12]
        assert f"key_signature {tonic}m" in text
        assert f" in {tonic.replace('b', ' flat').replace('#', ' sharp')} minor" in line["analysis"]


def test_moved_midi_keeps_all_but_the_pitches(midi):
    text = midi_to_mtf(midi)
    assert moved_midi(text, 0) == text
    up = moved_midi(text, 5)
    assert moved_midi(up, -5) == text and up != text
    assert re.findall(r"note_on \d+ 9 \d+", up) == re.findall(r"note_on \d+ 9 \d+", text)  # drums
    assert moved_midi(text, 60) is None


def test_features_lie_beside_the_scores(lines, data):
    names = [file for line in lines for file in line["filepaths"] if file.startswith("audio/")]
    assert hear(names, data, workers=1).done == 0  # what was not played
    assert play(names[:1], data, TIMGM6MB, workers=1).done == 1
    report = hear(names, data, workers=1)
    assert (report.done, report.exit_status) == (2 * KEYS, 0)
    features = [np.load(data / name) for name in names]
    assert all(each.shape[2] == SIZE and np.isfinite(each).all() for each in features)
    assert features[0].shape[:2] in ((1, 6), (1, 7)) and 3 <= features[1].shape[1] <= 7
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

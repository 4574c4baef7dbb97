"""What mini learns to hear: pieces rendered by sound fonts, varied, and described."""

import json
import random

import mido
import numpy as np
import pytest

from build import VARIANTS, audio_name, held_out_clips, varied_audio_names
from build_audio import play, vary
from clamplib.mtf import midi_to_mtf
from clamplib.spectral import RATE, SIZE, transpose
from render import CLIP_SECONDS, DRUMS, INSTRUMENTS, MERLIN, TIMGM6MB, played, render


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


def test_features_lie_beside_the_scores(midi, tmp_path):
    (tmp_path / "mtf/train").mkdir(parents=True)
    (tmp_path / "mtf/train/a.mtf").write_text(midi_to_mtf(midi))
    name = audio_name(["abc/train/a.abc", "mtf/train/a.mtf"])
    assert name == "audio/train/a.npy"
    report = play([name], tmp_path, TIMGM6MB, workers=1)
    assert (report.done, report.exit_status) == (1, 0)
    features = np.load(tmp_path / name)
    assert features.shape in ((1, 6, SIZE), (1, 7, SIZE)) and np.isfinite(features).all()
    assert play([name], tmp_path, TIMGM6MB, workers=1).skipped == 1


def test_copies_have_the_features_of_their_tune_in_their_key(midi, tmp_path):
    for folder, shift in (("train", 0), ("transposed", 3)):
        (tmp_path / "mtf" / folder).mkdir(parents=True)
        moved = mido.MidiFile(ticks_per_beat=480, tracks=[shifted(track, shift) for track in midi.tracks])
        (tmp_path / f"mtf/{folder}/a{'@E' if shift else ''}.mtf").write_text(midi_to_mtf(moved))
    tune, copy = (varied_audio_names([f"mtf/{name}.mtf"]) for name in ("train/a", "transposed/a@E"))
    assert tune == ["audio/train/a.npy", *(f"audio/train/a~{number}.npy" for number in range(1, VARIANTS + 1))]
    features = np.random.default_rng(0).random((1, 6, SIZE), np.float32)
    vary(copy, tmp_path)  # whose tune was not played
    assert not (tmp_path / copy[0]).exists()
    (tmp_path / "audio/train").mkdir(parents=True)
    np.save(tmp_path / tune[0], features)
    for names in (tune, copy):
        vary(names, tmp_path)
    np.testing.assert_array_equal(np.load(tmp_path / tune[0]), features)
    np.testing.assert_array_equal(np.load(tmp_path / copy[0]), transpose(features, 3))
    variants = [np.load(tmp_path / name) for name in tune[1:]]
    assert all(3 <= variant.shape[1] <= 6 and variant.shape[2] == SIZE for variant in variants)
    assert len({variant.tobytes() for variant in variants}) == VARIANTS
    vary(tune, tmp_path)
    np.testing.assert_array_equal(np.load(tmp_path / tune[1]), variants[0])


def shifted(track, semitones):
    moved = [m.copy(note=m.note + semitones) if m.type in ("note_on", "note_off") else m for m in track]
    return mido.MidiTrack(moved)


def test_clips_are_drawn_by_their_ids(tmp_path):
    records = [{"id": str(number)} for number in range(400)]
    drawn = []
    for order in (records, records[::-1]):
        (tmp_path / "heldout.jsonl").write_text("".join(json.dumps(record) + "\n" for record in order))
        drawn.append([record["id"] for record in held_out_clips(tmp_path)])
    assert drawn[0] == drawn[1] and len(set(drawn[0])) == 300

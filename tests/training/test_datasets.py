import numpy as np
import pytest
from training_helpers import ABC, write_jsonl

from clamplib.files import InputError
from clamplib.formats.patchilizer import M3Patchilizer
from clamplib.training.datasets import CLaMP3Dataset, M3Dataset
from clamplib.training.pieces import find_pieces, read_pieces


def make_dataset(pieces, tokenizer, **options):
    options = {"modality": "symbolic", "patchilizer": M3Patchilizer(), "audio_size": 8} | options
    return CLaMP3Dataset(pieces, tokenizer=tokenizer, **options)


@pytest.fixture
def pieces(folder):
    jsonl = write_jsonl(
        folder,
        {"id": "a", "filepaths": ["a.mtf", "a.abc"], "title": "A", "analysis": "word " * 300},
        {"id": "b", "filepaths": ["b.MTF"], "title": "A"},
        {"id": "long", "filepaths": ["long.abc"], "title": "A", "translations": {"title": "Ein A"}},
    )
    return read_pieces(jsonl, "symbolic")[0]


# ------------------------------------------------------------------------------------ M3


def test_m3_training_items_depend_on_the_epoch_alone(folder):
    dataset = M3Dataset(find_pieces([folder])[0], patchilizer=M3Patchilizer(), seed=3)
    again = dataset[5, 3]
    for name, value in dataset[5, 3].items():
        assert (value == again[name]).all()
    windows = {dataset[epoch, 3]["target_patches"].tobytes() for epoch in range(12)}
    assert len(windows) > 2


def test_m3_evaluation_items_are_whole(folder):
    dataset = M3Dataset(find_pieces([folder])[0], patchilizer=M3Patchilizer(), training=False)
    item = dataset[0, 3]
    assert item["target_patches"].shape == (512, 64)
    assert (item["target_patches"][0] == 1).all()
    assert (item["input_patches"] == item["target_patches"]).all()
    assert item["selected_indices"].sum() == 231


def test_m3_lengths_have_the_order_of_the_patches(folder):
    dataset = M3Dataset(find_pieces([folder])[0], patchilizer=M3Patchilizer(), training=False)
    lengths = [dataset.length(0, index) for index in (0, 1, 3)]
    assert lengths == sorted(lengths)
    assert lengths[-1] <= 512


# ------------------------------------------------------------------------------------ CLaMP 3


def test_evaluation_items(pieces, tiny_tokenizer):
    dataset = make_dataset(pieces, tiny_tokenizer, training=False, hide_header_ratio=1.0)
    patchilizer, (first, only_mtf, long) = M3Patchilizer(), [dataset[0, index] for index in range(3)]
    assert patchilizer.decode(first["music"][0]) == ABC.replace("L:1/8\n", "")  # the first .abc, all of it
    assert patchilizer.decode(only_mtf["music"][0]).startswith("ticks_per_beat")
    assert len(long["music"][0]) == 512
    assert (long["music"][0][0] == 1).all()
    tokens = tiny_tokenizer("word " * 299 + "word")["input_ids"]
    assert first["text"].tolist() == tokens[:128]


def test_training_items_draw_files_and_changes(pieces, tiny_tokenizer):
    dataset = make_dataset(pieces, tiny_tokenizer, hide_header_ratio=0.25)
    texts = [M3Patchilizer().decode(dataset[epoch, 0]["music"][0]) for epoch in range(400)]
    abc = [text for text in texts if not text.startswith("ticks")]
    assert len(abc) / 400 == pytest.approx(0.5, abs=0.1)
    assert sum("nm=" not in text for text in abc) / len(abc) == pytest.approx(0.9, abs=0.07)
    assert sum("K:" not in text for text in abc) / len(abc) == pytest.approx(0.25, abs=0.1)


def test_training_items_draw_texts(pieces, tiny_tokenizer):
    dataset = make_dataset(pieces, tiny_tokenizer)
    assert dataset[7, 1]["text"].tolist() == dataset[7, 1]["text"].tolist()
    assert len({dataset[epoch, 0]["text"].tobytes() for epoch in range(30)}) > 2
    assert max(len(dataset[epoch, 0]["text"]) for epoch in range(30)) == 128


def test_keys_tell_equal_texts_and_pieces(pieces, tiny_tokenizer):
    dataset = make_dataset(pieces, tiny_tokenizer, text_dropout=False)
    keys = [dataset[0, index]["keys"] for index in range(3)]
    assert keys[1][0] == keys[2][0]
    assert keys[0][0] != keys[1][0]
    assert len({key[1] for key in keys}) == 3


def test_pairs(pieces, tiny_tokenizer):
    dataset = make_dataset(pieces, tiny_tokenizer, pairs=True)
    mtf, abc = (M3Patchilizer().decode(music) for music in dataset[0, 0]["music"])
    assert mtf.startswith("ticks_per_beat")
    assert not abc.startswith("ticks_per_beat")
    assert len(dataset[0, 1]["music"]) == 2  # its one file twice


def test_a_recording_is_paired_with_a_score(folder, tiny_tokenizer):
    jsonl = write_jsonl(folder, {"id": "a", "filepaths": ["a.abc", "a.npy", "b.MTF"], "title": "A"})
    pieces, _ = read_pieces(jsonl, "audio", audio_size=8, with_scores=True)
    dataset = make_dataset(pieces, tiny_tokenizer, modality="audio", pairs=True)
    audio, score = dataset[0, 0]["music"]
    assert audio.dtype == np.float32
    assert audio.shape[1] == 8
    assert score.dtype == np.uint8
    starts = {bytes(dataset[epoch, 0]["music"][1][1][:14]) for epoch in range(20)}
    assert len(starts) == 2  # sometimes the ABC, sometimes the MTF
    assert dataset.length(0, 0) > len(audio)


# ------------------------------------------------------------------------------------ audio


def test_audio_items(folder, tiny_tokenizer):
    jsonl = write_jsonl(folder, {"id": "a", "filepaths": ["a.abc", "a.npy"], "title": "A"})
    pieces, _ = read_pieces(jsonl, "audio", audio_size=8)
    dataset = make_dataset(pieces, tiny_tokenizer, modality="audio", training=False)
    frames = dataset[0, 0]["music"][0]
    assert frames.shape == (128, 8)
    assert not frames[0].any()
    assert frames[1:].all()
    np.save(folder / "a.npy", np.ones((1, 300, 7), dtype=np.float32))
    with pytest.raises(InputError, match=r"a.npy: .*8"):
        dataset[0, 0]


def test_frames_that_are_not_finite_are_left_out(folder, tiny_tokenizer, caplog):
    features = np.arange(40, dtype=np.float32).reshape(1, 5, 8)
    features[0, 1, 3], features[0, 4, 0] = np.nan, np.inf
    np.save(folder / "a.npy", features)
    pieces, problems = read_pieces(write_jsonl(folder, {"filepaths": ["a.npy"], "title": "A"}), "audio", audio_size=8)
    assert problems == []
    frames = make_dataset(pieces, tiny_tokenizer, modality="audio")[0, 0]["music"][0]
    zeros = np.zeros((1, 8), dtype=np.float32)
    assert (frames == np.concatenate([zeros, features[0, [0, 2, 3]], zeros])).all()
    assert "a.npy: left out 2 of 5 frames" in caplog.text


def test_bytes_that_are_not_utf8_are_replaced(folder, caplog):
    (folder / "a.abc").write_bytes(b"K:C\r\nC\xff|")
    dataset = M3Dataset(find_pieces([folder])[0], patchilizer=M3Patchilizer(), training=False)
    assert M3Patchilizer().decode(dataset[0, 0]["target_patches"]).startswith("K:C\nC")
    assert "a.abc: expected UTF-8" in caplog.text

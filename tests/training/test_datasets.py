import json

import numpy as np
import pytest
import torch

from clamplib.files import InputError
from clamplib.formats.patchilizer import M3Patchilizer
from clamplib.training.batches import CollateCLaMP3, LengthSortedBatches, Stopwatch, collate_m3, make_loader, pad
from clamplib.training.datasets import CLaMP3Dataset, M3Dataset, read_frames
from clamplib.training.pieces import evaluation_lines, m3_files, read_pieces, split_items
from clamplib.training.shards import File

ABC = 'L:1/8\nM:4/4\nK:G\nV:1 treble nm="Violin"\n' + "[V:1]G2 B2 d2 g2|\n" * 3
MTF = "ticks_per_beat 480\nprogram_change 0 0 40\n" + "note_on 0 0 60 64\nnote_off 480 0 60 0\n" * 40


@pytest.fixture
def folder(tmp_path):
    """a.abc and a.mtf, b.mtf alone, long.abc, and a.npy."""
    (tmp_path / "a.abc").write_text(ABC)
    (tmp_path / "a.mtf").write_text(MTF)
    (tmp_path / "b.MTF").write_text(MTF)
    (tmp_path / "long.abc").write_text(ABC + "[V:1]G8|\n" * 700)
    np.save(tmp_path / "a.npy", np.ones((1, 300, 8), dtype=np.float32))
    return tmp_path


def write_jsonl(folder, *lines):
    path = folder / "pieces.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


def make_dataset(pieces, tokenizer, **options):
    options = {"modality": "symbolic", "patchilizer": M3Patchilizer(), "audio_size": 8} | options
    return CLaMP3Dataset(pieces, tokenizer=tokenizer, **options)


def test_lines_that_are_no_pieces(folder):
    jsonl = write_jsonl(
        folder,
        {"id": "a", "filepaths": ["a.abc", "gone.mtf"], "title": "A"},
        "",
        "   ",
        "{not json",
        "[1]",
        {"id": "c", "filepaths": ["gone.abc"], "title": "C"},
        {"id": "d", "filepaths": ["a.npy"], "title": "D"},
        {"id": "e", "filepaths": None, "title": "E"},
        {"id": "f", "filepaths": ["b.MTF"], "title": None, "tags": [None, ""]},
        {"filepaths": ["b.MTF"], "analysis": "F"},
    )
    (folder / "empty.abc").write_text("")
    with open(jsonl, "ab") as lines:
        lines.write(b'\n{"id": "g", "title": "\xff"}\n{"id": "h", "filepaths": ["empty.abc"], "title": "H"}')
    pieces, problems = read_pieces(jsonl, "symbolic")
    assert [(piece["id"], [file.path.name for file in piece["files"]]) for piece in pieces] == [
        ("a", ["a.abc"]),
        ("line 10", ["b.MTF"]),
    ]
    said = "\n".join(problems)
    for number, words in {
        1: "gone.mtf",
        4: "JSON",
        5: "list",
        6: "gone.abc",
        7: "a.npy",
        8: "None",
        9: "text",
    }.items():
        assert any(f"line {number}: " in problem and words in problem for problem in problems), (number, said)
    assert "line 11: " in said and "line 12: " in said and "empty file" in said
    assert len(problems) == 9


def test_jsonl_without_pieces(folder):
    with pytest.raises(InputError, match="pieces.jsonl: expected pieces .* line 1: .*gone.abc"):
        read_pieces(write_jsonl(folder, {"filepaths": ["gone.abc"], "title": "x"}), "symbolic")


def test_m3_files(folder):
    (folder / "sub").mkdir()
    (folder / "sub/a.abc").write_text("")
    pieces, problems = m3_files([folder])
    assert [(piece["id"], piece["file"].path.name) for piece in pieces] == [
        ("a", "a.abc"),
        ("a", "a.mtf"),
        ("b", "b.MTF"),
        ("long", "long.abc"),
    ]
    assert len(problems) == 1 and "sub/a.abc" in problems[0]


def test_split_keeps_a_piece_on_one_side():
    items = [{"id": str(number % 50)} for number in range(100)]
    train, held_out = split_items(items, 0.1, seed=1)
    assert len(held_out) == 10 and len(train) == 90
    assert not {item["id"] for item in train} & {item["id"] for item in held_out}
    assert split_items(items, 0.1, seed=1) == (train, held_out) != split_items(items, 0.1, seed=2)
    assert [len(side) for side in split_items(items[:2], 0.01, seed=1)] == [1, 1]
    with pytest.raises(InputError, match="hold out 0.01 of 1 pieces"):
        split_items(items[:1], 0.01, seed=1)


def test_m3_items(folder):
    pieces, _ = m3_files([folder])
    training = M3Dataset(pieces, patchilizer=M3Patchilizer(), seed=3)
    again = training[5, 3]
    for name, value in training[5, 3].items():
        assert (value == again[name]).all()
    heads = {training[epoch, 3]["target_patches"].tobytes() for epoch in range(12)}
    assert len(heads) > 2  # windows
    evaluation = M3Dataset(pieces, patchilizer=M3Patchilizer(), training=False)
    item = evaluation[0, 3]
    assert item["target_patches"].shape == (512, 64) and (item["target_patches"][0] == 1).all()
    assert (item["input_patches"] == item["target_patches"]).all()
    assert item["selected_indices"].sum() == 231


def test_m3_batch(folder):
    pieces, _ = m3_files([folder])
    dataset = M3Dataset(pieces, patchilizer=M3Patchilizer())
    items = [dataset[0, 0], dataset[0, 1]]
    batch = collate_m3(items)
    longest = max(len(item["input_patches"]) for item in items)
    assert batch["input_patches"].shape == batch["target_patches"].shape == (2, longest, 64)
    assert batch["input_patches"].dtype == torch.uint8
    assert batch["input_masks"].sum(1).tolist() == [len(item["input_patches"]) for item in items]
    assert not batch["selected_indices"][batch["input_masks"] == 0].any()


def test_padding():
    padded, mask = pad([np.array([5, 6]), np.array([7])], value=1)
    assert padded.tolist() == [[5, 6], [7, 1]] and mask.tolist() == [[1, 1], [1, 0]]


def test_evaluation_text():
    assert evaluation_lines({"analysis": "In G\nslow", "title": "A"}) == ["In G", "slow"]
    assert evaluation_lines({"analysis": None, "title": "A", "id": "x", "filepaths": ["y"]}) == ["A"]
    assert evaluation_lines({"translations": [{"title": "Ein A"}]}) == ["Ein A"]
    assert evaluation_lines({"id": "x", "language": "English"}) == []


@pytest.fixture
def pieces(folder):
    jsonl = write_jsonl(
        folder,
        {"id": "a", "filepaths": ["a.mtf", "a.abc"], "title": "A", "analysis": "word " * 300},
        {"id": "b", "filepaths": ["b.MTF"], "title": "A"},
        {"id": "long", "filepaths": ["long.abc"], "title": "A", "translations": {"title": "Ein A"}},
    )
    return read_pieces(jsonl, "symbolic")[0]


def test_evaluation_items(pieces, tiny_tokenizer):
    dataset = make_dataset(pieces, tiny_tokenizer, training=False, hide_header_ratio=1.0)
    patchilizer, (first, only_mtf, long) = M3Patchilizer(), [dataset[0, index] for index in range(3)]
    assert patchilizer.decode(first["music"][0]) == ABC.replace("L:1/8\n", "")  # the first .abc, all of it
    assert patchilizer.decode(only_mtf["music"][0]).startswith("ticks_per_beat")
    assert len(long["music"][0]) == 512 and (long["music"][0][0] == 1).all()
    tokens = tiny_tokenizer("word " * 299 + "word")["input_ids"]
    assert first["text"].tolist() == tokens[:128]


def test_training_items(pieces, tiny_tokenizer):
    dataset = make_dataset(pieces, tiny_tokenizer, hide_header_ratio=0.25)
    texts = [M3Patchilizer().decode(dataset[epoch, 0]["music"][0]) for epoch in range(400)]
    abc = [text for text in texts if not text.startswith("ticks")]
    assert len(abc) / 400 == pytest.approx(0.5, abs=0.1)
    assert sum("nm=" not in text for text in abc) / len(abc) == pytest.approx(0.9, abs=0.07)
    assert sum("K:" not in text for text in abc) / len(abc) == pytest.approx(0.25, abs=0.1)
    assert dataset[7, 1]["text"].tolist() == dataset[7, 1]["text"].tolist()
    assert len({dataset[epoch, 0]["text"].tobytes() for epoch in range(30)}) > 2
    assert max(len(dataset[epoch, 0]["text"]) for epoch in range(30)) == 128


def test_keys_tell_equal_texts_and_pieces(pieces, tiny_tokenizer):
    dataset = make_dataset(pieces, tiny_tokenizer, text_dropout=False)
    keys = [dataset[0, index]["keys"] for index in range(3)]
    assert keys[1][0] == keys[2][0] != keys[0][0]
    assert len({key[1] for key in keys}) == 3


def test_pairs(pieces, tiny_tokenizer):
    dataset = make_dataset(pieces, tiny_tokenizer, pairs=True)
    mtf, abc = (M3Patchilizer().decode(music) for music in dataset[0, 0]["music"])
    assert mtf.startswith("ticks_per_beat") and not abc.startswith("ticks_per_beat")
    assert len(dataset[0, 1]["music"]) == 2  # its one file twice
    batch = CollateCLaMP3(1)([dataset[0, 0], dataset[0, 1]])
    assert [inputs.shape[0] for inputs, _ in batch["music"]] == [2, 2]
    assert batch["keys"].shape == (2, 2) and batch["indices"].tolist() == [0, 1]


def test_a_recording_is_paired_with_a_score(folder, tiny_tokenizer):
    both = {"id": "a", "filepaths": ["a.abc", "a.npy", "b.MTF"], "title": "A"}
    jsonl = write_jsonl(folder, both, {"id": "b", "filepaths": ["a.npy"], "title": "B"})
    pieces, problems = read_pieces(jsonl, "audio", audio_size=8, with_scores=True)
    assert len(pieces) == 1 and "expected .abc or .mtf files" in problems[0]
    dataset = make_dataset(pieces, tiny_tokenizer, modality="audio", pairs=True)
    audio, score = dataset[0, 0]["music"]
    assert audio.dtype == np.float32 and audio.shape[1] == 8 and score.dtype == np.uint8
    starts = {bytes(dataset[epoch, 0]["music"][1][1][:14]) for epoch in range(20)}
    assert len(starts) == 2  # now the ABC, now the MTF
    assert dataset.length(0, 0) > len(audio)


def test_audio_items(folder, tiny_tokenizer):
    jsonl = write_jsonl(folder, {"id": "a", "filepaths": ["a.abc", "a.npy"], "title": "A"})
    pieces, _ = read_pieces(jsonl, "audio", audio_size=8)
    dataset = make_dataset(pieces, tiny_tokenizer, modality="audio", training=False)
    frames = dataset[0, 0]["music"][0]
    assert frames.shape == (128, 8) and not frames[0].any() and frames[1:].all()
    np.save(folder / "a.npy", np.ones((1, 300, 7), dtype=np.float32))
    with pytest.raises(InputError, match=r"a.npy: .*8"):
        dataset[0, 0]


def test_arrays_that_are_no_features_are_found_before_training(folder):
    """By their headers alone, wherever reading them would fail."""
    ones = np.ones((1, 5, 8), dtype=np.float32)
    whole = (folder / "a.npy").read_bytes()
    arrays = {
        "width": ones[..., :7],
        "states": np.ones((13, 5, 8)),
        "nothing": ones[:, :0],
        "scalar": np.float32(1),
        "words": np.array(["a"] * 8),
        "objects": np.array([{}] * 8),
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array, allow_pickle=name == "objects")
    others = {"cut": whole[:-1], "header": whole[:50], "text": b"no numbers", "word": b"\x93NUMPY\x07\x00" * 9}
    for name, data in others.items():
        (folder / f"{name}.npy").write_bytes(data)
    names = [*arrays, *others]
    jsonl = write_jsonl(
        folder,
        *({"id": name, "filepaths": [f"{name}.npy", "a.npy"], "title": name} for name in names),
        {"id": "alone", "filepaths": ["width.npy"], "title": "it has no other file"},
    )
    pieces, problems = read_pieces(jsonl, "audio", audio_size=8)
    assert [[file.path.name for file in piece["files"]] for piece in pieces] == [["a.npy"]] * len(names)
    assert len(problems) == len(names) + 1
    said = ["[1, 5, 7]", "--mean_features", "[1, 0, 8]", "[]", "dtype <U1", "dtype object", f"got {len(whole) - 1}"]
    for name, problem, words in zip(names, problems, said + ["numbers"] * 3, strict=False):
        assert f"{name}.npy: " in problem and words in problem
        with pytest.raises(InputError, match=f"{name}.npy: "):
            read_frames(File(folder / f"{name}.npy", 0), 8)


@pytest.mark.parametrize(("version", "dtype"), [((1, 0), ">f8"), ((2, 0), "<i2")])
def test_headers_of_other_makers(folder, version, dtype):
    with open(folder / "other.npy", "wb") as file:
        np.lib.format.write_array(file, np.asfortranarray(np.ones((5, 8), dtype)), version=version)
    jsonl = write_jsonl(folder, {"filepaths": ["other.npy"], "title": "A"})
    (piece,), problems = read_pieces(jsonl, "audio", audio_size=8)
    assert not problems and read_frames(piece["files"][0], 8).sum() == 40


def test_frames_that_are_not_finite_are_left_out(folder, tiny_tokenizer, caplog):
    features = np.arange(40, dtype=np.float32).reshape(1, 5, 8)
    features[0, 1, 3], features[0, 4, 0] = np.nan, np.inf
    np.save(folder / "a.npy", features)
    pieces, problems = read_pieces(write_jsonl(folder, {"filepaths": ["a.npy"], "title": "A"}), "audio", audio_size=8)
    assert not problems
    frames = make_dataset(pieces, tiny_tokenizer, modality="audio")[0, 0]["music"][0]
    zeros = np.zeros((1, 8), dtype=np.float32)
    assert (frames == np.concatenate([zeros, features[0, [0, 2, 3]], zeros])).all()
    assert "a.npy: left out 2 of 5 frames" in caplog.text


class Lengths:
    """A dataset of which only the lengths matter."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def length(self, epoch, index):
        return (index * 7919 + epoch) % 1000

    def __getitem__(self, item):
        return item


@pytest.mark.parametrize(
    ("count", "batch", "world"), [(1, 4, 1), (1, 4, 2), (7, 2, 3), (100, 8, 2), (101, 4, 4), (5, 1, 4)]
)
@pytest.mark.parametrize("training", [True, False])
def test_every_item_once(count, batch, world, training):
    samplers = [
        LengthSortedBatches(Lengths(count), batch, training=training, rank=rank, world_size=world)
        for rank in range(world)
    ]
    shares = [list(sampler) for sampler in samplers]
    items = sorted(index for share in shares for step in share for _, index in step)
    assert sorted(set(items)) == list(range(count))
    assert all(len(step) <= batch for share in shares for step in share)
    if training:
        assert len({len(share) for share in shares}) == 1  # as many steps on every rank, none empty
        assert all(share and all(share) for share in shares)
    if not training or count >= world * batch:
        sizes = [len(step) for step in samplers[0].batches()]
        assert max(sizes) - min(sizes) <= 1
        assert len(items) == count or min(sizes) < world


def test_order_of_batches():
    def order(epoch, **options):
        sampler = LengthSortedBatches(Lengths(960), 8, **options)
        sampler.epoch = epoch
        return sampler.batches()

    assert order(0) == order(0) != order(1) and order(0) != order(0, seed=1)

    def spread(batches):
        lengths = [[Lengths(0).length(0, index) for index in batch] for batch in batches]
        return np.mean([max(batch) - min(batch) for batch in lengths])

    assert spread(order(0)) < spread(order(0, chunk_batches=1)) / 5
    means = [np.mean([Lengths(0).length(0, index) for index in batch]) for batch in order(0)]
    assert means != sorted(means)


def test_an_epoch_begun_in_its_middle():
    whole, rest = (LengthSortedBatches(Lengths(50), 8) for _ in range(2))
    rest.first_step = 3
    assert list(rest) == list(whole)[3:] and len(rest) == len(list(rest))


def test_items_do_not_depend_on_workers(pieces, tiny_tokenizer):
    def epoch(workers):
        dataset = make_dataset(pieces, tiny_tokenizer)
        loader = make_loader(dataset, 2, CollateCLaMP3(1), training=True, num_workers=workers)
        return [(batch["text_inputs"].tolist(), batch["music"][0][0].tolist()) for batch in loader]

    assert epoch(0) == epoch(2)


def test_time_spent_waiting(monkeypatch):
    now = 0.0
    monkeypatch.setattr("clamplib.training.batches.time.monotonic", lambda: now)

    def batches():
        nonlocal now
        for number in range(3):
            now += 1
            yield number

    stopwatch, steps = Stopwatch(), []
    for number in stopwatch.waits(batches()):
        now += 4
        steps.append(number)
    now += 5
    assert steps == [0, 1, 2] and stopwatch.share() == 3 / 20

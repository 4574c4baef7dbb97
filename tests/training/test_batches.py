import numpy as np
import pytest
import torch
from training_helpers import write_jsonl

from clamplib.formats.patchilizer import M3Patchilizer
from clamplib.models.encoders import pad
from clamplib.training.batches import CollateCLaMP3, LengthSortedBatches, Stopwatch, collate_m3, make_loader
from clamplib.training.datasets import CLaMP3Dataset, M3Dataset
from clamplib.training.pieces import find_pieces, read_pieces


@pytest.fixture
def dataset(folder, tiny_tokenizer):
    """Three pieces; each item has two files, of a piece with one file that one twice."""
    jsonl = write_jsonl(
        folder,
        {"id": "a", "filepaths": ["a.mtf", "a.abc"], "title": "A", "analysis": "word " * 300},
        {"id": "b", "filepaths": ["b.MTF"], "title": "A"},
        {"id": "long", "filepaths": ["long.abc"], "title": "A", "translations": {"title": "Ein A"}},
    )
    pieces, _ = read_pieces(jsonl, "symbolic")
    return CLaMP3Dataset(pieces, modality="symbolic", tokenizer=tiny_tokenizer, patchilizer=M3Patchilizer(), pairs=True)


def test_padding():
    padded, mask = pad([np.array([5, 6]), np.array([7])], value=1)
    assert padded.tolist() == [[5, 6], [7, 1]]
    assert mask.tolist() == [[1, 1], [1, 0]]


def test_m3_batch(folder):
    dataset = M3Dataset(find_pieces([folder])[0], patchilizer=M3Patchilizer())
    items = [dataset[0, 0], dataset[0, 1]]
    batch = collate_m3(items)
    longest = max(len(item["input_patches"]) for item in items)
    assert batch["input_patches"].shape == batch["target_patches"].shape == (2, longest, 64)
    assert batch["input_patches"].dtype == torch.uint8
    assert batch["input_masks"].sum(1).tolist() == [len(item["input_patches"]) for item in items]
    assert not batch["selected_indices"][batch["input_masks"] == 0].any()


def test_clamp3_batch(dataset):
    items = [dataset[0, 0], dataset[0, 1]]
    batch = CollateCLaMP3(1)(items)
    lengths = [len(item["text"]) for item in items]
    assert batch["text_inputs"].shape == (2, max(lengths))
    assert batch["text_masks"].sum(1).tolist() == lengths
    assert (batch["text_inputs"][batch["text_masks"] == 0] == 1).all()
    assert [len(inputs) for inputs, _ in batch["music"]] == [2, 2]
    for place, (_, masks) in enumerate(batch["music"]):
        assert masks.sum(1).tolist() == [len(item["music"][place]) for item in items]
    assert batch["keys"].tolist() == [item["keys"] for item in items]
    assert batch["indices"].tolist() == [0, 1]


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
        assert len({len(share) for share in shares}) == 1  # as many steps on every rank
        assert all(share and all(share) for share in shares)  # none of them empty
    if not training or count >= world * batch:
        sizes = [len(step) for step in samplers[0].batches()]
        assert max(sizes) - min(sizes) <= 1
        assert len(items) == count or min(sizes) < world


def batches_of(epoch, **options):
    sampler = LengthSortedBatches(Lengths(960), 8, **options)
    sampler.epoch = epoch
    return sampler.batches()


def length(index):
    return Lengths(0).length(0, index)


def test_the_order_is_drawn_from_seed_and_epoch():
    assert batches_of(0) == batches_of(0)
    assert batches_of(0) != batches_of(1)
    assert batches_of(0) != batches_of(0, seed=1)


def test_items_of_a_batch_have_similar_lengths():
    def spread(batches):
        lengths = [[length(index) for index in batch] for batch in batches]
        return np.mean([max(batch) - min(batch) for batch in lengths])

    assert spread(batches_of(0)) < spread(batches_of(0, chunk_batches=1)) / 5


def test_batches_of_all_lengths_are_shuffled():
    means = [np.mean([length(index) for index in batch]) for batch in batches_of(0)]
    assert means != sorted(means)


def test_an_epoch_begun_in_its_middle():
    whole, rest = (LengthSortedBatches(Lengths(50), 8) for _ in range(2))
    rest.first_step = 3
    assert list(rest) == list(whole)[3:]
    assert len(rest) == len(list(rest))


def test_items_do_not_depend_on_workers(dataset):
    def epoch(workers):
        loader = make_loader(dataset, 2, CollateCLaMP3(1), num_workers=workers)
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
    for number in stopwatch.watch(batches()):
        now += 4
        steps.append(number)
    now += 5
    assert steps == [0, 1, 2]
    assert stopwatch.share() == 3 / 20

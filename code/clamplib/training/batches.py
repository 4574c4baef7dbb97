"""Batches of items of similar length, padded to their longest, for one process or several.

An epoch's order is drawn from (seed, epoch): the items are shuffled, sorted by length within chunks of some
batches, cut into batches, and the batches shuffled. Every item comes exactly once an epoch: where the items
do not fill the last batch, all batches are a little smaller instead. Each process takes its share of every
batch, so that all take the same number of steps; only where a training batch has fewer items than there are
processes do those left without one repeat an item of it.
"""

import math
import random
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from clamplib.embedding.sequences import pad
from clamplib.models import distributed
from clamplib.training.datasets import CLaMP3Dataset, M3Dataset


class LengthSortedBatches(Sampler[list[tuple[int, int]]]):
    """Lists of (epoch, index); set `epoch`, and `first_step` to begin in its middle.

    Without `training` the order is one and the same: all items sorted by length.
    """

    def __init__(
        self,
        dataset: M3Dataset | CLaMP3Dataset,
        batch_size: int,
        *,
        training: bool = True,
        chunk_batches: int = 20,
        seed: int = 42,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.dataset, self.training, self.chunk_batches, self.seed = dataset, training, chunk_batches, seed
        self.rank, self.world_size = rank, world_size
        self.count = math.ceil(len(dataset) / (batch_size * world_size))
        self.epoch = self.first_step = 0
        self._batches: tuple[int, list[list[int]]] | None = None  # of which epoch, and the batches

    def __len__(self) -> int:
        return self.count - self.first_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in self.batches()[self.first_step :]:
            share = batch[self.rank :: self.world_size]
            if self.training:
                share = share or [batch[self.rank % len(batch)]]
            if share:
                yield [(self.epoch, index) for index in share]

    def batches(self) -> list[list[int]]:
        """The epoch's batches of all processes together, as indices."""
        if self._batches is None or self._batches[0] != self.epoch:
            self._batches = self.epoch, self._draw_batches()
        return self._batches[1]

    def _draw_batches(self) -> list[list[int]]:
        rng = random.Random(f"{self.seed} {self.epoch}")
        order = list(range(len(self.dataset)))
        if self.training:
            rng.shuffle(order)
        lengths = {index: self.dataset.length(self.epoch, index) for index in order}
        bounds = np.linspace(0, len(order), self.count + 1).astype(int).tolist()
        chunk = self.chunk_batches if self.training else self.count
        for first in range(0, self.count, chunk) if chunk > 1 else ():
            start, end = bounds[first], bounds[min(first + chunk, self.count)]
            order[start:end] = sorted(order[start:end], key=lengths.__getitem__)
        batches = [order[start:end] for start, end in zip(bounds[:-1], bounds[1:], strict=True)]
        if self.training:
            rng.shuffle(batches)
        return batches


def collate_m3(items: Sequence[dict]) -> dict[str, torch.Tensor]:
    """Items of an M3Dataset -> arguments of M3Model: patches uint8 [B, L, S], masks and selection [B, L]."""
    names = ("input_patches", "selected_indices", "target_patches")
    padded = {name: pad([item[name] for item in items]) for name in names}
    batch = {name: values for name, (values, _) in padded.items()}
    return {**batch, "input_masks": padded["input_patches"][1]}


class CollateCLaMP3:
    """Items of a CLaMP3Dataset -> text inputs and masks [B, T], one or two (inputs, masks) of music, keys."""

    def __init__(self, pad_token_id: int):
        self.pad_token_id = pad_token_id

    def __call__(self, items: Sequence[dict]) -> dict:
        text_inputs, text_masks = pad([item["text"] for item in items], self.pad_token_id)
        return {
            "text_inputs": text_inputs,
            "text_masks": text_masks,
            "music": [pad(pieces) for pieces in zip(*(item["music"] for item in items), strict=True)],
            "keys": torch.tensor([item["keys"] for item in items]),
            "indices": torch.tensor([item["index"] for item in items]),
        }


def make_loader(
    dataset: M3Dataset | CLaMP3Dataset,
    batch_size: int,
    collate: Callable,
    *,
    training: bool,
    chunk_batches: int = 20,
    seed: int = 42,
    num_workers: int = 0,
) -> DataLoader:
    """This process's loader of the dataset; its `batch_sampler` is a LengthSortedBatches."""
    sampler = LengthSortedBatches(
        dataset,
        batch_size,
        training=training,
        chunk_batches=chunk_batches,
        seed=seed,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_leave_signals_to_the_training,
    )


def _leave_signals_to_the_training(worker: int) -> None:
    """A signal to the process group must not end the workers before the training has saved."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class Stopwatch:
    """Since it was made: which share of the time was spent waiting for batches.

    A GPU may still be busy with the step before while a batch is waited for, so of its time the share is the most
    that it can have been idle.
    """

    def __init__(self) -> None:
        self._started, self._waited = time.monotonic(), 0.0

    def waits(self, batches: Iterable) -> Iterator:
        """The batches, each waited for."""
        batches = iter(batches)
        while True:
            asked = time.monotonic()
            batch = next(batches, None)
            self._waited += time.monotonic() - asked
            if batch is None:
                return
            yield batch

    def share(self) -> float:
        """Between 0 and 1."""
        return self._waited / max(time.monotonic() - self._started, 1e-9)

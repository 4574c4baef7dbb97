"""Batches of items of similar length, padded to the longest, for one process or several.

The order of an epoch is drawn from (seed, epoch): items are shuffled, sorted by length within chunks of some batches
and cut into batches, and the batches are shuffled. Every item occurs exactly once per epoch: where the items do not
fill the last batch, all batches are a little smaller. Each process takes its share of every batch, so that all take
the same number of steps. Only where a training batch has fewer items than there are processes do some repeat an item.
"""

import math
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from clamplib.files import InputError
from clamplib.models import distributed
from clamplib.models.encoders import pad
from clamplib.processes import watch_parent
from clamplib.training.datasets import CLaMP3Dataset, CLaMP3Item, M3Dataset, M3Item

Batch = TypeVar("Batch")
ENDING_SECONDS = 5.0  # after which workers that have not ended are killed


class LengthSortedBatches(Sampler[list[tuple[int, int]]]):
    """Gives the batches of an epoch as lists of (epoch, index).

    Attributes:
        epoch: the epoch whose batches come next, counted from 0; set it before each.
        first_step: how many of its batches to skip, to resume in the middle of an epoch.
        count: the number of batches per epoch.

    Args:
        dataset: has a length, and a method `length(epoch, index)`.
        batch_size: items per process and batch, at most.
        training: without it, all epochs have the same order: all items sorted by length.
        chunk_batches: how many shuffled batches are sorted by length together; with 1 lengths stay mixed.
        seed: of the order.
        rank: of this process.
        world_size: the number of processes.
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
        self.dataset = dataset
        self.training = training
        self.chunk_batches = chunk_batches
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.count = math.ceil(len(dataset) / (batch_size * world_size))
        self.epoch = 0
        self.first_step = 0
        self._drawn: tuple[int, list[list[int]]] | None = None  # an epoch and its batches

    def __len__(self) -> int:
        return self.count - self.first_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in self.batches()[self.first_step :]:
            share = batch[self.rank :: self.world_size]
            if self.training and not share:
                share = [batch[self.rank % len(batch)]]
            if share:
                yield [(self.epoch, index) for index in share]

    def batches(self) -> list[list[int]]:
        """Returns the epoch's batches of all processes together, as indices."""
        if self._drawn is None or self._drawn[0] != self.epoch:
            self._drawn = self.epoch, self._draw_batches()
        return self._drawn[1]

    def _draw_batches(self) -> list[list[int]]:
        rng = random.Random(f"{self.seed} {self.epoch}")
        order = list(range(len(self.dataset)))
        if self.training:
            rng.shuffle(order)
        bounds = np.linspace(0, len(order), self.count + 1).astype(int).tolist()  # of the batches
        chunk = self.chunk_batches if self.training else self.count
        if chunk > 1:
            lengths = {index: self.dataset.length(self.epoch, index) for index in order}
            for first in range(0, self.count, chunk):
                start = bounds[first]
                end = bounds[min(first + chunk, self.count)]
                order[start:end] = sorted(order[start:end], key=lengths.__getitem__)
        batches = [order[start:end] for start, end in zip(bounds[:-1], bounds[1:], strict=True)]
        if self.training:
            rng.shuffle(batches)
        return batches


def collate_m3(items: Sequence[M3Item]) -> dict[str, torch.Tensor]:
    """Pads items of an M3Dataset to the arguments of M3Model.

    Returns:
        `input_patches` and `target_patches` uint8 [B, L, S], `selected_indices` bool [B, L], and `input_masks` [B, L].
    """
    input_patches, input_masks = pad([item["input_patches"] for item in items])
    selected_indices, _ = pad([item["selected_indices"] for item in items])
    target_patches, _ = pad([item["target_patches"] for item in items])
    return {
        "input_patches": input_patches,
        "input_masks": input_masks,
        "selected_indices": selected_indices,
        "target_patches": target_patches,
    }


class CollateCLaMP3:
    """Pads items of a CLaMP3Dataset.

    Args:
        pad_token_id: the tokenizer's, to pad texts with.
    """

    def __init__(self, pad_token_id: int):
        self.pad_token_id = pad_token_id

    def __call__(self, items: Sequence[CLaMP3Item]) -> dict:
        """Makes a batch.

        Returns:
            `text_inputs` and `text_masks` [B, T]; `music`, one or two pairs of inputs [B, L, ...] and masks [B, L];
            `keys` [B, 2] and `indices` [B].
        """
        text_inputs, text_masks = pad([item["text"] for item in items], self.pad_token_id)
        files = zip(*(item["music"] for item in items), strict=True)  # the first of all items, then the second
        return {
            "text_inputs": text_inputs,
            "text_masks": text_masks,
            "music": [pad(arrays) for arrays in files],
            "keys": torch.tensor([item["keys"] for item in items]),
            "indices": torch.tensor([item["index"] for item in items]),
        }


class BatchLoader(DataLoader):
    """A DataLoader that raises the errors of its workers as they are, and that ends its workers when it is closed."""

    def __iter__(self) -> Iterator[dict]:
        for batch in super().__iter__():
            if isinstance(batch, Exception):
                raise batch
            yield batch

    def close(self) -> None:
        """Ends the workers within seconds, also those that are stuck.

        Call this after the last epoch and after an error. At the exit of Python it is too late: multiprocessing sends
        SIGTERM to the workers, which ignore it, and waits for them.
        """
        iterator, self._iterator = self._iterator, None
        if iterator is None:
            return
        # Torch has no public way to end persistent workers. Its own way waits for one after the other, and without
        # end if one was killed while it held a lock.
        try:
            ending = threading.Thread(target=iterator._shutdown_workers, daemon=True)
            ending.start()
            ending.join(ENDING_SECONDS)
        finally:
            if stuck := [worker for worker in iterator._workers if worker.is_alive()]:
                handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's raises an error for a killed worker
                for worker in stuck:
                    worker.kill()
                ending.join(ENDING_SECONDS)  # two threads that wait for one process take its end from each other
                for worker in stuck:
                    worker.join()
                signal.signal(signal.SIGCHLD, handler)


class _Batches(Dataset):
    """Gives batches of a dataset's items, or the error of an item that cannot be read.

    Torch would give an error of a worker as a page of traceback.
    """

    def __init__(self, dataset: M3Dataset | CLaMP3Dataset, collate: Callable[[list], dict]):
        self.dataset = dataset
        self.collate = collate

    def __getitems__(self, items: list[tuple[int, int]]) -> dict | Exception:
        try:
            return self.collate([self.dataset[item] for item in items])
        except InputError as error:
            return error


def _as_it_is(batch: dict | Exception) -> dict | Exception:
    return batch


def make_loader(
    dataset: M3Dataset | CLaMP3Dataset,
    batch_size: int,
    collate: Callable[[list], dict],
    *,
    chunk_batches: int = 20,
    seed: int = 42,
    num_workers: int = 0,
) -> BatchLoader:
    """Makes this process's loader of a dataset; its `batch_sampler` is a LengthSortedBatches.

    Args:
        dataset: to train or to evaluate on, as its `training` says.
        batch_size: items per process and batch, at most.
        collate: makes a batch of a list of items.
        chunk_batches: as for LengthSortedBatches.
        seed: of the order.
        num_workers: processes that prepare batches; with 0 this process does.
    """
    sampler = LengthSortedBatches(
        dataset,
        batch_size,
        training=dataset.training,
        chunk_batches=chunk_batches,
        seed=seed,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )
    return BatchLoader(
        _Batches(dataset, collate),
        batch_sampler=sampler,
        collate_fn=_as_it_is,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=partial(_start_worker, os.getpid()),
    )


def _start_worker(parent: int, worker: int) -> None:
    """A signal to the process group must not end a worker before the training has saved its state."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # Torch ends a worker after its parent too, but not while it waits to hand over a batch.
    watch_parent(parent, partial(os._exit, 1))


class Stopwatch:
    """Measures the share of the time since it was made that was spent waiting for batches.

    A GPU may still be busy with the previous step while the next batch is awaited, so the share is an upper bound of
    the time that it was idle.
    """

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._waited = 0.0

    def watch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yields the batches, and counts the time that each takes to arrive."""
        batches = iter(batches)
        while True:
            asked = time.monotonic()
            batch = next(batches, None)
            self._waited += time.monotonic() - asked
            if batch is None:
                return
            yield batch

    def share(self) -> float:
        """Returns the share so far, between 0 and 1."""
        return self._waited / max(time.monotonic() - self._started, 1e-9)

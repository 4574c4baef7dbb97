"""Recordings to features, by a model that reads windows of sound: decoded ahead, equal windows encoded together.

A front end has two functions: `read` cuts a recording into windows, and `encode` computes the features of a batch of
equal ones. Those of MERT are in `mert`. Windows of different length never share a batch, since padding
would change what a model that normalizes over time makes of them. A recording of hours takes no more memory than one of
minutes.
"""

import itertools
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from clamplib.audio import Recording
from clamplib.jobs import NOT_FINITE, Outcome, describe
from clamplib.models import distributed

Read = Callable[[Recording], Iterator[np.ndarray]]  # its windows float32 [n]
Encode = Callable[[np.ndarray], np.ndarray]  # windows float32 [B, n] -> features [B, S, H]

PART_WINDOWS = 12  # that cross from process to process at once: a minute, of 6 MB at 24 kHz
PARTS_AHEAD = 4  # of each process that decodes
CHUNK_BATCHES = 8  # whose windows are sorted by length together
MAX_WORKERS = 8


@dataclass(frozen=True)
class _Part:
    """Some windows of one of the recordings; the last part says so and may bring an error."""

    number: int
    windows: list[np.ndarray]
    last: bool = False
    error: str | None = None


def encode_recordings(
    recordings: Sequence[Recording], read: Read, encode: Encode, *, batch_size: int = 1, workers: int | None = None
) -> Iterator[Outcome]:
    """Computes the features of recordings, in no particular order.

    Args:
        recordings: paths, bytes or waveforms.
        read: gives the windows of a recording; it must be picklable.
        encode: gives the features of a batch of windows.
        batch_size: windows of one length that are encoded at once.
        workers: processes that decode ahead; 0: none; None: by recordings and cores.

    Yields:
        Outcomes whose value is the feature float32 [S, T, H], T being the windows.
    """
    features = defaultdict(list)  # of the recordings that have begun: [S, H] of each window
    for chunk in _chunks(_decode_ahead(recordings, read, workers), CHUNK_BATCHES * batch_size):
        windows = []
        for part in chunk:
            windows += part.windows
        encoded = iter(encode_windows(windows, encode, batch_size))
        for part in chunk:
            features[part.number] += itertools.islice(encoded, len(part.windows))
            if part.last:
                yield _outcome(part, features.pop(part.number))


def _outcome(last: _Part, states: list[np.ndarray]) -> Outcome:
    """What became of a recording, by its last part and the features [S, H] of its windows."""
    if last.error:
        return Outcome(last.number, error=last.error)
    feature = np.stack(states, axis=1)
    return Outcome(last.number, feature) if np.isfinite(feature).all() else Outcome(last.number, error=NOT_FINITE)


def encode_windows(windows: Sequence[np.ndarray], encode: Encode, batch_size: int = 1) -> list[np.ndarray]:
    """The feature [S, H] of each window; up to `batch_size` of one length are encoded at once."""
    by_length = defaultdict(list)
    for number, window in enumerate(windows):
        by_length[len(window)].append(number)
    features = [None] * len(windows)
    for numbers in by_length.values():
        for start in range(0, len(numbers), batch_size):
            batch = numbers[start : start + batch_size]
            encoded = encode(np.stack([windows[number] for number in batch]))
            for number, feature in zip(batch, encoded, strict=True):
                features[number] = feature
    return features


class _Recordings(IterableDataset):
    """The parts of the recordings; of several workers each decodes its share."""

    def __init__(self, recordings: Sequence[Recording], read: Read):
        self.recordings, self.read = recordings, read

    def __iter__(self) -> Iterator[_Part]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        for number in range(first, len(self.recordings), step):
            try:
                windows = self.read(self.recordings[number])
                while group := list(itertools.islice(windows, PART_WINDOWS)):
                    yield _Part(number, group)
            except Exception as error:  # one file's fault, reported
                yield _Part(number, [], last=True, error=describe(error))
            else:
                yield _Part(number, [], last=True)


def _decode_ahead(recordings: Sequence[Recording], read: Read, workers: int | None) -> Iterable[_Part]:
    """All parts of the recordings, each one's in order, decoded while the model is busy."""
    if workers is None:
        cores = (os.cpu_count() or 1) // distributed.world_size()
        workers = min(MAX_WORKERS, cores, len(recordings) // 2)
    ahead = {"prefetch_factor": PARTS_AHEAD} if workers else {}
    dataset = _Recordings(recordings, read)
    return DataLoader(dataset, batch_size=None, num_workers=workers, collate_fn=_as_it_is, **ahead)


def _as_it_is(part: _Part) -> _Part:
    return part


def _chunks(parts: Iterable[_Part], windows: int) -> Iterator[list[_Part]]:
    """Lists of parts that have about so many windows together."""
    chunk, size = [], 0
    for part in parts:
        chunk.append(part)
        size += len(part.windows)
        if size >= windows:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk

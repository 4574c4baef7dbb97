"""Folders of recordings to folders of features: decoded ahead, windows of equal length encoded together.

What the windows are and what becomes of them is the front end's: `read` gives a recording's windows, one after the
other, and `encode` the features of a batch of equal ones. MERT's are in `mert`. Windows of different length never
share a batch, since padding would change what a model that normalizes over time makes of them.
"""

import itertools
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from tqdm import tqdm

from clamplib.audio import Recording
from clamplib.embedding.extraction import close_jobs, open_jobs, save_feature
from clamplib.files import Report, describe
from clamplib.models import distributed

Read = Callable[[Recording], Iterator[np.ndarray]]  # its windows float32 [n]
Encode = Callable[[np.ndarray], np.ndarray]  # windows float32 [B, n] -> features [B, S, H]

PIECE_WINDOWS = 12  # that cross from process to process at once: a minute, of 6 MB at 24 kHz
PIECES_AHEAD = 4  # of each process that decodes
CHUNK_BATCHES = 8  # whose windows are sorted by length together
MAX_WORKERS = 8


@dataclass(frozen=True)
class Piece:
    """Some windows of recordings[index]; the last piece says so and may bring an error."""

    index: int
    windows: list[np.ndarray]
    last: bool = False
    error: str = ""


def extract_recordings(
    sources: Sequence[Path],
    input_dir: str | Path,
    output_dir: str | Path,
    read: Read,
    encode: Encode,
    space: dict,
    *,
    batch_size: int = 1,
    workers: int | None = None,
) -> Report:
    """Writes [S, T, H], T being the windows, for each recording that has no feature up to date; and space.json.

    As in `extraction.extract_files`, of several processes each takes its share and returns the report of all.
    `read` must be picklable; `workers` processes run it ahead, None: by files and cores.
    """
    jobs, report = open_jobs(sources, input_dir, output_dir, space)
    features = encode_recordings([source for source, _ in jobs], read, encode, batch_size=batch_size, workers=workers)
    for index, feature, error in tqdm(features, total=len(jobs), unit="file", disable=distributed.rank() > 0):
        if error:
            report.add_failure(jobs[index][0], error)
        else:
            save_feature(*jobs[index], feature, report)
    return close_jobs(report, output_dir)


def encode_recordings(
    recordings: Sequence[Recording], read: Read, encode: Encode, *, batch_size: int = 1, workers: int | None = None
) -> Iterator[tuple[int, np.ndarray | None, str]]:
    """(index, feature [S, T, H], "") of each recording, or (index, None, why there is none), T being its windows."""
    features = defaultdict(list)  # of the recordings that have begun: [S, H] of each window
    for chunk in _chunks(decode_ahead(recordings, read, workers), CHUNK_BATCHES * batch_size):
        encoded = iter(encode_windows([w for piece in chunk for w in piece.windows], encode, batch_size))
        for piece in chunk:
            features[piece.index] += itertools.islice(encoded, len(piece.windows))
            if piece.last:
                states = features.pop(piece.index)
                yield piece.index, None if piece.error else np.stack(states, axis=1), piece.error


def encode_windows(windows: Sequence[np.ndarray], encode: Encode, batch_size: int = 1) -> list[np.ndarray]:
    """The feature [S, H] of each window; up to `batch_size` of one length are encoded at once."""
    by_length = defaultdict(list)
    for index, window in enumerate(windows):
        by_length[len(window)].append(index)
    features = [None] * len(windows)
    for indices in by_length.values():
        for start in range(0, len(indices), batch_size):
            batch = indices[start : start + batch_size]
            for index, feature in zip(batch, encode(np.stack([windows[k] for k in batch])), strict=True):
                features[index] = feature
    return features


class _Recordings(IterableDataset):
    def __init__(self, recordings: Sequence[Recording], read: Read):
        self.recordings, self.read = recordings, read

    def __iter__(self) -> Iterator[Piece]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        for index in range(first, len(self.recordings), step):
            try:
                windows = self.read(self.recordings[index])
                while group := list(itertools.islice(windows, PIECE_WINDOWS)):
                    yield Piece(index, group)
            except Exception as error:  # one file's fault, reported
                yield Piece(index, [], last=True, error=describe(error))
            else:
                yield Piece(index, [], last=True)


def decode_ahead(recordings: Sequence[Recording], read: Read, workers: int | None = None) -> Iterable[Piece]:
    """All pieces of the recordings, each one's in order, decoded while the model is busy."""
    if workers is None:
        cores = (os.cpu_count() or 1) // distributed.world_size()
        workers = min(MAX_WORKERS, cores, len(recordings) // 2)
    ahead = {"prefetch_factor": PIECES_AHEAD} if workers else {}
    return DataLoader(
        _Recordings(recordings, read), batch_size=None, num_workers=workers, collate_fn=_as_it_is, **ahead
    )


def _as_it_is(piece: Piece) -> Piece:
    return piece


def _chunks(pieces: Iterable[Piece], windows: int) -> Iterator[list[Piece]]:
    """Lists of pieces that have about so many windows together."""
    chunk, size = [], 0
    for piece in pieces:
        chunk.append(piece)
        size += len(piece.windows)
        if size >= windows:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk

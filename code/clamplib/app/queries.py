"""Vectors of queries that come at the same time. Those that wait for the model are encoded together.

While the model is busy, queries collect; then a batch of them takes the model in one call. A long query, such as an
opera, is encoded in parts, so that the others get their turn between them.
"""

import asyncio
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

import anyio
import numpy as np

from clamplib.embedding.reading import Reading
from clamplib.files import InputError
from clamplib.jobs import Outcome
from clamplib.retrieval.similarity import normalize

if TYPE_CHECKING:  # imports torch
    from clamplib.embedding.encoder import CLaMP3Encoder

PART_SEGMENTS = 2  # of a long query that are encoded at once
BATCH_ROWS = 1024  # of the queries that are encoded together; a character of a text counts as a row
MOST_CHARACTERS = 50_000  # of a text: texts are not encoded in parts


class _Waiting(NamedTuple):
    reading: Reading
    vector: asyncio.Future[np.ndarray]


class Queries:
    """The queue of the queries that wait for the model. It belongs to one event loop."""

    def __init__(self, encoder: "CLaMP3Encoder"):
        geometry = encoder.geometry
        self._encoder = encoder
        self._lengths = {"symbolic": geometry.patch_length, "audio": geometry.max_audio_length}  # of a segment
        self._waiting: deque[_Waiting] = deque()
        self._worker: asyncio.Task | None = None
        self._thread = anyio.CapacityLimiter(1)

    async def encode(self, reading: Reading) -> np.ndarray:
        """Embeds a query.

        Returns:
            The vector, float32 [D] of length 1.

        Raises:
            InputError: the query cannot be embedded.
        """
        sequence = reading.sequence
        if isinstance(sequence, str):
            if len(sequence) > MOST_CHARACTERS:
                raise InputError(f"expected a text of at most {MOST_CHARACTERS} characters, got {len(sequence)}")
            return normalize(await self._encode_part(reading))[0][0]
        parts = _split(sequence, PART_SEGMENTS * self._lengths[reading.encoder])
        vectors = [await self._encode_part(reading._replace(sequence=part)) for part in parts]
        mean = np.average(vectors, axis=0, weights=[len(part) for part in parts])
        return normalize(mean)[0][0]

    async def _encode_part(self, reading: Reading) -> np.ndarray:
        """Returns float32 [1, D]."""
        vector = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(reading, vector))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await vector

    async def _work(self) -> None:
        """Encodes what waits until nothing does."""
        while batch := self._next_batch():
            readings = [Outcome(number, waiting.reading) for number, waiting in enumerate(batch)]
            try:
                outcomes = await anyio.to_thread.run_sync(self._encode_all, readings, limiter=self._thread)
            except Exception as error:
                for waiting in batch:
                    _settle(waiting.vector, error)
                continue
            for number, vector, error in outcomes:
                _settle(batch[number].vector, InputError(error) if error else vector)

    def _encode_all(self, readings: list[Outcome]) -> list[Outcome]:
        return list(self._encoder.encode_readings(readings))

    def _next_batch(self) -> list[_Waiting]:
        batch, rows = [], 0
        while self._waiting:
            rows += len(self._waiting[0].reading.sequence)
            if batch and rows > BATCH_ROWS:
                break
            waiting = self._waiting.popleft()
            if not waiting.vector.done():
                batch.append(waiting)
        return batch


def _settle(future: asyncio.Future, result: np.ndarray | Exception) -> None:
    if future.done():  # cancelled: the client has left
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)


def _split(sequence: np.ndarray, size: int) -> list[np.ndarray]:
    """Cuts a sequence [n, ...] into parts of `size` rows, which is a multiple of the rows of a segment.

    The last part is longer, because the last segment of a sequence is read again from the end. So the mean of the
    parts' vectors, weighted by their rows, is the vector of the whole.
    """
    cuts = range(size, len(sequence) - size + 1, size)
    return np.split(sequence, list(cuts))

"""Sequences to features, in batches of similar length.

A sequence longer than its encoder's maximum is cut into segments of that length; the last one is read again
from the end, so that it overlaps the one before. A global vector is the mean of the segments' projected
averages, each weighted by its new rows; temporal features are the last hidden states, the overlap dropped.
"""

import itertools
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import nn

from clamplib.embedding.sequences import audio_frames, symbolic_patches, text_tokens
from clamplib.jobs import NOT_FINITE, Outcome
from clamplib.models.encoders import pad
from clamplib.models.loading import LoadedModel

if TYPE_CHECKING:
    from clamplib.models.tokenizer import TextTokenizer

logger = logging.getLogger(__name__)

# An item of this many segments is timed by its first ones, and a warning says so if it takes this long.
MANY_SEGMENTS, LONG_SECONDS = 500, 300
# What a batch holds by default: on a GPU segments of full length, on a CPU values of the states [rows, H], which then
# stay in its caches.
GPU_BATCH_SIZE, CPU_BATCH_VALUES = 32, 512 * 768
# Rows that are sorted by length together: states of 400 MB at the published size, less on a CPU, where it takes longer.
GPU_CHUNK_ROWS, CPU_CHUNK_ROWS = 1 << 17, 1 << 13


class Span(NamedTuple):
    """A segment: rows from `start` up to `stop`, the last `new` of which are in no segment before."""

    start: int
    stop: int
    new: int


@dataclass(frozen=True)
class Encoder:
    """One encoder of a model, as `encode` needs it."""

    run: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # inputs, masks -> [B, D] or [B, L, H]
    max_length: int
    hidden_size: int
    pooled: bool  # whether `run` gives [B, D]
    device: torch.device
    padding: int = 0

    def batch_rows(self, batch_size: int | None = None) -> int:
        """Rows in a batch: those of `batch_size` segments of full length, or what suits the device."""
        if batch_size is None and self.device.type == "cpu":
            return CPU_BATCH_VALUES // self.hidden_size
        return (batch_size or GPU_BATCH_SIZE) * self.max_length


def clamp3_encoders(loaded: LoadedModel, get_global: bool, dtype: torch.dtype | None = None) -> dict[str, Encoder]:
    """The encoders of CLaMP 3: text, symbolic and audio, with `dtype` bfloat16 or float16 in mixed precision.

    A model in int8 was made so before (see `LoadedModel.prepare`).
    """
    model, geometry = loaded.model, loaded.geometry
    device = model.device

    def encoder(method: Callable, part: nn.Module, max_length: int, padding: int = 0) -> Encoder:
        def run(inputs: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
            with _mixed_precision(device, dtype):
                return method(inputs, masks, get_global=get_global)

        return Encoder(run, max_length, part.config.hidden_size, get_global, device, padding)

    return {
        "text": encoder(
            model.get_text_features, model.text_model, geometry.max_text_length, loaded.tokenizer.pad_token_id
        ),
        "symbolic": encoder(model.get_symbolic_features, model.symbolic_model, geometry.patch_length),
        "audio": encoder(model.get_audio_features, model.audio_model, geometry.max_audio_length),
    }


def m3_encoders(loaded: LoadedModel, dtype: torch.dtype | None = None) -> dict[str, Encoder]:
    """M3's one encoder, its features temporal; `dtype` is that of `clamp3_encoders`."""
    encoder = loaded.model.encoder

    def run(inputs: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        with _mixed_precision(encoder.device, dtype):
            return encoder(inputs, masks).last_hidden_state

    return {"symbolic": Encoder(run, loaded.geometry.patch_length, encoder.config.hidden_size, False, encoder.device)}


def _mixed_precision(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    return torch.autocast(device.type, dtype, enabled=dtype in (torch.bfloat16, torch.float16))


def encode(encoder: Encoder, sequences: Sequence[np.ndarray], batch_size: int | None = None) -> list[np.ndarray]:
    """Features of each sequence [n, ...]: float32 [1, D] if pooled, else [1, n, H].

    A batch holds `batch_size` segments of full length, or as many shorter ones as take the same space; None is what
    suits the device. It holds at least one segment.
    """
    spans = [segment_spans(len(rows), encoder.max_length) for rows in sequences]
    segments = [rows[s.start : s.stop] for rows, own in zip(sequences, spans, strict=True) for s in own]
    outputs: list[torch.Tensor | None] = [None] * len(segments)
    with torch.inference_mode():
        for batch in length_batches(list(map(len, segments)), encoder.batch_rows(batch_size)):
            inputs, masks = pad([segments[k] for k in batch], encoder.padding)
            states = encoder.run(inputs.to(encoder.device), masks.to(encoder.device))
            for k, state in zip(batch, states, strict=True):
                outputs[k] = state  # stays on the device until all batches are under way
    rest = (state.float().cpu().numpy() for state in outputs)
    return [_join(list(itertools.islice(rest, len(own))), own, encoder.pooled) for own in spans]


def encode_each(
    readings: Iterable[Outcome],
    encoders: Mapping[str, Encoder],
    tokenizer: "TextTokenizer | None",
    *,
    batch_size: int | None = None,
    at_once: int | None = None,
    name: Callable[[int], str] = "item {}".format,
) -> Iterator[Outcome]:
    """Encodes what a Reader gives, some items together, sorted by length.

    A warning says the segments of an item that takes many minutes, and about how many, before it is encoded.

    Args:
        readings: outcomes whose value is a Reading.
        encoders: by the names that readings have.
        tokenizer: of the text encoder.
        batch_size: as for `encode`.
        at_once: items that are encoded together; None: as many as fill memory well.
        name: what a warning calls the item of a number.

    Yields:
        Outcomes whose value is the feature, float32 [1, D] if pooled, else [1, n, H], in no particular order. Features
        that are not finite are failures.
    """
    rows = CPU_CHUNK_ROWS if _device(encoders).type == "cpu" else GPU_CHUNK_ROWS
    for chunk in _chunks(readings, tokenizer, rows, at_once):
        sequences = defaultdict(dict)  # number -> sequence, by encoder
        for number, reading, error in chunk:
            if error:
                yield Outcome(number, error=error)
            else:
                sequences[reading.encoder][number] = reading.sequence
        for kind, some in sequences.items():
            for number, sequence in some.items():
                _warn_of_giant(encoders[kind], sequence, batch_size, name, number)
            features = encode(encoders[kind], list(some.values()), batch_size)
            for number, feature in zip(some, features, strict=True):
                finite = np.isfinite(feature).all()
                yield Outcome(number, feature) if finite else Outcome(number, error=NOT_FINITE)


def _warn_of_giant(
    encoder: Encoder, sequence: np.ndarray, batch_size: int | None, name: Callable[[int], str], number: int
) -> None:
    """Warns before a sequence is encoded that takes long."""
    segments = len(segment_spans(len(sequence), encoder.max_length))
    if segments < MANY_SEGMENTS:
        return
    first = sequence[: max(encoder.batch_rows(batch_size), encoder.max_length)]
    for _ in range(2):  # the first time is slower
        start = time.perf_counter()
        encode(encoder, [first], batch_size)
        taken = time.perf_counter() - start
    estimate = taken * len(sequence) / len(first)
    if estimate >= LONG_SECONDS:
        logger.warning("%s: has %d segments, which take about %.0f minutes", name(number), segments, estimate / 60)


def _device(encoders: Mapping[str, Encoder]) -> torch.device:
    return next(iter(encoders.values())).device


def _chunks(
    readings: Iterable[Outcome], tokenizer: "TextTokenizer | None", rows: int, at_once: int | None
) -> Iterator[list[Outcome]]:
    """Lists of readings that have about `rows` rows together, texts as tokens, so that memory stays bounded."""
    chunk, size = [], 0
    for outcome in readings:
        if not outcome.error:
            if isinstance(outcome.value.sequence, str):
                tokens = text_tokens(outcome.value.sequence, tokenizer)
                outcome = outcome._replace(value=outcome.value._replace(sequence=tokens))
            size += len(outcome.value.sequence)
        chunk.append(outcome)
        if size >= rows or len(chunk) == at_once:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def segment_spans(length: int, max_length: int) -> list[Span]:
    """The segments of a sequence, each of `max_length` rows, or of all where there are fewer."""
    spans = [Span(start, start + max_length, max_length) for start in range(0, length - max_length + 1, max_length)]
    new = length % max_length
    return [*spans, Span(max(0, length - max_length), length, new)] if new else spans


def length_batches(lengths: Sequence[int], space: int) -> Iterator[list[int]]:
    """Indices of all items, longest first, in batches of one item or of at most `space` rows when padded."""
    order = sorted(range(len(lengths)), key=lambda k: -lengths[k])
    start = 0
    while start < len(order):
        size = max(1, space // lengths[order[start]])
        yield order[start : start + size]
        start += size


def _join(parts: list[np.ndarray], spans: list[Span], pooled: bool) -> np.ndarray:
    """A sequence's feature from its segments': vectors [D] if pooled, else padded states [L, H]."""
    if pooled and len(spans) == 1:
        return parts[0][None].copy()  # not a view, which would keep its batch
    if pooled:
        return np.average(parts, axis=0, weights=[span.new for span in spans])[None].astype(np.float32)
    lengths = [span.stop - span.start for span in spans]
    new = [p[n - span.new : n] for p, n, span in zip(parts, lengths, spans, strict=True)]
    return np.concatenate(new)[None]


def encode_texts(loaded: LoadedModel, texts: Sequence[str], batch_size: int | None = None) -> np.ndarray:
    """Global vectors of texts: float32 [N, D], not normalized."""
    sequences = [text_tokens(text, loaded.tokenizer) for text in texts]
    return np.concatenate(encode(clamp3_encoders(loaded, True)["text"], sequences, batch_size))


def encode_scores(loaded: LoadedModel, scores: Sequence[str], batch_size: int | None = None) -> np.ndarray:
    """Global vectors of pieces in interleaved ABC or MTF: float32 [N, D], not normalized."""
    patchilizer = loaded.geometry.make_patchilizer()
    sequences = [symbolic_patches(score, patchilizer) for score in scores]
    return np.concatenate(encode(clamp3_encoders(loaded, True)["symbolic"], sequences, batch_size))


def encode_audio(loaded: LoadedModel, recordings: Sequence[np.ndarray], batch_size: int | None = None) -> np.ndarray:
    """Global vectors of recordings from their features [..., T, H]: float32 [N, D], not normalized."""
    sequences = [audio_frames(features, loaded.geometry.audio_hidden_size) for features in recordings]
    return np.concatenate(encode(clamp3_encoders(loaded, True)["audio"], sequences, batch_size))

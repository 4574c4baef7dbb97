"""What a GPU makes of the published sizes, with random weights: items per second, share of the peak, waiting, error.

    python -m bench gpu

This takes at most eight minutes, and nothing is fetched. The vectors of some items are compared with those that the CPU
computes in float32. The share of the peak is the rate of floating-point operations that the items need, without
padding, divided by the rate that the maker states for bfloat16, or by that of a large product if it is not known here.
Waiting is the share of the time in which no kernel ran.
"""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from bench.common import product_rate
from bench.models import PAD, XLM_R, operations_of
from clamplib.audio.mert import Mert
from clamplib.embedding.encoding import Encoder, clamp3_encoders, encode
from clamplib.models.encoders import CLaMP3Model
from clamplib.models.geometry import Geometry
from clamplib.models.loading import LoadedModel

PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}  # of dense bfloat16
WAYS = {  # precision, and whether it is compiled
    "float32": (None, False),
    "bfloat16": (torch.bfloat16, False),
    "bfloat16, compiled": (torch.bfloat16, True),
}
COMPARED = 8  # items, of each kind
TRAINING_BATCH = 256
REPEATS = 3


class Sizes(NamedTuple):
    """How many items are encoded, and of which length."""

    texts: tuple[int, int, int] = (4096, 8, 100)  # number, least and most rows
    pieces: tuple[int, int, int] = (512, 100, 1500)
    recordings: tuple[int, int, int] = (512, 10, 300)
    windows: int = 256  # of MERT
    batch: int = TRAINING_BATCH


class Measurement(NamedTuple):
    """A row of the table."""

    name: str
    way: str
    items_per_second: float
    share_of_peak: float
    waiting: float | None  # None where there is no profile
    error: float | None  # the largest distance of a vector from that of the CPU, relative to its length


def table(device: torch.device, geometry: Geometry | None = None, sizes: Sizes | None = None) -> Iterator[str]:
    """Yields the lines of the table, each as soon as it is measured."""
    geometry, sizes = geometry or Geometry(text_config=XLM_R), sizes or Sizes()
    peak, source = peak_rate(device)
    yield f"{_name(device)}, torch {torch.__version__}; peak {peak / 1e12:.1f} TFLOP/s ({source})\n"
    yield "| task | precision | items per second | share of peak | waiting | error |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for row in measure(device, geometry, sizes, peak):
        waiting = "" if row.waiting is None else f"{row.waiting:.0%}"
        error = "" if row.error is None else f"{row.error:.0e}"
        numbers = f"{row.items_per_second:.0f} | {row.share_of_peak:.1%} | {waiting} | {error}"
        yield f"| {row.name} | {row.way} | {numbers} |"


def peak_rate(device: torch.device) -> tuple[float, str]:
    """Returns floating-point operations per second, and where the number is from."""
    for name, peak in PEAKS.items():
        if name in _name(device).split():
            return peak, "as the maker states"
    return product_rate(device.type, torch.bfloat16), "of a large product in bfloat16"


def measure(device: torch.device, geometry: Geometry, sizes: Sizes, peak: float) -> Iterator[Measurement]:
    """Yields the measurements: each encoder in each way, then a step of training in each."""
    torch.manual_seed(0)
    on_cpu = LoadedModel(CLaMP3Model.from_geometry(geometry).eval(), SimpleNamespace(pad_token_id=PAD), geometry, {})
    items = _items(geometry, sizes)
    expected = {name: _encode(clamp3_encoders(on_cpu, True)[name], some[:COMPARED]) for name, some in items.items()}
    for way, (dtype, compiled) in WAYS.items():
        model = copy.deepcopy(on_cpu.model).to(device)
        if compiled:
            for part in (model.text_model, model.symbolic_model.base, model.audio_model):
                part.compile(dynamic=True)
        encoders = clamp3_encoders(LoadedModel(model, on_cpu.tokenizer, geometry, {}), True, dtype)
        for name, some in items.items():
            encoder, part = encoders[name], getattr(model, f"{name}_model")
            found = _encode(encoder, some[:COMPARED])
            error = np.linalg.norm(found - expected[name], axis=1) / np.linalg.norm(expected[name], axis=1)
            flops = operations_of(getattr(part, "base", part), [len(item) for item in some], encoder.max_length)
            yield _timed(name, way, partial(_encode, encoder, some), len(some), flops / peak, error.max(), device)
        yield _train(way, model, dtype, geometry, sizes.batch, peak)
        torch._dynamo.reset()
    yield from _mert(device, sizes.windows, peak)


def _items(geometry: Geometry, sizes: Sizes) -> dict[str, list[np.ndarray]]:
    rng = np.random.default_rng(0)

    def lengths(number: int, least: int, most: int) -> np.ndarray:
        return rng.integers(least, most + 1, number)

    words = geometry.text_config["vocab_size"]
    return {
        "text": [rng.integers(4, words, n) for n in lengths(*sizes.texts)],
        "symbolic": [rng.integers(0, 128, (n, geometry.patch_size)).astype(np.uint8) for n in lengths(*sizes.pieces)],
        "audio": [rng.standard_normal((n, geometry.audio_hidden_size), np.float32) for n in lengths(*sizes.recordings)],
    }


def _encode(encoder: Encoder, items: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(encode(encoder, items))


def _train(
    way: str, model: CLaMP3Model, dtype: torch.dtype | None, geometry: Geometry, batch: int, peak: float
) -> Measurement:
    """Measures steps of contrastive training on pieces and texts of full length."""
    device = model.device
    rng = np.random.default_rng(0)
    words = rng.integers(4, geometry.text_config["vocab_size"], (batch, geometry.max_text_length))
    patches = rng.integers(0, 128, (batch, geometry.patch_length, geometry.patch_size)).astype(np.uint8)
    texts, pieces = torch.from_numpy(words).to(device), torch.from_numpy(patches).to(device)
    masks = [torch.ones(inputs.shape[:2], device=device) for inputs in (texts, pieces)]
    model.train().set_trainable(("audio_model", "audio_proj"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, dtype) if dtype else nullcontext():
            loss = model(texts, masks[0], pieces, masks[1])
        loss.backward()
        optimizer.step()

    flops = 3 * operations_of(model.text_model, [texts.shape[1]] * batch, geometry.max_text_length)
    flops += 3 * operations_of(model.symbolic_model.base, [pieces.shape[1]] * batch, geometry.patch_length)
    try:
        return _timed(f"training step, batch {batch}", way, step, batch, flops / peak, None, device)
    except torch.OutOfMemoryError:
        return Measurement(f"training step, batch {batch}: out of memory", way, 0, 0, None, None)


def _mert(device: torch.device, windows: int, peak: float) -> Iterator[Measurement]:
    from transformers import HubertConfig, HubertModel

    torch.manual_seed(0)
    model = HubertModel(HubertConfig(hidden_size=768, num_hidden_layers=12)).eval()
    waves = np.random.default_rng(0).standard_normal((windows, 5 * 24_000), np.float32)
    expected = Mert(model, 24_000, {}).encode(waves[:COMPARED], mean=True)[:, 0]
    model.to(device)
    mert = Mert(model, 24_000, {})
    frames = mert.model._get_feat_extract_output_lengths(waves.shape[1])
    flops = _hubert_flops(model, waves.shape[1], int(frames)) * windows
    for way, (dtype, compiled) in WAYS.items():
        if compiled:
            model.compile()

        def run(dtype: torch.dtype | None = dtype) -> np.ndarray:
            with torch.autocast(device.type, dtype) if dtype else nullcontext():
                size = mert.batch_size
                return np.concatenate([mert.encode(waves[k : k + size], mean=True) for k in range(0, windows, size)])

        error = np.linalg.norm(run()[:COMPARED, 0] - expected, axis=1) / np.linalg.norm(expected, axis=1)
        yield _timed("MERT, windows of 5 s", way, run, windows, flops / peak, error.max(), device)


def _hubert_flops(model: nn.Module, samples: int, frames: int) -> float:
    """Operations for one window: those of the convolutions, then of the layers."""
    flops, length = 0.0, samples
    for layer in model.feature_extractor.conv_layers:
        conv = layer.conv
        length = (length - conv.kernel_size[0]) // conv.stride[0] + 1
        flops += 2 * conv.weight.numel() * length
    weights = sum(module.weight.numel() for module in model.encoder.modules() if isinstance(module, nn.Linear))
    return flops + 2 * weights * frames + 4 * model.config.hidden_size * frames**2 * model.config.num_hidden_layers


def _timed(
    name: str,
    way: str,
    run: Callable[[], object],
    items: int,
    seconds_at_peak: float,
    error: float | None,
    device: torch.device,
) -> Measurement:
    taken = _seconds(run, device)
    waiting = None
    if device.type == "cuda":
        with profile(activities=[ProfilerActivity.CUDA]) as trace:
            run()
            torch.cuda.synchronize()
        busy = sum(event.self_device_time_total for event in trace.key_averages()) / 1e6
        waiting = max(0.0, 1 - busy / taken)
    return Measurement(name, way, items / taken, seconds_at_peak / taken, waiting, error)


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    """The fastest of some runs, after one that warms up."""
    best = float("inf")
    for repeat in range(REPEATS + 1):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if repeat:
            best = min(best, time.perf_counter() - start)
    return best


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"

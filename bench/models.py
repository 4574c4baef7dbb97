"""Global features of real ABC and of short texts, at the published size with random weights (nothing is fetched).

The naive way takes one item at a time, pads it to the full length, and turns patches into one-hot vectors.
"""

import re
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from bench.common import Row, product_rate, seconds, tune_books
from clamplib.embedding.encoding import Encoder, clamp3_encoders, encode
from clamplib.formats.notation import split_tunes
from clamplib.formats.patchilizer import M3Patchilizer
from clamplib.models.encoders import CLaMP3Model
from clamplib.models.geometry import Geometry
from clamplib.models.loading import LoadedModel

ITEMS = 48
SAMPLE = 6  # items that the naive way is timed with
XLM_R = {
    "model_type": "xlm-roberta",
    "vocab_size": 250_002,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
}
PAD = 1  # XLM-R's padding token


def rows() -> Iterator[Row]:
    """Yields two comparisons with a naive way, and four with the matrix products alone."""
    torch.manual_seed(0)
    geometry = Geometry(text_config=XLM_R)
    loaded = LoadedModel(CLaMP3Model.from_geometry(geometry).eval(), SimpleNamespace(pad_token_id=PAD), geometry, {})
    encoders, tunes = clamp3_encoders(loaded, get_global=True), _tunes()
    patchilizer = M3Patchilizer()
    pieces = [patchilizer.encode_array(tune, add_special_patches=True, truncate=True) for tune in tunes]
    texts = [_tokens(_describe(tune)) for tune in tunes]
    yield _compare("real ABC", pieces, encoders["symbolic"], lambda item: _naive_symbolic(loaded.model, item))
    yield _compare("short texts", texts, encoders["text"], lambda item: _naive_text(loaded.model, item))
    rng = np.random.default_rng(0)
    kinds = {
        "short texts": ("text", texts),
        "short pieces": ("symbolic", pieces),
        "pieces of full length": ("symbolic", [rng.integers(0, 128, (512, 64)).astype(np.uint8) for _ in range(4)]),
        "short recordings": ("audio", [rng.standard_normal((n, 768), np.float32) for n in rng.integers(8, 60, ITEMS)]),
    }
    parts = {
        "text": loaded.model.text_model,
        "symbolic": loaded.model.symbolic_model.base,
        "audio": loaded.model.audio_model,
    }
    for name, (encoder, items) in kinds.items():
        yield _compare_with_products(name, items, encoders[encoder], parts[encoder])


def _tunes() -> list[str]:
    """Returns the first tunes of ABC files, taken evenly over the corpus."""
    files = tune_books()
    chosen = files[:: max(1, len(files) // ITEMS)][:ITEMS]
    return [split_tunes(path.read_text(encoding="utf-8", errors="replace"))[0] for path in chosen]


def _describe(tune: str) -> str:
    fields = {name: value.strip() for name, value in re.findall(r"^([TMKR]):(.*)$", tune, re.MULTILINE)}
    return "{T}. A {R} in {M} time and the key of {K}.".format_map({"T": "", "R": "tune", "M": "", **fields})


def _tokens(text: str) -> np.ndarray:
    """Returns random token ids between begin and end: one per four characters, as XLM-R needs on average."""
    ids = np.random.default_rng(len(text)).integers(4, XLM_R["vocab_size"], len(text) // 4)
    return np.array([0, *ids, 2])


def _compare(name: str, items: list[np.ndarray], encoder: Encoder, naive: Callable[[np.ndarray], torch.Tensor]) -> Row:
    encode(encoder, items[:1])  # warms up
    features, expected = [], []
    ours = seconds(lambda: features.extend(encode(encoder, items)))
    sample = range(0, len(items), len(items) // SAMPLE)
    naive_sample = seconds(lambda: expected.extend(naive(items[number]).numpy() for number in sample))
    error = max(np.abs(features[k] - e).max() for k, e in zip(sample, expected, strict=True))
    length = np.mean([len(item) for item in items])
    note = f"{length:.0f} rows each; naive on {len(sample)} and scaled; differ by {error:.0e}"
    return Row(f"features of {len(items)} {name}", naive_sample * len(items) / len(sample), ours, note)


def _compare_with_products(name: str, items: list[np.ndarray], encoder: Encoder, part: nn.Module) -> Row:
    """Compares with the matrix products that the items need without padding, at the rate of a large product."""
    encode(encoder, items[:1])
    rate = product_rate()
    ours = min(seconds(lambda: encode(encoder, items)) for _ in range(3))
    rate = max(rate, product_rate())
    note = f"naive: their products at the {rate / 1e9:.0f} GFLOP/s of a large one"
    operations = operations_of(part, [len(item) for item in items], encoder.max_length)
    return Row(f"{len(items)} {name}, published size", operations / rate, ours, note)


def operations_of(part: nn.Module, lengths: list[int], longest: int) -> float:
    """Counts the operations that an encoder needs for items of these lengths, which it reads in segments.

    These are two per weight and row, and those of attention.
    """
    weights = sum(module.weight.numel() for module in part.encoder.modules() if isinstance(module, nn.Linear))
    attention = sum(4 * part.config.hidden_size * length * min(length, longest) for length in lengths)
    return 2 * weights * sum(lengths) + attention * part.config.num_hidden_layers


def _pad(item: np.ndarray, length: int, value: int) -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.from_numpy(item)[None].long()
    masks = torch.ones(1, len(item))
    missing = length - len(item)
    return F.pad(rows, (0, 0) * (rows.dim() - 2) + (0, missing), value=value), F.pad(masks, (0, missing))


@torch.inference_mode()
def _naive_symbolic(model: CLaMP3Model, patches: np.ndarray) -> torch.Tensor:
    encoder = model.symbolic_model
    inputs, masks = _pad(patches, 512, 0)
    one_hot = F.one_hot(inputs, 128).flatten(-2).float()
    embedded = F.linear(one_hot, encoder.patch_embedding.weight, encoder.patch_embedding.bias)
    states = encoder.base(inputs_embeds=embedded, attention_mask=masks).last_hidden_state
    return model.symbolic_proj((states * masks[..., None]).sum(1) / masks.sum())


@torch.inference_mode()
def _naive_text(model: CLaMP3Model, tokens: np.ndarray) -> torch.Tensor:
    inputs, masks = _pad(tokens, 128, PAD)
    return model.get_text_features(inputs, masks, get_global=True)

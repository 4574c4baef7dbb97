"""Global features of real ABC and of short texts at the published size (random weights, nothing is fetched),
against one item at a time, padded to the full length, with patches as one-hot vectors.
"""

import re
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import music21
import numpy as np
import torch
import torch.nn.functional as F

from clamplib.embedding.encoding import clamp3_encoders, encode
from clamplib.formats.notation import split_tunes
from clamplib.formats.patchilizer import M3Patchilizer
from clamplib.models.checkpoints import Loaded
from clamplib.models.encoders import CLaMP3Model
from clamplib.models.geometry import Geometry

ITEMS = 48
SAMPLE = 6  # items that the naive way is timed on
XLM_R = {
    "model_type": "xlm-roberta",
    "vocab_size": 250_002,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
}
PAD = 1  # XLM-R's padding token


def rows() -> list[dict]:
    """Two rows: name, naive_s, ours_s, note."""
    torch.manual_seed(0)
    geometry = Geometry(text_config=XLM_R, audio_num_layers=1)  # the audio encoder is not used
    loaded = Loaded(CLaMP3Model.from_geometry(geometry).eval(), SimpleNamespace(pad_token_id=PAD), geometry, {})
    encoders, tunes = clamp3_encoders(loaded, get_global=True), _tunes()
    patchilizer = M3Patchilizer()
    pieces = [patchilizer.encode_array(tune, add_special_patches=True, truncate=True) for tune in tunes]
    texts = [_tokens(_describe(tune)) for tune in tunes]
    return [
        _row("real ABC", pieces, encoders["symbolic"], lambda item: _naive_symbolic(loaded.model, item)),
        _row("short texts", texts, encoders["text"], lambda item: _naive_text(loaded.model, item)),
    ]


def _tunes() -> list[str]:
    """The first tune of every so many ABC files of music21's corpus."""
    corpus = Path(music21.__file__).parent / "corpus"
    files = [path for path in sorted(corpus.glob("*/*.abc")) if path.parent.name != "essenFolksong"]
    chosen = files[:: max(1, len(files) // ITEMS)][:ITEMS]
    return [split_tunes(path.read_text(encoding="utf-8", errors="replace"))[0] for path in chosen]


def _describe(tune: str) -> str:
    fields = {name: value.strip() for name, value in re.findall(r"^([TMKR]):(.*)$", tune, re.MULTILINE)}
    return "{T}. A {R} in {M} time and the key of {K}.".format_map({"T": "", "R": "tune", "M": "", **fields})


def _tokens(text: str) -> np.ndarray:
    """Ids at random: begin, one for every four characters (as XLM-R has on average), end."""
    ids = np.random.default_rng(len(text)).integers(4, XLM_R["vocab_size"], len(text) // 4)
    return np.array([0, *ids, 2])


def _row(name: str, items: list[np.ndarray], encoder, naive: Callable[[np.ndarray], torch.Tensor]) -> dict:
    encode(encoder, items[:1])
    start = time.perf_counter()
    features = encode(encoder, items)
    ours = time.perf_counter() - start
    sample = range(0, len(items), len(items) // SAMPLE)
    start = time.perf_counter()
    expected = [naive(items[k]) for k in sample]
    seconds = (time.perf_counter() - start) * len(items) / len(sample)
    error = max(np.abs(features[k] - e.numpy()).max() for k, e in zip(sample, expected, strict=True))
    length = np.mean([len(item) for item in items])
    return {
        "name": f"features of {len(items)} {name}",
        "naive_s": seconds,
        "ours_s": ours,
        "note": f"{length:.0f} rows each; naive on {len(sample)} and scaled; differ by {error:.0e}",
    }


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

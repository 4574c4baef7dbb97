"""Encoding in bfloat16 and int8 on the CPU against float32: time, error, and what becomes of the ranking.

At the published size the weights are random, and real ABC ranks real ABC. By `mini`, sentences rank ABC.
"""

from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import torch

from bench.common import Row, cpu_seconds, tune_books
from bench.models import PAD, XLM_R
from clamplib.embedding.encoding import clamp3_encoders, encode
from clamplib.embedding.sequences import symbolic_patches, text_tokens
from clamplib.formats.notation import split_tunes
from clamplib.models.encoders import CLaMP3Model
from clamplib.models.geometry import Geometry
from clamplib.models.loading import LoadedModel
from clamplib.models.variants import load_clamp3
from clamplib.retrieval.similarity import normalize

TUNES, FULL_SIZE_TUNES = 400, 60
TOP = 10
QUERIES = [
    f"{mood} {kind} in {key}"
    for mood in ("a slow", "a lively", "an old")
    for kind in ("air", "jig", "reel", "waltz", "march", "hymn")
    for key in ("D major", "G major", "A minor")
]


def rows() -> Iterator[Row]:
    """Yields two comparisons for each model."""
    tunes = []
    for book in tune_books():
        tunes += split_tunes(book.read_text("utf-8", errors="replace"))
    torch.manual_seed(0)
    geometry = Geometry(text_config={**XLM_R, "num_hidden_layers": 1}, audio_num_layers=1)  # these are not used
    model = CLaMP3Model.from_geometry(geometry).eval()
    random = LoadedModel(model, SimpleNamespace(pad_token_id=PAD), geometry, {})
    yield from _compare("published size", random, tunes[:: len(tunes) // FULL_SIZE_TUNES], None)
    yield from _compare("mini", load_clamp3("mini", weights_folder="."), tunes[:: len(tunes) // TUNES], QUERIES)


def _compare(name: str, loaded: LoadedModel, tunes: list[str], queries: list[str] | None) -> Iterator[Row]:
    patchilizer = loaded.geometry.make_patchilizer()
    pieces = [symbolic_patches(tune, patchilizer) for tune in tunes]
    taken, vectors, asking = {}, {}, {}
    for dtype in (torch.float32, torch.bfloat16, torch.int8):
        encoders = clamp3_encoders(loaded.prepare(torch.device("cpu"), dtype), True, dtype)
        encode(encoders["symbolic"], pieces[:2])  # warms up
        found = []
        taken[dtype] = cpu_seconds(lambda found=found, own=encoders: found.extend(encode(own["symbolic"], pieces)))
        vectors[dtype] = asking[dtype] = normalize(np.concatenate(found))[0]
        if queries:
            sequences = [text_tokens(query, loaded.tokenizer) for query in queries]
            asking[dtype] = normalize(np.concatenate(encode(encoders["text"], sequences)))[0]
    best = _best(asking[torch.float32] @ vectors[torch.float32].T)
    for dtype in (torch.bfloat16, torch.int8):
        cosine = np.einsum("nd,nd->n", vectors[torch.float32], vectors[dtype]).min()
        own = _best(asking[dtype] @ vectors[dtype].T)
        kept = np.mean([len(set(a) & set(b)) / TOP for a, b in zip(best, own, strict=True)])
        note = f"cosine at least {cosine:.5f}; of the {TOP} best of {len(pieces)}, {kept:.1%} stay; CPU seconds"
        yield Row(f"{name} in {str(dtype).removeprefix('torch.')}", taken[torch.float32], taken[dtype], note)


def _best(similarities: np.ndarray) -> np.ndarray:
    return np.argsort(-similarities, axis=1, kind="stable")[:, :TOP]

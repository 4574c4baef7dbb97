"""Steps of CLaMP 3's training with 2 loader workers against none, and the share of the time that they wait for data.

Music and features are read from files, and from shards that these are packed into. On a GPU the model has the
published size and batch, else it is as large as mini.
"""

import json
import tempfile
import time
from pathlib import Path

import music21
import numpy as np
import torch
from bench.models import XLM_R
from transformers import AutoTokenizer

import clamplib
from clamplib.formats.patchilizer import M3Patchilizer
from clamplib.models.encoders import CLaMP3Model
from clamplib.models.geometry import Geometry
from clamplib.training.batches import CollateCLaMP3, Stopwatch, make_loader
from clamplib.training.datasets import CLaMP3Dataset
from clamplib.training.loop import to_device
from clamplib.training.objectives import clamp3_objective
from clamplib.training.packing import pack
from clamplib.training.pieces import read_pieces
from clamplib.training.state import Recipe, TrainingState

MINI = Path(clamplib.__file__).parent / "mini"
GPU = torch.cuda.is_available()
BATCH = 256 if GPU else 16
ITEMS = 100  # to time their preparation alone
WARM_UP, STEPS = 4, 8  # workers prepare two batches each while the first steps are taken
CHARACTERS, FRAMES = 8_000, (20, 127)  # about, of a piece; and of its features, 5 s each
SHARD_SIZE = 10**8


def rows() -> list[dict]:
    """Four rows: name, naive_s, ours_s, note."""
    mini = Geometry.from_dict(json.loads((MINI / "config.json").read_text("utf-8")))
    geometry = Geometry(text_config=XLM_R) if GPU else mini
    model = CLaMP3Model.from_geometry(geometry)
    with tempfile.TemporaryDirectory() as folder:
        jsonl = _write_pieces(Path(folder), geometry.audio_hidden_size)
        pack(jsonl, Path(folder, "packed"), SHARD_SIZE)
        sources = {"files": jsonl, "shards": Path(folder, "packed", jsonl.name)}
        return [
            _row(model, geometry, modality, name, source)
            for modality in ("symbolic", "audio")
            for name, source in sources.items()
        ]


def _write_pieces(folder: Path, audio_size: int) -> Path:
    """Pieces of real ABC, random features of the usual lengths, and sentences, for all steps."""
    corpus = Path(music21.__file__).parent / "corpus"
    books = [path.read_text("utf-8", errors="replace") for path in sorted(corpus.glob("*/*.abc"))]
    rng, lines = np.random.default_rng(0), []
    for number in range(BATCH * (WARM_UP + STEPS)):
        book = books[number % len(books)]
        start = rng.integers(max(1, len(book) - CHARACTERS))
        (folder / f"{number}.abc").write_text(book[start : start + CHARACTERS], encoding="utf-8")
        shape = 1, rng.integers(*FRAMES), audio_size
        np.save(folder / f"{number}.npy", rng.standard_normal(shape, dtype=np.float32))
        piece = {"filepaths": [f"{number}.abc", f"{number}.npy"], "analysis": f"Piece {number}, a tune. " * 10}
        lines.append(json.dumps(piece) + "\n")
    (folder / "pieces.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder / "pieces.jsonl"


def _row(model: CLaMP3Model, geometry: Geometry, modality: str, name: str, source: Path) -> dict:
    dataset = _dataset(geometry, modality, source)
    start = time.process_time()
    for index in range(ITEMS):
        dataset[0, index]
    rate = ITEMS / (time.process_time() - start)
    (naive, naive_share), (ours, share) = (_train(model, dataset, workers) for workers in (0, 2))
    waits = f"2 loader workers: waits {share:.1%} of the time for data; none: {naive_share:.1%}"
    return {
        "name": f"{STEPS} training steps, {modality}, from {name}",
        "naive_s": naive,
        "ours_s": ours,
        "note": f"{waits}; batch {BATCH}; a core prepares {rate:,.0f} items a second",
    }


def _dataset(geometry: Geometry, modality: str, source: Path) -> CLaMP3Dataset:
    return CLaMP3Dataset(
        read_pieces(source, modality, geometry.audio_hidden_size)[0],
        modality=modality,
        tokenizer=AutoTokenizer.from_pretrained(MINI),
        patchilizer=M3Patchilizer(geometry.patch_size, geometry.patch_length),
        max_text_length=geometry.max_text_length,
        max_audio_length=geometry.max_audio_length,
        audio_size=geometry.audio_hidden_size,
    )


def _train(model: CLaMP3Model, dataset: CLaMP3Dataset, workers: int) -> tuple[float, float]:
    """Seconds, and the share of them spent waiting."""
    collate = CollateCLaMP3(dataset.tokenizer.pad_token_id)
    batches = iter(make_loader(dataset, BATCH, collate, training=True, num_workers=workers))
    recipe = Recipe(weights_path=Path("none"), logs_path=Path("none"), epochs=1, learning_rate=1e-5)
    device = torch.device("cuda" if GPU else "cpu")
    state = TrainingState(model.to(device).train(), recipe, STEPS, device)
    objective = clamp3_objective(batch_size=BATCH)

    def step(batch: dict) -> None:
        with state.autocast():
            loss = objective.loss(model, to_device(batch, device))
        state.step(loss)

    for _ in range(WARM_UP):
        step(next(batches))
    start, stopwatch = time.perf_counter(), Stopwatch()
    for batch in stopwatch.waits(batches):
        step(batch)
    if GPU:
        torch.cuda.synchronize()
    return time.perf_counter() - start, stopwatch.share()

"""Training steps of CLaMP 3 with 2 loader workers against none, and the share of time that they wait for data.

Music and features are read from files, and from shards that pack these files. On a GPU the model and the batch have the
published size; on a CPU the model has the size of `mini`.
"""

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer

import clamplib
from bench.common import CORPUS, Row
from bench.models import XLM_R
from clamplib.formats.patchilizer import M3Patchilizer
from clamplib.models.encoders import CLaMP3Model
from clamplib.models.geometry import Geometry
from clamplib.training.batches import CollateCLaMP3, Stopwatch, make_loader
from clamplib.training.datasets import CLaMP3Dataset
from clamplib.training.loop import to_device
from clamplib.training.objectives import CLaMP3Objective
from clamplib.training.packing import pack
from clamplib.training.pieces import read_pieces
from clamplib.training.state import TrainingRecipe, TrainingState

MINI = Path(clamplib.__file__).parent / "mini"
GPU = torch.cuda.is_available()
BATCH = 256 if GPU else 16
ITEMS = 100  # items whose preparation is timed alone
WARM_UP, STEPS = 4, 8  # workers prepare two batches each while the first steps are taken
CHARACTERS = 8_000  # length of a piece, at most
FRAMES = (20, 127)  # length of its features, 5 seconds per frame
SHARD_SIZE = 10**8


def rows() -> Iterator[Row]:
    """Yields four comparisons."""
    mini = Geometry.from_dict(json.loads((MINI / "config.json").read_text("utf-8")))
    geometry = Geometry(text_config=XLM_R) if GPU else mini
    model = CLaMP3Model.from_geometry(geometry)
    with tempfile.TemporaryDirectory() as folder:
        jsonl = _write_pieces(Path(folder), geometry.audio_hidden_size)
        pack(jsonl, Path(folder, "packed"), SHARD_SIZE)
        sources = {"files": jsonl, "shards": Path(folder, "packed", jsonl.name)}
        for modality in ("symbolic", "audio"):
            for name, source in sources.items():
                yield _compare(model, geometry, modality, name, source)


def _write_pieces(folder: Path, audio_size: int) -> Path:
    """Writes pieces of real ABC, random features of common lengths, and sentences, enough for all steps."""
    books = [path.read_text("utf-8", errors="replace") for path in sorted(CORPUS.glob("*/*.abc"))]
    rng = np.random.default_rng(0)
    lines = []
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


def _compare(model: CLaMP3Model, geometry: Geometry, modality: str, name: str, source: Path) -> Row:
    dataset = _dataset(geometry, modality, source)
    start = time.process_time()
    for index in range(ITEMS):
        dataset[0, index]
    rate = ITEMS / (time.process_time() - start)
    naive, naive_share = _train(model, dataset, workers=0)
    ours, share = _train(model, dataset, workers=2)
    waits = f"2 loader workers: waits {share:.1%} of the time for data; none: {naive_share:.1%}"
    note = f"{waits}; batch {BATCH}; a core prepares {rate:,.0f} items per second"
    return Row(f"{STEPS} training steps, {modality}, from {name}", naive, ours, note)


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
    """Returns the seconds that the steps take, and the share of them spent waiting for data."""
    collate = CollateCLaMP3(dataset.tokenizer.pad_token_id)
    batches = iter(make_loader(dataset, BATCH, collate, num_workers=workers))
    recipe = TrainingRecipe(weights_path=Path("none"), logs_path=Path("none"), epochs=1, learning_rate=1e-5)
    device = torch.device("cuda" if GPU else "cpu")
    state = TrainingState(model.to(device).train(), recipe, STEPS, device)
    objective = CLaMP3Objective(batch_size=BATCH)

    def step(batch: dict) -> None:
        with state.autocast():
            loss = objective.loss(model, to_device(batch, device))
        state.step(loss)

    for _ in range(WARM_UP):
        step(next(batches))
    start, stopwatch = time.perf_counter(), Stopwatch()
    for batch in stopwatch.watch(batches):
        step(batch)
    if GPU:
        torch.cuda.synchronize()
    return time.perf_counter() - start, stopwatch.share()

"""MRR over 2,000 pairs of feature files, against a matrix of all references that is built again for every query."""

import contextlib
import io
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from bench.common import Row, seconds

ROOT = Path(__file__).parents[1]
PAIRS, SIZE = 2000, 768
SAMPLE = 50  # queries that the naive way is timed with


def rows() -> Iterator[Row]:
    """Yields one comparison. Both times include reading the files."""
    sys.path.insert(0, str(ROOT / "retrieval"))
    from eval_mrr import main

    with tempfile.TemporaryDirectory() as folder:
        queries, references = Path(folder, "queries"), Path(folder, "references")
        _write_pairs(queries, references)
        words = [str(queries), str(references), "--output_dir", f"{folder}/ranks"]
        with contextlib.redirect_stdout(io.StringIO()):
            ours = seconds(lambda: main(words))
        naive = _naive_seconds(queries, references)
    note = f"naive: a matrix per query, {SAMPLE} queries timed and scaled"
    yield Row(f"eval_mrr over {PAIRS:,} pairs", naive, ours, note)


def _write_pairs(queries: Path, references: Path) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(PAIRS, SIZE)).astype(np.float32)
    noise = rng.normal(size=(PAIRS, SIZE)).astype(np.float32)
    for folder, values in ((references, vectors), (queries, vectors + 3 * noise)):
        folder.mkdir()
        for number, vector in enumerate(values):
            np.save(folder / f"{number:04d}.npy", vector[None])


def _naive_seconds(queries: Path, references: Path) -> float:
    start = time.perf_counter()
    found, known = _read(queries), _read(references)
    reading = time.perf_counter() - start
    return reading + seconds(lambda: _rank(found, known)) * PAIRS / SAMPLE


def _read(folder: Path) -> dict[str, np.ndarray]:
    return {path.stem: np.load(path)[0] for path in sorted(folder.iterdir())}


def _rank(queries: dict[str, np.ndarray], references: dict[str, np.ndarray]) -> list[int]:
    ranks = []
    for key, query in list(queries.items())[:SAMPLE]:
        matrix = torch.stack([torch.tensor(vector) for vector in references.values()])
        similarity = torch.cosine_similarity(torch.tensor(query)[None], matrix)
        ranks.append((similarity > similarity[list(references).index(key)]).sum().item() + 1)
    return ranks

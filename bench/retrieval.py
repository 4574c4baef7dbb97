"""MRR over 2,000 pairs of feature files, against one matrix of all references built anew for every query."""

import contextlib
import io
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parents[1]
PAIRS, SIZE = 2000, 768
SAMPLE = 50  # queries that the naive way is timed on


def rows() -> list[dict]:
    """One row: name, naive_s, ours_s, note. Both times hold the reading of the files."""
    sys.path.insert(0, str(ROOT / "retrieval"))
    from eval_mrr import main

    with tempfile.TemporaryDirectory() as folder:
        queries, references = Path(folder, "queries"), Path(folder, "references")
        _write_pairs(queries, references)
        printed = io.StringIO()
        start = time.perf_counter()
        with contextlib.redirect_stdout(printed):
            main([str(queries), str(references), "--output_dir", f"{folder}/ranks"])
        ours = time.perf_counter() - start
        naive = _naive_seconds(queries, references)
    return [
        {
            "name": f"eval_mrr over {PAIRS:,} pairs",
            "naive_s": naive,
            "ours_s": ours,
            "note": f"naive: a matrix a query, {SAMPLE} queries timed and scaled",
        }
    ]


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
    loaded = [{path.stem: np.load(path)[0] for path in sorted(f.iterdir())} for f in (queries, references)]
    read = time.perf_counter() - start
    start = time.perf_counter()
    for key, query in list(loaded[0].items())[:SAMPLE]:
        matrix = torch.stack([torch.tensor(vector) for vector in loaded[1].values()])
        similarity = torch.cosine_similarity(torch.tensor(query)[None], matrix)
        (similarity > similarity[list(loaded[1]).index(key)]).sum().item() + 1
    return read + (time.perf_counter() - start) * PAIRS / SAMPLE

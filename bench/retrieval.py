"""MRR over 2,000 pairs, queries of an index, and the bookkeeping of an index with its peak of memory.

The naive way to MRR builds a matrix of all references again for every query. The floor of a query is numpy's product
with the matrix, which is mapped into memory. The naive way to keep an index commits every 16 vectors.
"""

import contextlib
import io
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.common import Row, cpu_seconds, resident_bytes, seconds
from clamplib.embedding import saving
from clamplib.embedding.cache import VectorCache
from clamplib.embedding.collections import embed_sources, find_sources, update_index
from clamplib.jobs import Outcome
from clamplib.retrieval.index import ExactIndex, Record
from clamplib.retrieval.similarity import normalize

ROOT = Path(__file__).parents[1]
PAIRS, SIZE = 2000, 768
SAMPLE = 50  # queries that the naive way is timed with
RECORDS, BATCH, QUERIES = 200_000, 10_000, 100
MODALITIES = ("score", "audio")  # of every other record
REPEATS = 7  # of a query, of which the fastest counts
FILES, FEW_FILES = 20_000, 1000  # the naive way is timed with few
NAIVE_AT_ONCE = 16  # vectors in a commit of the naive way
MIB = 1 << 20


def rows() -> Iterator[Row]:
    """Yields the comparisons. The times of MRR include reading the files."""
    with tempfile.TemporaryDirectory() as folder:
        yield _mrr(Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        yield from _queries(Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        yield from _bookkeeping(Path(folder))


def _mrr(folder: Path) -> Row:
    sys.path.insert(0, str(ROOT / "retrieval"))
    from eval_mrr import main

    queries, references = folder / "queries", folder / "references"
    _write_pairs(queries, references)
    words = [str(queries), str(references), "--output_dir", f"{folder}/ranks"]
    with contextlib.redirect_stdout(io.StringIO()):
        ours = seconds(lambda: main(words))
    naive = _naive_seconds(queries, references)
    note = f"naive: a matrix per query, {SAMPLE} queries timed and scaled"
    return Row(f"eval_mrr over {PAIRS:,} pairs", naive, ours, note)


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


# ------------------------------------------------------------------------------------- queries of an index


def _queries(folder: Path) -> Iterator[Row]:
    """Queries of an index against the product alone, and filtered ones against those without a filter."""
    built, peak = _in_own_process(_build, folder)
    [path] = folder.glob("vectors-*")
    matrix = np.memmap(path, "<f4", "r", shape=(RECORDS, SIZE))
    queries = normalize(np.random.default_rng(1).standard_normal((QUERIES, SIZE), np.float32))[0]
    one, index = queries[:1], ExactIndex(folder)
    tasks = {
        "product": lambda: matrix @ one[0],
        "products": lambda: queries @ matrix.T,
        "query": lambda: index.search(one),
        "queries": lambda: index.search(queries),
        "half": lambda: index.search(one, modality=MODALITIES[0]),
        "folder": lambda: index.search(one, folder="/music"),
    }
    times = _fastest(tasks)
    size = f"{RECORDS:,} x {SIZE}"
    share = peak / _mib(RECORDS)
    note = f"CPU seconds; naive: the product alone; built in {built:.1f} s; peak of memory {share:.2f} matrices"
    yield Row(f"1 query of an index, {size}", times["product"], times["query"], note)
    yield Row(f"{QUERIES} queries, {size}", times["products"], times["queries"], "naive: the products alone")
    yield Row("a filter that keeps half", times["query"], times["half"], "naive: without a filter")
    yield Row("a folder that holds all", times["query"], times["folder"], "naive: without a filter")


def _build(folder: Path) -> None:
    index, rng = ExactIndex(folder, None, SIZE), np.random.default_rng(0)
    for start in range(0, RECORDS, BATCH):
        records = []
        for number in range(start, start + BATCH):
            modality = MODALITIES[number % len(MODALITIES)]
            records.append(Record(f"/music/{number % 100}/{number}.abc", f"{number:064x}", modality=modality))
        index.upsert(records, normalize(rng.standard_normal((BATCH, SIZE), np.float32))[0])


def _fastest(tasks: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Times tasks in turn, in CPU seconds, which what else the machine does hardly changes."""
    times = {name: [] for name in tasks}
    for _ in range(REPEATS):
        for name, task in tasks.items():
            times[name].append(cpu_seconds(task))
    return {name: min(some) for name, some in times.items()}


# ------------------------------------------------------------------------------- the bookkeeping of an index


class _Ready:
    """An encoder whose vectors are ready, so that only the bookkeeping takes time."""

    dimension, space_id, precision, pretrained = SIZE, "0" * 16, "float32", ()
    space = {"variant": "ready", "weights_sha256": "0", "geometry": {}, "kind": "clamp3 global", "abc": "as found"}

    def front_id(self, path: Path) -> str:
        return ""

    def encode_each(self, items: list, workers: int | None = None) -> Iterator[Outcome]:
        vectors = np.random.default_rng(0).standard_normal((100, 1, SIZE), np.float32)
        for number in range(len(items)):
            yield Outcome(number, vectors[number % len(vectors)].copy())


def _bookkeeping(folder: Path) -> Iterator[Row]:
    few, many = folder / "few", folder / "many"
    for place, count in ((few, FEW_FILES), (many, FILES)):
        place.mkdir()
        for number in range(count):
            (place / f"{number}.txt").write_text(f"tune {number}")
    naive = _in_own_process(_update, few, NAIVE_AT_ONCE)[0] * FILES / FEW_FILES
    first, first_peak = _in_own_process(_update, many)
    again, again_peak = _in_own_process(_update, many)
    opened, opened_peak = _in_own_process(_open, many)
    note = f"naive: a commit per {NAIVE_AT_ONCE} vectors, {FEW_FILES:,} files timed and scaled; peak of memory"
    yield Row(f"first index of {FILES:,} files, ready", naive, first, f"{note} {first_peak / _mib(FILES):.2f} matrices")
    note = "naive: the first time; peak of memory"
    yield Row("the same index again", first, again, f"{note} {again_peak / _mib(FILES):.2f} matrices")
    yield Row("the same folder from the cache", first, opened, f"{note} {opened_peak / _mib(FILES):.2f} matrices")


def _update(folder: Path, at_once: int | None = None) -> None:
    if at_once:
        saving.SAVED_AT_ONCE = at_once
    index = ExactIndex(f"{folder}.index", _Ready.space, SIZE)
    update_index(_Ready(), find_sources(folder), index, folder, cache=_cache(folder), progress=False)


def _open(folder: Path) -> None:
    embed_sources(_Ready(), find_sources(folder), folder, cache=_cache(folder), progress=False)


def _cache(folder: Path) -> VectorCache:
    return VectorCache(f"{folder}.sqlite")


def _in_own_process(task: Callable, *arguments: Any) -> tuple[float, float]:
    """Returns the seconds that a task takes, and by how many MiB it raises the peak of memory."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(_measured, task, *arguments).result()


def _measured(task: Callable, *arguments: Any) -> tuple[float, float]:
    before = resident_bytes("VmRSS")
    taken = seconds(lambda: task(*arguments))
    return taken, max(resident_bytes("VmHWM") - before, 0) / MIB


def _mib(rows: int) -> float:
    """Returns the size of a matrix in MiB."""
    return rows * SIZE * 4 / MIB

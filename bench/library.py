"""Vectors of real files by `mini`: one call against one call per file, and cached against computed again.

Then an index of random vectors against the same numbers in memory, multiplied and sorted by numpy.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench.common import Row, seconds, tune_books
from clamplib.embedding.cache import VectorCache
from clamplib.embedding.collections import embed_sources, find_sources
from clamplib.embedding.encoder import CLaMP3Encoder
from clamplib.formats.notation import split_tunes
from clamplib.retrieval.index import ExactIndex, Record
from clamplib.retrieval.similarity import normalize

FILES = 200
SAMPLE = 40  # files that are embedded one at a time
RECORDS, SIZE, BATCH = 100_000, 192, 10_000
QUERIES, TOP = 100, 10
LABELS = ("jig", "reel", "air", "march")
REPEATS = 5  # of short tasks, of which the fastest run counts


def rows() -> Iterator[Row]:
    """Yields two comparisons of embedding and three of search."""
    with tempfile.TemporaryDirectory() as folder:
        yield from _embedding(Path(folder, "files"))
        yield from _searching(Path(folder, "index"))


def _embedding(folder: Path) -> Iterator[Row]:
    folder.mkdir()
    tunes = []
    for book in tune_books():
        tunes += split_tunes(book.read_text("utf-8", errors="replace"))
    for number, tune in enumerate(tunes[:: len(tunes) // FILES][:FILES]):
        (folder / f"{number:03}.abc").write_text(tune, encoding="utf-8")
    encoder, files = CLaMP3Encoder.from_pretrained("mini"), find_sources(folder)
    cache = VectorCache(folder / "vectors.sqlite")
    encoder.encode(files[:1])
    alone = seconds(lambda: [encoder.encode([file]) for file in files[:SAMPLE]]) * len(files) / SAMPLE
    together = seconds(lambda: encoder.encode(files))
    cold = seconds(lambda: embed_sources(encoder, files, progress=False))
    embed_sources(encoder, files, cache=cache, progress=False)
    warm = seconds(lambda: embed_sources(encoder, files, cache=cache, progress=False))
    note = f"naive: a call per file, {SAMPLE} timed and scaled"
    yield Row(f"encode {len(files)} scores, mini", alone, together, note)
    note = "naive: no cache; here: files hashed, vectors read"
    yield Row(f"embed {len(files)} scores again, mini", cold, warm, note)


def _searching(folder: Path) -> Iterator[Row]:
    rng = np.random.default_rng(0)
    matrix = normalize(rng.standard_normal((RECORDS, SIZE), np.float32))[0]
    queries = normalize(rng.standard_normal((QUERIES, SIZE), np.float32))[0]
    records = [Record(f"/music/{n % 100}/{n}.abc", f"{n:064x}", LABELS[n % len(LABELS)]) for n in range(RECORDS)]
    index = ExactIndex(folder, None, SIZE)
    for start in range(0, RECORDS, BATCH):
        index.upsert(records[start : start + BATCH], matrix[start : start + BATCH])
    labels = np.array([record.label for record in records])
    one, jigs = queries[:1], matrix[labels == LABELS[0]]
    yield _compare("1 query", one, matrix, lambda: index.search(one, TOP))
    yield _compare(f"{QUERIES} queries", queries, matrix, lambda: index.search(queries, TOP))
    yield _compare("a label", one, jigs, lambda: index.search(one, TOP, label=LABELS[0]))


def _compare(name: str, queries: np.ndarray, references: np.ndarray, search: Callable[[], Any]) -> Row:
    naive = _fastest(lambda: np.argsort(-(queries @ references.T), axis=1)[:, :TOP])
    product = _fastest(lambda: queries @ references.T)
    note = f"naive: product and sort in memory; the product alone {product:.3f} s"
    return Row(f"index of {RECORDS:,}, {name}", naive, _fastest(search), note)


def _fastest(task: Callable[[], Any]) -> float:
    return min(seconds(task) for _ in range(REPEATS))

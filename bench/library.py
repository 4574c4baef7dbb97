"""Vectors of real files by mini: one call against a call a file, and made before against made anew; then an index of
random vectors against the same numbers in memory, multiplied and sorted by numpy.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import music21
import numpy as np
from bench.timing import seconds

from clamplib.embedding.cache import VectorCache
from clamplib.embedding.collections import embed_library, find_sources
from clamplib.embedding.encoder import CLaMP3Encoder
from clamplib.formats.notation import split_tunes
from clamplib.retrieval.index import ExactIndex, Record
from clamplib.retrieval.similarity import normalize

FILES = 200
SAMPLE = 40  # files that are embedded one at a time
RECORDS, SIZE, BATCH = 100_000, 192, 10_000
QUERIES, TOP = 100, 10
LABELS = ("jig", "reel", "air", "march")
REPEATS = 5  # of what takes little time; the shortest counts


def rows() -> list[dict]:
    """Rows: name, naive_s, ours_s, note."""
    with tempfile.TemporaryDirectory() as folder:
        return [*_embedding(Path(folder, "files")), *_searching(Path(folder, "index"))]


def _embedding(folder: Path) -> list[dict]:
    folder.mkdir()
    corpus = Path(music21.__file__).parent / "corpus"
    books = [path for path in sorted(corpus.glob("*/*.abc")) if path.parent.name != "essenFolksong"]
    tunes = [tune for book in books for tune in split_tunes(book.read_text("utf-8", errors="replace"))]
    for number, tune in enumerate(tunes[:: len(tunes) // FILES][:FILES]):
        (folder / f"{number:03}.abc").write_text(tune, encoding="utf-8")
    encoder, files = CLaMP3Encoder.from_pretrained("mini"), find_sources(folder)
    cache = VectorCache(folder / "vectors.sqlite")
    encoder.encode(files[:1])
    alone = seconds(lambda: [encoder.encode([file]) for file in files[:SAMPLE]]) * len(files) / SAMPLE
    together = seconds(lambda: encoder.encode(files))
    cold = seconds(lambda: embed_library(encoder, files, progress=False))
    embed_library(encoder, files, cache=cache, progress=False)
    warm = seconds(lambda: embed_library(encoder, files, cache=cache, progress=False))
    return [
        _row(f"encode {len(files)} scores, mini", alone, together, f"naive: a call each, {SAMPLE} timed and scaled"),
        _row(f"embed {len(files)} scores again, mini", cold, warm, "naive: no cache; here: files hashed, vectors read"),
    ]


def _searching(folder: Path) -> list[dict]:
    rng = np.random.default_rng(0)
    matrix = normalize(rng.standard_normal((RECORDS, SIZE), np.float32))[0]
    queries = normalize(rng.standard_normal((QUERIES, SIZE), np.float32))[0]
    records = [Record(f"/music/{n % 100}/{n}.abc", f"{n:064x}", LABELS[n % len(LABELS)]) for n in range(RECORDS)]
    index = ExactIndex(folder, None, SIZE)
    for start in range(0, RECORDS, BATCH):
        index.upsert(records[start : start + BATCH], matrix[start : start + BATCH])
    labels = np.array([record.label for record in records])
    results = []
    for name, asked, label in (("1 query", 1, None), (f"{QUERIES} queries", QUERIES, None), ("a label", 1, LABELS[0])):
        some, among = queries[:asked], matrix if label is None else matrix[labels == label]
        naive = _least(lambda some=some, among=among: np.argsort(-(some @ among.T), axis=1)[:, :TOP])
        product = _least(lambda some=some, among=among: some @ among.T)
        ours = _least(lambda some=some, label=label: index.search(some, TOP, label=label))
        note = f"naive: product and sort in memory; the product alone {product:.3f} s"
        results.append(_row(f"index of {RECORDS:,}, {name}", naive, ours, note))
    return results


def _least(task: Callable[[], Any]) -> float:
    return min(seconds(task) for _ in range(REPEATS))


def _row(name: str, naive: float, ours: float, note: str) -> dict:
    return {"name": name, "naive_s": naive, "ours_s": ours, "note": note}

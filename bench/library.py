"""Vectors of real files by `mini`: one call against one call per file, and cached against computed again."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.common import Row, seconds, tune_books
from clamplib.embedding.cache import VectorCache
from clamplib.embedding.collections import embed_sources, find_sources
from clamplib.embedding.encoder import CLaMP3Encoder
from clamplib.formats.notation import split_tunes

FILES = 200
SAMPLE = 40  # files that are embedded one at a time


def rows() -> Iterator[Row]:
    """Yields two comparisons."""
    with tempfile.TemporaryDirectory() as folder:
        yield from _embedding(Path(folder, "files"))


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

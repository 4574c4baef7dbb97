"""Folders of files of any kind as vectors: every file is converted and embedded once, whatever its name becomes.

A file of many tunes is as many sources (see scores.Tune). A vector is found again by the content of its file, what
the file is taken for, the tune in it, and all that made the vector.
"""

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from clamplib import __version__
from clamplib.cache import VectorCache
from clamplib.encoder import CLaMP3Encoder
from clamplib.files import InputError, run_jobs, show, walk
from clamplib.inputs import SUFFIXES, modality_of
from clamplib.retrieval import normalise
from clamplib.scores import Tune, tunes

KEPT_AT_ONCE = 16  # vectors; an interrupted run loses few
FILES_A_JOB = 32  # on a cluster

Source = Path | Tune


@dataclass(frozen=True)
class Library:
    """The vectors of some sources, and why others have none."""

    sources: list[Source]
    vectors: np.ndarray  # float32 [N, D], as the model gives them
    failures: list[dict[str, str]] = field(default_factory=list)  # file, error

    def __len__(self) -> int:
        return len(self.sources)

    @property
    def matrix(self) -> np.ndarray:
        """Unit rows, float32 [N, D]."""
        return normalise(self.vectors)[0]

    @property
    def modalities(self) -> list[str]:
        return [modality_of(source) for source in self.sources]


def find_sources(path: str | Path, suffixes: Sequence[str] = SUFFIXES) -> list[Source]:
    """The files under a folder (or the file) that an encoder takes, and the tunes of those that hold many, sorted.

    Images are among them with the encoder's own `suffixes`, if it has a captioner.
    """
    return [source for file in walk(path, suffixes) for source in tunes(file)]


def embed_library(
    encoder: CLaMP3Encoder,
    sources: Sequence[Source],
    *,
    cache: VectorCache | None = None,
    workers: int | None = None,
    backend: str | None = None,
    progress: bool = True,
) -> Library:
    """The vectors of sources, those that the cache holds from there, the others made and kept there.

    `backend` "ray" or "dask" sends the files to the cluster, whose every process loads the model: they must lie where
    all can read them.
    """
    found, failures = {}, []
    outcomes = embed_each(encoder, sources, cache=cache, workers=workers, backend=backend)
    for number, vector, error in tqdm(outcomes, total=len(sources), unit="file", disable=not progress):
        if error:
            failures.append({"file": str(sources[number]), "error": error})
        else:
            found[number] = vector
    order = sorted(found)
    vectors = np.stack([found[number] for number in order]) if order else np.empty((0, encoder.dimension), np.float32)
    return Library([sources[number] for number in order], vectors, sorted(failures, key=lambda f: f["file"]))


def embed_each(
    encoder: CLaMP3Encoder,
    sources: Sequence[Source],
    *,
    cache: VectorCache | None = None,
    workers: int | None = None,
    backend: str | None = None,
) -> Iterator[tuple[int, np.ndarray | None, str | None]]:
    """(number, vector [D], None) of each source, or (number, None, why there is none), as they are done."""
    keys = content_keys(encoder, sources, cache) if cache else {}
    known = cache.get(set(keys.values())) if cache else {}
    ready = {number: known[key] for number, key in keys.items() if key in known}
    yield from ((number, vector, None) for number, vector in ready.items())
    missing = [number for number in range(len(sources)) if number not in ready]
    encoded = _encode(encoder, [sources[number] for number in missing], workers, backend)
    while some := list(itertools.islice(encoded, KEPT_AT_ONCE)):
        some = [(missing[place], vector, error) for place, vector, error in some]
        if cache:
            cache.put({keys[number]: vector for number, vector, _ in some if vector is not None and number in keys})
        yield from some


def content_keys(encoder: CLaMP3Encoder, sources: Sequence[Source], cache: VectorCache) -> dict[int, str]:
    """What names the vector of each source, by its number; unreadable files are left out."""
    hashes = cache.content_hashes(map(os.fspath, sources))
    keys = {}
    for number, source in enumerate(sources):
        if content := hashes.get(os.fspath(source)):
            path = Path(source)
            taken_for = f"{path.suffix.lower()}#{getattr(source, 'number', '')}"
            made_by = f"{encoder.space_id} {encoder.precision} {__version__}"
            keys[number] = f"{content} {taken_for} {made_by} {encoder.front_id(path)}"
    return keys


def _encode(
    encoder: CLaMP3Encoder, sources: Sequence[Source], workers: int | None, backend: str | None
) -> Iterator[tuple[int, np.ndarray | None, str | None]]:
    if backend is None:
        for number, vector, error in encoder.encode_each(sources, workers=workers):
            yield number, None if vector is None else vector[0], error
        return
    if not encoder.pretrained:
        raise InputError("expected an encoder of from_pretrained: every process of the cluster loads its own")
    starts = range(0, len(sources), FILES_A_JOB)
    jobs = [sources[start : start + FILES_A_JOB] for start in starts]
    embed = partial(_embed_on_node, encoder.pretrained)
    for job, outcomes, error in run_jobs(embed, jobs, workers=workers, backend=backend):
        if error:
            outcomes = [(number, None, error) for number in range(len(jobs[job]))]
        yield from ((starts[job] + number, vector, problem) for number, vector, problem in outcomes)


def _embed_on_node(pretrained: tuple, sources: list[Source]) -> list[tuple[int, np.ndarray | None, str | None]]:
    return list(_encode(_encoder(pretrained), sources, workers=1, backend=None))


@lru_cache(maxsize=1)
def _encoder(pretrained: tuple) -> CLaMP3Encoder:
    """A process's own."""
    return CLaMP3Encoder.from_pretrained(**dict(pretrained))


def check_found(library: Library, path: str | Path) -> Library:
    """The library; InputError if not one of its files could be embedded."""
    if not len(library):
        first = library.failures[0]["error"]
        raise InputError(
            f"{show(path)}: none of its {len(library.failures)} files could be embedded; the first: {first}"
        )
    return library

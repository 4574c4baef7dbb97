"""Collections: folders of files of any kind as vectors, each file embedded once, whatever its name becomes.

A file of many tunes is as many sources (see score_files.Tune). A vector is found again by the content of its file, the
kind of file, the tune in it, and all that made the vector.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from clamplib import __version__
from clamplib.embedding.cache import VectorCache
from clamplib.embedding.encoder import CLaMP3Encoder
from clamplib.embedding.folders import input_files, write_features
from clamplib.embedding.reading import BLIP_REPO, FEATURE_SUFFIXES, SUFFIXES, is_recording, modality_of
from clamplib.embedding.saving import Saver
from clamplib.files import InputError, file_state, key, sha256, show, walk
from clamplib.formats.score_files import Tune, list_tunes
from clamplib.jobs import Outcome, Report, run_jobs
from clamplib.retrieval.index import Index, Record
from clamplib.retrieval.similarity import Features, load_features, normalize
from clamplib.space import check_same_space, read_space

TAKEN_AT_ONCE = 1024  # vectors that are taken from the cache or an index together
FILES_A_JOB = 32  # on a cluster
LOADING = Lock()  # a worker of Dask is many threads

Source = Path | Tune


@dataclass(frozen=True)
class Collection:
    """The vectors of some sources, and why others have none."""

    sources: list[Source]
    features: Features  # in the order of the sources
    failures: list[dict[str, str]]  # file, error

    @classmethod
    def of(
        cls,
        sources: Sequence[Source],
        vectors: np.ndarray,
        root: str | Path | None = None,
        failures: Sequence[dict[str, str]] = (),
        space: dict | None = None,
    ) -> "Collection":
        """The collection of sources with their vectors [N, D], whose keys begin below `root` if there is one.

        The vectors are scaled in place, so that there is one matrix.
        """
        paths = aliases(sources)
        keys = [key(path, path.anchor if root is None else root) for path in paths]
        matrix, lengths = normalize(vectors, in_place=True)
        return cls(list(sources), Features(keys, matrix, lengths, paths, [], space), list(failures))

    def __len__(self) -> int:
        return len(self.sources)

    @property
    def matrix(self) -> np.ndarray:
        """Unit rows, float32 [N, D]."""
        return self.features.matrix

    @property
    def modalities(self) -> list[str]:
        """What each source holds; "" for features, of which it is not known."""
        suffixes = [Path(source).suffix.lower() for source in self.sources]
        known = zip(self.sources, suffixes, strict=True)
        return ["" if suffix in FEATURE_SUFFIXES else modality_of(source) for source, suffix in known]


class Fingerprint(NamedTuple):
    """What a source held when it was hashed."""

    key: str  # names its vector
    state: str | None  # of the file (see files.file_state)


@dataclass(frozen=True)
class IndexUpdate:
    """What has become of an index."""

    changed: int  # records that are new, or of another content, label or modality than before
    removed: int
    failures: list[dict[str, str]]  # file, error


def find_sources(path: str | Path, suffixes: Sequence[str] = SUFFIXES) -> list[Source]:
    """The files under a folder (or the file) that an encoder takes, and the tunes of those that hold many, sorted.

    Images are among them with the encoder's own `suffixes`, if it has a captioner.
    """
    return [source for file in walk(path, suffixes) for source in list_tunes(file)]


def embed_sources(
    encoder: CLaMP3Encoder,
    sources: Sequence[Source],
    root: str | Path | None = None,
    *,
    cache: VectorCache | None = None,
    workers: int | None = None,
    backend: str | None = None,
    progress: bool = True,
) -> Collection:
    """Embeds sources. The vectors that the cache holds come from there, and the others are kept there.

    Args:
        root: the folder that keys begin below; None: keys are whole paths.
        workers: processes that read and convert; None: one per core where the sources are many.
        backend: "ray" or "dask" sends the files to the cluster, whose every process loads the model. The files must lie
            where all can read them.
    """
    vectors, failures = np.empty((len(sources), encoder.dimension), np.float32), []
    embedded = np.zeros(len(sources), bool)
    outcomes = embed_each(encoder, sources, cache=cache, workers=workers, backend=backend)
    for number, vector, error in tqdm(outcomes, total=len(sources), unit="file", disable=not progress):
        if error:
            failures.append({"file": str(sources[number]), "error": error})
        else:
            vectors[number], embedded[number] = vector, True
    order = np.flatnonzero(embedded)
    if failures:  # the rows move up, without a second matrix
        for start in range(0, len(order), TAKEN_AT_ONCE):
            part = order[start : start + TAKEN_AT_ONCE]
            vectors[start : start + len(part)] = vectors[part]
    failures.sort(key=lambda failure: failure["file"])
    return Collection.of([sources[n] for n in order], vectors[: len(order)], root, failures, encoder.space)


def embed_each(
    encoder: CLaMP3Encoder,
    sources: Sequence[Source],
    *,
    cache: VectorCache | None = None,
    workers: int | None = None,
    backend: str | None = None,
    fingerprints: Mapping[int, Fingerprint] | None = None,
) -> Iterator[Outcome]:
    """Embeds sources, each with its own outcome, as they are done.

    Args:
        cache, workers, backend: as for `embed_sources`.
        fingerprints: those of `read_fingerprints`, where they are known. A source that has changed since is a failure.

    Yields:
        Outcomes whose value is the vector float32 [D].
    """
    missing: dict[int, Fingerprint | None] = {}
    for start in range(0, len(sources), TAKEN_AT_ONCE):
        part = sources[start : start + TAKEN_AT_ONCE]
        if fingerprints is not None:
            found = {place: fingerprints.get(start + place) for place in range(len(part))}
        else:
            found = read_fingerprints(encoder, part, cache) if cache else {}
        known = cache.get({fingerprint.key for fingerprint in found.values() if fingerprint}) if cache else {}
        for number in range(start, start + len(part)):
            fingerprint = found.get(number - start)
            if fingerprint and fingerprint.key in known:
                yield Outcome(number, known[fingerprint.key])
            else:
                missing[number] = fingerprint
    encoded = _encode(encoder, [sources[number] for number in missing], workers, backend)
    numbers = list(missing)
    with Saver(lambda vectors: cache.put(dict(vectors))) as saver:
        for place, vector, error in encoded:
            number = numbers[place]
            fingerprint = missing[number]
            if fingerprint and file_state(sources[number]) != fingerprint.state:
                vector, error = None, f"{show(sources[number])}: changed while it was read; run it again"
            if cache and fingerprint and vector is not None:
                saver.add((fingerprint.key, vector))
            yield Outcome(number, vector, error)


def embed_folder(
    encoder: CLaMP3Encoder,
    folder: str | Path,
    output: str | Path,
    *,
    temporal: bool = False,
    cache: VectorCache | None = None,
    workers: int | None = None,
    backend: str | None = None,
    progress: bool = True,
) -> Report:
    """Writes a .npy for every file of a folder (or for one file) that has none up to date, and space.json beside them.

    Args:
        folder: files of any kind that the encoder takes; sub-folders are kept in the output.
        output: folder for the vectors [1, D].
        temporal: writes the last hidden states [1, T, H] instead; they are not cached.
        cache, workers, backend: as for `embed_sources`.

    Raises:
        InputError: nothing there can be read, or the output holds another embedding space.
    """
    if temporal and backend:
        raise InputError(f"expected vectors to embed on {backend}; hidden states are made on one machine")
    sources = []
    for file in input_files(folder, output, encoder.suffixes):
        sources += list_tunes(file)
    space = {**encoder.space, "kind": "clamp3 temporal"} if temporal else encoder.space
    if any(map(is_recording, sources)):
        space = {**space, "front": encoder.audio_front_id}

    def outcomes(wanted: Sequence[Source]) -> Iterator[Outcome]:
        if temporal:
            yield from encoder.encode_each(wanted, pooled=False, workers=workers)
            return
        for number, vector, error in embed_each(encoder, wanted, cache=cache, workers=workers, backend=backend):
            yield Outcome(number, None if error else vector[None], error)

    load = (lambda: encoder.loaded) if temporal else None
    return write_features(outcomes, sources, folder, output, space, load=load, progress=progress)


def embed_pair(
    query: str | Path, references: str | Path, variant: str | Path | None = None
) -> tuple[Features, Features]:
    """Opens two folders, or a file and a folder, of raw files or of features; images go by their captions.

    Returns:
        The vectors of both. Files that cannot be embedded are among the `failures`.

    Raises:
        InputError: nothing of one of the two can be embedded.
    """
    encoder, cache = CLaMP3Encoder.from_pretrained(variant, captioner=BLIP_REPO, load_now=False), VectorCache()
    both = []
    for path in (query, references):
        opened = open_collection(encoder, path, cache=cache)
        both.append(replace(opened.features, failures=[InputError(failure["error"]) for failure in opened.failures]))
    return both[0], both[1]


def open_collection(
    encoder: CLaMP3Encoder, path: str | Path, *, cache: VectorCache | None = None, workers: int | None = None
) -> Collection:
    """Opens a folder or file of any kind, and embeds it unless it holds features (.npy) that were extracted before.

    Raises:
        InputError: nothing there can be embedded, or the features are of another space than the encoder's.
    """
    if _holds_features(path, encoder.suffixes):
        features = load_features(path)
        check_same_space(show(path), features.space, "the variant that was asked for", encoder.space)
        failures = [{"file": str(path), "error": str(error)} for error in features.failures]
        return Collection(features.paths, features, failures)
    sources = find_sources(path, encoder.suffixes)
    return check_found(embed_sources(encoder, sources, path, cache=cache, workers=workers), path)


def _holds_features(path: str | Path, embeddable: Sequence[str]) -> bool:
    """Whether a file is one, or a folder holds features and nothing else that could be embedded, by its suffix."""
    path = Path(path)
    if path.is_file():
        return path.suffix in FEATURE_SUFFIXES
    if path.is_dir() and read_space(path):
        return True
    suffixes = {file.suffix.lower() for file in path.rglob("*")}
    return not suffixes.isdisjoint(FEATURE_SUFFIXES) and suffixes.isdisjoint(embeddable)


def aliases(sources: Sequence[Source]) -> list[Path]:
    """A path of its own for each: tunes of one file have such in name alone (see scores.Tune)."""
    return [Path(getattr(source, "alias", source)) for source in sources]


def update_index(
    encoder: CLaMP3Encoder,
    sources: Sequence[Source],
    index: Index,
    folder: str | Path,
    *,
    labels: Sequence[str | None] | None = None,
    cache: VectorCache | None = None,
    workers: int | None = None,
    backend: str | None = None,
    progress: bool = True,
) -> IndexUpdate:
    """Makes an index hold the sources, which lie in `folder` (or are it), as they are now, by their absolute paths.

    Only content that the index does not know is embedded, and written as it is done, so that an interrupted update
    loses little. A source without a vector, or that the index cannot hold, is a failure, and not in the index; nor is
    what else it has had of `folder`.

    Args:
        labels: of each source, to filter by.
        cache, backend: as for `embed_sources`.
    """
    found = read_fingerprints(encoder, sources, cache or VectorCache(":memory:"))  # which is forgotten
    failed = {number: _unreadable(source) for number, source in enumerate(sources) if number not in found}
    labels = labels or [None] * len(sources)
    paths = [_address(source) for source in sources]
    records = {n: Record(paths[n], found[n].key, labels[n] or "", modality_of(sources[n])) for n in found}
    failed |= {number: refusal for number, record in records.items() if (refusal := index.refusal(record))}
    known = set(index.records())
    changed = {n: record for n, record in records.items() if n not in failed and record not in known}
    del known  # which takes as much memory as some vectors
    numbers, new = list(changed), []
    for start in range(0, len(numbers), TAKEN_AT_ONCE):
        part = numbers[start : start + TAKEN_AT_ONCE]
        ready = index.vectors({records[number].key for number in part})
        moved = [records[number] for number in part if records[number].key in ready]
        if moved:
            index.upsert(moved, np.stack([ready[record.key] for record in moved]))
        new += [number for number in part if records[number].key not in ready]
    outcomes = embed_each(
        encoder,
        [sources[number] for number in new],
        cache=cache,
        workers=workers,
        backend=backend,
        fingerprints={place: found[number] for place, number in enumerate(new)},
    )
    outcomes = tqdm(outcomes, total=len(new), unit="file", disable=not (progress and new))
    errors = _upsert_each(index, [records[number] for number in new], outcomes)
    failed |= {new[place]: error for place, error in errors.items()}
    own = re.compile(re.escape(os.path.abspath(folder).rstrip(os.sep)) + r"(/.*|#[0-9]+)?", re.DOTALL)
    present = {path for number, path in enumerate(paths) if number not in failed}
    gone = [path for path in index.paths() if own.fullmatch(path) and path not in present]
    index.remove(gone)
    failures = [{"file": str(sources[number]), "error": failed[number]} for number in sorted(failed)]
    return IndexUpdate(len(changed.keys() - failed.keys()), len(gone), failures)


def _upsert_each(index: Index, records: Sequence[Record], outcomes: Iterable[tuple]) -> dict[int, str]:
    """Puts the vectors of `embed_each` into an index as they come; why the others have none, by their numbers."""

    def save(embedded: list[tuple[int, np.ndarray]]) -> None:
        vectors = np.stack([vector for _, vector in embedded])
        index.upsert([records[number] for number, _ in embedded], normalize(vectors, in_place=True)[0])

    errors = {}
    with Saver(save) as saver:
        for number, vector, error in outcomes:
            if error:
                errors[number] = error
            else:
                saver.add((number, vector))
    return errors


def _unreadable(source: Source) -> str:
    """Why a source has no content key."""
    try:
        sha256(source)
    except InputError as error:
        return str(error)
    except OSError as error:
        return f"{show(source)}: expected a file that can be read ({error.strerror})"
    return f"{show(source)}: could not be read a moment ago, but can be now; run it again"


def _address(source: Source) -> str:
    """What an index calls it: its absolute path, with a tune's number behind."""
    path = os.path.abspath(source)
    return str(replace(source, path=Path(path))) if isinstance(source, Tune) else path


def read_fingerprints(encoder: CLaMP3Encoder, sources: Sequence[Source], cache: VectorCache) -> dict[int, Fingerprint]:
    """What each source holds, by its number; unreadable files are left out."""
    states = [file_state(source) for source in sources]  # first: what changes from here on is seen
    hashes = cache.content_hashes(map(os.fspath, sources))
    fingerprints = {}
    for number, source in enumerate(sources):
        if content := hashes.get(os.fspath(source)):
            path = Path(source)
            taken_for = f"{path.suffix.lower()}#{getattr(source, 'number', '')}"
            made_by = f"{encoder.space_id} {encoder.precision} {__version__} {encoder.space['abc']}"
            name = f"{content} {taken_for} {made_by} {encoder.front_id(path)}"
            fingerprints[number] = Fingerprint(name, states[number])
    return fingerprints


def _encode(
    encoder: CLaMP3Encoder, sources: Sequence[Source], workers: int | None, backend: str | None
) -> Iterator[Outcome]:
    if backend is None:
        for number, vector, error in encoder.encode_each(sources, workers=workers):
            yield Outcome(number, None if error else vector[0], error)
        return
    if not encoder.pretrained:
        raise InputError("expected an encoder of from_pretrained: every process of the cluster loads its own")
    starts = range(0, len(sources), FILES_A_JOB)
    jobs = [sources[start : start + FILES_A_JOB] for start in starts]
    embed = partial(_embed_on_node, encoder.pretrained)
    # Reading has its limits on the node; the model has none, and stays where it was loaded.
    for job, outcomes, error in run_jobs(embed, jobs, workers=workers, backend=backend, limits=None):
        if error:
            outcomes = [Outcome(number, error=error) for number in range(len(jobs[job]))]
        for number, vector, problem in outcomes:
            yield Outcome(starts[job] + number, vector, problem)


def _embed_on_node(pretrained: tuple, sources: list[Source]) -> list[Outcome]:
    with LOADING:
        encoder = _encoder(pretrained)
    return list(_encode(encoder, sources, workers=1, backend=None))


@lru_cache(maxsize=1)
def _encoder(pretrained: tuple) -> CLaMP3Encoder:
    """A process's own."""
    return CLaMP3Encoder.from_pretrained(**dict(pretrained))


def check_found(collection: Collection, path: str | Path) -> Collection:
    """The collection; InputError if not one of its files could be embedded."""
    if not len(collection):
        failures = collection.failures
        raise InputError(
            f"{show(path)}: none of its {len(failures)} files could be embedded; the first: {failures[0]['error']}"
        )
    return collection

"""Folders of files to folders of features: read ahead, encoded a chunk at a time, saved as .npy."""

import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from clamplib.embedding.encoding import Encoder, clamp3_encoders, encode, m3_encoders
from clamplib.embedding.sequences import MODALITIES, Reader
from clamplib.files import InputError, Report, atomic_path, describe, is_done, output_paths, show, walk
from clamplib.models import distributed
from clamplib.models.checkpoints import Loaded
from clamplib.models.encoders import M3Model
from clamplib.models.geometry import Geometry
from clamplib.space import SPACE_FILE, check_same_space, read_space, write_space

logger = logging.getLogger(__name__)

# Rows that are sorted by length together, and saved together; states of 400 MB at the published size, less on a CPU,
# where a chunk takes longer.
GPU_CHUNK_ROWS, CPU_CHUNK_ROWS = 1 << 17, 1 << 13
MAX_WORKERS = 4
FILES_A_WORKER = 100  # for fewer, starting a process is not worth it
READ_AHEAD = 256  # files that each worker may be ahead


def input_files(input_dir: str | Path, output_dir: str | Path, suffixes: Iterable[str]) -> list[Path]:
    """The files to extract, without what lies in an output folder below the input folder.

    InputError where the two are one folder: the features would be inputs of the next run.
    """
    sources = walk(input_dir, suffixes)
    root, output = Path(input_dir).resolve(), Path(output_dir).resolve()
    if root == output:
        raise InputError(f"{show(output_dir)}: expected an output folder other than the input folder")
    if root in output.parents:
        sources = [source for source in sources if output not in source.resolve().parents]
    return sources


def extract_files(
    sources: Sequence[Path],
    input_dir: str | Path,
    output_dir: str | Path,
    loaded: Loaded,
    *,
    get_global: bool = False,
    batch_size: int | None = None,
    workers: int | None = None,
) -> Report:
    """Writes the feature of each file that has none up to date, and space.json beside them.

    A CLaMP 3 model gives temporal or global features, M3 temporal ones. Of several processes (see
    `distributed`) each takes its share of the files, and each returns the report of all. `workers` processes
    read ahead; None: some, where the files are many. InputError before any work if the output folder holds
    another space.
    """
    m3 = isinstance(loaded.model, M3Model)
    kind = "m3" if m3 else "clamp3 global" if get_global else "clamp3 temporal"
    encoders = m3_encoders(loaded) if m3 else clamp3_encoders(loaded, get_global)
    jobs, report = open_jobs(sources, input_dir, output_dir, {**loaded.space, "kind": kind})
    reader, cut = Reader(loaded.geometry, loaded.tokenizer), 0
    on_cpu = loaded.model.device.type == "cpu"
    chunk_rows = CPU_CHUNK_ROWS if on_cpu else GPU_CHUNK_ROWS
    with tqdm(total=len(jobs), unit="file", disable=distributed.rank() > 0) as bar:
        for chunk in _chunks(read_ahead(jobs, reader, workers), chunk_rows):
            cut += sum(reader.count_cut(piece.rows) for piece in chunk if piece.rows is not None)
            for piece, feature in _encode_chunk(chunk, encoders, batch_size):
                if feature is None:
                    report.add_failure(piece.source, piece.error)
                else:
                    save_feature(piece.source, piece.target, feature, report)
            bar.update(len(chunk))
    _warn_of_cut_patches(int(distributed.total(cut)), loaded.geometry)
    return close_jobs(report, output_dir)


def open_jobs(
    sources: Sequence[os.PathLike], input_dir: str | Path, output_dir: str | Path, space: dict
) -> tuple[list[tuple[os.PathLike, Path]], Report]:
    """This process's share of the (source, target) pairs that are to do, and a report that counts the done ones.

    Makes the output folder the space's. InputError if it holds another, or if a feature would replace an input.
    """
    targets = output_paths([getattr(source, "alias", source) for source in sources], input_dir, output_dir, ".npy")
    if both := set(map(os.path.abspath, sources)) & set(map(os.path.abspath, targets)):
        raise InputError(f"{show(min(both))}: expected an output folder where no feature replaces an input")
    known = _claim(output_dir, space)
    share = list(zip(sources, targets, strict=True))[distributed.rank() :: distributed.world_size()]
    jobs = [job for job in share if not (known and is_done(*job))]
    return jobs, Report(skipped=len(share) - len(jobs))


def close_jobs(report: Report, output_dir: str | Path) -> Report:
    """The report of all processes, written by the first."""
    reports = distributed.gather(report)
    whole = Report(
        done=sum(r.done for r in reports),
        skipped=sum(r.skipped for r in reports),
        failures=sorted((f for r in reports for f in r.failures), key=lambda failure: failure["file"]),
    )
    if distributed.rank() == 0:
        whole.write(output_dir)
    return whole


def save_feature(source: Path, target: Path, feature: np.ndarray, report: Report) -> None:
    """Writes a feature and counts it; one that is not finite, or cannot be written, is a failure."""
    if not np.isfinite(feature).all():
        report.add_failure(source, "expected finite features, but the model gave NaN or infinity")
        return
    try:
        with atomic_path(target) as temporary:
            np.save(temporary, feature)
        report.done += 1
    except OSError as error:
        report.add_failure(source, error)


def _claim(output_dir: str | Path, space: dict) -> bool:
    """Makes the output folder this space's. Returns whether it was before, so that its features can stay."""
    found = read_space(output_dir)
    check_same_space(output_dir, found, "this run", space)
    distributed.gather(None)  # each process has looked before the first one writes
    if distributed.rank() == 0 and not Path(output_dir, SPACE_FILE).is_file():
        write_space(output_dir, space)
    return found is not None


def _warn_of_cut_patches(count: int, geometry: Geometry) -> None:
    if count and distributed.rank() == 0:
        logger.warning(
            "%d bars or messages are longer than the %d characters of a patch: their ends are cut off",
            count,
            geometry.patch_size - 2,
        )


@dataclass(frozen=True)
class Piece:
    """A file that was read: its sequence, or why there is none."""

    source: Path
    target: Path
    rows: np.ndarray | None
    error: str = ""


class _Files(Dataset):
    def __init__(self, jobs: Sequence[tuple[Path, Path]], reader: Reader):
        self.jobs, self.reader = jobs, reader

    def __len__(self) -> int:
        return len(self.jobs)

    def __getitem__(self, index: int) -> Piece:
        source, target = self.jobs[index]
        try:
            return Piece(source, target, self.reader(source))
        except Exception as error:  # one file's fault, reported
            return Piece(source, target, None, describe(error))


def read_ahead(jobs: Sequence[tuple[Path, Path]], reader: Reader, workers: int | None = None) -> Iterable[Piece]:
    """The pieces of (source, target) pairs, in order, read by `workers` processes while the model is busy."""
    if workers is None:
        cores = (os.cpu_count() or 1) // distributed.world_size()
        workers = min(MAX_WORKERS, cores, len(jobs) // FILES_A_WORKER)
    ahead = {"prefetch_factor": READ_AHEAD} if workers else {}
    return DataLoader(_Files(jobs, reader), batch_size=None, num_workers=workers, collate_fn=_as_it_is, **ahead)


def _as_it_is(piece: Piece) -> Piece:
    return piece


def _chunks(pieces: Iterable[Piece], rows: int) -> Iterator[list[Piece]]:
    """Lists of pieces that have about `rows` rows together, so that memory stays bounded."""
    chunk, size = [], 0
    for piece in pieces:
        chunk.append(piece)
        size += 1 if piece.rows is None else len(piece.rows)
        if size >= rows:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _encode_chunk(
    chunk: list[Piece], encoders: dict[str, Encoder], batch_size: int | None
) -> Iterator[tuple[Piece, np.ndarray | None]]:
    by_modality = defaultdict(list)
    for piece in chunk:
        if piece.rows is None:
            yield piece, None
        else:
            by_modality[MODALITIES[piece.source.suffix.lower()]].append(piece)
    for modality, pieces in by_modality.items():
        features = encode(encoders[modality], [piece.rows for piece in pieces], batch_size)
        yield from zip(pieces, features, strict=True)

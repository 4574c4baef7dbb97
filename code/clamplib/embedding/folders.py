"""Folders of files to folders of features: a .npy for each file, and space.json beside them.

Every door that writes features writes them by `write_features`. Of several processes (see `distributed`) each takes its
share of the files, and each returns the report of all.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from clamplib.embedding.reading import FEATURE_SUFFIXES, Reader, read_ahead
from clamplib.files import InputError, atomic_path, check_writable, file_state, output_paths, show, walk
from clamplib.jobs import LIMITS, NOT_FINITE, Limits, Outcome, Report
from clamplib.manifest import Manifest, content_of
from clamplib.models import distributed
from clamplib.models.variants import FoundModel
from clamplib.space import SPACE_FILE, check_same_space, front_of, read_space, write_space

if TYPE_CHECKING:  # which imports torch
    from clamplib.models.loading import LoadedModel


def input_files(input_dir: str | Path, output_dir: str | Path, suffixes: Iterable[str]) -> list[Path]:
    """Finds the files to extract, without those in an output folder below the input folder.

    Raises:
        InputError: there are no files; or the folders are the same, and the next run would read the features as input.
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
    model: "FoundModel | LoadedModel",
    *,
    get_global: bool = False,
    batch_size: int | None = None,
    workers: int | None = None,
    precision: str = "float32",
    limits: Limits | None = LIMITS,
) -> Report:
    """Writes the features of texts, ABC, MTF and audio features that have none up to date.

    Args:
        model: CLaMP 3, which gives temporal or global features; or M3, which gives temporal ones. Its weights are read
            only if there is anything to extract.
        get_global: writes one vector [1, D] per file, in place of the hidden states [1, T, H].
        batch_size: segments of full length in a batch; None: what suits the device.
        workers: processes that read ahead; None: by files and cores.
        precision: in which the model computes, float32, bfloat16, float16 or int8.
        limits: of time and memory for reading one file.

    Raises:
        InputError: before any work, if the output folder holds another space.
    """
    space = {**model.space, "kind": "m3" if model.m3 else "clamp3 global" if get_global else "clamp3 temporal"}
    if precision != "float32":
        space["precision"] = precision
    if any(source.suffix.lower() in FEATURE_SUFFIXES for source in sources):
        space |= front_of(read_space(input_dir))

    @cache
    def load() -> Callable[..., Iterator[Outcome]]:
        """Loads the model, and gives what encodes readings by it."""
        import torch

        from clamplib.embedding.encoding import clamp3_encoders, encode_each, m3_encoders

        dtype = getattr(torch, precision)
        loaded = model.load().prepare(distributed.own_device(), dtype)
        encoders = m3_encoders(loaded, dtype) if model.m3 else clamp3_encoders(loaded, get_global, dtype)
        return partial(encode_each, encoders=encoders, tokenizer=loaded.tokenizer, batch_size=batch_size)

    def outcomes(files: Sequence[Path]) -> Iterator[Outcome]:
        if files:
            readings = read_ahead(Reader(model.geometry, limits), files, workers=_own_workers(workers))
            yield from load()(readings, name=lambda number: show(files[number]))

    return write_features(outcomes, sources, input_dir, output_dir, space, load=load)


def _own_workers(workers: int | None) -> int | None:
    """This process's share of the cores, if it has neighbors."""
    if workers is None and distributed.world_size() > 1:
        return (os.cpu_count() or 1) // distributed.world_size()
    return workers


def write_features(
    outcomes: Callable[[list[os.PathLike]], Iterator[Outcome]],
    sources: Sequence[os.PathLike],
    input_dir: str | Path,
    output_dir: str | Path,
    space: dict,
    *,
    load: Callable[[], object] | None = None,
    progress: bool = True,
) -> Report:
    """Writes the feature of each source that has none up to date; space.json; and failures.jsonl where there are any.

    Args:
        outcomes: makes the features of sources: outcomes whose value is an array.
        sources: paths, or tunes of files that hold many, below `input_dir`, whose sub-folders are kept.
        space: of the features.
        load: loads the model that makes them. It is called if any are missing, before anything is written.

    Raises:
        InputError: before any work, if the output folder holds another space, or a feature would replace an input.
    """
    targets = output_paths([getattr(source, "alias", source) for source in sources], input_dir, output_dir, ".npy")
    if both := set(map(os.path.abspath, sources)) & set(map(os.path.abspath, targets)):
        raise InputError(f"{show(min(both))}: expected an output folder where no feature replaces an input")
    known = read_space(output_dir)
    check_same_space(output_dir, known, "this run", space)
    share = list(zip(sources, targets, strict=True))[distributed.rank() :: distributed.world_size()]
    with Manifest() as manifest:
        jobs = manifest.missing(share) if known else share
        if jobs and load:
            load()
        check_writable(output_dir)
        _claim(output_dir, space, known)
        states = [file_state(source) for source, _ in jobs]
        report = Report(skipped=len(share) - len(jobs))
        wanted = [source for source, _ in jobs]
        quiet = not progress or distributed.rank() > 0 or not jobs
        for number, feature, error in tqdm(outcomes(wanted), total=len(jobs), unit="file", disable=quiet):
            source, target = jobs[number]
            stage = "encode" if error == NOT_FINITE else "read"
            if not error:
                stage = "write"
                error = _save(feature, target)
            if error:
                report.add_failure(source, error, stage)
                continue
            report.done += 1
            manifest.add(target, states[number], content_of(source, states[number]))
    return _gather(report, output_dir)


def _save(feature: np.ndarray, target: Path) -> OSError | None:
    """Writes a feature whole or not at all; returns why it could not."""
    try:
        with atomic_path(target) as temporary:
            np.save(temporary, feature)
    except OSError as error:
        return error


def _claim(output_dir: str | Path, space: dict, found: dict | None) -> None:
    """Makes the output folder this space's, given the space in which it was found."""
    distributed.gather(None)  # each process has looked before the first one writes
    if distributed.rank() == 0:
        own = Path(output_dir, SPACE_FILE).is_file()
        if not own or space.keys() - found.keys():
            write_space(output_dir, {**(found if own else {}), **space})


def _gather(report: Report, output_dir: str | Path) -> Report:
    """The report of all processes, written by the first."""
    whole = Report()
    for each in distributed.gather(report):
        whole.done += each.done
        whole.skipped += each.skipped
        whole.failures += each.failures
    whole.failures.sort(key=lambda failure: failure["file"])
    if distributed.rank() == 0:
        whole.write(output_dir)
    return whole

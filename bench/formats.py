"""Conversion of scores and MIDI files to text: as the batch scripts do it, against one Python process per file.

The files are scores of music21's corpus, and MIDI files that music21 makes from them. The times include the start
of the workers. Then each step alone, against the libraries that it stands on, and the reading of .npy files.
"""

import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, redirect_stdout, suppress
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any
from unittest import mock

import loky
import numpy as np
from abctoolkit import xml2abc
from abctoolkit.check import check_alignment_unrotated
from abctoolkit.rotate import rotate_abc
from abctoolkit.utils import remove_bar_no_annotations, strip_empty_bars

from bench.common import CORPUS, Row, seconds
from clamplib.command import text_writer
from clamplib.files import InputError, load_array
from clamplib.formats.mtf import midi_to_mtf
from clamplib.formats.notation import interleave, interleave_and_compare, xml_to_abc
from clamplib.jobs import FEW, run_batch, run_jobs
from clamplib.processes import call

SCORES, MIDIS = 160, 60
STEP_SCORES = 50  # for the look-ups alone
ARRAYS, ARRAY_SIZE = 10_000, 768
REPEATS = 3  # of each way, in turn, of which the fastest counts
LARGEST = 100_000  # bytes of a score; otherwise a few symphonies would take most of the time
MIDI_PROGRAM = """
import sys, mido
midi = mido.MidiFile(sys.argv[1])
lines = [f"ticks_per_beat {midi.ticks_per_beat}"]
for message in midi.merged_track:
    values = " ".join(str(value) for value in message.dict().values())
    lines.append(values.encode("unicode_escape").decode())
sys.stdout.write("\\n".join(lines))
"""
FEW_FILES_PROGRAM = """
import multiprocessing, os, sys
from pathlib import Path
from bench.formats import score_to_interleaved
from clamplib.jobs import run_jobs
workers, *files = sys.argv[1:]
before = sum(os.times()[:4])
list(run_jobs(score_to_interleaved, [Path(file) for file in files], workers=int(workers) or None))
for process in multiprocessing.active_children():
    process.terminate()
    process.join()
print(sum(os.times()[:4]) - before)
"""


def rows() -> Iterator[Row]:
    """Yields two comparisons, what the limits cost, and four comparisons of single steps."""
    found = sorted(path for path in CORPUS.rglob("*.mxl") if path.stat().st_size < LARGEST)
    scores = random.Random(0).sample(found, SCORES)
    with tempfile.TemporaryDirectory() as folder:
        targets = [Path(folder, f"{number}.mid") for number in range(MIDIS)]
        run_batch(write_midi, scores[:MIDIS], targets, output_root=folder, description="MIDI files to start with")
        midis = [target for target in targets if target.exists()]  # music21 cannot expand every repeat
        yield _compare("MusicXML to interleaved ABC", scores, naive_interleaved, score_to_interleaved)
        yield _compare("MIDI to MTF", midis, naive_mtf, partial(midi_to_mtf, m3_compatible=False))
        yield _price_of_limits("scores, with limits of time and memory", score_to_interleaved, scores)
        yield _price_of_limits("MIDI files, with limits", midi_to_mtf, midis * (SCORES // len(midis) + 1))
        yield _few_files(sorted(scores, key=os.path.getsize)[:FEW])
        yield _lookups(scores[:STEP_SCORES])
        yield _bars(scores)
        yield _arrays(Path(folder, "arrays"))


def score_to_interleaved(path: Path) -> str:
    return interleave(xml_to_abc(path))


def naive_interleaved(path: Path) -> str:
    return interleave(_output_of(xml2abc.__file__, "-d", "8", "-x", path))


def naive_mtf(path: Path) -> str:
    return _output_of("-c", MIDI_PROGRAM, path)


def _output_of(*args: str | Path) -> str:
    return subprocess.run([sys.executable, *args], capture_output=True, check=True, encoding="utf-8").stdout


def write_midi(score: Path, midi: Path) -> None:
    from music21 import converter

    converter.parse(score, forceSource=True).write("midi", midi)


def _compare(name: str, files: Sequence[Path], naive: Callable[[Path], str], ours: Callable[[Path], str]) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        targets = [Path(folder, f"{number}.txt") for number in range(len(files))]
        batch = partial(run_batch, text_writer(ours), files, targets, output_root=folder, description=name)
        our_seconds = seconds(batch)
    naive_seconds = seconds(lambda: _one_by_one(naive, files))
    note = f"naive: a Python process per file, one after the other; here: {os.cpu_count()} workers"
    return Row(name, naive_seconds, our_seconds, note)


def _price_of_limits(name: str, convert: Callable[[Path], str], files: Sequence[Path]) -> Row:
    """Compares processes with limits to a pool without."""

    def pool() -> None:
        with loky.ProcessPoolExecutor(max_workers=os.cpu_count()) as executor:
            list(executor.map(partial(_or_none, convert), files))

    naive, ours = _in_turn(pool, lambda: list(run_jobs(convert, files)))
    return Row(name, naive, ours, f"{len(files)} files; naive: loky's pool, without limits")


def _few_files(scores: Sequence[Path]) -> Row:
    """Compares the CPU seconds of a process per core to those of the number that run_jobs chooses."""

    def cpu_seconds(workers: int) -> float:
        return float(_output_of("-c", FEW_FILES_PROGRAM, str(workers), *scores))

    times = [(cpu_seconds(os.cpu_count()), cpu_seconds(0)) for _ in range(REPEATS)]
    naive, ours = map(min, zip(*times, strict=True))
    note = f"CPU seconds; naive: {os.cpu_count()} workers; here: what run_jobs chooses"
    return Row(f"{len(scores)} small scores", naive, ours, note)


def _lookups(scores: Sequence[Path]) -> Row:
    def convert() -> None:
        for score in scores:
            call(partial(_or_none, xml_to_abc), score)  # as other processes do it, without garbage collection

    def convert_slowly() -> None:
        with mock.patch("clamplib.formats.notation.fast_lookups", nullcontext):
            convert()

    naive, ours = _in_turn(convert_slowly, convert)
    return Row("MusicXML to ABC in one process", naive, ours, f"{len(scores)} scores; naive: ElementTree's look-ups")


def _bars(scores: Sequence[Path]) -> Row:
    tunes = [tune for score in scores if (tune := _or_none(xml_to_abc, score))]
    lines = [[line for line in tune.splitlines(keepends=True) if not line.startswith("w:")] for tune in tunes]

    def join(tune: list[str]) -> None:
        stripped, _ = strip_empty_bars(remove_bar_no_annotations(tune))
        rotate_abc(stripped)

    def compare(tune: list[str]) -> None:
        check_alignment_unrotated(remove_bar_no_annotations(tune))

    naive, ours = _in_turn(lambda: _each(join, lines), lambda: _each(interleave_and_compare, tunes))
    checked = seconds(lambda: _each(compare, lines))
    note = f"{len(tunes)} scores; naive: abctoolkit, which compares them in {checked:.2f} s more"
    return Row("ABC to interleaved ABC, bars compared", naive, ours, note)


def _each(function: Callable[[Any], Any], items: Sequence[Any]) -> None:
    with redirect_stdout(StringIO()):
        for item in items:
            with suppress(Exception):  # abctoolkit raises whatever a broken score leads to
                function(item)


def _arrays(folder: Path) -> Row:
    folder.mkdir()
    paths = [folder / f"{number}.npy" for number in range(ARRAYS)]
    for path in paths:
        np.save(path, np.ones((1, ARRAY_SIZE), np.float32))

    def naive() -> list[bool]:
        return [bool(np.isfinite(np.load(path)).all()) for path in paths]

    naive_seconds, ours = _in_turn(naive, lambda: [load_array(path) for path in paths])
    return Row(f"{ARRAYS:,} .npy files of {ARRAY_SIZE} values", naive_seconds, ours, "naive: np.load and np.isfinite")


def _in_turn(naive: Callable[[], Any], ours: Callable[[], Any]) -> tuple[float, float]:
    """Returns the seconds of both ways, the best of REPEATS: their difference may be a matter of percents."""
    times = [(seconds(naive), seconds(ours)) for _ in range(REPEATS)]
    return min(first for first, _ in times), min(second for _, second in times)


def _or_none(convert: Callable[[Path], str], path: Path) -> str | None:
    with suppress(InputError):
        return convert(path)


def _one_by_one(convert: Callable[[Path], str], files: Sequence[Path]) -> None:
    for path in files:
        with suppress(InputError):  # xml2abc alone does not open every .mxl
            convert(path)

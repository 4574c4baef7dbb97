"""Conversion of scores and MIDI files to text: as the batch scripts do it, against one Python process per file.

The files are scores of music21's corpus, and MIDI files that music21 makes from them. The times include the start
of the workers.
"""

import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import loky
from abctoolkit import xml2abc

from bench.common import CORPUS, Row, seconds
from clamplib.command import text_writer
from clamplib.files import InputError
from clamplib.formats.mtf import midi_to_mtf
from clamplib.formats.notation import interleave, xml_to_abc
from clamplib.jobs import run_batch, run_jobs

SCORES, MIDIS = 160, 60
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


def rows() -> Iterator[Row]:
    """Yields two comparisons, and what the limits cost."""
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
    """Compares processes with limits to a pool without. The best of three, in turn: it is a matter of percents."""

    def pool() -> None:
        with loky.ProcessPoolExecutor(max_workers=os.cpu_count()) as executor:
            list(executor.map(partial(_or_none, convert), files))

    times = [(seconds(pool), seconds(lambda: list(run_jobs(convert, files)))) for _ in range(3)]
    naive, ours = map(min, zip(*times, strict=True))
    return Row(name, naive, ours, f"{len(files)} files; naive: loky's pool, without limits")


def _or_none(convert: Callable[[Path], str], path: Path) -> str | None:
    with suppress(InputError):
        return convert(path)


def _one_by_one(convert: Callable[[Path], str], files: Sequence[Path]) -> None:
    for path in files:
        with suppress(InputError):  # xml2abc alone does not open every .mxl
            convert(path)

"""Scores and MIDI files to text: the batch scripts' way against a Python process a file.

    python bench/formats.py

The files are real: scores of music21's corpus, and MIDI that music21 makes of them. The start of
the workers counts.
"""

import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from abctoolkit import xml2abc

from clamplib.command import text_writer
from clamplib.files import InputError, run_batch
from clamplib.formats.mtf import midi_to_mtf
from clamplib.formats.notation import interleave, xml_to_abc

SCORES, MIDIS = 160, 60
LARGEST = 100_000  # bytes of a score, so that a few symphonies do not decide the time
MIDI_PROGRAM = """
import sys, mido
midi = mido.MidiFile(sys.argv[1])
lines = [f"ticks_per_beat {midi.ticks_per_beat}"]
for message in midi.merged_track:
    values = " ".join(str(value) for value in message.dict().values())
    lines.append(values.encode("unicode_escape").decode())
sys.stdout.write("\\n".join(lines))
"""


def rows() -> list[dict]:
    """name, naive_s, ours_s, note of each comparison."""
    import music21  # here, so that the workers do not import it

    corpus = Path(music21.__file__).parent / "corpus"
    found = sorted(p for p in corpus.rglob("*.mxl") if p.stat().st_size < LARGEST)
    scores = random.Random(0).sample(found, SCORES)
    with tempfile.TemporaryDirectory() as folder:
        targets = [Path(folder, f"{number}.mid") for number in range(MIDIS)]
        run_batch(write_midi, scores[:MIDIS], targets, output_root=folder, description="MIDI files to begin with")
        midis = [target for target in targets if target.exists()]  # music21 cannot unfold every repeat
        return [
            _row("MusicXML to interleaved ABC", scores, naive_interleaved, score_to_interleaved),
            _row("MIDI to MTF", midis, naive_mtf, partial(midi_to_mtf, m3_compatible=False)),
        ]


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


def _row(name: str, files: Sequence[Path], naive: Callable, ours: Callable) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        targets = [Path(folder, f"{number}.txt") for number in range(len(files))]
        start = time.perf_counter()
        run_batch(text_writer(ours), files, targets, output_root=folder, description=name)
        ours_s = time.perf_counter() - start
    start = time.perf_counter()
    for path in files:
        with suppress(InputError):  # xml2abc alone does not open every .mxl
            naive(path)
    naive_s = time.perf_counter() - start
    return {
        "name": name,
        "naive_s": naive_s,
        "ours_s": ours_s,
        "note": f"a Python process a file, one after the other; ours: {os.cpu_count()} workers",
    }


if __name__ == "__main__":
    for row in rows():
        print(row)

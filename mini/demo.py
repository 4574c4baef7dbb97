"""From scores, MIDI files and recordings to answers, offline: what `make demo` runs.

Takes 300 tunes that `mini` has never seen from the corpus inside music21, half as MusicXML, half as MIDI, and plays 30
of them by a sound font that it has not heard either; puts all through the scripts that a user runs: convert, extract,
search. Everything stays in the output folder.
"""

import argparse
import random
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import joblib
import soundfile
from tqdm import tqdm

from clamplib.audio.spectral import RATE
from clamplib.formats.notation import abc_to_xml
from convert import to_midi, without_labels
from corpus import KINDS, Piece, pieces
from render import MERLIN, render

ROOT = Path(__file__).resolve().parents[1]
HELD_OUT = Path(__file__).with_name("held_out_tunes.txt")
TUNES, BEST = 300, 5
PLAYED, HEARD = 30, 4  # tunes as recordings, and questions asked of them
MARKER = "made_by_the_demo"  # lets the next run remove the folder
DANCES = ("jig", "slip jig", "reel", "hornpipe", "strathspey")
QUESTIONS = (  # language, sentence, right kinds of tune
    ("English", "a lively jig in six eight", ("jig",)),
    ("English", "a slow air, tender and sad", ("air",)),
    ("German", "ein schneller Reel zum Tanzen", ("reel",)),
    ("German", "ein Marsch für Soldaten", ("march",)),
    ("French", "un hornpipe de marins", ("hornpipe",)),
    ("Spanish", "una canción lenta y melancólica", ("air",)),
    ("Italian", "una danza irlandese veloce", DANCES),
    ("Chinese", "欢快的吉格舞曲", ("jig", "slip jig")),
    ("Japanese", "速いリール", ("reel",)),
    ("English", "slip jig in nine eight", ("slip jig",)),
)


def main(argv: list[str] | None = None) -> int:
    """Prepare, convert, extract, search, and print the answers."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=ROOT / "out" / "demo", help="folder that is made anew")
    parser.add_argument("--tunes", type=int, default=TUNES, help=f"how many (default {TUNES})")
    args = parser.parse_args(argv)
    began = time.perf_counter()
    if args.output.exists() and not (args.output / MARKER).exists():
        parser.error(f"{args.output}: expected a folder that the demo made, or none")
    shutil.rmtree(args.output, ignore_errors=True)
    args.output.mkdir(parents=True)
    (args.output / MARKER).touch()
    tunes = held_out_tunes(args.tunes)
    found = prepare(tunes, args.output)
    search = prepare_search(args.output)
    print_answers(QUESTIONS, search("music", len(QUESTIONS)), found)
    played = {name: found[name] for name in sorted(path.stem for path in (args.output / "sound").iterdir())}
    print(f"\nThe first {HEARD} again, among {len(played)} recordings:")
    print_answers(QUESTIONS[:HEARD], search("recordings", HEARD), played)
    print(f"{len(found)} tunes, {len(QUESTIONS)} sentences, {time.perf_counter() - began:.0f} s.")
    return 0


def held_out_tunes(count: int) -> list[Piece]:
    """The first `count` tunes of known kind that were held out of training, taken evenly over the corpus."""
    names = set(HELD_OUT.read_text("utf-8").split("\n"))
    known = [piece for piece in pieces() if piece.id in names and piece.facts.kind in KINDS]
    step = len(known) / min(count, len(known))
    return [known[int(number * step)] for number in range(min(count, len(known)))]


def prepare(tunes: list[Piece], output: Path) -> dict[str, Piece]:
    """Writes every other tune as MusicXML and the rest as MIDI, and plays some; returns the tune of each name."""
    print(f"{len(tunes)} held-out tunes -> {output}/musicxml, {output}/midi and {output}/sound")
    step = max(1, len(tunes) // PLAYED)
    jobs = (joblib.delayed(_write)(piece, n, output, n % step == 0) for n, piece in enumerate(tunes))
    parallel = joblib.Parallel(n_jobs=-1, return_as="generator")
    names = list(tqdm(parallel(jobs), total=len(tunes), unit="tune"))
    (output / "inputs/questions").mkdir(parents=True)
    for number, (_, sentence, _) in enumerate(QUESTIONS):
        (output / f"inputs/questions/{number:02d}.txt").write_text(sentence, encoding="utf-8")
    return dict(zip(names, tunes, strict=True))


def _write(piece: Piece, number: int, output: Path, played: bool) -> str:
    xml, name = abc_to_xml(without_labels(piece.abc)), f"{number:04d}"
    for folder in ("musicxml", "midi", "sound"):
        (output / folder).mkdir(parents=True, exist_ok=True)
    if number % 2:
        to_midi(xml).save(output / f"midi/{name}.mid")
    else:
        (output / f"musicxml/{name}.musicxml").write_text(xml, encoding="utf-8")
    if played:
        soundfile.write(output / f"sound/{name}.wav", render(to_midi(xml), MERLIN, random.Random(number)), RATE)
    return name


def prepare_search(output: Path) -> Callable[[str, int], list[list[tuple[str, float]]]]:
    """Runs the scripts; returns what gives the keys and similarities that the first questions find in a folder."""
    run = _runner(output)
    run("preprocessing/abc/batch_xml2abc.py", "musicxml", "abc")
    run("preprocessing/abc/batch_interleaved_abc.py", "abc", "inputs/music")
    run("preprocessing/midi/batch_midi2mtf.py", "midi", "inputs/music")
    run("preprocessing/audio/extract_spectral.py", "sound", "inputs/recordings")
    run("code/extract_clamp3.py", "inputs", "features", "--get_global", "--variant", "mini")

    def search(folder: str, questions: int) -> list[list[tuple[str, float]]]:
        answers = []
        for number in range(questions):
            query, references = f"features/questions/{number:02d}.npy", f"features/{folder}"
            printed = run("retrieval/semantic_search.py", query, references, "--top_k", str(BEST))
            found = (line.rsplit(" ", 1) for line in printed.splitlines()[1:])
            answers.append([(key, float(similarity)) for key, similarity in found])
        return answers

    return search


def _runner(output: Path) -> Callable[..., str]:
    def run(script: str, *words: str) -> str:
        print(f"$ python {script} {shlex.join(words)}")
        done = subprocess.run([sys.executable, ROOT / script, *words], cwd=output, text=True, stdout=subprocess.PIPE)
        if done.returncode:
            sys.exit(f"{script} ended with status {done.returncode}:\n{done.stdout}")
        return done.stdout

    return run


def print_answers(questions: Sequence[tuple], answers: list[list[tuple[str, float]]], found: dict[str, Piece]) -> None:
    """Prints the best tunes of each question, then how many are of a right kind, and what chance would give."""
    hits, expected = 0, 0.0
    for (language, sentence, right), answer in zip(questions, answers, strict=True):
        print(f"\n{sentence}  ({language})")
        for key, similarity in answer:
            facts = found[key].facts
            mark = "+" if facts.kind in right else " "
            signature = f"{facts.tonic or '?'} {facts.mode or '?'}"
            print(f" {mark} {similarity:.3f}  {facts.kind:10} {signature:12} {facts.metre or '?':5} {facts.title}")
        hits += sum(found[key].facts.kind in right for key, _ in answer)
        expected += sum(piece.facts.kind in right for piece in found.values()) / len(found)
    share, chance = hits / (BEST * len(questions)), expected / len(questions)
    print(f"\nRight kind of tune among the {BEST} best: {share:.0%}; chance would give {chance:.0%}.")


if __name__ == "__main__":
    sys.exit(main())

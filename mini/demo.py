"""From scores, MIDI files and recordings to answers, offline: what `make demo` runs.

Takes 300 tunes that `mini` has never seen from the corpus inside music21, two fifths as MusicXML, as many as MIDI, and
the rest played by a sound font that it has not heard either, and puts them through the scripts that a user runs:
convert, extract, search. Everything stays in the output folder.
"""

import argparse
import random
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import joblib
import soundfile
from tqdm import tqdm

from clamplib.notation import abc_to_xml
from clamplib.spectral import RATE
from convert import to_midi, without_labels
from corpus import KINDS, Piece, pieces
from render import MERLIN, render

ROOT = Path(__file__).resolve().parents[1]
HELD_OUT = Path(__file__).with_name("held_out_tunes.txt")
TUNES, BEST = 300, 5
MADE_OF = ("score", "MIDI", "score", "MIDI", "sound")  # of five tunes
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
    answers = search(args.output)
    right = [print_answer(question, answer, found) for question, answer in zip(QUESTIONS, answers, strict=True)]
    share = sum(hits for hits, _ in right) / (BEST * len(right))
    chance = sum(expected for _, expected in right) / len(right)
    print(f"\nRight kind of tune among the {BEST} best: {share:.0%}; chance would give {chance:.0%}.")
    print(f"{len(found)} tunes, {len(QUESTIONS)} sentences, {time.perf_counter() - began:.0f} s.")
    return 0


def held_out_tunes(count: int) -> list[Piece]:
    """The first `count` tunes of known kind that were held out of training, taken evenly over the corpus."""
    names = set(HELD_OUT.read_text("utf-8").split("\n"))
    known = [piece for piece in pieces() if piece.id in names and piece.facts.kind in KINDS]
    step = len(known) / min(count, len(known))
    return [known[int(number * step)] for number in range(min(count, len(known)))]


def prepare(tunes: list[Piece], output: Path) -> dict[str, Piece]:
    """Writes the tunes as MADE_OF says, named by number; returns the tune of each name."""
    print(f"{len(tunes)} held-out tunes -> {output}/score, {output}/MIDI and {output}/sound")
    jobs = (joblib.delayed(_write)(piece, n, output) for n, piece in enumerate(tunes))
    parallel = joblib.Parallel(n_jobs=-1, return_as="generator")
    names = list(tqdm(parallel(jobs), total=len(tunes), unit="tune"))
    (output / "questions").mkdir(parents=True)
    for number, (_, sentence, _) in enumerate(QUESTIONS):
        (output / "questions" / f"{number:02d}.txt").write_text(sentence, encoding="utf-8")
    return dict(zip(names, tunes, strict=True))


def _write(piece: Piece, number: int, output: Path) -> str:
    xml, name = abc_to_xml(without_labels(piece.abc)), f"{number:04d}"
    made_of = MADE_OF[number % len(MADE_OF)]
    folder = output / made_of
    folder.mkdir(parents=True, exist_ok=True)
    if made_of == "score":
        (folder / f"{name}.musicxml").write_text(xml, encoding="utf-8")
    elif made_of == "MIDI":
        to_midi(xml).save(folder / f"{name}.mid")
    else:
        soundfile.write(folder / f"{name}.wav", render(to_midi(xml), MERLIN, random.Random(number)), RATE)
    return name


def search(output: Path) -> list[list[tuple[str, float]]]:
    """Runs the scripts; returns the keys and similarities that each question found."""
    run = _runner(output)
    run("preprocessing/abc/batch_xml2abc.py", "score", "abc")
    run("preprocessing/abc/batch_interleaved_abc.py", "abc", "music")
    run("preprocessing/midi/batch_midi2mtf.py", "MIDI", "music")
    run("preprocessing/audio/extract_spectral.py", "sound", "music")
    run("code/extract_clamp3.py", "music", "music_features", "--get_global", "--variant", "mini")
    run("code/extract_clamp3.py", "questions", "question_features", "--get_global", "--variant", "mini")
    answers = []
    for query in sorted((output / "question_features").glob("*.npy")):
        printed = run(
            "retrieval/semantic_search.py",
            f"question_features/{query.name}",
            "music_features",
            "--top_k",
            str(BEST),
        )
        found = (line.rsplit(" ", 1) for line in printed.splitlines()[1:])
        answers.append([(key, float(similarity)) for key, similarity in found])
    return answers


def _runner(output: Path) -> Callable[..., str]:
    def run(script: str, *words: str) -> str:
        print(f"$ python {script} {shlex.join(words)}")
        done = subprocess.run([sys.executable, ROOT / script, *words], cwd=output, text=True, stdout=subprocess.PIPE)
        if done.returncode:
            sys.exit(f"{script} ended with status {done.returncode}:\n{done.stdout}")
        return done.stdout

    return run


def print_answer(question: tuple, answer: list[tuple[str, float]], found: dict[str, Piece]) -> tuple[int, float]:
    """Prints the best tunes; returns how many are of a right kind, and the share of the right kinds in all tunes."""
    language, sentence, right = question
    print(f"\n{sentence}  ({language})")
    for key, similarity in answer:
        facts = found[key].facts
        mark = "+" if facts.kind in right else " "
        made_of = MADE_OF[int(key) % len(MADE_OF)]
        signature = f"{facts.tonic or '?'} {facts.mode or '?'}"
        print(
            f" {mark} {similarity:.3f}  {facts.kind:10} {signature:12} {facts.metre or '?':5} {made_of:5} {facts.title}"
        )
    hits = sum(found[key].facts.kind in right for key, _ in answer)
    return hits, sum(piece.facts.kind in right for piece in found.values()) / len(found)


if __name__ == "__main__":
    sys.exit(main())

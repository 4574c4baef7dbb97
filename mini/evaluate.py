"""What `mini` is worth on the pieces it has never seen: the tables of `make eval-mini`.

    python mini/evaluate.py out/mini                    # the shipped model
    python mini/evaluate.py out/mini --variant FOLDER   # another one

The texts hold neither title nor composer. Chance and the ceiling that pieces of equal text set are printed beside
what they belong to.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from build import audio_name, held_out_clips
from clamplib.embedding.encoding import encode_audio, encode_scores, encode_texts
from clamplib.evaluation.metrics import retrieval_metrics
from clamplib.evaluation.pairs import vector_ranks
from clamplib.files import load_array
from clamplib.models.checkpoints import load_clamp3
from clamplib.retrieval.similarity import normalize
from clamplib.training.augment import hide_header, remove_instrument_info
from corpus import ESSEN, KINDS
from texts import LANGUAGES, Facts, caption, prompts

FREE_SENTENCES = Path(__file__).with_name("free_sentences.json")
NEIGHBOURS = 10
SONG_LANGUAGES = ("German", "French", "English")
ENSEMBLES = ("song", "string quartet")


class Pieces:
    """Held-out pieces: facts, files and vectors of each."""

    def __init__(self, records: list[dict], folder: Path):
        self.records, self.folder = records, folder
        self.facts = [Facts(**{**r["facts"], "instruments": tuple(r["facts"]["instruments"])}) for r in records]

    def __len__(self) -> int:
        return len(self.records)

    def where(self, keep) -> "Pieces":
        """The pieces whose record `keep` accepts."""
        return Pieces([record for record in self.records if keep(record)], self.folder)

    def texts(self, kind: str) -> list[str]:
        """The contents of the pieces' "abc", "raw" or "mtf" files."""
        names = [next(name for name in r["files"][""] if name.startswith(kind + "/")) for r in self.records]
        return [(self.folder / name).read_text("utf-8") for name in names]

    def captions(self, language: str = "en", without: Sequence[str] = ()) -> list[str]:
        unsaid = dict.fromkeys(("title", "composer", *without))
        return [caption(replace(facts, **unsaid), language) for facts in self.facts]


def main(argv: list[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, help="the folder that mini/build.py made, for example out/mini")
    parser.add_argument("--variant", default="mini", help="weights to judge: mini (default) or a folder")
    parser.add_argument("--json", type=Path, help="file for the same numbers")
    args = parser.parse_args(argv)
    lines = (args.data / "heldout.jsonl").read_text("utf-8").splitlines()
    everything = Pieces([json.loads(line) for line in lines], args.data)
    model = load_clamp3(args.variant, weights_folder=args.data)
    own = everything.where(lambda record: record["facts"]["collection"] != ESSEN)
    scores = everything.where(lambda record: record["id"].startswith("openscore/"))
    rows = tune_rows(model, own.where(is_tune), args.data)
    rows += essen_rows(model, everything.where(is_tune)) if len(own) < len(everything) else []
    rows += free_sentence_rows(model, own)
    rows += score_rows(model, scores) if len(scores) else []
    rendered = clip_ids(args.data)
    heard = everything.where(lambda record: record["id"] in rendered)
    rows += audio_rows(model, heard) if len(heard) else []
    print_table(rows)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


def is_tune(record: dict) -> bool:
    return any(name.startswith("raw/") for name in record["files"][""])


def tune_rows(model, tunes: Pieces, data: Path) -> list[dict]:
    """Folk tunes, text without title."""
    captions = tunes.captions()
    text, abc = encode_texts(model, captions), encode_scores(model, tunes.texts("abc"))
    mtf = encode_scores(model, tunes.texts("mtf"))
    english = mrr(text, abc)
    size = f"{len(tunes)} held-out tunes"
    chance, ceiling = chance_mrr(len(tunes)), equal_text_ceiling(captions)
    barless = tunes.captions(without=("bars",))
    barless_ceiling = f"ceiling of equal texts {equal_text_ceiling(barless):.3f}"
    rows = [
        row("text to ABC, MRR", english, f"{size}; chance {chance:.3f}, ceiling of equal texts {ceiling:.3f}"),
        row("text to ABC, Hit@10", hit10(text, abc)),
        row("text to ABC without the number of bars, MRR", mrr(encode_texts(model, barless), abc), barless_ceiling),
        row("text to MTF, MRR", mrr(text, mtf)),
        row("ABC to MTF, MRR", mrr(abc, mtf)),
        row("MTF to ABC, MRR", mrr(mtf, abc)),
        *zero_shot(model, tunes, abc, "kind", KINDS, "seven kinds of tune, zero-shot accuracy"),
        *zero_shot(model, tunes, mtf, "kind", KINDS, "the same from MTF"),
    ]
    for language in LANGUAGES[1:]:
        other = mrr(encode_texts(model, tunes.captions(language)), abc)
        rows.append(row(f"{language} text to ABC, MRR", other, f"{other / english:.0%} of English"))
    raw = tunes.texts("raw")
    hidden = [hide_header(score) for score in tunes.texts("abc")]
    tfidf = tfidf_neighbours(data, tunes, captions)
    return rows + [
        row("text to raw ABC as found, MRR", mrr(text, encode_scores(model, raw))),
        row("text to ABC with header lines hidden, MRR", mrr(text, encode_scores(model, hidden))),
        row("TF-IDF nearest neighbours, text to ABC, MRR", tfidf, f"margin {english - tfidf:+.3f}"),
    ]


def essen_rows(model, tunes: Pieces) -> list[dict]:
    """The same search among all tunes, those of the Essen collection included."""
    value = mrr(encode_texts(model, tunes.captions()), encode_scores(model, tunes.texts("abc")))
    return [
        row("with Essen: text to ABC, MRR", value, f"{len(tunes)} held-out tunes; chance {chance_mrr(len(tunes)):.3f}")
    ]


def score_rows(model, scores: Pieces) -> list[dict]:
    """OpenScore songs and string quartets, text without title and composer, scores without words."""
    captions = scores.captions()
    text = encode_texts(model, captions)
    abc = encode_scores(model, [without_words(score) for score in scores.texts("abc")])
    mtf = encode_scores(model, scores.texts("mtf"))
    note = f"{len(scores)} held-out scores; chance {chance_mrr(len(scores)):.3f}"
    note += f", ceiling of equal texts {equal_text_ceiling(captions):.3f}"
    return [
        row("OpenScore: text to ABC, MRR", mrr(text, abc), note),
        row("OpenScore: text to MTF, MRR", mrr(text, mtf)),
        row("OpenScore: ABC to MTF, MRR", mrr(abc, mtf)),
        *zero_shot(model, scores, abc, "song_language", SONG_LANGUAGES, "OpenScore: language of the song"),
        *zero_shot(model, scores, abc, "kind", ENSEMBLES, "OpenScore: song against quartet", "ensemble"),
    ]


def clip_ids(data: Path) -> set[str]:
    """The held-out clips that have been rendered."""
    records = held_out_clips(data)
    return {record["id"] for record in records if (data / audio_name(record["files"][""])).exists()}


def audio_rows(model, clips: Pieces) -> list[dict]:
    """Rendered clips of a sound font and of instruments that training has not heard."""
    features = [load_array(clips.folder / audio_name(record["files"][""])) for record in clips.records]
    audio, abc = encode_audio(model, features), encode_scores(model, clips.texts("abc"))
    captions = clips.captions()
    text = encode_texts(model, captions)
    note = f"{len(clips)} clips; chance {chance_mrr(len(clips)):.3f}"
    note += f", ceiling of equal texts {equal_text_ceiling(captions):.3f}"
    return [
        row("text to audio, MRR", mrr(text, audio), note),
        row("audio to ABC, MRR", mrr(audio, abc)),
        row("ABC to audio, MRR", mrr(abc, audio)),
        *zero_shot(model, clips, audio, "kind", KINDS, "seven kinds of tune from audio, zero-shot accuracy"),
    ]


def free_sentence_rows(model, everything: Pieces) -> list[dict]:
    """Precision at 10 of sentences that were written before any training, over all held-out pieces."""
    asked = json.loads(FREE_SENTENCES.read_text("utf-8"))
    music = unit(encode_scores(model, everything.texts("abc")))
    queries = unit(encode_texts(model, [each["text"] for each in asked["sentences"]]))
    precisions, chances = [], []
    for sentence, similarity in zip(asked["sentences"], queries @ music.T, strict=True):
        right = np.array([is_right(facts, sentence["right"], asked["groups"]) for facts in everything.facts])
        best = np.argsort(-similarity, kind="stable")[: min(10, right.sum())]
        precisions.append(right[best].mean())
        chances.append(right.mean())
        print(f"  {precisions[-1]:.2f} (chance {chances[-1]:.2f})  {sentence['text']}", file=sys.stderr)
    note = f"over {len(everything)} held-out pieces; chance {np.mean(chances):.3f}"
    return [row(f"{len(precisions)} free sentences, precision at 10", float(np.mean(precisions)), note)]


def without_words(score: str) -> str:
    """A score in ABC without tempo marks, quoted words and the names of its parts, which would tell too much."""
    lines = [line for line in remove_instrument_info(score).splitlines(keepends=True) if not line.startswith("Q:")]
    return re.sub(r'"[^"]*"', "", "".join(lines))


def is_right(facts: Facts, wanted: dict, groups: dict) -> bool:
    """Whether every field named has one of the values wanted (a list, or the name of a group)."""
    lists = {name: groups[values] if isinstance(values, str) else values for name, values in wanted.items()}
    return all(getattr(facts, name) in values for name, values in lists.items())


def zero_shot(model, pieces: Pieces, music, field: str, classes, name: str, prompt_field: str = "") -> list[dict]:
    """Accuracy of the class whose prompts' mean vector is nearest, over the pieces that have one of the classes."""
    kept = [number for number, facts in enumerate(pieces.facts) if getattr(facts, field) in classes]
    truth = np.array([classes.index(getattr(pieces.facts[number], field)) for number in kept])
    prototypes = [unit(encode_texts(model, prompts(prompt_field or field, value, "en"))).mean(0) for value in classes]
    guesses = (unit(music[kept]) @ unit(np.array(prototypes)).T).argmax(1)
    majority = np.bincount(truth).max() / len(truth)
    return [row(name, float((guesses == truth).mean()), f"{len(kept)} pieces; majority {majority:.2f}")]


def tfidf_neighbours(data: Path, tunes: Pieces, captions: list[str]) -> float:
    """MRR of the classic way: a held-out tune is described by the texts of its nearest training tunes."""
    training = [json.loads(line) for line in (data / "train.jsonl").read_text("utf-8").splitlines()]
    training = [line for line in training if "@" not in line["id"] and any("raw/" in f for f in line["filepaths"])]
    notes = [(data / line["filepaths"][0]).read_text("utf-8") for line in training]
    by_notes = TfidfVectorizer(analyzer="char", ngram_range=(2, 5), sublinear_tf=True, min_df=2)
    known = by_notes.fit_transform(notes)
    similarity = (by_notes.transform(tunes.texts("abc")) @ known.T).toarray()
    nearest = np.argsort(-similarity, axis=1)[:, :NEIGHBOURS]
    by_words = TfidfVectorizer(sublinear_tf=True, token_pattern=r"[\w/']+")
    words = by_words.fit_transform([line["analysis"] for line in training])
    described = np.stack([np.asarray(words[row].mean(0))[0] for row in nearest])
    return mrr(by_words.transform(captions).toarray(), described)


def unit(vectors: np.ndarray) -> np.ndarray:
    return normalize(vectors)[0]


def mrr(queries: np.ndarray, references: np.ndarray) -> float:
    return _metrics(queries, references)["mrr"]


def hit10(queries: np.ndarray, references: np.ndarray) -> float:
    return _metrics(queries, references)["hit@10"]


def _metrics(queries: np.ndarray, references: np.ndarray) -> dict:
    return retrieval_metrics(vector_ranks(unit(queries), unit(references), np.arange(len(queries))))


def chance_mrr(count: int) -> float:
    return float(np.mean(1 / np.arange(1, count + 1)))


def equal_text_ceiling(captions: list[str]) -> float:
    """MRR of a search that finds all pieces of the text first, in random order."""
    return float(np.mean([chance_mrr(captions.count(text)) for text in captions]))


def row(name: str, value: float, note: str = "") -> dict:
    return {"name": name, "value": round(value, 4), "note": note}


def print_table(rows: list[dict]) -> None:
    width = max(len(each["name"]) for each in rows)
    print(f"| {'held out, text without title':{width}} | value | |\n| {'-' * width} | --- | --- |")
    for each in rows:
        print(f"| {each['name']:{width}} | {each['value']:.3f} | {each['note']} |")


if __name__ == "__main__":
    sys.exit(main())

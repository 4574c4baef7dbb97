"""Evaluates `mini` on held-out pieces and prints the table of `make eval-mini`.

    python -m recipes.mini.evaluate out/mini                    # the shipped model
    python -m recipes.mini.evaluate out/mini --variant FOLDER   # another one

The texts contain neither title nor composer. Some rows also give chance and a ceiling. No search can tell pieces with
equal texts apart, so the ceiling is the MRR of a search that always ranks them first, in random order.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from clamplib.embedding.encoding import encode_audio, encode_scores, encode_texts
from clamplib.evaluation.metrics import retrieval_metrics
from clamplib.evaluation.pairs import vector_ranks
from clamplib.files import load_array
from clamplib.models.variants import load_clamp3
from clamplib.retrieval.similarity import normalize
from clamplib.training.augment import hide_header, remove_instrument_info
from recipes.mini.build import audio_name, facts_of, held_out_clips, read_jsonl
from recipes.mini.corpus import ESSEN, KINDS
from recipes.mini.texts import LANGUAGES, Facts, caption, prompts

FREE_SENTENCES = Path(__file__).with_name("free_sentences.json")
NEIGHBORS = 10
SONG_LANGUAGES = ("German", "French", "English")
ENSEMBLES = ("song", "string quartet")
MARKS = re.compile(r"(?m)^Z:.*\n")  # of the canonical form


class HeldOut:
    """Held-out pieces, with their facts and files."""

    def __init__(self, records: list[dict], folder: Path):
        self.records, self.folder = records, folder
        self.facts = [facts_of(record) for record in records]

    def __len__(self) -> int:
        return len(self.records)

    def where(self, keep: Callable[[dict], bool]) -> "HeldOut":
        """Returns the pieces whose record `keep` accepts."""
        return HeldOut([record for record in self.records if keep(record)], self.folder)

    def texts(self, kind: str) -> list[str]:
        """Returns the contents of the pieces' "abc", "raw" or "mtf" files."""
        texts = []
        for record in self.records:
            name = next(name for name in record["files"][""] if name.startswith(kind + "/"))
            texts.append((self.folder / name).read_text("utf-8"))
        return texts

    def captions(self, language: str = "en", without: Sequence[str] = ()) -> list[str]:
        """Returns the pieces' captions, without title, composer and the facts in `without`."""
        unsaid = dict.fromkeys(("title", "composer", *without))
        return [caption(replace(facts, **unsaid), language) for facts in self.facts]


def main(argv: list[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, help="the folder that recipes.mini.build made, for example out/mini")
    parser.add_argument("--variant", default="mini", help="weights to evaluate: mini (default) or a folder")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    args = parser.parse_args(argv)
    everything = HeldOut(read_jsonl(args.data / "heldout.jsonl"), args.data)
    model = load_clamp3(args.variant, weights_folder=args.data)
    own = everything.where(lambda record: record["facts"]["collection"] != ESSEN)
    scores = everything.where(lambda record: record["id"].startswith("openscore/"))
    rows = tune_rows(model, own.where(is_tune), args.data)
    if len(own) < len(everything):
        rows += essen_rows(model, everything.where(is_tune))
    rows += free_sentence_rows(model, encode_scores(model, own.texts("abc")), own.facts)
    if len(scores):
        rows += score_rows(model, scores)
    rendered = clip_ids(args.data)
    clips = everything.where(lambda record: record["id"] in rendered)
    if len(clips):
        rows += audio_rows(model, clips)
    print_table(rows)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


def is_tune(record: dict) -> bool:
    return any(name.startswith("raw/") for name in record["files"][""])


def tune_rows(model, tunes: HeldOut, data: Path) -> list[dict]:
    """Rows about folk tunes."""
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
    form = model.geometry.make_patchilizer().form  # which reads notes by the header
    forms = [form(score) for score in tunes.texts("abc")]
    hidden = [hide_header(each) for each in forms]
    unmarked = encode_scores(model, [MARKS.sub("", each) for each in forms])
    tfidf = tfidf_neighbors(data, tunes, captions)
    return rows + [
        row("text to raw ABC as found, MRR", mrr(text, encode_scores(model, raw))),
        row("text to ABC with header lines hidden, MRR", mrr(text, encode_scores(model, hidden))),
        row("text to ABC without its kinds of marks, MRR", mrr(text, unmarked)),  # which tell the transcriber
        *zero_shot(model, tunes, unmarked, "kind", KINDS, "seven kinds of tune without them"),
        row("TF-IDF nearest neighbors, text to ABC, MRR", tfidf, f"margin {english - tfidf:+.3f}"),
    ]


def essen_rows(model, tunes: HeldOut) -> list[dict]:
    """Returns the row about all tunes, with those of the Essen collection."""
    value = mrr(encode_texts(model, tunes.captions()), encode_scores(model, tunes.texts("abc")))
    return [
        row("with Essen: text to ABC, MRR", value, f"{len(tunes)} held-out tunes; chance {chance_mrr(len(tunes)):.3f}")
    ]


def score_rows(model, scores: HeldOut) -> list[dict]:
    """Rows about OpenScore songs and string quartets, whose scores are read without words."""
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
    """Returns the ids of the held-out clips that have been rendered."""
    records = held_out_clips(data)
    return {record["id"] for record in records if (data / audio_name(record["files"][""])).exists()}


def audio_rows(model, clips: HeldOut) -> list[dict]:
    """Rows about clips that are rendered with a sound font and with instruments that training did not use."""
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


def free_sentence_rows(model, music: np.ndarray, facts: Sequence[Facts], name: str = "") -> list[dict]:
    """Returns the precision at 10 of sentences that were written before any training, over pieces and their facts."""
    asked = json.loads(FREE_SENTENCES.read_text("utf-8"))
    queries = unit(encode_texts(model, [each["text"] for each in asked["sentences"]]))
    precisions, chances = [], []
    for sentence, similarity in zip(asked["sentences"], queries @ unit(music).T, strict=True):
        right = np.array([is_right(each, sentence["right"], asked["groups"]) for each in facts])
        if not right.any():
            continue
        best = np.argsort(-similarity, kind="stable")[: min(10, right.sum())]
        precisions.append(right[best].mean())
        chances.append(right.mean())
        print(f"  {precisions[-1]:.2f} (chance {chances[-1]:.2f})  {sentence['text']}", file=sys.stderr)
    note = f"over {len(facts)} held-out pieces; chance {np.mean(chances):.3f}"
    name = f"{len(precisions)} free sentences{name and ', '}{name}, precision at 10"
    return [row(name, float(np.mean(precisions)), note)]


def without_words(score: str) -> str:
    """Removes tempo marks, quoted words and part names from a score in ABC, since they would give too much away."""
    lines = [line for line in remove_instrument_info(score).splitlines(keepends=True) if not line.startswith("Q:")]
    return re.sub(r'"[^"]*"', "", "".join(lines))


def is_right(facts: Facts, wanted: dict, groups: dict) -> bool:
    """Tells whether each named field has one of its wanted values (a list, or the name of a group of values)."""
    lists = {name: groups[values] if isinstance(values, str) else values for name, values in wanted.items()}
    return all(getattr(facts, name) in values for name, values in lists.items())


def zero_shot(model, pieces: HeldOut, music, field: str, classes, name: str, prompt_field: str = "") -> list[dict]:
    """Returns the zero-shot accuracy over the pieces that belong to one of the classes."""
    kept = [number for number, facts in enumerate(pieces.facts) if getattr(facts, field) in classes]
    truth = np.array([classes.index(getattr(pieces.facts[number], field)) for number in kept])
    guesses = guess_classes(model, music[kept], prompt_field or field, classes)
    majority = np.bincount(truth).max() / len(truth)
    return [row(name, float((guesses == truth).mean()), f"{len(kept)} pieces; majority {majority:.2f}")]


def guess_classes(model, music: np.ndarray, field: str, classes: Sequence[str]) -> np.ndarray:
    """Returns the number of the class whose prompts have the nearest mean vector, for each row of music."""
    prototypes = [unit(encode_texts(model, prompts(field, value, "en"))).mean(0) for value in classes]
    return (unit(music) @ unit(np.array(prototypes)).T).argmax(1)


def tfidf_neighbors(data: Path, tunes: HeldOut, captions: list[str]) -> float:
    """Returns the MRR of a baseline that describes a held-out tune by the texts of its nearest training tunes."""
    lines = {line["id"]: line for line in read_jsonl(data / "train.jsonl")}  # those of other keys have ids of their own
    training = HeldOut(
        [each for each in read_jsonl(data / "pieces.jsonl") if each["id"] in lines and is_tune(each)], data
    )
    by_notes = TfidfVectorizer(analyzer="char", ngram_range=(2, 5), sublinear_tf=True, min_df=2)
    known = by_notes.fit_transform(training.texts("abc"))
    similarity = (by_notes.transform(tunes.texts("abc")) @ known.T).toarray()
    nearest = np.argsort(-similarity, axis=1)[:, :NEIGHBORS]
    by_words = TfidfVectorizer(sublinear_tf=True, token_pattern=r"[\w/']+")
    words = by_words.fit_transform([lines[record["id"]]["analysis"] for record in training.records])
    described = np.stack([np.asarray(words[rows].mean(0))[0] for rows in nearest])
    return mrr(by_words.transform(captions).toarray(), described)


def unit(vectors: np.ndarray) -> np.ndarray:
    return normalize(vectors)[0]


def mrr(queries: np.ndarray, references: np.ndarray, target: np.ndarray | None = None) -> float:
    """Returns the MRR of queries whose correct references are the rows `target`; None: their own rows."""
    return _metrics(queries, references, target)["mrr"]


def hit10(queries: np.ndarray, references: np.ndarray) -> float:
    return _metrics(queries, references)["hit@10"]


def _metrics(queries: np.ndarray, references: np.ndarray, target: np.ndarray | None = None) -> dict:
    target = np.arange(len(queries)) if target is None else target
    return retrieval_metrics(vector_ranks(unit(queries), unit(references), target))


def chance_mrr(count: int) -> float:
    return float(np.mean(1 / np.arange(1, count + 1)))


def equal_text_ceiling(captions: list[str]) -> float:
    """Returns the MRR of a search that ranks all pieces of equal text first, in random order."""
    return float(np.mean([chance_mrr(captions.count(text)) for text in captions]))


def row(name: str, value: float, note: str = "") -> dict:
    return {"name": name, "value": round(value, 4), "note": note}


def print_table(rows: list[dict], title: str = "held out, text without title") -> None:
    width = max(len(title), *(len(each["name"]) for each in rows))
    print(f"| {title:{width}} | value | |\n| {'-' * width} | --- | --- |")
    for each in rows:
        print(f"| {each['name']:{width}} | {each['value']:.3f} | {each['note']} |")


if __name__ == "__main__":
    sys.exit(main())

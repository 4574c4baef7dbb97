"""Judges `mini` on music from elsewhere: held-out pieces, or a whole collection, as other hands write and play them.

    python -m recipes.mini.elsewhere out/mini                              # the pieces held out of training
    python -m recipes.mini.elsewhere out/mini --collection ryansMammoth --variant FOLDER   # trained without these

The files are kept in elsewhere/ of the data. `hands` names the programs that it needs. Kinds are judged by the mean of
the accuracies of the kinds, as collections differ in how common each is.
"""

import argparse
import json
import random
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from clamplib.audio import WINDOW_SECONDS, Waveform
from clamplib.audio.decoding import windows
from clamplib.audio.spectral import MINIMUM, RATE, spectral_features, spectrogram
from clamplib.embedding.encoding import encode_audio, encode_scores
from clamplib.files import write_json
from clamplib.formats.mtf import midi_to_mtf
from clamplib.jobs import run_jobs
from clamplib.models.variants import load_clamp3
from recipes.mini import hands
from recipes.mini.build import facts_of, read_jsonl
from recipes.mini.corpus import KINDS
from recipes.mini.evaluate import (
    chance_mrr,
    free_sentence_rows,
    guess_classes,
    is_tune,
    mrr,
    print_table,
    row,
)
from recipes.mini.render import recorded

CANDIDATES = 400
CLIPS = 150
FEWEST = 8  # pieces of a kind that is judged
COMMON_KINDS = (*KINDS, "waltz", "polka", "clog", "quickstep")
HANDS = {
    "found": "ABC as found",
    "chords": "with chords",
    "relaid": "in another layout",
    "abc2midi": "abc2midi's MIDI",
    "music21": "music21's MIDI",
    "verovio": "verovio's MIDI",
    "hand": "MIDI by hand",
}
RECORDINGS = {
    "fluidsynth": "recordings (fluidsynth, FluidR3, chords)",
    "room": "the same in a room, muffled",
    "telephone": "the same over a telephone",
    "tinysoundfont": "recordings (tinysoundfont, FluidR3, melody)",
}


def main(argv: list[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, help="the folder that recipes.mini.build made, for example out/mini")
    parser.add_argument("--variant", default="mini", help="weights to evaluate: mini (default) or a folder")
    parser.add_argument("--collection", help="judge this collection of the corpus, for example ryansMammoth")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    args = parser.parse_args(argv)
    if missing := hands.missing_programs():
        print(f"error: install {', '.join(missing)} first (apt install abcmidi fluidsynth fluid-soundfont-gm)")
        return 1
    rows = elsewhere_rows(load_clamp3(args.variant, weights_folder=args.data), args.data, args.collection)
    print_table(rows, "elsewhere")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


def elsewhere_rows(model, data: Path, collection: str | None = None) -> list[dict]:
    """Returns the rows of the table."""
    tunes = judged_tunes(data, collection)
    folder = data / "elsewhere" / (collection or "held_out")
    symbolic = write_files(partial(write_hands, data=data, folder=folder), tunes, "written")
    tunes = [tunes[number] for number in sorted(symbolic)]
    written = [symbolic[number] for number in sorted(symbolic)]
    vectors = {hand: encode_scores(model, [texts[hand] for texts in written]) for hand in HANDS}
    note = f"{len(tunes)} tunes; chance {chance_mrr(len(tunes)):.3f}"
    rows = []
    for query in ("chords", "relaid"):
        for hand in ("abc2midi", "music21", "verovio", "hand"):
            rows.append(row(f"ABC {HANDS[query]} to {HANDS[hand]}, MRR", mrr(vectors[query], vectors[hand]), note))
    for hand in ("abc2midi", "hand"):
        rows.append(row(f"{HANDS[hand]} to ABC with chords, MRR", mrr(vectors[hand], vectors["chords"])))
    rows.append(row("ABC as found to ABC in another layout, MRR", mrr(vectors["found"], vectors["relaid"])))
    kinds = known_kinds(data, collection)
    facts = [facts_of(tune) for tune in tunes]
    for hand in ("found", "chords", "abc2midi", "music21", "verovio", "hand"):
        rows += kind_rows(model, facts, vectors[hand], f"kind of tune, {HANDS[hand]}", kinds)
    for hand in ("chords", "abc2midi"):
        rows += free_sentence_rows(model, vectors[hand], facts, HANDS[hand])
    return rows + recording_rows(model, tunes, vectors["chords"], folder, kinds)


def recording_rows(model, tunes: list[dict], abc: np.ndarray, folder: Path, kinds: Sequence[str]) -> list[dict]:
    """Rows about recordings with accompaniment by a synthesizer and a sound font that training does not use."""
    order = drawn_clips(tunes, kinds)
    heard = write_files(partial(write_recordings, folder=folder), [tunes[n]["id"] for n in order], "recorded")
    rows = []
    for name, label in RECORDINGS.items():
        kept = [number for number in sorted(heard) if heard[number][name]]
        if not kept:  # tinysoundfont is not installed
            continue
        audio = encode_audio(model, [np.array(heard[number][name], dtype=np.float32) for number in kept])
        where = np.array([order[number] for number in kept])
        note = f"{len(kept)} clips, {len(tunes)} tunes; chance {chance_mrr(len(tunes)):.3f}"
        rows.append(row(f"{label} to ABC, MRR", mrr(audio, abc, where), note))
        rows += kind_rows(model, [facts_of(tunes[n]) for n in where], audio, f"kind of tune, {label}", kinds)
    played = [number for number in sorted(heard) if heard[number]["transcribed"]]
    if not played:  # basic-pitch is not installed
        return rows
    notes = encode_scores(model, [heard[number]["transcribed"] for number in played])
    where = np.array([order[number] for number in played])
    note = f"{len(played)} clips; transcribed by basic-pitch"
    rows.append(row("transcribed MIDI to ABC, MRR", mrr(notes, abc, where), note))
    return rows + kind_rows(model, [facts_of(tunes[n]) for n in where], notes, "kind of tune, transcribed MIDI", kinds)


def drawn_clips(tunes: list[dict], kinds: Sequence[str]) -> list[int]:
    """Returns the numbers of the tunes to record: 150 in a fixed random order, then more until every kind has eight."""
    order = sorted(range(len(tunes)), key=lambda number: random.Random(tunes[number]["id"]).random())
    counts: Counter[str] = Counter()
    rare = []
    for number in order:
        kind = tunes[number]["facts"]["kind"]
        counts[kind] += 1
        if kind in kinds and counts[kind] <= FEWEST:
            rare.append(number)
    return list(dict.fromkeys(order[:CLIPS] + rare))


def judged_tunes(data: Path, collection: str | None) -> list[dict]:
    """Returns the records of at most 400 tunes: those held out, or those of a collection. The draw is fixed."""
    records = read_jsonl(data / ("pieces.jsonl" if collection else "heldout.jsonl"))
    tunes = [each for each in records if is_tune(each)]
    if collection:
        tunes = [each for each in tunes if each["id"].startswith(collection + "/")]
    return sorted(tunes, key=lambda each: random.Random(f"elsewhere {each['id']}").random())[:CANDIDATES]


def known_kinds(data: Path, collection: str | None) -> list[str]:
    """Returns the kinds of tune that a training without the collection can know."""
    records = read_jsonl(data / "pieces.jsonl")
    counts = Counter(each["facts"]["kind"] for each in records if not each["id"].startswith(f"{collection}/"))
    return [kind for kind in COMMON_KINDS if counts[kind] >= FEWEST]


def write_files(write: Callable, items: Sequence, label: str) -> dict[int, dict]:
    """Runs `write` on every item, in other processes. Returns the results by number; failures are printed."""
    results = {}
    for number, result, error in tqdm(run_jobs(write, items), total=len(items), unit="piece", desc=label):
        if error:
            print(f"  left out: {error}", file=sys.stderr)
        else:
            results[number] = result
    return results


def write_hands(record: dict, data: Path, folder: Path) -> dict[str, str]:
    """Returns a tune as every hand writes it: ABC, or MTF. The results are kept."""
    path = folder / f"{record['id']}.json"
    if not path.exists():
        abc = (data / next(name for name in record["files"][""] if name.startswith("raw/"))).read_text("utf-8")
        rng = random.Random(record["id"])
        chords = hands.with_chords(abc)
        played = hands.by_abc2midi(chords)
        texts = {
            "found": abc,
            "chords": chords,
            "relaid": hands.relaid(chords, rng),
            "abc2midi": midi_to_mtf(played),
            "music21": midi_to_mtf(hands.by_music21(abc)),
            "verovio": midi_to_mtf(hands.by_verovio(abc)),
            "hand": midi_to_mtf(hands.by_hand(abc, rng)),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        played.save(path.with_suffix(".mid"))
        write_json(path, texts)
    return json.loads(path.read_text("utf-8"))


def write_recordings(name: str, folder: Path) -> dict:
    """Returns the features of recordings of a tune (see RECORDINGS), and the transcription of one in MTF.

    They are kept.
    """
    import mido

    path = folder / f"{name}.recordings.json"
    if not path.exists():
        rng = random.Random(zlib.crc32(name.encode()))
        played = mido.MidiFile(folder / f"{name}.mid")
        sound = hands.by_fluidsynth(played, rng)
        texts = {
            "fluidsynth": features_of(sound).tolist(),
            "room": features_of(recorded(recorded(sound, rng), rng)).tolist(),
            "telephone": features_of(hands.over_telephone(sound)).tolist(),
            "tinysoundfont": features_of(hands.by_tinysoundfont(played, rng)).tolist()
            if hands.has_tinysoundfont()
            else [],
            "transcribed": midi_to_mtf(hands.by_basic_pitch(sound)) if hands.has_basic_pitch() else "",
        }
        write_json(path, texts)
    return json.loads(path.read_text("utf-8"))


def features_of(sound: np.ndarray) -> np.ndarray:
    """Returns the spectral features of sound at 22,050 Hz: [1, T, 448]."""
    return spectral_features(spectrogram(list(windows(Waveform(sound, RATE), RATE, WINDOW_SECONDS, minimum=MINIMUM))))[
        None
    ]


def kind_rows(model, facts: list, music: np.ndarray, name: str, kinds: Sequence[str]) -> list[dict]:
    """Returns the mean zero-shot accuracy of those kinds that the pieces have often enough."""
    counts = Counter(each.kind for each in facts)
    kinds = [kind for kind in kinds if counts[kind] >= FEWEST]
    if not kinds:
        return []
    kept = [number for number, each in enumerate(facts) if each.kind in kinds]
    truth = np.array([kinds.index(facts[number].kind) for number in kept])
    guesses = guess_classes(model, music[kept], "kind", kinds)
    by_kind = [float((guesses[truth == number] == number).mean()) for number in range(len(kinds))]
    accuracy = float((guesses == truth).mean())
    note = f"accuracy {accuracy:.3f}; {len(kept)} pieces: " + ", ".join(
        f"{kind} {share:.2f}" for kind, share in zip(kinds, by_kind, strict=True)
    )
    return [row(f"{name}, mean of {len(kinds)} kinds", float(np.mean(by_kind)), note)]


if __name__ == "__main__":
    sys.exit(main())

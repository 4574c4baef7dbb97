"""Makes the data that `mini` is trained on and judged by: notes, texts, the split, and the initial text encoder.

    python -m recipes.mini.build out/mini --openscore ../openscore

The output folder holds:

    abc/, raw/, mtf/      interleaved ABC, tunes as found, MTF; each in train/ and held_out/
    notes/                training pieces in the canonical form (see forms): 0/ as written, 1/ as the MIDI has it or as
                          played, and so on; `@G` after a name is the tonic of a copy in another key
    train.jsonl           training pieces as the training scripts read them; written last, so what is there is whole
    eval.jsonl            evaluation pieces, likewise
    heldout.jsonl         held-out pieces with their facts
    held_out_tunes.csv    the tunes among the held-out pieces, for `clamp3 demo`
    text_model/           the tokenizer and the config of the text encoder
    failures.jsonl        pieces that could not be converted

No label reaches the notes. Titles, origins, kinds and lyrics are removed from all pieces. Tunes also lose tempo marks
(Q:) and remarks before they are converted. Scores keep what is printed in the music: tempo words and part names.

The notes decide the split. The opening bars are written as steps from note to note, which are the same in any key. A
piece is held out if the hash of its opening falls into the first tenth, so near-duplicates land on the same side. A
piece that only shares its title with a held-out piece is left out of training.
"""

import argparse
import csv
import hashlib
import json
import random
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from tqdm import tqdm

from clamplib.command import positive
from clamplib.files import atomic_path
from clamplib.jobs import Report, run_jobs
from clamplib.training.pieces import text_lines
from recipes.mini.convert import Notes, convert, count_bars
from recipes.mini.corpus import CorpusPiece, corpus_pieces, with_key
from recipes.mini.forms import FLAT_MODES, SEMITONES, moved_tonic, write_forms
from recipes.mini.text_model import make_text_model
from recipes.mini.texts import LANGUAGES, Facts, caption, describe

HELD_OUT = range(0, 10)  # of 100 buckets
EVALUATION = range(10, 13)
CLIPS = 300  # held-out pieces that are rendered as audio
OTHER_KEYS = 2  # copies of a piece in other keys


def main(argv: list[str] | None = None) -> int:
    """Build the folder, as far as an earlier run has not. Without its train.jsonl, forms and texts are written anew."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("output", type=Path, help="folder for the data, for example out/mini")
    parser.add_argument("--openscore", type=Path, help="folder of OpenScore scores with index.tsv")
    parser.add_argument("--openewld", type=Path, help="folder of OpenEWLD lead sheets with index.tsv")
    parser.add_argument("--essen", action="store_true", help="include Essen (license: non-commercial use) in training")
    parser.add_argument("--workers", type=positive, help="number of processes (default: one per core)")
    args = parser.parse_args(argv)
    index, sources = args.output / "pieces.jsonl", args.output / "sources.json"
    wanted = {"openscore": bool(args.openscore), "openewld": bool(args.openewld), "essen": args.essen}
    if not index.exists():
        convert_all(args)
        sources.write_text(json.dumps(wanted), encoding="utf-8")
    elif json.loads(sources.read_text("utf-8")) != wanted:
        made_of = sources.read_text("utf-8")
        print(f"error: {args.output} was made from other sources ({made_of}): remove it or name the same sources")
        return 1
    if not (args.output / "train.jsonl").exists():
        write_split(read_jsonl(index), args.output)
    return 0


def convert_all(args: argparse.Namespace) -> None:
    """Writes the notes of every piece, and pieces.jsonl with its id, opening, facts and file names."""
    found = list(corpus_pieces(args.openscore, args.openewld, args.essen))
    outcomes = run_jobs(partial(_piece_record, output=args.output), found, workers=args.workers)
    records, report = {}, Report()
    for number, record, error in tqdm(outcomes, total=len(found), unit="piece"):
        if error:
            report.add_failure(found[number].id, error, "convert")
        else:
            records[number] = record
            report.done += 1
    report.write(args.output)
    write_jsonl(args.output / "pieces.jsonl", [records[number] for number in sorted(records)])
    print(report.summary())


def _piece_record(piece: CorpusPiece, output: Path) -> dict:
    """Writes the files of a piece. Returns its record."""
    notes = convert(piece)
    facts = with_key(piece.facts, notes.key_field, notes.final_bass)
    facts = replace(facts, bars=count_bars(notes.abc) if notes.raw else None)
    record = {"id": piece.id, "opening": notes.opening, "facts": asdict(facts), "files": {}}
    side = "held_out" if bucket(notes.opening) in HELD_OUT else "train"
    record["files"][""] = _write(notes, output, f"{side}/{piece.id}")
    return record


def _write(notes: Notes, output: Path, name: str) -> list[str]:
    """Writes the notes as abc, raw and mtf, as far as they exist. Returns the names relative to the output folder."""
    names = []
    for folder, suffix, text in (
        ("abc", ".abc", notes.abc),
        ("raw", ".abc", notes.raw),
        ("mtf", ".mtf", notes.mtf),
    ):
        if text:
            path = output / folder / f"{name}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="")
            names.append(path.relative_to(output).as_posix())
    return names


def bucket(opening: str) -> int:
    """Returns which of 100 buckets an opening falls into."""
    return int.from_bytes(hashlib.sha256(opening.encode()).digest()[:4], "big") % 100


def write_split(records: list[dict], output: Path) -> None:
    """Writes eval.jsonl, heldout.jsonl, held_out_tunes.csv, the initial text encoder, the forms and train.jsonl."""
    held_out = [record for record in records if bucket(record["opening"]) in HELD_OUT]
    titles = {_plain_title(record) for record in held_out} - {""}
    rest = [r for r in records if bucket(r["opening"]) not in HELD_OUT and _plain_title(r) not in titles]
    evaluation = [r for r in rest if bucket(r["opening"]) in EVALUATION and _files(r, "abc")]
    training = [r for r in rest if bucket(r["opening"]) not in EVALUATION]
    lines = in_order(partial(training_lines, data=output), training)
    write_jsonl(output / "eval.jsonl", map(evaluation_line, evaluation))
    write_jsonl(output / "heldout.jsonl", held_out)
    write_tune_table([record for record in held_out if _files(record, "raw")], output / "held_out_tunes.csv")
    if not (output / "text_model").exists():  # an existing one may belong to a trained model
        make_text_model(output / "text_model", (text for line in lines for text in _texts(line)))
    write_jsonl(output / "train.jsonl", lines)
    counts = Counter((r["facts"]["collection"] or r["id"].split("/")[0]) for r in held_out)
    print(f"{len(training)} pieces to train on ({len(lines)} lines), {len(evaluation)} to evaluate, ", end="")
    print(f"{len(held_out)} held out: " + ", ".join(f"{name} {n}" for name, n in counts.most_common()))


def in_order(make_lines: Callable, pieces: Sequence, workers: int | None = None) -> list[dict]:
    """Makes the lines of pieces in other processes. Raises the first error."""
    lines: list[list[dict]] = [[] for _ in pieces]
    for number, made, error in tqdm(run_jobs(make_lines, pieces, workers=workers), total=len(pieces), unit="piece"):
        if error:
            raise RuntimeError(f"piece {number}: {error}")
        lines[number] = made
    return [line for made in lines for line in made]


def write_tune_table(records: list[dict], path: Path) -> None:
    """Writes the table that `clamp3 demo` chooses its tunes from."""
    with path.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(("tune", "kind", "tonic", "mode", "meter", "title"))
        for record in records:
            facts = record["facts"]
            writer.writerow((record["id"], *(facts[name] for name in ("kind", "tonic", "mode", "metre", "title"))))


def _plain_title(record: dict) -> str:
    title = re.sub(r"[^a-z0-9]", "", (record["facts"]["title"] or "").lower())
    return "" if record["id"].startswith("openscore") else title  # songs with the same title are different songs


def training_lines(record: dict, data: Path) -> list[dict]:
    """Writes the canonical forms of a piece. Returns lines for the training scripts: one per key, with its texts."""
    rng = random.Random(record["id"])
    facts = facts_of(record)
    keys = {}
    if facts.tonic is not None:
        for semitones in rng.sample(SEMITONES, OTHER_KEYS):
            keys[moved_tonic(facts.tonic, semitones, facts.mode in FLAT_MODES)] = semitones
    lines = []
    for tonic, files in write_forms(record, data, keys).items():
        name = f"{record['id']}@{tonic}" if tonic else record["id"]
        lines.append({"id": name, "filepaths": files, **text_fields(facts_of(record, tonic), rng)})
    return lines


def text_fields(facts: Facts, rng: random.Random) -> dict:
    """Returns the text fields of a line, in every language."""
    english, *translations = [
        {"analysis": caption(facts, language), "description": describe(facts, language, rng)} for language in LANGUAGES
    ]
    return {"language": "en", **english, "translations": translations}


def evaluation_line(record: dict) -> dict:
    """Returns a line with the one text and the files that the evaluation during training reads."""
    files = [name for name in record["files"][""] if not name.startswith("raw")]
    return {
        "id": record["id"],
        "filepaths": [*files, audio_name(files)],
        "language": "en",
        "analysis": caption(facts_of(record), "en"),
    }


def facts_of(record: dict, tonic: str = "") -> Facts:
    """Returns the facts of a piece, or of its copy in the key of another tonic."""
    facts = Facts(**{**record["facts"], "instruments": tuple(record["facts"]["instruments"])})
    return replace(facts, tonic=tonic) if tonic else facts


def _files(record: dict, folder: str) -> list[str]:
    return [name for name in record["files"][""] if name.startswith(folder + "/")]


def _texts(line: dict) -> list[str]:
    """All texts of a training line, in all languages."""
    own = {"analysis": line["analysis"], "description": line["description"]}
    return [text for fields in (own, *line["translations"]) for text in text_lines(fields)]


def audio_name(files: Sequence[str]) -> str:
    """Returns the name of the audio features of a piece with these files (see build_audio)."""
    mtf = next(name for name in files if name.startswith("mtf/"))
    return f"audio/{mtf.removeprefix('mtf/').removesuffix('.mtf')}.npy"


def held_out_clips(data: Path) -> list[dict]:
    """Returns the records of the 300 held-out pieces that are rendered. The draw depends on their ids alone."""
    records = read_jsonl(data / "heldout.jsonl")
    return sorted(records, key=lambda record: random.Random(record["id"]).random())[:CLIPS]


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def write_jsonl(path: Path, lines: Iterable[dict]) -> None:
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as out:
        for line in lines:
            out.write(json.dumps(line, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    sys.exit(main())

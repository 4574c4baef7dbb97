"""Makes the data `mini` is trained on and judged by: notes, texts, the split, the text encoder to start from.

    python mini/build.py out/mini --openscore ../openscore

The folder then holds abc/ (interleaved), raw/ (tunes as found) and mtf/, each with train/, transposed/ (`@G` behind
a name: to that tonic) and held_out/; train.jsonl and eval.jsonl as the training scripts read them; heldout.jsonl with
the facts of the held-out pieces, and held_out_tunes.txt with the names of the tunes among them; text_model/; and
failures.jsonl. No label reaches the notes: titles, origins, kinds and lyrics are
removed from all, tempo marks (Q:) and remarks from tunes before they are converted; scores keep what is printed in the
music, such as tempo words and the names of the parts.

The split is fixed by the notes: a piece is held out if the hash of its opening bars, as steps from note to note
in any key, falls into the first tenth. So near-duplicates share a side; what shares only its title with a
held-out piece is left out of training.
"""

import argparse
import hashlib
import json
import random
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import joblib
from tqdm import tqdm

from clamplib.files import Report
from clamplib.training.augment import text_lines
from convert import Notes, convert, count_bars
from corpus import ESSEN, Piece, pieces, read_key, with_key
from text_model import make_text_model
from texts import LANGUAGES, Facts, caption, describe

HELD_OUT, EVALUATION = range(0, 10), range(10, 13)  # of 100 buckets
CLIPS = 300  # of held-out pieces, rendered
TRANSPOSED = 2  # copies of a tune in other keys
SIGNATURES = "G D A C F Bb Eb E".split()  # of the keys that tunes stand in, commonest first


def main(argv: list[str] | None = None) -> int:
    """Build the folder. Pieces that were converted before are taken as they are."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("output", type=Path, help="folder for the data, for example out/mini")
    parser.add_argument("--openscore", type=Path, help="folder of OpenScore scores with index.tsv")
    parser.add_argument("--essen", action="store_true", help="with Essen (non-commercial licence) in training")
    parser.add_argument("--workers", type=int, default=-1, help="processes (default: all cores)")
    args = parser.parse_args(argv)
    index, sources = args.output / "pieces.jsonl", args.output / "sources.json"
    wanted = {"openscore": bool(args.openscore), "essen": args.essen}
    if not index.exists():
        convert_all(args)
        sources.write_text(json.dumps(wanted), encoding="utf-8")
    elif json.loads(sources.read_text("utf-8")) != wanted:
        print(
            f"error: {args.output} was made of other sources ({sources.read_text('utf-8')}): remove it or name the same"
        )
        return 1
    write_split(read_jsonl(index), args.output)
    return 0


def convert_all(args: argparse.Namespace) -> None:
    """Writes the notes of every piece, and pieces.jsonl: id, opening, facts and the names of its files."""
    found = list(pieces(args.openscore, args.essen))
    jobs = (joblib.delayed(_piece_record)(piece, args.output) for piece in found)
    parallel = joblib.Parallel(n_jobs=args.workers, return_as="generator")
    records, report = [], Report()
    for piece, result in zip(found, tqdm(parallel(jobs), total=len(found), unit="piece"), strict=True):
        if isinstance(result, str):
            report.add_failure(piece.id, result)
        else:
            records.append(result)
            report.done += 1
    report.write(args.output)
    write_jsonl(args.output / "pieces.jsonl", records)
    print(report.summary())


def _piece_record(piece: Piece, output: Path) -> dict | str:
    """The record of a piece whose files have been written, or why there is none."""
    try:
        notes = convert(piece)
    except Exception as error:  # one piece of thousands: reported and counted
        return f"{type(error).__name__}: {error}"[:300]
    facts = with_key(piece.facts, notes.key_field, notes.final_bass)
    facts = replace(facts, bars=count_bars(notes.abc) if notes.raw else None)
    record = {"id": piece.id, "opening": notes.opening, "facts": asdict(facts), "files": {}}
    side = "held_out" if bucket(notes.opening) in HELD_OUT else "train"
    record["files"][""] = _write(notes, output, f"{side}/{piece.id}")
    if piece.abc is not None and facts.collection != ESSEN and side == "train":
        for signature in random.Random(piece.id).sample(SIGNATURES, TRANSPOSED):
            try:
                copy = convert(piece, signature)
            except Exception:  # abctoolkit does not know every way to write a note: a copy fewer
                continue
            tonic, _ = read_key(copy.key_field)
            record["files"][tonic or ""] = _write(copy, output, f"transposed/{piece.id}@{tonic}")
    return record


def _write(notes: Notes, output: Path, name: str) -> list[str]:
    """Writes what there is of abc, raw and mtf; the names relative to the output folder."""
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
    """Which of 100 buckets these opening bars fall into."""
    return int.from_bytes(hashlib.sha256(opening.encode()).digest()[:4], "big") % 100


def write_split(records: list[dict], output: Path) -> None:
    """train.jsonl, eval.jsonl, heldout.jsonl and the text encoder to start from."""
    held_out = [record for record in records if bucket(record["opening"]) in HELD_OUT]
    titles = {_plain_title(record) for record in held_out} - {""}
    rest = [r for r in records if bucket(r["opening"]) not in HELD_OUT and _plain_title(r) not in titles]
    evaluation = [r for r in rest if bucket(r["opening"]) in EVALUATION and _files(r, "abc")]
    training = [r for r in rest if bucket(r["opening"]) not in EVALUATION]
    lines = [line for record in training for line in training_lines(record)]
    write_jsonl(output / "train.jsonl", lines)
    write_jsonl(output / "eval.jsonl", map(evaluation_line, evaluation))
    write_jsonl(output / "heldout.jsonl", held_out)
    names = [record["id"] for record in held_out if _files(record, "raw")]
    (output / "held_out_tunes.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    if not (output / "text_model").exists():  # a model may have been trained with it
        make_text_model(output / "text_model", (text for line in lines for text in _texts(line)))
    counts = Counter((r["facts"]["collection"] or r["id"].split("/")[0]) for r in held_out)
    print(f"{len(training)} pieces to train on ({len(lines)} lines), {len(evaluation)} to evaluate, ", end="")
    print(f"{len(held_out)} held out: " + ", ".join(f"{name} {n}" for name, n in counts.most_common()))


def _plain_title(record: dict) -> str:
    title = re.sub(r"[^a-z0-9]", "", (record["facts"]["title"] or "").lower())
    return "" if record["id"].startswith("openscore") else title  # songs share titles, not tunes


def training_lines(record: dict) -> Iterable[dict]:
    """Lines for the training scripts: one a key, each with texts of its own in every language."""
    rng = random.Random(record["id"])
    for tonic, files in record["files"].items():
        name = f"{record['id']}@{tonic}" if tonic else record["id"]
        yield {"id": name, "filepaths": files, **text_fields(facts_of(record, tonic), rng)}


def text_fields(facts: Facts, rng: random.Random) -> dict:
    """What a line says of a piece, in every language."""
    english, *translations = [
        {"analysis": caption(facts, language), "description": describe(facts, language, rng)} for language in LANGUAGES
    ]
    return {"language": "en", **english, "translations": translations}


def evaluation_line(record: dict) -> dict:
    """A line with the one text and files that training's own evaluation reads."""
    files = [name for name in record["files"][""] if not name.startswith("raw")]
    return {
        "id": record["id"],
        "filepaths": [*files, audio_name(files)],
        "language": "en",
        "analysis": caption(facts_of(record), "en"),
    }


def facts_of(record: dict, tonic: str = "") -> Facts:
    """What is known of a piece, or of its copy in the key of another tonic."""
    facts = Facts(**{**record["facts"], "instruments": tuple(record["facts"]["instruments"])})
    return replace(facts, tonic=tonic) if tonic else facts


def _files(record: dict, folder: str) -> list[str]:
    return [name for name in record["files"][""] if name.startswith(folder + "/")]


def _texts(line: dict) -> list[str]:
    """Every text of a training line, in all its languages."""
    own = {"analysis": line["analysis"], "description": line["description"]}
    return [text for fields in (own, *line["translations"]) for text in text_lines(fields)]


def audio_name(files: Sequence[str]) -> str:
    """The name of the audio features of a piece with these files (see build_audio)."""
    mtf = next(name for name in files if name.startswith("mtf/"))
    return f"audio/{mtf.removeprefix('mtf/').removesuffix('.mtf')}.npy"


def held_out_clips(data: Path) -> list[dict]:
    """The records of the clips to judge by: 300 held-out pieces, drawn once and for all."""
    records = read_jsonl(data / "heldout.jsonl")
    return sorted(records, key=lambda record: random.Random(record["id"]).random())[:CLIPS]


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def write_jsonl(path: Path, lines: Iterable[dict]) -> None:
    with path.open("w", encoding="utf-8") as out:
        for line in lines:
            out.write(json.dumps(line, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    sys.exit(main())

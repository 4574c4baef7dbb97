"""Lists of pieces to train on: the files of some folders for M3, the lines of a JSONL for CLaMP 3.

Bad lines, files that are missing or empty, and arrays that are no features, are found here, before training
starts: they are left out and said, each with its line or path. A file may be a member of a shard (see shards).
"""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

from clamplib.files import HEAD_BYTES, InputError, check_mert_shape, describe, key, show, stated_shape, walk
from clamplib.training import shards
from clamplib.training.augment import describing_fields, text_lines, translations

SYMBOLIC_SUFFIXES = (".abc", ".mtf")
SUFFIXES = {"symbolic": SYMBOLIC_SUFFIXES, "audio": (".npy",)}


def m3_files(folders: Sequence[str | Path]) -> tuple[list[dict], list[str]]:
    """Every .abc and .mtf in the folders or shards that is not empty, and what is wrong with the others.

    Dicts of a shards.File and an id: the file's path below the folder without suffix, so that an .abc and an
    .mtf of one name are one piece. Of a shard that a folder holds nothing is read: name the shard itself.
    """
    pieces, problems = [], []
    for folder in folders:
        for name, file in _symbolic_files(Path(folder)):
            if file.size:
                pieces.append({"id": name, "file": file})
            else:
                problems.append(f"{file.path}: expected music, got an empty file")
    if not pieces:
        raise InputError(f"{', '.join(map(str, folders))}: every .abc and .mtf file is empty")
    return pieces, problems


def _symbolic_files(folder: Path) -> list[tuple[str, shards.File]]:
    """Ids and files of a folder, or of a shard in the same order."""
    if folder.suffix != shards.SUFFIX or folder.is_dir():
        found = walk(folder, SYMBOLIC_SUFFIXES)
        return [(key(path, folder), shards.File(path, path.stat().st_size)) for path in found]
    members = {Path(name): file for name, file in shards.members(folder).items()}
    names = sorted(name for name in members if name.suffix.lower() in SYMBOLIC_SUFFIXES)
    if not names:
        raise InputError(f"{show(folder)}: expected files ending in {' '.join(SYMBOLIC_SUFFIXES)}, found none")
    return [(key(name, ""), members[name]) for name in names]


def read_pieces(
    jsonl: str | Path, modality: str, audio_size: int = 768, with_scores: bool = False
) -> tuple[list[dict], list[str]]:
    """Pieces of a JSONL that have a text and a file of the modality, and what is wrong with the other lines.

    Dicts of id, files (shards.File), scores and fields. A file that is missing or empty, or whose header is not that
    of features [..., frames, audio_size], is left out of its piece. With `with_scores`, pieces have scores beside
    their audio, and those without are left out; else the list is empty. InputError where no piece is left.
    """
    suffixes = {"files": SUFFIXES[modality]} | ({"scores": SYMBOLIC_SUFFIXES} if with_scores else {})
    jsonl, finder = Path(jsonl), shards.Finder()
    pieces, problems = [], []

    def find(name: str) -> shards.File:
        file = find_file(jsonl.parent / name, finder)
        if file.path.suffix.lower() in SUFFIXES["audio"]:
            _check_features(file, audio_size)
        return file

    with open(jsonl, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                piece, found = _read_piece(line, number, suffixes, find)
                pieces.append(piece)
            except InputError as error:
                found = [str(error)]
            problems += [f"{jsonl}, line {number}: {problem}" for problem in found]
    if not pieces:
        found = f"; the first problem: {problems[0]}" if problems else ""
        raise InputError(f"{jsonl}: expected pieces with a text and {_names(modality)} files, got none{found}")
    return pieces, problems


def _read_piece(line: bytes, number: int, suffixes: dict, find: Callable) -> tuple[dict, list[str]]:
    """The piece of a line with its lists of files by suffix, and what is wrong with its files."""
    fields, names = parse_line(line)
    if not evaluation_lines(fields):
        raise InputError("expected a text field such as title or analysis, got none")
    lists, problems = {"files": [], "scores": []}, []
    for kind, wanted in suffixes.items():
        for name in names:
            if Path(name).suffix.lower() in wanted:
                try:
                    lists[kind].append(find(name))
                except InputError as error:
                    problems.append(str(error))
        if not lists[kind]:
            raise InputError("; ".join(problems) or f"expected {' or '.join(wanted)} files in filepaths, got {names}")
    name = fields.get("id")
    return {"id": f"line {number}" if name is None else str(name), **lists, "fields": fields}, problems


def parse_line(line: bytes) -> tuple[dict, list[str]]:
    """The fields of a line, and its filepaths. InputError where it is no piece."""
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise InputError(f"expected a JSON object, got {error}") from error
    if not isinstance(fields, dict):
        raise InputError(f"expected a JSON object, got {type(fields).__name__}")
    names = fields.get("filepaths")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"expected filepaths to be a list of paths, got {names!r}")
    return fields, names


def find_file(path: Path, finder: shards.Finder) -> shards.File:
    """The file at a path. InputError where there is none, or nothing in it."""
    file = finder.find(path)
    if file is None or not file.size:
        raise InputError(f"expected music in {show(path)}, got {'no file' if file is None else 'an empty file'}")
    return file


def _check_features(file: shards.File, audio_size: int) -> None:
    """InputError unless the header is that of an array that a training on audio can read."""
    try:
        check_mert_shape(stated_shape(file.read(HEAD_BYTES), file.size), audio_size)
    except (OSError, InputError) as error:
        raise InputError(f"{show(file.path)}: {describe(error)}") from error


def _names(modality: str) -> str:
    return " or ".join(SUFFIXES[modality])


def split_items(items: Sequence, share: float, seed: int) -> tuple[list, list]:
    """Items (dicts with an id) to train and to evaluate on: a share of the ids, at least one, is held out."""
    ids = sorted({item["id"] for item in items})
    if not 0 < share < 1 or len(ids) < 2:
        raise InputError(
            f"cannot hold out {share} of {len(ids)} pieces for evaluation: name evaluation data, "
            "or give at least two pieces and an EVAL_SPLIT between 0 and 1"
        )
    random.Random(seed).shuffle(ids)
    held_out = set(ids[: min(max(1, round(share * len(ids))), len(ids) - 1)])
    sides = [], []
    for item in items:
        sides[item["id"] in held_out].append(item)
    return sides


def evaluation_lines(piece: dict) -> list[str]:
    """The lines of `analysis`, or else those of all the piece's fields, or else of a translation."""
    sources = ({"analysis": piece.get("analysis")}, describing_fields(piece), *translations(piece))
    return next((lines for lines in map(text_lines, sources) if lines), [])

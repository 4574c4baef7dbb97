"""Lists of pieces to train on: the files of some folders for M3, the lines of a JSONL for CLaMP 3.

Bad lines, and files that are missing or empty, are found here, before training starts: they are left out and
said, each with its line or path.
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path

from clamplib.augment import describing_fields, text_lines, translations
from clamplib.files import InputError, key, walk

SYMBOLIC_SUFFIXES = (".abc", ".mtf")
SUFFIXES = {"symbolic": SYMBOLIC_SUFFIXES, "audio": (".npy",)}


def m3_files(folders: Sequence[str | Path]) -> tuple[list[dict], list[str]]:
    """Every .abc and .mtf under the folders that is not empty, and what is wrong with the others.

    Dicts of file, its size, and id: its path below the folder without suffix, so that an .abc and an .mtf of
    one name are one piece.
    """
    pieces, problems = [], []
    for folder in folders:
        for path in walk(folder, SYMBOLIC_SUFFIXES):
            if size := path.stat().st_size:
                pieces.append({"id": key(path, folder), "file": path, "size": size})
            else:
                problems.append(f"{path}: expected music, got an empty file")
    if not pieces:
        raise InputError(f"{', '.join(map(str, folders))}: every .abc and .mtf file is empty")
    return pieces, problems


def read_pieces(jsonl: str | Path, modality: str) -> tuple[list[dict], list[str]]:
    """Pieces of a JSONL that have a text and a file of the modality, and what is wrong with the other lines.

    Dicts of id, files, their sizes, and fields. A file that is missing or empty is left out of its piece.
    InputError where no piece is left.
    """
    jsonl = Path(jsonl)
    pieces, problems = [], []
    with open(jsonl, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                piece, missing = _read_piece(line, jsonl, number, modality)
                pieces.append(piece)
            except InputError as error:
                missing = [str(error)]
            problems += [f"{jsonl}, line {number}: {problem}" for problem in missing]
    if not pieces:
        found = f"; the first problem: {problems[0]}" if problems else ""
        raise InputError(f"{jsonl}: expected pieces with a text and {_names(modality)} files, got none{found}")
    return pieces, problems


def _read_piece(line: bytes, jsonl: Path, number: int, modality: str) -> tuple[dict, list[str]]:
    """The piece of a line, and what is wrong with its files."""
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise InputError(f"expected a JSON object, got {error}") from error
    if not isinstance(fields, dict):
        raise InputError(f"expected a JSON object, got {type(fields).__name__}")
    if not evaluation_lines(fields):
        raise InputError("expected a text field such as title or analysis, got none")
    names = fields.get("filepaths")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"expected filepaths to be a list of paths, got {names!r}")
    paths = [jsonl.parent / name for name in names if Path(name).suffix.lower() in SUFFIXES[modality]]
    sizes = {path: path.stat().st_size if path.is_file() else 0 for path in paths}
    problems = [f"expected music in {path}, got {_nothing(path)}" for path in paths if not sizes[path]]
    files = [path for path in paths if sizes[path]]
    if not files:
        raise InputError("; ".join(problems) or f"expected {_names(modality)} files in filepaths, got {names}")
    name = fields.get("id")
    piece = {"id": f"line {number}" if name is None else str(name), "files": files, "fields": fields}
    return {**piece, "sizes": [sizes[path] for path in files]}, problems


def _nothing(path: Path) -> str:
    return "an empty file" if path.is_file() else "no file"


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

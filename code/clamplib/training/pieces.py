"""Pieces to train on: the music files of some folders for M3, the lines of a JSONL for CLaMP 3.

Whatever cannot be trained on is found here, before training starts: lines that are not pieces, files that are missing
or empty, and arrays that are not audio features. It is left out, and described with its line or its path. A file may
be a member of a shard (see shards).
"""

import json
import random
import re
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clamplib.embedding.sequences import check_mert_shape
from clamplib.files import HEAD_BYTES, InputError, key, show, stated_shape, values_at_depth, walk
from clamplib.training import shards

SYMBOLIC_SUFFIXES = (".abc", ".mtf")
AUDIO_SUFFIXES = (".npy",)
MODALITY_SUFFIXES = {"symbolic": SYMBOLIC_SUFFIXES, "audio": AUDIO_SUFFIXES}
MOST_NESTED = 20  # lists and objects within each other; more could exhaust Python's stack when an item is made
NOT_TEXT = ("id", "filepaths", "language", "translations")  # fields of a line that do not describe its piece

_TOO_DEEP = f"expected at most {MOST_NESTED} lists and objects within each other, got more"
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")  # half of an escaped character, such as an emoji


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of training data: one music file for M3, one line of a JSONL for CLaMP 3.

    Attributes:
        id: names the piece; pieces that share an id stay together when the data are split.
        files: the files of the modality that is trained, at least one; M3's pieces have exactly one.
        scores: the .abc and .mtf files that a recording is paired with; empty where recordings are trained alone.
        fields: the line's JSON object, with the texts that describe the piece; empty for M3.
    """

    id: str
    files: tuple[shards.File, ...]
    scores: tuple[shards.File, ...] = ()
    fields: Mapping[str, object] = field(default_factory=dict)


# ------------------------------------------------------------------------------------ M3: folders


def find_pieces(folders: Sequence[str | Path]) -> tuple[list[Piece], list[str]]:
    """Finds the .abc and .mtf files in folders or shards, for M3.

    A piece's id is the path of its file below the folder, without the suffix, so that an .abc and an .mtf of one name
    share it. Shards that lie in a folder are not opened: name the shard itself.

    Args:
        folders: folders, searched with their sub-folders, or shards.

    Returns:
        One piece per file, and a message for each file that is empty.

    Raises:
        InputError: a folder has no such file, or all files are empty.
        FileNotFoundError: a folder does not exist.
    """
    pieces, problems = [], []
    for folder in folders:
        for name, file in _symbolic_files(Path(folder)):
            if file.size:
                pieces.append(Piece(name, (file,)))
            else:
                problems.append(f"{show(file.path)}: expected music, got an empty file")
    if not pieces:
        raise InputError(f"{', '.join(map(show, folders))}: every .abc and .mtf file is empty")
    return pieces, problems


def _symbolic_files(folder: Path) -> list[tuple[str, shards.File]]:
    """Ids and files of a folder or of a shard, in the same order."""
    if folder.suffix != shards.SUFFIX or folder.is_dir():
        found = walk(folder, SYMBOLIC_SUFFIXES)
        return [(key(path, folder), shards.File(path, path.stat().st_size)) for path in found]
    members = {Path(name): file for name, file in shards.members(folder).items()}
    names = sorted(name for name in members if name.suffix.lower() in SYMBOLIC_SUFFIXES)
    if not names:
        raise InputError(f"{show(folder)}: expected files ending in {' '.join(SYMBOLIC_SUFFIXES)}, found none")
    return [(key(name, ""), members[name]) for name in names]


# ------------------------------------------------------------------------------------ CLaMP 3: a JSONL


def read_pieces(
    jsonl: str | Path, modality: str, audio_size: int = 768, with_scores: bool = False
) -> tuple[list[Piece], list[str]]:
    """Reads the pieces of a JSONL that have a text and a file of the modality, for CLaMP 3.

    A piece loses the files that are missing or empty, and the arrays whose header is not that of features
    [..., frames, audio_size]. A line without an id is named by its number.

    Args:
        jsonl: one piece per line; file paths are relative to its folder.
        modality: "symbolic" or "audio".
        audio_size: the size of a frame of audio features.
        with_scores: also reads the scores of each piece, and leaves out pieces without any.

    Returns:
        The pieces, and a message for each line or file that was left out.

    Raises:
        InputError: no piece is left, or the modality's files lie in a shard that cannot be read.
        OSError: the JSONL cannot be read.
    """
    jsonl, finder = Path(jsonl), shards.Finder()
    pieces, problems = [], []

    def find(name: str) -> shards.File:
        file = find_file(jsonl.parent / name, finder)
        if file.path.suffix.lower() in AUDIO_SUFFIXES:
            _check_features(file, audio_size)
        return file

    for number, line in numbered_lines(jsonl):
        found: list[str] = []
        try:
            fields, names = parse_line(line)
            if _SURROGATE.search(line):
                _check_texts(fields)
            if not evaluation_lines(fields):
                raise InputError("expected a text field such as title or analysis, got none")
            files = _find_files(names, MODALITY_SUFFIXES[modality], find, found)
            scores = _find_files(names, SYMBOLIC_SUFFIXES, find, found) if with_scores else ()
            pieces.append(Piece(_line_id(fields, number), files, scores, fields))
        except InputError as error:
            found.append(str(error))
        problems += [f"{show(jsonl)}, line {number}: {problem}" for problem in found]
    if not pieces:
        first = f"; the first problem: {problems[0]}" if problems else ""
        suffixes = " or ".join(MODALITY_SUFFIXES[modality])
        raise InputError(f"{show(jsonl)}: expected pieces with a text and {suffixes} files, got none{first}")
    return pieces, problems


def numbered_lines(jsonl: str | Path) -> Iterator[tuple[int, bytes]]:
    """Yields the lines of a file that are not blank, each with its number, counted from 1."""
    with open(jsonl, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield number, line


def parse_line(line: bytes) -> tuple[dict[str, object], list[str]]:
    """Parses a line of a JSONL.

    Returns:
        The fields of the line, and the paths in its `filepaths`.

    Raises:
        InputError: the line is not a JSON object in UTF-8, is nested too deeply, or its `filepaths` is not a list of
            strings.
    """
    try:
        fields = json.loads(line.decode("utf-8-sig"))
    except ValueError as error:
        raise InputError(f"expected a JSON object, got {error}") from error
    except RecursionError as error:
        raise InputError(_TOO_DEEP) from error
    if not isinstance(fields, dict):
        raise InputError(f"expected a JSON object, got {type(fields).__name__}")
    if any(isinstance(value, dict | list) for value in values_at_depth(fields, MOST_NESTED)):
        raise InputError(_TOO_DEEP)
    names = fields.get("filepaths")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"expected filepaths to be a list of paths, got {reprlib.repr(names)}")
    return fields, names


def _check_texts(fields: Mapping[str, object]) -> None:
    """Checks that the texts can be encoded. (A path may hold half a surrogate pair: so Python spells odd bytes.)"""
    for name, value in fields.items():
        try:
            if name != "filepaths":
                json.dumps({name: value}, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            wrong = ascii(error.object[error.start])
            raise InputError(f"expected Unicode text in {name!a}, got {wrong}, half a surrogate pair") from error


def find_file(path: Path, finder: shards.Finder) -> shards.File:
    """Finds the file at a path.

    Raises:
        InputError: there is no file, it is empty, or it lies in a shard that cannot be read.
    """
    file = finder.find(path)
    if file is None or not file.size:
        raise InputError(f"expected music in {show(path)}, got {'no file' if file is None else 'an empty file'}")
    return file


def _find_files(
    names: Sequence[str], suffixes: Sequence[str], find: Callable[[str], shards.File], problems: list[str]
) -> tuple[shards.File, ...]:
    """The files with one of the suffixes, at least one; `problems` receives what is wrong with the others."""
    files, bad = [], []
    for name in names:
        if Path(name).suffix.lower() in suffixes:
            try:
                files.append(find(name))
            except InputError as error:
                bad.append(str(error))
    if not files:
        raise InputError("; ".join(bad) or f"expected {' or '.join(suffixes)} files in filepaths, got {names}")
    problems += bad
    return tuple(files)


def _check_features(file: shards.File, audio_size: int) -> None:
    """Checks that the header is that of an array that a training on audio can read."""
    head = file.read(HEAD_BYTES)
    try:
        check_mert_shape(stated_shape(head, file.size), audio_size)
    except InputError as error:
        raise InputError(f"{show(file.path)}: {error}") from error


def _line_id(fields: Mapping[str, object], number: int) -> str:
    name = fields.get("id")
    return f"line {number}" if name is None else str(name)


def split_pieces(pieces: Sequence[Piece], share: float, seed: int) -> tuple[list[Piece], list[Piece]]:
    """Splits pieces at random into those to train on and those to evaluate on.

    Args:
        pieces: at least two ids among them.
        share: of the ids that are held out for evaluation, between 0 and 1; at least one id is.
        seed: of the drawing.

    Returns:
        The pieces to train on and the ones held out, both in the order of `pieces`.

    Raises:
        InputError: there are fewer than two ids, or the share is not between 0 and 1.
    """
    ids = sorted({piece.id for piece in pieces})
    if not 0 < share < 1 or len(ids) < 2:
        raise InputError(
            f"cannot hold out {share} of {len(ids)} pieces for evaluation: name evaluation data, "
            "or give at least two pieces and an EVAL_SPLIT between 0 and 1"
        )
    random.Random(seed).shuffle(ids)
    held_out = set(ids[: min(max(1, round(share * len(ids))), len(ids) - 1)])
    training = [piece for piece in pieces if piece.id not in held_out]
    evaluation = [piece for piece in pieces if piece.id in held_out]
    return training, evaluation


# ------------------------------------------------------------------------------------ texts of a line


def text_lines(fields: Mapping[str, object]) -> list[str]:
    """Returns the distinct non-empty lines of all fields, in order.

    Args:
        fields: strings, numbers, lists of these, or None, by name.
    """
    lines: dict[str, None] = {}
    for value in fields.values():
        for text in value if isinstance(value, list | tuple) else [value]:
            if text is not None:
                lines.update(dict.fromkeys(line.strip() for line in str(text).split("\n")))
    return [line for line in lines if line]


def describing_fields(fields: Mapping[str, object]) -> dict[str, object]:
    """Returns the fields that describe a piece in its own language."""
    return {name: value for name, value in fields.items() if name not in NOT_TEXT}


def translations(fields: Mapping[str, object]) -> list[Mapping[str, object]]:
    """Returns the translations of the fields; `translations` holds None, one object, or a list of them."""
    value = fields.get("translations")
    values = value if isinstance(value, list) else [value]
    return [translation for translation in values if isinstance(translation, Mapping)]


def evaluation_lines(fields: Mapping[str, object]) -> list[str]:
    """Returns the lines of `analysis`, or else those of all describing fields, or else those of a translation."""
    for source in ({"analysis": fields.get("analysis")}, describing_fields(fields), *translations(fields)):
        if lines := text_lines(source):
            return lines
    return []

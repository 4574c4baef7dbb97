"""The symbolic files that `mini` is trained on: each piece in the canonical form, as written and as played."""

import copy
import random
import re
from dataclasses import replace
from pathlib import Path

from clamplib.formats.canonical import MINOR_MODES, MINOR_NAMES, NAMES, canonical, write
from clamplib.formats.notes import read_notes
from recipes.mini.rewrite import transcribed, with_chord_symbols

PERFORMANCES = 4  # per piece in its own key
MOVED_PERFORMANCES = 2  # and in each other key
PITCH_CLASSES = 12
FLAT_MODES = ("minor", "dorian")  # whose tonics are spelled as those of minor keys
SEMITONES = [semitones for semitones in range(-6, 6) if semitones]  # to other keys
KEY = re.compile(r"(?m)^([A-G][b#]?) *([ mdxplo]) (?=\S*\|$)")


def write_forms(record: dict, data: Path, keys: dict[str, int]) -> dict[str, list[str]]:
    """Writes the canonical forms of a piece: of its ABC, of its MIDI and of performances.

    Args:
        record: of pieces.jsonl.
        data: the folder with its files, where the forms go to notes/.
        keys: the semitones to each other key, by the tonic of that key.

    Returns:
        The names of the files by tonic; those of the piece's own key under "".
    """
    files = {name.partition("/")[0]: (data / name).read_text("utf-8") for name in record["files"][""]}
    score = files.get("raw") or files["abc"]
    rng = random.Random(f"forms of {record['id']}")
    own = [canonical(score), canonical(files["mtf"])]
    if "raw" in files:
        own.append(canonical(files["abc"]))
    music = read_notes(score)
    if len(music.parts) == 1 and not music.roots:
        own.append(write(replace(with_chord_symbols(music, rng), marks=set())))

    def perform(count: int) -> list[str]:
        if len(music.parts) > 1:
            count = 1  # scores are long, and have fewer forms
        return [write(transcribed(copy.deepcopy(music), rng)) for _ in range(count)]

    names = {"": save_forms([*own, *perform(PERFORMANCES)], data / "notes", record["id"])}
    for tonic, semitones in keys.items():
        moved = [in_key(text, semitones) for text in (own[0], *perform(MOVED_PERFORMANCES))]
        names[tonic] = save_forms(moved, data / "notes", f"{record['id']}@{tonic}")
    return names


def in_key(text: str, semitones: int) -> str:
    """Returns a canonical form in another key. Its notes do not depend on the key."""

    def moved(match: re.Match) -> str:
        return f"{moved_tonic(match[1], semitones, match[2] in MINOR_MODES):2}{match[2]} "

    return KEY.sub(moved, text)


def moved_tonic(tonic: str, semitones: int, minor: bool) -> str:
    """Returns the tonic that many semitones higher, spelled as the key with few accidentals."""
    pitch = "C D EF G A B".index(tonic[0]) + {"": 0, "#": 1, "b": -1}[tonic[1:]] + semitones
    return (MINOR_NAMES if minor else NAMES)[pitch % PITCH_CLASSES]


def save_forms(texts: list[str], folder: Path, name: str) -> list[str]:
    """Writes the forms of a piece, equal ones once: `folder`/0/`name`.abc, `folder`/1/`name`.abc and so on.

    Returns:
        The names of the files, relative to the folder above.
    """
    names = []
    for number, text in enumerate(dict.fromkeys(texts)):
        path = folder / str(number) / f"{name}.abc"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="")
        names.append(path.relative_to(folder.parent).as_posix())
    return names

"""Random changes to training items, as pure functions: the same `rng` state gives the same choice."""

import math
import random
import re
from collections.abc import Mapping, Sequence

import numpy as np

from clamplib.formats.mtf import FIRST_WORD
from clamplib.formats.patchilizer import M3Patchilizer

NOT_TEXT = ("id", "filepaths", "language", "translations")  # fields of a piece that do not describe it
TRANSLATION_SHARE = 0.5
LINE_SHARE = 0.5
MASKED_SHARE, SHUFFLED_SHARE = 0.8, 0.1  # of the pieces in M3's training; the rest stays as it is

_LINE = re.compile(r"[^\n]*\n|[^\n]+")
_HIDDEN_LINE = re.compile(r"^(?:[KMLQ]:|%%).*\n?", re.MULTILINE)


def remove_instrument_info(text: str) -> str:
    """The piece without its instruments' names (ABC, lines V:) or numbers (MTF, program_change)."""
    change = _clear_program if text.startswith(FIRST_WORD) else _cut_voice_name
    return "".join(change(line) for line in _LINE.findall(text))


def _clear_program(line: str) -> str:
    if not line.startswith("program_change"):
        return line
    return line.rpartition(" ")[0] + " 0\n"


def _cut_voice_name(line: str) -> str:
    if not line.startswith("V:"):
        return line
    for name in (" nm=", " snm="):
        if name in line:
            return line.partition(name)[0] + "\n"
    return line


def hide_header(text: str) -> str:
    """ABC without the lines that state key, metre, unit length, tempo and layout; MTF as it is."""
    return text if text.startswith(FIRST_WORD) else _HIDDEN_LINE.sub("", text)


def text_lines(fields: Mapping[str, object]) -> list[str]:
    """The different non-empty lines of all fields (strings, lists of strings, or null), in their order."""
    lines: dict[str, None] = {}
    for value in fields.values():
        for text in value if isinstance(value, list | tuple) else [value]:
            if text is not None:
                lines.update(dict.fromkeys(line.strip() for line in str(text).split("\n")))
    return [line for line in lines if line]


def describing_fields(piece: Mapping[str, object]) -> dict[str, object]:
    """The fields of a piece that describe it in its own language."""
    return {name: value for name, value in piece.items() if name not in NOT_TEXT}


def translations(piece: Mapping[str, object]) -> list[Mapping[str, object]]:
    """The translations of a piece's fields: none, one or a list of them."""
    value = piece.get("translations")
    return [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, Mapping)]


def drop_text(piece: Mapping[str, object], rng: random.Random) -> list[str]:
    """Random lines of a piece's texts in random order.

    Half the time they come from `translations` (if it has any; of a list of translations one is drawn),
    else from the piece's own fields; each line is kept half the time, all of them if none was.
    """
    translation = rng.choice(translations(piece) or [{}])
    translated = rng.random() < TRANSLATION_SHARE
    lines = text_lines(translation) if translated else []
    lines = lines or text_lines(describing_fields(piece)) or text_lines(translation)
    kept = [line for line in lines if rng.random() < LINE_SHARE] or lines
    rng.shuffle(kept)
    return kept


def random_window(count: int, longest: int, rng: random.Random) -> slice:
    """Which `longest` of `count` to keep: a third each the first, the last, or a window from 1 or later."""
    if count <= longest:
        return slice(0, count)
    last = count - longest
    start = rng.choice((0, last, rng.randint(1, last)))
    return slice(start, start + longest)


def select_patches(count: int, ratio: float, rng: random.Random) -> np.ndarray:
    """Which patches of a piece M3 has to reconstruct: ceil(ratio * count) of them, bool [count]."""
    selected = np.zeros(count, dtype=bool)
    selected[rng.sample(range(count), math.ceil(ratio * count))] = True
    return selected


def corrupt_patches(patches: np.ndarray, selected: np.ndarray, rng: random.Random) -> np.ndarray:
    """What M3 reads in training: a copy of patches [n, S] whose selected ones are masked or shuffled.

    The whole piece shares one fate: 0.8 all mask codes, 0.1 the characters of each patch shuffled, 0.1 as is.
    """
    patches, fate = patches.copy(), rng.random()
    if fate < MASKED_SHARE:
        patches[selected] = M3Patchilizer.mask_token_id
    elif fate < MASKED_SHARE + SHUFFLED_SHARE:
        for row in np.flatnonzero(selected):
            patches[row] = _shuffle_patch(patches[row], rng)
    return patches


def _shuffle_patch(patch: np.ndarray, rng: random.Random) -> np.ndarray:
    """Patch [S] with the characters between its begin code and its first end code in random order."""
    ends = np.flatnonzero(patch == M3Patchilizer.eos_token_id)
    end = ends[0] if len(ends) else len(patch)
    characters: Sequence[int] = patch[1:end].tolist()
    return np.concatenate((patch[:1], np.array(rng.sample(characters, len(characters)), patch.dtype), patch[end:]))

"""Random changes to training items, as pure functions: the same state of `rng` gives the same choice."""

import math
import random
import re
from collections.abc import Mapping

import numpy as np

from clamplib.formats.mtf import FIRST_WORD
from clamplib.formats.patchilizer import M3Patchilizer
from clamplib.training.pieces import describing_fields, text_lines, translations

TRANSLATION_SHARE = 0.5  # of the texts that come from a translation
LINE_SHARE = 0.5  # of a text's lines that are kept
MASKED_SHARE = 0.8  # of the pieces in M3's training
SHUFFLED_SHARE = 0.1  # of them; the rest stays as it is

_LINE = re.compile(r"[^\n]*\n|[^\n]+")
_HIDDEN_LINE = re.compile(r"^(?:[KMLQ]:|%%).*\n?", re.MULTILINE)


def remove_instrument_info(text: str) -> str:
    """Returns ABC without the names of its instruments (lines V:), or MTF without their numbers (program_change)."""
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
    """Returns ABC without the lines that state key, meter, unit length, tempo and layout; MTF stays as it is."""
    return text if text.startswith(FIRST_WORD) else _HIDDEN_LINE.sub("", text)


def drop_text(fields: Mapping[str, object], rng: random.Random) -> list[str]:
    """Draws lines from the texts of a piece.

    Half the time the lines come from a translation, if the piece has any, else from its own fields. Each line is kept
    half the time, and all are kept if none would be.

    Args:
        fields: the fields of a piece (see pieces.Piece).
        rng: the source of all random choices.

    Returns:
        The lines in random order.
    """
    translation = rng.choice(translations(fields) or [{}])
    lines = text_lines(translation) if rng.random() < TRANSLATION_SHARE else []
    lines = lines or text_lines(describing_fields(fields)) or text_lines(translation)
    kept = [line for line in lines if rng.random() < LINE_SHARE] or lines
    rng.shuffle(kept)
    return kept


def random_window(count: int, longest: int, rng: random.Random) -> slice:
    """Chooses `longest` consecutive items out of `count`, or all if there are no more.

    A third of the time they are the first ones, a third the last ones, and a third they begin at any item but the
    first.
    """
    if count <= longest:
        return slice(0, count)
    last = count - longest
    start = rng.choice((0, last, rng.randint(1, last)))
    return slice(start, start + longest)


def select_patches(count: int, ratio: float, rng: random.Random) -> np.ndarray:
    """Chooses the patches of a piece that M3 reconstructs.

    Returns:
        bool [count], True at ceil(ratio * count) places.
    """
    selected = np.zeros(count, dtype=bool)
    selected[rng.sample(range(count), math.ceil(ratio * count))] = True
    return selected


def corrupt_patches(patches: np.ndarray, selected: np.ndarray, rng: random.Random) -> np.ndarray:
    """Masks or shuffles the selected patches of a piece, as M3 reads them in training.

    One draw decides for the whole piece: with probability 0.8 the selected patches become mask codes, with 0.1 the
    characters of each are shuffled, and with 0.1 they stay as they are.

    Args:
        patches: codes uint8 [n, S].
        selected: bool [n].
        rng: the source of all random choices.

    Returns:
        A changed copy of the patches.
    """
    patches = patches.copy()
    fate = rng.random()
    if fate < MASKED_SHARE:
        patches[selected] = M3Patchilizer.mask_token_id
    elif fate < MASKED_SHARE + SHUFFLED_SHARE:
        for row in np.flatnonzero(selected):
            patches[row] = _shuffle_patch(patches[row], rng)
    return patches


def _shuffle_patch(patch: np.ndarray, rng: random.Random) -> np.ndarray:
    """A patch [S] with the characters between its begin code and its first end code in random order."""
    ends = np.flatnonzero(patch == M3Patchilizer.eos_token_id)
    end = ends[0] if len(ends) else len(patch)
    characters = patch[1:end].tolist()
    shuffled = patch.copy()
    shuffled[1:end] = rng.sample(characters, len(characters))
    return shuffled

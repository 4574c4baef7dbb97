"""Bars of ABC whose voices follow each other: bar by bar in one line per bar, and their lengths.

The results are those of abctoolkit, in less time. abctoolkit splits every voice twice to interleave it, and takes .1 ms
to count a bar. The length of a bar depends on its rhythm alone, and few rhythms make up most music, so each is counted
once.
"""

import re
from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import lru_cache

from abctoolkit.duration import calculate_bartext_duration, calculate_single_note_duration
from abctoolkit.rotate import rotate_abc
from abctoolkit.utils import Barlines, extract_barline_and_bartext_dict, find_valid_bar_index, strip_empty_bars

from clamplib.files import InputError

BAR_LINE = re.compile(f"(?:{'|'.join(map(re.escape, Barlines))})" + r"(?:\d[\d,.-]*)?")  # and the number of an ending
# What abctoolkit would split in another way the second time: more numbers, another bar line, or fields alone.
NO_BAR = re.compile(r"^(?:[\d:]|[|:\[\]]+$|(?:\[\w:[^\]\n]*\]\s*)+$)", re.M)
UNSOUNDED = re.compile(r'"[^"\n]*"'), re.compile(r"![^!\n]+!"), re.compile(r"\{[^}\n]+\}")  # in abctoolkit's order
INLINE_FIELD = re.compile(r"\[[A-Za-z]:[^\]\n]*\]")
TO_RHYTHM = str.maketrans(dict.fromkeys("AaBbCcDdEeFfGgXxZz", "A") | dict.fromkeys("_=^',-"))  # any pitch is A
CHORD = re.compile(r"\[A+\]")
_LENGTH = r"(\d+(?:/[1-9]\d*)?|/(?:[1-9]\d*)?|)"
_BETWEEN = r"[ .()PSOsouvUVTM]*"  # slurs and decorations
NOTE = re.compile("A" + _LENGTH)
PLAIN = re.compile(rf"{_BETWEEN}(?:A{_LENGTH}{_BETWEEN}(?:[<>]+{_BETWEEN}(?=A))?)*")  # without tuplets


def join_bars(lines: list[str]) -> tuple[str, list[list[str]]]:
    """Interleaves a tune, without empty bars at both ends.

    Args:
        lines: ABC whose voices follow each other, each after a line such as `V:1`.

    Returns:
        The interleaved ABC, and all bars of each voice without bar lines.

    Raises:
        InputError: the voices have different numbers of bars, or no notes.
        Exception: what abctoolkit raises at a tune that it cannot split into bars.
    """
    head, prefixes, lefts, bars, rights = extract_barline_and_bartext_dict(lines)
    voices = list(bars.values())
    if len({len(voice) for voice in voices}) > 1:
        raise InputError("expected voices of equal length, got voices with different numbers of bars")
    starts, ends = zip(*map(find_valid_bar_index, voices), strict=True)
    start, end = min(starts), max(ends)
    if start >= end:
        raise InputError("expected voices of equal length, got no notes")
    if not all(_splits_cleanly(lefts[name], bars[name], rights[name]) for name in bars):
        stripped, _ = strip_empty_bars(lines)
        return "".join(rotate_abc(stripped)), voices
    columns = []
    for name, voice in bars.items():
        kept = voice[start:end]
        kept[0] = prefixes[name] + lefts[name][0] + kept[0]
        bar_lines = rights[name][start : end - 1] + rights[name][-1:]
        columns.append([f"[{name}]{bar}{line}" for bar, line in zip(kept, bar_lines, strict=True)])
    joined = [line.removesuffix("\n") for line in head]
    joined += map("".join, zip(*columns, strict=True))
    return "\n".join(joined) + "\n", voices


def _splits_cleanly(lefts: list[str], bars: list[str], rights: list[str]) -> bool:
    """Whether splitting a voice that is made of these parts would give them again."""
    if NO_BAR.search("\n".join(bars)) or rights[-1] not in Barlines:
        return False
    bar_lines = {*lefts[:1], *rights} - {""}
    return all(map(BAR_LINE.fullmatch, bar_lines))


def bars_differ(voices: Iterable[Sequence[str]]) -> bool:
    """Tells whether voices differ in the length of a bar.

    Args:
        voices: the bars of each voice, without bar lines.

    Returns:
        True at a bar in which a voice differs from the first. Bars after one that abctoolkit cannot count in the first
        voice are not compared.

    Raises:
        Exception: what abctoolkit raises at a bar that is not ABC.
    """
    for first, *others in zip(*map(_rhythms, voices), strict=False):
        length = _bar_length(first)
        if length is None:
            return False
        for rhythm in others:
            if _bar_length(rhythm) != length:
                return True
    return False


def _rhythms(bars: Sequence[str]) -> list[str]:
    """The bars of a voice with nothing left but what their lengths depend on."""
    text = "\n".join(bars)
    for pattern in UNSOUNDED:
        text = pattern.sub("", text)
    text = INLINE_FIELD.sub("", text).translate(TO_RHYTHM)
    return CHORD.sub("A", text).split("\n")


@lru_cache(maxsize=4096)
def _bar_length(rhythm: str) -> Fraction | None:
    if not PLAIN.fullmatch(rhythm):
        return calculate_bartext_duration(rhythm)
    return sum(map(_note_length, NOTE.findall(rhythm)))


@lru_cache
def _note_length(length: str) -> Fraction:
    return calculate_single_note_duration("A" + length)

"""Refuses cheaply what no music has, before a converter takes minutes or gigabytes for it.

The bounds are far above any real score. A file within them can still take long, so jobs also limit the time and the
memory of every reading.
"""

import re
from itertools import pairwise
from pathlib import Path

from clamplib.files import InputError, check_file, show

MAX_BYTES = 256 * 2**20  # of a file, packed or unpacked; the largest real scores are some 50 MB
MAX_TAGS = 10_000_000  # in MusicXML, opening and closing; some 2 GB when parsed. A score of 50 MB has some 2,000,000
MAX_VOICES = 500  # voices, staves or spines
MAX_LINE = 100_000  # characters; long lines cost the converters the square of their length
MAX_RUN = 100  # opening brackets or quotes in a row
MAX_REST = 9999  # bars of one rest in ABC; abc2xml writes out every bar
MAX_RESTS = 50_000  # bars of all rests in a tune
MAX_GAP = 1000  # measures that RomanText leaves out; music21 fills them in, in the square of their number

# For each format: what is expected -> a pattern that matches only what lies far outside. Its group is what was found.
_METER = "a meter of at most 999 beats"
_OCTAVE = "an octave from 0 to 9"
OUTSIDE = {
    ".musicxml": {
        "octaves from 0 to 9, moved by at most 9": r"octave(?:-change)?>\s{0,2}(-?\d{3,})",  # {0,2} is fast
        "voices numbered up to 999": r"voice>\s{0,2}(\d{4,})",
        "a tremolo of at most 8 strokes": r"<tremolo\b[^<>]*>\s*(-?\d{4,})",
        "lyrics with at most 999 verses": r"<lyric\b[^<>]*\bnumber\s*=\s*[\"'][^\"'<>]*?(\d{4,})",
    },
    ".krn": {_METER: r"(?:^|\t)\*M(\d{4,})"},
    ".mei": {
        _OCTAVE: r"\boct(?:\.ges)?\s*=\s*[\"'](-?\d{3,})",
        _METER: r"\b(?:meter\.)?count\s*=\s*[\"'](\d{4,})",
    },
    ".capx": {
        _OCTAVE: r"\bpitch\s*=\s*[\"'][A-Za-z](-?\d{3,})",
        _METER: r"\btime\s*=\s*[\"'](\d{4,})/",
    },
    ".nwctxt": {
        "a position of at most 99 staff lines": r"\|Pos2?:[^|\n]*?(-?\d{4,})",
        _METER: r"\|Signature:(\d{4,})",
    },
    ".musedata": {_METER: r"\bT:(\d{4,})/"},
    ".rntxt": {
        "measures up to number 9999": r"^m(?:\d+[a-z]?-)?(\d{5,})",
        _METER: r"^Time ?Signature:\s*(\d{4,})",
    },
}
ROMANTEXT_SUFFIXES = (".rntxt", ".rntext", ".romantext", ".rtxt")
OUTSIDE |= dict.fromkeys(ROMANTEXT_SUFFIXES, OUTSIDE[".rntxt"])
ABC_VOICE = re.compile(r"^V:[ \t]*(\S+)|\[V:[ \t]*([^\]\s]+)", re.M)
ABC_REST = re.compile(r"[XZ](\d+)")
ABC_RUN = re.compile(r'([\[{("])' + rf"\1{{{MAX_RUN}}}")


def read_bytes(path: str | Path) -> bytes:
    """Reads a file.

    Raises:
        InputError: there is no regular file, or it has more than MAX_BYTES bytes.
    """
    check_file(path)
    with open(path, "rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise InputError(f"{show(path)}: expected a file of at most {MAX_BYTES} bytes, got more")
    return data


def as_ascii(data: bytes) -> str:
    """Reads what is ASCII in a text of any encoding, such as tags and numbers. Other characters are not kept."""
    return (data.replace(b"\0", b"") if b"\0" in data else data).decode("latin-1")


def refuse_music21(text: str, suffix: str, name: str) -> None:
    """Refuses a score that music21 would take too long for.

    Args:
        text: the score; a compressed one unpacked.
        suffix: the suffix of its file, which tells the format.
        name: what an error calls it.

    Raises:
        InputError: the score has what no music has.
    """
    _refuse_numbers(text, suffix, name)
    if suffix in (".mei", ".capx", ".nwc"):
        return
    refuse_long_lines(text, name)
    if suffix == ".krn":
        _refuse_many(max(line.count("\t") for line in text.split("\n")) + 1, "spines", name)
    if suffix == ".nwctxt":
        _refuse_many(text.count("|AddStaff"), "staves", name)
    if suffix in ROMANTEXT_SUFFIXES:
        for before, after in pairwise(map(int, re.findall(r"^m(\d+)", text, re.M))):
            if after - before > MAX_GAP:
                got = f"measure {after} after measure {before}"
                raise InputError(f"{name}: expected at most {MAX_GAP} measures between two lines, got {got}")


def refuse_musicxml(data: bytes, name: str) -> None:
    """Refuses MusicXML that xml2abc would take too long for.

    Raises:
        InputError: the document, which the message calls `name`, has what no music has.
    """
    if len(data) > MAX_TAGS and data.count(b"<") > MAX_TAGS:
        raise InputError(f"{name}: expected at most {MAX_TAGS} tags, got {data.count(b'<')}")
    _refuse_numbers(as_ascii(data), ".musicxml", name)


def refuse_abc(abc: str, name: str) -> None:
    """Refuses a tune that abc2xml would take too long for.

    Raises:
        InputError: the tune, which the message calls `name`, has what no music has.
    """
    refuse_long_lines(abc, name)
    if run := ABC_RUN.search(abc):
        raise InputError(f"{name}: expected at most {MAX_RUN} {run[1]} in a row, got more in {_line(abc, run)}")
    _refuse_many(len({a or b for a, b in ABC_VOICE.findall(abc)}), "voices", name)
    bars = 0
    for rest in ABC_REST.finditer(abc):
        if len(rest[1]) > len(str(MAX_REST)):
            raise InputError(f"{name}: expected rests of at most {MAX_REST} bars, got {rest[0][:20]}")
        bars += int(rest[1])
    if bars > MAX_RESTS:
        raise InputError(f"{name}: expected rests of at most {MAX_RESTS} bars in all, got {bars}")


def refuse_long_lines(text: str, name: str) -> None:
    """Refuses a text with a line of more than MAX_LINE characters.

    Raises:
        InputError: the text, which the message calls `name`, has such a line.
    """
    longest = max(map(len, text.split("\n")))
    if longest > MAX_LINE:
        raise InputError(f"{name}: expected lines of at most {MAX_LINE} characters, got one of {longest}")


def _refuse_numbers(text: str, suffix: str, name: str) -> None:
    for expected, pattern in OUTSIDE.get(suffix, {}).items():
        if match := re.search(pattern, text, re.M):
            raise InputError(f"{name}: expected {expected}, got {match[1][:20]} in {_line(text, match)}")


def _refuse_many(count: int, what: str, name: str) -> None:
    if count > MAX_VOICES:
        raise InputError(f"{name}: expected at most {MAX_VOICES} {what}, got {count}")


def _line(text: str, match: re.Match) -> str:
    return f"line {text.count(chr(10), 0, match.start()) + 1}"

"""Score files of any kind -> standard ABC: MusicXML, ABC from the wild, and what music21 reads.

ABC goes by abc2xml, the others by music21, all of them by way of MusicXML. A file that holds many tunes is as many
sources, so that each is converted, resumed and reported by itself.
"""

import html
import os
import re
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from clamplib.files import InputError, show
from clamplib.formats.notation import abc_to_xml, alone, reason, refuse_entities, split_tunes, unzip, xml_to_abc

MUSICXML_SUFFIXES = (".xml", ".musicxml", ".mxl")
TUNEBOOK_SUFFIXES = (".abc", ".krn")  # of files that may hold many tunes
MUSIC21_SUFFIXES = (".mei", ".nwc", ".nwctxt", ".rntxt", ".rntext", ".romantext", ".rtxt", ".capx", ".musedata")
SCORE_SUFFIXES = (*MUSICXML_SUFFIXES, *TUNEBOOK_SUFFIXES, *MUSIC21_SUFFIXES)
TITLES = {  # how a score says what it is called
    ".abc": r"^T:[ \t]*(.+)",
    ".krn": r"^!!!OTL[^:]*:[ \t]*(.+)",
    ".mei": r"<title(?: [^>]*)?>\s*([^<\s][^<]*)",
} | dict.fromkeys(MUSICXML_SUFFIXES, r"<(?:work|movement)-title>([^<]+)")
KERN_END = re.compile(r"^\*-(?:\t\*-)*[ \t\r]*\n?", re.M)  # the line that ends all spines


@dataclass(frozen=True)
class Tune:
    """One of the tunes of a file that holds many; `number` counts from 1. It has its file's path."""

    path: Path
    number: int

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return f"{self.path}#{self.number}"

    @property
    def alias(self) -> Path:
        """The file it would be if it had one of its own: name-0001.abc, so that each has a key of its own."""
        name, dot, rest = self.path.name.partition(".")
        return self.path.with_name(f"{name}-{self.number:04d}{dot}{rest}")


def score_to_abc(score: Path | Tune) -> str:
    """A score file of any of SCORE_SUFFIXES, or one tune of it -> standard ABC. Raises InputError."""
    path = Path(score)
    if path.suffix.lower() in MUSICXML_SUFFIXES:
        return xml_to_abc(path)
    if isinstance(score, Tune):
        return xml_to_abc(_tune_to_xml(score, _texts(path, path.stat().st_mtime_ns)[score.number - 1]))
    scores = to_musicxml(path)
    if len(scores) != 1:
        raise InputError(f"{show(path)}: expected one score, came {len(scores)}; split the file first")
    return xml_to_abc(scores[0])


def to_musicxml(path: str | Path) -> list[bytes]:
    """A score file of any of SCORE_SUFFIXES -> MusicXML, one a tune. Raises InputError."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in MUSICXML_SUFFIXES:
        data = path.read_bytes()
        return [unzip(data, show(path)) if data[:2] == b"PK" else data]
    if suffix in TUNEBOOK_SUFFIXES:
        return [_tune_to_xml(path, text) for text in _texts(path, path.stat().st_mtime_ns)]
    return _by_music21(path, path.read_bytes())


def tunes(path: Path) -> list[Path | Tune]:
    """The file itself if it holds one tune (or is bad: its conversion will say why), else its tunes."""
    if path.suffix.lower() not in TUNEBOOK_SUFFIXES:
        return [path]
    try:
        count = len(_texts(path, path.stat().st_mtime_ns))
    except (OSError, InputError):
        count = 1
    return [path] if count == 1 else [Tune(path, number) for number in range(1, count + 1)]


def title(score: os.PathLike) -> str | None:
    """What a score, or one tune of a file, calls itself; None where it does not, or cannot be read."""
    pattern = TITLES.get(Path(score).suffix.lower())
    try:
        found = re.search(pattern, score_text(score), re.M) if pattern else None
    except (InputError, OSError, IndexError):
        return None
    return html.unescape(found[1]).strip() or None if found else None


def score_text(score: os.PathLike) -> str:
    """A score, or one tune of a file, as it is written: ABC, kern, MEI, or else as MusicXML. Raises InputError."""
    path = Path(score)
    if path.suffix.lower() in TUNEBOOK_SUFFIXES:
        return _texts(path, path.stat().st_mtime_ns)[getattr(score, "number", 1) - 1]
    if path.suffix.lower() == ".mei":
        return read_text(path)
    data = to_musicxml(path)[0]
    return data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")


@lru_cache(maxsize=1)
def _texts(path: Path, modified: int) -> list[str]:
    """The tunes of a file; kept, since a worker often converts one after the other."""
    text = read_text(path)
    found = split_tunes(text) if path.suffix.lower() == ".abc" else split_kern(text)
    if not found:
        raise InputError(f"{show(path)}: expected at least one tune, came none")
    return found


def _tune_to_xml(source: os.PathLike, text: str) -> bytes:
    if Path(source).suffix.lower() == ".abc":
        return abc_to_xml(text).encode()
    (xml,) = _by_music21(source, text.encode())
    return xml


def split_kern(kern: str) -> list[str]:
    """The sections of a Humdrum file that holds many: each ends where all its spines do."""
    ends = [match.end() for match in KERN_END.finditer(kern)]
    sections = [kern[a:b] for a, b in zip([0, *ends], [*ends, len(kern)], strict=True)]
    return [section for section in sections if re.search(r"^\*\*", section, re.M)]


def read_text(path: str | Path) -> str:
    """ABC or kern as found (see decode_text). Raises InputError."""
    return decode_text(Path(path).read_bytes(), show(path))


def decode_text(data: bytes, name: str) -> str:
    """UTF-8, UTF-16 by its mark, else latin-1, as was the custom for ABC. InputError, with `name`, for no text."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        text = data.decode("utf-16")
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = data.decode("latin-1")
    if not text.strip() or "\0" in text:
        raise InputError(f"{name}: expected text, came {'a binary' if text.strip() else 'an empty'} file")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _by_music21(source: os.PathLike, data: bytes) -> list[bytes]:
    """What music21 reads -> MusicXML; by a copy with a plain name, since music21 expands $ and ~ in names."""
    refuse_entities(data, show(source))
    with alone(show(source)), tempfile.TemporaryDirectory() as folder:
        from music21 import converter, stream  # slow to import, and most scores never need it
        from music21.musicxml.m21ToXml import GeneralObjectExporter

        copy = Path(folder, "score" + Path(source).suffix.lower())
        copy.write_bytes(data)
        try:
            reader = converter.Converter()
            reader.parseFileNoPickle(copy)
            score = reader.stream
            scores = list(score.scores) if isinstance(score, stream.Opus) else [score]
            return [GeneralObjectExporter(each).parse() for each in scores]
        except Exception as error:  # music21 raises whatever a broken score leads to
            raise InputError(f"{show(source)}: music21 cannot read it, it met {reason(error)}") from error

"""Score files of any kind -> standard ABC: MusicXML, ABC of any origin, and the formats that music21 reads.

Every score becomes MusicXML first: ABC through abc2xml, the other formats through music21. A file with many tunes is
many sources, so that each tune is converted, resumed and reported by itself.
"""

import html
import os
import re
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

from clamplib.files import InputError, show
from clamplib.formats.archives import inflate_noteworthy, refuse_entities, unzip, unzip_capella
from clamplib.formats.limits import as_ascii, read_bytes, refuse_music21
from clamplib.formats.notation import (
    abc_to_xml,
    running_converter,
    split_tunes,
    summarize_error,
    without_control_characters,
    xml_to_abc,
)

MUSICXML_SUFFIXES = (".xml", ".musicxml", ".mxl")
TUNEBOOK_SUFFIXES = (".abc", ".krn")  # files that may hold many tunes
MUSIC21_FORMATS = {
    ".krn": "a kern score",
    ".mei": "an MEI score",
    ".nwc": "a NoteWorthy score",
    ".nwctxt": "a NoteWorthy score as text",
    ".rntxt": "a RomanText score",
    ".rntext": "a RomanText score",
    ".romantext": "a RomanText score",
    ".rtxt": "a RomanText score",
    ".capx": "a Capella score",
    ".musedata": "a MuseData score",
}
MUSIC21_SUFFIXES = tuple(suffix for suffix in MUSIC21_FORMATS if suffix not in TUNEBOOK_SUFFIXES)
SCORE_SUFFIXES = (*MUSICXML_SUFFIXES, *TUNEBOOK_SUFFIXES, *MUSIC21_SUFFIXES)
TITLE_PATTERNS = {  # where a score states its title
    ".abc": r"^T:[ \t]*(.+)",
    ".krn": r"^!!!OTL[^:]*:[ \t]*(.+)",
    ".mei": r"<title(?: [^>]*)?>\s*([^<\s][^<]*)",
} | dict.fromkeys(MUSICXML_SUFFIXES, r"<(?:work|movement)-title>([^<]+)")
KERN_END = re.compile(r"^\*-(?:\t\*-)*[ \t\r]*\n?", re.M)  # the line that ends all spines
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")  # byte order marks


@dataclass(frozen=True)
class Tune:
    """One tune of a file that holds many.

    Attributes:
        path: the file, which is also the tune's own path (os.fspath).
        number: its place in the file, counted from 1.
    """

    path: Path
    number: int

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return f"{self.path}#{self.number}"

    @property
    def alias(self) -> Path:
        """The path that the tune would have in a file of its own, name-0001.abc, so that every tune has its own key."""
        name, dot, rest = self.path.name.partition(".")
        return self.path.with_name(f"{name}-{self.number:04d}{dot}{rest}")


def score_to_abc(score: Path | Tune) -> str:
    """Converts a score file to standard ABC.

    Args:
        score: a file that ends in one of SCORE_SUFFIXES and holds one tune, or one tune of a file.

    Raises:
        InputError: the score cannot be read, or the file holds several tunes.
    """
    path = Path(score)
    suffix = path.suffix.lower()
    if suffix in MUSICXML_SUFFIXES:
        return xml_to_abc(path)
    if suffix in TUNEBOOK_SUFFIXES:
        if not isinstance(score, Tune):
            _require_one(_tune_texts(path, path.stat().st_mtime_ns), path)
        return xml_to_abc(_tune_to_xml(score, _tune_text(score)), show(score))
    scores = score_to_musicxml(path)
    _require_one(scores, path)
    return xml_to_abc(scores[0], show(path))


def _require_one(scores: list, path: os.PathLike) -> None:
    if len(scores) != 1:
        raise InputError(f"{show(path)}: expected one score, got {len(scores)}; split the file first")


def score_to_musicxml(path: str | Path) -> list[bytes]:
    """Converts a score file that ends in one of SCORE_SUFFIXES to MusicXML.

    Returns:
        One document per tune of the file.

    Raises:
        InputError: the file cannot be read.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in MUSICXML_SUFFIXES:
        data = read_bytes(path)
        return [unzip(data, show(path)) if data[:2] == b"PK" else data]
    if suffix in TUNEBOOK_SUFFIXES:
        return [_tune_to_xml(path, text) for text in _tune_texts(path, path.stat().st_mtime_ns)]
    return _by_music21(path, read_bytes(path))


def list_tunes(path: Path) -> list[Path | Tune]:
    """Lists the tunes of a score file.

    Returns:
        The file itself if it holds one tune or cannot be read, in which case its conversion says why; else its tunes.
    """
    if path.suffix.lower() not in TUNEBOOK_SUFFIXES:
        return [path]
    try:
        count = len(_tune_texts(path, path.stat().st_mtime_ns))
    except (OSError, InputError):
        count = 1
    return [path] if count == 1 else [Tune(path, number) for number in range(1, count + 1)]


def read_title(score: os.PathLike) -> str | None:
    """Reads the title that a score, or one tune of a file, states. None if it states none or cannot be read."""
    pattern = TITLE_PATTERNS.get(Path(score).suffix.lower())
    if not pattern:
        return None
    try:
        match = re.search(pattern, score_text(score), re.M)
    except (InputError, OSError):
        return None
    return html.unescape(match[1]).strip() or None if match else None


def score_text(score: os.PathLike) -> str:
    """Reads a score, or one tune of a file, in its own notation.

    Returns:
        ABC, kern or MEI as it is written; a score in any other format as MusicXML.

    Raises:
        InputError: the score cannot be read.
    """
    path = Path(score)
    if path.suffix.lower() in TUNEBOOK_SUFFIXES:
        return _tune_text(score)
    if path.suffix.lower() == ".mei":
        return read_text(path)
    return decode_text(score_to_musicxml(path)[0], show(path))


def _tune_text(score: os.PathLike) -> str:
    """The text of a tune, or of the first tune of a file."""
    path, number = Path(score), getattr(score, "number", 1)
    tunes = _tune_texts(path, path.stat().st_mtime_ns)
    if number > len(tunes):
        raise InputError(f"{show(path)}: expected at least {number} tunes, got {len(tunes)}: the file has changed")
    return tunes[number - 1]


@lru_cache(maxsize=1)
def _tune_texts(path: Path, modified: int) -> list[str]:
    """The texts of a file's tunes. The last file's are kept, because a worker often converts them one by one."""
    text = read_text(path)
    tunes = split_tunes(text) if path.suffix.lower() == ".abc" else split_kern(text)
    if not tunes:
        raise InputError(f"{show(path)}: expected at least one tune, got none")
    return tunes


def _tune_to_xml(source: os.PathLike, text: str) -> bytes:
    if Path(source).suffix.lower() == ".abc":
        return abc_to_xml(text).encode()
    scores = _by_music21(source, text.encode())
    _require_one(scores, source)
    return scores[0]


def split_kern(kern: str) -> list[str]:
    """Splits a Humdrum file into its pieces. A piece ends where all its spines do."""
    ends = [match.end() for match in KERN_END.finditer(kern)]
    pieces = []
    for start, end in pairwise([0, *ends, len(kern)]):
        if re.search(r"^\*\*", kern[start:end], re.M):
            pieces.append(kern[start:end])
    return pieces


def read_text(path: str | Path) -> str:
    """Reads a text file of any encoding that `decode_text` knows.

    Raises:
        InputError: the file is empty, binary, or broken UTF-16.
    """
    return decode_text(read_bytes(path), show(path))


def decode_text(data: bytes, name: str) -> str:
    """Decodes UTF-8, UTF-16 with its byte order mark, or else latin-1, in which older ABC is written.

    Args:
        data: the content of a file.
        name: what an error calls the file.

    Returns:
        The text. Its lines end in "\\n".

    Raises:
        InputError: the data is empty, binary, or broken UTF-16.
    """
    if data[:2] in UTF16_MARKS:
        try:
            text = data.decode("utf-16")
        except UnicodeDecodeError as error:
            raise InputError(f"{name}: expected UTF-16, as it begins, got other bytes ({error})") from error
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = data.decode("latin-1")
    if not text.strip() or "\0" in text:
        raise InputError(f"{name}: expected text, got {'a binary' if text.strip() else 'an empty'} file")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _by_music21(source: os.PathLike, data: bytes) -> list[bytes]:
    """Converts data that music21 reads to MusicXML, from a copy with a plain name: music21 expands $ and ~ in names."""
    name, suffix = show(source), Path(source).suffix.lower()
    score = data
    if suffix == ".capx":
        score, data = unzip_capella(data, name)
    elif suffix == ".nwc":
        score = data = inflate_noteworthy(data, name)
    refuse_entities(score, name)
    refuse_music21(as_ascii(score), suffix, name)
    with running_converter(name), tempfile.TemporaryDirectory() as folder:
        from music21 import converter, stream  # slow to import, and most scores never need it
        from music21.musicxml.m21ToXml import GeneralObjectExporter

        copy = Path(folder, "score" + suffix)
        copy.write_bytes(data)
        try:
            reader = converter.Converter()
            reader.parseFileNoPickle(copy)
            scores = list(reader.stream.scores) if isinstance(reader.stream, stream.Opus) else [reader.stream]
            documents = [GeneralObjectExporter(each).parse().decode() for each in scores]
        except Exception as error:  # music21 raises whatever a broken score leads to
            expected = MUSIC21_FORMATS[suffix]
            got = summarize_error(error)
            raise InputError(f"{name}: expected {expected}, music21 could not read this one ({got})") from error
    return [without_control_characters(document).encode() for document in documents]

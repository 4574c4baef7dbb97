"""MusicXML, and whatever music21 reads -> ABC -> interleaved ABC -> MusicXML.

Interleaved ABC has one line a bar, which holds that bar of every voice: `[V:1]...|[V:2]...|`. The conversions
are abctoolkit's (xml2abc and abc2xml by W. G. Vree, and its own clean-up), driven inside this process: the
published weights were trained on exactly what they write. They keep their state in module globals, so a
process converts one score at a time.
"""

import io
import logging
import os
import re
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from functools import lru_cache
from math import gcd
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

from abctoolkit import xml2abc
from abctoolkit.check import check_alignment_unrotated
from abctoolkit.rotate import rotate_abc
from abctoolkit.utils import (
    Barlines,
    remove_bar_no_annotations,
    remove_information_field,
    strip_empty_bars,
)

from clamplib.files import InputError, show

logger = logging.getLogger(__name__)

MUSICXML_SUFFIXES = (".xml", ".musicxml", ".mxl")
MUSIC21_SUFFIXES = (".krn", ".mei", ".nwc", ".nwctxt", ".rntxt")  # kern, MEI, NoteWorthy, RomanText
SCORE_SUFFIXES = (*MUSICXML_SUFFIXES, ".abc", *MUSIC21_SUFFIXES)
XML2ABC_OPTIONS = SimpleNamespace(  # those of `xml2abc -d 8 -x`
    d=8, x=True, ped=True, p=[], o="", b=0, c=0, m=0, n=0, v=0,
    i=None, j=None, s=None, stm=None, t=None, u=None, v1=None,
)  # fmt: skip
DROPPED_FIELDS = ["X:", "T:", "C:", "W:", "w:", "Z:", "%%MIDI"]
CONTAINER = "META-INF/container.xml"  # names the score in an .mxl archive
NO_SCORE = re.compile(r"META-INF/|__MACOSX/|(.*/)?\._")
MAX_UNZIPPED = 256 * 2**20  # bytes; the largest real scores are some 50 MB
MAX_REST = 9999  # bars; abc2xml writes every one of them out
FIELD = re.compile(r"[A-Za-z]:|%%")
QUOTED = re.compile(r'"[^"]*"')
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
        return [_unzip(data, show(path)) if data[:2] == b"PK" else data]
    if suffix in (".abc", ".krn"):
        return [_tune_to_xml(path, text) for text in _texts(path, path.stat().st_mtime_ns)]
    return _by_music21(path, path.read_bytes())


def tunes(path: Path) -> list[Path | Tune]:
    """The file itself if it holds one tune (or is bad: its conversion will say why), else its tunes."""
    if path.suffix.lower() not in (".abc", ".krn"):
        return [path]
    try:
        count = len(_texts(path, path.stat().st_mtime_ns))
    except (OSError, InputError):
        count = 1
    return [path] if count == 1 else [Tune(path, number) for number in range(1, count + 1)]


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


def xml_to_abc(score: str | Path | bytes) -> str:
    """MusicXML (.xml, .musicxml, .mxl, or the bytes) -> standard ABC, as `xml2abc -d 8 -x` writes it.

    Raises InputError for what is no MusicXML or holds no notes.
    """
    name = "this MusicXML" if isinstance(score, bytes) else show(score)
    data = score if isinstance(score, bytes) else Path(score).read_bytes()
    data = _unzip(data, name) if data[:2] == b"PK" else data.lstrip()
    _refuse_entities(data, name)
    _require_partwise(data, name)
    output = io.StringIO()
    with _quiet(name):
        xml2abc.abcOut = xml2abc.ABCoutput("", "", 0, XML2ABC_OPTIONS)  # the global it writes to
        xml2abc.abcOut.outfile = output
        try:
            xml2abc.Parser(XML2ABC_OPTIONS).parse(io.BytesIO(data))
        except Exception as error:  # xml2abc raises whatever a broken score leads to
            raise InputError(f"{name}: expected sound MusicXML, xml2abc met {_reason(error)}") from error
    if not output.getvalue():
        raise InputError(f"{name}: expected a score with notes, came one without")
    return output.getvalue()


def interleave(abc: str) -> str:
    """Standard ABC -> interleaved ABC, without titles, lyrics, bar numbers, empty bars at both ends.

    Raises InputError if there is no `V:1` line, no music, or voices have different numbers of bars.
    """
    lines = [line for line in abc.splitlines(keepends=True) if line.strip()]
    with _quiet("interleave") as said:
        try:
            lines = remove_bar_no_annotations(remove_information_field(lines, DROPPED_FIELDS))
            lines = [line if FIELD.match(line) else _without_split_quotes(line) for line in lines]
            stripped, _ = strip_empty_bars(lines)
            if stripped is None:
                problem = (
                    "voices with different numbers of bars"
                    if "bar numbers" in said.getvalue()
                    else "no notes"
                )
                raise InputError(f"expected voices of one length, came {problem}")
            interleaved = "".join(rotate_abc(stripped))
        except InputError:
            raise
        except Exception as error:  # abctoolkit raises whatever a broken score leads to
            raise InputError(
                f"expected ABC with V:1 lines, as xml_to_abc writes it: {_reason(error)}"
            ) from error
    return interleaved


def bars_differ(abc: str) -> bool:
    """Whether the voices of standard ABC differ in the length of some bar, as far as abctoolkit can tell."""
    with _quiet("bars_differ") as said, suppress(Exception):
        check_alignment_unrotated(abc.splitlines(keepends=True))
    return "Odd bar duration" in said.getvalue()


def abc_to_xml(abc: str) -> str:
    """One tune, standard or interleaved ABC -> MusicXML. Raises InputError for what abc2xml cannot read."""
    if not re.search(r"^K:|\[K:", abc, re.M):
        raise InputError(f"expected an ABC tune with a K: line, came {abc[:40]!r}")
    if re.search(rf"[XZ]\d{{{len(str(MAX_REST)) + 1}}}", abc):
        raise InputError(f"expected rests of at most {MAX_REST} bars, came a longer one")
    abc2xml = _abc2xml()
    tune = abc if re.search(r"^\s*X:", abc, re.M) else "X:1\n" + abc
    with _quiet("abc_to_xml"):
        try:
            score = abc2xml.mxm.parse(tune)
            durations = list(score.iter("duration"))
            divisor = gcd(21, *(int(duration.text) for duration in durations))
            for element in [*durations, *score.iter("divisions")]:
                element.text = str(int(element.text) // divisor)
            return abc2xml.fixDoctype(score) + "\n"
        except Exception as error:  # abc2xml raises whatever a broken tune leads to
            raise InputError(f"expected an ABC tune, abc2xml met {_reason(error)}") from error


def split_tunes(abc: str) -> list[str]:
    """The tunes of an ABC file, without prose, each with the file header's fields behind its X: line."""
    head, *tunes = re.split(r"^[ \t]*X:", abc, flags=re.M)
    if not tunes:
        return ["X:1\n" + abc] if abc.strip() else []
    header = "".join(line + "\n" for line in head.splitlines() if FIELD.match(line))
    split = []
    for tune in tunes:
        number, _, rest = tune.partition("\n")
        split.append(f"X:{number}\n{header}{_without_free_text(rest)}")
    return split


def _without_free_text(tune: str) -> str:
    """Without paragraphs of prose behind the tune, whose letters would be read as notes.

    By the standard a blank line ends a tune; in the wild many go on behind one, so bar lines decide.
    """
    first, *others = re.split(r"\n[ \t]*\n", tune.rstrip())
    kept = [block for block in others if "|" in block or FIELD.match(block.lstrip())]
    return "\n".join([first, *kept]) + "\n"


def split_kern(kern: str) -> list[str]:
    """The sections of a Humdrum file that holds many: each ends where all its spines do."""
    ends = [match.end() for match in KERN_END.finditer(kern)]
    sections = [kern[a:b] for a, b in zip([0, *ends], [*ends, len(kern)], strict=True)]
    return [section for section in sections if re.search(r"^\*\*", section, re.M)]


def read_text(path: str | Path) -> str:
    """ABC or kern as found: UTF-8, UTF-16 by its mark, else latin-1, as was the custom. Or InputError."""
    data = Path(path).read_bytes()
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        text = data.decode("utf-16")
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = data.decode("latin-1")
    if not text.strip() or "\0" in text:
        raise InputError(
            f"{show(path)}: expected text, came {'a binary' if text.strip() else 'an empty'} file"
        )
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _without_split_quotes(line: str) -> str:
    """Without escaped quotes and without quoted texts that hold a bar line: the line would be split there."""
    line = line.replace(r"\"", "")
    return QUOTED.sub(lambda quoted: "" if any(b in quoted[0] for b in Barlines) else quoted[0], line)


def _unzip(data: bytes, name: str) -> bytes:
    """The score inside an .mxl file: what its container names, else the first that looks like one."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.namelist()
            named = []
            if CONTAINER in members:
                container = _member(archive, CONTAINER, name)
                _refuse_entities(container, name)
                named = [element.get("full-path") for element in ElementTree.fromstring(container).iter()]
            scores = [member for member in named if member in members]
            scores += [
                m for m in members if m.lower().endswith((".xml", ".musicxml")) and not NO_SCORE.match(m)
            ]
            if not scores:
                raise InputError(f"{name}: expected a MusicXML file in the archive, came {members[:5]}")
            return _member(archive, scores[0], name)
    except (zipfile.BadZipFile, zlib.error, ElementTree.ParseError, OSError, RuntimeError) as error:
        raise InputError(f"{name}: expected a sound .mxl archive, came a broken one ({error})") from error


def _member(archive: zipfile.ZipFile, member: str, name: str) -> bytes:
    if archive.getinfo(member).file_size > MAX_UNZIPPED:
        raise InputError(f"{name}: expected at most {MAX_UNZIPPED} bytes when unzipped, came more")
    return archive.read(member)


def _require_partwise(data: bytes, name: str) -> None:
    try:
        _, root = next(ElementTree.iterparse(io.BytesIO(data), events=("start",)))
    except ElementTree.ParseError as error:
        came = f"{data[:40]!r} ({error})" if data else "an empty file"
        raise InputError(f"{name}: expected MusicXML, came {came}") from error
    if root.tag != "score-partwise":
        raise InputError(f"{name}: expected MusicXML of the kind score-partwise, came <{root.tag}>")


def _refuse_entities(data: bytes, name: str) -> None:
    """MusicXML needs no entities of its own; a few lines of them can grow to gigabytes."""
    if any("<!ENTITY".encode(encoding) in data for encoding in ("utf-8", "utf-16-le", "utf-16-be")):
        raise InputError(f"{name}: expected plain MusicXML, came a document that declares entities")


def _by_music21(source: os.PathLike, data: bytes) -> list[bytes]:
    """What music21 reads -> MusicXML; by a copy with a plain name, since music21 expands $ and ~ in names."""
    _refuse_entities(data, show(source))
    with _quiet(show(source)), tempfile.TemporaryDirectory() as folder:
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
            raise InputError(f"{show(source)}: music21 cannot read it, it met {_reason(error)}") from error


def _abc2xml():
    """abctoolkit's abc2xml, imported when first needed: building its grammar takes a while (and warns)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from abctoolkit import abc2xml
    return abc2xml


@contextmanager
def _quiet(name: str) -> Iterator[io.StringIO]:
    """What the converters print goes to the log; warnings of theirs are no concern of the caller."""
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield said
        finally:
            for line in filter(str.strip, said.getvalue().splitlines()):
                logger.debug("%s: %s", name, line)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}"

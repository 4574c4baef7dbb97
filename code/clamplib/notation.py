"""MusicXML, and whatever music21 reads -> ABC -> interleaved ABC -> MusicXML.

Interleaved ABC has one line a bar, which holds that bar of every voice: `[V:1]...|[V:2]...|`. The conversions are
abctoolkit's (xml2abc and abc2xml by W. G. Vree, and its own clean-up), driven inside this process: the published
weights were trained on exactly what they write. They keep their state in module globals, so a process converts one
score at a time.
"""

import io
import logging
import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from math import gcd
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

from abctoolkit import xml2abc
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
MUSIC21_FORMATS = {".krn": "humdrum", ".mei": "mei"}  # suffix -> music21's name of the format
XML2ABC_OPTIONS = SimpleNamespace(  # xml2abc -d 8 -x
    u=None, m=0, c=0, d=8, n=0, b=0, o="", v=0, x=True, p=[], j=None, t=None, s=None, v1=None, ped=True, stm=None, i=None
)  # fmt: skip
DROPPED_FIELDS = ["X:", "T:", "C:", "W:", "w:", "Z:", "%%MIDI"]
MAX_UNZIPPED = 256 * 2**20  # bytes; the largest real scores are some 50 MB
FIELD = re.compile(r"[A-Za-z]:|%%")
QUOTED = re.compile(r'"[^"]*"')


def xml_to_abc(score: str | Path | bytes) -> str:
    """MusicXML (.xml, .musicxml, .mxl, or the bytes) -> standard ABC, as `xml2abc -d 8 -x` writes it.

    Raises InputError for what is no MusicXML or holds no notes.
    """
    name = "this MusicXML" if isinstance(score, bytes) else show(score)
    data = score if isinstance(score, bytes) else Path(score).read_bytes()
    if data[:2] == b"PK":
        data = _unzip(data, name)
    _refuse_entities(data, name)
    output = io.StringIO()
    with _quiet(name):
        xml2abc.abcOut = xml2abc.ABCoutput("", "", 0, XML2ABC_OPTIONS)
        xml2abc.abcOut.outfile = output
        try:
            xml2abc.Parser(XML2ABC_OPTIONS).parse(io.BytesIO(data))
        except ElementTree.ParseError as error:
            came = "an empty file" if not data else f"{data[:40]!r}... ({error})"
            raise InputError(f"{name}: expected MusicXML, came {came}") from error
        except Exception as error:  # xml2abc raises whatever a broken score leads to
            raise InputError(f"{name}: expected sound MusicXML, xml2abc met {_reason(error)}") from error
    if not output.getvalue():
        raise InputError(f"{name}: expected a MusicXML score (score-partwise) with notes, came none")
    return output.getvalue()


def interleave(abc: str) -> str:
    """Standard ABC -> interleaved ABC, cleaned as for training: no titles, lyrics, bar numbers, or empty bars around.

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


def abc_to_xml(abc: str) -> str:
    """One tune, standard or interleaved ABC -> MusicXML. Raises InputError for what abc2xml cannot read."""
    abc2xml = _abc2xml()
    tune = abc if re.search(r"^\s*X:", abc, re.M) else "X:1\n" + abc
    with _quiet("abc_to_xml") as said:
        try:
            score = abc2xml.mxm.parse(tune)
            durations = list(score.iter("duration"))
            divisor = gcd(21, *(int(duration.text) for duration in durations))
            for element in [*durations, *score.iter("divisions")]:
                element.text = str(int(element.text) // divisor)
            return abc2xml.fixDoctype(score) + "\n"
        except Exception as error:  # abc2xml raises whatever a broken tune leads to
            reason = " ".join(said.getvalue().split()) or _reason(error)
            raise InputError(f"expected an ABC tune, abc2xml met {reason}") from error


def split_tunes(abc: str) -> list[str]:
    """The tunes of an ABC file, each with the fields of the file's header behind its X: line."""
    head, *tunes = re.split(r"^[ \t]*X:", abc, flags=re.M)
    if not tunes:
        return ["X:1\n" + abc] if abc.strip() else []
    header = "".join(line + "\n" for line in head.splitlines() if FIELD.match(line))
    split = []
    for tune in tunes:
        number, _, rest = tune.partition("\n")
        split.append(f"X:{number}\n{header}{rest}")
    return split


def to_musicxml(path: str | Path) -> list[str | bytes]:
    """A score file of any kind -> MusicXML, one a tune."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in MUSICXML_SUFFIXES:
        return [path.read_bytes()]
    if suffix == ".abc":
        return [abc_to_xml(tune) for tune in split_tunes(read_text(path))]
    return _by_music21(path, MUSIC21_FORMATS[suffix])


def read_text(path: str | Path) -> str:
    """ABC as found: UTF-8, or UTF-16 by its mark, else latin-1 as ABC files were before. InputError if binary."""
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
            f"{show(path)}: expected ABC text, came {'a binary' if text.strip() else 'an empty'} file"
        )
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _without_split_quotes(line: str) -> str:
    """Without escaped quotes, and without quoted texts that hold a bar line, at which the line would be split."""
    line = line.replace(r"\"", "")
    return QUOTED.sub(lambda quoted: "" if any(b in quoted[0] for b in Barlines) else quoted[0], line)


def _unzip(data: bytes, name: str) -> bytes:
    """The score inside an .mxl file: what its container names, else the first that looks like one."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [n for n in archive.namelist() if not n.startswith(("META-INF", "__MACOSX"))]
            members = [n for n in members if n.lower().endswith((".xml", ".musicxml"))]
            if "META-INF/container.xml" in archive.namelist():
                container = archive.read("META-INF/container.xml")
                _refuse_entities(container, name)
                named = [
                    e.get("full-path") for e in ElementTree.fromstring(container).iter() if e.get("full-path")
                ]
                members = [n for n in named if n in archive.namelist()] + members
            if not members:
                raise InputError(
                    f"{name}: expected a MusicXML file in the archive, came {archive.namelist()[:5]}"
                )
            if archive.getinfo(members[0]).file_size > MAX_UNZIPPED:
                raise InputError(f"{name}: expected at most {MAX_UNZIPPED} bytes when unzipped, came more")
            return archive.read(members[0])
    except (zipfile.BadZipFile, ElementTree.ParseError, NotImplementedError, RuntimeError, OSError) as error:
        raise InputError(f"{name}: expected a whole .mxl archive, came a broken one ({error})") from error


def _refuse_entities(data: bytes, name: str) -> None:
    """MusicXML needs no entities of its own; a few lines of them can grow to gigabytes."""
    if any("<!ENTITY".encode(encoding) in data for encoding in ("utf-8", "utf-16-le", "utf-16-be")):
        raise InputError(f"{name}: expected plain MusicXML, came a document that declares entities")


def _by_music21(path: Path, form: str) -> list[bytes]:
    with _quiet(show(path)):
        from music21 import converter, stream
        from music21.musicxml.m21ToXml import GeneralObjectExporter

        try:
            score = converter.parseFile(path, format=form, forceSource=True, storePickle=False)
            scores = list(score.scores) if isinstance(score, stream.Opus) else [score]
            return [GeneralObjectExporter(each).parse() for each in scores]
        except Exception as error:  # music21 raises whatever a broken score leads to
            raise InputError(f"{show(path)}: expected {form}, music21 met {_reason(error)}") from error


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
    return f"{type(error).__name__}: {error}"

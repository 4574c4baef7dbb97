"""MusicXML -> ABC -> interleaved ABC -> MusicXML.

Interleaved ABC has one line a bar, which holds that bar of every voice: `[V:1]...|[V:2]...|`. The conversions
are abctoolkit's (xml2abc and abc2xml by W. G. Vree, and its own clean-up), driven inside this process: the
published weights were trained on exactly what they write. They keep their state in module globals, so a lock
lets a process convert one score at a time.
"""

import io
import logging
import re
import threading
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
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
converting = threading.Lock()

XML2ABC_OPTIONS = SimpleNamespace(  # those of `xml2abc -d 8 -x`
    d=8, x=True, ped=True, p=[], o="", b=0, c=0, m=0, n=0, v=0,
    i=None, j=None, s=None, stm=None, t=None, u=None, v1=None,
)  # fmt: skip
DROPPED_FIELDS = ["X:", "T:", "C:", "W:", "w:", "Z:", "%%MIDI"]
CONTAINER = "META-INF/container.xml"  # names the score in an .mxl archive
NO_SCORE = re.compile(r"META-INF/|__MACOSX/|(.*/)?\._")
PEDALS = {"start": "start", "resume": "start", "stop": "stop", "discontinue": "stop"}
ACCIDENTALS = {"double-flat", "flat-flat", "flat", "natural", "sharp", "sharp-sharp", "double-sharp"}
MAX_UNZIPPED = 256 * 2**20  # bytes; the largest real scores are some 50 MB
MAX_REST = 9999  # bars; abc2xml writes every one of them out
FIELD = re.compile(r"[A-Za-z]:|%%")
QUOTED = re.compile(r'"[^"]*"')
DOUBLED_BAR_LINE = re.compile(r"(?<=[|\]])([ \t]*\n[ \t]*)\|\|")  # read as an empty bar, which would end the piece


def xml_to_abc(score: str | Path | bytes) -> str:
    """MusicXML (.xml, .musicxml, .mxl, or the bytes) -> standard ABC, as `xml2abc -d 8 -x` writes it.

    Raises InputError for what is no MusicXML or holds no notes.
    """
    name = "this MusicXML" if isinstance(score, bytes) else show(score)
    data = score if isinstance(score, bytes) else Path(score).read_bytes()
    data = unzip(data, name) if data[:2] == b"PK" else data.lstrip()
    refuse_entities(data, name)
    _require_partwise(data, name)
    with alone(name):
        try:
            abc = _run_xml2abc(data)
        except Exception as error:  # xml2abc raises whatever it did not expect
            try:
                abc = _run_xml2abc(_in_known_terms(data))
            except Exception:
                raise InputError(f"{name}: expected sound MusicXML, xml2abc met {reason(error)}") from error
    if not abc:
        raise InputError(f"{name}: expected a score with notes, came one without")
    return abc


def _run_xml2abc(data: bytes) -> str:
    output = io.StringIO()
    xml2abc.abcOut = xml2abc.ABCoutput("", "", 0, XML2ABC_OPTIONS)  # the global it writes to
    xml2abc.abcOut.outfile = output
    xml2abc.Parser(XML2ABC_OPTIONS).parse(io.BytesIO(data))
    return output.getvalue()


def _in_known_terms(data: bytes) -> bytes:
    """MusicXML whose pedal marks, metronome marks and accidentals xml2abc knows; no note is lost.

    Without its accidental a note is spelled by its alteration.
    """
    score = ElementTree.fromstring(data)
    for pedal in score.iter("pedal"):
        pedal.set("type", PEDALS.get(pedal.get("type"), pedal.get("type")))
    for parent in score.iter():
        for child in list(parent):
            unknown_pedal = child.tag == "pedal" and child.get("type") not in PEDALS.values()
            unknown_accidental = child.tag == "accidental" and child.text not in ACCIDENTALS
            tempo_relation = child.tag == "metronome" and child.find("per-minute") is None  # two note values
            if unknown_pedal or unknown_accidental or tempo_relation:
                parent.remove(child)
    return ElementTree.tostring(score)


def interleave(abc: str) -> str:
    """Standard ABC -> interleaved ABC, without titles, lyrics, bar numbers, empty bars at both ends.

    Raises InputError if there is no `V:1` line, no music, or voices have different numbers of bars.
    """
    lines = [line for line in abc.splitlines(keepends=True) if line.strip()]
    with alone("interleave") as said:
        try:
            lines = remove_bar_no_annotations(remove_information_field(lines, DROPPED_FIELDS))
            lines = [line if FIELD.match(line) else _without_split_quotes(line) for line in lines]
            stripped, _ = strip_empty_bars(lines)
            interleaved = "".join(rotate_abc(stripped)) if stripped else ""
        except Exception as error:  # abctoolkit raises whatever a broken score leads to
            raise InputError(f"expected ABC with V:1 lines, as xml_to_abc writes it: {reason(error)}") from error
    if not interleaved:
        came = "voices with different numbers of bars" if "bar numbers" in said.getvalue() else "no notes"
        raise InputError(f"expected voices of one length, came {came}")
    return interleaved


def bars_differ(abc: str) -> bool:
    """Whether the voices of standard ABC differ in the length of some bar, as far as abctoolkit can tell."""
    with alone("bars_differ") as said, suppress(Exception):
        check_alignment_unrotated(abc.splitlines(keepends=True))
    return "Odd bar duration" in said.getvalue()


def abc_to_xml(abc: str) -> str:
    """One tune, standard or interleaved ABC -> MusicXML. Raises InputError for what abc2xml cannot read."""
    if not re.search(r"^K:|\[K:", abc, re.M):
        raise InputError(f"expected an ABC tune with a K: line, came {abc[:40]!r}")
    if re.search(rf"[XZ]\d{{{len(str(MAX_REST)) + 1}}}", abc):
        raise InputError(f"expected rests of at most {MAX_REST} bars, came a longer one")
    abc2xml = _abc2xml()
    abc = DOUBLED_BAR_LINE.sub(r"\1|", abc)
    tune = abc if re.search(r"^[ \t]*X:", abc, re.M) else "X:1\n" + abc
    with alone("abc_to_xml"):
        try:
            score = abc2xml.mxm.parse(tune)
            durations = list(score.iter("duration"))
            divisor = gcd(21, *(int(duration.text) for duration in durations))
            for element in [*durations, *score.iter("divisions")]:
                element.text = str(int(element.text) // divisor)
            return abc2xml.fixDoctype(score) + "\n"
        except Exception as error:  # abc2xml raises whatever a broken tune leads to
            raise InputError(f"expected an ABC tune, abc2xml met {reason(error)}") from error


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
    first, *others = re.split(r"\n(?:[ \t]*\n)+", tune.rstrip())
    kept = [block for block in others if "|" in block or FIELD.match(block.lstrip())]
    return "\n".join([first, *kept]) + "\n"


def _without_split_quotes(line: str) -> str:
    """Without escaped quotes and without quoted texts that hold a bar line: the line would be split there."""
    line = line.replace(r"\"", "")
    return QUOTED.sub(lambda quoted: "" if any(b in quoted[0] for b in Barlines) else quoted[0], line)


def unzip(data: bytes, name: str) -> bytes:
    """The score inside an .mxl file: what its container names, else the first that looks like one."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.namelist()
            named = []
            if CONTAINER in members:
                container = _member(archive, CONTAINER, name)
                refuse_entities(container, name)
                named = [element.get("full-path") for element in ElementTree.fromstring(container).iter()]
            scores = [member for member in named if member in members]
            scores += [m for m in members if m.lower().endswith((".xml", ".musicxml")) and not NO_SCORE.match(m)]
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


def refuse_entities(data: bytes, name: str) -> None:
    """MusicXML needs no entities of its own; a few lines of them can grow to gigabytes."""
    if any("<!ENTITY".encode(encoding) in data for encoding in ("utf-8", "utf-16-le", "utf-16-be")):
        raise InputError(f"{name}: expected plain MusicXML, came a document that declares entities")


def _abc2xml():
    """abctoolkit's abc2xml, imported when first needed: building its grammar takes a while (and warns)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from abctoolkit import abc2xml
    return abc2xml


@contextmanager
def alone(name: str) -> Iterator[io.StringIO]:
    """A converter alone at work: what it prints goes to the log, and its warnings nowhere."""
    said = io.StringIO()
    with converting, redirect_stdout(said), redirect_stderr(said), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield said
        finally:
            for line in filter(str.strip, said.getvalue().splitlines()):
                logger.debug("%s: %s", name, line)


def reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}"

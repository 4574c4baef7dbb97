"""MusicXML -> ABC -> interleaved ABC -> MusicXML.

Interleaved ABC has one line per bar, which holds that bar of every voice: `[V:1]...|[V:2]...|`. The conversions are
abctoolkit's (xml2abc and abc2xml by W. G. Vree, and its own clean-up), because the published weights were trained on
exactly what these write. They run inside this process and keep their state in module globals, so that a lock lets a
process convert only one score at a time.
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
_lock = threading.Lock()

XML2ABC_OPTIONS = SimpleNamespace(  # what `xml2abc -d 8 -x` sets
    d=8, x=True, ped=True, p=[], o="", b=0, c=0, m=0, n=0, v=0,
    i=None, j=None, s=None, stm=None, t=None, u=None, v1=None,
)  # fmt: skip
DROPPED_FIELDS = ["X:", "T:", "C:", "W:", "w:", "Z:", "%%MIDI"]
CONTAINER = "META-INF/container.xml"  # of an .mxl archive; it names the score
NOT_A_SCORE = re.compile(r"META-INF/|__MACOSX/|(.*/)?\._")
PEDALS = {"start": "start", "resume": "start", "stop": "stop", "discontinue": "stop"}
ACCIDENTALS = {"double-flat", "flat-flat", "flat", "natural", "sharp", "sharp-sharp", "double-sharp"}
MAX_UNZIPPED = 256 * 2**20  # bytes; the largest real scores are some 50 MB
MAX_REST = 9999  # bars; abc2xml writes out every one of them
FIELD = re.compile(r"[A-Za-z]:|%%")
QUOTED = re.compile(r'"[^"]*"')
DOUBLED_BAR_LINE = re.compile(r"(?<=[|\]])([ \t]*\n[ \t]*)\|\|")  # abc2xml would read an empty bar


def xml_to_abc(score: str | Path | bytes) -> str:
    """Converts MusicXML to standard ABC, as `xml2abc -d 8 -x` writes it.

    Args:
        score: the path of an .xml, .musicxml or .mxl file, or its bytes.

    Raises:
        InputError: the score is not valid MusicXML or has no notes.
    """
    name = "this MusicXML" if isinstance(score, bytes) else show(score)
    data = score if isinstance(score, bytes) else Path(score).read_bytes()
    data = unzip(data, name) if data[:2] == b"PK" else data.lstrip()
    refuse_entities(data, name)
    _require_partwise(data, name)
    with running_converter(name):
        try:
            abc = _run_xml2abc(data)
        except Exception as error:  # xml2abc raises whatever it did not expect
            try:
                abc = _run_xml2abc(_in_known_terms(data))
            except Exception:
                raise InputError(f"{name}: expected valid MusicXML, xml2abc raised {summarize_error(error)}") from error
    if not abc:
        raise InputError(f"{name}: expected a score with notes, got one without")
    return abc


def _run_xml2abc(data: bytes) -> str:
    output = io.StringIO()
    xml2abc.abcOut = xml2abc.ABCoutput("", "", 0, XML2ABC_OPTIONS)  # the parser writes to this global
    xml2abc.abcOut.outfile = output
    xml2abc.Parser(XML2ABC_OPTIONS).parse(io.BytesIO(data))
    return output.getvalue()


def _in_known_terms(data: bytes) -> bytes:
    """Replaces or removes the pedal marks, metronome marks and accidentals that xml2abc does not know.

    No note is lost: without its accidental a note is spelled by its alteration.
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
    """Converts standard ABC to interleaved ABC, without titles, lyrics, bar numbers and empty bars at both ends.

    Args:
        abc: one tune whose voices have `V:` lines, as `xml_to_abc` writes it.

    Raises:
        InputError: there is no `V:1` line or no note, or the voices have different numbers of bars.
    """
    lines = [line for line in abc.splitlines(keepends=True) if line.strip()]
    with running_converter("interleave") as printed:
        try:
            lines = remove_bar_no_annotations(remove_information_field(lines, DROPPED_FIELDS))
            lines = [line if FIELD.match(line) else _without_split_quotes(line) for line in lines]
            stripped, _ = strip_empty_bars(lines)
            interleaved = "".join(rotate_abc(stripped)) if stripped else ""
        except Exception as error:  # abctoolkit raises whatever a broken score leads to
            raise InputError(
                f"expected ABC with V:1 lines, as xml_to_abc writes it, abctoolkit raised {summarize_error(error)}"
            ) from error
    if not interleaved:
        got = "voices with different numbers of bars" if "bar numbers" in printed.getvalue() else "no notes"
        raise InputError(f"expected voices of equal length, got {got}")
    return interleaved


def bars_differ(abc: str) -> bool:
    """Tells whether the voices of standard ABC differ in the length of a bar, as far as abctoolkit can see."""
    with running_converter("bars_differ") as printed, suppress(Exception):
        check_alignment_unrotated(abc.splitlines(keepends=True))
    return "Odd bar duration" in printed.getvalue()


def abc_to_xml(abc: str) -> str:
    """Converts one tune in standard or interleaved ABC to MusicXML.

    Raises:
        InputError: the text has no K: line or a very long rest, or abc2xml cannot read it.
    """
    if not re.search(r"^K:|\[K:", abc, re.M):
        raise InputError(f"expected an ABC tune with a K: line, got {abc[:40]!r}")
    if re.search(rf"[XZ]\d{{{len(str(MAX_REST)) + 1}}}", abc):
        raise InputError(f"expected rests of at most {MAX_REST} bars, got a longer one")
    abc2xml = _abc2xml()
    abc = DOUBLED_BAR_LINE.sub(r"\1|", abc)
    tune = abc if re.search(r"^[ \t]*X:", abc, re.M) else "X:1\n" + abc
    with running_converter("abc_to_xml"):
        try:
            score = abc2xml.mxm.parse(tune)
            durations = list(score.iter("duration"))
            divisor = gcd(21, *(int(duration.text) for duration in durations))
            for element in [*durations, *score.iter("divisions")]:
                element.text = str(int(element.text) // divisor)
            return abc2xml.fixDoctype(score) + "\n"
        except Exception as error:  # abc2xml raises whatever a broken tune leads to
            raise InputError(f"expected an ABC tune, abc2xml raised {summarize_error(error)}") from error


def split_tunes(abc: str) -> list[str]:
    """Splits an ABC file into its tunes. Prose is left out; the fields of the file header follow each X: line.

    Args:
        abc: the text of a file. A text without an X: line is one tune.
    """
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
    """Removes paragraphs of prose after the tune, whose letters would be read as notes.

    By the standard a blank line ends a tune. Many real tunes go on after one, so a paragraph with bar lines is kept.
    """
    first, *others = re.split(r"\n(?:[ \t]*\n)+", tune.rstrip())
    kept = [block for block in others if "|" in block or FIELD.match(block.lstrip())]
    return "\n".join([first, *kept]) + "\n"


def _without_split_quotes(line: str) -> str:
    """Removes escaped quotes, and quoted texts with a bar line in them, at which abctoolkit would split the line."""

    def keep(quoted: re.Match) -> str:
        return "" if any(bar_line in quoted[0] for bar_line in Barlines) else quoted[0]

    return QUOTED.sub(keep, line.replace(r"\"", ""))


def unzip(data: bytes, name: str) -> bytes:
    """Reads the score inside an .mxl file: the one that its container names, else the first that looks like one.

    Args:
        data: the content of the file.
        name: what an error calls it.

    Raises:
        InputError: the archive is broken, too large when unzipped, or has no MusicXML in it.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.namelist()
            named = []
            if CONTAINER in members:
                container = _member(archive, CONTAINER, name)
                refuse_entities(container, name)
                named = [element.get("full-path") for element in ElementTree.fromstring(container).iter()]
            scores = [member for member in named if member in members]
            for member in members:
                if member.lower().endswith((".xml", ".musicxml")) and not NOT_A_SCORE.match(member):
                    scores.append(member)
            if not scores:
                raise InputError(f"{name}: expected a MusicXML file in the archive, got {members[:5]}")
            return _member(archive, scores[0], name)
    except (zipfile.BadZipFile, zlib.error, ElementTree.ParseError, OSError, RuntimeError) as error:
        raise InputError(f"{name}: expected a valid .mxl archive, got a broken one ({error})") from error


def _member(archive: zipfile.ZipFile, member: str, name: str) -> bytes:
    if archive.getinfo(member).file_size > MAX_UNZIPPED:
        raise InputError(f"{name}: expected at most {MAX_UNZIPPED} bytes when unzipped, got more")
    return archive.read(member)


def _require_partwise(data: bytes, name: str) -> None:
    try:
        _, root = next(ElementTree.iterparse(io.BytesIO(data), events=("start",)))
    except ElementTree.ParseError as error:
        got = f"{data[:40]!r} ({error})" if data else "an empty file"
        raise InputError(f"{name}: expected MusicXML, got {got}") from error
    if root.tag != "score-partwise":
        raise InputError(f"{name}: expected MusicXML of the kind score-partwise, got <{root.tag}>")


def refuse_entities(data: bytes, name: str) -> None:
    """Refuses a document that declares entities: a few lines of them can grow to gigabytes, and scores need none.

    Raises:
        InputError: the document, which the message calls `name`, declares an entity.
    """
    if any("<!ENTITY".encode(encoding) in data for encoding in ("utf-8", "utf-16-le", "utf-16-be")):
        raise InputError(f"{name}: expected plain MusicXML, got a document that declares entities")


def _abc2xml():
    """abctoolkit's abc2xml. It is imported when first needed, because it builds a grammar then, which is slow."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from abctoolkit import abc2xml
    return abc2xml


@contextmanager
def running_converter(name: str) -> Iterator[io.StringIO]:
    """Lets one converter run at a time, and keeps what it prints and its warnings from the user.

    Args:
        name: what the log calls the score.

    Yields:
        What the converter prints. It goes to the log at the end, at the level DEBUG.
    """
    printed = io.StringIO()
    with _lock, redirect_stdout(printed), redirect_stderr(printed), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield printed
        finally:
            for line in filter(str.strip, printed.getvalue().splitlines()):
                logger.debug("%s: %s", name, line)


def summarize_error(error: Exception) -> str:
    """The type of an error and the beginning of its message."""
    return f"{type(error).__name__}: {str(error)[:200]}"

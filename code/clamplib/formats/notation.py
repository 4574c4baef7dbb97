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
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from math import gcd
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

from abctoolkit import xml2abc
from abctoolkit.utils import Barlines, remove_bar_no_annotations

from clamplib.files import InputError, escape, show
from clamplib.formats.archives import refuse_entities, unzip
from clamplib.formats.bars import bars_differ, join_bars
from clamplib.formats.limits import MAX_BYTES, read_bytes, refuse_abc, refuse_long_lines, refuse_musicxml
from clamplib.formats.lookups import fast_lookups

logger = logging.getLogger(__name__)
_lock = threading.Lock()

XML2ABC_OPTIONS = SimpleNamespace(  # what `xml2abc -d 8 -x` sets
    d=8, x=True, ped=True, p=[], o="", b=0, c=0, m=0, n=0, v=0,
    i=None, j=None, s=None, stm=None, t=None, u=None, v1=None,
)  # fmt: skip
DROPPED_FIELDS = ("X:", "T:", "C:", "W:", "w:", "Z:", "%%MIDI")
PEDALS = {"start": "start", "resume": "start", "stop": "stop", "discontinue": "stop"}
ACCIDENTALS = {"double-flat", "flat-flat", "flat", "natural", "sharp", "sharp-sharp", "double-sharp"}
FIELD = re.compile(r"[A-Za-z]:|%%")
QUOTED = re.compile(r'"[^"]*"')
DOUBLED_BAR_LINE = re.compile(r"(?<=[|\]])([ \t]*\n[ \t]*)\|\|")  # abc2xml would read an empty bar
OTHER_LINE_BREAKS = re.compile("[\x85\u2028\u2029]")  # abc2xml would break a title or a word there
NOT_IN_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")  # characters XML cannot hold


def xml_to_abc(score: str | Path | bytes, name: str | None = None) -> str:
    """Converts MusicXML to standard ABC, as `xml2abc -d 8 -x` writes it.

    Args:
        score: the path of an .xml, .musicxml or .mxl file, or its bytes.
        name: what an error calls the score, by default its path.

    Raises:
        InputError: the score is not valid MusicXML, has no notes, or has what no music has (see `limits`).
    """
    name = name or ("this MusicXML" if isinstance(score, bytes) else show(score))
    data = score if isinstance(score, bytes) else read_bytes(score)
    data = unzip(data, name) if data[:2] == b"PK" else data.lstrip()
    refuse_entities(data, name)
    _require_partwise(data, name)
    refuse_musicxml(data, name)
    with running_converter(name), fast_lookups():
        try:
            abc = _run_xml2abc(data)
        except ElementTree.ParseError as error:
            raise InputError(f"{name}: expected well-formed MusicXML, got {error}") from error
        except Exception as error:  # xml2abc raises whatever it did not expect
            try:
                abc = _run_xml2abc(_in_known_terms(data))
            except Exception:
                got = summarize_error(error)
                raise InputError(f"{name}: expected valid MusicXML, xml2abc could not read this one ({got})") from error
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
        InputError: there is no `V:1` line or no note, the voices have different numbers of bars, or a line is longer
            than any music.
    """
    interleaved, _ = _interleave(abc)
    return interleaved


def interleave_and_compare(abc: str) -> tuple[str, bool]:
    """Converts like `interleave`, and compares the bars of the voices.

    Returns:
        The interleaved ABC, and whether a bar differs in length between voices, as far as abctoolkit can see.

    Raises:
        InputError: as by `interleave`.
    """
    interleaved, voices = _interleave(abc)
    with running_converter("interleave"), suppress(Exception):  # abctoolkit cannot read every bar
        return interleaved, bars_differ(voices)
    return interleaved, False


def _interleave(abc: str) -> tuple[str, list[list[str]]]:
    """Interleaved ABC, and the bars of each voice without bar lines."""
    refuse_long_lines(abc, "this ABC")
    lines = [line for line in _lines(abc) if line.strip() and not line.startswith(DROPPED_FIELDS)]
    if not any(line.strip() == "V:1" for line in lines):
        raise InputError("expected ABC with V:1 lines, as xml_to_abc writes it, got none")
    with running_converter("interleave"):
        try:
            return join_bars([_without_split_quotes(line) for line in remove_bar_no_annotations(lines)])
        except InputError:
            raise
        except Exception as error:  # abctoolkit raises whatever a broken score leads to
            got = summarize_error(error)
            raise InputError(f"expected voices of whole bars, abctoolkit could not read this ABC ({got})") from error


def _lines(text: str) -> list[str]:
    """The lines of a text as a file has them. str.splitlines would break words at rarer characters too."""
    return io.StringIO(text, newline="").readlines()


def abc_to_xml(abc: str) -> str:
    """Converts one tune in standard or interleaved ABC to MusicXML.

    Raises:
        InputError: the text has no K: line, has what no music has (see `limits`), or abc2xml cannot read it.
    """
    if not re.search(r"^K:|\[K:", abc, re.M):
        raise InputError(f"expected an ABC tune with a K: line, got {abc[:40]!r}")
    refuse_abc(abc, "this ABC")
    abc2xml = _abc2xml()
    abc = OTHER_LINE_BREAKS.sub(" ", without_control_characters(abc))
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
            raise InputError(
                f"expected an ABC tune, abc2xml could not read this one ({summarize_error(error)})"
            ) from error


def split_tunes(abc: str) -> list[str]:
    """Splits an ABC file into its tunes. Prose is left out; the fields of the file header follow each X: line.

    Args:
        abc: the text of a file. A text without an X: line is one tune.

    Raises:
        InputError: the file header is so long that its copies would fill the memory.
    """
    abc = without_control_characters(abc)
    head, *tunes = re.split(r"^[ \t]*X:", abc, flags=re.M)
    if not tunes:
        return ["X:1\n" + abc] if abc.strip() else []
    header = "".join(line + "\n" for line in head.splitlines() if FIELD.match(line))
    if len(header) * len(tunes) > MAX_BYTES:
        got = f"{len(header)} characters for {len(tunes)} tunes"
        raise InputError(f"expected a short header before the first X: line, which each tune gets, got {got}")
    split = []
    for tune in tunes:
        number, _, rest = tune.partition("\n")
        split.append(f"X:{number}\n{header}{_without_free_text(rest)}")
    return split


def only_tune(abc: str) -> str:
    """Returns the one tune of ABC without the prose around it. InputError for several tunes."""
    tunes = split_tunes(abc.removeprefix("\ufeff"))
    if len(tunes) != 1:
        raise InputError(
            f"expected one tune of ABC, got {len(tunes)}; `clamp3 embed` and score_files.list_tunes take them apart"
        )
    return tunes[0]


def _without_free_text(tune: str) -> str:
    """Removes paragraphs of prose after the tune, whose letters would be read as notes.

    By the standard a blank line ends a tune. Many real tunes go on after one, so a paragraph with bar lines is kept.
    """
    first, *others = re.split(r"\n(?:[ \t]*\n)+", tune.rstrip())
    kept = [block for block in others if "|" in block or FIELD.match(block.lstrip())]
    return "\n".join([first, *kept]) + "\n"


def _without_split_quotes(line: str) -> str:
    """Removes escaped quotes, and quoted texts with a bar line in them, at which abctoolkit would split the line."""
    if '"' not in line or FIELD.match(line):
        return line

    def keep(quoted: re.Match) -> str:
        return "" if any(bar_line in quoted[0] for bar_line in Barlines) else quoted[0]

    return QUOTED.sub(keep, line.replace(r"\"", ""))


def _require_partwise(data: bytes, name: str) -> None:
    try:
        _, root = next(ElementTree.iterparse(io.BytesIO(data), events=("start",)))
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # the latter for unknown encodings
        got = f"{data[:40]!r} ({error})" if data else "an empty file"
        raise InputError(f"{name}: expected MusicXML, got {got}") from error
    if root.tag != "score-partwise":
        raise InputError(f"{name}: expected MusicXML of the kind score-partwise, got <{root.tag}>")


def without_control_characters(text: str) -> str:
    """Removes the characters that no XML document can hold, which converters copy from titles and words."""
    return NOT_IN_XML.sub("", text)


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
    """The type of an error and the beginning of its message. Of a traceback in the message only the last line."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply, or has too many parts"
    message, traceback, rest = str(error).partition("Traceback (most recent call last)")
    if traceback:
        message = f"{message.strip()} {rest.strip().splitlines()[-1].strip()}"
    return escape(f"{type(error).__name__}: {message[:200]}".removesuffix(": "))

"""Unpacks compressed scores: .mxl and .capx, which are zip archives, and .nwc.

An archive may lie about the sizes of its members, so that reading stops at a bound, whatever the directory says.
Nothing is unpacked to disk.
"""

import io
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from xml.etree import ElementTree

from clamplib.files import InputError
from clamplib.formats.limits import MAX_BYTES, as_ascii

MAX_MEMBERS = 10_000
MAX_CONTAINER = 2**20  # bytes
CHUNK = 2**20  # bytes unpacked at a time
CONTAINER = "META-INF/container.xml"  # of an .mxl archive; it names the score
CAPELLA_SCORE = "score.xml"
NOT_A_SCORE = re.compile(r"META-INF/|__MACOSX/|(.*/)?\._")
DIRECTORY_ENTRY = b"PK\1\2"  # begins the entry of each member in a zip archive's directory
PACKED_NWC = b"[NWZ]\0"


def unzip(data: bytes, name: str) -> bytes:
    """Reads the score inside an .mxl file: the one that its container names, else the first that looks like one.

    Args:
        data: the content of the file.
        name: what an error calls it.

    Raises:
        InputError: the archive is broken, too large when unzipped, or has no MusicXML in it.
    """
    with _opened(data, name, ".mxl") as archive:
        members = archive.namelist()
        scores = []
        if CONTAINER in members:
            container = _read(archive, CONTAINER, name, MAX_CONTAINER)
            refuse_entities(container, name)
            known = set(members)
            scores = [member for member in _named_members(container) if member in known]
        for member in members:
            if member.lower().endswith((".xml", ".musicxml")) and not NOT_A_SCORE.match(member):
                scores.append(member)
        if not scores:
            got = [member[:40] for member in members[:5]]
            raise InputError(f"{name}: expected a MusicXML file in the archive, got {got}")
        return _read(archive, scores[0], name, MAX_BYTES)


def unzip_capella(data: bytes, name: str) -> tuple[bytes, bytes]:
    """Reads the score inside a .capx file.

    Args:
        data: the content of the file.
        name: what an error calls it.

    Returns:
        The score, and an archive that holds nothing else.

    Raises:
        InputError: the archive is broken, too large when unzipped, or has no score in it.
    """
    with _opened(data, name, ".capx") as archive:
        if CAPELLA_SCORE not in archive.namelist():
            raise InputError(f"{name}: expected {CAPELLA_SCORE} in the archive, got none")
        score = _read(archive, CAPELLA_SCORE, name, MAX_BYTES)
    plain = io.BytesIO()
    with zipfile.ZipFile(plain, "w") as archive:
        archive.writestr(CAPELLA_SCORE, score)
    return score, plain.getvalue()


def inflate_noteworthy(data: bytes, name: str) -> bytes:
    """Unpacks a .nwc file, if it is packed.

    Args:
        data: the content of the file.
        name: what an error calls it.

    Raises:
        InputError: the file is broken, cut short, or too large when unpacked.
    """
    if not data.startswith(PACKED_NWC):
        return data
    unpacker = zlib.decompressobj()
    try:
        score = unpacker.decompress(data[len(PACKED_NWC) :], MAX_BYTES + 1)
    except zlib.error as error:
        raise InputError(f"{name}: expected a valid .nwc file, got a broken one ({error})") from error
    _refuse_large(len(score), MAX_BYTES, name)
    if not unpacker.eof:
        raise InputError(f"{name}: expected a whole .nwc file, got one that is cut short")
    return score


def refuse_entities(data: bytes, name: str) -> None:
    """Refuses a document that declares entities: a few lines of them can grow to gigabytes, and scores need none.

    Raises:
        InputError: the document, which the message calls `name`, declares an entity.
    """
    if "<!ENTITY" in as_ascii(data):
        raise InputError(f"{name}: expected plain XML, got a document that declares entities")


@contextmanager
def _opened(data: bytes, name: str, kind: str) -> Iterator[zipfile.ZipFile]:
    """Opens an archive, and says so if it or what is read from it is broken."""
    count = data.count(DIRECTORY_ENTRY)
    if count > MAX_MEMBERS:
        raise InputError(f"{name}: expected at most {MAX_MEMBERS} members in the archive, got {count}")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            yield archive
    except InputError:
        raise
    except Exception as error:  # zipfile raises whatever a broken byte leads to
        reason = f" ({str(error)[:80]})" if isinstance(error, (zipfile.BadZipFile, zlib.error)) else ""
        raise InputError(f"{name}: expected a whole {kind} archive, got a cut or broken one{reason}") from error


def _named_members(container: bytes) -> list[str | None]:
    """The paths that a container names; none if it is broken: some programs write a title with quotes into it as is."""
    try:
        return [element.get("full-path") for element in ElementTree.fromstring(container).iter()]
    except (ElementTree.ParseError, LookupError, ValueError):  # the latter for unknown encodings
        return []


def _read(archive: zipfile.ZipFile, member: str, name: str, most: int) -> bytes:
    """Reads a member up to `most` bytes. Other methods than deflate cannot be unpacked in small chunks."""
    info = archive.getinfo(member)
    if info.flag_bits & 1:
        raise InputError(f"{name}: expected an archive without a password, got {member[:40]!r} encrypted")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InputError(f"{name}: expected members packed with deflate, got another method ({info.compress_type})")
    data = bytearray()
    with archive.open(info) as file:
        while chunk := file.read(CHUNK):
            data += chunk
            _refuse_large(len(data), most, name)
    return bytes(data)


def _refuse_large(size: int, most: int, name: str) -> None:
    if size > most:
        raise InputError(f"{name}: expected at most {most} bytes when unpacked, got more")

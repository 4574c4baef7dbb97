"""Mutations that know the structure of a format. See `fuzz_basics`, on what each takes and returns."""

import ast
import copy
import io
import json
import re
import sqlite3
import struct
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from xml.etree import ElementTree

from fuzz_basics import (
    BYTES,
    INTEGERS,
    JSON,
    MOST_BYTES,
    NUMBERS,
    TEXT,
    XML,
    Mutation,
    flip_bits,
    insert,
    set_number,
    times,
)

# ------------------------------------------------------------------------------------ XML


def change_tree(data, random, others):
    """Changes elements and attributes of well-formed XML."""
    for prefix, address in re.findall(rb'xmlns:?(\w*)="([^"]*)"', data):
        with suppress(ValueError):  # a reserved prefix
            ElementTree.register_namespace(prefix.decode(), address.decode("utf-8", "replace"))
    beginning = re.match(rb"\s*(?:<\?[^>]*\?>|<!DOCTYPE[^>]*>|\s)*", data)[0]
    try:
        root = ElementTree.fromstring(data)
        for _ in range(random.choice((1, 1, 2, 8))):
            _change_element(root, random)
        changed = ElementTree.tostring(root, random.choice(("utf-8", "us-ascii")), xml_declaration=False)
    except (ElementTree.ParseError, LookupError, ValueError, RecursionError):  # broken or nested too deeply already
        return set_number(data, random, others)
    return beginning + changed if len(changed) <= MOST_BYTES else data


def nest_deeply(data, random, others):
    """Puts an element into many of its kind."""
    found = list(re.finditer(rb"<([A-Za-z][\w-]*)[^<>]*(?<!/)>", data))
    if not found:
        return data
    tag = random.choice(found)
    many = random.choice((10, 100, 900, 1100, 5000))
    closing = b"</" + tag[1] + b">"
    end = data.find(closing, tag.end())
    return data[: tag.start()] + tag[0] * many + data[tag.start() : end] + closing * many + data[end:]


def _change_element(root: ElementTree.Element, random: Random) -> None:
    elements = list(root.iter())
    parent = random.choice([element for element in elements if len(element)] or elements)
    element = random.choice(elements)
    change = random.choice(("delete", "repeat", "move", "graft", "text", "attribute", "rename", "empty", "swap"))
    place = random.randrange(len(parent)) if len(parent) else None
    if change == "delete" and len(parent):
        del parent[place]
    elif change == "repeat" and len(parent):
        for _ in range(min(times(random), 1 + 3000 // len(list(parent[place].iter())))):
            parent.insert(place, copy.deepcopy(parent[place]))
    elif change == "move" and len(parent) > 1:
        moved = parent[place]
        parent.remove(moved)
        parent.insert(random.randrange(len(parent) + 1), moved)
    elif change == "graft":
        random.choice(elements).append(copy.deepcopy(element if len(element) < 5 else ElementTree.Element("note")))
    elif change == "text":
        choices = [random.choice(elements).text, "", None, "x", "-", " ", random.choice(NUMBERS).decode()]
        element.text = random.choice([*choices, *choices, "\u0301é&<", "x" * 5000])
    elif change == "attribute":
        names = [name for each in elements for name in each.attrib] or ["id"]
        name = random.choice(list(element.attrib) or names)
        if random.random() < 0.3:
            element.attrib.pop(name, None)
        else:
            donor = random.choice(elements).attrib
            value = random.choice(["", "-1", "0", "x", "yes", "start", "stop", "continue", *donor.values()])
            element.set(name, random.choice([value, random.choice(NUMBERS).decode()]))
    elif change == "rename":
        element.tag = random.choice(elements).tag
    elif change == "empty":
        element[:] = []
    elif change == "swap":
        other = random.choice(elements)
        element.text, other.text = other.text, element.text


TREE = [change_tree, change_tree, change_tree, nest_deeply, set_number]


# ------------------------------------------------------------------------------------ MIDI

EVENTS = """00 ff2f00, 00 ff2f05, 00 ff5103000000, 00 ff5100, 00 ff510107, 00 ff580404021808, 00 ff5804ffff0000,
00 ff580400010000, 00 ff59027f05, 00 ff59020700, 00 ff590100, 00 ff5405ffffffffff, 00 ff54056000000000, 00 ff000100,
00 ff0002ffff, 00 ff0000, 00 ff200120, 00 ff2000, 00 ff2101ff, 00 ff7f00, 00 ff0103ff00fe, 00 ff0104f09f8eb5,
00 ff01ffffff7f, 00 ff60020102, 00 ff7f8000, 00 f000, 00 f003010203, 00 f0037ffff7, 00 f70101, 00 f7ffffff7f, 00 f3,
00 f1ff, 00 f2ffff, 00 f4, 00 f8, 00 fe, 00 ff, 00 90ffff, 00 903c00, ffffff7f 903c40, 8080808000 903c40,
ffffffffff7f 903c40, 00 3c40, 00 c0, 00 e07f7f, 00 d0"""  # delta and message
EVENTS = [bytes.fromhex(event) for event in EVENTS.split(",")]
DIVISIONS = (0, 1, 24, 480, 32767, 0x8000, 0xE728, 0xFFFF)


def change_midi(data, random, others):
    """Changes the header, the order and the lengths of chunks, or the events of a track."""
    chunks = []
    place = 0
    while place + 8 <= len(data) and len(chunks) < 1000:
        length = int.from_bytes(data[place + 4 : place + 8], "big")
        chunks.append([data[place : place + 4], length, data[place + 8 : place + 8 + length]])
        place += 8 + length
    if not chunks:
        return flip_bits(data, random, others)
    chunk = random.choice(chunks[1:] or chunks)
    change = random.choice(("event", "event", "event", "event", "event", "length", "name", "repeat", "move", "header"))
    if change == "event":
        chunk[2] = _change_events(chunk[2], random)
        chunk[1] = len(chunk[2])
    elif change == "length":
        chunk[1] = random.choice((0, 1, 4, 5, 7, chunk[1] + 1, max(chunk[1] - 1, 0), 2**31, 2**32 - 1))
    elif change == "name":
        chunk[0] = random.choice((b"MTrk", b"MThd", b"XXXX", b"RIFF", b"\0\0\0\0"))
    elif change == "repeat":
        chunks += [list(chunk) for _ in range(random.choice((1, 10)))]
    elif change == "move":
        chunks[1:] = random.sample(chunks[1:], len(chunks) - 1)
    else:
        tracks = random.choice((0, 1, 2, len(chunks) - 1, 255, 65535))
        chunks[0][2] = struct.pack(">HHH", random.choice((0, 1, 1, 2, 3, 65535)), tracks, random.choice(DIVISIONS))
        chunks[0][1] = len(chunks[0][2])
    return b"".join(name + struct.pack(">L", length % 2**32) + body for name, length, body in chunks)


def _change_events(track: bytes, random: Random) -> bytes:
    """Adds, deletes, repeats or moves events, or changes a byte or the delta of one."""
    starts = _event_starts(track)
    here, there = random.choice(starts), random.choice(starts)
    first, last = min(here, there), max(here, there)
    change = random.choice(("add", "add", "delete", "repeat", "byte", "byte", "delta"))
    if change == "add":
        return insert(track, here, random.choice(EVENTS) * random.choice((1, 1, 1, 50)))
    if change == "delete":
        return track[:first] + track[last:]
    if change == "repeat":
        return track[:last] + track[first:last] * random.choice((1, 2, 20)) + track[last:]
    if change == "delta" and here < len(track):
        return track[:here] + random.choice((b"\0", b"\x7f", b"\x81\0", b"\xff\xff\xff\x7f")) + track[here + 1 :]
    if here < len(track):
        place = min(here + random.randrange(1, 5), len(track) - 1)
        return track[:place] + bytes([random.choice((0, 1, 0x3C, 0x7F, 0x80, 0x90, 0xF0, 0xFF))]) + track[place + 1 :]
    return track


def _event_starts(track: bytes) -> list[int]:
    """Where the events of a track begin, and its end."""
    starts = [0]
    place, status = 0, 0
    while place < len(track):
        while place < len(track) - 1 and track[place] & 0x80:  # the delta
            place += 1
        place += 1
        if place < len(track) and track[place] & 0x80:
            status = track[place]
            place += 1
        if status == 0xFF:
            place += 2 + (track[place + 1] if place + 1 < len(track) else 0)  # metas of a text are short here
        elif status == 0xF0:
            place += 1 + (track[place] if place < len(track) else 0)
        else:
            place += 1 if 0xC0 <= status < 0xE0 else 2
        starts.append(min(place, len(track)))
    return starts


# ------------------------------------------------------------------------------------ archives

MEMBER_NAMES = (
    "../../score.xml",
    "/etc/passwd",
    "score.xml",
    "a" * 300 + ".xml",
    "é\u202e.xml",
    "META-INF/",
    "",
    "x.mxl",
)
MEMBER_NAMES += ("META-INF/container.xml", "__MACOSX/._score.xml", "a\\b.xml", "C:\\score.xml", "\x1b[31m.xml", "x.XML")
CONTAINERS = (b"", b"<", b"<container/>", b"<!ENTITY", b'<rootfile full-path="score.xml"/>', b'<r full-path=""/>')
CONTAINERS += (b'<c><r full-path="META-INF/container.xml"/></c>', b'<c><r full-path="none.xml"/></c>', b"<c>" * 3000)


def _members(data: bytes) -> list[tuple[str, bytes]] | None:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(member.file_size for member in archive.infolist()) > 100 * MOST_BYTES:
                return None
            return [(name, archive.read(name)) for name in archive.namelist()]
    except Exception:  # it is broken already
        return None


def _zipped(members: Sequence[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    packed = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(packed, "w", method) as archive:
        warnings.simplefilter("ignore")  # of names that occur twice
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), content, method)
    return packed.getvalue()


def change_archive(data, random, others):
    """Changes the names, the order and the number of members, and how they are packed."""
    members = _members(data)
    if not members:
        return flip_bits(data, random, others)
    place = random.randrange(len(members))
    name, content = members[place]
    method = zipfile.ZIP_DEFLATED
    change = random.choice(
        ("name", "content", "add", "delete", "container", "many", "nest", "method", "shuffle", "grow")
    )
    if change == "name":
        members[place] = random.choice(MEMBER_NAMES), content
    elif change == "content":
        members[place] = name, random.choice((b"", b"\0", content[: len(content) // 2], content * 2))
    elif change == "add":
        members.insert(place, (random.choice(MEMBER_NAMES), random.choice((b"", content, b"<score-partwise/>"))))
    elif change == "delete":
        del members[place]
    elif change == "container":
        members = [member for member in members if member[0] != "META-INF/container.xml"]
        members.insert(0, ("META-INF/container.xml", random.choice(CONTAINERS)))
    elif change == "many":
        members += [(f"{number}.xml", b"") for number in range(random.choice((10, 900)))]
    elif change == "nest":
        members[place] = name, data
    elif change == "method":
        method = random.choice((zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    elif change == "grow":
        members[place] = name, content + random.choice((b" ", b"\0", b"<a/>")) * 10**7
    else:
        random.shuffle(members)
    return _zipped(members, method)


def change_member(change: Sequence[Mutation]) -> Mutation:
    """Changes what one member of an archive holds, mostly the largest, by other mutations."""

    def change_one_member(data, random, others):
        members = _members(data)
        if not members:
            return flip_bits(data, random, others)
        largest = max(range(len(members)), key=lambda place: len(members[place][1]))
        place = largest if random.random() < 0.9 else random.randrange(len(members))
        name, content = members[place]
        members[place] = name, random.choice(change)(content, random, [content])[:MOST_BYTES]
        return _zipped(members)

    return change_one_member


def lie_in_directory(data, random, others):
    """Changes a field of the zip directory or of the header of a member."""
    places = [match.start() for match in re.finditer(rb"PK(?:\x01\x02|\x03\x04|\x05\x06)", data)]
    if not places:
        return data
    place = random.choice(places) + random.randrange(4, 46)
    size = random.choice((1, 2, 4))
    value = random.choice(INTEGERS) % 256**size
    return data[:place] + value.to_bytes(size, "little") + data[place + size :]


ARCHIVE = [change_archive, lie_in_directory, lie_in_directory]
ZIPPED_XML = [change_archive, change_member(TREE), change_member(TREE), change_member([*XML, *TEXT])]


def change_packed(data, random, others):
    """Changes what a packed .nwc file holds."""
    try:
        score = zlib.decompress(data[6:])
    except zlib.error:
        return flip_bits(data, random, others)
    return data[:6] + zlib.compress(random.choice(BYTES)(score, random, [score])[:MOST_BYTES])


# ------------------------------------------------------------------------------------ .npy

TYPES = ["<f4", "<f8", ">f4", "<f2", "<i8", "|u1", "|b1", "|O", "<c8", "<U3", "|S4", "|V8", "<M8[s]", "<f16", "f", ""]
TYPES += [5, None, [("a", "<f4")], [("a", "<f4", (2, 2))]]
SHAPES = [(), (0,), (1,), (1, 0, 448), (-1, 448), (10**12, 448), (2**63, 448), (2**64,), (1,) * 40, (13, 2, 448)]
SHAPES += [(448,), (1, 1, 447), [1, 2, 448], "x", None, (1.5, 448), (True, 1, 448), (1, 2, "448"), (-(2**31), 448)]
HEADERS = [b"{", b"{'descr': '<f4'}", b"()", b"1" * 5000, b"-" * 3000 + b"1", b"[" * 3000, b"{'a': 1}", b"'''", b"\\\n"]
HEADERS += [b"__import__('os')", b"{**{}}", b"\0" * 100, b"\xff" * 100]


def change_npy(data, random, others):
    """Changes the header of a .npy file, its version, the length that it states, or numbers in it."""
    try:
        length = int.from_bytes(data[8:10], "little")
        header = ast.literal_eval(data[10 : 10 + length].decode("latin-1"))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return flip_bits(data, random, others)
    values = data[10 + length :]
    text = b""
    change = random.choice(("type", "type", "shape", "shape", "order", "keys", "number", "version", "length", "text"))
    if not isinstance(header, dict) or change == "text":
        text = random.choice(HEADERS)
    elif change == "type":
        header["descr"] = random.choice(TYPES)
    elif change == "shape":
        header["shape"] = random.choice(SHAPES)
    elif change == "order":
        header["fortran_order"] = random.choice((True, False, 1, "x"))
    elif change == "keys" and header:
        header.pop(random.choice(list(header)))
    elif change == "number" and len(values) > 8:
        place = random.randrange(0, len(values) - 4, 4)
        new = struct.pack("<f", random.choice((float("nan"), float("inf"), 3e38)))
        values = values[:place] + new + values[place + 4 :]
    text = (text or repr(header).encode()) + b" \n"
    version = random.choice((b"\1\0", b"\2\0", b"\3\0", b"\xff\xff")) if change == "version" else b"\1\0"
    stated = random.choice((0, 1, 65535, len(text) + 10)) if change == "length" else len(text)
    return b"\x93NUMPY" + version + stated.to_bytes(4 if version[0] in (2, 3) else 2, "little") + text + values


# ------------------------------------------------------------------------------------ JSON and what is built on it

VALUES = [None, True, False, 0, -1, 1, 10**9, 2**63, 10**400, 1e308, -0.5, float("nan"), float("inf"), "", "x", "\0"]
VALUES += [
    "../x",
    "/etc/passwd",
    "\ud83c",
    "\x1b[31m",
    "é\u2028",
    "x" * 100_000,
    [],
    {},
    [[]],
    [1, "x", None],
    {"": ""},
]
VALUES += [["x"] * 1000]


def _change_value(value, random):
    """Changes one place in a JSON value."""
    if isinstance(value, (dict, list)) and value and random.random() < 0.85:
        name = random.choice(list(value) if isinstance(value, dict) else range(len(value)))
        change = random.random()
        if change < 0.1:
            del value[name]
        elif change < 0.2 and isinstance(value, dict):
            value[random.choice(("", "x", name + "x", name.upper(), "auto_map"))] = value[name]
        elif change < 0.25 and isinstance(value, list):
            value[name:name] = [value[name]] * random.choice((1, 100))
        else:
            value[name] = _change_value(value[name], random)
        return value
    if type(value) in (int, float) and random.random() < 0.5:
        return value * random.choice((-1, 2, 64, 1000, 10**9)) + random.choice((-1, 0, 1))
    return copy.deepcopy(random.choice(VALUES))


def change_json(data, random, others):
    """Changes values, keys and nesting of a JSON document."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return set_number(data, random, others)
    for _ in range(random.choice((1, 1, 2, 5))):
        value = _change_value(value, random)
    return json.dumps(value, ensure_ascii=random.random() < 0.8).encode("utf-8", "surrogatepass")


def nest_json(data, random, others):
    """Puts many lists or objects in each other in place of a text or a number."""
    found = list(re.finditer(rb'"[^"\n]*"|\d+', data))
    if not found:
        return data
    place = random.choice(found)
    many = random.choice((10, 30, 900, 3000, 50_000))
    opening, closing = random.choice(((b"[", b"]"), (b'{"a":', b"}")))
    return data[: place.start()] + opening * many + b"0" + closing * many + data[place.end() :]


def change_json_line(data, random, others):
    lines = data.split(b"\n")
    place = random.randrange(len(lines))
    lines[place] = change_json(lines[place], random, others)
    return b"\n".join(lines)


def change_safetensors(data, random, others):
    """Changes the header of a file of weights."""
    length = int.from_bytes(data[:8], "little")
    if length > len(data):
        return flip_bits(data, random, others)
    change = random.choice((change_json, change_json, *JSON, set_number, flip_bits))
    header = change(data[8 : 8 + length], random, others)
    stated = random.choice(INTEGERS) % 2**64 if random.random() < 0.1 else len(header)
    return stated.to_bytes(8, "little") + header + data[8 + length :]


# ------------------------------------------------------------------------------------ SQLite and tar

CELLS = [
    None,
    0,
    -1,
    1,
    10**6,
    2**62,
    0.5,
    float("inf"),
    "",
    "x",
    b"",
    b"\xff\xfe",
    "vectors.f32",
    "null",
    "{}",
    "1" * 5000,
]
STATEMENTS = """UPDATE {name} SET {column} = ?
UPDATE {name} SET {column} = ?
UPDATE {name} SET {column} = ?
DELETE FROM {name}
DROP TABLE {name}
ALTER TABLE {name} RENAME COLUMN {column} TO other
ALTER TABLE {name} RENAME TO other
INSERT INTO {name} SELECT * FROM {name}
CREATE VIEW a AS SELECT * FROM {name}
CREATE TRIGGER a INSERT ON {name} BEGIN DELETE FROM {name}; END
CREATE UNIQUE INDEX a ON {name} ({column})
PRAGMA user_version = 9""".split("\n")


def change_table(data, random, others):
    """Changes the rows and the schema of an SQLite file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "table.sqlite")
        path.write_bytes(data)
        table = sqlite3.connect(path)
        try:
            with table:
                found = table.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
                name = random.choice([name for (name,) in found])
                column = random.choice([row[1] for row in table.execute(f"PRAGMA table_info({name})")])
                statement = random.choice(STATEMENTS).format(name=name, column=column)
                table.execute(statement, [random.choice(CELLS)] if "?" in statement else [])
        except (sqlite3.Error, IndexError, UnicodeDecodeError):  # damaged already
            pass
        finally:
            table.close()
        return path.read_bytes()


MEMBER_FIELDS = ((0, 100), (100, 8), (124, 12), (136, 12), (156, 1), (157, 100), (329, 8), (345, 155))  # place, size
FIELD_VALUES = (b"", b"../../x.abc", b"/x", b"77777777777", b"-1", b"\x80" + b"\xff" * 11, b"5", b"2", b"L", b"S", b"x")


def change_member_header(data, random, others):
    """Changes a field in the header of a member of a tar, and the checksum accordingly."""
    starts = [place for place in range(0, len(data) - 511, 512) if data[place + 257 : place + 262] == b"ustar"]
    if not starts:
        return flip_bits(data, random, others)
    start = random.choice(starts)
    header = bytearray(data[start : start + 512])
    place, size = random.choice(MEMBER_FIELDS)
    header[place : place + size] = random.choice(FIELD_VALUES)[:size].ljust(size, b"\0")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return data[:start] + bytes(header) + data[start + 512 :]

"""Mutations of the bytes, the lines and the words of a file.

Each takes (data, random, others): the content of a file, the source of chance, and the contents of other files of its
kind. It returns other content. The same chance makes the same content on every machine.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

Mutation = Callable[[bytes, Random, Sequence[bytes]], bytes]

WORDS = Path(__file__).parent / "words"
MOST_BYTES = 400_000  # a small file: what takes long is then not its size
NUMBER = re.compile(rb"-?\d+(?:\.\d+)?")
NUMBERS = (
    b"0 -0 1 -1 2 7 11 13 100 127 128 255 256 999 1000 9999 65535 65536 100000 1000000 2147483647 2147483648"
    b" -2147483649 4294967296 9223372036854775807 9223372036854775808 99999999999999999999999 -99999999999999999999999"
    b" 0.5 1e-300 -0.001 1e308 1e999 nan NaN inf -Infinity 00 1/0 0x10 1,5 \xc2\xbd 1_000"
).split()
NUMBERS += [b"", b"1" * 5000]
INTEGERS = (0, 1, 2, -1, 7, 64, 127, 128, 255, 256, 32767, 32768, 65535, 10**6, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1)
CHARACTERS = (
    ["\0", "\1", "\x08", "\x0b", "\x0c", "\x1b[31m", "\x7f", "\x85", "\xa0", "\u200b", "\u2028", "\u202e", "\ufeff"]
    + ["\uffff", "\U0001f3b5", "\u0301" * 50, "\u0130", "\u00df", "\t", "\r", "\n\n", " " * 300, "\\", "'", '"', "%"]
    + ["&", "<", ">", "{", "}", "[", "]", "(", ")", "|", "$HOME", "~", "%s", "{0}", "\\u0000", "\\x00", "\\n", "é"]
)
BROKEN_BYTES = [b"\xed\xa0\x80", b"\xff", b"\xc3", b"\xf8\x88\x80\x80\x80", b"\xfe\xff", b"\xff\xfe", b"\xef\xbb\xbf"]


# ------------------------------------------------------------------------------------ bytes


def span(data: bytes, random: Random, most: int = 1000) -> tuple[int, int]:
    start = random.randrange(len(data) + 1)
    length = min(int(random.expovariate(1 / 20)) + 1, most)
    return start, min(start + length, len(data))


def insert(data: bytes, place: int, new: bytes) -> bytes:
    return data[:place] + new + data[place:]


def times(random: Random) -> int:
    return random.choice((1, 2, 3, 10, 100, 1000))


def cut_end(data, random, others):
    return data[: random.randrange(len(data) + 1)]


def cut_beginning(data, random, others):
    return data[random.randrange(len(data) + 1) :]


def flip_bits(data, random, others):
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 8, 50)) if data else 0):
        changed[random.randrange(len(data))] ^= 1 << random.randrange(8)
    return bytes(changed)


def delete_span(data, random, others):
    start, end = span(data, random)
    return data[:start] + data[end:]


def insert_bytes(data, random, others):
    return insert(data, random.randrange(len(data) + 1), random.randbytes(random.randrange(1, 20)))


def repeat_span(data, random, others):
    start, end = span(data, random)
    return data[:end] + data[start:end] * times(random) + data[end:]


def fill_span(data, random, others):
    start, end = span(data, random)
    return data[:start] + random.choice((b"\0", b"\xff", b"\x80", b" ")) * (end - start) + data[end:]


def move_span(data, random, others):
    start, end = span(data, random)
    rest = data[:start] + data[end:]
    return insert(rest, random.randrange(len(rest) + 1), data[start:end])


def splice(data, random, others):
    other = random.choice(others)
    if random.random() < 0.5:
        start, end = span(other, random)
        return insert(data, random.randrange(len(data) + 1), other[start:end])
    return data[: random.randrange(len(data) + 1)] + other[random.randrange(len(other) + 1) :]


def set_integer(data, random, others):
    """Replaces one, two, four or eight bytes, mostly near the beginning, by an integer at the edge of what fits."""
    size = random.choice((1, 2, 4, 8))
    if len(data) < size:
        return data
    room = len(data) - size + 1
    place = random.randrange(min(room, 64) if random.random() < 0.5 else room)
    value = random.choice(INTEGERS) % 256**size
    return data[:place] + value.to_bytes(size, random.choice(("big", "little"))) + data[place + size :]


BYTES = [cut_end, cut_beginning, flip_bits, delete_span, insert_bytes, repeat_span, fill_span, move_span, splice]
BYTES += [set_integer]


# ------------------------------------------------------------------------------------ text


def set_number(data, random, others):
    """Replaces a number, or all numbers that are equal to it."""
    found = list(NUMBER.finditer(data))
    if not found:
        return data
    match = random.choice(found)
    new = random.choice(NUMBERS)
    if random.random() < 0.3 and b"." not in match[0]:
        new = b"%d" % (int(match[0]) * random.choice((-1, 2, 10, 1000, 10**6)) + random.choice((-1, 0, 1)))
    if random.random() < 0.1:
        return data.replace(match[0], new)
    return data[: match.start()] + new + data[match.end() :]


def insert_character(data, random, others):
    new = random.choice(BROKEN_BYTES) if random.random() < 0.2 else random.choice(CHARACTERS).encode()
    return insert(data, random.randrange(len(data) + 1), new * random.choice((1, 1, 1, 2, 120, 2000)))


def change_lines(data, random, others):
    """Deletes, repeats, moves, joins or sorts lines."""
    lines = data.split(b"\n")
    row = random.randrange(len(lines))
    change = random.choice(("delete", "repeat", "move", "join", "sort", "one"))
    if change == "delete":
        del lines[row : row + random.choice((1, 1, 3))]
    elif change == "repeat":
        lines[row:row] = lines[row : row + random.choice((1, 4))] * times(random)
    elif change == "move":
        lines.insert(random.randrange(len(lines)), lines.pop(row))
    elif change == "join":
        lines[row : row + 2] = [b"".join(lines[row : row + 2])]
    elif change == "sort":
        lines.sort()
    else:
        lines = lines[row : row + 1]
    return b"\n".join(lines)


def encode_otherwise(data, random, others):
    text = data.decode("utf-8", "replace")
    encoding = random.choice(("utf-16", "utf-16-be", "utf-32", "latin-1", "utf-8-sig", "cp037", "utf-7"))
    return text.encode(encoding, "replace")


def end_lines_otherwise(data, random, others):
    return data.replace(b"\n", random.choice((b"\r\n", b"\r", b" ", b"\x0b", b"\n\n", b"\xe2\x80\xa8")))


TEXT = [set_number, set_number, insert_character, change_lines, change_lines, encode_otherwise, end_lines_otherwise]


# ------------------------------------------------------------------------------------ words of a notation


def words(name: str) -> list[bytes]:
    """The words in a file of WORDS, one per line, in which \\n and \\t stand for a line break and a tab."""
    lines = (WORDS / f"{name}.txt").read_bytes().splitlines()
    return [line.replace(rb"\n", b"\n").replace(rb"\t", b"\t") for line in lines]


def inserts(name: str, after: bytes = rb"[ \t|\n]", begin: bytes = b"") -> Mutation:
    """Inserts words of a notation, mostly after a pattern, each with a beginning."""
    choices = words(name)

    def insert_words(data, random, others):
        for _ in range(random.choice((1, 1, 2, 5))):
            places = [match.end() for match in re.finditer(after, data)]
            place = random.choice(places) if places and random.random() < 0.7 else random.randrange(len(data) + 1)
            new = begin + random.choice(choices)
            data = insert(data, place, new * random.choice((1, 1, 1, 1, 3, 30, 300)))
        return data

    return insert_words


def replaces(pattern: bytes, name: str) -> Mutation:
    """Replaces what a pattern matches by a word of a notation."""
    choices = words(name)

    def replace_word(data, random, others):
        found = list(re.finditer(pattern, data, re.M))
        if not found:
            return data
        match = random.choice(found)
        return data[: match.start()] + random.choice(choices) + data[match.end() :]

    return replace_word


ABC = [inserts("abc"), inserts("abc"), replaces(rb"[A-Za-z]:.*$", "abc"), replaces(rb"\|", "abc")]
KERN = [inserts("kern"), replaces(rb"[^\t\n]+", "kern"), replaces(rb"[^\t\n ]+", "kern")]
ROMANTEXT = [inserts("romantext", rb"\n"), inserts("romantext", b" "), replaces(rb"\S+", "romantext")]
ROMANTEXT += [replaces(rb"^.*$", "romantext")]
NOTEWORTHY = [inserts("noteworthy", rb"\n", b"\n"), replaces(rb"^.*$", "noteworthy")]
NOTEWORTHY += [replaces(rb"[^|\n:,]+", "noteworthy")]
MUSEDATA = [inserts("musedata", rb"\n", b"\n"), replaces(rb"^.*$", "musedata")]
MTF = [inserts("mtf", rb"\n", b"\n"), replaces(rb"^.*$", "mtf"), replaces(rb"\S+", "mtf")]
XML = [inserts("xml", b"[<>]"), replaces(rb"<\?xml[^>]*>", "xml"), replaces(rb"<[^<>]*>", "xml")]
JSON = [inserts("json", rb"[:,\[{]")]

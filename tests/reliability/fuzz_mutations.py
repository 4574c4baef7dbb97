"""The mutations of each kind of file."""

from collections.abc import Sequence
from random import Random

import fuzz_formats as formats
from fuzz_basics import (
    ABC,
    BYTES,
    JSON,
    KERN,
    MOST_BYTES,
    MTF,
    MUSEDATA,
    NOTEWORTHY,
    ROMANTEXT,
    TEXT,
    XML,
    Mutation,
    change_lines,
    insert_character,
    set_integer,
    set_number,
)

MOST_STEPS = 5
WILD_SHARE = 0.3  # of the inputs that may lose their structure; a reader refuses most of these at once
LINES = [set_number, change_lines, insert_character]

# For each kind of file, the mutations that mostly keep its structure, and others.
MUTATIONS: dict[str, tuple[list[Mutation], list[Mutation]]] = {
    "text": (TEXT, BYTES),
    "abc": ([*ABC, *ABC, *LINES], [*TEXT, *BYTES]),
    "xml": (formats.TREE, [*XML, *TEXT, *BYTES]),
    "zipped xml": (formats.ZIPPED_XML, [*formats.ARCHIVE, *formats.ARCHIVE, *BYTES]),
    "kern": ([*KERN, *KERN, *LINES], [*TEXT, *BYTES]),
    "romantext": ([*ROMANTEXT, *LINES], [*TEXT, *BYTES]),
    "noteworthy": ([formats.change_packed], [set_integer, *BYTES]),
    "noteworthy text": ([*NOTEWORTHY, *NOTEWORTHY, *LINES], [*TEXT, *BYTES]),
    "musedata": ([*MUSEDATA, *MUSEDATA, *LINES], [*TEXT, *BYTES]),
    "midi": ([formats.change_midi], BYTES),
    "mtf": ([*MTF, *MTF, *LINES], [*TEXT, *BYTES]),
    "recording": ([set_integer, set_integer, *BYTES], BYTES),
    "features": ([formats.change_npy], BYTES),
    "json": ([*[formats.change_json] * 5, formats.nest_json], [*JSON, *TEXT, *BYTES]),
    "json lines": ([*[formats.change_json_line] * 5, formats.nest_json], [*JSON, *TEXT, *BYTES]),
    "table": (TEXT, BYTES),
    "weights": ([formats.change_safetensors], [set_integer, *BYTES]),
    "checkpoint": (formats.ARCHIVE, BYTES),
    "index": ([formats.change_table], [set_integer, *BYTES]),
    "shard": ([formats.change_member_header], BYTES),
    "vectors": (BYTES, BYTES),
}


def mutate(data: bytes, kind: str, random: Random, others: Sequence[bytes]) -> bytes:
    """Applies one to MOST_STEPS mutations to a file of a kind, a key of MUTATIONS."""
    choices, wild = MUTATIONS[kind]
    if random.random() < WILD_SHARE:
        choices = [*choices, *wild]
    steps = 1
    while steps < MOST_STEPS and random.random() < 0.4:
        steps += 1
    for _ in range(steps):
        data = random.choice(choices)(data, random, others)[:MOST_BYTES]
    return data

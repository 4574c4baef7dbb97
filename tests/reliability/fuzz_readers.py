"""Every reader of files from outside, and what must hold of what it reads."""

import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import fuzz_seeds
import mido
import numpy as np

from clamplib.embedding.reading import CONVERTED, Reader, Reading
from clamplib.files import InputError, load_array
from clamplib.formats.mtf import midi_to_mtf, mtf_to_midi, parse_midi
from clamplib.formats.notation import abc_to_xml, interleave, interleave_and_compare, split_tunes, xml_to_abc
from clamplib.formats.score_files import list_tunes, read_text, read_title, score_to_abc
from clamplib.models.geometry import Geometry

CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")  # what no XML document may hold


@dataclass(frozen=True)
class FuzzedReader:
    """A reader of files.

    Attributes:
        read: reads the file at a path. It returns facts about the value, which are the same each time, and raises
            InputError where it refuses the file, or Broken where the value is not whole.
        kind: of its files, as a key of `fuzz_mutations.MUTATIONS`.
        seeds: the folder of its seeds.
        name: the name of its files.
        beside: the folder of `fuzz_seeds` in which the file is mutated, if it needs others.
        share: of all inputs, relative to the other readers.
        names_file: whether the reason of a refusal names the file.
        imports: whether its first input takes seconds, because it imports torch, music21 or librosa.
    """

    read: Callable[[Path], Any]
    kind: str
    seeds: str
    name: str
    beside: str = ""
    share: float = 1.0
    names_file: bool = True
    imports: bool = False

    @property
    def writes(self) -> bool:
        """Whether reading writes too."""
        return self.kind in ("index", "vectors")


class Broken(Exception):
    """A value is not whole."""


def require(right: bool, problem: str) -> None:
    if not right:
        raise Broken(problem)


SIZES = Geometry(audio_hidden_size=fuzz_seeds.WIDTH)
READER, CONVERTING = Reader(SIZES), Reader(replace(SIZES, abc=CONVERTED))
CANONICAL = Reader(replace(SIZES, notes="canonical"))


def check_reading(reading: Reading) -> Any:
    sequence = reading.sequence
    if reading.encoder == "text":
        require(isinstance(sequence, str), f"a text of type {type(sequence)}")
        return sequence
    dtype, width = {"symbolic": ("uint8", 64), "audio": ("float32", fuzz_seeds.WIDTH)}[reading.encoder]
    right = sequence.dtype == dtype and sequence.ndim == 2 and len(sequence) and sequence.shape[1] == width
    require(right, f"a sequence of {sequence.dtype} {sequence.shape}")
    require(bool(np.isfinite(sequence).all()), "a sequence with NaN or infinity")
    if reading.encoder == "symbolic":
        require(int(sequence.max()) < 128, "a patch with a code that the model does not have")
    return sequence.tobytes()


def check_abc(abc: str) -> str:
    require(not CONTROL.search(abc), f"ABC with the control character {CONTROL.findall(abc)[:1]}")
    require("\nV:1" in "\n" + abc, "ABC without a voice")
    return abc


def check_xml(xml: str | bytes) -> str | bytes:
    try:
        root = ElementTree.fromstring(xml)
    except (ElementTree.ParseError, ValueError) as error:
        raise Broken(f"malformed XML ({error})") from error
    require(root.tag == "score-partwise", f"MusicXML with the root {root.tag}")
    return xml


# ------------------------------------------------------------------------------------ scores


def read_item(path: Path) -> Any:
    return check_reading(READER(path))


def read_canonical(path: Path) -> Any:
    return check_reading(CANONICAL(path))


def read_converted(path: Path) -> Any:
    return check_reading(CONVERTING(path))


def read_bytes(modality: str) -> Callable[[Path], Any]:
    """As the search page reads an upload."""
    return lambda path: check_reading(READER(path.read_bytes(), modality))


def read_tunes(path: Path) -> Any:
    """As batch_xml2abc.py converts a file, and as an index names it."""
    title = read_title(path)
    require(title is None or title.strip() != "", "an empty title")
    found = []
    first_error = None
    for tune in list_tunes(path)[:3]:
        try:
            found.append(check_abc(score_to_abc(tune)))
        except InputError as error:
            first_error = first_error or error
    if not found:
        raise first_error
    for abc in found:
        try:
            interleave(abc)
        except InputError:  # such as voices of different length
            continue
    return found


def read_abc_to_xml(path: Path) -> Any:
    """As batch_abc2xml.py converts a file."""
    tunes = split_tunes(read_text(path))
    if len(tunes) != 1:
        raise InputError(f"expected one tune, got {len(tunes)}")
    xml = check_xml(abc_to_xml(tunes[0]))
    try:
        check_abc(xml_to_abc(xml.encode()))
    except InputError:  # such as a tune without notes
        pass
    return xml


def read_abc_to_interleaved(path: Path) -> Any:
    """As batch_interleaved_abc.py converts a file."""
    interleaved, _ = interleave_and_compare(read_text(path))
    require(bool(interleaved.strip()), "no interleaved ABC")
    return interleaved


# ------------------------------------------------------------------------------------ MIDI


def read_midi_both_ways(path: Path) -> Any:
    """As batch_midi2mtf.py and batch_mtf2midi.py convert a file."""
    both = [midi_to_mtf(path), midi_to_mtf(path, m3_compatible=False)]
    for mtf in both:
        try:
            again = midi_to_mtf(parse_midi(_saved(mtf_to_midi(mtf)), "again"), m3_compatible=False)
        except InputError:  # MTF holds what MIDI files cannot, such as a long delta
            continue
        left_out = [line for line in mtf.split("\n") if not line.startswith("unknown_meta")]
        require(again.split("\n")[1:-1] == left_out[1:-1], "MTF that is not the same after a round trip")
    return both


def read_mtf_to_midi(path: Path) -> Any:
    """As batch_mtf2midi.py converts a file."""
    data = _saved(mtf_to_midi(read_text(path)))
    try:
        parse_midi(data, "the MIDI file that was written")
    except InputError as error:
        raise Broken(f"a MIDI file that cannot be read: {error}") from error
    return data


def _saved(midi: mido.MidiFile) -> bytes:
    file = io.BytesIO()
    midi.save(file=file)
    return file.getvalue()


# ------------------------------------------------------------------------------------ features, models, tables


def read_features(path: Path) -> Any:
    array = load_array(path)
    require(array.dtype == np.float32 and bool(np.isfinite(array).all()), f"{array.dtype}, or not finite")
    return array.tobytes()


def read_variant(path: Path) -> Any:
    import torch
    import transformers

    from clamplib.embedding.sequences import text_tokens
    from clamplib.models.variants import load_clamp3

    transformers.logging.set_verbosity_error()  # it may warn of odd configs
    try:
        loaded = load_clamp3(str(path.parent), weights_folder=path.parent)
    except FileNotFoundError as error:  # the folder names a text model that is neither here nor on the hub
        raise InputError(f"expected a model that is there: {error}") from error
    tokens = text_tokens("a slow air\nin D", loaded.tokenizer)
    require(tokens.dtype == np.int64 and len(tokens) > 0, f"tokens {tokens.dtype} {tokens.shape}")
    with torch.no_grad():
        ids = torch.as_tensor(tokens[:8])[None]
        vector = loaded.model.get_text_features(text_inputs=ids, text_masks=torch.ones_like(ids), get_global=True)
    return loaded.space["weights_sha256"], vector.shape


def read_probe(path: Path) -> Any:
    from clamplib.evaluation.probe import load_probe

    probe = load_probe(path)
    chances = probe.probabilities(np.zeros((1, probe.model.fc.in_features), np.float32))
    return chances.shape, probe.classes


def read_folder_space(path: Path) -> Any:
    from clamplib.space import check_same_space, front_of, read_space

    space = read_space(path.parent)
    require(isinstance(space, dict), f"a space of type {type(space)}")
    front_of(space)
    check_same_space("other", {**space, "variant": "x"}, path.parent, space)
    return json.dumps(space, sort_keys=True)


def read_lines(path: Path) -> Any:
    """The pieces of training data, with all that a training makes of their texts."""
    from random import Random

    from clamplib.training.pieces import evaluation_lines, read_pieces, text_lines

    found = []
    problems = []
    for modality, with_scores in (("symbolic", False), ("audio", True)):
        try:
            pieces, left_out = read_pieces(path, modality, fuzz_seeds.WIDTH, with_scores)
        except InputError as error:
            problems.append(str(error))
            continue
        for problem in left_out:
            require(path.name in problem, f"a problem without its file: {problem[:200]}")
        for piece in pieces:
            Random(0).choice(evaluation_lines(piece.fields)).encode()
            "\n".join(text_lines(piece.fields)).encode("utf-8", "surrogatepass")
            found.append((piece.id, [file.size for file in piece.files]))
            for file in piece.files:
                file.read()
    if not found:
        raise InputError(problems[0])
    return found


def read_shard(path: Path) -> Any:
    from clamplib.training import shards

    found = shards.members(path)
    for file in found.values():
        file.read()
    return [(name, file.size) for name, file in found.items()]


def read_index(path: Path) -> Any:
    from clamplib.retrieval.index import ExactIndex, Record

    query = np.eye(1, 4, dtype=np.float32)
    with ExactIndex(path.parent) as index:
        require(len(index) >= 0, "a negative length")
        index.records(), index.paths(), index.keys(), index.vectors(["a", "x"])
        found = index.search(query, 2) + index.search(query, 2, label="j", folder="/music", modality="score")
        index.upsert([Record("/music/new.abc", "n")], query)
        index.remove(["/music/a.abc", "/music/x.abc"])
        found += index.search(query, 9)
    for match in found[0]:
        require(-1.01 < match.similarity < 1.01, f"the similarity {match.similarity}")
    return str(found)


def read_cache(path: Path) -> Any:
    """A broken cache costs no answer."""
    from clamplib.embedding.cache import VectorCache

    cache = VectorCache(path)
    found = cache.get(["a", "b", "x"])
    hashes = cache.content_hashes([path])
    require(list(hashes) == [str(path)], "no hash of a file that can be read")
    cache.put({"x": np.zeros(4, np.float32)})
    return sorted(found)


def read_labels(path: Path) -> Any:
    from clamplib.evaluation.labels import read_table

    table = read_table(path)
    return table.column, sorted(table.labels.items())


# ------------------------------------------------------------------------------------ all of them

READERS: dict[str, FuzzedReader] = {
    "text": FuzzedReader(read_item, "text", "text", "input.txt", share=2),
    "abc": FuzzedReader(read_item, "abc", "abc", "input.abc", share=2),
    "abc interleaved": FuzzedReader(read_item, "abc", "interleaved", "input.abc", share=2),
    "abc canonical": FuzzedReader(read_canonical, "abc", "abc", "input.abc", share=2),
    "abc converted": FuzzedReader(read_converted, "abc", "abc", "input.abc", share=4),
    "abc to musicxml": FuzzedReader(read_abc_to_xml, "abc", "abc", "input.abc", share=3, names_file=False),
    "abc to interleaved": FuzzedReader(read_abc_to_interleaved, "abc", "abc", "input.abc", share=2, names_file=False),
    "tunebook": FuzzedReader(read_tunes, "abc", "abc", "input.abc", names_file=False),
    "musicxml": FuzzedReader(read_item, "xml", "xml", "input.musicxml", share=4),
    "musicxml to abc": FuzzedReader(read_tunes, "xml", "xml", "input.xml", share=3, names_file=False),
    "musicxml in memory": FuzzedReader(read_bytes("score"), "xml", "xml", "input.xml", names_file=False),
    "mxl": FuzzedReader(read_item, "zipped xml", "mxl", "input.mxl", share=4),
    "mxl in memory": FuzzedReader(read_bytes("score"), "zipped xml", "mxl", "input.mxl", share=0.5, names_file=False),
    "kern": FuzzedReader(read_tunes, "kern", "kern", "input.krn", share=2, names_file=False, imports=True),
    "mei": FuzzedReader(read_item, "xml", "mei", "input.mei", share=3),
    "romantext": FuzzedReader(read_item, "romantext", "romantext", "input.rntxt", share=2),
    "capella": FuzzedReader(read_item, "zipped xml", "capella", "input.capx", share=1),
    "noteworthy": FuzzedReader(read_item, "noteworthy", "noteworthy", "input.nwc", share=2),
    "noteworthy text": FuzzedReader(read_item, "noteworthy text", "noteworthy text", "input.nwctxt", share=2),
    "musedata": FuzzedReader(read_item, "musedata", "musedata", "input.musedata", share=2),
    "midi": FuzzedReader(read_item, "midi", "midi", "input.mid", share=4),
    "midi in memory": FuzzedReader(read_bytes("midi"), "midi", "midi", "input.mid", share=0.5, names_file=False),
    "midi to mtf and back": FuzzedReader(read_midi_both_ways, "midi", "midi", "input.mid", share=4, names_file=False),
    "mtf": FuzzedReader(read_item, "mtf", "mtf", "input.mtf", share=2),
    "mtf canonical": FuzzedReader(read_canonical, "mtf", "mtf", "input.mtf", share=2),
    "midi canonical": FuzzedReader(read_canonical, "midi", "midi", "input.mid", share=2),
    "mtf to midi": FuzzedReader(read_mtf_to_midi, "mtf", "mtf", "input.mtf", share=4, names_file=False),
    "features": FuzzedReader(read_item, "features", "features", "input.npy", share=2),
    "array": FuzzedReader(read_features, "features", "features", "input.npy", share=2),
    **{
        suffix[1:]: FuzzedReader(read_item, "recording", suffix, "input" + suffix, share=0.6)
        for suffix in fuzz_seeds.CODECS
    },
    "recording in memory": FuzzedReader(
        read_bytes("audio"), "recording", ".mp3", "input.mp3", share=0.3, names_file=False, imports=True
    ),
    **{
        name: FuzzedReader(read_variant, kind, name, name, fuzz_seeds.VARIANT, names_file=False, imports=True)
        for name, kind in (
            ("config.json", "json"),
            ("tokenizer.json", "json"),
            ("tokenizer_config.json", "json"),
            ("model.safetensors", "weights"),
        )
    },
    "probe.pth": FuzzedReader(read_probe, "checkpoint", "probe.pth", "probe.pth"),
    "space.json": FuzzedReader(read_folder_space, "json", "space.json", "space.json", share=2),
    "pieces.jsonl": FuzzedReader(read_lines, "json lines", "pieces.jsonl", "pieces.jsonl", fuzz_seeds.PIECES, 3),
    "shard.tar": FuzzedReader(read_shard, "shard", "shard.tar", "shard.tar", share=2),
    "index table": FuzzedReader(read_index, "index", "records.sqlite", "records.sqlite", fuzz_seeds.INDEX, 2, False),
    "index vectors": FuzzedReader(
        read_index, "vectors", fuzz_seeds.VECTORS, fuzz_seeds.VECTORS, fuzz_seeds.INDEX, 0.5, False
    ),
    "cache": FuzzedReader(read_cache, "index", "vectors.sqlite", "vectors.sqlite"),
    "labels.csv": FuzzedReader(read_labels, "table", "comma table", "input.csv"),
    "labels.jsonl": FuzzedReader(read_labels, "json lines", "json table", "input.jsonl"),
}

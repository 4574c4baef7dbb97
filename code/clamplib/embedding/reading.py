"""Reads whatever somebody has at hand into what the encoders take. Every door of the library reads through here.

| item | modality |
| --- | --- |
| a str | text |
| a path (pathlib.Path, or a tune of a file: see score_files.Tune) | what its suffix says |
| bytes | named by the caller: text, score, midi, audio or image |
| a mido.MidiFile | midi |
| a music21 stream | score |
| a Waveform | audio |
| an audio row of a data set: {"array": …, "sampling_rate": …} | audio |
| an array or tensor of numbers, with the modality audio named | features of audio [..., T, H] |

A str with the modality score or midi is ABC or MTF. Scores and MIDI are converted in memory. ABC that is interleaved is
never converted again. Other ABC is read as found, or converted like a score where the variant asks for it (by the field
`abc` of its config.json). An image is encoded by its caption, which the encoder's captioner writes (see `captions`).
"""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import mido
import numpy as np

from clamplib import audio as sound
from clamplib.audio import Waveform
from clamplib.audio.spectral import recording_features
from clamplib.embedding.sequences import audio_frames, symbolic_patches
from clamplib.files import InputError, check_file, load_array, show
from clamplib.formats.mtf import FIRST_WORD, midi_to_mtf, parse_midi
from clamplib.formats.notation import (
    FIELD,
    abc_to_xml,
    interleave,
    only_tune,
    running_converter,
    summarize_error,
    xml_to_abc,
)
from clamplib.formats.score_files import SCORE_SUFFIXES, Tune, decode_text, read_text, score_text, score_to_abc
from clamplib.jobs import LIMITS, Limits, Outcome, run_in_turn, run_jobs
from clamplib.processes import size_of

if TYPE_CHECKING:  # which brings transformers; processes that only read do without it
    from clamplib.models.geometry import Geometry

logger = logging.getLogger(__name__)

MODALITIES = ("text", "score", "midi", "audio", "image")
TEXT_SUFFIXES = (".txt",)
MIDI_SUFFIXES = (".mid", ".midi", ".mtf")
FEATURE_SUFFIXES = (".npy",)
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
SEQUENCE_SUFFIXES = (".txt", ".abc", ".mtf", ".npy")  # what the extraction scripts take
SUFFIXES = (*TEXT_SUFFIXES, *SCORE_SUFFIXES, *MIDI_SUFFIXES, *sound.RECORDING_SUFFIXES)  # of a collection's files
BLIP_REPO = "Salesforce/blip-image-captioning-base"  # on the hub: what writes the captions of images
STREAM_MARK = "isStream"  # of music21's streams, which are slow to import
DECODER_MARK = "get_all_samples"  # of torchcodec's decoder, which data sets hold for a row of audio
FOREIGN_MARKS = (STREAM_MARK, DECODER_MARK)
AS_FOUND, CONVERTED = "as found", "converted"  # how notes in ABC were read that is not interleaved

FEW = 16  # items to convert for which starting processes is not worth it
MANY = 1000  # items to read as found for which it is
LARGE = 1_000_000  # bytes of ABC or MTF for which it is
READ_AHEAD = 512  # items that are read before the model takes them
NAMED = 3  # files in a warning


@dataclass(frozen=True)
class Content:
    """What an item holds: a text, ABC or MTF, or for audio the features float32 [..., T, H]."""

    modality: str  # one of MODALITIES
    value: str | np.ndarray
    notes: str = ""  # AS_FOUND or CONVERTED for ABC that is not interleaved


class Reading(NamedTuple):
    """An item as one of the encoders takes it."""

    encoder: str  # "text", "symbolic" or "audio"
    sequence: str | np.ndarray  # patches uint8 [n, S], frames float32 [n, H], or a text that is not tokenized yet
    notes: str = ""  # as of Content
    cut: int = 0  # patches that lost their end because a bar was too long


class Reader:
    """Reads items into sequences. It is small, so that it can be sent to other processes."""

    def __init__(self, geometry: "Geometry", limits: Limits | None = LIMITS):
        """Takes the sizes of a model, and what reading one file may take."""
        self.patchilizer = geometry.make_patchilizer()
        self.audio_size = geometry.audio_hidden_size
        self.abc = geometry.abc  # how the model wants ABC that is not interleaved
        self.limits = limits

    def __call__(self, item: Any, modality: str | None = None) -> Reading:
        """Reads an item. InputError says why it cannot be, and names its file if it is one."""
        try:
            return self.sequence(read_item(item, modality, self.abc))
        except InputError as error:
            if isinstance(item, os.PathLike) and show(item) not in str(error):
                raise InputError(f"{show(item)}: {error}") from error
            raise

    def sequence(self, content: Content) -> Reading:
        """The sequence of what an item holds."""
        if content.modality == "text":
            return Reading("text", content.value)
        if content.modality == "audio":
            return Reading("audio", audio_frames(content.value, self.audio_size))
        patches = symbolic_patches(content.value, self.patchilizer)
        return Reading("symbolic", patches, content.notes, self.patchilizer.count_cut(patches))


def read_ahead(
    reader: Reader, items: Sequence[Any], modality: str | None = None, *, workers: int | None = None
) -> Iterator[Outcome]:
    """Reads items, in other processes while the model is busy, where there are enough to make that worth it.

    Large files, and files and bytes that must be converted, are always read in other processes, within the limits of
    the reader.

    Args:
        modality: of all items; None: what each is.
        workers: processes; 0 or 1: one at most; None: by items and cores.

    Yields:
        Outcomes whose value is a Reading, in no particular order.
    """
    read = partial(reader, modality=modality)
    slow = [item for item in items if _is_slow(item, reader)]
    foreign = any(isinstance(item, os.PathLike | bytes) for item in slow)
    few = workers in (0, 1) or (workers is None and len(slow) < FEW and len(items) < MANY)
    if few and not foreign:
        return _noted(run_in_turn(read, items), items, reader)
    workers = workers if workers is None else max(workers, 1)
    outcomes = run_jobs(read, items, workers=workers, at_once=READ_AHEAD, limits=reader.limits)
    return _noted(outcomes, items, reader)


def _is_slow(item: Any, reader: Reader) -> bool:
    """Whether reading an item may take long, as converting it does."""
    if not isinstance(item, os.PathLike):
        return not isinstance(item, str)
    suffix = Path(item).suffix.lower()
    if suffix not in SEQUENCE_SUFFIXES or (suffix == ".abc" and reader.abc == CONVERTED):
        return True
    return suffix in (".abc", ".mtf") and size_of(item) > LARGE


def _noted(outcomes: Iterable[Outcome], items: Sequence[Any], reader: Reader) -> Iterator[Outcome]:
    """The outcomes; in the end warnings say which ABC was read as found, and how many patches were cut."""
    found, cut = [], 0
    for outcome in outcomes:
        if not outcome.error:
            cut += outcome.value.cut
            if outcome.value.notes == AS_FOUND:
                found.append(outcome.number)
        yield outcome
    if found and not reader.abc:  # a variant that asks for it needs no warning
        names = []
        for number in sorted(found)[:NAMED]:
            names.append(show(items[number]) if isinstance(items[number], os.PathLike) else f"item {number}")
        logger.warning(
            "ABC that is not interleaved was read as found in %d items: %s%s. preprocessing/abc/batch_xml2abc.py and "
            "batch_interleaved_abc.py convert it",
            len(found),
            ", ".join(names),
            " and others" if len(found) > NAMED else "",
        )
    if cut:
        room = reader.patchilizer.patch_size - 2
        logger.warning(
            "%d bars or messages are longer than the %d characters of a patch: their ends are cut off", cut, room
        )


def is_item(items: Any) -> bool:
    """Whether something is one item; anything else is taken as a list of items."""
    one = (str, bytes, os.PathLike, Waveform, mido.MidiFile, Mapping)
    return isinstance(items, one) or is_numbers(items) or any(hasattr(items, mark) for mark in FOREIGN_MARKS)


def as_list(items: Any) -> list:
    """One item or any number of them, such as an array of texts, as a list."""
    if is_item(items):
        return [items]
    return items.tolist() if isinstance(items, np.ndarray) else list(items)


def is_numbers(items: Any) -> bool:
    """Whether something is an array or a tensor of numbers."""
    kind = getattr(getattr(items, "dtype", None), "kind", None)  # which torch's types do not have
    return kind in ("f", "i", "u") if isinstance(items, np.ndarray) else hasattr(items, "detach")


def as_array(numbers: Any) -> np.ndarray:
    """An array or a tensor, wherever it is, as an array."""
    return np.asarray(numbers.detach().cpu() if hasattr(numbers, "detach") else numbers)


def plain_item(item: Any) -> Any:
    """An item in the library's own types: a row of audio as a Waveform, a tensor as an array."""
    if isinstance(item, Mapping) and {"array", "sampling_rate"} <= item.keys():
        return Waveform(as_array(item["array"]), item["sampling_rate"])
    if hasattr(item, DECODER_MARK):
        samples = item.get_all_samples()
        return Waveform(as_array(samples.data), samples.sample_rate)
    if isinstance(item, Waveform):
        return Waveform(as_array(item.samples), item.rate)
    return as_array(item) if is_numbers(item) else item


def modality_of(path: str | os.PathLike) -> str:
    """What a file holds by its suffix, one of MODALITIES. InputError for others."""
    suffix = Path(path).suffix.lower()
    for modality, suffixes in (
        ("text", TEXT_SUFFIXES),
        ("score", SCORE_SUFFIXES),
        ("midi", MIDI_SUFFIXES),
        ("audio", sound.RECORDING_SUFFIXES + FEATURE_SUFFIXES),
        ("image", IMAGE_SUFFIXES),
    ):
        if suffix in suffixes:
            return modality
    raise InputError(f"{show(path)}: expected a file ending in {' '.join(SUFFIXES + IMAGE_SUFFIXES)}")


def is_recording(item: Any, modality: str | None = None) -> bool:
    """Whether an item is sound, not the features of sound."""
    if isinstance(item, os.PathLike):
        suffix = Path(item).suffix.lower()
        if modality == "audio":
            return suffix not in FEATURE_SUFFIXES
        return modality is None and suffix in sound.RECORDING_SUFFIXES
    return isinstance(item, Waveform) or (isinstance(item, bytes) and modality == "audio")


def is_image(item: Any, modality: str | None = None) -> bool:
    """Whether an item is a picture."""
    if isinstance(item, os.PathLike) and modality is None:
        return Path(item).suffix.lower() in IMAGE_SUFFIXES
    return isinstance(item, os.PathLike | bytes) and modality == "image"


def read_item(item: Any, modality: str | None = None, abc: str = "") -> Content:
    """Reads what an item holds; of a recording its spectral features.

    Args:
        modality: one of MODALITIES; None: what the item is (see the head of this module).
        abc: CONVERTED to convert ABC that is not interleaved; else it is read as found.

    Raises:
        InputError: the item cannot be read.
    """
    if modality is not None and modality not in MODALITIES:
        raise InputError(f"expected one of the modalities {', '.join(MODALITIES)}, got {modality!r}")
    if isinstance(item, os.PathLike):
        return _read_file(item, modality or modality_of(item), abc)
    if isinstance(item, Waveform):
        return Content("audio", recording_features(item))
    if isinstance(item, mido.MidiFile):
        return Content("midi", midi_to_mtf(item))
    if isinstance(item, str):
        return _of_text(item, modality or "text", abc)
    if isinstance(item, bytes):
        if modality is None:
            raise InputError(f"bytes may be anything: name their modality, one of {', '.join(MODALITIES)}")
        return _of_bytes(item, modality, abc)
    if isinstance(item, np.ndarray) and modality == "audio":
        return Content("audio", item.astype(np.float32))
    if hasattr(item, STREAM_MARK):
        return Content("score", interleave(xml_to_abc(_stream_to_xml(item))))
    raise InputError(
        "expected a text, a path, bytes with a modality, a Waveform, a row of audio, a music21 stream or a mido "
        f"MidiFile, got {_kind(item)}"
    )


def _kind(item: Any) -> str:
    keys = f" with the keys {', '.join(map(repr, item))}" if isinstance(item, Mapping) else ""
    return type(item).__name__ + keys


def _read_file(path: os.PathLike, modality: str, abc: str) -> Content:
    check_file(path)
    suffix = Path(path).suffix.lower()
    if modality == "text":
        return Content("text", _read_utf8(path))
    if modality == "score":
        if suffix == ".abc":
            return _of_abc(score_text(path) if isinstance(path, Tune) else read_text(path), abc)
        return Content("score", interleave(score_to_abc(path)))
    if modality == "midi":
        return _of_text(read_text(path), "midi", abc) if suffix == ".mtf" else Content("midi", midi_to_mtf(path))
    if modality == "audio":
        return Content("audio", load_array(path) if suffix in FEATURE_SUFFIXES else recording_features(path))
    refuse_image(path)


def _read_utf8(path: os.PathLike) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{show(path)}: expected UTF-8 text, got other bytes ({error})") from error


def refuse_image(image: Any) -> NoReturn:
    """Says what an image needs."""
    raise InputError(
        f'an image is encoded by its caption: give the encoder a captioner, such as captioner="{BLIP_REPO}"'
    )


def _of_text(text: str, modality: str, abc: str) -> Content:
    if modality == "text":
        return Content("text", text)
    if modality == "score":
        return _of_abc(text, abc)
    if modality == "midi" and text.startswith(FIRST_WORD):
        return Content("midi", text)
    expected = {"midi": "MTF", "audio": "a recording", "image": "an image"}[modality]
    raise InputError(f"expected {expected}, got the text {text[:40]!r}; for a file give its pathlib.Path")


def _of_bytes(data: bytes, modality: str, abc: str) -> Content:
    if modality == "audio":
        return Content("audio", recording_features(data))
    if modality == "image":
        refuse_image(data)
    if modality == "midi" and not data.startswith(FIRST_WORD.encode()):
        return Content("midi", midi_to_mtf(parse_midi(data, "this MIDI")))
    if modality == "score" and (data[:2] == b"PK" or b"<" in data.lstrip()[:4]):  # after a byte order mark
        return Content("score", interleave(xml_to_abc(data)))
    return _of_text(decode_text(data, f"this {modality}"), modality, abc)


def _of_abc(text: str, abc: str) -> Content:
    """ABC of one tune, interleaved or not."""
    if is_interleaved(text):
        return Content("score", text)
    if abc != CONVERTED:
        return Content("score", text, AS_FOUND)
    return Content("score", interleave(xml_to_abc(abc_to_xml(only_tune(text)).encode())), CONVERTED)


def is_interleaved(abc: str) -> bool:
    """Whether every line of music in ABC begins with its voice, as interleaving leaves it."""
    lines = [line for line in abc.splitlines() if line.strip()]
    music = [line for line in lines if not FIELD.match(line)]
    numbered = any(line.startswith("X:") for line in lines)  # interleaved ABC has no number
    return bool(music) and not numbered and all(line.startswith("[V:") for line in music)


def _stream_to_xml(stream: Any) -> bytes:
    with running_converter("music21"):
        from music21.musicxml.m21ToXml import GeneralObjectExporter

        try:
            return GeneralObjectExporter(stream).parse()
        except Exception as error:  # music21 raises whatever a broken score leads to
            got = summarize_error(error)
            raise InputError(f"expected a stream that music21 can write as MusicXML, it raised {got}") from error

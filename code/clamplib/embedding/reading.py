"""Whatever somebody has at hand -> what the encoders read: text, ABC or MTF, or a recording's features.

| item | modality |
| --- | --- |
| a str | text |
| a path (pathlib.Path, or a tune of a file: see scores.Tune) | what its suffix says |
| bytes | given beside it: text, score, midi, audio or image |
| a mido.MidiFile | midi |
| a music21 stream | score |
| a Waveform | audio |
| an audio row of a data set: {"array": …, "sampling_rate": …} | audio |
| an array or tensor of numbers, with the modality audio beside it | features of audio [..., T, H] |

A str with the modality score or midi is ABC or MTF. Conversion happens in memory. An image is encoded by its caption,
which an encoder has made where it was given a captioner (see captions).
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import mido
import numpy as np

from clamplib import audio as sound
from clamplib.audio import Waveform
from clamplib.audio.spectral import recording_features
from clamplib.files import InputError, load_array, show
from clamplib.formats.mtf import FIRST_WORD, midi_to_mtf, parse_midi
from clamplib.formats.notation import FIELD, abc_to_xml, alone, interleave, reason, split_tunes, xml_to_abc
from clamplib.formats.score_files import SCORE_SUFFIXES, Tune, decode_text, read_text, score_to_abc

MODALITIES = ("text", "score", "midi", "audio", "image")
TEXT_SUFFIXES, MIDI_SUFFIXES, FEATURE_SUFFIXES = (".txt",), (".mid", ".midi", ".mtf"), (".npy",)
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
BLIP_REPO = "Salesforce/blip-image-captioning-base"  # on the hub: what writes the captions of images
STREAM_MARK = "isStream"  # of music21's streams, which are slow to import
DECODER_MARK = "get_all_samples"  # of torchcodec's decoder, which data sets hold for a row of audio
FOREIGN_MARKS = (STREAM_MARK, DECODER_MARK)
SUFFIXES = (*TEXT_SUFFIXES, *SCORE_SUFFIXES, *MIDI_SUFFIXES, *sound.SUFFIXES)  # of a collection's files


@dataclass(frozen=True)
class Input:
    """What an encoder reads: a text, interleaved ABC or MTF, or for audio features float32 [..., T, H]."""

    modality: str  # one of MODALITIES
    value: str | np.ndarray


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
        ("audio", sound.SUFFIXES + FEATURE_SUFFIXES),
        ("image", IMAGE_SUFFIXES),
    ):
        if suffix in suffixes:
            return modality
    raise InputError(f"{show(path)}: expected a file ending in {' '.join(SUFFIXES + IMAGE_SUFFIXES)}")


def is_recording(item: Any, modality: str | None = None) -> bool:
    """Whether an item is sound, not the features of sound."""
    if isinstance(item, os.PathLike):
        suffix = Path(item).suffix.lower()
        return suffix not in FEATURE_SUFFIXES if modality == "audio" else modality is None and suffix in sound.SUFFIXES
    return isinstance(item, Waveform) or (isinstance(item, bytes) and modality == "audio")


def is_image(item: Any, modality: str | None = None) -> bool:
    """Whether an item is a picture."""
    if isinstance(item, os.PathLike) and modality is None:
        return Path(item).suffix.lower() in IMAGE_SUFFIXES
    return isinstance(item, os.PathLike | bytes) and modality == "image"


def read_input(item: Any, modality: str | None = None) -> Input:
    """An item as the encoders read it, a recording as its spectral features. InputError for what cannot be read."""
    if modality is not None and modality not in MODALITIES:
        raise InputError(f"expected one of the modalities {', '.join(MODALITIES)}, got {modality!r}")
    if isinstance(item, os.PathLike):
        modality = modality or modality_of(item)
        if not Path(item).is_file():
            raise InputError(f"{show(item)}: there is no such file")
        return Input(modality, _READERS[modality](item))
    if isinstance(item, Waveform):
        return Input("audio", recording_features(item))
    if isinstance(item, mido.MidiFile):
        return Input("midi", midi_to_mtf(item))
    if isinstance(item, str):
        return Input(modality or "text", _of_text(item, modality or "text"))
    if isinstance(item, bytes):
        if modality is None:
            raise InputError(f"bytes may be anything: name their modality, one of {', '.join(MODALITIES)}")
        return Input(modality, _of_bytes(item, modality))
    if isinstance(item, np.ndarray) and modality == "audio":
        return Input("audio", item.astype(np.float32))
    if hasattr(item, STREAM_MARK):
        return Input("score", interleave(xml_to_abc(_stream_to_xml(item))))
    raise InputError(
        "expected a text, a path, bytes with a modality, a Waveform, a row of audio, a music21 stream or a mido "
        f"MidiFile, got {_kind(item)}"
    )


def _kind(item: Any) -> str:
    keys = f" with the keys {', '.join(map(repr, item))}" if isinstance(item, Mapping) else ""
    return type(item).__name__ + keys


def _read_text(path: os.PathLike) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{show(path)}: expected UTF-8 text, got other bytes ({error})") from error


def _read_score(path: os.PathLike) -> str:
    try:
        if not isinstance(path, Tune) and Path(path).suffix.lower() == ".abc":
            return _abc(read_text(path))
        return interleave(score_to_abc(path))
    except InputError as error:
        raise InputError(str(error) if show(path) in str(error) else f"{show(path)}: {error}") from error


def _read_midi(path: os.PathLike) -> str:
    return _of_text(read_text(path), "midi") if Path(path).suffix.lower() == ".mtf" else midi_to_mtf(path)


def _read_audio(path: os.PathLike) -> Any:
    return load_array(path) if Path(path).suffix.lower() in FEATURE_SUFFIXES else recording_features(path)


def refuse_image(image: Any) -> NoReturn:
    """Says what an image needs."""
    raise InputError(
        f'an image is encoded by its caption: give the encoder a captioner, such as captioner="{BLIP_REPO}"'
    )


_READERS = {
    "text": _read_text,
    "score": _read_score,
    "midi": _read_midi,
    "audio": _read_audio,
    "image": refuse_image,
}


def _of_text(text: str, modality: str) -> str:
    if modality == "text":
        return text
    if modality == "score":
        return _abc(text)
    if modality == "midi" and text.startswith(FIRST_WORD):
        return text
    expected = {"midi": "MTF", "audio": "a recording", "image": "an image"}[modality]
    raise InputError(f"expected {expected}, got the text {text[:40]!r}; for a file give its pathlib.Path")


def _of_bytes(data: bytes, modality: str) -> Any:
    if modality == "audio":
        return recording_features(data)
    if modality == "image":
        return refuse_image(data)
    if modality == "midi" and not data.startswith(FIRST_WORD.encode()):
        return midi_to_mtf(parse_midi(data, "this MIDI"))
    if modality == "score" and (data[:2] == b"PK" or b"<" in data.lstrip()[:4]):  # behind a byte order mark
        return interleave(xml_to_abc(data))
    return _of_text(decode_text(data, f"this {modality}"), modality)


def _abc(text: str) -> str:
    """ABC of any kind as interleaved ABC; what is interleaved already stays as it is."""
    lines = [line for line in text.splitlines() if line.strip()]
    music = [line for line in lines if not FIELD.match(line)]
    whole_lines = any(line.startswith("X:") for line in lines)  # interleaved ABC has no number
    if music and not whole_lines and all(line.startswith("[V:") for line in music):
        return text
    tunes = split_tunes(text)
    if not tunes:
        raise InputError("expected a tune of ABC, found none")
    if len(tunes) > 1:
        raise InputError(f"expected one tune of ABC, found {len(tunes)}: take them apart with score_files.tunes")
    return interleave(xml_to_abc(abc_to_xml(tunes[0]).encode()))


def _stream_to_xml(stream: Any) -> bytes:
    with alone("music21"):
        from music21.musicxml.m21ToXml import GeneralObjectExporter

        try:
            return GeneralObjectExporter(stream).parse()
        except Exception as error:  # music21 raises whatever a broken score leads to
            raise InputError(f"music21 cannot write this stream as MusicXML, it met {reason(error)}") from error

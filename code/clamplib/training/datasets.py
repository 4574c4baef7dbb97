"""Items to train and to evaluate on, made from pieces (see pieces) when they are asked for.

An item is asked for as (epoch, index). All its random choices come from a generator seeded by (seed, epoch, index),
so that they depend neither on the number of workers nor on the step at which training resumed.
"""

import hashlib
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from io import BytesIO
from typing import TypedDict

import numpy as np
from torch.utils.data import Dataset

from clamplib.embedding.sequences import audio_frames
from clamplib.files import InputError, read_array, show
from clamplib.formats.patchilizer import M3Patchilizer
from clamplib.training import augment
from clamplib.training.pieces import AUDIO_SUFFIXES, Piece, evaluation_lines
from clamplib.training.shards import File

logger = logging.getLogger(__name__)

BYTES_PER_PATCH = 20  # roughly, of ABC and MTF; only the order by length depends on it
BYTES_PER_FLOAT = 4


class M3Item(TypedDict):
    """A piece as M3 trains on it."""

    input_patches: np.ndarray  # uint8 [n, S], as the encoder reads them
    selected_indices: np.ndarray  # bool [n], the patches to reconstruct
    target_patches: np.ndarray  # uint8 [n, S], as they were


class CLaMP3Item(TypedDict):
    """A piece as CLaMP 3 trains on it."""

    text: np.ndarray  # token ids int64 [n]
    music: list[np.ndarray]  # one or two files, each patches uint8 [n, S] or frames float32 [n, H]
    index: int
    keys: list[int]  # [2], equal for equal texts and for equal ids


@dataclass(eq=False)
class M3Dataset(Dataset):
    """Pieces as masked and as original patches.

    Attributes:
        pieces: of one file each.
        patchilizer: makes the patches, and bounds their number.
        mask_ratio: the share of a piece's patches that are to be reconstructed.
        training: draws a part of a long piece and masks patches; in evaluation the first patches stay as they are.
        seed: of all random choices.
    """

    pieces: Sequence[Piece]
    _: KW_ONLY
    patchilizer: M3Patchilizer
    mask_ratio: float = 0.45
    training: bool = True
    seed: int = 42

    def __len__(self) -> int:
        return len(self.pieces)

    def length(self, epoch: int, index: int) -> float:
        """Estimates how many patches an item has, without reading its file."""
        return _patch_count(self.pieces[index].files[0], self.patchilizer)

    def __getitem__(self, item: tuple[int, int]) -> M3Item:
        """Reads the item (epoch, index)."""
        epoch, index = item
        rng = _item_rng(self.seed, epoch, index)
        patches = self.patchilizer.encode_array(
            _read_text(self.pieces[index].files[0]),
            add_special_patches=True,
            truncate=True,
            random_truncate=self.training,
            rng=rng,
        )
        selected = augment.select_patches(len(patches), self.mask_ratio, rng)
        inputs = augment.corrupt_patches(patches, selected, rng) if self.training else patches
        return {"input_patches": inputs, "selected_indices": selected, "target_patches": patches}


@dataclass(eq=False)
class CLaMP3Dataset(Dataset):
    """Pieces as the tokens of a text and one or two of their files.

    Attributes:
        pieces: with the files of the modality, and with scores where recordings come in pairs.
        modality: "symbolic" or "audio".
        tokenizer: makes the tokens.
        patchilizer: makes the patches, and bounds their number.
        max_text_length: in tokens.
        max_audio_length: in frames.
        audio_size: the size of a frame.
        training: makes random choices and changes; in evaluation an item is always the same, and has one file.
        text_dropout: draws lines of all texts; else the text is that of evaluation.
        instrument_dropout: the share of symbolic items that lose the names of their instruments.
        hide_header_ratio: the share of ABC items that lose the lines of their header that state key, meter and tempo.
        pairs: gives two files per item: two of the modality, or a recording and a score.
        seed: of all random choices.
    """

    pieces: Sequence[Piece]
    _: KW_ONLY
    modality: str
    tokenizer: Callable
    patchilizer: M3Patchilizer
    max_text_length: int = 128
    max_audio_length: int = 128
    audio_size: int = 768
    training: bool = True
    text_dropout: bool = True
    instrument_dropout: float = 0.9
    hide_header_ratio: float = 0.0
    pairs: bool = False
    seed: int = 42

    def __len__(self) -> int:
        return len(self.pieces)

    def length(self, epoch: int, index: int) -> float:
        """Estimates how many patches or frames an item's music has, without reading its files."""
        files = self._choose_files(self.pieces[index], _item_rng(self.seed, epoch, index))
        return sum(self._length(file) for file in files)

    def __getitem__(self, item: tuple[int, int]) -> CLaMP3Item:
        """Reads the item (epoch, index)."""
        epoch, index = item
        piece = self.pieces[index]
        rng = _item_rng(self.seed, epoch, index)
        files = self._choose_files(piece, rng)
        dropout = self.training and self.text_dropout
        lines = augment.drop_text(piece.fields, rng) if dropout else evaluation_lines(piece.fields)
        return {
            "text": self._tokens(lines, rng),
            "music": [self._music(file, rng) for file in files],
            "index": index,
            "keys": [_number("\n".join(sorted(lines))), _number(piece.id)],
        }

    def _choose_files(self, piece: Piece, rng: random.Random) -> list[File]:
        """One file, or two for pairs; a piece with a single file gives that one twice."""
        if not self.training:
            return [_evaluation_file(piece.files)]
        if not self.pairs:
            return [piece.files[rng.randrange(len(piece.files))]]
        if self.modality == "audio":
            return [rng.choice(piece.files), rng.choice(piece.scores)]
        if len(piece.files) == 1:
            return [piece.files[0], piece.files[0]]
        first, second = sorted(rng.sample(range(len(piece.files)), 2))
        return [piece.files[first], piece.files[second]]

    def _tokens(self, lines: list[str], rng: random.Random) -> np.ndarray:
        ids = self.tokenizer(self.tokenizer.sep_token.join(lines), verbose=False)["input_ids"]
        return self._truncate(np.array(ids, dtype=np.int64), self.max_text_length, rng)

    def _music(self, file: File, rng: random.Random) -> np.ndarray:
        if _is_audio(file):
            return self._truncate(read_frames(file, self.audio_size), self.max_audio_length, rng)
        text = self.patchilizer.form(_read_text(file))
        if self.training and rng.random() < self.instrument_dropout:
            text = augment.remove_instrument_info(text)
        if self.training and rng.random() < self.hide_header_ratio:
            text = augment.hide_header(text)
        return self.patchilizer.encode_array(
            text, add_special_patches=True, truncate=True, random_truncate=self.training, rng=rng
        )

    def _truncate(self, rows: np.ndarray, longest: int, rng: random.Random) -> np.ndarray:
        return rows[augment.random_window(len(rows), longest, rng) if self.training else slice(longest)]

    def _length(self, file: File) -> float:
        if _is_audio(file):
            return min(file.size / BYTES_PER_FLOAT / self.audio_size, self.max_audio_length)
        return _patch_count(file, self.patchilizer)


def read_frames(file: File, size: int) -> np.ndarray:
    """Reads audio features, such as MERT's, as frames between two frames of zeros.

    Frames that hold NaN or infinity are left out with a warning, so that they cannot end a training.

    Args:
        file: a .npy file of numbers [..., frames, size].
        size: of a frame.

    Returns:
        float32 [n, size].

    Raises:
        InputError: the file cannot be read, or does not hold such an array.
    """
    data = file.read()
    try:
        frames = audio_frames(read_array(BytesIO(data)), size)
    except InputError as error:
        raise InputError(f"{show(file.path)}: {error}") from error
    finite = np.isfinite(frames).all(axis=1)
    if finite.all():
        return frames
    bad, count = len(finite) - finite.sum(), len(finite) - 2
    logger.warning("%s: left out %d of %d frames, which hold NaN or infinity", show(file.path), bad, count)
    return frames[finite]


def _read_text(file: File) -> str:
    """The text of a file. Bytes that are not UTF-8 are replaced with a warning, so that they cannot end a training."""
    data = file.read()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        logger.warning("%s: expected UTF-8, got %s; the wrong bytes are replaced", show(file.path), error)
        text = data.decode("utf-8-sig", errors="replace")
    return text.replace("\r\n", "\n").replace("\r", "\n")  # as extraction reads it


def _item_rng(seed: int, epoch: int, index: int) -> random.Random:
    return random.Random(f"{seed} {epoch} {index}")


def _is_audio(file: File) -> bool:
    return file.path.suffix.lower() in AUDIO_SUFFIXES


def _evaluation_file(files: Sequence[File]) -> File:
    """The first ABC, or else the first file."""
    return next((file for file in files if file.path.suffix.lower() == ".abc"), files[0])


def _patch_count(file: File, patchilizer: M3Patchilizer) -> float:
    return min(file.size / BYTES_PER_PATCH, patchilizer.patch_length)


def _number(text: str) -> int:
    """A whole number that equal texts share and that other texts do not."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big", signed=True)

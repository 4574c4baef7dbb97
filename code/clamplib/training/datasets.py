"""Items to train and to evaluate on, made from lists of pieces (see pieces) as they are asked for.

An item is asked for as (epoch, index). All its random choices come from a generator seeded by
(seed, epoch, index), so that they depend neither on the number of workers nor on where training resumed.
"""

import hashlib
import logging
import random
from collections.abc import Callable, Sequence
from io import BytesIO

import numpy as np
from torch.utils.data import Dataset

from clamplib.embedding.sequences import audio_frames
from clamplib.files import InputError, read_array, show
from clamplib.formats.patchilizer import M3Patchilizer
from clamplib.training import augment
from clamplib.training.pieces import evaluation_lines
from clamplib.training.shards import File

logger = logging.getLogger(__name__)

BYTES_A_PATCH = 20  # about, in ABC and in MTF; only the order of lengths depends on it
BYTES_A_FLOAT = 4


def item_rng(seed: int, epoch: int, index: int) -> random.Random:
    """The generator of all random choices about one item in one epoch."""
    return random.Random(f"{seed} {epoch} {index}")


def read_text(file: File) -> str:
    """The text of a file; what is not UTF-8 is replaced, with a warning, so that it cannot end a training."""
    data = file.read()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        logger.warning("%s: expected UTF-8, got %s; what is wrong is replaced", show(file.path), error)
        text = data.decode("utf-8-sig", errors="replace")
    return text.replace("\r\n", "\n").replace("\r", "\n")  # as extraction reads it


def read_frames(file: File, size: int) -> np.ndarray:
    """MERT features as frames between two of zeros: float32 [n, size].

    Frames with NaN or infinity in them are left out, with a warning, so that they cannot end a training.
    InputError where the file is no array [..., frames, size].
    """
    try:
        frames = audio_frames(read_array(BytesIO(file.read())), size)
    except InputError as error:
        raise InputError(f"{show(file.path)}: {error}") from error
    finite = np.isfinite(frames).all(axis=1)
    if finite.all():
        return frames
    bad, count = len(finite) - finite.sum(), len(finite) - 2
    logger.warning("%s: left out %d of %d frames, which hold NaN or infinity", show(file.path), bad, count)
    return frames[finite]


class M3Dataset(Dataset):
    """Pieces as masked and original patches."""

    def __init__(
        self,
        pieces: Sequence[dict],
        *,
        patchilizer: M3Patchilizer,
        mask_ratio: float = 0.45,
        training: bool = True,
        seed: int = 42,
    ):
        self.pieces, self.patchilizer, self.mask_ratio = pieces, patchilizer, mask_ratio
        self.training, self.seed = training, seed

    def __len__(self) -> int:
        return len(self.pieces)

    def length(self, epoch: int, index: int) -> float:
        """About how many patches the item has."""
        return _patches(self.pieces[index]["file"].size, self.patchilizer)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, np.ndarray]:
        """Patches as read and as they were, uint8 [n, S], and which are to be reconstructed, bool [n]."""
        epoch, index = item
        rng = item_rng(self.seed, epoch, index)
        patches = self.patchilizer.encode_array(
            read_text(self.pieces[index]["file"]),
            add_special_patches=True,
            truncate=True,
            random_truncate=self.training,
            rng=rng,
        )
        selected = augment.select_patches(len(patches), self.mask_ratio, rng)
        read = augment.corrupt_patches(patches, selected, rng) if self.training else patches
        return {"input_patches": read, "selected_indices": selected, "target_patches": patches}


class CLaMP3Dataset(Dataset):
    """Pieces as a text's tokens and one or two of their files."""

    def __init__(
        self,
        pieces: Sequence[dict],
        *,
        modality: str,
        tokenizer: Callable,
        patchilizer: M3Patchilizer,
        max_text_length: int = 128,
        max_audio_length: int = 128,
        audio_size: int = 768,
        training: bool = True,
        text_dropout: bool = True,
        instrument_dropout: float = 0.9,
        hide_header_ratio: float = 0.0,
        pairs: bool = False,
        seed: int = 42,
    ):
        self.pieces, self.modality = pieces, modality
        self.tokenizer, self.patchilizer = tokenizer, patchilizer
        self.max_text_length, self.max_audio_length = max_text_length, max_audio_length
        self.audio_size = audio_size
        self.training, self.pairs, self.seed = training, pairs, seed
        self.text_dropout = training and text_dropout
        self.instrument_dropout, self.hide_header_ratio = instrument_dropout, hide_header_ratio

    def __len__(self) -> int:
        return len(self.pieces)

    def length(self, epoch: int, index: int) -> float:
        """About how many patches or frames the item's music has."""
        return sum(self._length(file) for file in self._choose_files(index, self._rng(epoch, index)))

    def __getitem__(self, item: tuple[int, int]) -> dict[str, object]:
        """Token ids [n]; a list of one or two pieces of music, patches [n, S] or frames [n, H]; keys [2]."""
        epoch, index = item
        rng = self._rng(epoch, index)
        files = self._choose_files(index, rng)
        lines = self._lines(index, rng)
        return {
            "text": self._tokens(lines, rng),
            "music": [self._music(file, rng) for file in files],
            "index": index,
            "keys": [_number("\n".join(sorted(lines))), _number(self.pieces[index]["id"])],
        }

    def _rng(self, epoch: int, index: int) -> random.Random:
        return item_rng(self.seed, epoch, index)

    def _choose_files(self, index: int, rng: random.Random) -> list[File]:
        """One of the piece's files, or two for pairs: a recording and a score where the modality is audio."""
        files = self.pieces[index]["files"]
        if not self.training:
            return [_evaluation_file(files)]
        if not self.pairs:
            return [files[rng.randrange(len(files))]]
        if self.modality == "audio":
            return [rng.choice(files), rng.choice(self.pieces[index]["scores"])]
        return [files[place] for place in sorted(rng.sample(range(len(files)), 2))] if len(files) > 1 else files * 2

    def _lines(self, index: int, rng: random.Random) -> list[str]:
        piece = self.pieces[index]["fields"]
        return augment.drop_text(piece, rng) if self.text_dropout else evaluation_lines(piece)

    def _tokens(self, lines: list[str], rng: random.Random) -> np.ndarray:
        ids = self.tokenizer(self.tokenizer.sep_token.join(lines), verbose=False)["input_ids"]
        return np.array(self._truncate(ids, self.max_text_length, rng), dtype=np.int64)

    def _truncate(self, sequence, longest: int, rng: random.Random):
        return sequence[augment.random_window(len(sequence), longest, rng) if self.training else slice(longest)]

    def _music(self, file: File, rng: random.Random) -> np.ndarray:
        if _is_audio(file):
            return self._truncate(read_frames(file, self.audio_size), self.max_audio_length, rng)
        text = read_text(file)
        if self.training and rng.random() < self.instrument_dropout:
            text = augment.remove_instrument_info(text)
        if self.training and rng.random() < self.hide_header_ratio:
            text = augment.hide_header(text)
        return self.patchilizer.encode_array(
            text, add_special_patches=True, truncate=True, random_truncate=self.training, rng=rng
        )

    def _length(self, file: File) -> float:
        if _is_audio(file):
            return min(file.size / BYTES_A_FLOAT / self.audio_size, self.max_audio_length)
        return _patches(file.size, self.patchilizer)


def _is_audio(file: File) -> bool:
    return file.path.suffix.lower() == ".npy"


def _evaluation_file(files: Sequence[File]) -> File:
    return next((file for file in files if file.path.suffix.lower() == ".abc"), files[0])


def _patches(size: int, patchilizer: M3Patchilizer) -> float:
    return min(size / BYTES_A_PATCH, patchilizer.patch_length)


def _number(text: str) -> int:
    """A whole number that equal texts share and others do not."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big", signed=True)

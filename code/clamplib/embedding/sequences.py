"""Inputs of the encoders, whole: text, ABC or MTF, and MERT features as sequences of rows.

| input | rows of its sequence | dtype and shape |
| --- | --- | --- |
| .txt | tokens of the unique lines, joined by the separator | int64 [n] |
| .abc .mtf | patches, the special ones included | uint8 [n, patch size] |
| .npy | MERT frames between two of zeros | float32 [n, audio hidden size] |
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from clamplib.files import InputError, check_mert_shape, load_array, show
from clamplib.formats.patchilizer import M3Patchilizer
from clamplib.models.geometry import Geometry

MODALITIES = {".txt": "text", ".abc": "symbolic", ".mtf": "symbolic", ".npy": "audio"}


def text_tokens(text: str, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Tokens of a text's unique non-empty lines, in the order of their first appearance: int64 [n].

    A text without any is the two special tokens, as it was in the published pipeline.
    """
    lines = dict.fromkeys(line for line in text.split("\n") if line)
    return np.array(tokenizer(tokenizer.sep_token.join(lines), verbose=False)["input_ids"], np.int64)


def symbolic_patches(text: str, patchilizer: M3Patchilizer) -> np.ndarray:
    """Patches of interleaved ABC or MTF between the special ones: uint8 [n, patch size]."""
    patches = patchilizer.encode_array(text, add_special_patches=True)
    if len(patches) <= 2:
        raise InputError("expected ABC or MTF text, found no bar, header line or message in it")
    return patches


def audio_frames(features: np.ndarray, size: int) -> np.ndarray:
    """MERT features float32 [..., size] as frames between two of zeros: float32 [n, size]."""
    check_mert_shape(features.shape, size)
    return np.pad(features.reshape(-1, size), ((1, 1), (0, 0)))


class Reader:
    """Reads a file into the sequence that its suffix stands for."""

    def __init__(self, geometry: Geometry, tokenizer: PreTrainedTokenizerBase | None):
        self.audio_size = geometry.audio_hidden_size
        self.patchilizer = M3Patchilizer(geometry.patch_size, geometry.patch_length)
        self.tokenizer = tokenizer

    def __call__(self, path: Path) -> np.ndarray:
        """The file's sequence [n, ...]; InputError names the file."""
        modality = MODALITIES[path.suffix.lower()]
        try:
            if modality == "audio":
                return audio_frames(load_array(path), self.audio_size)
            text = path.read_text(encoding="utf-8-sig")
            if modality == "text":
                return text_tokens(text, self.tokenizer)
            return symbolic_patches(text, self.patchilizer)
        except UnicodeDecodeError as error:
            raise InputError(f"{show(path)}: expected UTF-8 text, got other bytes ({error})") from error
        except InputError as error:
            raise InputError(str(error) if show(path) in str(error) else f"{show(path)}: {error}") from error

    def count_cut(self, rows: np.ndarray) -> int:
        """How many rows are patches that lost their end because a bar was too long."""
        return self.patchilizer.count_cut(rows) if rows.dtype == np.uint8 else 0


def pad(arrays: Sequence[np.ndarray], value: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Arrays [n, ...] as one tensor [B, longest n, ...], and its mask [B, longest n], 1 at data."""
    longest = max(map(len, arrays))
    padded = np.full((len(arrays), longest, *arrays[0].shape[1:]), value, dtype=arrays[0].dtype)
    mask = np.zeros((len(arrays), longest), dtype=np.int64)
    for row, array in enumerate(arrays):
        padded[row, : len(array)] = array
        mask[row, : len(array)] = 1
    return torch.from_numpy(padded), torch.from_numpy(mask)

"""Inputs of the encoders, whole: text, ABC or MTF, and MERT features as sequences of rows.

| input | rows of its sequence | dtype and shape |
| --- | --- | --- |
| .txt | tokens of the unique lines, joined by the separator | int64 [n] |
| .abc .mtf | patches, the special ones included | uint8 [n, patch size] |
| .npy | MERT frames between two of zeros | float32 [n, audio hidden size] |
"""

import math
from typing import TYPE_CHECKING

import numpy as np

from clamplib.files import InputError
from clamplib.formats.patchilizer import M3Patchilizer

if TYPE_CHECKING:  # processes that only read do without it
    from clamplib.models.tokenizer import TextTokenizer

MERT_STATES = 13  # hidden states of MERT-v1-95M


def text_tokens(text: str, tokenizer: "TextTokenizer") -> np.ndarray:
    """Tokens of a text's unique non-empty lines, in the order of their first appearance: int64 [n].

    A text without any is the two special tokens, as it was in the published pipeline. Half characters, which a shell
    makes of words that are not UTF-8, are read as the replacement character.
    """
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
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


def check_mert_shape(shape: tuple[int, ...], size: int) -> None:
    """InputError unless it is [..., frames, size] of the mean of MERT's hidden states, with at least one frame."""
    if not math.prod(shape) or shape[-1:] != (size,):
        raise InputError(f"expected MERT features [1, frames, {size}], got shape {list(shape)}")
    if len(shape) == 3 and shape[0] == MERT_STATES:
        raise InputError(
            f"expected the mean of MERT's {MERT_STATES} hidden states, got each of them: "
            "extract them with --mean_features"
        )

"""Arrays from .npy files, and whether they have the shape of MERT's features."""

import math
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np

from clamplib.files import InputError, show

MERT_STATES = 13  # hidden states of MERT-v1-95M
HEAD_BYTES = 4096  # of a .npy file: more than the header of an array of numbers


def load_array(path: str | Path) -> np.ndarray:
    """The numbers in a .npy file as float32. InputError where it holds anything but finite real numbers."""
    try:
        with open(path, "rb") as file:
            array = read_array(file)
    except InputError as error:
        raise InputError(f"{show(path)}: {error}") from error
    if not np.isfinite(array).all():
        raise InputError(f"{show(path)}: expected finite float32 numbers, got NaN or infinity")
    return array


def read_array(file: BinaryIO) -> np.ndarray:
    """The numbers of an open .npy file as float32, NaN and infinity among them. InputError at no real numbers."""
    try:
        array = np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InputError(f"expected a .npy file of numbers ({error})") from error
    _check_numbers(array.dtype)
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def stated_shape(head: bytes, size: int) -> tuple[int, ...]:
    """The shape in the header of a .npy file of `size` bytes, by the first HEAD_BYTES of them.

    InputError where these are no .npy file of real numbers, or not all of it.
    """
    start = 10 if head[6:7] == b"\x01" else 12  # of the header's text, by the version of the format
    data = start + int.from_bytes(head[8:start], "little")
    shape, dtype = _parse_header(head[:data])
    _check_numbers(dtype)
    expected = data + math.prod(shape) * dtype.itemsize
    if size < expected:
        raise InputError(f"expected {expected} bytes, as shape {list(shape)} takes, got {size}")
    return shape


@lru_cache(maxsize=4096)  # those of a folder of features differ in few numbers
def _parse_header(header: bytes) -> tuple[tuple[int, ...], np.dtype]:
    file = BytesIO(header)
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version[0] == 1 else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    except (ValueError, EOFError) as error:
        raise InputError(f"expected a .npy file of numbers ({error})") from error
    return shape, dtype


def _check_numbers(dtype: np.dtype) -> None:
    if dtype.kind not in "fiu":
        raise InputError(f"expected real numbers, got dtype {dtype}")


def check_mert_shape(shape: tuple[int, ...], size: int) -> None:
    """InputError unless it is [..., frames, size] of the mean of MERT's hidden states, with at least one frame."""
    if not math.prod(shape) or shape[-1:] != (size,):
        raise InputError(f"expected MERT features [1, frames, {size}], got shape {list(shape)}")
    if len(shape) == 3 and shape[0] == MERT_STATES:
        raise InputError(
            f"expected the mean of MERT's {MERT_STATES} hidden states, got each of them: "
            "extract them with --mean_features"
        )

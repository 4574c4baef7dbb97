"""One array from a .npy file."""

from pathlib import Path

import numpy as np

from clamplib.files import InputError, show


def load_array(path: str | Path) -> np.ndarray:
    """The numbers in a .npy file as float32. InputError where it holds anything but finite real numbers."""
    try:
        with open(path, "rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InputError(f"{show(path)}: expected a .npy file of numbers ({error})") from error
    if array.dtype.kind not in "fiu":
        raise InputError(f"{show(path)}: expected real numbers, got dtype {array.dtype}")
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise InputError(f"{show(path)}: expected finite float32 numbers, got NaN or infinity")
    return array

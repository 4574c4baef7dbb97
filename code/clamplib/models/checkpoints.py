"""Files of weights: written whole, read without running code, and checked against a model."""

import errno
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from clamplib.files import InputError, atomic_path, show

PATCH_POSITIONS = "base.embeddings.position_embeddings.weight"  # of the encoder over patches
DAMAGE = (  # what reading damaged weights raises
    SafetensorError,
    UnpicklingError,
    zipfile.BadZipFile,
    RuntimeError,
    EOFError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    AssertionError,
    IndexError,
    OverflowError,
    MemoryError,
)


def save_checkpoint(path: str | Path, state: dict) -> None:
    """Writes a checkpoint whole or not at all. OSError if it cannot be written."""
    with writing_weights(path) as temporary:
        torch.save(state, temporary)


@contextmanager
def writing_weights(path: str | Path) -> Iterator[Path]:
    """`atomic_path`, with an OSError in place of what torch and safetensors raise where the disk is full."""
    try:
        with atomic_path(path) as temporary:
            yield temporary
    except (RuntimeError, SafetensorError) as error:
        raise OSError(f"{show(path)}: expected to write weights, got {error}; is the disk full?") from error


def load_checkpoint(path: str | Path) -> dict:
    """Reads a checkpoint.

    Returns:
        The saved dict, with the entry "model". Its tensors are on the CPU, and are read from the file when used.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: the file is cut off, damaged or not a checkpoint.
    """
    state = _read(Path(path))
    if not isinstance(state, dict) or not isinstance(state.get("model"), dict):
        raise InputError(f'{show(path)}: expected a checkpoint, a dict with the entry "model", got another object')
    return state


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """Reads weights by name from a file in safetensors format, a checkpoint, or a state_dict that torch.save wrote.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: the file is cut off, damaged or something else.
    """
    state = _read(Path(path))
    if isinstance(state, dict) and isinstance(state.get("model"), dict):
        state = state["model"]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError(f"{show(path)}: expected weights, a dict of tensors, got another object")
    return state


def _read(path: Path) -> Any:
    _check_regular(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        zipped = zipfile.is_zipfile(path)
        if zipped:
            _check_stored(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except DAMAGE as error:
        raise _damaged(path, error) from error
    except OSError as error:
        if error.errno == errno.EINVAL:  # torch sought what lies beyond the end
            raise _damaged(path, error) from error
        raise


def _check_regular(path: Path) -> None:
    """Raises InputError for a pipe, a device or a folder, which cannot be read as weights, or not to an end."""
    if path.exists() and not path.is_file():
        raise InputError(f"{show(path)}: expected a file of weights, got something that is not a regular file")


def _check_stored(path: Path) -> None:
    """Raises ValueError if a file of torch.save is compressed, which torch never does: it could grow without limit."""
    with zipfile.ZipFile(path) as archive:
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise ValueError("it is compressed")


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(
        f"{show(path)}: expected a checkpoint or weights, got {path.stat().st_size:,} bytes that are cut off, "
        f"damaged or something else ({type(error).__name__})"
    )


def check_weights(model: nn.Module, path: str | Path) -> None:
    """Checks a file of weights against a model on the device "meta", before memory is taken.

    Of a file in safetensors format only the header is read.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: lists the names and shapes in which the weights and the model differ, or the file is damaged, or
            smaller than the model.
    """
    path = Path(path)
    check_shapes(model, read_shapes(path), path)
    check_bytes(model, path)


def check_bytes(model: nn.Module, path: str | Path) -> None:
    """Raises InputError if a file has less bytes than the model has values, so that it cannot be the model's."""
    values, size = sum(parameter.numel() for parameter in model.parameters()), Path(path).stat().st_size
    if size < values:
        raise InputError(
            f"{show(path)}: expected weights of {values:,} values, as the sizes of the model say, got {size:,} bytes"
        )


def read_shapes(path: str | Path) -> dict[str, list[int]]:
    """Reads the shapes of the weights in a file, by name. The weights themselves are not read from it.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: the file is cut off, damaged or something else.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        return _shapes(read_weights(path))
    _check_regular(path)
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}
    except DAMAGE as error:
        raise _damaged(path, error) from error


def _shapes(state: dict[str, torch.Tensor]) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in state.items()}


def fit_positions(state: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """Fits weights to a model that reads another number of patches.

    Returns:
        The weights with as many positions as the model has: surplus ones are left out, and new ones keep the values
        with which the model begins.
    """
    fitting = dict(state)
    for name, own in model.state_dict().items():
        if name.endswith(PATCH_POSITIONS) and name in state and state[name].shape[1:] == own.shape[1:]:
            rows = min(len(state[name]), len(own))
            fitting[name] = torch.cat([state[name][:rows], own[rows:].to(state[name])])
    return fitting


def load_weights(model: nn.Module, state: dict[str, torch.Tensor], source: str | Path) -> None:
    """Loads weights into a model, strictly.

    Args:
        model: the model.
        state: its weights by name.
        source: what an error calls them.

    Raises:
        InputError: lists the names and shapes in which the weights and the model differ.
    """
    check_shapes(model, _shapes(state), source)
    model.load_state_dict(state)


def check_shapes(model: nn.Module, given: dict[str, list[int]], source: str | Path) -> None:
    """Raises InputError if weights, given their shapes by name, are not those of the model."""
    expected = {name: list(value.shape) for name, value in model.state_dict().items()}
    lines = []
    for name in {**expected, **given}:
        if expected.get(name) != given.get(name):
            lines.append(f"{name}: expected {expected.get(name, 'none')}, got {given.get(name, 'none')}")
    if lines:
        more = f"\n  and {len(lines) - 10} more" if len(lines) > 10 else ""
        raise InputError(
            f"{show(source)}: these weights are of another geometry than the settings say:\n  "
            + "\n  ".join(lines[:10])
            + more
        )

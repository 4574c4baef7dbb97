"""Weights: finding or fetching those of a variant, loading its model, and saving both checkpoints and variants.

A variant is "saas" or "c2" (the published weights), "mini" (which is part of this package), or a folder on this machine
or on the hub (by its name, owner/name):

    config.json         the geometry (Geometry.to_dict)
    model.safetensors   CLaMP 3; weights in half precision are loaded as float32
    m3.safetensors      M3, if the variant has it
    tokenizer.json, tokenizer_config.json
    modules.json        the modules that sentence-transformers makes of the folder
"""

import json
import re
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import huggingface_hub
import torch
from huggingface_hub.errors import HTTPError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from clamplib import __version__
from clamplib.files import InputError, atomic_path, sha256, show
from clamplib.models.encoders import CLaMP3Model, M3Model
from clamplib.models.geometry import Geometry

MINI = Path(__file__).parents[1] / "mini"
CLAMP3_REPO, M3_REPO = "sander-wood/clamp3", "sander-wood/clamp2"
PUBLISHED_SIZES = {  # bytes, by file name; None where the size is not known
    Geometry().clamp3_weights_name("saas"): 2_571_027_658,
    Geometry().clamp3_weights_name("c2"): 2_571_027_658,
    Geometry().m3_weights_name(): None,
}
CONFIG_NAME, CLAMP3_WEIGHTS, M3_WEIGHTS = "config.json", "model.safetensors", "m3.safetensors"
MODULES_NAME = "modules.json"
MODULE_TYPES = {  # for sentence-transformers, by folder; saved variants contain these names, so they never change
    "": "clamplib.embedding.sentence_transformer.CLaMP3Module",
    "1_Normalize": "sentence_transformers.base.modules.normalize.Normalize",
}
PATCH_POSITIONS = "base.embeddings.position_embeddings.weight"  # of the encoder over patches
HUB_NAME, SHA256 = re.compile(r"[\w.-]+/[\w.-]+"), re.compile("[0-9a-f]{64}")
HASHED_AT_ONCE = 100_000_000  # bytes; the hash of a larger file is kept in a file next to it
DAMAGE = (  # what reading damaged weights raises
    SafetensorError,
    UnpicklingError,
    zipfile.BadZipFile,
    RuntimeError,
    EOFError,
    ValueError,
    KeyError,
    TypeError,
)
USE_MINI = "or use --variant mini, which needs no download"


@dataclass
class LoadedModel:
    """A model in evaluation mode.

    Attributes:
        model: CLaMP 3 or M3, in float32 on the CPU.
        tokenizer: that of CLaMP 3's text encoder; None for M3.
        geometry: the sizes of the model.
        space: what identifies the embedding space; see `clamplib.space`.
    """

    model: CLaMP3Model | M3Model
    tokenizer: PreTrainedTokenizerBase | None
    geometry: Geometry
    space: dict


class _NoInit(TorchFunctionMode):
    """Skips the random weights of a new model, 8 s at the published size, because saved ones replace them."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(func, "__name__", None) in ("normal_", "uniform_", "kaiming_uniform_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def save_checkpoint(path: str | Path, state: dict) -> None:
    """Writes a checkpoint whole or not at all."""
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


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
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except DAMAGE as error:
        raise InputError(
            f"{show(path)}: expected a checkpoint or weights, got {path.stat().st_size:,} bytes that are cut off, "
            f"damaged or something else ({type(error).__name__})"
        ) from error


def load_clamp3(
    variant: str | Path,
    *,
    weights_folder: str | Path,
    epoch: int | None = None,
    geometry: Geometry | None = None,
    revision: str | None = None,
) -> LoadedModel:
    """Loads CLaMP 3 and its tokenizer.

    Args:
        variant: a variant (see the top of this module), the name of weights that you train, or a .pth file.
        weights_folder: where weights lie that are not a folder, under the name that the geometry gives them or under
            the short name `weights_clamp3_VARIANT.pth` of the model card. Published ones that are not there are
            fetched.
        epoch: takes the checkpoint `..._N.pth` of that epoch.
        geometry: the sizes of weights that are not a folder. By default they are the published ones.
        revision: a branch, tag or commit of the hub.

    Raises:
        FileNotFoundError: the weights are not there and cannot be fetched; the message says what to do.
        InputError: the weights are damaged or do not fit the geometry.
        ValueError: an epoch is named for a folder.
    """
    folder = variant_folder(variant) or _fetch_folder(str(variant), revision)
    if folder:
        geometry, path = _folder_weights(folder, CLAMP3_WEIGHTS, epoch)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    else:
        geometry = geometry or Geometry()
        names = [geometry.clamp3_weights_name(str(variant)), f"weights_clamp3_{variant}.pth"]
        path = _find_weights(variant, names, weights_folder, epoch, CLAMP3_REPO, revision)
        tokenizer = load_tokenizer(geometry)
    with _NoInit():
        model = CLaMP3Model.from_geometry(geometry)
    return _loaded(model, path, variant, tokenizer, geometry)


def load_m3(
    variant: str | Path,
    *,
    weights_folder: str | Path,
    geometry: Geometry | None = None,
    learning_rate: float = 1e-4,
    batch_size: int = 16,
    mask_ratio: float = 0.45,
) -> LoadedModel:
    """Loads M3, which has no tokenizer.

    Args:
        variant: a folder with M3 in it, a .pth file, or any other name for the weights in `weights_folder`.
        weights_folder: where weights lie that are not a folder. Published ones that are not there are fetched.
        geometry: the sizes of weights that are not a folder. By default they are the published ones.
        learning_rate, batch_size, mask_ratio: settings of the training, which are part of the weights' name.

    Raises:
        FileNotFoundError: the weights are not there and cannot be fetched; the message says what to do.
        InputError: the weights are damaged or do not fit the geometry.
    """
    folder = variant_folder(variant) or _fetch_folder(str(variant), None)
    if folder:
        geometry, path = _folder_weights(folder, M3_WEIGHTS)
    else:
        geometry = geometry or Geometry()
        names = [geometry.m3_weights_name(learning_rate, batch_size, mask_ratio)]
        path = _find_weights(variant, names, weights_folder, None, M3_REPO)
    with _NoInit():
        model = M3Model.from_geometry(geometry)
    return _loaded(model, path, variant, None, geometry)


def save_variant(
    folder: str | Path,
    model: CLaMP3Model,
    tokenizer: PreTrainedTokenizerFast,
    geometry: Geometry,
    m3: M3Model | None = None,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Writes a variant's folder, which `load_clamp3` and `load_m3` then need nothing else for.

    Args:
        folder: the folder; it is made if there is none.
        model: CLaMP 3.
        tokenizer: its tokenizer.
        geometry: its sizes.
        m3: M3, if the variant shall have it.
        dtype: the precision in which weights are saved.
    """
    folder = Path(folder)
    text_config = dict(geometry.text_config or model.text_model.config.to_dict())
    text_config.pop("_name_or_path", None)  # a path on the machine where it was trained
    _write_json(folder / CONFIG_NAME, replace(geometry, text_config=text_config).to_dict())
    modules = []
    for number, (path, type_) in enumerate(MODULE_TYPES.items()):
        modules.append({"idx": number, "name": str(number), "path": path, "type": type_})
    _write_json(folder / MODULES_NAME, modules)
    tokenizer.save_pretrained(folder)
    _write_weights(folder / CLAMP3_WEIGHTS, model, dtype)
    if m3 is not None:
        _write_weights(folder / M3_WEIGHTS, m3, dtype)


def _write_json(path: Path, value: Any) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def _write_weights(path: Path, model: nn.Module, dtype: torch.dtype) -> None:
    state = {name: value.to("cpu", dtype, copy=True) for name, value in model.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(state, temporary)
        temporary.chmod(0o644)  # safetensors makes files that only their owner can read


def variant_folder(variant: str | Path) -> Path | None:
    """Returns the folder of a variant that is a folder on this machine, such as "mini"; None for any other variant."""
    if variant == "mini":
        return MINI
    folder = Path(variant)
    return folder if folder.is_dir() else None


def load_tokenizer(geometry: Geometry) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of the geometry's text model, from its folder, the hub or the hub's cache.

    Raises:
        FileNotFoundError: the tokenizer cannot be fetched.
    """
    name = geometry.text_model_name
    if Path(name).is_dir():
        return PreTrainedTokenizerFast.from_pretrained(name)
    with fetching(f"the tokenizer of {name}", f"Run once with a network, {USE_MINI}."):
        return AutoTokenizer.from_pretrained(name)


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
    expected = {name: list(value.shape) for name, value in model.state_dict().items()}
    given = {name: list(value.shape) for name, value in state.items()}
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
    model.load_state_dict(state)


def _loaded(
    model: CLaMP3Model | M3Model,
    path: Path,
    variant: str | Path,
    tokenizer: PreTrainedTokenizerBase | None,
    geometry: Geometry,
) -> LoadedModel:
    load_weights(model, read_weights(path), path)
    space = {
        "variant": str(variant),
        "weights_sha256": weights_sha256(path),
        "geometry": geometry.to_dict(),
        "abc": geometry.abc or "as found",
        "library": __version__,
    }
    return LoadedModel(model.float().eval(), tokenizer, geometry, space)


def _folder_weights(folder: Path, name: str, epoch: int | None = None) -> tuple[Geometry, Path]:
    """The geometry of a variant's folder, and the path of the weights called `name` in it."""
    if epoch is not None:
        raise ValueError(
            f"expected no epoch for the folder {show(folder)}, which holds one set of weights, got {epoch}"
        )
    for part in (CONFIG_NAME, name):
        if not (folder / part).is_file():
            raise FileNotFoundError(f"{show(folder)}: expected a folder of weights with {part} in it")
    config = folder / CONFIG_NAME
    try:
        return Geometry.from_dict(json.loads(config.read_text(encoding="utf-8"))), folder / name
    except (ValueError, TypeError) as error:
        raise InputError(f"{show(config)}: expected the geometry of a model ({error})") from error


def _find_weights(
    variant: str | Path,
    names: Sequence[str],
    weights_folder: str | Path,
    epoch: int | None,
    repo: str,
    revision: str | None = None,
) -> Path:
    """The first of the named files that is in the folder, else the published file of the first name."""
    if Path(variant).suffix == ".pth":
        return Path(variant)
    folder = Path(weights_folder)
    if epoch is not None:
        names = [f"{Path(names[0]).stem}_{epoch}.pth"]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    if names[0] not in PUBLISHED_SIZES:
        path = show(folder / names[0])
        raise FileNotFoundError(f"{path}: there are no such weights. Train them, put them there, {USE_MINI}.")
    return _fetch_published(repo, names[0], folder, revision)


@contextmanager
def fetching(what: str, remedy: str) -> Iterator[None]:
    """Turns the errors of fetching from the hub into one that says what is missing and what to do.

    Args:
        what: what is fetched; the message begins with it.
        remedy: sentences that say what to do. The message ends with them.

    Raises:
        FileNotFoundError: the block could not fetch it.
    """
    try:
        yield
    except (OSError, ValueError, HTTPError) as error:
        cause = f"{type(error).__name__}: {error}".splitlines()[0]
        raise FileNotFoundError(
            f"{what} is not in the cache of huggingface_hub and could not be fetched ({cause}). {remedy}"
        ) from error


def _fetch_folder(name: str, revision: str | None) -> Path | None:
    """A variant's folder from the hub or its cache, its content checked; None if `name` is not a name of the hub."""
    if not HUB_NAME.fullmatch(name) or name.endswith(".pth"):
        return None
    with fetching(f"{name} is not a folder here,", f"Name a folder of weights, saas or c2, {USE_MINI}."):
        patterns = ["*.json", "*.safetensors"]
        folder = Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=patterns))
    for path in folder.glob("*.safetensors"):
        _check_content(path)
    return folder


def _fetch_published(repo: str, name: str, folder: Path, revision: str | None = None) -> Path:
    """A published file from the hub or its cache, its content checked. An interrupted download is resumed."""
    size = f" ({PUBLISHED_SIZES[name]:,} bytes)" if PUBLISHED_SIZES[name] else ""
    with fetching(f"{name}{size} of the hub's {repo}", f"Put the file into {show(folder)}, {USE_MINI}."):
        path = Path(huggingface_hub.hf_hub_download(repo, name, revision=revision))
    _check_content(path)
    return path


def _check_content(path: Path) -> None:
    """Raises InputError if a file in the hub's cache has another content than the file on the hub.

    The cache keeps a large file under the SHA-256 that the hub states for it.
    """
    stated = path.resolve().name
    if SHA256.fullmatch(stated) and weights_sha256(path) != stated:
        raise InputError(
            f"{show(path)}: expected the content of SHA-256 {stated}, got another: the file is damaged. "
            f"Remove {show(path.resolve())} and run again."
        )


def weights_sha256(path: str | Path) -> str:
    """Computes the SHA-256 of a file. A large file's is kept next to it, in NAME.sha256, until the file changes."""
    path = Path(path)
    stat = path.stat()
    if stat.st_size < HASHED_AT_ONCE:
        return sha256(path)
    kept = path.with_name(path.name + ".sha256")
    state = f"{stat.st_size} {stat.st_mtime_ns}"
    try:
        digest, _, kept_state = kept.read_text().partition(" ")
        if kept_state == state:
            return digest
    except OSError:
        pass
    digest = sha256(path)
    try:
        with atomic_path(kept) as temporary:
            temporary.write_text(f"{digest} {state}")
    except OSError:  # a read-only folder: the file is hashed again next time
        pass
    return digest

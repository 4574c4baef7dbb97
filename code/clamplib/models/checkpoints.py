"""Weights: checkpoints saved and loaded, a variant's weights found (or fetched) and its model loaded.

Three kinds of variant: "saas" and "c2", the published ones; "mini", which lies in this package; and a folder, here or
(as owner/name) on the hub:

    config.json         the geometry (Geometry.to_dict)
    model.safetensors   CLaMP 3, in half precision or not; it is loaded as float32
    m3.safetensors      M3, if there is one
    tokenizer.json, tokenizer_config.json
    modules.json        what sentence-transformers makes of the folder
"""

import json
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import UnpicklingError

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
PUBLISHED_SIZES = {  # bytes, by name; None where it is not known
    Geometry().clamp3_weights_name("saas"): 2_571_027_658,
    Geometry().clamp3_weights_name("c2"): 2_571_027_658,
    Geometry().m3_weights_name(): None,
}
CONFIG, CLAMP3_WEIGHTS, M3_WEIGHTS = "config.json", "model.safetensors", "m3.safetensors"
MODULES = "modules.json"
MODULE_TYPES = {  # for sentence-transformers, by their folders; saved variants carry the names, which never change
    "": "clamplib.embedding.sentence_transformer.CLaMP3Module",
    "1_Normalize": "sentence_transformers.base.modules.normalize.Normalize",
}
PATCH_POSITIONS = "base.embeddings.position_embeddings.weight"  # of the encoder over patches
HUB_NAME, SHA256 = re.compile(r"[\w.-]+/[\w.-]+"), re.compile("[0-9a-f]{64}")
HASHED_AT_ONCE = 100_000_000  # bytes; the hash of a larger file is kept beside it
USE_MINI = "or use --variant mini, which needs no download"


@dataclass
class Loaded:
    """A model in evaluation mode, and `space`: what tells its vectors from another model's."""

    model: CLaMP3Model | M3Model
    tokenizer: PreTrainedTokenizerBase | None
    geometry: Geometry
    space: dict


class _NoInit(TorchFunctionMode):
    """Skips the random weights of a new model, 8 s at the published size: others are loaded at once."""

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
    """Reads a checkpoint, its tensors on the CPU and read from the file as they are used.

    InputError for a file that is cut off, damaged or no checkpoint; FileNotFoundError if there is none.
    """
    path = Path(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (RuntimeError, UnpicklingError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{show(path)}: expected a checkpoint written by torch.save, but these {path.stat().st_size:,} "
            f"bytes are cut off, damaged or something else ({type(error).__name__}). Fetch or train it anew."
        ) from error
    if not isinstance(state, dict) or not isinstance(state.get("model"), dict):
        raise InputError(f'{show(path)}: expected a checkpoint, a dict with the entry "model"')
    return state


def load_clamp3(
    variant: str | Path,
    *,
    weights_folder: str | Path,
    epoch: int | None = None,
    geometry: Geometry | None = None,
    revision: str | None = None,
) -> Loaded:
    """CLaMP 3 with its tokenizer: see the head of this module for `variant`; a .pth file will do too.

    Weights of a variant that is no folder lie in `weights_folder` under the name that the geometry gives them, `epoch`
    picking `..._N.pth`, or under the short name `weights_clamp3_VARIANT.pth` of the model card. Published ones are
    fetched when they are not there, `revision` naming a branch, tag or commit of the hub. Raises FileNotFoundError or
    InputError with what to do next.
    """
    folder = variant_folder(variant) or _fetch_folder(str(variant), revision)
    if folder:
        geometry, path = _folder_weights(folder, CLAMP3_WEIGHTS, epoch)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    else:
        geometry = geometry or Geometry()
        names = (geometry.clamp3_weights_name(str(variant)), f"weights_clamp3_{variant}.pth")
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
) -> Loaded:
    """M3 of a folder (or owner/name), of a .pth file, or else the weights that the settings name; no tokenizer."""
    folder = variant_folder(variant) or _fetch_folder(str(variant), None)
    if folder:
        geometry, path = _folder_weights(folder, M3_WEIGHTS)
    else:
        geometry = geometry or Geometry()
        name = geometry.m3_weights_name(learning_rate, batch_size, mask_ratio)
        path = _find_weights(variant, (name,), weights_folder, None, M3_REPO)
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
    """Writes a folder that `load_clamp3` and `load_m3` take as a variant, complete in itself."""
    folder = Path(folder)
    text_config = dict(geometry.text_config or model.text_model.config.to_dict())
    text_config.pop("_name_or_path", None)  # where it lay when it was trained
    with atomic_path(folder / CONFIG) as temporary:
        config = replace(geometry, text_config=text_config).to_dict()
        temporary.write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    modules = [{"idx": n, "name": str(n), "path": p, "type": t} for n, (p, t) in enumerate(MODULE_TYPES.items())]
    with atomic_path(folder / MODULES) as temporary:
        temporary.write_text(json.dumps(modules, indent=1) + "\n", encoding="utf-8")
    tokenizer.save_pretrained(folder)
    for name, part in ((CLAMP3_WEIGHTS, model), (M3_WEIGHTS, m3)):
        if part is not None:
            with atomic_path(folder / name) as temporary:
                state = {key: value.to("cpu", dtype, copy=True) for key, value in part.state_dict().items()}
                save_file(state, temporary)
                temporary.chmod(0o644)  # safetensors lets nobody else read it


def variant_folder(variant: str | Path) -> Path | None:
    """The folder of a variant that is one, "mini" included."""
    folder = MINI if variant == "mini" else Path(variant)
    return folder if folder.is_dir() or variant == "mini" else None


def load_tokenizer(geometry: Geometry) -> PreTrainedTokenizerBase:
    """The tokenizer of the geometry's text model, from the hub or its cache."""
    try:
        return AutoTokenizer.from_pretrained(geometry.text_model_name)
    except (OSError, ValueError, HTTPError) as error:
        raise FileNotFoundError(
            f"the tokenizer of {geometry.text_model_name} is not in the cache of huggingface_hub and "
            f"could not be fetched ({_first_line(error)}). Run once with a network, {USE_MINI}."
        ) from error


def fit_positions(state: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """Weights for another number of patches: positions that the model has no more go, new ones are as they begin."""
    fitting = dict(state)
    for name, own in model.state_dict().items():
        if name.endswith(PATCH_POSITIONS) and name in state and state[name].shape[1:] == own.shape[1:]:
            rows = min(len(state[name]), len(own))
            fitting[name] = torch.cat([state[name][:rows], own[rows:].to(state[name])])
    return fitting


def load_weights(model: nn.Module, state: dict[str, torch.Tensor], source: str | Path) -> None:
    """Loads weights strictly; an InputError lists the names and shapes in which file and model differ."""
    expected = {name: list(value.shape) for name, value in model.state_dict().items()}
    found = {name: list(value.shape) for name, value in state.items()}
    differing = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
    if differing:
        lines = [f"{n}: expected {expected.get(n, 'none')}, found {found.get(n, 'none')}" for n in differing]
        more = f"\n  and {len(lines) - 10} more" if len(lines) > 10 else ""
        raise InputError(
            f"{show(source)}: these weights are of another geometry than the settings say:\n  "
            + "\n  ".join(lines[:10])
            + more
        )
    model.load_state_dict(state)


def _loaded(model, path: Path, variant: str | Path, tokenizer, geometry: Geometry) -> Loaded:
    load_weights(model, _read_weights(path), path)
    space = {
        "variant": str(variant),
        "weights_sha256": weights_sha256(path),
        "geometry": geometry.to_dict(),
        "library": __version__,
    }
    return Loaded(model.float().eval(), tokenizer, geometry, space)


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix != ".safetensors":
        return load_checkpoint(path)["model"]
    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(f"{show(path)}: expected whole weights in safetensors format ({error})") from error


def _folder_weights(folder: Path, name: str, epoch: int | None = None) -> tuple[Geometry, Path]:
    if epoch is not None:
        raise ValueError(f"epoch {epoch} was asked for, but the folder {show(folder)} holds one set of weights")
    for part in (CONFIG, name):
        if not (folder / part).is_file():
            raise FileNotFoundError(f"{show(folder)}: expected a folder of weights with {part} in it")
    try:
        geometry = Geometry.from_dict(json.loads((folder / CONFIG).read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise InputError(f"{show(folder / CONFIG)}: expected the geometry of a model ({error})") from error
    return geometry, folder / name


def _find_weights(
    variant: str | Path,
    names: Sequence[str],
    weights_folder: str | Path,
    epoch: int | None,
    repo: str,
    revision: str | None = None,
) -> Path:
    """The file under the first of the names that is there, else the published one of the first name."""
    if Path(variant).suffix == ".pth":
        return Path(variant)
    name = names[0]
    path = Path(weights_folder) / name
    if epoch is not None:
        path, names = path.with_stem(f"{path.stem}_{epoch}"), ()
    for found in (path, *(path.with_name(other) for other in names)):
        if found.is_file():
            return found
    if path.name not in PUBLISHED_SIZES:
        raise FileNotFoundError(f"{show(path)}: no such weights. Train them, put them there, {USE_MINI}.")
    return _fetch(repo, name, path.parent, revision)


def _fetch_folder(name: str, revision: str | None) -> Path | None:
    """A variant's folder from the hub or its cache, if `name` is one of the hub's (owner/name); checked as `_fetch`."""
    if not HUB_NAME.fullmatch(name) or name.endswith(".pth"):
        return None
    try:
        files = ["*.json", "*.safetensors"]
        folder = Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=files))
    except (OSError, ValueError, HTTPError) as error:
        raise FileNotFoundError(
            f"{name} is no folder here, and could not be fetched from the hub ({_first_line(error)}). "
            f"Name a folder of weights, saas or c2, {USE_MINI}."
        ) from error
    for path in folder.glob("*.safetensors"):
        _check_content(path)
    return folder


def _fetch(repo: str, name: str, folder: Path, revision: str | None = None) -> Path:
    """A published file from the hub or its cache; resumed where it broke off, its content checked."""
    try:
        return _check_content(Path(huggingface_hub.hf_hub_download(repo, name, revision=revision)))
    except (OSError, HTTPError) as error:
        size = f" ({PUBLISHED_SIZES[name]:,} bytes)" if PUBLISHED_SIZES[name] else ""
        raise FileNotFoundError(
            f"{name}{size} is not in {show(folder)} and could not be fetched from the hub's {repo} "
            f"({_first_line(error)}). Put the file into {show(folder)}, {USE_MINI}."
        ) from error


def _check_content(path: Path) -> Path:
    """The path of a file in the hub's cache. InputError if its content is not the one that the hub has.

    The cache keeps a large file under the SHA-256 that the hub states for it.
    """
    stated = path.resolve().name
    if SHA256.fullmatch(stated) and weights_sha256(path) != stated:
        raise InputError(
            f"{show(path)}: expected the content of SHA-256 {stated}, got another: it is damaged. "
            f"Remove {show(path.resolve())} and run again."
        )
    return path


def weights_sha256(path: str | Path) -> str:
    """SHA-256 of a file; that of a large one is kept beside it, in NAME.sha256, until the file changes."""
    path = Path(path)
    stat = path.stat()
    if stat.st_size < HASHED_AT_ONCE:
        return sha256(path)
    kept, state = path.with_name(path.name + ".sha256"), f"{stat.st_size} {stat.st_mtime_ns}"
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
    except OSError:  # a read-only folder: hashed anew next time
        pass
    return digest


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]

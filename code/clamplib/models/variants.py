"""Variants: loading the model and the tokenizer of one, and writing the folder of one.

A variant is "saas" or "c2" (the published weights), "mini" (which is part of this package), or a folder on this machine
or on the hub (by its name, owner/name):

    config.json         the geometry (Geometry.to_dict)
    model.safetensors   CLaMP 3; weights in half precision are loaded as float32
    m3.safetensors      M3, if the variant has it
    tokenizer.json, tokenizer_config.json
    modules.json        the modules that sentence-transformers makes of the folder

A folder may come from anyone. Code in it is never run, and its sizes are compared with its weights before memory is
taken.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from clamplib import __version__
from clamplib.files import InputError, atomic_path, cause_of, read_object, show
from clamplib.models.checkpoints import check_weights, load_weights, read_weights, weights_sha256, writing_weights
from clamplib.models.encoders import CLaMP3Model, M3Model
from clamplib.models.geometry import CONFIG_NAME, Geometry
from clamplib.models.hub import (
    CLAMP3_REPO,
    HUB_NAME,
    M3_REPO,
    PUBLISHED,
    USE_MINI,
    fetch_file,
    fetch_folder,
    fetching,
)

MINI = Path(__file__).parents[1] / "mini"
CLAMP3_WEIGHTS, M3_WEIGHTS = "model.safetensors", "m3.safetensors"
TOKENIZER_NAME, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
TOKENIZER_BYTES = 1 << 28  # that of a vocabulary of 250,000 has 17 MB
PANIC = "PanicException"  # what the Rust of tokenizers raises, which is not an Exception
MODULES_NAME = "modules.json"
MODULE_TYPES = {  # for sentence-transformers, by folder; saved variants contain these names, so they never change
    "": "clamplib.embedding.sentence_transformer.CLaMP3Module",
    "1_Normalize": "sentence_transformers.base.modules.normalize.Normalize",
}


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
        InputError: a file is damaged, the weights do not fit the geometry, or the tokenizer does not fit the weights.
        ValueError: an epoch is named for a folder.
    """
    folder = variant_folder(variant) or _fetch_variant(str(variant), revision)
    if folder:
        geometry, path = _folder_weights(folder, CLAMP3_WEIGHTS, epoch)
        tokenizer = _read_tokenizer(folder)
    else:
        geometry = geometry or Geometry()
        names = [geometry.clamp3_weights_name(str(variant)), f"weights_clamp3_{variant}.pth"]
        path = _find_weights(variant, names, weights_folder, epoch, CLAMP3_REPO, revision)
        tokenizer = load_tokenizer(geometry)
    model = _load_model(CLaMP3Model.from_geometry, geometry, _stated(folder), path)
    _check_tokenizer(tokenizer, model, folder or geometry.text_model_name)
    _check_positions(model, geometry, _stated(folder))
    return LoadedModel(model, tokenizer, geometry, _space(variant, path, geometry))


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
    folder = variant_folder(variant) or _fetch_variant(str(variant), None)
    if folder:
        geometry, path = _folder_weights(folder, M3_WEIGHTS)
    else:
        geometry = geometry or Geometry()
        names = [geometry.m3_weights_name(learning_rate, batch_size, mask_ratio)]
        path = _find_weights(variant, names, weights_folder, None, M3_REPO)
    model = _load_model(M3Model.from_geometry, geometry, _stated(folder), path)
    return LoadedModel(model, None, geometry, _space(variant, path, geometry))


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
    with writing_weights(path) as temporary:
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
        InputError: the tokenizer is damaged.
    """
    name = geometry.text_model_name
    if Path(name).is_dir():
        return _read_tokenizer(Path(name))
    with fetching(f"the tokenizer of {name}", f"Run once with a network, {USE_MINI}."):
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)


def _read_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Reads the tokenizer in a folder."""
    path = folder / TOKENIZER_NAME
    if not path.is_file():
        raise FileNotFoundError(f"{show(folder)}: expected a folder of a text model with {TOKENIZER_NAME} in it")
    if (size := path.stat().st_size) > TOKENIZER_BYTES:
        raise InputError(f"{show(path)}: expected a tokenizer of at most {TOKENIZER_BYTES:,} bytes, got {size:,}")
    if (folder / TOKENIZER_CONFIG).is_file():
        read_object(folder / TOKENIZER_CONFIG, "a tokenizer's settings")
    try:
        return PreTrainedTokenizerFast.from_pretrained(folder)
    except BaseException as error:
        raise _tokenizer_error(path, error) from error


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, model: CLaMP3Model, source: str | Path) -> None:
    """Raises InputError if a tokenizer cannot encode a text for the model's text encoder."""
    path = Path(source, TOKENIZER_NAME)
    try:
        if not tokenizer.sep_token or tokenizer.pad_token_id is None:
            raise ValueError("its settings name no separator or no padding token")
        tokenizer(tokenizer.sep_token.join("ab"))
        highest = max(tokenizer.get_vocab().values())
    except BaseException as error:
        raise _tokenizer_error(path, error) from error
    words = model.text_model.get_input_embeddings().num_embeddings
    if highest >= words:
        raise InputError(f"{show(path)}: expected tokens below {words}, as the text encoder has, got {highest}")


def _check_positions(model: CLaMP3Model, geometry: Geometry, source: str) -> None:
    """Raises InputError if the text encoder has fewer positions than a segment of text has tokens."""
    positions = getattr(model.text_model.embeddings, "position_embeddings", None)
    if positions is None:  # it reads relative positions
        return
    first = 0 if positions.padding_idx is None else positions.padding_idx + 1
    if geometry.max_text_length > positions.num_embeddings - first:
        raise InputError(
            f"{source}: expected a max_text_length of at most {positions.num_embeddings - first}, as the text encoder "
            f"has positions, got {geometry.max_text_length}"
        )


def _tokenizer_error(path: Path, error: BaseException) -> BaseException:
    """What to raise if a tokenizer fails: InputError, or the error itself if it is none of the tokenizer."""
    if not isinstance(error, Exception) and type(error).__name__ != PANIC:
        return error
    return InputError(f"{show(path)}: expected the tokenizer of a text encoder ({cause_of(error)})")


def _load_model(
    make: Callable[[Geometry], CLaMP3Model | M3Model], geometry: Geometry, source: str, path: Path
) -> CLaMP3Model | M3Model:
    """Makes a model of the geometry, which `source` states, and loads its weights from a file, as float32."""
    try:
        with torch.device("meta"):  # takes no memory
            sketch = make(geometry)
    except InputError:
        raise
    except OSError as error:
        name = show(geometry.text_model_name)
        raise FileNotFoundError(
            f"{source}: its text model {name} is not a folder and could not be fetched ({cause_of(error)})"
        ) from error
    except Exception as error:  # transformers and huggingface_hub raise a dozen kinds
        raise InputError(f"{source}: expected sizes of which a model can be made ({cause_of(error)})") from error
    check_weights(sketch, path)
    with _NoInit():
        model = make(geometry)
    load_weights(model, read_weights(path), path)
    return model.float().eval()


def _stated(folder: Path | None) -> str:
    """Names what states a geometry: the config.json of a folder, or the settings."""
    return show(folder / CONFIG_NAME) if folder else "the settings"


def _space(variant: str | Path, path: Path, geometry: Geometry) -> dict:
    """What identifies the embedding space of a model (see `clamplib.space`)."""
    return {
        "variant": str(variant),
        "weights_sha256": weights_sha256(path),
        "geometry": geometry.to_dict(),
        "abc": geometry.abc or "as found",
        "library": __version__,
    }


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
    values = read_object(config, "a model's geometry")
    try:
        return Geometry.from_dict(values), folder / name
    except ValueError as error:
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
    if (repo, names[0]) not in PUBLISHED:
        path = show(folder / names[0])
        raise FileNotFoundError(f"{path}: there are no such weights. Train them, put them there, {USE_MINI}.")
    size = PUBLISHED[repo, names[0]].size
    stated = f" ({size:,} bytes)" if size else ""
    with fetching(f"{names[0]}{stated} of the hub's {repo}", f"Put the file into {show(folder)}, {USE_MINI}."):
        return fetch_file(repo, names[0], revision)


def _fetch_variant(name: str, revision: str | None) -> Path | None:
    """A variant's folder from the hub or its cache, its content checked; None if `name` is not a name of the hub."""
    if not HUB_NAME.fullmatch(name) or name.endswith(".pth"):
        return None
    with fetching(f"{name} is not a folder here,", f"Name a folder of weights, saas or c2, {USE_MINI}."):
        return fetch_folder(name, revision, ["*.json", "*.safetensors"])  # nothing that could hold code

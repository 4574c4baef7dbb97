"""Reading the model of a variant, and writing the folder of one (see `variants`)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.overrides import TorchFunctionMode

from clamplib.files import InputError, cause_of, show, write_json
from clamplib.models.checkpoints import check_weights, load_weights, read_weights, writing_weights
from clamplib.models.configs import CONFIG_NAME
from clamplib.models.encoders import CLaMP3Model, M3Model
from clamplib.models.geometry import Geometry
from clamplib.models.quantization import quantize
from clamplib.models.tokenizer import TOKENIZER_NAME, TextTokenizer, read_tokenizer
from clamplib.models.variants import CLAMP3_WEIGHTS, M3_WEIGHTS, FoundModel, load_tokenizer

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
    tokenizer: TextTokenizer | None
    geometry: Geometry
    space: dict

    @property
    def m3(self) -> bool:
        """Whether it is M3 and not CLaMP 3."""
        return isinstance(self.model, M3Model)

    def load(self) -> "LoadedModel":
        """Returns itself, so that it can stand where a FoundModel is expected."""
        return self

    def prepare(self, device: torch.device, dtype: torch.dtype | None = None) -> "LoadedModel":
        """Moves the model to a device, and for torch.int8 its blocks into int8. Other types are for `encoding`.

        Returns:
            Itself, or for torch.int8 the same with another model.

        Raises:
            ValueError: int8 was asked for, and cannot be had there.
        """
        self.model.to(device)
        return replace(self, model=quantize(self.model)) if dtype is torch.int8 else self


class _NoInit(TorchFunctionMode):
    """Skips the random weights of a new model, 8 s at the published size, because saved ones replace them."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(func, "__name__", None) in ("normal_", "uniform_", "kaiming_uniform_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def load_model(found: FoundModel) -> LoadedModel:
    """Reads the model and the tokenizer that `variants` has found. Errors are those of `load_clamp3` and `load_m3`."""
    stated = show(found.folder / CONFIG_NAME) if found.folder else "the settings"
    geometry = found.geometry
    if found.m3:
        model = _read_model(M3Model.from_geometry, geometry, stated, found.path)
        return LoadedModel(model, None, geometry, found.space)
    tokenizer = read_tokenizer(found.folder) if found.folder else load_tokenizer(geometry)
    model = _read_model(CLaMP3Model.from_geometry, geometry, stated, found.path)
    _check_tokenizer(tokenizer, model, found.folder or geometry.text_model_name)
    _check_positions(model, geometry, stated)
    return LoadedModel(model, tokenizer, geometry, found.space)


def save_variant(
    folder: str | Path,
    model: CLaMP3Model,
    tokenizer: TextTokenizer,
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
    write_json(folder / CONFIG_NAME, replace(geometry, text_config=text_config).to_dict())
    modules = []
    for number, (path, type_) in enumerate(MODULE_TYPES.items()):
        modules.append({"idx": number, "name": str(number), "path": path, "type": type_})
    write_json(folder / MODULES_NAME, modules)
    tokenizer.save_pretrained(folder)
    _write_weights(folder / CLAMP3_WEIGHTS, model, dtype)
    if m3 is not None:
        _write_weights(folder / M3_WEIGHTS, m3, dtype)


def _write_weights(path: Path, model: nn.Module, dtype: torch.dtype) -> None:
    state = {}
    for name, value in model.state_dict().items():
        state[name] = value.to("cpu", dtype, copy=True).contiguous()
    with writing_weights(path) as temporary:
        save_file(state, temporary)
        temporary.chmod(0o644)  # safetensors makes files that only their owner can read


def _check_tokenizer(tokenizer: TextTokenizer, model: CLaMP3Model, source: str | Path) -> None:
    """Raises InputError if a tokenizer has tokens that the model's text encoder has not."""
    words, highest = model.text_model.get_input_embeddings().num_embeddings, len(tokenizer) - 1
    if highest >= words:
        path = show(Path(source, TOKENIZER_NAME))
        raise InputError(f"{path}: expected tokens below {words}, as the text encoder has, got {highest}")


def _check_positions(model: CLaMP3Model, geometry: Geometry, source: str) -> None:
    """Raises InputError if the text encoder has fewer positions than a segment of text has tokens."""
    embeddings = getattr(model.text_model, "embeddings", None)
    positions = getattr(embeddings, "position_embeddings", None)
    if positions is None:  # it reads relative positions, or is not built like BERT
        return
    first = 0 if positions.padding_idx is None else positions.padding_idx + 1
    if geometry.max_text_length > positions.num_embeddings - first:
        raise InputError(
            f"{source}: expected a max_text_length of at most {positions.num_embeddings - first}, as the text encoder "
            f"has positions, got {geometry.max_text_length}"
        )


def _read_model(
    make: Callable[[Geometry], CLaMP3Model | M3Model], geometry: Geometry, source: str, path: Path
) -> CLaMP3Model | M3Model:
    """Makes a model of the geometry, which `source` states, and loads its weights from a file, as float32."""
    try:
        with torch.device("meta"), _NoInit():  # takes no memory
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
    if isinstance(sketch, M3Model) or any(sketch.buffers()):  # it has tied weights, or values that are not in the file
        with _NoInit():
            model = make(geometry)
    else:
        model = sketch.to_empty(device="cpu")
    load_weights(model, read_weights(path), path)  # copied, because the file may be written over while they are used
    return model.float().eval()

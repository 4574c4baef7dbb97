"""MERT: windows of sound -> hidden states, averaged over time.

MERT-v1-95M (Li et al., "MERT: Acoustic Music Understanding Model with Large-Scale Self-supervised Training", 2023) is
transformers' HubertModel with other weights, so that the code next to them on the hub is not needed and never run. The
weights are licensed under CC-BY-NC-4.0, which does not allow commercial use.

A folder of weights contains

    config.json                                sizes, and `sample_rate`
    model.safetensors or pytorch_model.bin     weights, under the names of old or new versions of torch
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from huggingface_hub.errors import EntryNotFoundError

from clamplib import __version__
from clamplib.audio import WINDOW_SECONDS, Recording, recording_name
from clamplib.audio.decoding import windows
from clamplib.files import InputError, cause_of, read_object, show
from clamplib.models.checkpoints import check_bytes, check_shapes, load_weights, read_weights
from clamplib.models.configs import CONFIG_NAME, check_sizes
from clamplib.models.hub import MERT_REPO, fetch_file, fetching, weights_sha256

if TYPE_CHECKING:
    from transformers import HubertModel

WEIGHTS_NAMES = ("model.safetensors", "pytorch_model.bin")  # the first one that is there
DEFAULT_RATE, MAX_RATE = 24_000, 384_000  # Hz; the first if config.json names none
GPU_WINDOWS, CPU_WINDOWS = 16, 4  # per batch

SIZES = (  # what HubertConfig takes from config.json
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act", "layer_norm_eps"),
    *("conv_dim", "conv_stride", "conv_kernel", "conv_bias", "feat_extract_norm", "feat_extract_activation"),
    *("feat_proj_layer_norm", "num_conv_pos_embeddings", "num_conv_pos_embedding_groups", "do_stable_layer_norm"),
    *("mask_time_prob", "mask_feature_prob"),  # they decide whether there is a vector for masked frames
)
# Switches of other MERT models. HubertModel lacks what they turn on, so that its features would be wrong.
UNSUPPORTED = {
    "feature_extractor_cqt": "a constant-Q transform in addition to the waveform",
    "deepnorm": "DeepNorm's scaled residuals",
    "attention_relax": "relaxed attention",
}
RENAMED = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}


@dataclass
class Mert:
    """MERT in evaluation mode.

    Attributes:
        model: the model.
        rate: the sample rate in Hz that it expects.
        space: what identifies its features; see `clamplib.space`.
    """

    model: "HubertModel"
    rate: int
    space: dict

    @property
    def shortest(self) -> int:
        """The fewest samples from which the convolutions make a frame."""
        config = self.model.config
        samples = 1
        for kernel, stride in zip(config.conv_kernel[::-1], config.conv_stride[::-1], strict=True):
            samples = (samples - 1) * stride + kernel
        return samples

    @property
    def read(self) -> Callable[[Recording], Iterator[np.ndarray]]:
        """A function from a recording to its windows float32 [n], normalized as MERT expects.

        It can be sent to other processes. It raises InputError for a recording that cannot be read or is too short.
        """
        return partial(_read_windows, rate=self.rate, shortest=self.shortest)

    def encode(self, waves: np.ndarray, mean: bool = False) -> np.ndarray:
        """Computes the time average of each hidden state.

        Args:
            waves: normalized windows of equal length, float32 [B, n].
            mean: averages the hidden states too.

        Returns:
            float32 [B, layers + 1, H], or [B, 1, H] with `mean`.
        """
        with torch.inference_mode():
            states = self.hidden_states(torch.from_numpy(waves))
            averages = torch.stack([state.mean(1) for state in states], 1)
            if mean:
                averages = averages.mean(1, keepdim=True)
        return averages.float().cpu().numpy()

    def hidden_states(self, waves: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Computes the hidden states.

        Args:
            waves: normalized windows of equal length [B, n].

        Returns:
            The layers + 1 hidden states, [B, frames, H] each, on the model's device.
        """
        inputs = waves.to(self.model.device, self.model.dtype)
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # TF32 would round the waveform
            return self.model(inputs, output_hidden_states=True).hidden_states

    @property
    def batch_size(self) -> int:
        """A number of windows per batch that suits the device."""
        return CPU_WINDOWS if self.model.device.type == "cpu" else GPU_WINDOWS


@dataclass(frozen=True)
class FoundMert:
    """MERT whose weights are not read yet.

    Attributes:
        config_path: the file of its sizes.
        path: the file of its weights.
        rate: the sample rate in Hz that it expects.
        space: what identifies its features; see `clamplib.space`. Its geometry are the sizes.
    """

    config_path: Path
    path: Path
    rate: int
    space: dict

    def load(self) -> Mert:
        """Reads the weights. Errors are those of `load_mert`."""
        from transformers import HubertConfig, HubertModel

        path = self.path
        try:
            with torch.device("meta"):  # takes no memory
                model = HubertModel(HubertConfig(**self.space["geometry"]))
        except Exception as error:  # transformers, huggingface_hub and torch raise a dozen kinds
            name = show(self.config_path)
            raise InputError(f"{name}: expected the sizes of a MERT model ({cause_of(error)})") from error
        state = _in_new_names(read_weights(path))
        check_shapes(model, {name: list(value.shape) for name, value in state.items()}, path)
        check_bytes(model, path)
        load_weights(model.to_empty(device="cpu"), state, path)
        return Mert(model.float().eval(), self.rate, self.space)


def load_mert(model_path: str | Path = MERT_REPO) -> Mert:
    """Loads MERT.

    Args:
        model_path: a folder of weights, or its name on the hub.

    Raises:
        FileNotFoundError: the weights are not there and cannot be fetched; the message says what to do.
        InputError: the config needs what HubertModel lacks, or the weights are damaged or differ from the config in
            a name or a shape.
    """
    return find_mert(model_path).load()


def find_mert(model_path: str | Path = MERT_REPO) -> FoundMert:
    """Finds the weights of MERT, and reads their config.

    Args:
        model_path: a folder of weights, or its name on the hub.

    Raises:
        FileNotFoundError: the weights are not there and cannot be fetched; the message says what to do.
        InputError: the config is damaged, or needs what HubertModel lacks.
    """
    config_path, path = _find_files(model_path)
    config = _read_config(config_path)
    space = {
        "kind": "mert",
        "variant": str(model_path),
        "weights_sha256": weights_sha256(path),
        "geometry": {name: config[name] for name in SIZES if name in config},
        "library": __version__,
    }
    return FoundMert(config_path, path, config.get("sample_rate", DEFAULT_RATE), space)


def _read_windows(recording: Recording, rate: int, shortest: int, normalize: bool = True) -> Iterator[np.ndarray]:
    for window in windows(recording, rate, WINDOW_SECONDS, normalize=normalize):
        if len(window) < shortest:
            message = f"expected {shortest / rate * 1000:.0f} ms of sound or more, got {len(window) / rate * 1000:.0f}"
            raise InputError(f"{recording_name(recording)}: {message}")
        yield window


def _find_files(model_path: str | Path) -> tuple[Path, Path]:
    """The paths of config.json and of the weights."""
    folder = Path(model_path)
    if folder.is_dir():
        for name in WEIGHTS_NAMES:
            if (folder / CONFIG_NAME).is_file() and (folder / name).is_file():
                return folder / CONFIG_NAME, folder / name
        raise FileNotFoundError(f"{show(folder)}: expected {CONFIG_NAME} and {' or '.join(WEIGHTS_NAMES)} in it")
    remedy = (
        f"Run once with a network, or put {CONFIG_NAME} and {WEIGHTS_NAMES[-1]} of {MERT_REPO} (about 380 MB; "
        "license CC-BY-NC-4.0) into a folder and give it as --model_path."
    )
    with fetching(f"{show(model_path)} is not a folder,", remedy):
        return fetch_file(str(model_path), CONFIG_NAME), _fetch_weights(str(model_path))


def _fetch_weights(repo: str) -> Path:
    try:
        return fetch_file(repo, WEIGHTS_NAMES[0])
    except EntryNotFoundError:
        return fetch_file(repo, WEIGHTS_NAMES[1])


def _read_config(path: Path) -> dict:
    config = read_object(path, "a MERT model")
    try:
        check_sizes(config)
        rate = config.get("sample_rate", DEFAULT_RATE)
        if type(rate) is not int or not 0 < rate <= MAX_RATE:
            raise ValueError(f"sample_rate must be a whole number from 1 to {MAX_RATE}, not {rate!r}")
        strides = config.get("conv_stride", [1])  # nothing in the weights depends on them
        if not isinstance(strides, list) or any(type(stride) is not int or stride < 1 for stride in strides):
            raise ValueError(f"conv_stride must be whole numbers above 0, not {strides!r}")
    except ValueError as error:
        raise InputError(f"{show(path)}: expected the sizes of a MERT model ({error})") from error
    for name, feature in UNSUPPORTED.items():
        value = config.get(name)
        if value and value != -1:  # attention_relax is -1 if it is off
            raise InputError(
                f"{show(path)}: this model needs {feature} ({name}: {value}), which is not supported. "
                f"CLaMP 3 was trained on the features of {MERT_REPO}."
            )
    return config


def _in_new_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Renames the two parts of a normalized weight as torch calls them today."""
    renamed = {}
    for name, value in state.items():
        stem, dot, part = name.rpartition(".")
        renamed[stem + dot + RENAMED.get(part, part)] = value
    return renamed

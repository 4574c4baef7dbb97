"""MERT: windows of sound -> hidden states, averaged over time.

MERT-v1-95M (Li et al., "MERT: Acoustic Music Understanding Model with Large-Scale Self-supervised Training", 2023)
is transformers' HubertModel with weights of its own, so none of the code that lies beside them on the hub is run.
Its weights are under CC-BY-NC-4.0: not for commercial use.

A folder of weights holds

    config.json                                sizes, and `sample_rate`
    pytorch_model.bin or model.safetensors     weights, under the names of old or new versions of torch
"""

import json
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pickle import UnpicklingError

import huggingface_hub
import numpy as np
import torch
from huggingface_hub.errors import HTTPError
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import HubertConfig, HubertModel

from clamplib import __version__
from clamplib.audio import Recording, recording_name
from clamplib.audio.decoding import windows
from clamplib.files import InputError, show
from clamplib.models.checkpoints import load_weights, weights_sha256

MERT_REPO = "m-a-p/MERT-v1-95M"
CONFIG, WEIGHTS = "config.json", ("model.safetensors", "pytorch_model.bin")
RATE = 24_000  # Hz, where config.json names none
SECONDS = 5.0  # a window
GPU_BATCH_SIZE, CPU_BATCH_SIZE = 16, 4

SIZES = (  # what HubertConfig takes from config.json
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act", "layer_norm_eps"),
    *("conv_dim", "conv_stride", "conv_kernel", "conv_bias", "feat_extract_norm", "feat_extract_activation"),
    *("feat_proj_layer_norm", "num_conv_pos_embeddings", "num_conv_pos_embedding_groups", "do_stable_layer_norm"),
    *("mask_time_prob", "mask_feature_prob"),  # they decide whether there is a vector for masked frames
)
# Switches of other MERT models: what they add is no part of HubertModel, whose numbers would be wrong.
FOREIGN = {
    "feature_extractor_cqt": "a constant-Q transform beside the waveform",
    "deepnorm": "DeepNorm's scaled residuals",
    "attention_relax": "relaxed attention",
}
RENAMED = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}


@dataclass
class Mert:
    """The model in evaluation mode, the sample rate (Hz) it is for, and what tells its features from another's."""

    model: HubertModel
    rate: int
    space: dict

    @property
    def shortest(self) -> int:
        """The fewest samples that the convolutions make a frame of."""
        config, samples = self.model.config, 1
        for kernel, stride in zip(config.conv_kernel[::-1], config.conv_stride[::-1], strict=True):
            samples = (samples - 1) * stride + kernel
        return samples

    @property
    def read(self) -> Callable[[Recording], Iterator[np.ndarray]]:
        """A recording -> its windows float32 [n], normalized as MERT expects; it can be sent to other processes."""
        return partial(_read, rate=self.rate, shortest=self.shortest)

    def encode(self, waves: np.ndarray, mean: bool = False) -> np.ndarray:
        """Windows of equal length float32 [B, n] -> the time average of each hidden state float32 [B, layers + 1, H].

        `mean` averages the states too: [B, 1, H].
        """
        with torch.inference_mode():
            averages = torch.stack([state.mean(1) for state in self.hidden_states(torch.from_numpy(waves))], 1)
            if mean:
                averages = averages.mean(1, keepdim=True)
        return averages.float().cpu().numpy()

    def hidden_states(self, waves: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Windows of equal length [B, n] -> the layers + 1 hidden states [B, frames, H], on the model's device."""
        inputs = waves.to(self.model.device, self.model.dtype)
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # cuDNN would round what it convolves
            return self.model(inputs, output_hidden_states=True).hidden_states

    @property
    def batch_size(self) -> int:
        """Windows in a batch that suit the device."""
        return CPU_BATCH_SIZE if self.model.device.type == "cpu" else GPU_BATCH_SIZE


def load_mert(model_path: str | Path = MERT_REPO) -> Mert:
    """MERT from a folder, or from the hub or its cache by name.

    FileNotFoundError that says what to do where there is none; InputError for a config that asks for more than
    HubertModel has, and for weights that are damaged or do not fit the config to the last name and shape.
    """
    config_path, path = _find(model_path)
    config = _read_config(config_path)
    sizes = {name: config[name] for name in SIZES if name in config}
    with torch.device("meta"):  # no random weights: others are loaded at once
        model = HubertModel(HubertConfig(**sizes))
    load_weights(model.to_empty(device="cpu"), _read_weights(path), path)
    space = {
        "kind": "mert",
        "variant": str(model_path),
        "weights_sha256": weights_sha256(path),
        "geometry": sizes,
        "library": __version__,
    }
    return Mert(model.float().eval(), config.get("sample_rate", RATE), space)


def _read(recording: Recording, rate: int, shortest: int, normalize: bool = True) -> Iterator[np.ndarray]:
    for window in windows(recording, rate, SECONDS, normalize=normalize):
        if len(window) < shortest:
            message = f"expected {shortest / rate * 1000:.0f} ms of sound or more, got {len(window) / rate * 1000:.0f}"
            raise InputError(f"{recording_name(recording)}: {message}")
        yield window


def _find(model_path: str | Path) -> tuple[Path, Path]:
    """config.json and the weights."""
    folder = Path(model_path)
    if folder.is_dir():
        config, weights = folder / CONFIG, [folder / name for name in WEIGHTS if (folder / name).is_file()]
        if not config.is_file() or not weights:
            raise FileNotFoundError(f"{show(folder)}: expected {CONFIG} and {' or '.join(WEIGHTS)} in it")
        return config, weights[0]
    try:
        return _fetch(str(model_path), CONFIG), _fetch(str(model_path), *WEIGHTS)
    except (OSError, ValueError, HTTPError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise FileNotFoundError(
            f"{show(model_path)} is no folder, is not in the cache of huggingface_hub and could not be fetched "
            f"({reason}). Run once with a network, or put {CONFIG} and {WEIGHTS[-1]} of {MERT_REPO} (about 380 MB; "
            "license CC-BY-NC-4.0) into a folder and give it as --model_path."
        ) from error


def _fetch(repo: str, *names: str) -> Path:
    """The first of the files that the repository has, from the hub or its cache."""
    for name in names[:-1]:
        try:
            return Path(huggingface_hub.hf_hub_download(repo, name))
        except huggingface_hub.errors.EntryNotFoundError:
            continue
    return Path(huggingface_hub.hf_hub_download(repo, names[-1]))


def _read_config(path: Path) -> dict:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{show(path)}: expected the JSON of a MERT model ({error})") from error
    for name, what in FOREIGN.items():
        value = config.get(name)
        if value and value != -1:  # attention_relax is -1 where it is off
            raise InputError(
                f"{show(path)}: this model needs {what} ({name}: {value}), which is not supported. "
                f"CLaMP 3 was trained on the features of {MERT_REPO}."
            )
    return config


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The weights, by the names that today's torch gives the parts of a normalized weight."""
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
            raise TypeError("not a dict of tensors")
        parts = {name: name.rpartition(".") for name in state}
        return {stem + dot + RENAMED.get(last, last): state[name] for name, (stem, dot, last) in parts.items()}
    except (SafetensorError, RuntimeError, UnpicklingError, EOFError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{show(path)}: expected weights, but these {path.stat().st_size:,} bytes are cut off, damaged or "
            f"something else ({type(error).__name__})"
        ) from error

"""MERT as a torch module, under the name that other programs import."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from clamplib.audio.decoding import VARIANCE_FLOOR
from clamplib.audio.mert import load_mert
from clamplib.files import InputError, show

REDUCTIONS = ("mean", "max", "none")


class HuBERTFeature(nn.Module):
    """Turns normalized sound into the hidden states of MERT.

    The weights are frozen: they get no gradient unless `requires_grad_()` asks for it.

    Args:
        model_path: a folder of weights, or a name on the hub.
        sample_rate: the rate in Hz of the sound that the caller has; it must be the model's own.
        force_half: turns the weights into float16. The model then computes in float16 on every device, which takes
            half the memory and is less exact. Inputs may be float32, and outputs are float32.
        processor_normalize: whether `process_wav` and `mert_infr_features` normalize the sound, as MERT expects.

    Raises:
        FileNotFoundError: the weights are not there and cannot be fetched.
        InputError: the weights are damaged or differ from their config, or the model expects another sample rate.
    """

    def __init__(
        self, model_path: str | Path, sample_rate: int, force_half: bool = False, processor_normalize: bool = True
    ):
        super().__init__()
        self.mert = load_mert(model_path)
        if sample_rate != self.mert.rate:
            raise InputError(f"{show(model_path)}: expected a sample rate of {self.mert.rate} Hz, got {sample_rate}")
        self.model = self.mert.model.requires_grad_(False)  # self.mert encodes with this same model
        if force_half:
            self.model.half()
        self.sample_rate = sample_rate
        self.processor_normalize = processor_normalize

    def process_wav(self, waveform: torch.Tensor | np.ndarray) -> torch.Tensor:
        """Prepares a whole recording for `forward`.

        Args:
            waveform: mono sound [n] or [1, n] at the model's sample rate.

        Returns:
            float32 [1, n]. It has zero mean and unit variance if `processor_normalize` is set.

        Raises:
            InputError: the sound is empty or has several channels.
        """
        wave = torch.atleast_2d(torch.as_tensor(waveform, dtype=torch.float32))
        if wave.ndim != 2 or len(wave) != 1 or not wave.numel():
            raise InputError(f"expected mono sound [n] or [1, n], got {list(wave.shape)}")
        if self.processor_normalize:
            wave = (wave - wave.mean()) / (wave.var(correction=0) + VARIANCE_FLOOR).sqrt()
        return wave

    def forward(self, input_values: torch.Tensor, layer: int | None = None, reduction: str = "mean") -> torch.Tensor:
        """Computes hidden states. Layer 0 is the input of the first transformer layer.

        Args:
            input_values: windows of equal length [B, n], from `process_wav`.
            layer: the one hidden state to return; by default all of them.
            reduction: "mean" averages the frames T, "max" takes their maximum, "none" keeps them.

        Returns:
            float32 [layers + 1, B, H], or [layers + 1, B, T, H] with "none"; for one layer [B, H] or [B, T, H].

        Raises:
            ValueError: the reduction is unknown.
        """
        if reduction not in REDUCTIONS:
            raise ValueError(f"expected a reduction of {', '.join(REDUCTIONS)}, got {reduction}")
        states = self.mert.hidden_states(input_values)
        states = torch.stack(states) if layer is None else states[layer]
        if reduction == "mean":
            states = states.mean(-2)
        elif reduction == "max":
            states = states.amax(-2)
        return states.float()

"""Recordings as tensors, under the name that other programs import."""

import numpy as np
import torch
from torch.nn.functional import pad as pad_with

from clamplib.audio import Recording
from clamplib.audio.decoding import samples


def load_audio(
    file_path: Recording,
    target_sr: int,
    is_mono: bool = True,
    is_normalize: bool = False,
    crop_to_length_in_sec: float | None = None,
    crop_to_length_in_sample_points: int | None = None,
    crop_randomly: bool = False,
    pad: bool = False,
    return_start: bool = False,
    device: torch.device | str = "cpu",
) -> torch.Tensor | tuple[torch.Tensor, int]:
    """Reads a recording at a sample rate.

    Args:
        file_path: a path, or anything else that a recording may be.
        target_sr: the sample rate in Hz.
        is_mono: averages the channels. Recordings are not read in any other way.
        is_normalize: divides the whole recording by its largest absolute value; silence stays silence.
        crop_to_length_in_sec: the largest length of the result in seconds.
        crop_to_length_in_sample_points: the same in samples.
        crop_randomly: crops at a random place, drawn by torch, instead of at the start.
        pad: fills up a recording that is shorter than this length with zeros at its end.
        return_start: also returns the number of the sample at which the crop starts.
        device: the device of the result.

    Returns:
        float32 [1, n], or with `return_start` a pair of it and the number of its first sample.

    Raises:
        InputError: the file cannot be decoded, has no samples, or has samples that are NaN or infinite.
        ValueError: several channels are asked for, both lengths are given, or a length is under one sample.
    """
    if not is_mono:
        raise ValueError("expected is_mono=True: recordings are read as mono only")
    length = crop_to_length_in_sample_points
    start = 0
    if crop_to_length_in_sec is not None:
        if length is not None:
            raise ValueError("expected one length to crop to, got one in seconds and one in samples")
        length = round(crop_to_length_in_sec * target_sr)
    if length is not None and length < 1:
        raise ValueError(f"expected a length of 1 sample or more, got {length}")

    wave = torch.from_numpy(np.concatenate(list(samples(file_path, target_sr))))[None]
    if is_normalize:
        wave /= wave.abs().max().clamp_min(torch.finfo(wave.dtype).tiny)
    if length is not None:
        if crop_randomly:
            start = int(torch.randint(max(0, wave.shape[1] - length) + 1, ()))
        wave = wave[:, start : start + length]
        if pad:
            wave = pad_with(wave, (0, length - wave.shape[1]))
    wave = wave.to(device)
    return (wave, start) if return_start else wave

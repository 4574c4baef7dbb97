"""Encoders in int8: the linear layers of their blocks multiply whole numbers, which a CPU does several times faster.

A weight is rounded once, by a scale per output. The rows that go into a layer are rounded as they come, each by a scale
of its own. The rest of the model stays in float32. This is for encoding: nothing here can be trained or saved.
"""

import copy
import platform

import torch
from torch import nn

from clamplib.models.bert import Layer

LARGEST = 127  # of int8; -128 is not used, so that the scale has no offset
LARGEST_OF_SUMS = 64  # of weights, where a CPU adds two products of 8 bits in 16 bits, and cuts what exceeds them


class Int8Linear(nn.Module):
    """A linear layer [..., K] to [..., N] with weights in int8."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        weight = linear.weight.detach()
        self.scales = (weight.abs().amax(1) / largest_weight()).clamp_min(torch.finfo(torch.float32).tiny)
        rounded = (weight / self.scales[:, None]).round().to(torch.int8)
        self.packed = torch.ops.onednn.qlinear_prepack(rounded, None)
        self.offsets = torch.zeros(len(weight), dtype=torch.int64)
        self.bias = linear.bias.detach()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        rows = inputs.flatten(0, -2)
        scales = torch.linalg.vector_norm(rows, torch.inf, dim=-1, keepdim=True) / LARGEST
        scales = scales.clamp_min(torch.finfo(torch.float32).tiny)
        rounded = (rows / scales).round_().to(torch.int8)
        output = torch.ops.onednn.qlinear_pointwise(
            *(rounded, 1.0, 0),  # with their scale and offset
            *(self.packed, self.scales, self.offsets),
            None,  # no bias yet, because the rows are not scaled
            *(1.0, 0, torch.float32),  # the output, which is not rounded
            *("none", [], ""),  # no function after it
        )
        return output.mul_(scales).add_(self.bias).unflatten(0, inputs.shape[:-1])


def largest_weight() -> int:
    """Returns what the largest weight of an output is rounded to, so that this CPU's products are exact."""
    sums = platform.machine() in ("x86_64", "AMD64") and not torch.cpu._is_vnni_supported()
    return LARGEST_OF_SUMS if sums else LARGEST


def quantize(model: nn.Module) -> nn.Module:
    """Returns a model whose encoders have their blocks in int8. It shares its other weights with the given one.

    Args:
        model: on the CPU, in float32. Encoders that are not a `bert.Bert` stay as they are.

    Raises:
        ValueError: the model is not on a CPU, or torch cannot multiply int8 on this one.
    """
    device = next(model.parameters()).device
    if device.type != "cpu":
        raise ValueError(f"expected the CPU for the precision int8, got {device.type}; take bfloat16 or float16 there")
    if not hasattr(torch.ops.onednn, "qlinear_pointwise"):
        raise ValueError("torch cannot multiply int8 on this CPU; take float32")
    linears = []
    for block in model.modules():
        if isinstance(block, Layer):
            linears += [module for module in block.modules() if isinstance(module, nn.Linear)]
    shared = {id(parameter): parameter for parameter in model.parameters()}
    return copy.deepcopy(model, shared | {id(linear): Int8Linear(linear) for linear in linears})

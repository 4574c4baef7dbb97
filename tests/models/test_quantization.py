"""Encoders in int8: their error, what stays as it is, and what is refused."""

import pytest
import torch
from torch import nn

from clamplib.models.quantization import Int8Linear, quantize


def test_a_layer_is_close_to_its_float_one():
    torch.manual_seed(0)
    linear = nn.Linear(96, 64)
    inputs = torch.randn(3, 5, 96) * torch.tensor([1e-3, 1, 1e3])[:, None, None]  # each row has a scale of its own
    found, expected = Int8Linear(linear)(inputs), linear(inputs)
    assert found.shape == expected.shape
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() < 0.02 * other.norm()


def test_the_largest_numbers_are_not_cut():
    """Without VNNI, a CPU adds two products in 16 bits. Weights of 127 exceed them, and were wrong by all they were."""
    linear = nn.Linear(96, 64)
    nn.init.constant_(linear.weight, 0.5)
    inputs = torch.ones(4, 96)
    torch.testing.assert_close(Int8Linear(linear)(inputs), linear(inputs))


def test_zeros_give_the_bias():
    linear = nn.Linear(8, 4)
    nn.init.zeros_(linear.weight)
    torch.testing.assert_close(Int8Linear(linear)(torch.randn(2, 8)), linear.bias.expand(2, 4))
    linear = nn.Linear(8, 4)
    torch.testing.assert_close(Int8Linear(linear)(torch.zeros(2, 8)), linear.bias.expand(2, 4))


@torch.inference_mode()
def test_features_are_close_and_the_model_stays(tiny_clamp3):
    before = {name: value.clone() for name, value in tiny_clamp3.state_dict().items()}
    model = quantize(tiny_clamp3)
    torch.manual_seed(0)
    patches, masks = torch.randint(0, 128, (4, 20, 64)), torch.ones(4, 20)
    for get in ("get_symbolic_features", "get_text_features", "get_audio_features"):
        inputs = {"get_symbolic_features": patches, "get_text_features": patches[..., 0] % 100 + 4}
        inputs = inputs.get(get, torch.randn(4, 20, 128))
        found, expected = (getattr(one, get)(inputs, masks, get_global=True) for one in (model, tiny_clamp3))
        assert torch.cosine_similarity(found, expected).min() > 0.999
        assert not torch.equal(found, expected)
    assert model.text_proj.weight is tiny_clamp3.text_proj.weight
    state = tiny_clamp3.state_dict()
    assert all(torch.equal(state[name], value) for name, value in before.items())


def test_only_a_cpu(tiny_clamp3):
    with torch.device("meta"), pytest.raises(ValueError, match="expected the CPU for the precision int8, got meta"):
        quantize(nn.Linear(2, 2))

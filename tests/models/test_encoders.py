"""M3 and CLaMP 3: golden losses, gradients and features, padding, freezing, and the filling of masked bars."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clamplib.formats.patchilizer import M3Patchilizer
from clamplib.models.encoders import PARTS, CLaMP3Model, M3Model, PatchEmbedding, masked_mean

GOLDEN = Path(__file__).parents[1] / "golden"
LOSSES = json.loads((GOLDEN / "model/losses/losses.json").read_text())
PIECES = sorted(path for kind in ("abc", "mtf") for path in (GOLDEN / "model/in" / kind).iterdir())


def load_arrays(name):
    with np.load(GOLDEN / name) as arrays:
        return {key: torch.as_tensor(value) for key, value in arrays.items()}


def assert_grad_norms(model, expected):
    parameters = dict(model.named_parameters())
    norms = {name: parameters[name].grad.norm().item() for name in expected}
    assert norms == pytest.approx(expected, rel=1e-3)


def read_patches(path):
    text = path.read_bytes().decode("utf-8")
    patches = M3Patchilizer().encode_array(text, add_special_patches=True)
    return torch.from_numpy(patches)[None]


@pytest.mark.parametrize("modality", ["symbolic", "audio"])
def test_clamp3_loss_gradients_and_features_equal_golden(modality, tiny_clamp3):
    batch, expected = load_arrays(f"model/losses/clamp3_{modality}.npz"), LOSSES[modality]
    inputs = [batch[name] for name in ("text_inputs", "text_masks", "music_inputs", "music_masks")]
    loss = tiny_clamp3(*inputs, modality)
    loss.backward()
    assert loss.item() == pytest.approx(expected["loss"], abs=1e-4)
    assert_grad_norms(tiny_clamp3, expected["grad_norms"])
    assert sum(p.grad is None for p in tiny_clamp3.parameters()) == expected["n_params_without_grad"]
    text = tiny_clamp3.get_text_features(*inputs[:2], get_global=True)
    music = getattr(tiny_clamp3, f"get_{modality}_features")(*inputs[2:], get_global=True)
    torch.testing.assert_close(text, batch["text_global"], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(music, batch["music_global"], atol=2e-5, rtol=1e-4)


def test_m3_loss_and_gradients_equal_golden(tiny_m3):
    batch, expected = load_arrays("model/losses/m3.npz"), LOSSES["m3"]
    names = ("input_patches", "input_masks", "selected_indices", "target_patches")
    output = tiny_m3(*(batch[name] for name in names))
    output.loss.backward()
    assert output.loss.item() == pytest.approx(expected["loss"], abs=1e-4)
    assert len(output.logits) == expected["n_selected"]
    torch.testing.assert_close(output.logits[0], batch["logits_first_selected"], atol=2e-5, rtol=1e-4)
    assert_grad_norms(tiny_m3, expected["grad_norms"])


def test_m3_loss_is_the_same_in_training(tiny_m3):
    batch, expected = load_arrays("model/losses/m3.npz"), LOSSES["m3"]
    for module in tiny_m3.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        module.training = True
    names = ("input_patches", "input_masks", "selected_indices", "target_patches")
    output = tiny_m3(*(batch[name] for name in names), with_logits=False)
    output.loss.backward()
    assert output.logits is None
    assert output.loss.item() == pytest.approx(expected["loss"], abs=1e-4)
    assert_grad_norms(tiny_m3, expected["grad_norms"])


@torch.inference_mode()
def test_symbolic_features_equal_golden(tiny_clamp3, tiny_m3):
    vectors = load_arrays("model/expected_clamp3_global.npz")
    states = load_arrays("model/expected_clamp3_temporal.npz")
    m3_states = load_arrays("model/expected_m3.npz")
    tested = 0
    for path in PIECES:
        name, patches = f"{path.parent.name}/{path.stem}", read_patches(path)
        if patches.shape[1] > 512:
            continue  # longer pieces are cut into segments by extraction
        masks = torch.ones(patches.shape[:2])
        for expected, found in (
            (vectors, tiny_clamp3.get_symbolic_features(patches, masks, get_global=True)),
            (states, tiny_clamp3.get_symbolic_features(patches, masks)),
            (m3_states, tiny_m3.encoder(patches, masks).last_hidden_state),
        ):
            if name in expected:
                torch.testing.assert_close(found, expected[name], atol=2e-5, rtol=1e-4)
                tested += 1
    assert tested > 20


@torch.inference_mode()
def test_audio_features_equal_golden(tiny_clamp3):
    vectors = load_arrays("model/expected_clamp3_global.npz")
    states = load_arrays("model/expected_clamp3_temporal.npz")
    tested = 0
    for path in sorted((GOLDEN / "model/in/npy").iterdir()):
        frames = F.pad(torch.from_numpy(np.load(path)).reshape(-1, 128).float(), (0, 0, 1, 1))[None]
        if frames.shape[1] > 128:
            continue
        masks, name = torch.ones(frames.shape[:2]), f"npy/{path.stem}"
        found = tiny_clamp3.get_audio_features(frames, masks, get_global=True)
        torch.testing.assert_close(found, vectors[name], atol=2e-5, rtol=1e-4)
        if name in states:
            found = tiny_clamp3.get_audio_features(frames, masks)
            torch.testing.assert_close(found, states[name], atol=2e-5, rtol=1e-4)
        tested += 1
    assert tested


@torch.inference_mode()
def test_text_features_equal_golden(tiny_clamp3, tiny_tokenizer):
    vectors = load_arrays("model/expected_clamp3_global.npz")
    tested = 0
    for path in sorted((GOLDEN / "model/in/txt").iterdir()):
        lines = dict.fromkeys(line for line in path.read_text(encoding="utf-8").split("\n") if line)
        text = tiny_tokenizer(tiny_tokenizer.sep_token.join(lines), return_tensors="pt")
        name = f"txt/{path.stem}"
        if len(lines) > 1 or text["input_ids"].shape[1] > 128 or name not in vectors:
            continue
        found = tiny_clamp3.get_text_features(text["input_ids"], text["attention_mask"], get_global=True)
        torch.testing.assert_close(found, vectors[name], atol=2e-5, rtol=1e-4)
        tested += 1
    assert tested


@pytest.mark.parametrize("name", ["clamp3", "m3"])
def test_names_shapes_and_order_are_the_published_ones(name, tiny_clamp3, tiny_m3):
    model = {"clamp3": tiny_clamp3, "m3": tiny_m3}[name]
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    expected = json.loads((GOLDEN / f"tiny/{name}_state_dict_shapes.json").read_text())
    assert list(shapes.items()) == list(expected.items())  # the order numbers an optimizer's states


def random_patches(*shape):
    return torch.randint(0, 128, shape, dtype=torch.uint8)


def test_sum_of_rows_equals_one_hot_matmul():
    torch.manual_seed(0)
    embedding = PatchEmbedding(patch_size=64, hidden_size=32)
    patches = random_patches(2, 5, 64)
    patches[:, :, 40:] = 0
    patches[1, 3:] = 0
    found = embedding(patches)
    found_grads = torch.autograd.grad((found**2).sum(), list(embedding.parameters()))
    one_hot = F.one_hot(patches.long(), 128).flatten(-2).float()
    expected = F.linear(one_hot, embedding.weight, embedding.bias)
    expected_grads = torch.autograd.grad((expected**2).sum(), list(embedding.parameters()))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for found_grad, expected_grad in zip(found_grads, expected_grads, strict=True):
        torch.testing.assert_close(found_grad, expected_grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("code", [128, 255, -1])
def test_codes_beyond_ascii_are_refused(code, tiny_m3):
    patches = torch.full((1, 2, 64), 65)
    patches[0, 1, 7] = code
    with pytest.raises(ValueError, match=f"codes from 0 to 127, got {code}"):
        tiny_m3.encoder(patches, torch.ones(1, 2))


@torch.inference_mode()
def test_padding_and_batch_order_do_not_change_a_vector(tiny_clamp3):
    torch.manual_seed(0)
    lengths = [3, 17, 9]
    kinds = {
        "text": torch.randint(5, 200, (3, 17)),
        "symbolic": random_patches(3, 17, 64),
        "audio": torch.randn(3, 17, 128),
    }
    masks = torch.tensor([[1.0] * length + [0.0] * (17 - length) for length in lengths])
    for kind, inputs in kinds.items():
        features = getattr(tiny_clamp3, f"get_{kind}_features")
        together = features(inputs, masks, get_global=True)
        order = [2, 0, 1]
        torch.testing.assert_close(
            features(inputs[order], masks[order], get_global=True), together[order], atol=1e-5, rtol=1e-4
        )
        for row, length in enumerate(lengths):
            alone = features(inputs[row : row + 1, :length], masks[row : row + 1, :length], get_global=True)
            torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=1e-4)


def test_the_mean_of_many_half_precision_states_is_right():
    masks = torch.tensor([1] * 509 + [0] * 3)[None]  # bfloat16 has no 509
    states = torch.ones(1, 512, 4, dtype=torch.bfloat16)
    assert torch.equal(masked_mean(states, masks), torch.ones(1, 4, dtype=torch.bfloat16))


def test_set_trainable_freezes_only_the_named_parts(tiny_clamp3):
    tiny_clamp3.set_trainable(["text_model", "audio_proj"])
    frozen = {name.split(".")[0] for name, p in tiny_clamp3.named_parameters() if not p.requires_grad}
    assert frozen == {"text_model", "audio_proj"}
    tiny_clamp3.set_trainable([])
    assert all(parameter.requires_grad for parameter in tiny_clamp3.parameters())
    with pytest.raises(ValueError, match="expected parts among text_model, .* got decoder"):
        tiny_clamp3.set_trainable(["decoder"])
    assert {name.split(".")[0] for name, _ in tiny_clamp3.named_parameters()} == set(PARTS)


def test_learned_temperature_adds_one_clamped_parameter(tiny_geometry, tiny_clamp3):
    torch.manual_seed(0)
    model = CLaMP3Model.from_geometry(replace(tiny_geometry, learned_temperature=True))
    assert set(model.state_dict()) - set(tiny_clamp3.state_dict()) == {"log_logit_scale"}
    batch = load_arrays("model/losses/clamp3_symbolic.npz")
    inputs = [batch[name] for name in ("text_inputs", "text_masks", "music_inputs", "music_masks")]
    with torch.no_grad():
        model.log_logit_scale.fill_(10.0)
    model(*inputs).backward()
    assert model.log_logit_scale.exp().item() == pytest.approx(100)
    assert model.log_logit_scale.grad is not None
    features = torch.randn(4, 8)
    torch.testing.assert_close(model.contrast(features, features), model.contrast(3 * features, features))


def test_an_unknown_modality_is_refused(tiny_clamp3):
    with pytest.raises(ValueError, match='"symbolic" or "audio", got \'text\''):
        tiny_clamp3(None, None, None, None, "text")


def test_fill_writes_the_masked_bars_and_no_others(tiny_m3):
    patchilizer = M3Patchilizer()
    piece = patchilizer.encode_array("K:C\nAB|CD|EF|GA|\n", add_special_patches=True)
    filled = tiny_m3.fill(piece, [2, 4], patchilizer, temperature=0.9, top_k=20, top_p=0.9, seed=1)
    assert filled.dtype == np.uint8
    assert filled.shape == piece.shape
    kept = [0, 1, 3, 5, 6]
    assert np.array_equal(filled[kept], piece[kept])
    for patch in filled[[2, 4]]:
        end = np.flatnonzero(patch == patchilizer.eos_token_id)
        assert patch[0] == patchilizer.bos_token_id
        assert not end.size or not patch[end[0] + 1 :].any()
    again = tiny_m3.fill(piece, [2, 4], patchilizer, temperature=0.9, top_k=20, top_p=0.9, seed=1)
    assert np.array_equal(filled, again)
    assert not np.array_equal(filled, tiny_m3.fill(piece, [2, 4], patchilizer, seed=2))


def test_fill_learns_a_bar_by_heart(tiny_geometry):
    torch.manual_seed(0)
    model, patchilizer = M3Model.from_geometry(replace(tiny_geometry, dropout=0.0)), M3Patchilizer()
    piece = patchilizer.encode_array("K:C\nABc|\n", add_special_patches=True)
    target, masked = torch.from_numpy(piece)[None], torch.from_numpy(piece)[None].clone()
    masked[0, 2] = patchilizer.mask_token_id
    selected = torch.tensor([[0, 0, 1, 0]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        model(masked, torch.ones(1, 4), selected, target).loss.backward()
        optimizer.step()
    filled = model.eval().fill(piece, [2], patchilizer, top_k=1)
    assert patchilizer.decode(filled) == "K:C\nABc|\n"

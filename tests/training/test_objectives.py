"""Objectives, most in one process. (test_loop compares two processes with one in whole trainings.)"""

import sys

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from clamplib.formats.patchilizer import M3Patchilizer
from clamplib.models.encoders import CLaMP3Model
from clamplib.models.loss import contrastive_loss, equal_rows
from clamplib.training.batches import collate_m3
from clamplib.training.objectives import CLaMP3Objective, M3Objective
from clamplib.training.script import checkpoint_layers

KEYS = torch.tensor([[1, 1], [2, 2], [1, 3], [3, 4]])  # rows 0 and 2 have one text


def batch_of(*rows):
    """Texts and two files per piece, as features that stand for themselves."""
    features = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(1))[:, list(rows)]
    masks = torch.ones(len(rows), 8, dtype=torch.long)
    return {
        "text_inputs": features[0],
        "text_masks": masks,
        "music": [(features[1], masks), (features[2], masks)],
        "keys": KEYS[list(rows)],
        "indices": torch.tensor(rows),
    }


class Identity(torch.nn.Module):
    """A model whose features are its inputs."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def get_text_features(self, inputs, masks, get_global):
        return inputs * self.weight

    get_audio_features = get_symbolic_features = get_text_features

    def contrast(self, features, others, same=None):
        return contrastive_loss(features, others, 1.0, same)


# ------------------------------------------------------------------------------------ M3


def make_item(geometry, bars):
    """A piece whose even patches are to be reconstructed."""
    patchilizer = M3Patchilizer(geometry.patch_size, geometry.patch_length)
    patches = patchilizer.encode_array("K:C\n" + "CDEF|\n" * bars, add_special_patches=True)
    selected = np.arange(len(patches)) % 2 == 0
    return {"input_patches": patches, "selected_indices": selected, "target_patches": patches}


def test_m3_loss_is_the_models(tiny_m3, tiny_geometry):
    batch = collate_m3([make_item(tiny_geometry, 3), make_item(tiny_geometry, 9)])
    torch.testing.assert_close(M3Objective().loss(tiny_m3, batch), tiny_m3(**batch).loss)


@torch.no_grad()
def test_m3_evaluation_weighs_all_codes_alike(tiny_m3, tiny_geometry):
    items = [make_item(tiny_geometry, bars) for bars in (1, 3, 9)]
    apart = M3Objective().evaluate(tiny_m3, [collate_m3(items[:1]), collate_m3(items[1:])])
    together = M3Objective().evaluate(tiny_m3, [collate_m3(items)])
    assert apart["loss"] == pytest.approx(together["loss"], rel=1e-5)


# ------------------------------------------------------------------------------------ CLaMP 3


def test_two_files_give_the_mean_of_two_losses_and_the_weighted_contrast_of_both():
    model, batch = Identity(), batch_of(0, 1, 2, 3)
    text, (first, _), (second, _) = batch["text_inputs"], *batch["music"]
    expected = (model.contrast(text, first) + model.contrast(text, second)) / 2
    loss = CLaMP3Objective(batch_size=4, pair_weight=0.5).loss(model, batch)
    torch.testing.assert_close(loss, expected + 0.5 * model.contrast(first, second))


def test_one_file_gives_its_loss_alone():
    model, batch = Identity(), batch_of(0, 1, 2, 3)
    batch["music"] = batch["music"][:1]
    expected = model.contrast(batch["text_inputs"], batch["music"][0][0])
    torch.testing.assert_close(CLaMP3Objective(batch_size=4, pair_weight=0.5).loss(model, batch), expected)


def test_equal_texts_are_not_negatives():
    model, batch = Identity(), batch_of(0, 1, 2, 3)
    batch["music"] = batch["music"][:1]
    expected = model.contrast(batch["text_inputs"], batch["music"][0][0], equal_rows(KEYS))
    torch.testing.assert_close(CLaMP3Objective(batch_size=4, mask_same_text=True).loss(model, batch), expected)


def make_batch(rows=range(5)):
    """Five texts with two pieces of music each, of unequal lengths, or some of them. Two texts are the same."""
    rng = torch.Generator().manual_seed(0)
    rows = list(rows)
    masks = (torch.arange(12) < torch.tensor([[12], [3], [7], [1], [9]])).long()
    music = torch.randint(4, 100, (2, 5, 12, 64), generator=rng, dtype=torch.uint8)[:, rows]
    return {
        "text_inputs": torch.randint(4, 20, (5, 12), generator=rng)[rows],
        "text_masks": masks[rows],
        "music": [(music[0], masks[rows]), (music[1], masks.flip(0)[rows])],
        "keys": torch.tensor([[0, 0], [1, 1], [2, 2], [0, 3], [4, 4]])[rows],
        "indices": torch.tensor(rows),
    }


def test_features_do_not_depend_on_the_rows_encoded_together(tiny_clamp3, monkeypatch):
    batch = make_batch()
    batch["music"] = batch["music"][:1]
    objective = CLaMP3Objective(batch_size=5)
    whole = objective.loss(tiny_clamp3, batch)
    monkeypatch.setattr("clamplib.training.objectives.ROWS_AT_ONCE", 2)
    torch.testing.assert_close(objective.loss(tiny_clamp3, batch), whole)


@torch.no_grad()
def test_evaluation_in_parts(tiny_clamp3):
    whole, parts = (CLaMP3Objective(batch_size=5, accumulation=count) for count in (1, 3))
    expected = whole.evaluate(tiny_clamp3, [make_batch()])
    assert parts.evaluate(tiny_clamp3, [make_batch()]) == pytest.approx(expected, rel=1e-5)


# ------------------------------------------------------------------------------------ less memory


def make_model(geometry, dropout=0.0):
    """A model in training with a learned temperature, on symbolic music."""
    torch.manual_seed(0)
    values = geometry.to_dict() | {"dropout": dropout, "learned_temperature": True, "logit_scale": 5.0}
    model = CLaMP3Model.from_geometry(type(geometry).from_dict(values))
    model.set_trainable(["audio_model", "audio_proj"])
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):  # those of the text encoder too
            module.p = dropout
    return model.train()


def make_objective(accumulation):
    return CLaMP3Objective(batch_size=5, mask_same_text=True, pair_weight=0.5, accumulation=accumulation)


def train(model, accumulation=1, steps=3):
    """Takes steps of gradient descent; returns the parameters after them."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        make_objective(accumulation).loss(model, make_batch()).backward()
        optimizer.step()
    return dict(model.named_parameters())


def assert_close(parameters, others, tolerance=1e-5):
    for name, value in others.items():
        torch.testing.assert_close(parameters[name], value, atol=tolerance, rtol=0, msg=name)


def assert_differ(parameters, others):
    assert max((parameters[name] - value).abs().max() for name, value in others.items()) > 1e-3


@pytest.mark.parametrize("accumulation", [2, 3, 99])
def test_parts_train_as_the_whole_batch(accumulation, tiny_geometry):
    start, whole = make_model(tiny_geometry), train(make_model(tiny_geometry))
    assert_differ(dict(start.named_parameters()), whole)
    assert whole["log_logit_scale"] != start.log_logit_scale
    assert_close(train(make_model(tiny_geometry), accumulation), whole)


def plain(function, *args, use_reentrant):
    """Keeps all activations, in place of torch's checkpoint."""
    return function(*args)


@pytest.mark.parametrize("dropout", [0.1, 0.5])
def test_parts_are_encoded_again_with_the_same_dropout(dropout, tiny_geometry, monkeypatch):
    parts = train(make_model(tiny_geometry, dropout), 3)
    monkeypatch.setattr("clamplib.training.objectives.checkpoint", plain)
    assert_close(parts, train(make_model(tiny_geometry, dropout), 3))
    assert_differ(parts, train(make_model(tiny_geometry), 3))


def test_each_part_is_encoded_again_in_the_backward_pass(tiny_geometry):
    model, rows = make_model(tiny_geometry), []
    model.text_model.register_forward_hook(lambda module, inputs, output: rows.append(len(output.last_hidden_state)))
    loss = make_objective(3).loss(model, make_batch())
    assert rows == [2, 2, 1]
    loss.backward()
    assert rows == [2, 2, 1, 1, 2, 2]


@pytest.mark.parametrize("accumulation", [1, 3])
def test_layers_that_are_computed_again_train_as_those_that_are_kept(accumulation, tiny_geometry):
    model, layer_calls = make_model(tiny_geometry, 0.1), []
    checkpoint_layers(model)
    model.text_model.encoder.layer[0].register_forward_pre_hook(lambda *args: layer_calls.append(1))
    again = train(model, accumulation, steps=2)
    kept = train(make_model(tiny_geometry, 0.1), accumulation, steps=2)
    assert_close(again, kept)
    assert len(layer_calls) == 2 * (2 if accumulation == 1 else 3 * 3)


def test_layers_of_m3_that_are_computed_again(tiny_m3, tiny_geometry):
    batch = collate_m3([make_item(tiny_geometry, 3), make_item(tiny_geometry, 9)])
    gradients = []
    for again in (False, True):
        if again:
            checkpoint_layers(tiny_m3)
        tiny_m3.train().zero_grad()
        torch.manual_seed(0)
        M3Objective().loss(tiny_m3, batch).backward()
        gradients.append({name: value.grad for name, value in tiny_m3.named_parameters() if value.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert_close(gradients[1], gradients[0], 1e-6)


def test_less_than_one_part_is_refused():
    with pytest.raises(ValueError, match="accumulation must be at least 1, not 0"):
        make_objective(0)


class Step(torch.nn.Module):
    """What DistributedDataParallel takes."""

    def __init__(self, model, objective):
        super().__init__()
        self.model = model
        self.objective = objective

    def forward(self, batch):
        return self.objective.loss(self.model, batch)


def run_rank(rank, bounds, store, results, geometry):
    """The gradients of one process, whose rows are encoded in parts and whose layers are computed again."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=len(bounds))
    model = make_model(geometry)
    checkpoint_layers(model)
    step = DistributedDataParallel(Step(model, make_objective(2)), find_unused_parameters=True)
    for _ in range(2):
        model.zero_grad()
        step(make_batch(range(*bounds[rank]))).backward()
    torch.save({name: value.grad for name, value in model.named_parameters()}, f"{results}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(sys.platform == "win32", reason="gloo over a file needs POSIX")
def test_parts_of_two_processes_have_the_gradients_of_one_batch(tiny_geometry, tmp_path):
    arguments = ([(0, 3), (3, 5)], tmp_path / "store", tmp_path, tiny_geometry)
    mp.spawn(run_rank, arguments, nprocs=2)
    model = make_model(tiny_geometry)
    make_objective(1).loss(model, make_batch()).backward()
    expected = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert_close(found, expected)


@torch.no_grad()
def test_evaluation_does_not_depend_on_the_batches(monkeypatch):
    objective = CLaMP3Objective(batch_size=3)
    expected = objective.evaluate(Identity(), [batch_of(0, 1, 2, 3)])
    monkeypatch.setattr("clamplib.training.objectives.QUERIES_AT_ONCE", 3)
    assert objective.evaluate(Identity(), [batch_of(3, 1), batch_of(0), batch_of(2)]) == pytest.approx(expected)


@torch.no_grad()
def test_evaluation_ranks_by_cosine():
    batch = batch_of(0, 1, 2, 3)
    batch["music"] = [(100 * batch["text_inputs"][[0, 1, 3, 2]], batch["text_masks"])]
    found = CLaMP3Objective(batch_size=4).evaluate(Identity(), [batch])
    assert found["hit@1"] == 0.5
    assert found["hit@10"] == 1

"""Objectives in one process. (test_loop compares two processes with one.)"""

import numpy as np
import pytest
import torch

from clamplib.formats.patchilizer import M3Patchilizer
from clamplib.models.loss import contrastive_loss, equal_rows
from clamplib.training.batches import collate_m3
from clamplib.training.objectives import CLaMP3Objective, M3Objective

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


def test_features_do_not_depend_on_the_rows_encoded_together(tiny_clamp3, monkeypatch):
    rng = torch.Generator().manual_seed(0)
    masks = (torch.arange(12) < torch.tensor([[12], [3], [7], [1], [9]])).long()
    batch = {
        "text_inputs": torch.randint(4, 20, (5, 12), generator=rng),
        "text_masks": masks,
        "music": [(torch.randint(4, 100, (5, 12, 64), generator=rng, dtype=torch.uint8), masks)],
        "keys": torch.zeros(5, 2, dtype=torch.long),
        "indices": torch.arange(5),
    }
    objective = CLaMP3Objective(batch_size=5)
    whole = objective.loss(tiny_clamp3, batch)
    monkeypatch.setattr("clamplib.training.objectives.ROWS_AT_ONCE", 2)
    torch.testing.assert_close(objective.loss(tiny_clamp3, batch), whole)


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

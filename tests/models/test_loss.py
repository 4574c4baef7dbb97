import math
import sys

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from clamplib.models.loss import contrastive_loss, equal_rows

TEXTS = torch.tensor([5, 6, 5, 7, 8])  # rows 0 and 2 have one text


def make_features(count=5, size=8):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(count, size, generator=generator) for _ in range(2)]


def reference_loss(text, music, scale, same):
    logits = (scale * text @ music.T).masked_fill(same, -math.inf)
    target = torch.arange(len(text))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def test_orthogonal_pairs_by_hand():
    features = 3 * torch.eye(2)  # a pair's logit is 9, a negative's 0
    assert contrastive_loss(features, features).item() == pytest.approx(math.log(1 + math.exp(-9)), abs=1e-6)
    assert contrastive_loss(features, features, 0.5).item() == pytest.approx(math.log(1 + math.exp(-4.5)))


def test_features_are_not_normalized():
    text, music = make_features()
    assert contrastive_loss(text, music) != pytest.approx(contrastive_loss(2 * text, music).item())


def test_same_rows_are_no_negatives():
    text, music = make_features()
    same = equal_rows(TEXTS[:, None])
    expected_same = torch.eye(5, dtype=torch.bool)
    expected_same[0, 2] = expected_same[2, 0] = True
    assert torch.equal(same, expected_same)
    expected = reference_loss(text, music, 2.0, same & ~torch.eye(5, dtype=torch.bool))
    torch.testing.assert_close(contrastive_loss(text, music, 2.0, same), expected)
    assert contrastive_loss(text, text, 0.1, same) < contrastive_loss(text, text, 0.1)


def test_equal_rows_takes_any_column():
    keys = torch.tensor([[1, 10], [2, 10], [1, 11]])
    expected = [[True, True, True], [True, True, False], [True, False, True]]
    assert equal_rows(keys).tolist() == expected


def test_mixed_precision_keeps_the_logits_whole():
    text, music = make_features()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = contrastive_loss(text, music, 100.0)
    torch.testing.assert_close(mixed, contrastive_loss(text, music, 100.0))


def test_a_single_pair_has_no_loss():
    text, music = make_features(1)
    assert contrastive_loss(text, music).item() == 0


def test_unequal_sides_and_masks_are_refused():
    text, music = make_features()
    with pytest.raises(ValueError, match="as many texts as pieces, got 5 and 4"):
        contrastive_loss(text, music[:4])
    with pytest.raises(ValueError, match=r"must be \[5, 5\], got \[5, 4\]"):
        contrastive_loss(text, music, same=torch.zeros(5, 4, dtype=torch.bool))


class Largest(TorchFunctionMode):
    """Notes the number of elements of the largest tensor that is computed."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.count = max(self.count, result.numel())
        return result


def run_rank(rank, bounds, store, results):
    """One process's share of the rows: its loss, the gradient on a weight of all processes, and the largest tensor."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=len(bounds))
    rows = slice(*bounds[rank])
    text, music = (features[rows] for features in make_features())
    weight = torch.eye(8).requires_grad_()
    same = equal_rows(TEXTS[rows, None])
    loss = contrastive_loss(text @ weight, music @ weight, 2.0, same)
    loss.backward()
    with Largest() as largest:
        contrastive_loss(text[:, :1], music[:, :1], 2.0, same)  # features of one number, so that logits are the largest
    torch.save((loss.detach(), weight.grad, largest.count), f"{results}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(sys.platform == "win32", reason="gloo over a file needs POSIX")
def test_processes_together_have_the_loss_and_gradient_of_one(tmp_path):
    bounds = [(0, 3), (3, 5)]
    mp.spawn(run_rank, (bounds, tmp_path / "store", tmp_path), nprocs=2)
    losses, grads, largest = zip(*(torch.load(tmp_path / f"{rank}.pt") for rank in range(2)), strict=True)
    weight = torch.eye(8).requires_grad_()
    text, music = make_features()
    expected = contrastive_loss(text @ weight, music @ weight, 2.0, equal_rows(TEXTS[:, None]))
    expected.backward()
    torch.testing.assert_close(sum(losses) / 2, expected.detach())
    torch.testing.assert_close(sum(grads) / 2, weight.grad)  # as distributed training averages them
    assert largest == (3 * 5, 2 * 5)  # each process has the logits of its own rows alone

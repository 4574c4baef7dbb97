"""The contrastive loss between texts and music, over the batches of all processes."""

import torch
import torch.distributed as dist
import torch.nn.functional as F

from clamplib.models import distributed


def contrastive_loss(
    text_features: torch.Tensor,
    music_features: torch.Tensor,
    logit_scale: torch.Tensor | float = 1.0,
    same: torch.Tensor | None = None,
) -> torch.Tensor:
    """Computes the symmetric cross-entropy over the scaled dot products of two sets of features.

    Row i of one set belongs to row i of the other. All other rows are its negatives, also those of the other
    processes: features are gathered with their gradient, and processes may have batches of different sizes. The mean
    of the losses of all processes is the loss of the whole batch; distributed training averages the gradients alike.

    Args:
        text_features: float [B, H].
        music_features: float [B, H].
        logit_scale: the factor of the dot products.
        same: bool [B, rows of all processes], True where two rows are not negatives of each other, such as items with
            equal texts (see `equal_rows`). The pairs themselves always count.

    Returns:
        The loss of this process, a float32 scalar.

    Raises:
        ValueError: the sizes of the arguments do not fit.
    """
    count = len(text_features)
    if count != len(music_features):
        raise ValueError(f"expected as many texts as pieces, got {count} and {len(music_features)}")
    sizes = _batch_sizes(count, text_features.device)
    all_text = _gather(text_features, sizes)
    all_music = _gather(music_features, sizes)
    first = sum(sizes[: distributed.rank()])  # of this process's rows among all
    own = torch.arange(count, device=text_features.device) + first
    if same is not None:
        if same.shape != (count, sum(sizes)):
            raise ValueError(f"`same` must be {[count, sum(sizes)]}, got {list(same.shape)}")
        same = same.scatter(1, own[:, None], False)
    losses = []
    for features, others in ((text_features, all_music), (music_features, all_text)):
        with torch.autocast(features.device.type, enabled=False):  # the scale would magnify errors of half precision
            logits = features.float() @ others.float().T * logit_scale  # [B, rows of all processes]
        if same is not None:
            logits = logits.masked_fill(same, float("-inf"))
        losses.append(F.cross_entropy(logits, own, reduction="sum"))
    return sum(losses) / 2 * len(sizes) / sum(sizes)


def equal_rows(keys: torch.Tensor) -> torch.Tensor:
    """Compares this process's rows of keys with those of all processes.

    Args:
        keys: integers [B, K]. One column may number the texts, for example, and another the pieces.

    Returns:
        bool [B, rows of all processes], True where two rows are equal in any column.
    """
    sizes = _batch_sizes(len(keys), keys.device)
    return (keys[:, None] == _gather(keys, sizes)).any(-1)


def _batch_sizes(count: int, device: torch.device) -> list[int]:
    """The number of rows of each process."""
    if distributed.world_size() == 1:
        return [count]
    sizes = [torch.empty(1, dtype=torch.long, device=device) for _ in range(distributed.world_size())]
    dist.all_gather(sizes, torch.tensor([count], device=device))
    return torch.cat(sizes).tolist()


def _gather(rows: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """Rows of all processes [sum(sizes), ...], with their gradient."""
    if len(sizes) == 1:
        return rows
    padded = F.pad(rows, (0, 0) * (rows.dim() - 1) + (0, max(sizes) - len(rows)))
    parts = _AllGather.apply(padded.contiguous())
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


class _AllGather(torch.autograd.Function):
    """Gathers the rows of every process. The gradient sums what all processes make of this process's rows."""

    @staticmethod
    def forward(ctx, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        parts = [torch.empty_like(rows) for _ in range(distributed.world_size())]
        dist.all_gather(parts, rows)
        return tuple(parts)

    @staticmethod
    def backward(ctx, *gradients: torch.Tensor) -> torch.Tensor:
        gradients = torch.stack(gradients)
        dist.all_reduce(gradients)
        return gradients[distributed.rank()]

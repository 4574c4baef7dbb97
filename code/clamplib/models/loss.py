"""The contrastive loss between texts and music, over the batches of all processes."""

import torch
import torch.distributed as dist
import torch.nn.functional as F


def contrastive_loss(
    text_features: torch.Tensor,
    music_features: torch.Tensor,
    logit_scale: torch.Tensor | float = 1.0,
    same: torch.Tensor | None = None,
) -> torch.Tensor:
    """Symmetric cross-entropy over the scaled dot products of two sets of features [B, H].

    Row i of one belongs to row i of the other; all other rows are its negatives, those of the other
    processes too: features are gathered with their gradient, and batches may differ in size. The mean of
    all processes' losses is the loss of the whole batch, which is what distributed training averages.

    `same` [B, rows of all processes] is True where two rows are no negatives of each other, such as items
    with one text (see `equal_rows`); the pairs themselves are always kept.
    """
    count = len(text_features)
    if count != len(music_features):
        raise ValueError(f"expected as many texts as pieces, got {count} and {len(music_features)}")
    sizes = _batch_sizes(count, text_features.device)
    all_text, all_music = _gather(text_features, sizes), _gather(music_features, sizes)
    own = torch.arange(count, device=text_features.device) + sum(sizes[: _rank()])  # own rows among all
    if same is not None:
        if same.shape != (count, sum(sizes)):
            raise ValueError(f"`same` must be {[count, sum(sizes)]}, got {list(same.shape)}")
        same = same.scatter(1, own[:, None], False)
    losses = []
    for features, others in ((text_features, all_music), (music_features, all_text)):
        with torch.autocast(features.device.type, enabled=False):  # the scale would magnify half's error
            logits = features.float() @ others.float().T * logit_scale  # [B, rows of all processes]
        if same is not None:
            logits = logits.masked_fill(same, float("-inf"))
        losses.append(F.cross_entropy(logits, own, reduction="sum"))
    return sum(losses) / 2 * len(sizes) / sum(sizes)


def equal_rows(keys: torch.Tensor) -> torch.Tensor:
    """Whether rows share a key: keys [B, K] of whole numbers -> bool [B, rows of all processes].

    One column may number the texts and another the pieces; equality in any column counts.
    """
    sizes = _batch_sizes(len(keys), keys.device)
    return (keys[:, None] == _gather(keys, sizes)).any(-1)


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _batch_sizes(count: int, device: torch.device) -> list[int]:
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [count]
    sizes = [torch.empty(1, dtype=torch.long, device=device) for _ in range(dist.get_world_size())]
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
    """`rows` of every process; its gradient is the sum of what all processes make of this one's rows."""

    @staticmethod
    def forward(ctx, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows)
        return tuple(parts)

    @staticmethod
    def backward(ctx, *gradients: torch.Tensor) -> torch.Tensor:
        gradients = torch.stack(gradients)
        dist.all_reduce(gradients)
        return gradients[dist.get_rank()]

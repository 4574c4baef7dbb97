"""What the training loop minimizes, and how it is evaluated: M3, and CLaMP 3 on symbolic music or audio.

Over several processes the mean of their losses is the loss of the whole batch, as if one process had seen it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from clamplib.evaluation.metrics import ranks, retrieval_metrics
from clamplib.formats.patchilizer import M3Patchilizer
from clamplib.models import distributed
from clamplib.models.encoders import CLaMP3Model, M3Model
from clamplib.models.loss import equal_rows

QUERIES_AT_ONCE = 1024
ROWS_AT_ONCE = 32  # on a CPU


@dataclass(frozen=True)
class Objective:
    """`loss` of a model and a batch; `evaluate` of a model and batches gives numbers, among them "loss"."""

    loss: Callable[[nn.Module, dict], torch.Tensor]
    evaluate: Callable[[nn.Module, Iterable[dict]], dict[str, float]]


def m3_objective() -> Objective:
    """Reconstruction of the selected patches."""
    return Objective(_m3_loss, _evaluate_m3)


def _count_targets(batch: dict) -> torch.Tensor:
    """How many codes M3's loss is the mean of; the first of a patch is given, not predicted."""
    targets = batch["target_patches"][batch["selected_indices"].bool()]
    return (targets[:, 1:] != M3Patchilizer.pad_token_id).sum()


def _m3_loss(model: M3Model, batch: dict) -> torch.Tensor:
    loss = model(**batch, with_logits=False).loss
    if distributed.world_size() == 1:
        return loss
    count = all_count = _count_targets(batch).to(loss.dtype)
    all_count = all_count.clone()
    torch.distributed.all_reduce(all_count)
    return loss * count * distributed.world_size() / all_count


def _evaluate_m3(model: M3Model, batches: Iterable[dict]) -> dict[str, float]:
    losses, counts = 0.0, 0
    for batch in batches:
        count = _count_targets(batch).item()
        losses += model(**batch, with_logits=False).loss.item() * count
        counts += count
    return {"loss": distributed.total(losses) / distributed.total(counts)}


def clamp3_objective(*, batch_size: int, mask_same_text: bool = False, pair_weight: float = 0.0) -> Objective:
    """Contrast between texts and music: scores (patches of codes) or audio (frames of floats).

    Where items bring two files of a piece, the text is contrasted with each (the mean of the two losses),
    and the files with each other, times `pair_weight`. With `mask_same_text`, items with equal texts or ids
    are no negatives of each other. The evaluation loss is the mean over batches of `batch_size`.
    """

    def encode(model: CLaMP3Model, batch: dict) -> tuple[torch.Tensor, list[torch.Tensor]]:
        text = _in_chunks(model.get_text_features, batch["text_inputs"], batch["text_masks"])
        encoders = [
            model.get_audio_features if inputs.is_floating_point() else model.get_symbolic_features
            for inputs, _ in batch["music"]
        ]
        return text, [_in_chunks(encoder, *music) for encoder, music in zip(encoders, batch["music"], strict=True)]

    def loss(model: CLaMP3Model, batch: dict) -> torch.Tensor:
        text, music = encode(model, batch)
        same = equal_rows(batch["keys"]) if mask_same_text else None
        value = sum(model.contrast(text, features, same) for features in music) / len(music)
        return value + pair_weight * model.contrast(*music, same) if len(music) == 2 else value

    def evaluate(model: CLaMP3Model, batches: Iterable[dict]) -> dict[str, float]:
        text, music, keys = _gather_features(model, encode, batches)
        same_rows = (lambda rows: equal_rows(keys[rows])) if mask_same_text else lambda rows: None
        losses = _block_losses(model, text, music, batch_size, same_rows)
        return {"loss": losses, **_retrieval(text, music)}

    return Objective(loss, evaluate)


def _in_chunks(encode: Callable, inputs: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Global features [B, H]; on a CPU of few rows of similar length at a time, which stay in its cache unpadded."""
    if inputs.device.type != "cpu":
        return encode(inputs, masks, get_global=True)
    lengths = masks.sum(1)
    order = lengths.argsort()
    chunks = [(rows, int(lengths[rows].max())) for rows in order.split(ROWS_AT_ONCE)]
    features = [encode(inputs[rows, :length], masks[rows, :length], get_global=True) for rows, length in chunks]
    return torch.cat(features)[order.argsort()]


def _gather_features(model: CLaMP3Model, encode: Callable, batches: Iterable[dict]) -> list[torch.Tensor]:
    """Text features, music features and keys of all processes' evaluation items, in the items' order."""
    parts: list[list[torch.Tensor]] = []
    for batch in batches:
        text, music = encode(model, batch)
        parts.append([batch["indices"].cpu(), text.float().cpu(), music[0].float().cpu(), batch["keys"].cpu()])
    own = [torch.cat(column) for column in zip(*parts, strict=True)] if parts else None
    shares = [share for share in distributed.gather(own) if share is not None]
    indices, *columns = (torch.cat(column) for column in zip(*shares, strict=True))
    device = next(model.parameters()).device
    return [column[indices.argsort()].to(device) for column in columns]


def _block_losses(model, text, music, batch_size, same_rows) -> float:
    """Mean loss over batches of a fixed random order; each process computes its share of the rows."""
    order = torch.randperm(len(text), generator=torch.Generator().manual_seed(0)).to(text.device)
    losses = 0.0
    for rows in order.split(batch_size):
        own = rows[distributed.rank() :: distributed.world_size()]
        losses += model.contrast(text[own], music[own], same_rows(own)).item() * len(rows)
    return distributed.total(losses) / len(text) / distributed.world_size()


def _retrieval(text: torch.Tensor, music: torch.Tensor) -> dict[str, float]:
    """MRR and Hit@1/10 of each text's own piece among all, by cosine."""
    text, music = F.normalize(text, dim=-1), F.normalize(music, dim=-1)
    targets = np.arange(len(text))
    blocks = zip(
        text.split(QUERIES_AT_ONCE),
        np.split(targets, range(QUERIES_AT_ONCE, len(targets), QUERIES_AT_ONCE)),
        strict=True,
    )
    with torch.autocast(text.device.type, enabled=False):  # half precision would tie what differs
        found = [ranks((queries @ music.T).cpu().numpy(), target) for queries, target in blocks]
    return retrieval_metrics(np.concatenate(found), at=(1, 10))

"""What the training loop minimizes, and how a model is evaluated: M3, and CLaMP 3 on symbolic music or audio.

Over several processes, the mean of their losses is the loss of the whole batch, as if one process had seen it.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from clamplib.evaluation.metrics import ranks, retrieval_metrics
from clamplib.formats.patchilizer import M3Patchilizer
from clamplib.models import distributed
from clamplib.models.encoders import CLaMP3Model, M3Model
from clamplib.models.loss import equal_rows

QUERIES_AT_ONCE = 1024  # whose similarities are in memory together
ROWS_AT_ONCE = 32  # that a CPU encodes together


class Objective(Protocol):
    """What the training loop asks of an objective."""

    def loss(self, model: nn.Module, batch: dict) -> torch.Tensor:
        """Returns the loss of this process's batch, a scalar with its gradient."""

    def evaluate(self, model: nn.Module, batches: Iterable[dict]) -> dict[str, float]:
        """Returns numbers over the batches of all processes by name, among them "loss"."""


class M3Objective:
    """Reconstruction of the selected patches; batches are those of `collate_m3`."""

    def loss(self, model: M3Model, batch: dict) -> torch.Tensor:
        """Returns the mean cross-entropy of the codes of the selected patches."""
        loss = model(**batch, with_logits=False).loss
        if distributed.world_size() == 1:
            return loss
        count = _count_targets(batch).to(loss.dtype)
        all_count = count.clone()
        torch.distributed.all_reduce(all_count)
        return loss * count * distributed.world_size() / all_count

    def evaluate(self, model: M3Model, batches: Iterable[dict]) -> dict[str, float]:
        """Returns the mean cross-entropy over all codes, as "loss"."""
        losses, counts = 0.0, 0
        for batch in batches:
            count = _count_targets(batch).item()
            losses += model(**batch, with_logits=False).loss.item() * count
            counts += count
        return {"loss": distributed.total(losses) / distributed.total(counts)}


def _count_targets(batch: dict) -> torch.Tensor:
    """The number of codes that M3's loss is the mean of. The first code of a patch is given, not predicted."""
    targets = batch["target_patches"][batch["selected_indices"].bool()]
    return (targets[:, 1:] != M3Patchilizer.pad_token_id).sum()


@dataclass(frozen=True, kw_only=True)
class CLaMP3Objective:
    """Contrast between texts and music; batches are those of `CollateCLaMP3`.

    Attributes:
        batch_size: the pairs per batch of the evaluation, of all processes together.
        mask_same_text: items with equal texts or ids are not negatives of each other.
        pair_weight: the weight of the contrast between the two files of a piece, where items have two.
        accumulation: how many parts each batch is encoded in, one after the other. The loss is that of the whole batch.
            With more than one part, a training keeps only the features of each, and encodes the part again in the
            backward pass (gradient caching).

    Raises:
        ValueError: there is less than one part.
    """

    batch_size: int
    mask_same_text: bool = False
    pair_weight: float = 0.0
    accumulation: int = 1

    def __post_init__(self) -> None:
        if self.accumulation < 1:
            raise ValueError(f"accumulation must be at least 1, not {self.accumulation}")

    def loss(self, model: CLaMP3Model, batch: dict) -> torch.Tensor:
        """Returns the contrastive loss.

        Where items have two files of a piece, it is the mean of the losses of the text with each file, plus
        `pair_weight` times the loss of one file with the other.
        """
        text, music = _encode(model, batch, self.accumulation)
        same = self._same_rows(batch["keys"])
        loss = sum(model.contrast(text, features, same) for features in music) / len(music)
        if len(music) == 2:
            loss = loss + self.pair_weight * model.contrast(*music, same)
        return loss

    def evaluate(self, model: CLaMP3Model, batches: Iterable[dict]) -> dict[str, float]:
        """Returns "loss", the mean over batches of a fixed random order, and "mrr", "hit@1" and "hit@10".

        The metrics are those of each text's own piece among all pieces, by cosine similarity.
        """
        text, music, keys = _gather_features(model, batches, self.accumulation)
        return {"loss": self._mean_loss(model, text, music, keys), **_retrieval(text, music)}

    def _mean_loss(self, model: CLaMP3Model, text: torch.Tensor, music: torch.Tensor, keys: torch.Tensor) -> float:
        """The mean loss per item; each process computes its share of the rows of every batch."""
        order = torch.randperm(len(text), generator=torch.Generator().manual_seed(0)).to(text.device)
        losses = 0.0
        for rows in order.split(self.batch_size):
            own = rows[distributed.rank() :: distributed.world_size()]
            loss = model.contrast(text[own], music[own], self._same_rows(keys[own]))
            losses += loss.item() * len(rows)
        return distributed.total(losses) / len(text) / distributed.world_size()

    def _same_rows(self, keys: torch.Tensor) -> torch.Tensor | None:
        return equal_rows(keys) if self.mask_same_text else None


def _encode(model: CLaMP3Model, batch: dict, parts: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Text features [B, H], and those of each file; patches are integers and audio frames are floats."""
    text = _in_parts(model.get_text_features, batch["text_inputs"], batch["text_masks"], parts)
    music = []
    for inputs, masks in batch["music"]:
        encode = model.get_audio_features if inputs.is_floating_point() else model.get_symbolic_features
        music.append(_in_parts(encode, inputs, masks, parts))
    return text, music


def _in_parts(encode: Callable, inputs: torch.Tensor, masks: torch.Tensor, parts: int) -> torch.Tensor:
    """Global features [B, H], from rows of similar length at a time.

    A CPU encodes a few rows at a time in any case, because they stay in its cache. Several parts are checkpointed: the
    backward pass encodes each of them again, with the same dropout.
    """
    count = math.ceil(len(inputs) / parts)
    if inputs.device.type == "cpu":
        count = min(count, ROWS_AT_ONCE)
    elif parts == 1:
        return encode(inputs, masks, get_global=True)
    encode_rows = partial(checkpoint, _encode_rows, use_reentrant=False) if parts > 1 else _encode_rows
    lengths = masks.sum(1).cpu()
    order = lengths.argsort()
    features = []
    for rows in order.split(count):
        features.append(encode_rows(encode, inputs, masks, rows, int(lengths[rows].max())))
    return torch.cat(features)[order.argsort()]


def _encode_rows(
    encode: Callable, inputs: torch.Tensor, masks: torch.Tensor, rows: torch.Tensor, length: int
) -> torch.Tensor:
    return encode(inputs[rows, :length], masks[rows, :length], get_global=True)


def _gather_features(
    model: CLaMP3Model, batches: Iterable[dict], parts: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Text features, music features and keys of the items of all processes, in the order of the items."""
    own = []
    for batch in batches:
        text, music = _encode(model, batch, parts)
        own.append((batch["indices"].cpu(), text.float().cpu(), music[0].float().cpu(), batch["keys"].cpu()))
    shares = []
    for share in distributed.gather(own):
        shares += share
    indices, text, music, keys = (torch.cat(column) for column in zip(*shares, strict=True))
    order = indices.argsort()
    device = next(model.parameters()).device
    return text[order].to(device), music[order].to(device), keys[order].to(device)


def _retrieval(text: torch.Tensor, music: torch.Tensor) -> dict[str, float]:
    """MRR, Hit@1 and Hit@10 of texts [N, H] whose right references are the same rows of the music [N, H]."""
    text, music = F.normalize(text, dim=-1), F.normalize(music, dim=-1)
    found = []
    with torch.autocast(text.device.type, enabled=False):  # half precision would make ties of different similarities
        for rows in torch.arange(len(text)).split(QUERIES_AT_ONCE):
            similarity = text[rows.to(text.device)] @ music.T
            found.append(ranks(similarity.cpu().numpy(), rows.numpy()))
    return retrieval_metrics(np.concatenate(found), at=(1, 10))

"""M3 and CLaMP 3.

Shapes: B pieces, L patches (or tokens or frames), S codes per patch, H hidden size. Masks [B, L] are 1 at data and 0 at
padding. Parameter names are those of the published weights, which load strictly.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from clamplib.formats.patchilizer import M3Patchilizer
from clamplib.models.bert import Bert, EncoderOutput, Model, Output
from clamplib.models.configs import AnyConfig, is_bert
from clamplib.models.geometry import CHARACTERS, Geometry
from clamplib.models.loss import contrastive_loss

if TYPE_CHECKING:
    from transformers import GPT2Config

LENGTH_GROUPS = 8  # they cut the decoder's time in training on ABC to a fifth; more groups gain nothing
MAX_LOGIT_SCALE = 100.0
PARTS = ("text_model", "text_proj", "symbolic_model", "symbolic_proj", "audio_model", "audio_proj")


class PatchEmbedding(nn.Module):
    """A linear layer over one-hot patches, computed as the sum of S columns of its weight.

    The column of a code is position * 128 + code. Padding codes count like all others.
    """

    def __init__(self, patch_size: int, hidden_size: int):
        super().__init__()
        table = torch.empty(patch_size * CHARACTERS, hidden_size)
        self.weight = nn.Parameter(table.t())  # [H, S * 128] as published, in memory as the sum reads it
        self.bias = nn.Parameter(torch.zeros(hidden_size))
        nn.init.normal_(self.weight, std=0.02)  # as in BERT

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Embeds patches.

        Args:
            patches: codes from 0 to 127, of any integer type [B, L, S].

        Returns:
            float [B, L, H].

        Raises:
            ValueError: a code is out of range. On a GPU this is an assertion of CUDA.
        """
        codes = patches.long()
        _check_codes(codes)
        offsets = torch.arange(0, self.weight.shape[1], CHARACTERS, device=codes.device)
        rows = (codes + offsets).flatten(0, -2)
        table = self.weight.t().contiguous()  # no copy, unless it lies otherwise, which is 30 times slower on a CPU
        summed = F.embedding_bag(rows, table, mode="sum")
        return (summed + self.bias).unflatten(0, patches.shape[:-1])


def _check_codes(codes: torch.Tensor) -> None:
    wrong = (codes < 0) | (codes >= CHARACTERS)
    if codes.device.type != "cuda":
        if wrong.any():
            value = codes[wrong][0].item()
            raise ValueError(f"expected patches with codes from 0 to {CHARACTERS - 1}, got {value}")
    else:  # does not wait for the device
        torch._assert_async(~wrong.any(), f"expected patches with codes from 0 to {CHARACTERS - 1}")


def make_text_model(config: AnyConfig) -> nn.Module:
    """Makes a text encoder with random weights: a Bert if it is one, else the model that transformers has for it."""
    if is_bert(config.to_dict()):
        return Bert(config)
    from transformers import AutoModel

    return AutoModel.from_config(config, trust_remote_code=False)


class M3PatchEncoder(Model):
    """BERT over the patches of a piece."""

    def __init__(self, config: AnyConfig, patch_size: int = 64):
        super().__init__(config)
        self.patch_embedding = PatchEmbedding(patch_size, config.hidden_size)
        self.base = Bert(config)

    def forward(self, input_patches: torch.Tensor, input_masks: torch.Tensor) -> EncoderOutput:
        """Encodes patches.

        Args:
            input_patches: codes [B, L, S].
            input_masks: 1 at patches and 0 at padding [B, L].

        Returns:
            The `last_hidden_state` [B, L, H], by name, attribute or index 0.
        """
        embedded = self.patch_embedding(input_patches.to(self.device))
        return self.base(inputs_embeds=embedded, attention_mask=input_masks.to(self.device))


class M3TokenDecoder(Model):
    """GPT-2 over the codes of one patch. In place of the begin code it reads the encoder's state of the patch."""

    def __init__(self, config: "GPT2Config"):
        from transformers import GPT2LMHeadModel

        super().__init__(config)
        self.base = GPT2LMHeadModel(config)

    def forward(self, states: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        """Computes the logits of each next code [N, T, 128], from encoder states [N, H] and patches [N, T]."""
        embedded = self.base.transformer.wte(patches)
        embedded = torch.cat((states[:, None].to(embedded.dtype), embedded[:, 1:]), dim=1)
        masks = (patches != M3Patchilizer.pad_token_id).long()
        return self.base(inputs_embeds=embedded, attention_mask=masks, use_cache=False).logits

    @torch.inference_mode()
    def generate(self, patch_feature: torch.Tensor, tokens: torch.Tensor) -> np.ndarray:
        """Computes the probability of each code to come next in a patch.

        Args:
            patch_feature: the encoder's state of the patch [H].
            tokens: the codes that are written so far [n], beginning with the begin code.

        Returns:
            Probabilities float32 [128].
        """
        states = patch_feature.reshape(1, -1).to(self.device)
        codes = tokens.reshape(1, -1).to(self.device)
        return self(states, codes.long())[0, -1].float().softmax(-1).cpu().numpy()


@dataclass
class M3Output(Output):
    """The loss over N selected patches and the logits of each next code [N, S, 128], or None."""

    loss: torch.Tensor
    logits: torch.Tensor | None = None


class M3Model(Model):
    """Masked auto-encoder: the encoder reads a piece, the decoder writes its selected patches."""

    def __init__(self, encoder_config: AnyConfig, decoder_config: "GPT2Config"):
        super().__init__(encoder_config)
        self.encoder = M3PatchEncoder(encoder_config, decoder_config.n_positions)
        self.decoder = M3TokenDecoder(decoder_config)

    @classmethod
    def from_geometry(cls, geometry: Geometry) -> "M3Model":
        """Makes a model with random weights."""
        return cls(geometry.symbolic_config(), geometry.decoder_config())

    def forward(
        self,
        input_patches: torch.Tensor,
        input_masks: torch.Tensor,
        selected_indices: torch.Tensor,
        target_patches: torch.Tensor,
        with_logits: bool = True,
    ) -> M3Output:
        """Computes the cross-entropy of each next code of the selected patches.

        Args:
            input_patches: what the encoder reads [B, L, S].
            input_masks: 1 at patches and 0 at padding [B, L].
            selected_indices: not 0 at the selected patches [B, L].
            target_patches: what the decoder writes [B, L, S].
            with_logits: returns the logits too. Without them the patches are decoded in groups of similar length.
                This is faster and gives the same loss, because most of a patch is padding.
        """
        selected = selected_indices.to(self.device).bool()
        states = self.encoder(input_patches, input_masks).last_hidden_state[selected]
        targets = target_patches.to(self.device)[selected].long()
        if with_logits:
            logits = self.decoder(states, targets)
            return M3Output(_next_code_loss(logits, targets), logits)
        lengths = (targets != M3Patchilizer.pad_token_id).sum(1)
        losses = []
        for rows in lengths.argsort().chunk(LENGTH_GROUPS):
            group = targets[rows, : lengths[rows[-1]]]
            losses.append(_next_code_loss(self.decoder(states[rows], group), group, reduction="sum"))
        return M3Output(sum(losses) / (lengths - 1).sum(), None)

    @torch.inference_mode()
    def fill(
        self,
        patches: np.ndarray,
        masked_indices: list[int],
        patchilizer: M3Patchilizer,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> np.ndarray:
        """Writes patches of a piece.

        Args:
            patches: the piece [n, S].
            masked_indices: the patches to write.
            patchilizer: gives the special codes and the patch size.
            temperature: of the distribution from which each code is drawn.
            top_k: draws only from so many of the most likely codes; 0: from all.
            top_p: draws only from the most likely codes that make up this probability.
            seed: makes the result repeatable.

        Returns:
            The piece with the written patches in it, uint8 [n, S].
        """
        device = self.device
        rng = np.random.default_rng(seed)
        piece = np.array(patches, dtype=np.uint8)
        piece[masked_indices] = patchilizer.mask_token_id
        inputs = torch.from_numpy(piece).to(device)[None]
        states = self.encoder(inputs, torch.ones(inputs.shape[:2])).last_hidden_state[0, masked_indices]
        written = torch.full((len(states), 1), patchilizer.bos_token_id, device=device)
        ended = np.zeros(len(states), dtype=bool)
        while written.shape[1] < patchilizer.patch_size and not ended.all():
            logits = self.decoder(states, written)[:, -1].double()
            logits[:, patchilizer.pad_token_id] = float("-inf")  # padding was never learned
            codes = [_draw(row, temperature, top_k, top_p, rng) for row in logits.softmax(-1).cpu().numpy()]
            codes = np.where(ended, patchilizer.pad_token_id, codes)
            ended |= codes == patchilizer.eos_token_id
            written = torch.cat((written, torch.from_numpy(codes).to(device)[:, None]), dim=1)
        piece[masked_indices] = F.pad(written, (0, patchilizer.patch_size - written.shape[1])).cpu().numpy()
        return piece


def _next_code_loss(logits: torch.Tensor, codes: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    """Cross-entropy of the logits [N, T, 128] at each code against the next of the codes [N, T], without padding."""
    return F.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(),
        codes[:, 1:].flatten(),
        ignore_index=M3Patchilizer.pad_token_id,
        reduction=reduction,
    )


def _draw(probabilities: np.ndarray, temperature: float, top_k: int, top_p: float, rng: np.random.Generator) -> int:
    """One code drawn from its probabilities [128]."""
    import samplings  # imported here, because it silences numpy's division warnings everywhere

    if top_k:
        probabilities = samplings.top_k_sampling(probabilities, top_k, return_probs=True)
    probabilities = samplings.top_p_sampling(probabilities, top_p, return_probs=True)
    probabilities = samplings.temperature_sampling(probabilities, temperature, return_probs=True)
    return rng.choice(len(probabilities), p=probabilities)


class CLaMP3Model(Model):
    """Text, symbolic and audio encoders. Each one's states are averaged over its mask and projected into one space."""

    def __init__(
        self,
        audio_config: AnyConfig,
        symbolic_config: AnyConfig,
        text_config: AnyConfig,
        hidden_size: int = 768,
        logit_scale: float = 1.0,
        learned_temperature: bool = False,
        patch_size: int = 64,
    ):
        super().__init__(symbolic_config)
        self.text_model = make_text_model(text_config)
        self.text_proj = nn.Linear(text_config.hidden_size, hidden_size)
        self.symbolic_model = M3PatchEncoder(symbolic_config, patch_size)
        self.symbolic_proj = nn.Linear(symbolic_config.hidden_size, hidden_size)
        self.audio_model = Bert(audio_config)
        self.audio_proj = nn.Linear(audio_config.hidden_size, hidden_size)
        self.learned_temperature = learned_temperature
        self.logit_scale = logit_scale
        if learned_temperature:
            self.log_logit_scale = nn.Parameter(torch.tensor(math.log(logit_scale)))

    @classmethod
    def from_geometry(cls, geometry: Geometry) -> "CLaMP3Model":
        """Makes a model with random weights. Fetches the text encoder's config if the geometry has none."""
        return cls(
            geometry.audio_config(),
            geometry.symbolic_config(),
            geometry.load_text_config(),
            geometry.clamp3_hidden_size,
            geometry.logit_scale,
            geometry.learned_temperature,
            geometry.patch_size,
        )

    def set_trainable(self, freeze_list: list[str] | tuple[str, ...]) -> None:
        """Freezes the named parts and makes all others trainable.

        Raises:
            ValueError: a name is not one of PARTS.
        """
        unknown = sorted(set(freeze_list) - set(PARTS))
        if unknown:
            raise ValueError(f"expected parts among {', '.join(PARTS)}, got {', '.join(unknown)}")
        for part in PARTS:
            getattr(self, part).requires_grad_(part not in freeze_list)

    def get_text_features(
        self, text_inputs: torch.Tensor, text_masks: torch.Tensor, get_global: bool = False
    ) -> torch.Tensor:
        """Encodes texts.

        Like those of the other encoders, inputs and masks may be of any type and on any device.

        Args:
            text_inputs: token ids [B, L].
            text_masks: 1 at tokens and 0 at padding [B, L].
            get_global: averages the states and projects them into the joint space.

        Returns:
            The last hidden states [B, L, H], or with `get_global` vectors [B, joint size].
        """
        inputs, masks = text_inputs.to(self.device), text_masks.to(self.device)
        states = self.text_model(input_ids=inputs.long(), attention_mask=masks).last_hidden_state
        return self.text_proj(masked_mean(states, masks)) if get_global else states

    def get_symbolic_features(
        self, symbolic_inputs: torch.Tensor, symbolic_masks: torch.Tensor, get_global: bool = False
    ) -> torch.Tensor:
        """Encodes patches [B, L, S]. The result is that of `get_text_features`."""
        masks = symbolic_masks.to(self.device)
        states = self.symbolic_model(symbolic_inputs, masks).last_hidden_state
        return self.symbolic_proj(masked_mean(states, masks)) if get_global else states

    def get_audio_features(
        self, audio_inputs: torch.Tensor, audio_masks: torch.Tensor, get_global: bool = False
    ) -> torch.Tensor:
        """Encodes frames of audio features [B, L, H]. The result is that of `get_text_features`."""
        inputs, masks = audio_inputs.to(self.device, self.dtype), audio_masks.to(self.device)
        states = self.audio_model(inputs_embeds=inputs, attention_mask=masks).last_hidden_state
        return self.audio_proj(masked_mean(states, masks)) if get_global else states

    def contrast(
        self, features: torch.Tensor, other_features: torch.Tensor, same: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Computes the `contrastive_loss` of two sets of features [B, D] at this model's temperature."""
        if not self.learned_temperature:
            return contrastive_loss(features, other_features, self.logit_scale, same)
        with torch.no_grad():
            self.log_logit_scale.clamp_(max=math.log(MAX_LOGIT_SCALE))
        return contrastive_loss(
            F.normalize(features, dim=-1),
            F.normalize(other_features, dim=-1),
            self.log_logit_scale.exp(),
            same,
        )

    def forward(
        self,
        text_inputs: torch.Tensor,
        text_masks: torch.Tensor,
        music_inputs: torch.Tensor,
        music_masks: torch.Tensor,
        music_modality: str = "symbolic",
        same: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Computes the contrastive loss between texts and the pieces that belong to them.

        Args:
            text_inputs: token ids [B, L].
            text_masks: 1 at tokens and 0 at padding [B, L].
            music_inputs: patches [B, L, S] or frames of audio features [B, L, H].
            music_masks: 1 at data and 0 at padding [B, L].
            music_modality: "symbolic" or "audio".
            same: see `contrastive_loss`.

        Raises:
            ValueError: there is no such modality.
        """
        if music_modality not in ("symbolic", "audio"):
            raise ValueError(f'expected the music_modality "symbolic" or "audio", got {music_modality!r}')
        encode = getattr(self, f"get_{music_modality}_features")
        text_features = self.get_text_features(text_inputs, text_masks, get_global=True)
        return self.contrast(text_features, encode(music_inputs, music_masks, get_global=True), same)


def masked_mean(states: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Averages states [B, L, H] over the places where masks [B, L] are 1, to [B, H]."""
    masks = masks[..., None].float()  # bfloat16 could not count to 512
    return ((states * masks).sum(1) / masks.sum(1)).to(states.dtype)


def pad(arrays: Sequence[np.ndarray], value: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Pads arrays to one length.

    Args:
        arrays: B arrays [n, ...], which may differ in n.
        value: fills up the shorter ones.

    Returns:
        The arrays as one tensor [B, longest n, ...], and its mask int64 [B, longest n], 1 at data and 0 at padding.
    """
    longest = max(map(len, arrays))
    padded = np.full((len(arrays), longest, *arrays[0].shape[1:]), value, dtype=arrays[0].dtype)
    mask = np.zeros((len(arrays), longest), dtype=np.int64)
    for row, array in enumerate(arrays):
        padded[row, : len(array)] = array
        mask[row, : len(array)] = 1
    return torch.from_numpy(padded), torch.from_numpy(mask)

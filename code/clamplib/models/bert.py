"""The encoder of BERT and XLM-R in plain torch, under the parameter names of the published weights.

Importing this is several times faster than importing the same from transformers. Configs of transformers are accepted,
and tests compare the states with those of transformers' models.

Shapes: B items, L tokens, H hidden size.
"""

from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from clamplib.models.configs import XLM_R, AnyConfig

SHORT = 128  # tokens; attention over fewer trains twice as fast on a CPU if it is not fused


class Output:
    """The base of what models return: each value by attribute, by name, and by index among those that are there."""

    def __getitem__(self, key: str | int) -> torch.Tensor:
        values = {name: value for name, value in vars(self).items() if value is not None}
        return values[key] if isinstance(key, str) else list(values.values())[key]


@dataclass
class EncoderOutput(Output):
    """The states of the last layer, float [B, L, H]."""

    last_hidden_state: torch.Tensor


class Model(nn.Module):
    """A module with the attributes that callers read from a transformers model: `config`, `device` and `dtype`."""

    def __init__(self, config: AnyConfig):
        super().__init__()
        self.config = config

    @property
    def device(self) -> torch.device:
        """The device of the parameters, to which inputs are moved."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the parameters."""
        return next(self.parameters()).dtype


class Bert(Model):
    """BERT or XLM-R without a head.

    The weights of the pooler are not used. They are here because the published files hold them. Training on a CPU
    leaves padding out of all layers but attention; its states are then zeros.

    Args:
        config: of an encoder that `configs.is_bert`; one of transformers is taken too.

    Attributes:
        gradient_checkpointing: computes the states within a layer again in the backward pass of a training, in place of
            keeping them.
    """

    def __init__(self, config: AnyConfig):
        super().__init__(config)
        self.embeddings = Embeddings(config)
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))})
        self.pooler = nn.ModuleDict({"dense": nn.Linear(config.hidden_size, config.hidden_size)})
        self.gradient_checkpointing = False
        self.apply(self._initialize)

    def _initialize(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            nn.init.zeros_(module.weight[module.padding_idx])

    def get_input_embeddings(self) -> nn.Embedding:
        """Returns the embeddings of the words."""
        return self.embeddings.word_embeddings

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        *,
        inputs_embeds: torch.Tensor | None = None,
    ) -> EncoderOutput:
        """Encodes words or vectors.

        Args:
            input_ids: words [B, L].
            attention_mask: 1 at data and 0 at padding [B, L]; None: there is no padding.
            inputs_embeds: vectors [B, L, H] in place of words.

        Raises:
            ValueError: both or none of the two inputs are given.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("expected either input_ids or inputs_embeds")
        states = self.embeddings(input_ids, inputs_embeds)
        mask, packing = self._mask(attention_mask)
        if packing:
            states = packing.pack(states)
        for layer in self.encoder.layer:
            if self.gradient_checkpointing and self.training:
                states = checkpoint(layer, states, mask, packing, use_reentrant=False)
            else:
                states = layer(states, mask, packing)
        return EncoderOutput(packing.unpack(states) if packing else states)

    def _mask(self, attention_mask: torch.Tensor | None) -> tuple[torch.Tensor | None, "Packing | None"]:
        """The mask that attention takes, and what takes the padding out of the states.

        Both are None where nothing is padded. Only a CPU looks: a GPU would have to wait for the answer, and a compiled
        graph cannot depend on it.
        """
        if attention_mask is None:
            return None, None
        mask, packing = attention_mask.bool(), None
        if mask.device.type == "cpu" and not torch.compiler.is_compiling():
            if mask.all():
                return None, None
            packing = Packing(mask) if self.training else None
        return mask[:, None, None], packing


class Embeddings(nn.Module):
    """Sums the embeddings of words, or vectors in their place, and those of positions."""

    def __init__(self, config: AnyConfig):
        super().__init__()
        size, padding = config.hidden_size, config.pad_token_id
        self.word_embeddings = nn.Embedding(config.vocab_size, size, padding)
        first = padding if config.model_type == XLM_R else None  # XLM-R begins to count after the position of padding
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, size, first)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, size)
        self.LayerNorm = nn.LayerNorm(size, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, words: torch.Tensor | None, vectors: torch.Tensor | None) -> torch.Tensor:
        padding = self.position_embeddings.padding_idx
        if padding is not None and words is not None:  # padding is not counted, wherever it stands
            data = words != padding
            positions = self.position_embeddings(data.cumsum(1) * data + padding)
        else:
            first = 0 if padding is None else padding + 1
            length = (words if vectors is None else vectors).shape[1]
            positions = self.position_embeddings.weight[first : first + length]
        if vectors is None:
            vectors = self.word_embeddings(words)
        return self.dropout(self.LayerNorm(vectors + (positions + self.token_type_embeddings.weight[0])))


class Packing:
    """Where the data of padded items lies. All layers but attention compute each token by itself, without padding.

    Args:
        mask: true at data [B, L].
    """

    def __init__(self, mask: torch.Tensor):
        self.shape = mask.shape
        self.places = mask.flatten().nonzero().squeeze(1)

    def pack(self, states: torch.Tensor) -> torch.Tensor:
        """Takes the N states at data [N, H] from those of padded items [B, L, H]."""
        return states.flatten(0, 1).index_select(0, self.places)

    def unpack(self, states: torch.Tensor) -> torch.Tensor:
        """Puts states [N, H] where they were, among zeros [B, L, H]."""
        size = states.shape[1]
        zeros = states.new_zeros(self.shape.numel(), size)
        return zeros.index_copy(0, self.places, states).view(*self.shape, size)


class Layer(nn.Module):
    """Attention and a feed-forward network, each of which is added to its input and normalized."""

    def __init__(self, config: AnyConfig):
        super().__init__()
        self.attention = Attention(config)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(config.hidden_size, config.intermediate_size)})
        self.output = Residual(config.intermediate_size, config)

    def forward(self, states: torch.Tensor, mask: torch.Tensor | None, packing: Packing | None = None) -> torch.Tensor:
        states = self.attention(states, mask, packing)
        return self.output(F.gelu(self.intermediate.dense(states)), states)


class Attention(nn.Module):
    """Attention of each token to all tokens that are not padding."""

    def __init__(self, config: AnyConfig):
        super().__init__()
        size = config.hidden_size
        self.heads = config.num_attention_heads
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)  # is never called, but says how much
        self.self = nn.ModuleDict({name: nn.Linear(size, size) for name in ("query", "key", "value")})
        self.output = Residual(size, config)

    def forward(self, states: torch.Tensor, mask: torch.Tensor | None, packing: Packing | None = None) -> torch.Tensor:
        projected = [linear(states) for linear in self.self.values()]
        if packing:
            projected = [packing.unpack(vectors) for vectors in projected]
        heads = [vectors.unflatten(2, (self.heads, -1)).transpose(1, 2) for vectors in projected]
        dropout = self.dropout.p if self.training else 0.0
        short = self.training and states.device.type == "cpu" and projected[0].shape[1] <= SHORT
        with sdpa_kernel(SDPBackend.MATH) if short else nullcontext():
            mixed = F.scaled_dot_product_attention(
                *heads, attn_mask=mask, dropout_p=dropout
            )  # [B, heads, L, H / heads]
        mixed = mixed.transpose(1, 2).flatten(2)
        return self.output(packing.pack(mixed) if packing else mixed, states)


class Residual(nn.Module):
    """A linear layer, whose result is added to what went into the block and normalized."""

    def __init__(self, input_size: int, config: AnyConfig):
        super().__init__()
        self.dense = nn.Linear(input_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, states: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        states = self.dense(states)
        if self.training:  # else the call does nothing, but takes time, of which a single tune has little
            states = self.dropout(states)
        return self.LayerNorm(states + residual)

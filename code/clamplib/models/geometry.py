"""The sizes of a model, the configs of its encoders made from them, and the names of its weight files.

The defaults are the published ones. Attention heads are hidden/64 and the feed-forward width is 4 x hidden
everywhere, so that a hidden size of 64 has one head.
"""

import math
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

from clamplib.files import excerpt
from clamplib.formats.patchilizer import M3Patchilizer
from clamplib.models.configs import AnyConfig, EncoderConfig, check_config, make_config, read_text_config

if TYPE_CHECKING:
    from transformers import GPT2Config

LIMITS = {"size": 1 << 16, "layers": 1000, "length": 1 << 20}  # by how a field's name ends; real models are far below
CHARACTERS = 128  # ASCII: the values that one of a patch's characters can take
HEAD_SIZE = 64
ABC_READINGS = ("", "as found", "converted")
NOTES = ("", "canonical")


@dataclass(frozen=True)
class Geometry:
    """Sizes of M3 and CLaMP 3.

    `text_config` is the text encoder's own config as a dict (with its `model_type`); without one it is
    fetched from the hub's `text_model_name`, never its weights.
    The published models take plain dot products times `logit_scale`. With `learned_temperature` the loss takes
    L2-normalized features, and the scale is a parameter of the model that begins there.
    `abc` says how the model wants ABC that is not interleaved: "converted", or "as found"; "" is as found too, and a
    warning names the files. With `notes` "canonical" it reads all symbolic music in the form of `formats.canonical`.
    """

    patch_size: int = 64
    patch_length: int = 512
    patch_num_layers: int = 12
    token_num_layers: int = 3
    m3_hidden_size: int = 768
    clamp3_hidden_size: int = 768
    text_model_name: str = "FacebookAI/xlm-roberta-base"
    max_text_length: int = 128
    audio_hidden_size: int = 768
    audio_num_layers: int = 12
    max_audio_length: int = 128
    text_config: dict | None = None
    logit_scale: float = 1.0
    learned_temperature: bool = False
    dropout: float = 0.1
    abc: str = ""
    notes: str = ""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is int and (type(value) is not int or value < 1):
                raise ValueError(f"{field.name} must be a whole number above 0, not {excerpt(value)}")
            if field.type is int and value > (limit := LIMITS[field.name.rpartition("_")[2]]):
                raise ValueError(f"{field.name} must be at most {limit}, not {value}")
            if field.type is float and (type(value) not in (int, float) or not math.isfinite(value)):
                raise ValueError(f"{field.name} must be a finite number, not {excerpt(value)}")
        for name in ("m3_hidden_size", "audio_hidden_size"):
            if getattr(self, name) % HEAD_SIZE:
                raise ValueError(f"{name} must be a multiple of {HEAD_SIZE}, the size of an attention head")
        if self.abc not in ABC_READINGS:
            raise ValueError(f"abc must be one of {', '.join(map(repr, ABC_READINGS))}, not {excerpt(self.abc)}")
        if self.notes not in NOTES:
            raise ValueError(f"notes must be one of {', '.join(map(repr, NOTES))}, not {excerpt(self.notes)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), not {self.dropout}")
        if not isinstance(self.learned_temperature, bool):
            raise ValueError(f"learned_temperature must be true or false, not {excerpt(self.learned_temperature)}")
        if self.learned_temperature and self.logit_scale <= 0:
            raise ValueError(f"logit_scale must be above 0 for a learned temperature, not {self.logit_scale}")
        if not isinstance(self.text_model_name, str) or not self.text_model_name:
            raise ValueError(
                f"text_model_name must be a name on the hub or a folder, not {excerpt(self.text_model_name)}"
            )
        if self.text_config is not None:
            check_config(self.text_config, "text_config")

    def make_patchilizer(self) -> M3Patchilizer:
        """What cuts symbolic music into patches."""
        return M3Patchilizer(self.patch_size, self.patch_length, self.notes)

    def symbolic_config(self) -> EncoderConfig:
        """Config of the encoder over patches."""
        return self._bert(self.m3_hidden_size, self.patch_num_layers, self.patch_length)

    def audio_config(self) -> EncoderConfig:
        """Config of the encoder over MERT features."""
        return self._bert(self.audio_hidden_size, self.audio_num_layers, self.max_audio_length)

    def decoder_config(self) -> "GPT2Config":
        """Config of the decoder over one patch's characters."""
        from transformers import GPT2Config

        return GPT2Config(
            vocab_size=CHARACTERS,
            n_positions=self.patch_size,
            n_embd=self.m3_hidden_size,
            n_layer=self.token_num_layers,
            n_head=self.m3_hidden_size // HEAD_SIZE,
            n_inner=4 * self.m3_hidden_size,
            embd_pdrop=self.dropout,
            attn_pdrop=self.dropout,
            resid_pdrop=self.dropout,
            bos_token_id=1,
            eos_token_id=2,
        )

    def load_text_config(self) -> AnyConfig:
        """Config of the text encoder: `text_config`, or that of `text_model_name` (see `read_text_config`)."""
        config = make_config(self.text_config) if self.text_config else read_text_config(self.text_model_name)
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = self.dropout
        return config

    def clamp3_weights_name(self, variant: str) -> str:
        """Name of the weights of CLaMP 3 in `variant` ("saas", "c2" or a name of your own)."""
        return (
            f"weights_clamp3_{variant}_h_size_{self.clamp3_hidden_size}"
            f"_t_model_{self.text_model_name.replace('/', '_')}_t_length_{self.max_text_length}"
            f"_a_size_{self.audio_hidden_size}_a_layers_{self.audio_num_layers}"
            f"_a_length_{self.max_audio_length}"
            f"_s_size_{self.m3_hidden_size}_s_layers_{self.patch_num_layers}"
            f"_p_size_{self.patch_size}_p_length_{self.patch_length}.pth"
        )

    def m3_weights_name(self, learning_rate: float = 1e-4, batch_size: int = 16, mask_ratio: float = 0.45) -> str:
        """Name of the weights of M3 trained with these settings."""
        return (
            f"weights_m3_p_size_{self.patch_size}_p_length_{self.patch_length}"
            f"_t_layers_{self.token_num_layers}_p_layers_{self.patch_num_layers}"
            f"_h_size_{self.m3_hidden_size}_lr_{learning_rate}_batch_{batch_size}_mask_{mask_ratio}.pth"
        )

    def to_dict(self) -> dict:
        """All fields, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "Geometry":
        """The reverse of `to_dict`; a ValueError names fields that are unknown."""
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(f"a geometry has no field {', '.join(unknown)[:200]}")
        return cls(**values)

    def _bert(self, hidden_size: int, num_layers: int, length: int) -> EncoderConfig:
        return EncoderConfig(
            vocab_size=1,  # its inputs are vectors; the one word is there for the published names
            hidden_size=hidden_size,
            num_hidden_layers=num_layers,
            num_attention_heads=hidden_size // HEAD_SIZE,
            intermediate_size=4 * hidden_size,
            max_position_embeddings=length,
            hidden_dropout_prob=self.dropout,
            attention_probs_dropout_prob=self.dropout,
        )

"""Configs of encoders, in the words of transformers' config.json, and reading that of a text model.

A config may come from anyone. Its sizes are checked before a model is made of it, and code that it names is never run.
"""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from clamplib.files import InputError, cause_of, excerpt, read_object, show

if TYPE_CHECKING:
    from transformers import PretrainedConfig

CONFIG_NAME = "config.json"
XLM_R = "xlm-roberta"
BERT_TYPES = ("bert", XLM_R)  # what `bert.Bert` computes
MAX_LAYERS, MAX_LABELS, MAX_LIST = 1000, 1 << 16, 10_000  # numbers that cost time or memory before there is a weight

AnyConfig = Union["EncoderConfig", "PretrainedConfig"]


@dataclass
class EncoderConfig:
    """The config of a BERT or XLM-R. Names and defaults are those of transformers."""

    model_type: str = "bert"
    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        if self.pad_token_id is None:
            self.pad_token_id = 1 if self.model_type == XLM_R else 0
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is int and (type(value) is not int or value < 1):
                raise ValueError(f"{field.name} must be a whole number above 0, not {excerpt(value)}")
            if field.type is float and type(value) not in (int, float):
                raise ValueError(f"{field.name} must be a number, not {excerpt(value)}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"hidden_size must be a multiple of the {self.num_attention_heads} num_attention_heads")
        if type(self.pad_token_id) is not int or not 0 <= self.pad_token_id < self.vocab_size:
            raise ValueError(f"pad_token_id must be below the vocab_size, not {excerpt(self.pad_token_id)}")

    def to_dict(self) -> dict:
        """Returns the values for a config.json, which transformers reads too."""
        return asdict(self)


def is_bert(config: dict) -> bool:
    """Returns whether a config, given by its values, is one that `bert.Bert` computes."""
    return (
        config.get("model_type") in BERT_TYPES
        and config.get("hidden_act", "gelu") == "gelu"
        and (config.get("position_embedding_type") or "absolute") == "absolute"
        and not config.get("is_decoder")
    )


def make_config(values: dict) -> AnyConfig:
    """Makes the config of an encoder from its values, some of which may be missing.

    Raises:
        ValueError: a size is not that of a model. transformers may raise other errors for models of other types.
    """
    if is_bert(values):
        names = {field.name for field in fields(EncoderConfig)}
        return EncoderConfig(**{name: value for name, value in values.items() if name in names})
    from transformers import AutoConfig

    return AutoConfig.for_model(**values)


def read_text_config(name: str) -> AnyConfig:
    """Reads the config of a text model, a folder or a name on the hub. Code that the model brings is never run.

    Raises:
        OSError: there is no config, or it cannot be fetched.
        InputError: the config is damaged, its sizes are not those of a model, or it needs code of its own.
    """
    path = _find_config(name)
    values = read_object(path, "a text model")
    try:
        if "model_type" in values:
            check_config(values, "it")
            return make_config(values)
        check_sizes(values)
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(name, trust_remote_code=False)  # guesses the type of an old model by its name
    except OSError:
        raise
    except Exception as error:  # transformers and huggingface_hub raise a dozen kinds
        raise InputError(f"{show(path)}: expected the config of a text model ({cause_of(error)})") from error


def _find_config(name: str) -> Path:
    """Returns the path of a text model's config, which is fetched from the hub if it is not in a folder."""
    if Path(name).is_dir():
        return Path(name, CONFIG_NAME)
    import huggingface_hub
    from huggingface_hub.errors import HTTPError

    try:
        return Path(huggingface_hub.hf_hub_download(name, CONFIG_NAME))
    except (HTTPError, ValueError) as error:
        raise FileNotFoundError(f"{name} could not be fetched from the hub ({cause_of(error)})") from error


def check_config(config: Any, name: str) -> None:
    """Checks a config of transformers before a model is made of it.

    Args:
        config: the config, as its JSON states it.
        name: what an error calls it.

    Raises:
        ValueError: its model type is unknown, it asks for code from elsewhere, or a size is not that of any model.
    """
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ValueError(f"{name} must name its model_type, such as xlm-roberta")
    if config["model_type"] not in BERT_TYPES and not _is_of_transformers(config["model_type"]):
        own = ", and code that comes with a model is never run" if "auto_map" in config else ""
        raise ValueError(f"transformers has no model of type {excerpt(config['model_type'])}{own}")
    check_sizes(config)


def _is_of_transformers(model_type: str) -> bool:
    from transformers import CONFIG_MAPPING

    return model_type in CONFIG_MAPPING


def check_sizes(config: dict) -> None:
    """Checks the numbers of layers and labels in a config, and in those that it contains.

    Raises:
        ValueError: one is larger than that of any model, or the config names a kernel of the hub, which is code.
    """
    waiting = [config]
    while waiting:
        for key, value in waiting.pop().items():
            name = str(key)  # those of labels are numbers
            if isinstance(value, dict):
                waiting.append(value)
            elif isinstance(value, list) and len(value) > MAX_LIST:
                raise ValueError(f"{name} must have at most {MAX_LIST} entries, not {len(value)}")
            elif isinstance(value, int | float) and "layer" in name and value > MAX_LAYERS:
                raise ValueError(f"{name} must be at most {MAX_LAYERS}, not {value}")
            elif isinstance(value, int | float) and name == "num_labels" and value > MAX_LABELS:
                raise ValueError(f"{name} must be at most {MAX_LABELS}, not {value}")
            elif name.endswith("attn_implementation") and "/" in str(value):
                raise ValueError(f"{name} must be one of transformers, not code of the hub such as {excerpt(value)}")

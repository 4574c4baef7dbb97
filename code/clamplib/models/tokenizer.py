"""The tokenizer of a text encoder. It is read without transformers, the import of which would take seconds."""

from pathlib import Path
from typing import TYPE_CHECKING

from clamplib.files import InputError, atomic_path, cause_of, read_object, show, write_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER_NAME, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
TOKENIZER_BYTES = 1 << 28  # that of a vocabulary of 250,000 has 17 MB
PADDING_TOKENS = ("<pad>", "[PAD]")  # of XLM-R and BERT
PANIC = "PanicException"  # what the Rust of tokenizers raises, which is not an Exception


class TextTokenizer:
    """Gives the tokens of a text, like a tokenizer of transformers.

    Attributes:
        tokenizer: does the work.
        settings: those of tokenizer_config.json, with the two special tokens.
        sep_token: separates two texts. By default it is the one at the end of an encoded text.
        pad_token_id: fills up the shorter texts of a batch.
    """

    def __init__(self, tokenizer: "Tokenizer", settings: dict):
        """Takes a tokenizer and the settings of transformers for it.

        Raises:
            ValueError: it has no separator or no padding token.
        """
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.tokenizer = tokenizer
        last = tokenizer.encode("").tokens[-1:]
        self.sep_token = _content(settings.get("sep_token")) or "".join(last)
        known = [token for token in PADDING_TOKENS if tokenizer.token_to_id(token) is not None]
        padding = _content(settings.get("pad_token")) or "".join(known[:1])
        self.pad_token_id = tokenizer.token_to_id(padding)
        if not self.sep_token or self.pad_token_id is None:
            raise ValueError("it has no separator or no padding token")
        self.settings = {**settings, "sep_token": self.sep_token, "pad_token": padding}

    def __call__(self, text: str, verbose: bool = True) -> dict[str, list[int]]:
        """Returns the `input_ids` of a text, special tokens included, and the `attention_mask` of ones.

        Args:
            text: any text.
            verbose: has no effect. A tokenizer of transformers warns of long texts with it.
        """
        encoding = self.tokenizer.encode(text)
        return {"input_ids": encoding.ids, "attention_mask": encoding.attention_mask}

    def __len__(self) -> int:
        """Returns the size of the vocabulary: the highest token and one."""
        return max(self.tokenizer.get_vocab().values()) + 1

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes tokenizer.json and tokenizer_config.json, which transformers reads too."""
        with atomic_path(Path(folder, TOKENIZER_NAME)) as temporary:
            self.tokenizer.save(str(temporary))
        write_json(Path(folder, TOKENIZER_CONFIG), self.settings)


def _content(token: str | dict | None) -> str | None:
    """Returns a special token's text, which settings state alone or with its properties."""
    return token.get("content") if isinstance(token, dict) else token


def read_tokenizer(folder: str | Path) -> TextTokenizer:
    """Reads the tokenizer in a folder.

    Raises:
        FileNotFoundError: there is none.
        InputError: it is damaged, or it cannot encode texts.
    """
    path, config = Path(folder, TOKENIZER_NAME), Path(folder, TOKENIZER_CONFIG)
    if not path.is_file():
        raise FileNotFoundError(f"{show(folder)}: expected a folder of a text model with {TOKENIZER_NAME} in it")
    return _read(path, config if config.is_file() else None)


def fetch_tokenizer(name: str) -> TextTokenizer:
    """Reads the tokenizer of a text model on the hub, which is fetched unless it is in the cache.

    Raises:
        OSError, HTTPError: it cannot be fetched.
        InputError: it is damaged, or it cannot encode texts.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        path = Path(hf_hub_download(name, TOKENIZER_NAME))
    except LocalEntryNotFoundError:  # without a network
        raise
    except EntryNotFoundError:  # an old model, which has files of another kind
        return _convert(name)
    try:
        config = Path(hf_hub_download(name, TOKENIZER_CONFIG))
    except EntryNotFoundError:
        config = None
    return _read(path, config)


def _read(path: Path, config: Path | None) -> TextTokenizer:
    from tokenizers import Tokenizer

    if (size := path.stat().st_size) > TOKENIZER_BYTES:
        raise InputError(f"{show(path)}: expected a tokenizer of at most {TOKENIZER_BYTES:,} bytes, got {size:,}")
    settings = read_object(config, "a tokenizer's settings") if config else {}
    try:
        tokenizer = TextTokenizer(Tokenizer.from_file(str(path)), settings)
        tokenizer(tokenizer.sep_token.join("ab"))
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != PANIC:
            raise
        raise InputError(f"{show(path)}: expected the tokenizer of a text encoder ({cause_of(error)})") from error
    return tokenizer


def _convert(name: str) -> TextTokenizer:
    """Reads the tokenizer of a model on the hub by transformers, which converts files of other kinds."""
    from transformers import AutoTokenizer

    slow = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    try:
        return TextTokenizer(slow.backend_tokenizer, {"sep_token": slow.sep_token, "pad_token": slow.pad_token})
    except (AttributeError, ValueError) as error:
        raise InputError(f"{show(name)}: expected the tokenizer of a text encoder ({cause_of(error)})") from error

"""The tokenizers of text encoders: the same tokens as transformers gives, in every layout."""

import json
import shutil

import huggingface_hub
import pytest
import transformers
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from transformers import AutoTokenizer

from clamplib.models.tokenizer import fetch_tokenizer, read_tokenizer
from clamplib.models.variants import MINI

TEXTS = ["", "a slow air", "一首慢板</s>ein Walzer", " Ťažký\tvalčík  \u00a0ﬁ ", "word " * 400, "\ufffd<mask>🎵"]


@pytest.fixture
def folder(golden, tmp_path):
    return shutil.copytree(golden / "tiny/text_model", tmp_path / "text_model")


@pytest.mark.parametrize("own", [True, False])
def test_tokens_are_those_of_transformers(own, folder):
    folder = MINI if own else folder
    tokenizer, expected = read_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.sep_token, tokenizer.pad_token_id) == (expected.sep_token, expected.pad_token_id)
    assert len(tokenizer) == max(expected.get_vocab().values()) + 1
    for text in TEXTS:
        found = tokenizer(text, verbose=False)
        assert found == {name: expected(text, verbose=False)[name] for name in found}


def test_saved_tokenizers_are_read_by_transformers(folder, tmp_path):
    tokenizer = read_tokenizer(folder)
    (tmp_path / "saved").mkdir()
    tokenizer.save_pretrained(tmp_path / "saved")
    for again in (read_tokenizer(tmp_path / "saved"), AutoTokenizer.from_pretrained(tmp_path / "saved")):
        assert (again.sep_token, again.pad_token_id) == (tokenizer.sep_token, tokenizer.pad_token_id)
        for text in TEXTS:
            assert again(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_padding_and_truncation_of_the_file_are_not_applied(folder):
    expected = read_tokenizer(folder)(TEXTS[4])
    values = json.loads((folder / "tokenizer.json").read_text())
    values["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    values["padding"] = {
        **{"strategy": {"Fixed": 1000}, "direction": "Right", "pad_to_multiple_of": None},
        **{"pad_id": 1, "pad_type_id": 0, "pad_token": "<pad>"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(values))
    assert read_tokenizer(folder)(TEXTS[4]) == expected


def serve(monkeypatch, folder, missing=EntryNotFoundError):
    """Lets the hub have the files of a folder."""

    def download(name, file):
        if not (folder / file).is_file():
            raise missing(f"there is no {file}")
        return str(folder / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)


def test_the_published_layout_names_no_special_tokens(folder, monkeypatch):
    """The settings of FacebookAI/xlm-roberta-base are just {"model_max_length": 512}."""
    expected = read_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 512}')
    serve(monkeypatch, folder)
    tokenizer = fetch_tokenizer("some/one")
    assert (tokenizer.sep_token, tokenizer.pad_token_id) == (expected.sep_token, expected.pad_token_id)
    (folder / "tokenizer_config.json").unlink()
    assert fetch_tokenizer("some/one")(TEXTS[2]) == expected(TEXTS[2])


def test_an_old_model_of_the_hub_is_converted(folder, monkeypatch):
    """One without tokenizer.json. Code that it brings is not run."""
    expected, asked = AutoTokenizer.from_pretrained(folder), {}

    def load(name, **options):
        asked.update(options)
        return expected

    (folder / "tokenizer.json").unlink()
    serve(monkeypatch, folder)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", load)
    assert fetch_tokenizer("some/one")(TEXTS[2])["input_ids"] == expected(TEXTS[2])["input_ids"]
    assert asked == {"trust_remote_code": False}


def test_without_a_network_nothing_is_converted(folder, monkeypatch):
    (folder / "tokenizer.json").unlink()
    serve(monkeypatch, folder, LocalEntryNotFoundError)
    with pytest.raises(LocalEntryNotFoundError):
        fetch_tokenizer("some/one")

"""Variants: loading and saving them; what damaged and hostile folders say."""

import json
import os
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_checkpoints import assert_equal_states

from clamplib.app import cli
from clamplib.embedding.encoder import CLaMP3Encoder
from clamplib.files import InputError
from clamplib.models import loading, settings
from clamplib.models.checkpoints import load_checkpoint
from clamplib.models.hub import weights_sha256
from clamplib.models.loading import save_variant
from clamplib.models.variants import MINI, load_clamp3, load_m3, load_tokenizer

CODE = Path(__file__).parents[2] / "code"


def test_the_published_layout_loads_with_all_its_entries(tiny_weights, tiny_geometry):
    path = tiny_weights / "clamp3_tiny.pth"
    checkpoint = load_checkpoint(path)
    entries = {"model", "optimizer", "lr_sched", "epoch", "best_epoch", "min_eval_loss", "modality"}
    assert set(checkpoint) == entries
    loaded = load_clamp3(path, weights_folder=tiny_weights, geometry=tiny_geometry)
    assert_equal_states(loaded.model.state_dict(), checkpoint["model"])
    assert not loaded.model.training
    assert loaded.tokenizer("a")["input_ids"][0] == loaded.tokenizer.tokenizer.token_to_id("<s>")
    assert loaded.space["weights_sha256"] == weights_sha256(path)
    assert json.loads(json.dumps(loaded.space)) == loaded.space


def test_m3_keeps_its_tied_weights(tiny_m3):
    decoder = tiny_m3.decoder.base
    assert decoder.lm_head.weight is decoder.transformer.wte.weight


def test_names_of_the_settings_are_looked_for(tmp_path, tiny_weights, tiny_geometry):
    geometry = replace(tiny_geometry, text_model_name="tiny", text_config={"model_type": "xlm-roberta"})
    name = geometry.clamp3_weights_name("mine")
    with pytest.raises(FileNotFoundError, match=f"{name}: there are no such weights"):
        load_clamp3("mine", weights_folder=tmp_path, geometry=geometry)
    with pytest.raises(FileNotFoundError, match=name.replace(".pth", "_5.pth")):
        load_clamp3("mine", weights_folder=tmp_path, geometry=geometry, epoch=5)
    m3_name = geometry.m3_weights_name(1e-3, 8, 0.3)
    (tmp_path / m3_name).symlink_to(tiny_weights / "m3_tiny.pth")
    settings = {"learning_rate": 1e-3, "batch_size": 8, "mask_ratio": 0.3}
    loaded = load_m3("mine", weights_folder=tmp_path, geometry=geometry, **settings)
    assert_equal_states(loaded.model.state_dict(), load_checkpoint(tiny_weights / "m3_tiny.pth")["model"])


def test_another_geometry_lists_what_differs(tiny_weights, tiny_geometry):
    geometry = replace(tiny_geometry, clamp3_hidden_size=128, audio_num_layers=3)
    with pytest.raises(InputError) as raised:
        load_clamp3(tiny_weights / "clamp3_tiny.pth", weights_folder=tiny_weights, geometry=geometry)
    message = str(raised.value)
    assert "clamp3_tiny.pth" in message
    assert "text_proj.weight: expected [128, 64], got [96, 64]" in message
    assert "audio_model.encoder.layer.2.attention.self.query.weight: expected [128, 128], got none" in message
    assert "more" in message


def test_variant_round_trip(tmp_path, tiny_clamp3, tiny_m3, tiny_tokenizer, tiny_geometry):
    save_variant(tmp_path / "v", tiny_clamp3, tiny_tokenizer, tiny_geometry, tiny_m3, dtype=torch.float32)
    files = {"config.json", "model.safetensors", "m3.safetensors", "modules.json", "tokenizer.json"}
    files |= {"tokenizer_config.json"}
    assert {path.name for path in (tmp_path / "v").iterdir()} == files
    loaded = load_clamp3(tmp_path / "v", weights_folder=tmp_path)
    assert_equal_states(loaded.model.state_dict(), tiny_clamp3.state_dict())
    text = "Ein trauriger Walzer\nin Moll </s>"
    assert loaded.tokenizer(text)["input_ids"] == tiny_tokenizer(text)["input_ids"]
    assert loaded.tokenizer.sep_token == tiny_tokenizer.sep_token
    assert replace(loaded.geometry, text_config=None) == tiny_geometry
    m3 = load_m3(tmp_path / "v", weights_folder=tmp_path)
    assert_equal_states(m3.model.state_dict(), tiny_m3.state_dict())
    assert m3.tokenizer is None
    assert m3.space["weights_sha256"] != loaded.space["weights_sha256"]


def test_half_precision_is_loaded_as_float32(tmp_path, tiny_clamp3, tiny_tokenizer, tiny_geometry):
    save_variant(tmp_path, tiny_clamp3, tiny_tokenizer, tiny_geometry)
    assert "_name_or_path" not in (tmp_path / "config.json").read_text()  # a path on another machine
    loaded = load_clamp3(tmp_path, weights_folder=tmp_path)
    assert {value.dtype for value in loaded.model.state_dict().values()} == {torch.float32}
    assert_equal_states(loaded.model.state_dict(), tiny_clamp3.state_dict(), atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_a_loaded_model_does_not_change_with_its_file(kind, tmp_path, tiny_clamp3, tiny_tokenizer, tiny_geometry):
    path = tmp_path / f"model.{kind}"
    if kind == "pth":
        torch.save({"model": tiny_clamp3.state_dict()}, path)
    else:
        save_variant(tmp_path, tiny_clamp3, tiny_tokenizer, tiny_geometry, dtype=torch.float32)
    found = path if kind == "pth" else tmp_path
    loaded = load_clamp3(found, weights_folder=tmp_path, geometry=tiny_geometry)
    path.write_bytes(bytes(path.stat().st_size))
    assert_equal_states(loaded.model.state_dict(), tiny_clamp3.state_dict())
    weight = loaded.model.symbolic_model.patch_embedding.weight
    assert weight.t().is_contiguous()  # as the sum reads it


def test_incomplete_folders_are_named(tmp_path, tiny_variant):
    with pytest.raises(FileNotFoundError, match=r"a folder of weights with config\.json in it"):
        load_clamp3(tmp_path, weights_folder=tmp_path)
    (tmp_path / "config.json").write_text('{"patch_size": 64, "color": 1}')
    (tmp_path / "model.safetensors").write_bytes((tiny_variant / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(InputError, match=r"config\.json: expected the geometry .*no field color"):
        load_clamp3(tmp_path, weights_folder=tmp_path)
    (tmp_path / "config.json").write_bytes((tiny_variant / "config.json").read_bytes())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tiny_variant / name).read_bytes())
    with pytest.raises(InputError, match=r"model\.safetensors: expected a checkpoint or weights, got 5,000 bytes"):
        load_clamp3(tmp_path, weights_folder=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"m3\.safetensors"):
        load_m3(tmp_path, weights_folder=tmp_path)
    with pytest.raises(ValueError, match="expected no epoch .* got 3"):
        load_clamp3(tiny_variant, weights_folder=tmp_path, epoch=3)


# ------------------------------------------------------------------------------------ folders of anyone

NESTED = "[" * 200_000  # json raises RecursionError
CONFIG, TOKENIZER, SETTINGS, WEIGHTS = "config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"


@pytest.fixture
def folder(tiny_variant, tmp_path, monkeypatch):
    """A copy of a variant, to be changed. A question on the terminal fails the test."""

    def ask(*_):
        raise AssertionError("a question was asked")

    monkeypatch.setattr("builtins.input", ask)
    return Path(shutil.copytree(tiny_variant, tmp_path / "variant"))


def change(path, **changes):
    """Changes entries of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_text(folder, **changes):
    """Changes entries of the text encoder's config."""
    config = json.loads((folder / CONFIG).read_text())
    change(folder / CONFIG, text_config={**config["text_config"], **changes})


def refusal(folder) -> str:
    """What loading a folder says, which has to begin with a file in it."""
    with pytest.raises(InputError) as raised:
        load_clamp3(folder, weights_folder=folder)
    message = str(raised.value)
    assert message.startswith(f"{folder}/")
    return message.removeprefix(f"{folder}/")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"m3_hidden_size": 64 * 10**9}, "m3_hidden_size must be at most 65536, not 64000000000"),
        ({"audio_num_layers": 10**6}, "audio_num_layers must be at most 1000, not 1000000"),
        ({"max_audio_length": 10**12}, "max_audio_length must be at most 1048576"),
        ({"patch_length": -1}, "patch_length must be a whole number above 0, not -1"),
        ({"patch_length": "128"}, "patch_length must be a whole number above 0, not '128'"),
        ({"patch_length": True}, "patch_length must be a whole number above 0, not True"),
        ({"patch_length": None}, "patch_length must be a whole number above 0, not None"),
        ({"audio_num_layers": [2]}, r"audio_num_layers must be a whole number above 0, not \[2\]"),
        ({"dropout": float("nan")}, "dropout must be a finite number, not nan"),
        ({"logit_scale": float("inf")}, "logit_scale must be a finite number, not inf"),
        ({"learned_temperature": "yes"}, "learned_temperature must be true or false, not 'yes'"),
        ({"learned_temperature": True, "logit_scale": 0}, "logit_scale must be above 0 for a learned temperature"),
        ({"text_model_name": 5}, "text_model_name must be a name on the hub or a folder, not 5"),
        ({"text_config": [1]}, "text_config must name its model_type"),
        ({"text_config": {"model_type": ["bert"]}}, "text_config must name its model_type"),
        ({"text_config": {"model_type": "evil"}}, "transformers has no model of type 'evil'"),
        ({"max_text_length": 100_000}, r"a max_text_length of at most \d+"),
    ],
)
def test_sizes_of_no_model_are_refused(folder, changes, message):
    change(folder / CONFIG, **changes)
    assert re.match(rf"config\.json: expected .*{message}", refusal(folder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 10**6}, r"config\.json: .*num_hidden_layers must be at most 1000"),
        ({"n": {"num_labels": 10**9}}, r"config\.json: .*num_labels must be at most 65536"),  # a dict of as many
        ({"id2label": [0] * 20_000}, r"config\.json: .*id2label must have at most 10000 entries, not 20000"),
        ({"hidden_size": "64"}, r"config\.json: .*hidden_size must be a whole number above 0, not '64'"),
        ({"hidden_size": 10**9 + 1}, r"config\.json: .*hidden_size must be a multiple of the \d+ num_attention_heads"),
        ({"num_attention_heads": 0}, r"config\.json: .*num_attention_heads must be a whole number above 0, not 0"),
        ({"vocab_size": -1}, r"config\.json: .*expected sizes of which a model can be made"),
        ({"layer_norm_eps": "0"}, r"config\.json: .*layer_norm_eps must be a number, not '0'"),
        ({"pad_token_id": 10**6}, r"config\.json: .*pad_token_id must be below the vocab_size, not 1000000"),
        ({"model_type": "roberta", "hidden_size": "64"}, r"config\.json: .*'hidden_size' expected int"),
        ({"model_type": "roberta", "dtype": "float15"}, r"config\.json: .*float15"),
        ({"model_type": "roberta", "self": 1}, r"config\.json: .*multiple values for argument 'self'"),
        ({"model_type": "gpt2"}, r"model\.safetensors: these weights are of another geometry"),
        ({"attn_implementation": "evil/kernel"}, r"config\.json: .*not code of the hub such as 'evil/kernel'"),
        ({"vocab_size": 10**12}, r"model\.safetensors: .*\n.*word_embeddings.weight: expected \[1000000000000, 64\]"),
    ],
)
def test_text_encoders_of_no_model_are_refused(folder, changes, message):
    change_text(folder, **changes)
    assert re.match(message, refusal(folder))


@pytest.mark.parametrize("name", [CONFIG, SETTINGS])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (NESTED, "RecursionError"),
        ('{"a":' * 200_000, "RecursionError"),
        ('{"patch_size": 6', "JSONDecodeError"),
        ("", "JSONDecodeError"),
        ("[]", "an object, got list"),
        ("5", "an object, got int"),
        ("\0\xff", "Error"),
        (f'{{"a": {"9" * 5000}}}', "4300 digits"),
    ],
)
def test_damaged_json_is_named(folder, name, content, message):
    (folder / name).write_text(content, encoding="latin-1")
    assert re.match(rf"{name}: expected the JSON of a .*{message}", refusal(folder))


def test_a_huge_config_is_not_read(folder):
    with open(folder / CONFIG, "r+b") as file:
        file.truncate(1 << 40)
    assert re.match(r"config\.json: expected the JSON .* at most 16,777,216 bytes, got 1,099,511", refusal(folder))


@pytest.mark.parametrize("content", ["", "[]", "{}", "words", NESTED, '{"model": "x"}', "\xff\0"])
def test_a_damaged_tokenizer_is_named(folder, content):
    (folder / TOKENIZER).write_text(content, encoding="latin-1")
    assert refusal(folder).startswith("tokenizer.json: expected the tokenizer of a text encoder (")


def test_a_cut_tokenizer_is_named(folder):
    (folder / TOKENIZER).write_bytes((folder / TOKENIZER).read_bytes()[:1000])
    assert refusal(folder).startswith("tokenizer.json: expected the tokenizer of a text encoder (")
    (folder / TOKENIZER).unlink()
    with pytest.raises(FileNotFoundError, match=r"with tokenizer\.json in it"):
        load_clamp3(folder, weights_folder=folder)


def test_a_tokenizer_that_panics_is_named(folder, capfd):
    """The Rust of tokenizers ends with a PanicException, which is not an Exception, if a special token is missing."""
    tokenizer = json.loads((folder / TOKENIZER).read_text())
    tokenizer["post_processor"]["special_tokens"] = {}
    (folder / TOKENIZER).write_text(json.dumps(tokenizer))
    assert refusal(folder).startswith("tokenizer.json: expected the tokenizer of a text encoder (")


def test_a_tokenizer_of_another_model_is_refused(folder):
    change(folder / SETTINGS, sep_token=5)
    assert refusal(folder).startswith("tokenizer.json: expected the tokenizer of a text encoder (")
    tokenizer = json.loads((folder / TOKENIZER).read_text())
    (folder / TOKENIZER).write_text(json.dumps({**tokenizer, "post_processor": None}))
    (folder / SETTINGS).write_text("{}")
    assert "it has no separator or no padding token" in refusal(folder)
    shutil.copy(MINI / TOKENIZER, folder)
    shutil.copy(MINI / SETTINGS, folder)
    assert re.match(r"tokenizer\.json: expected tokens below \d+, as the text encoder has, got 5999", refusal(folder))


@pytest.mark.parametrize("cut", [0, 7, 8, 1000, 100_000])
def test_cut_weights_are_named(folder, cut):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:cut])
    assert refusal(folder).startswith(f"model.safetensors: expected a checkpoint or weights, got {cut:,} bytes")


def test_damaged_headers_are_named(folder):
    whole = (folder / WEIGHTS).read_bytes()
    size = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + size])
    name = next(name for name in header if name != "__metadata__")

    def stating(values: dict) -> bytes:
        text = json.dumps(values).encode()
        return len(text).to_bytes(8, "little") + text + whole[8 + size :]

    for changes in ({"shape": [10**9, 10**9]}, {"shape": [-1]}, {"dtype": "X9"}, {"data_offsets": [0, 10**15]}):
        (folder / WEIGHTS).write_bytes(stating({**header, name: {**header[name], **changes}}))
        assert refusal(folder).startswith("model.safetensors: expected a checkpoint or weights, got ")
    for content in ((2**62).to_bytes(8, "little") + whole[8:], len(NESTED).to_bytes(8, "little") + NESTED.encode()):
        (folder / WEIGHTS).write_bytes(content)
        assert refusal(folder).startswith("model.safetensors: expected a checkpoint or weights, got ")
    (folder / WEIGHTS).write_bytes(stating({}))
    assert refusal(folder).startswith("model.safetensors: ")


def test_sizes_are_compared_with_the_weights_before_memory_is_taken(folder, monkeypatch):
    """The largest sizes that are allowed would take terabytes."""
    monkeypatch.setattr(loading, "read_weights", None)  # not even the file is read
    change(folder / CONFIG, m3_hidden_size=65536, clamp3_hidden_size=65536, max_audio_length=1 << 20)
    assert re.match(r"model\.safetensors: .*another geometry", refusal(folder))


EVIL_CODE = """
import pathlib, transformers
pathlib.Path({mark!r}).touch()
class Evil(transformers.BertConfig, transformers.BertModel, transformers.PreTrainedTokenizerFast): pass
"""
AUTO_MAP = {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil", "AutoTokenizer": ["evil.Evil", "evil.Evil"]}


@pytest.fixture
def text_model(golden, tmp_path):
    """A text model with code of its own, which leaves a mark when it runs: its folder, and the path of the mark."""
    own = Path(shutil.copytree(golden / "tiny/text_model", tmp_path / "text_model"))
    mark = tmp_path / "ran"
    (own / "evil.py").write_text(EVIL_CODE.format(mark=str(mark)))
    for name in (CONFIG, SETTINGS):
        change(own / name, auto_map=AUTO_MAP)
    yield own
    assert not mark.exists()


def test_code_of_a_text_model_is_refused(folder, text_model):
    change(text_model / CONFIG, model_type="evil")
    change(folder / CONFIG, text_config=None, text_model_name=str(text_model))
    with pytest.raises(InputError, match=r"text_model/config\.json: .* no model of type 'evil', and code .* never run"):
        load_clamp3(folder, weights_folder=folder)
    with pytest.raises(InputError, match=r"text_model/config\.json: .*never run"):
        settings.make_geometry(settings.load_settings(text_settings(text_model)))


def text_settings(text_model) -> Path:
    file = text_model.parent / "settings.py"
    file.write_text(f"TEXT_MODEL_NAME = {str(text_model)!r}\n")
    return file


def test_code_that_is_not_needed_is_not_run(folder, text_model, tiny_clamp3):
    """A model that transformers itself has is loaded by its class, and its tokenizer too."""
    shutil.copy(text_model / "evil.py", folder)
    change(folder / SETTINGS, auto_map=AUTO_MAP, tokenizer_class="Evil")
    change_text(folder, auto_map=AUTO_MAP)
    expected = load_clamp3(folder, weights_folder=folder)
    change(folder / CONFIG, text_config=None, text_model_name=str(text_model))
    found = load_clamp3(folder, weights_folder=folder)
    assert_equal_states(found.model.state_dict(), expected.model.state_dict())
    load_tokenizer(found.geometry)("a")
    settings.load_text_encoder(tiny_clamp3, str(text_model))
    assert settings.make_geometry(settings.load_settings(text_settings(text_model))).text_config


def test_damaged_weights_of_a_text_model_are_named(text_model, tiny_clamp3):
    (text_model / WEIGHTS).write_bytes((text_model / WEIGHTS).read_bytes()[:5000])
    with pytest.raises((InputError, OSError), match="text_model"):
        settings.load_text_encoder(tiny_clamp3, str(text_model))
    (text_model / WEIGHTS).unlink()

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(text_model.parent / "ran"),)

    torch.save({"model": Evil()}, text_model / "pytorch_model.bin")
    with pytest.raises((InputError, OSError), match="text_model"):
        settings.load_text_encoder(tiny_clamp3, str(text_model))


def test_every_door_refuses(folder, text_model, tmp_path, monkeypatch, capsys):
    """The message is the same by the encoder, the command and the script."""
    monkeypatch.syspath_prepend(CODE)
    monkeypatch.setenv("CLAMP3_CACHE", str(tmp_path / "cache"))
    import extract_clamp3

    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").write_text("a slow air")
    texts, out = str(tmp_path / "texts"), str(tmp_path / "out")
    change(text_model / CONFIG, model_type="evil")
    change(folder / CONFIG, text_config=None, text_model_name=str(text_model))
    with pytest.raises(InputError, match=r"config\.json: .*never run"):
        CLaMP3Encoder.from_pretrained(folder)
    assert cli.main(["search", "a slow air", texts, "--variant", str(folder)]) == 1
    assert extract_clamp3.main([texts, out, "--get_global", "--variant", str(folder)]) == 1
    assert capsys.readouterr().err.count("code that comes with a model is never run") == 2
    sys.modules.pop("extract_clamp3")

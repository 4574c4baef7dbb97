"""Weights: found, fetched, loaded and saved; what damaged and missing ones say."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from clamplib.files import InputError, sha256
from clamplib.models import checkpoints
from clamplib.models.checkpoints import (
    load_checkpoint,
    load_clamp3,
    load_m3,
    load_weights,
    save_checkpoint,
    save_variant,
    weights_sha256,
)
from clamplib.models.geometry import Geometry


def assert_equal_states(found, expected, **tolerance):
    assert set(found) == set(expected)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], **(tolerance or {"atol": 0, "rtol": 0}))


def test_the_published_layout_loads_with_all_its_entries(tiny_weights, tiny_geometry):
    path = tiny_weights / "clamp3_tiny.pth"
    checkpoint = load_checkpoint(path)
    entries = {"model", "optimizer", "lr_sched", "epoch", "best_epoch", "min_eval_loss", "modality"}
    assert set(checkpoint) == entries
    loaded = load_clamp3(path, weights_folder=tiny_weights, geometry=tiny_geometry)
    assert_equal_states(loaded.model.state_dict(), checkpoint["model"])
    assert not loaded.model.training
    assert loaded.tokenizer("a")["input_ids"][0] == loaded.tokenizer.cls_token_id
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


def test_checkpoint_round_trip(tmp_path):
    path = tmp_path / ("a $name 'with' \"quotes\"" + "é" * 100 + ".pth")  # names are data, whatever they contain
    state = {"model": {"weight": torch.randn(3)}, "epoch": 2, "min_eval_loss": 0.5}
    save_checkpoint(path, state)
    loaded = load_checkpoint(path)
    assert_equal_states(loaded.pop("model"), state.pop("model"))
    assert loaded == state
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "weights.pth"
    save_checkpoint(path, {"model": {}, "epoch": 1})

    def fail(state, file):
        file.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="no space left"):
        save_checkpoint(path, {"model": {}, "epoch": 2})
    assert load_checkpoint(path)["epoch"] == 1
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "overwritten", "another object"])
def test_damaged_checkpoints_are_named(damage, tmp_path, tiny_weights):
    whole = (tiny_weights / "m3_tiny.pth").read_bytes()
    contents = {
        "empty": b"",
        "cut": whole[: len(whole) // 2],
        "text": b"<html>404</html>",
        "overwritten": whole[:1000] + bytes(1000) + whole[2000:],
    }
    path = tmp_path / "damaged.pth"
    if damage == "another object":
        torch.save([1, 2], path)
    else:
        path.write_bytes(contents[damage])
    with pytest.raises(InputError, match=r"damaged\.pth: expected a checkpoint"):
        load_checkpoint(path)


def test_pickled_code_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"model": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(InputError, match=r"evil\.pth"):
        load_checkpoint(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


def test_another_geometry_lists_what_differs(tiny_weights, tiny_geometry):
    geometry = replace(tiny_geometry, clamp3_hidden_size=128, audio_num_layers=3)
    with pytest.raises(InputError) as raised:
        load_clamp3(tiny_weights / "clamp3_tiny.pth", weights_folder=tiny_weights, geometry=geometry)
    message = str(raised.value)
    assert "clamp3_tiny.pth" in message
    assert "text_proj.weight: expected [128, 64], got [96, 64]" in message
    assert "audio_model.encoder.layer.2.attention.self.query.weight: expected [128, 128], got none" in message
    assert "more" in message


def test_names_that_the_model_lacks_are_listed(tiny_m3):
    state = {**tiny_m3.state_dict(), "odd": torch.zeros(2)}
    with pytest.raises(InputError, match=r"odd: expected none, got \[2\]"):
        load_weights(tiny_m3, state, "file.pth")


def test_variant_round_trip(tmp_path, tiny_clamp3, tiny_m3, tiny_tokenizer, tiny_geometry):
    save_variant(tmp_path / "v", tiny_clamp3, tiny_tokenizer, tiny_geometry, tiny_m3, dtype=torch.float32)
    files = {"config.json", "model.safetensors", "m3.safetensors", "modules.json", "tokenizer.json"}
    files |= {"tokenizer_config.json"}
    assert {path.name for path in (tmp_path / "v").iterdir()} == files
    loaded = load_clamp3(tmp_path / "v", weights_folder=tmp_path)
    assert_equal_states(loaded.model.state_dict(), tiny_clamp3.state_dict())
    text = "Ein trauriger Walzer\nin Moll </s>"
    assert loaded.tokenizer(text) == tiny_tokenizer(text)
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


def test_the_hash_of_a_large_file_is_kept_until_it_changes(tmp_path, monkeypatch):
    path, kept = tmp_path / "weights.pth", tmp_path / "weights.pth.sha256"
    path.write_bytes(b"one")
    small = weights_sha256(path)
    assert not kept.exists()
    monkeypatch.setattr(checkpoints, "HASHED_AT_ONCE", 1)
    assert weights_sha256(path) == small
    assert kept.exists()
    kept.write_text(kept.read_text().replace(small, "0" * 64))
    assert weights_sha256(path) == "0" * 64
    path.write_bytes(b"three")
    assert weights_sha256(path) not in (small, "0" * 64)


def test_what_cannot_be_fetched_offline_is_named(tmp_path):
    """In another process with an empty cache, since the hub's settings are read when it is imported."""
    (tmp_path / Geometry().clamp3_weights_name("c2")).touch()  # so that its tokenizer is what is missing
    code = f"""
from clamplib.models.checkpoints import load_clamp3
for variant in ("saas", "c2"):
    try:
        load_clamp3(variant, weights_folder={str(tmp_path)!r})
    except FileNotFoundError as error:
        print(error)
"""
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-W", "error", "-c", code]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    weights, tokenizer = run.stdout.splitlines()
    name = Geometry().clamp3_weights_name("saas")
    for part in (name, "2,571,027,658 bytes", "sander-wood/clamp3", f"Put the file into {tmp_path}", "mini"):
        assert part in weights
    for part in ("tokenizer of FacebookAI/xlm-roberta-base", "--variant mini"):
        assert part in tokenizer


def test_the_hub_is_asked_for_the_very_file(tmp_path, monkeypatch):
    asked = []

    def refuse(repo, name, revision):
        asked.append((repo, name, revision))
        raise OSError("refused")

    monkeypatch.setattr(checkpoints.huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(FileNotFoundError, match=r"of the hub's sander-wood/clamp2 .* could not be fetched"):
        load_m3("saas", weights_folder=tmp_path)
    with pytest.raises(FileNotFoundError, match="refused"):
        load_clamp3("c2", weights_folder=tmp_path, revision="v1")
    with pytest.raises(FileNotFoundError, match="no such weights"):  # never published, so the hub is not asked
        load_clamp3("c2", weights_folder=tmp_path, epoch=10)
    assert asked == [
        (
            "sander-wood/clamp2",
            "weights_m3_p_size_64_p_length_512_t_layers_3_p_layers_12_h_size_768_lr_0.0001_batch_16_mask_0.45.pth",
            None,
        ),
        ("sander-wood/clamp3", Geometry().clamp3_weights_name("c2"), "v1"),
    ]


def cached(path, content: bytes, stated: str):
    """A file in the layout of the hub's cache: a link to a file that is named by the hash that the hub stated."""
    blob = path.parent.parent / "blobs" / stated
    for folder in (path.parent, blob.parent):
        folder.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(content)
    path.symlink_to(blob)
    return path


@pytest.fixture
def hub(tmp_path, tiny_variant, monkeypatch):
    """The tiny variant in the hub's cache: its folder, and a list that fills with what the hub is asked for."""
    folder, asked = tmp_path / "cache/snapshot", []
    for file in tiny_variant.iterdir():
        large = file.suffix == ".safetensors"
        stated = sha256(file) if large else "0" * 40 + file.name  # the hub states another hash for small files
        cached(folder / file.name, file.read_bytes(), stated)

    def download(name, *, revision, allow_patterns):
        asked.append((name, revision, tuple(allow_patterns)))
        return str(folder)

    monkeypatch.setattr(checkpoints.huggingface_hub, "snapshot_download", download)
    return folder, asked


def test_a_variant_on_the_hub(hub, tiny_variant, tmp_path):
    _, asked = hub
    loaded = load_clamp3("some.one/tiny-v1", weights_folder=tmp_path, revision="main")
    local = load_clamp3(tiny_variant, weights_folder=tmp_path)
    assert_equal_states(loaded.model.state_dict(), local.model.state_dict())
    assert loaded.space == {**local.space, "variant": "some.one/tiny-v1"}
    load_clamp3("some.one/tiny-v1", weights_folder=tmp_path)
    patterns = ("*.json", "*.safetensors")  # nothing that could hold code
    assert asked == [("some.one/tiny-v1", "main", patterns), ("some.one/tiny-v1", None, patterns)]


def test_the_hub_is_not_asked_for_what_is_here(hub, tiny_variant, tmp_path, monkeypatch):
    _, asked = hub
    (tmp_path / "some").mkdir()
    (tmp_path / "some/one").symlink_to(tiny_variant)
    monkeypatch.chdir(tmp_path)
    load_clamp3("some/one", weights_folder=tmp_path)
    for variant in ("gone.pth", "some/gone.pth"):
        with pytest.raises(FileNotFoundError):
            load_clamp3(variant, weights_folder=tmp_path)
    with pytest.raises(FileNotFoundError, match="no such weights"):
        load_clamp3("mine", weights_folder=tmp_path)
    assert asked == []


@pytest.mark.parametrize("size", [1, 100_000_000])
def test_a_damaged_download_is_named(hub, tmp_path, monkeypatch, size):
    monkeypatch.setattr(checkpoints, "HASHED_AT_ONCE", size)
    folder, _ = hub
    blob = (folder / "model.safetensors").resolve()
    whole = blob.read_bytes()
    blob.write_bytes(whole[:-9] + bytes(9))
    with pytest.raises(InputError) as raised:
        load_clamp3("some/one", weights_folder=tmp_path)
    for part in (f"{folder}/model.safetensors: ", f"SHA-256 {blob.name}", "damaged", f"Remove {blob} and run again"):
        assert part in str(raised.value)
    blob.write_bytes(whole)
    load_clamp3("some/one", weights_folder=tmp_path)


def test_a_damaged_published_file_is_named(tmp_path, monkeypatch):
    name = Geometry().clamp3_weights_name("saas")
    path = cached(tmp_path / "snapshot" / name, b"cut off", "a" * 64)
    monkeypatch.setattr(checkpoints.huggingface_hub, "hf_hub_download", lambda *_, revision: str(path))
    with pytest.raises(InputError, match=rf"expected the content of SHA-256 {'a' * 64}, got another"):
        load_clamp3("saas", weights_folder=tmp_path / "none")


@pytest.mark.parametrize("error", [OSError("no network"), ValueError("no such name")])
def test_a_variant_that_cannot_be_fetched(error, tmp_path, monkeypatch):
    def refuse(name, **options):
        raise error

    monkeypatch.setattr(checkpoints.huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(FileNotFoundError, match=f"some/one is not a folder here, .* could not be fetched .*{error}"):
        load_clamp3("some/one", weights_folder=tmp_path)

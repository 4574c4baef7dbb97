"""The hub: what it is asked for, what is missing, and damaged downloads."""

import hashlib
import os
import re
import subprocess
import sys

import huggingface_hub
import pytest
from test_checkpoints import assert_equal_states

from clamplib.embedding.reading import BLIP_REPO
from clamplib.files import InputError, sha256
from clamplib.models import hub as models_hub
from clamplib.models.geometry import Geometry
from clamplib.models.hub import CLAMP3_REPO, MERT_REPO, PUBLISHED, SHA256, PublishedFile, fetch_file
from clamplib.models.variants import load_clamp3, load_m3


def test_what_cannot_be_fetched_offline_is_named(tmp_path):
    """In another process with an empty cache, since the hub's settings are read when it is imported."""
    (tmp_path / Geometry().clamp3_weights_name("c2")).touch()  # so that its tokenizer is what is missing
    code = f"""
from clamplib.models.variants import load_clamp3
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

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
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

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
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
    monkeypatch.setattr(models_hub, "HASHED_AT_ONCE", size)
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
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, revision: str(path))
    with pytest.raises(InputError, match=rf"expected the content of SHA-256 {'a' * 64}, got another"):
        load_clamp3("saas", weights_folder=tmp_path / "none")


@pytest.mark.parametrize("error", [OSError("no network"), ValueError("no such name")])
def test_a_variant_that_cannot_be_fetched(error, tmp_path, monkeypatch):
    def refuse(name, **options):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(FileNotFoundError, match=f"some/one is not a folder here, .* could not be fetched .*{error}"):
        load_clamp3("some/one", weights_folder=tmp_path)


def test_the_table_of_published_files():
    assert {BLIP_REPO, MERT_REPO} < {repo for repo, _ in PUBLISHED}
    for published in PUBLISHED.values():
        assert (published.revision is None) == (published.sha256 is None)  # another commit may have another file
        assert published.revision is None or re.fullmatch("[0-9a-f]{40}", published.revision)
        assert published.sha256 is None or SHA256.fullmatch(published.sha256)


def test_a_known_hash_is_checked(tmp_path, monkeypatch):
    name, asked = Geometry().clamp3_weights_name("saas"), []
    path = tmp_path / "snapshot" / name
    path.parent.mkdir()
    path.write_bytes(b"right")
    known = PublishedFile(revision="c" * 40, sha256=hashlib.sha256(b"right").hexdigest())
    monkeypatch.setitem(PUBLISHED, (CLAMP3_REPO, name), known)

    def download(repo, name, revision):
        asked.append(revision)
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert fetch_file(CLAMP3_REPO, name) == path
    path.write_bytes(b"wrong")
    with pytest.raises(InputError, match=rf"expected the content of SHA-256 {known.sha256}, got another: .* damaged"):
        load_clamp3("saas", weights_folder=tmp_path / "none")
    assert fetch_file(CLAMP3_REPO, name, "v2") == path  # another commit, another file
    assert asked == ["c" * 40, "c" * 40, "v2"]

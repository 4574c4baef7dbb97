"""Files of weights: saved, read, checked and hashed; what damaged ones say."""

import os
import zipfile

import pytest
import torch

from clamplib.files import InputError
from clamplib.models import hub
from clamplib.models.checkpoints import (
    check_weights,
    load_checkpoint,
    load_weights,
    read_shapes,
    read_weights,
    save_checkpoint,
)
from clamplib.models.hub import weights_sha256


def assert_equal_states(found, expected, **tolerance):
    assert set(found) == set(expected)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], **(tolerance or {"atol": 0, "rtol": 0}))


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


def test_names_that_the_model_lacks_are_listed(tiny_m3):
    state = {**tiny_m3.state_dict(), "odd": torch.zeros(2)}
    with pytest.raises(InputError, match=r"odd: expected none, got \[2\]"):
        load_weights(tiny_m3, state, "file.pth")


def test_the_hash_of_a_large_file_is_kept_until_it_changes(tmp_path, monkeypatch):
    path, kept = tmp_path / "weights.pth", tmp_path / "weights.pth.sha256"
    path.write_bytes(b"one")
    small = weights_sha256(path)
    assert not kept.exists()
    monkeypatch.setattr(hub, "HASHED_AT_ONCE", 1)
    assert weights_sha256(path) == small
    assert kept.exists()
    kept.write_text(kept.read_text().replace(small, "0" * 64))
    assert weights_sha256(path) == "0" * 64
    path.write_bytes(b"three")
    assert weights_sha256(path) not in (small, "0" * 64)


def edited(source, target, compression=zipfile.ZIP_STORED, edit=bytes):
    """Copies a checkpoint with another pickle in it, or compressed."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, edit(data) if name.endswith("data.pkl") else data)
    return target


def test_a_compressed_checkpoint_is_refused(tmp_path):
    """A pickle of gigabytes would be unpacked into memory."""
    save_checkpoint(tmp_path / "whole.pth", {"model": {"weight": torch.zeros(9)}})
    path = edited(tmp_path / "whole.pth", tmp_path / "bomb.pth", zipfile.ZIP_DEFLATED, lambda data: data + bytes(10**7))
    assert path.stat().st_size < 100_000
    with pytest.raises(InputError, match=r"bomb\.pth: expected a checkpoint or weights, got .* \(ValueError\)"):
        load_checkpoint(path)


def test_sizes_that_a_checkpoint_does_not_hold_are_refused(tmp_path):
    save_checkpoint(tmp_path / "whole.pth", {"model": {"weight": torch.zeros(250, 251)}})
    shape, larger = b"K\xfaK\xfb\x86", b"J\xff\xff\xff\x00J\xff\xff\x00\x00\x86"  # [250, 251], [16777215, 65535]
    path = edited(tmp_path / "whole.pth", tmp_path / "large.pth", edit=lambda data: data.replace(shape, larger))
    with pytest.raises(InputError, match=r"large\.pth: expected a checkpoint"):
        load_checkpoint(path)
    one = torch.zeros(1).expand(10**6, 10**6)  # one value of which there are many in the tensor, but not in the file
    torch.save({"weight": one}, tmp_path / "one.pth")
    with torch.device("meta"):
        model = torch.nn.Linear(10**6, 10**6, bias=False)
    with pytest.raises(
        InputError, match=r"one\.pth: expected weights of 1,000,000,000,000 values, .*, got \d,\d+ byte"
    ):
        check_weights(model, tmp_path / "one.pth")


def test_what_is_not_a_regular_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    (tmp_path / "zero.safetensors").symlink_to("/dev/zero")
    for name in ("pipe.pth", "zero.safetensors"):
        for read in (read_weights, read_shapes):
            with pytest.raises(InputError, match=rf"{name}: expected a file of weights, .* not a regular file"):
                read(tmp_path / name)

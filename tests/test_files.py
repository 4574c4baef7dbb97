"""Walking, naming, resuming, and writing whole files."""

import os
from pathlib import Path

import numpy as np
import pytest

from clamplib.files import InputError, atomic_path, key, load_array, not_older, output_paths, walk

ODD_NAMES = [
    "sp ace",
    "quo'te\"s",
    "$HOME $(touch x)",
    "new\nline",
    "Ünïcode 音楽",
    "-rf",
    "..and justice",
    "a;b|c&d",
]
LONG = "ü" * 125 + "a"  # 251 bytes; with .mid it is as long as a name can be


def test_walk_is_sorted_recursive_and_takes_any_case(tmp_path):
    for name in ("b.MID", "a.mid", "sub dir/c.Midi", "d.txt", ".clamp-unfinished.mid"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    expected = [tmp_path / name for name in ("a.mid", "b.MID", "sub dir/c.Midi")]
    assert walk(tmp_path, [".mid", ".midi"]) == expected
    assert walk(f"{tmp_path}/", [".MID", ".midi"]) == expected
    assert walk(tmp_path / "b.MID", [".mid"]) == [tmp_path / "b.MID"]


def test_walk_follows_links_to_folders_once(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.mid").touch()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "loop").symlink_to(tmp_path / "in")
    assert walk(tmp_path / "in", [".mid"]) == [tmp_path / "in" / "link" / "a.mid"]


def test_walk_says_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone"):
        walk(tmp_path / "gone", [".mid"])
    with pytest.raises(InputError, match=r"\.mid \.midi, found none"):
        walk(tmp_path, [".mid", ".midi"])


def test_outputs_keep_sub_folders_and_whatever_stands_before_the_suffix(tmp_path):
    inputs = [tmp_path / "s" / "a.1.mid", tmp_path / "a.mid"]
    assert output_paths(inputs, tmp_path, "out", ".mtf") == [Path("out/s/a.1.mtf"), Path("out/a.mtf")]
    assert output_paths(inputs[1:], inputs[1], "out", ".mtf") == [Path("out/a.mtf")]


def test_inputs_that_would_share_an_output_keep_their_suffix():
    names = ["a.abc", "a.mtf", "a.abc.txt", "b.abc", "s/a.abc", "c.mid", "c.MID"]
    outputs = output_paths([Path("in", name) for name in names], "in", "out", ".npy")
    expected = ["a.abc.npy", "a.mtf.npy", "a.abc.txt.npy", "b.npy", "s/a.npy", "c.mid.npy", "c.MID.npy"]
    assert outputs == [Path("out", name) for name in expected]
    with pytest.raises(InputError, match="a.abc.npy"):
        output_paths([Path("in/a.abc"), Path("in/a.abc")], "in", "out", ".npy")


def test_key_is_the_folder_and_the_name_up_to_the_first_dot(tmp_path):
    assert key(tmp_path / "s" / "t" / "a.b.npy", tmp_path) == "s/t/a"
    assert key(tmp_path / "a.npy", f"{tmp_path}/") == "a"


def test_times_are_compared(tmp_path):
    source, target = tmp_path / "a", tmp_path / "b"
    source.touch()
    assert not not_older(target, source)
    target.touch()
    os.utime(source, ns=(1, 1000))
    os.utime(target, ns=(1, 1000))
    assert not_older(target, source)
    os.utime(source, ns=(1, 1001))
    assert not not_older(target, source)
    assert not not_older(target, tmp_path / "gone")


@pytest.mark.parametrize("name", [*ODD_NAMES, LONG])
def test_atomic_path_gives_a_whole_file_or_none(tmp_path, name):
    target = tmp_path / "new folder" / (name + ".abc")
    with pytest.raises(KeyError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert list(target.parent.iterdir()) == []
    with atomic_path(target) as temporary:
        temporary.write_text("whole")
        assert not target.exists()
    assert list(target.parent.iterdir()) == [target]
    assert target.read_text() == "whole"


def npy(header: str) -> bytes:
    """A .npy file with this header, and eight bytes of data."""
    text = header.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + bytes(8)


@pytest.mark.parametrize(
    "content",
    [
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }"),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (10**30,), }"),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (" + "9" * 60 + ",), }"),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-2,), }"),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2,"),
        npy("(" * 110),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }")[:40],
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"),
        b"\x93NUMPY",
        b"",
    ],
)
def test_a_bad_npy_file_is_an_error_that_names_it(tmp_path, content):
    (tmp_path / "bad.npy").write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.npy: expected "):
        load_array(tmp_path / "bad.npy")


def test_an_npy_file_is_read_as_float32(tmp_path):
    for version, array in enumerate((np.arange(6).reshape(2, 3), np.float64(2.5), np.ones((1, 0, 3))), start=1):
        with (tmp_path / "a.npy").open("wb") as file:
            np.lib.format.write_array(file, np.asarray(array), version=(version, 0))
        found = load_array(tmp_path / "a.npy")
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, array)

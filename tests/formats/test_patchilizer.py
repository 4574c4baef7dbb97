"""Patches: golden ones of the reference, truncation, and texts without a bar."""

import hashlib
import json
import random
from pathlib import Path

import numpy as np
import pytest

from clamplib.formats.patchilizer import M3Patchilizer

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = json.loads((GOLDEN / "patches/index.json").read_text())
LONG = "K:C\n" + "".join(f"{bar}|\n" for bar in range(1000))


@pytest.fixture(scope="module")
def patchilizer():
    return M3Patchilizer()


@pytest.fixture(scope="module")
def expected():
    with np.load(GOLDEN / "patches/patches.npz") as arrays:
        return dict(arrays)


def text_of(case):
    name = case["name"]
    if name.startswith("e_"):
        path = GOLDEN / f"patches/edge/{name}.txt"
    elif case["kind"] == "abc":
        path = GOLDEN / f"abc/interleaved/{name}.abc"
    else:
        stem, kind = name.rsplit(".", 1)
        path = GOLDEN / f"midi/mtf_{kind}/{stem}.mtf"
    with open(path, encoding="utf-8", newline="") as file:
        return file.read()


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_patches_equal_golden(case, patchilizer, expected):
    name, text = case["name"], text_of(case)
    plain = patchilizer.encode_array(text)
    assert plain.dtype == np.uint8
    assert plain.shape == (case["n_plain"], 64)
    assert np.array_equal(plain[: case["plain_stored_rows"]], expected[f"{name}/plain"])
    decoded = patchilizer.decode(plain)
    assert decoded.startswith(case["decode_head"])
    assert hashlib.sha1(decoded.encode()).hexdigest() == case["decode_sha1"]

    special = patchilizer.encode_array(text, add_special_patches=True)
    assert np.array_equal(special, [[1] * 64, *plain, [1] + [2] * 63])
    truncated = patchilizer.encode_array(text, add_special_patches=True, truncate=True)
    assert np.array_equal(truncated, expected.get(f"{name}/truncated", special))
    assert len(truncated) == case["n_truncated"]


def test_encode_gives_lists(patchilizer):
    lists = patchilizer.encode(LONG, add_special_patches=True, truncate=True)
    assert lists == patchilizer.encode_array(LONG, add_special_patches=True, truncate=True).tolist()
    assert isinstance(lists[0][0], int)


def test_random_truncation_draws_head_tail_and_windows(patchilizer):
    whole = patchilizer.encode_array(LONG, add_special_patches=True).tolist()
    rng, starts = random.Random(0), []
    for _ in range(300):
        kept = patchilizer.encode(LONG, add_special_patches=True, random_truncate=True, rng=rng)
        starts.append(whole.index(kept[1]) - 1)
        assert kept == whole[starts[-1] : starts[-1] + 512]
    last = len(whole) - 512
    assert 70 < starts.count(0) < 130
    assert 70 < starts.count(last) < 130
    assert 70 < sum(0 < start < last for start in starts) < 130


def test_random_truncation_is_repeatable_and_leaves_short_pieces_whole(patchilizer):
    first, second = (patchilizer.encode(LONG, random_truncate=True, rng=random.Random(7)) for _ in range(2))
    assert first == second
    assert patchilizer.decode(patchilizer.encode("K:C\nA|\n", random_truncate=True)) == "K:C\nA|\n"


def test_cut_bars_are_counted(patchilizer):
    fits, too_long = "A" * 61 + "|", "A" * 62 + "|"  # 61 notes, bar line and newline make 63
    patches = patchilizer.encode_array(f"K:C\n{fits}B|\n{too_long}B|\n{fits}\n", add_special_patches=True)
    assert patchilizer.count_cut(patches) == 2
    assert patchilizer.count_cut(patches[:3]) == 0


@pytest.mark.parametrize("text", ["", "\n", "L:1/8\n", "no bar line", "V\n:\n"])
def test_a_text_without_a_bar_gives_no_patches(text, patchilizer):
    assert patchilizer.encode_array(text).shape == (0, 64)
    assert patchilizer.count_cut(patchilizer.encode_array(text)) == 0
    assert patchilizer.encode(text, add_special_patches=True) == [[1] * 64, [1] + [2] * 63]


def test_other_sizes(patchilizer):
    small = M3Patchilizer(patch_size=8, patch_length=2)
    assert small.encode("K:C\nABCDEFGHIJ|A|\n") == [
        [1, *b"K:C\n", 2, 0, 0],
        [1, *b"ABCDEFG"],
        [1, *b"A|\n", 2, 0, 0, 0],
    ]
    assert len(small.encode("K:C\nA|B|\n", truncate=True)) == 2

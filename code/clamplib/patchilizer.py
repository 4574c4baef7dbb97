"""ABC or MTF text to patches, and back.

A patch is `patch_size` codes: begin, the characters of one bar, header line or group of MIDI messages,
end, padding. Codes 0 to 3 are pad, begin, end and mask; all others are ASCII characters.
"""

import random
import re

import numpy as np
from unidecode import unidecode

from clamplib.mtf import FIRST_WORD

# The order decides: at any place the first one that matches is the bar line.
BAR_LINES = ("|:", "::", ":|", "[|", "||", "|]", "|")
_BAR_LINE = re.compile("(" + "|".join(re.escape(line) for line in BAR_LINES) + ")")
_HEADER_LINE = re.compile(r"[A-Za-z]:|%%")
_LINE = re.compile(r"[^\n]*\n|[^\n]+")


class M3Patchilizer:
    """Cuts interleaved ABC or MTF into patches of `patch_size` codes, at most `patch_length` a segment."""

    pad_token_id = 0
    bos_token_id = 1
    eos_token_id = 2
    mask_token_id = 3

    def __init__(self, patch_size: int = 64, patch_length: int = 512):
        self.patch_size = patch_size
        self.patch_length = patch_length

    def encode(
        self,
        item: str,
        add_special_patches: bool = False,
        truncate: bool = False,
        random_truncate: bool = False,
        rng: random.Random | None = None,
    ) -> list[list[int]]:
        """`encode_array` as lists."""
        return self.encode_array(item, add_special_patches, truncate, random_truncate, rng).tolist()

    def encode_array(
        self,
        item: str,
        add_special_patches: bool = False,
        truncate: bool = False,
        random_truncate: bool = False,
        rng: random.Random | None = None,
    ) -> np.ndarray:
        """Patches of a piece, uint8 [n, patch_size].

        `add_special_patches` puts one patch of begin codes before and one of end codes behind.
        `truncate` keeps the first `patch_length` patches; `random_truncate` keeps, a third each, the first,
        the last or a window of them, drawn by `rng`
        (Python's own when there is none).
        """
        texts = self.split(item)
        if add_special_patches:
            begin, end = chr(self.bos_token_id), chr(self.eos_token_id)
            texts = [begin * self.patch_size, *texts, end * self.patch_size]
        if (truncate or random_truncate) and len(texts) > self.patch_length:
            start = self._random_start(len(texts), rng or random) if random_truncate else 0
            texts = texts[start : start + self.patch_length]
        return self._pack(texts)

    def split(self, item: str) -> list[str]:
        """Texts of a piece's patches, before they are cut to the patch size."""
        lines = _LINE.findall(unidecode(item.replace("L:1/8\n", "")))
        if lines and lines[0].split(" ")[0] == FIRST_WORD:
            return self._split_mtf(lines)
        return [text for line in lines for text in _split_abc(line)]

    def decode(self, patches: np.ndarray | list[list[int]]) -> str:
        """Text of patches [n, patch_size], special codes left out."""
        return "".join(chr(code) for patch in patches for code in patch if code > self.mask_token_id)

    def count_cut(self, patches: np.ndarray) -> int:
        """How many of the patches [n, patch_size] lost their end because the bar was too long."""
        return int((patches[:, -1] > self.mask_token_id).sum())

    def _split_mtf(self, lines: list[str]) -> list[str]:
        """Groups neighbouring messages of one type: the type once, then the values of each after a tab."""
        texts, last_type, room = [], None, self.patch_size - 2
        for line in lines:
            kind, _, values = line.partition(" ")
            if kind == last_type and len(texts[-1]) + len(values) <= room:
                texts[-1] = texts[-1].rstrip("\n") + "\t" + values
            else:
                texts.append(line)
            last_type = kind
        return texts

    def _random_start(self, count: int, rng: random.Random) -> int:
        last = count - self.patch_length
        return rng.choice((0, last, rng.randint(1, last)))

    def _pack(self, texts: list[str]) -> np.ndarray:
        size, begin, end = self.patch_size, chr(self.bos_token_id), chr(self.eos_token_id)
        rows = "".join((begin + text + end)[:size].ljust(size, "\0") for text in texts)
        return np.frombuffer(bytearray(rows, "ascii"), dtype=np.uint8).reshape(-1, size)


def _split_abc(line: str) -> list[str]:
    """Bars of a line of music, each with the bar line that closes it; a header line stays whole.

    Where bar lines follow each other without music between them, they pair up as music and bar line do:
    the published weights were trained on that.
    """
    if _HEADER_LINE.match(line):
        return [line]
    parts = [part for part in _BAR_LINE.split(line) if part]
    if parts[0] in BAR_LINES and len(parts) > 1:
        parts[:2] = [parts[0] + parts[1]]
    bars = [music + bar_line for music, bar_line in zip(parts[::2], parts[1::2], strict=False)]
    return [*bars[:-1], bars[-1] + "\n"] if bars else []

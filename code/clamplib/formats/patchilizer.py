"""ABC or MTF text to patches, and back.

A patch is `patch_size` codes: begin, the characters of one bar, header line or group of MIDI messages,
end, padding. Codes 0 to 3 are pad, begin, end and mask; all others are ASCII characters.
"""

import random
import re
from collections.abc import Sequence

import numpy as np
from unidecode import unidecode

from clamplib.formats.mtf import FIRST_WORD

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
        patch_size: int | None = None,
        add_special_patches: bool = False,
        truncate: bool = False,
        random_truncate: bool = False,
        rng: random.Random | None = None,
    ) -> list[list[int]]:
        """`encode_array` as lists, of another patch size where one is given."""
        if patch_size not in (None, self.patch_size):
            return M3Patchilizer(patch_size, self.patch_length).encode(
                item, None, add_special_patches, truncate, random_truncate, rng
            )
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
        return self._pack(texts, self.patch_size)

    def split(self, item: str) -> list[str]:
        """Texts of a piece's patches, before they are cut to the patch size."""
        lines = _LINE.findall(unidecode(item.replace("L:1/8\n", "")))
        if lines and lines[0].split(" ")[0] == FIRST_WORD:
            return self._split_mtf(lines)
        return [text for line in lines for text in self._split_abc(line)]

    def split_bars(self, lines: Sequence[str]) -> list[str]:
        """Bars of lines of music, each with the bar line that closes it. What follows the last bar line is dropped.

        Where bar lines follow each other without music between them, they pair up as music and bar line do:
        the published weights were trained on that.
        """
        parts = [part for part in _BAR_LINE.split("".join(lines)) if part]
        if len(parts) > 1 and parts[0] in BAR_LINES:
            parts[:2] = [parts[0] + parts[1]]
        return [music + bar_line for music, bar_line in zip(parts[::2], parts[1::2], strict=False)]

    def bar2patch(self, bar: str, patch_size: int | None = None) -> list[int]:
        """The patch [patch_size] of one bar, header line or group of messages in ASCII, cut if it is too long."""
        return self._pack([bar], patch_size or self.patch_size)[0].tolist()

    def patch2bar(self, patch: np.ndarray | Sequence[int]) -> str:
        """Text of one patch, special codes left out."""
        return "".join(chr(code) for code in patch if code > self.mask_token_id)

    def decode(self, patches: np.ndarray | Sequence[Sequence[int]]) -> str:
        """Text of patches [n, patch_size], special codes left out."""
        return "".join(map(self.patch2bar, patches))

    def count_cut(self, patches: np.ndarray) -> int:
        """How many of the patches [n, patch_size] lost their end because the bar was too long."""
        return int((patches[:, -1] > self.mask_token_id).sum())

    def _split_abc(self, line: str) -> list[str]:
        """A header line whole, or the bars of a line of music, the last with the line's end."""
        if _HEADER_LINE.match(line):
            return [line]
        bars = self.split_bars(line)
        return [*bars[:-1], bars[-1] + "\n"] if bars else []

    def _split_mtf(self, lines: list[str]) -> list[str]:
        """Groups neighboring messages of one type: the type once, then the values of each after a tab."""
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

    def _pack(self, texts: list[str], size: int) -> np.ndarray:
        begin, end = chr(self.bos_token_id), chr(self.eos_token_id)
        rows = "".join((begin + text + end)[:size].ljust(size, "\0") for text in texts)
        return np.frombuffer(bytearray(rows, "ascii"), dtype=np.uint8).reshape(-1, size)

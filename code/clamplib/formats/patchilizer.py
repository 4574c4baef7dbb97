"""ABC or MTF text -> patches, and back.

A patch is `patch_size` codes: the begin code, the characters of one bar, header line or group of MIDI messages, the end
code, and padding. Codes 0 to 3 are pad, begin, end and mask. All others are ASCII characters.
"""

import random
import re
from collections.abc import Sequence

import numpy as np
from unidecode import unidecode

from clamplib.formats.canonical import CANONICAL, FIRST_LINE, canonical
from clamplib.formats.mtf import FIRST_WORD

# The order matters: where several match, the first one is the bar line.
BAR_LINES = ("|:", "::", ":|", "[|", "||", "|]", "|")
_BAR_LINE = re.compile("(" + "|".join(map(re.escape, BAR_LINES)) + ")")
UNIT = "L:1/8\n"  # the usual length of a note, which is left out
_HEADER_LINE = re.compile(r"[A-Za-z]:|%%")
_LINE = re.compile(r"[^\n]*\n|[^\n]+")


class M3Patchilizer:
    """Cuts interleaved ABC or MTF into patches, and writes patches as text.

    Args:
        patch_size: codes per patch.
        patch_length: the most patches that truncation leaves, which is the length of a segment.
        notes: "canonical" to read all music in one form (see `canonical`); "": as it is.
    """

    pad_token_id = 0
    bos_token_id = 1
    eos_token_id = 2
    mask_token_id = 3

    def __init__(self, patch_size: int = 64, patch_length: int = 512, notes: str = ""):
        self.patch_size = patch_size
        self.patch_length = patch_length
        self.notes = notes

    def encode(
        self,
        item: str,
        patch_size: int | None = None,
        add_special_patches: bool = False,
        truncate: bool = False,
        random_truncate: bool = False,
        rng: random.Random | None = None,
    ) -> list[list[int]]:
        """Encodes a piece like `encode_array`, as lists.

        Args:
            item: the text of a piece.
            patch_size: codes per patch, if not those of this patchilizer.
            add_special_patches, truncate, random_truncate, rng: as for `encode_array`.

        Returns:
            Patches, int [n, patch_size].
        """
        if patch_size not in (None, self.patch_size):
            return M3Patchilizer(patch_size, self.patch_length, self.notes).encode(
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
        """Encodes a piece.

        Args:
            item: interleaved ABC or MTF.
            add_special_patches: puts one patch of begin codes before the piece and one of end codes after it.
            truncate: keeps the first `patch_length` patches.
            random_truncate: keeps `patch_length` patches: the first ones, the last ones or a random window between
                them, each in a third of all cases.
            rng: draws them; by default Python's own generator.

        Returns:
            Patches, uint8 [n, patch_size].
        """
        texts = self.split(item)
        if add_special_patches:
            begin, end = chr(self.bos_token_id), chr(self.eos_token_id)
            texts = [begin * self.patch_size, *texts, end * self.patch_size]
        if (truncate or random_truncate) and len(texts) > self.patch_length:
            start = self._random_start(len(texts), rng or random) if random_truncate else 0
            texts = texts[start : start + self.patch_length]
        return self._pack(texts, self.patch_size)

    def form(self, item: str) -> str:
        """Returns a piece in the form that is read, which is the piece itself unless `notes` names another."""
        return canonical(item) if self.notes == CANONICAL else item

    def split(self, item: str) -> list[str]:
        """Splits a piece into the texts of its patches, before they are cut to the patch size."""
        form = self.form(item)
        if form is not item:  # has been written in the canonical form, in which a line is a patch
            return [line for line in form.removeprefix(FIRST_LINE).splitlines(keepends=True) if line != UNIT]
        item = item.removeprefix(FIRST_LINE)
        lines = _LINE.findall(unidecode(item.replace(UNIT, "")))
        if lines and lines[0].split(" ")[0] == FIRST_WORD:
            return self._split_mtf(lines)
        texts = []
        for line in lines:
            texts += self._split_abc(line)
        return texts

    def split_bars(self, lines: Sequence[str]) -> list[str]:
        """Splits lines of music into bars, each with the bar line that closes it.

        What follows the last bar line is dropped. Two bar lines without music between them pair up as music and its
        bar line do, because the published weights were trained on that.
        """
        parts = [part for part in _BAR_LINE.split("".join(lines)) if part]
        if len(parts) > 1 and parts[0] in BAR_LINES:
            parts[:2] = [parts[0] + parts[1]]
        return [music + bar_line for music, bar_line in zip(parts[::2], parts[1::2], strict=False)]

    def bar2patch(self, bar: str, patch_size: int | None = None) -> list[int]:
        """Encodes one bar, header line or group of messages in ASCII as a patch [patch_size], cut if it is too long."""
        return self._pack([bar], patch_size or self.patch_size)[0].tolist()

    def patch2bar(self, patch: np.ndarray | Sequence[int]) -> str:
        """Decodes one patch [patch_size] to text, without special codes."""
        return "".join(chr(code) for code in patch if code > self.mask_token_id)

    def decode(self, patches: np.ndarray | Sequence[Sequence[int]]) -> str:
        """Decodes patches [n, patch_size] to text, without special codes."""
        return "".join(map(self.patch2bar, patches))

    def count_cut(self, patches: np.ndarray) -> int:
        """Counts the patches of [n, patch_size] that lost their end because the bar was too long."""
        return int((patches[:, -1] > self.mask_token_id).sum())

    def _split_abc(self, line: str) -> list[str]:
        """A whole header line, or the bars of a line of music, the last of them with a line break."""
        if _HEADER_LINE.match(line):
            return [line]
        bars = self.split_bars(line)
        return [*bars[:-1], bars[-1] + "\n"] if bars else []

    def _split_mtf(self, lines: list[str]) -> list[str]:
        """Groups neighboring messages of one type: the type once, then the values of each message after a tab."""
        texts = []
        last_type = None
        room = self.patch_size - 2  # the begin and end codes take two
        for line in lines:
            type_, _, values = line.partition(" ")
            if type_ == last_type and len(texts[-1]) + len(values) <= room:
                texts[-1] = texts[-1].rstrip("\n") + "\t" + values
            else:
                texts.append(line)
            last_type = type_
        return texts

    def _random_start(self, count: int, rng: random.Random) -> int:
        last = count - self.patch_length
        return rng.choice((0, last, rng.randint(1, last)))

    def _pack(self, texts: list[str], size: int) -> np.ndarray:
        begin, end = chr(self.bos_token_id), chr(self.eos_token_id)
        rows = "".join((begin + text + end)[:size].ljust(size, "\0") for text in texts)
        return np.frombuffer(bytearray(rows, "ascii"), dtype=np.uint8).reshape(-1, size)

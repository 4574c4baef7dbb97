"""Finds the raw files of a folder that are closest to one file by CLaMP 3: scores, MIDI, recordings, images and texts.

example: python clamp3_search.py lament.txt music --top_k 5
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "code"))  # this clone's library and settings

from clamplib.app.comparisons import RAW_FILES, run_raw, run_search, search_parser


def main(argv: list[str] | None = None) -> int:
    return run_raw(run_search, search_parser(__doc__, RAW_FILES), argv)


if __name__ == "__main__":
    sys.exit(main())

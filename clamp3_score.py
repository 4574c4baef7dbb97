"""Measures how similar two folders of raw files are by CLaMP 3: the mean similarity of pairs with equal keys.

A key is the sub-folder and the file name up to its first dot; several queries may share one. The similarity of each
pair is saved as a JSON line, the most similar pair first. --group needs no pairs: it compares the mean vectors of the
two folders by cosine.

example: python clamp3_score.py generated real --group
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "code"))  # this clone's library and settings

from clamplib.app.comparisons import RAW_FILES, run_raw, run_score, score_parser


def main(argv: list[str] | None = None) -> int:
    return run_raw(run_score, score_parser(__doc__, RAW_FILES), argv)


if __name__ == "__main__":
    sys.exit(main())

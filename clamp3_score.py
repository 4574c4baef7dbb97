"""How alike two folders of files are, by CLaMP 3: the average similarity of the pairs of equal keys, or of the groups.

A key is the folder below the root and the file name up to its first dot; several queries may share one. Each pair's
similarity is saved as a JSON line, the most alike first. --group needs no pairs: it gives the cosine of the two
folders' mean vectors.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "code"))  # this clone's library and settings

from clamplib.app.comparisons import RAW_FILES, run_raw, run_score, score_parser

EXAMPLE = "example: python clamp3_score.py generated real --group"


def main(argv: list[str] | None = None) -> int:
    return run_raw(run_score, score_parser(__doc__, EXAMPLE, RAW_FILES), argv)


if __name__ == "__main__":
    sys.exit(main())

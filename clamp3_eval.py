"""Measures retrieval between two folders of raw files by CLaMP 3: MRR, and Hit@1, 10 and 100, of pairs with equal keys.

A key is the sub-folder and the file name up to its first dot; several queries may share one. Keys that only one of the
folders has are left out. The rank of each query is saved as a JSON line.

example: python clamp3_eval.py texts music
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "code"))  # this clone's library and settings

from clamplib.app.comparisons import RAW_FILES, pairs_parser, run_eval, run_raw


def main(argv: list[str] | None = None) -> int:
    return run_raw(run_eval, pairs_parser(__doc__, RAW_FILES, "retrieval_ranks.jsonl"), argv)


if __name__ == "__main__":
    sys.exit(main())

"""MRR and Hit@1, 10 and 100 of the files of a folder among those of another that have the same keys, by CLaMP 3.

A key is the folder below the root and the file name up to its first dot; several queries may share one. Only keys
that both folders have take part. Each query's rank is saved as a JSON line.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "code"))  # this clone's library and settings

from clamplib.app.comparisons import RAW_FILES, pairs_parser, run_eval, run_raw

EXAMPLE = "example: python clamp3_eval.py texts music"


def main(argv: list[str] | None = None) -> int:
    return run_raw(run_eval, pairs_parser(__doc__, EXAMPLE, RAW_FILES, "retrieval_ranks.jsonl"), argv)


if __name__ == "__main__":
    sys.exit(main())

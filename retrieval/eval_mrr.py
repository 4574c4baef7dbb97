"""MRR and Hit@1, 10 and 100 of query features among the reference features of the same keys.

A key is the folder below the root and the file name up to its first dot; several queries may share one. Only
keys that both folders have take part; a tie counts for the right reference. Each query's rank is saved as a
JSON line.
"""

import sys

from clamplib.app.comparisons import FEATURES, pairs_parser, run_eval
from clamplib.retrieval.similarity import load_folders

EXAMPLE = "example: python eval_mrr.py features/text features/scores"


def main(argv: list[str] | None = None) -> int:
    args = pairs_parser(__doc__, EXAMPLE, FEATURES, "retrieval_ranks.jsonl").parse_args(argv)
    return run_eval(args, load_folders)


if __name__ == "__main__":
    sys.exit(main())

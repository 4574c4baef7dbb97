"""Measures retrieval between two folders of features: MRR, and Hit@1, 10 and 100, of pairs with equal keys.

A key is the sub-folder and the file name up to its first dot; several queries may share one. Keys that only one of the
folders has are left out. A tie counts for the right reference. The rank of each query is saved as a JSON line.

example: python eval_mrr.py features/text features/scores
"""

import sys

from clamplib.app.comparisons import FEATURES, pairs_parser, run_eval


def main(argv: list[str] | None = None) -> int:
    return run_eval(pairs_parser(__doc__, FEATURES, "retrieval_ranks.jsonl").parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())

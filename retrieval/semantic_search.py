"""Finds the features of a folder that are closest to one query feature by cosine.

example: python semantic_search.py features/text/waltz.npy features/scores --top_k 5
"""

import sys

from clamplib.app.comparisons import FEATURES, run_search, search_parser


def main(argv: list[str] | None = None) -> int:
    return run_search(search_parser(__doc__, FEATURES).parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())

"""The features of a folder that are closest to one query feature, by cosine."""

import sys

from clamplib.app.comparisons import FEATURES, run_search, search_parser
from clamplib.retrieval.similarity import load_folders

EXAMPLE = "example: python semantic_search.py features/text/waltz.npy features/scores --top_k 5"


def main(argv: list[str] | None = None) -> int:
    args = search_parser(__doc__, EXAMPLE, FEATURES).parse_args(argv)
    return run_search(args, load_folders)


if __name__ == "__main__":
    sys.exit(main())

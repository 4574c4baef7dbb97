"""How alike two folders of features are: the average similarity of the pairs of equal keys, or of the groups.

A key is the folder below the root and the file name up to its first dot; several queries may share one. Each
pair's similarity is saved as a JSON line, the most alike first. --group needs no pairs: it gives the cosine
of the two folders' mean vectors.
"""

import sys

from clamplib.app.comparisons import FEATURES, run_score, score_parser
from clamplib.retrieval.similarity import load_folders

EXAMPLE = "example: python clamp3_score.py features/generated features/real --group"


def main(argv: list[str] | None = None) -> int:
    args = score_parser(__doc__, EXAMPLE, FEATURES).parse_args(argv)
    return run_score(args, load_folders)


if __name__ == "__main__":
    sys.exit(main())

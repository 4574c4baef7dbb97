"""Measures how similar two folders of features are: the mean similarity of pairs with equal keys.

A key is the sub-folder and the file name up to its first dot; several queries may share one. The similarity of each
pair is saved as a JSON line, the most similar pair first. --group needs no pairs: it compares the mean vectors of the
two folders by cosine.

example: python clamp3_score.py features/generated features/real --group
"""

import sys

from clamplib.app.comparisons import FEATURES, run_score, score_parser


def main(argv: list[str] | None = None) -> int:
    return run_score(score_parser(__doc__, FEATURES).parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())

"""The features of a folder that are closest to one query feature, by cosine."""

import argparse
import sys

from clamplib.batch import positive
from clamplib.files import InputError, show
from clamplib.retrieval import load_features, load_query, search


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python semantic_search.py features/text/waltz.npy features/scores --top_k 5",
    )
    parser.add_argument("query_file", help=".npy file of one global vector")
    parser.add_argument("reference_folder", help="folder of .npy files of global vectors; sub-folders count")
    parser.add_argument("--top_k", type=positive, default=10, help="how many to show (default: %(default)s)")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        references = load_features(args.reference_folder)
        query = load_query(args.query_file, references, args.reference_folder)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    rows, similarities = search(query, references.matrix, args.top_k)
    print(f"Top {rows.shape[1]} results among {len(references)} candidates:")
    for row, similarity in zip(rows[0], similarities[0], strict=True):
        print(show(references.keys[row]), f"{similarity:.4f}")
    for failure in references.failures:
        print(f"left out: {failure}", file=sys.stderr)
    return 1 if references.failures else 0


if __name__ == "__main__":
    sys.exit(main())

"""How alike two folders of features are: the average similarity of the pairs of equal keys, or of the groups.

A key is the folder below the root and the file name up to its first dot; several queries may share one. Each
pair's similarity is saved as a JSON line, the most alike first. --group needs no pairs: it gives the cosine
of the two folders' mean vectors.
"""

import argparse
import sys

from clamplib.files import InputError
from clamplib.retrieval import (
    Pairs,
    group_similarity,
    load_folders,
    pair,
    pair_records,
    pair_similarities,
    report_pairs,
    save_records,
)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python clamp3_score.py features/generated features/real --group",
    )
    parser.add_argument("query_folder", help="folder of .npy files of global vectors")
    parser.add_argument("reference_folder", help="folder of .npy files of global vectors")
    parser.add_argument("--group", action="store_true", help="compare the folders' mean vectors, not pairs")
    parser.add_argument(
        "--output_dir",
        default="inference",
        help="folder for pairwise_similarities.jsonl and unmatched_files.jsonl (default: %(default)s)",
    )
    return parser


def score_pairs(pairs: Pairs, output_dir: str) -> None:
    """Prints the average similarity and saves each pair's, the most alike first."""
    print(report_pairs(pairs, output_dir))
    similarities = pair_similarities(pairs)
    records = pair_records(pairs, "similarity", similarities)
    records.sort(key=lambda record: -record["similarity"])
    saved = save_records(f"{output_dir}/pairwise_similarities.jsonl", records)
    print(f"Avg. pairwise similarity: {round(float(similarities.mean()), 4)}")
    print(f"Pairwise similarity scores saved in '{saved}'.")


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    print(f"Query folder: {args.query_folder}\nReference folder: {args.reference_folder}")
    try:
        queries, references = load_folders(args.query_folder, args.reference_folder)
        if args.group:
            print(f"Total query features: {len(queries)}\nTotal reference features: {len(references)}")
            print(f"Group similarity: {round(group_similarity(queries, references), 4)}")
        else:
            score_pairs(pair(queries, references), args.output_dir)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    failures = queries.failures + references.failures
    for failure in failures:
        print(f"left out: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

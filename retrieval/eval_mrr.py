"""MRR and Hit@1, 10 and 100 of query features among the reference features of the same keys.

A key is the folder below the root and the file name up to its first dot; several queries may share one. Only
keys that both folders have take part; a tie counts for the right reference. Each query's rank is saved as a
JSON line.
"""

import argparse
import sys

from clamplib.files import InputError
from clamplib.metrics import retrieval_metrics
from clamplib.retrieval import load_folders, pair, pair_ranks, pair_records, report_pairs, save_records


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python eval_mrr.py features/text features/scores",
    )
    parser.add_argument("query_folder", help="folder of .npy files of global vectors")
    parser.add_argument("reference_folder", help="folder of .npy files of global vectors")
    parser.add_argument(
        "--output_dir",
        default="inference",
        help="folder for retrieval_ranks.jsonl and unmatched_files.jsonl (default: %(default)s)",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    print(f"Query folder: {args.query_folder}\nReference folder: {args.reference_folder}")
    try:
        queries, references = load_folders(args.query_folder, args.reference_folder)
        pairs = pair(queries, references)
        print(report_pairs(pairs, args.output_dir))
        ranks = pair_ranks(pairs)
        saved = save_records(f"{args.output_dir}/retrieval_ranks.jsonl", pair_records(pairs, "rank", ranks))
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    metrics = retrieval_metrics(ranks)
    for name, label in (("mrr", "MRR"), ("hit@1", "Hit@1"), ("hit@10", "Hit@10"), ("hit@100", "Hit@100")):
        print(f"{label}: {round(metrics[name], 4)}")
    print(f"Rank details saved in '{saved}'.")
    failures = queries.failures + references.failures
    for failure in failures:
        print(f"left out: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

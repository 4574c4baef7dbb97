"""The published comparisons of folders: search, CLaMP 3 score and retrieval, with the lines that they print.

They run on features (retrieval/semantic_search.py and its neighbors), and on raw files, which are embedded first
(clamp3_search.py and its neighbors). Other programs parse what is printed.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial

from clamplib.command import add_variant, positive
from clamplib.evaluation.metrics import retrieval_metrics
from clamplib.evaluation.pairs import (
    Pairs,
    group_similarity,
    pair,
    pair_ranks,
    pair_records,
    pair_similarities,
    report_pairs,
    save_records,
)
from clamplib.files import InputError, show
from clamplib.retrieval.similarity import Features, search

FEATURES = ".npy files of global vectors"
RAW_FILES = "scores, MIDI, recordings, images and texts"

Load = Callable[[str, str], tuple[Features, Features]]  # a query file or folder, and a reference folder


def search_parser(doc: str, example: str, files: str) -> argparse.ArgumentParser:
    """The command line of a search; `files` says what the query and the reference folder hold."""
    parser = _parser(doc, example)
    parser.add_argument("query_file", help=f"one file: {files}")
    parser.add_argument("reference_folder", help=f"folder of {files}; its sub-folders count")
    parser.add_argument("--top_k", type=positive, default=10, help="how many to show (default: %(default)s)")
    return parser


def score_parser(doc: str, example: str, files: str) -> argparse.ArgumentParser:
    """The command line of the CLaMP 3 score."""
    parser = pairs_parser(doc, example, files, "pairwise_similarities.jsonl")
    parser.add_argument("--group", action="store_true", help="compare the folders' mean vectors, not pairs")
    return parser


def pairs_parser(doc: str, example: str, files: str, records: str) -> argparse.ArgumentParser:
    """The command line of a comparison by keys; `records` names the file of JSON lines that it writes."""
    parser = _parser(doc, example)
    parser.add_argument("query_folder", help=f"folder of {files}")
    parser.add_argument("reference_folder", help=f"folder of {files}")
    parser.add_argument(
        "--output_dir",
        default="inference",
        help=f"folder for {records} and unmatched_files.jsonl (default: %(default)s)",
    )
    return parser


def run_search(args: argparse.Namespace, load: Load) -> int:
    """Prints the references that are closest to the query, and returns the exit status."""

    def compare(queries: Features, references: Features) -> None:
        if len(queries) != 1:
            raise InputError(f"{show(args.query_file)}: expected one query, got {len(queries)}")
        [rows], [similarities] = search(queries.matrix, references.matrix, args.top_k)
        print(f"Top {len(rows)} results among {len(references)} candidates:")
        for row, similarity in zip(rows, similarities, strict=True):
            print(show(references.keys[row]), f"{similarity:.4f}")

    return _run(partial(load, args.query_file, args.reference_folder), compare)


def run_score(args: argparse.Namespace, load: Load) -> int:
    """Prints the similarity of pairs, or with `group` of the two sets, and returns the exit status."""
    print(f"Query folder: {args.query_folder}\nReference folder: {args.reference_folder}")

    def compare(queries: Features, references: Features) -> None:
        if args.group:
            print(f"Total query features: {len(queries)}\nTotal reference features: {len(references)}")
            print(f"Group similarity: {round(group_similarity(queries, references), 4)}")
        else:
            _score_pairs(pair(queries, references), args.output_dir)

    return _run(partial(load, args.query_folder, args.reference_folder), compare)


def run_eval(args: argparse.Namespace, load: Load) -> int:
    """Prints MRR and Hit@k of the queries among the references, and returns the exit status."""
    print(f"Query folder: {args.query_folder}\nReference folder: {args.reference_folder}")

    def compare(queries: Features, references: Features) -> None:
        pairs = pair(queries, references)
        print(report_pairs(pairs, args.output_dir))
        ranks = pair_ranks(pairs)
        saved = save_records(f"{args.output_dir}/retrieval_ranks.jsonl", pair_records(pairs, "rank", ranks))
        metrics = retrieval_metrics(ranks)
        for name, label in (("mrr", "MRR"), ("hit@1", "Hit@1"), ("hit@10", "Hit@10"), ("hit@100", "Hit@100")):
            print(f"{label}: {round(metrics[name], 4)}")
        print(f"Rank details saved in '{saved}'.")

    return _run(partial(load, args.query_folder, args.reference_folder), compare)


def run_raw(
    run: Callable[[argparse.Namespace, Load], int], parser: argparse.ArgumentParser, argv: list[str] | None
) -> int:
    """Runs one of the comparisons on folders of raw files, each embedded once (see `library`)."""
    add_variant(parser)
    args = parser.parse_args(argv)

    def load(query: str, references: str) -> tuple[Features, Features]:
        from clamplib.embedding.collections import embed_pair  # with torch, which --help does not need

        return embed_pair(query, references, args.variant)

    return run(args, load)


def _parser(doc: str, example: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        description=doc, epilog=example, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def _run(load: Callable[[], tuple[Features, Features]], compare: Callable[[Features, Features], None]) -> int:
    try:
        queries, references = load()
        compare(queries, references)
    except (InputError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    failures = queries.failures + references.failures
    for failure in failures:
        print(f"left out: {failure}", file=sys.stderr)
    return 1 if failures else 0


def _score_pairs(pairs: Pairs, output_dir: str) -> None:
    """Prints the average similarity and saves each pair's, the most alike first."""
    print(report_pairs(pairs, output_dir))
    similarities = pair_similarities(pairs)
    records = pair_records(pairs, "similarity", similarities)
    records.sort(key=lambda record: -record["similarity"])
    saved = save_records(f"{output_dir}/pairwise_similarities.jsonl", records)
    print(f"Avg. pairwise similarity: {round(float(similarities.mean()), 4)}")
    print(f"Pairwise similarity scores saved in '{saved}'.")

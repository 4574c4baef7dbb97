"""The published comparisons of folders: search, CLaMP 3 score and retrieval, with the lines that they print.

They compare features (retrieval/semantic_search.py and its neighbors), or raw files, which are embedded first
(clamp3_search.py and its neighbors). Other programs parse what is printed.
"""

import argparse
from collections.abc import Callable

from clamplib.command import add_variant, guarded, make_parser, positive, report_left_out
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
from clamplib.retrieval.similarity import Features, load_folders, search

FEATURES = ".npy files of global vectors"
RAW_FILES = "scores, MIDI, recordings, images and texts"
METRICS = {"MRR": "mrr", "Hit@1": "hit@1", "Hit@10": "hit@10", "Hit@100": "hit@100"}

Load = Callable[[str, str], tuple[Features, Features]]  # loads a query file or folder, and a reference folder


def search_parser(doc: str, files: str) -> argparse.ArgumentParser:
    """Returns the parser of a search.

    Args:
        doc: the docstring of the script (see `command.help_of`).
        files: says what the query and the reference folder hold.
    """
    parser = make_parser(doc)
    parser.add_argument("query_file", help=f"one file: {files}")
    parser.add_argument("reference_folder", help=f"folder of {files}, with its sub-folders")
    parser.add_argument("--top_k", type=positive, default=10, help="number of results (default: %(default)s)")
    return parser


def score_parser(doc: str, files: str) -> argparse.ArgumentParser:
    """Returns the parser of the CLaMP 3 score; the arguments are those of `search_parser`."""
    parser = pairs_parser(doc, files, "pairwise_similarities.jsonl")
    parser.add_argument("--group", action="store_true", help="compare the folders' mean vectors, not pairs")
    return parser


def pairs_parser(doc: str, files: str, records: str) -> argparse.ArgumentParser:
    """Returns the parser of a comparison by keys; `records` names the JSON lines that it writes."""
    parser = make_parser(doc)
    parser.add_argument("query_folder", help=f"folder of {files}")
    parser.add_argument("reference_folder", help=f"folder of {files}")
    parser.add_argument(
        "--output_dir",
        default="inference",
        help=f"folder for {records} and unmatched_files.jsonl (default: %(default)s)",
    )
    return parser


@guarded
def run_search(args: argparse.Namespace, load: Load = load_folders) -> int:
    """Prints the references that are closest to the query, and returns the exit status."""
    queries, references = load(args.query_file, args.reference_folder)
    if len(queries) != 1:
        raise InputError(f"{show(args.query_file)}: expected one query, got {len(queries)}")
    [rows], [similarities] = search(queries.matrix, references.matrix, args.top_k)
    print(f"Top {len(rows)} results among {len(references)} candidates:")
    for row, similarity in zip(rows, similarities, strict=True):
        print(show(references.keys[row]), f"{similarity:.4f}")
    return report_left_out(queries.failures + references.failures)


@guarded
def run_score(args: argparse.Namespace, load: Load = load_folders) -> int:
    """Prints the similarity of pairs, or with `group` of the two sets, and returns the exit status."""
    queries, references = _load_named(args, load)
    if args.group:
        print(f"Total query features: {len(queries)}\nTotal reference features: {len(references)}")
        print(f"Group similarity: {round(group_similarity(queries, references), 4)}")
    else:
        _score_pairs(pair(queries, references), args.output_dir)
    return report_left_out(queries.failures + references.failures)


@guarded
def run_eval(args: argparse.Namespace, load: Load = load_folders) -> int:
    """Prints MRR and Hit@k of the queries among the references, and returns the exit status."""
    queries, references = _load_named(args, load)
    pairs = pair(queries, references)
    print(report_pairs(pairs, args.output_dir))
    ranks = pair_ranks(pairs)
    saved = save_records(f"{args.output_dir}/retrieval_ranks.jsonl", pair_records(pairs, "rank", ranks))
    values = retrieval_metrics(ranks)
    for label, name in METRICS.items():
        print(f"{label}: {round(values[name], 4)}")
    print(f"Rank details saved in '{saved}'.")
    return report_left_out(queries.failures + references.failures)


def run_raw(
    run: Callable[[argparse.Namespace, Load], int], parser: argparse.ArgumentParser, argv: list[str] | None
) -> int:
    """Runs one of the comparisons on folders of raw files, each of which is embedded once (see `collections`)."""
    add_variant(parser)
    args = parser.parse_args(argv)

    def load(query: str, references: str) -> tuple[Features, Features]:
        from clamplib.embedding.collections import embed_pair  # imports torch, which --help does not need

        return embed_pair(query, references, args.variant)

    return run(args, load)


def _load_named(args: argparse.Namespace, load: Load) -> tuple[Features, Features]:
    print(f"Query folder: {args.query_folder}\nReference folder: {args.reference_folder}")
    return load(args.query_folder, args.reference_folder)


def _score_pairs(pairs: Pairs, output_dir: str) -> None:
    """Prints the average similarity, and saves each pair's, the most similar pair first."""
    print(report_pairs(pairs, output_dir))
    similarities = pair_similarities(pairs)
    records = pair_records(pairs, "similarity", similarities)
    records.sort(key=lambda record: -record["similarity"])
    saved = save_records(f"{output_dir}/pairwise_similarities.jsonl", records)
    print(f"Avg. pairwise similarity: {round(float(similarities.mean()), 4)}")
    print(f"Pairwise similarity scores saved in '{saved}'.")

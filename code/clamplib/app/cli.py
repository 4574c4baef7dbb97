"""Searches, compares, classifies and draws scores, MIDI, recordings and texts, all in one vector space.

A folder may hold files of any kind. Each is converted and embedded once, and its vector is kept for the next command.
A folder of features (.npy files of extract_clamp3.py) is used as it is.

example: clamp3 search "a slow air in D minor" ~/music --variant mini
"""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from clamplib import __version__
from clamplib.command import (
    ERRORS,
    FAILED,
    add_backend,
    add_device,
    add_limits,
    add_precision,
    add_variant,
    add_verbose,
    add_workers,
    guarded,
    help_of,
    positive,
    report_left_out,
)
from clamplib.embedding.reading import BLIP_REPO

if TYPE_CHECKING:
    from clamplib.app.commands import Answer

FOLDER = "a folder of scores, MIDI, recordings and texts, or of features, or one file"
MILVUS = "a .db file, or http://... of a server"
LABELS = "names (the part of each file name before its first _), folders, or a table of labels"


@guarded
def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    args = build_parser().parse_args(argv)
    if args.json:
        return _print_json(args)
    answer = _run(args)
    status = report_left_out(failure["error"] for failure in answer.failures)
    print(answer.text)
    return status


def _print_json(args: argparse.Namespace) -> int:
    """Prints the answer, or the error, as one JSON object."""
    try:
        answer = _run(args)
    except ERRORS as error:
        print(json.dumps({"error": str(error)}))
        return FAILED
    print(json.dumps({**answer.data, "failures": answer.failures}, ensure_ascii=sys.stdout.encoding.lower() != "utf-8"))
    return FAILED if answer.failures else 0


def _run(args: argparse.Namespace) -> "Answer":
    from clamplib.app.commands import COMMANDS  # imports torch, which --help does not need

    return COMMANDS[args.command](args)


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of all commands."""
    parser = argparse.ArgumentParser(prog="clamp3", **help_of(__doc__))
    parser.add_argument("--version", action="version", version=f"clamplib {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    one = _add_command(
        commands,
        "embed",
        "Write a vector (.npy) for every file of a folder.",
        "clamp3 embed ~/music features --variant mini",
    )
    one.add_argument("folder", help=FOLDER)
    one.add_argument(
        "output",
        help="folder for the .npy files [1, D]; sub-folders are kept, and files that are up to date are skipped",
    )
    one.add_argument("--temporal", action="store_true", help="write the last hidden states [1, T, H] instead")
    add_backend(one)

    one = _add_command(
        commands,
        "search",
        "Find the files that are closest to a sentence or to a file.",
        'clamp3 search "a slow air in D minor" ~/music --variant mini',
    )
    one.add_argument("query", help="a sentence in any language, or a file")
    one.add_argument("library", nargs="?", help=f"{FOLDER}; or an index (see clamp3 index)")
    one.add_argument("--milvus", metavar="URI", help=f"search an index in Milvus: {MILVUS}")
    one.add_argument("--top_k", type=positive, default=10, help="number of results (default: %(default)s)")
    one.add_argument("--modality", choices=("text", "score", "midi", "audio"), help="find only files of this kind")
    one.add_argument("--below", metavar="FOLDER", help="find only files below this folder (of an index)")
    one.add_argument("--label", help="find only files of this label (of an index)")

    one = _add_command(
        commands,
        "score",
        "Measure how close two sets are: pairs (CLaMP score), centroids, Frechet and kernel distance.",
        "clamp3 score generated real --variant mini",
    )
    one.add_argument("a", help=f"the set to judge: {FOLDER}")
    one.add_argument("b", help="the set to compare it with, of the same kinds")
    one.add_argument("--csv", type=Path, help="file for the similarity of every pair")

    one = _add_command(
        commands,
        "eval",
        "Measure retrieval: MRR, Hit@k, nDCG@k, median rank and mAP, with confidence intervals.",
        "clamp3 eval texts scores --variant mini --csv ranks.csv",
    )
    one.add_argument("queries", help=FOLDER)
    one.add_argument("references", help="the same; a query and its reference share the file name up to the first dot")
    one.add_argument(
        "--relevance",
        type=Path,
        metavar="FILE.csv",
        help="table of the right references instead, any number per query, with the columns query and reference "
        "(sub-folder and file name up to the first dot), and optionally relevance, a grade (default: 1)",
    )
    one.add_argument(
        "--at", type=positive, nargs="+", default=[1, 10, 100], help="k of Hit@k and the others (default: 1 10 100)"
    )
    one.add_argument("--csv", type=Path, help="file for the results of every query")

    one = _add_command(
        commands,
        "classify",
        "Give every file the class whose description is closest, without training; measure it with --labels.",
        "clamp3 classify ~/music jig reel air --variant mini",
    )
    one.add_argument("folder", help=FOLDER)
    one.add_argument("classes", nargs="*", help="the classes, in words")
    one.add_argument("--prompts", type=Path, help="JSON file of the classes, each with a list of texts")
    one.add_argument("--labels", help=f"the true labels: {LABELS}")

    one = _add_command(
        commands,
        "map",
        "Draw the vectors of a folder in two dimensions, as a page (.html) or as a picture.",
        "clamp3 map ~/music map.html --labels folders --variant mini",
    )
    one.add_argument("folder", help=FOLDER)
    one.add_argument("output", type=Path, nargs="?", default=Path("map.html"), help=".html, .png, .pdf or .svg")
    one.add_argument("--method", choices=("pca", "umap", "tsne"), default="pca", help="default: %(default)s")
    one.add_argument("--labels", default="folders", help=f"color by modalities, or by {LABELS} (default: %(default)s)")

    one = _add_command(
        commands,
        "index",
        "Make an index of a folder for `clamp3 search`, or bring it up to date.",
        "clamp3 index ~/music library --variant mini",
    )
    one.add_argument("folder", help=FOLDER)
    one.add_argument("index", nargs="?", help="folder of the index")
    one.add_argument("--milvus", metavar="URI", help=f"keep the index in Milvus instead: {MILVUS}")
    one.add_argument("--labels", help=f"labels to filter by: {LABELS}")
    add_backend(one)

    one = _add_command(
        commands,
        "serve",
        "Serve a search page for a folder, by default to this machine only.",
        "clamp3 serve ~/music --variant mini",
    )
    one.add_argument("folder", help=FOLDER)
    one.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    one.add_argument("--port", type=int, help="port to listen on; 0: any free port (default: 8642)")
    one.add_argument("--open", action="store_true", help="open the page in the browser")

    one = _add_command(
        commands,
        "demo",
        "Search 300 tunes, which `mini` was not trained on, by sentences in seven languages.",
        "clamp3 demo",
    )
    one.add_argument("--tunes", type=positive, help="number of tunes (default: 300)")
    one.set_defaults(variant="mini")
    return parser


def _add_command(commands: argparse._SubParsersAction, name: str, text: str, example: str) -> argparse.ArgumentParser:
    """Adds a command with the options that all have in common."""
    parser = commands.add_parser(name, help=text, **help_of(f"{text}\n\nexample: {example}"))
    common = parser.add_argument_group("common options")
    add_verbose(common)
    add_variant(common)
    add_device(common)
    add_precision(common)
    add_workers(common)
    add_limits(common)
    common.add_argument(
        "--images",
        nargs="?",
        const=BLIP_REPO,
        metavar="MODEL",
        help="take images too, by captions that BLIP writes; MODEL is a folder or a name on the Hugging Face hub",
    )
    common.add_argument("--no_cache", action="store_true", help="embed every file again, and keep no vector")
    common.add_argument("--json", action="store_true", help="print the answer as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())

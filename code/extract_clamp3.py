"""Extracts features of texts, sheet music, MIDI and recordings, by CLaMP 3.

Takes .txt, interleaved .abc, .mtf and .npy (MERT features). Each file gives one .npy: with --get_global one vector
[1, 768] for search and classification, else the last hidden states [1, length, 768]. Other ABC is read as found, and a
warning names it.

example: accelerate launch extract_clamp3.py scores features/scores --get_global
"""

import argparse
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from clamplib.command import add_precision, add_variant, guarded, make_parser, positive, report_batch
from clamplib.embedding.folders import extract_files, input_files
from clamplib.embedding.reading import SEQUENCE_SUFFIXES
from clamplib.models import distributed
from clamplib.models.settings import find_variant
from clamplib.models.variants import FoundModel

CONFIG = Path(__file__).resolve().with_name("config.py")  # of this clone, wherever the library is installed


def extraction_parser(doc: str) -> argparse.ArgumentParser:
    """Returns what the extraction scripts have in common."""
    parser = make_parser(doc)
    parser.add_argument("input_dir", help="folder of input files; its sub-folders are kept")
    parser.add_argument("output_dir", help="folder for the .npy files; what is up to date there is skipped")
    add_variant(parser)
    add_precision(parser)
    parser.add_argument("--config", type=Path, help="file of assignments that replace those of config.py")
    parser.add_argument(
        "--batch_size",
        type=positive,
        help="full-length segments in a batch, or as many shorter ones as take the same space "
        "(default: what suits the device)",
    )
    parser.add_argument("--num_workers", type=int, help="processes that read ahead (default: by files and cores)")
    return parser


@guarded
def extract(
    args: argparse.Namespace, suffixes: Iterable[str], find: Callable[[], FoundModel], get_global: bool = False
) -> int:
    """Extracts by the model that `find` finds, and prints the counts; of several processes the first does."""
    try:
        sources = input_files(args.input_dir, args.output_dir, suffixes)
        distributed.start()
        report = extract_files(
            sources,
            args.input_dir,
            args.output_dir,
            find(),
            get_global=get_global,
            batch_size=args.batch_size,
            workers=args.num_workers,
            precision=args.precision,
        )
        return report_batch(report) if distributed.rank() == 0 else report.exit_status
    finally:
        distributed.stop()


def main(argv: list[str] | None = None) -> int:
    parser = extraction_parser(__doc__)
    parser.add_argument("--epoch", type=int, help="take the checkpoint of this epoch")
    parser.add_argument("--get_global", action="store_true", help="write one vector per file")
    args = parser.parse_args(argv)

    find = partial(find_variant, args.variant, args.config, config=CONFIG, epoch=args.epoch)
    return extract(args, SEQUENCE_SUFFIXES, find, args.get_global)


if __name__ == "__main__":
    sys.exit(main())

"""Features of texts, sheet music, MIDI and audio, by CLaMP 3.

Takes .txt, interleaved .abc, .mtf and .npy (MERT features). Each file gives one .npy: with --get_global one
vector [1, 768] for search and classification, else the last hidden states [1, length, 768].
"""

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from clamplib.command import add_variant, positive
from clamplib.embedding.encoding import CPU_BATCH_SIZE, GPU_BATCH_SIZE
from clamplib.embedding.extraction import extract_files, input_files
from clamplib.embedding.sequences import MODALITIES
from clamplib.models import distributed
from clamplib.models.checkpoints import Loaded
from clamplib.models.settings import load_clamp3
from utils import CONFIG

EXAMPLE = "example: accelerate launch extract_clamp3.py scores features/scores --get_global"


def build_parser(description: str, example: str) -> argparse.ArgumentParser:
    """What the extraction scripts have in common."""
    parser = argparse.ArgumentParser(
        description=description, epilog=example, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("input_dir", help="folder of input files; its sub-folders are kept")
    parser.add_argument("output_dir", help="folder for the .npy files; what is up to date there is skipped")
    add_variant(parser)
    parser.add_argument("--config", type=Path, help="a file of assignments that replace those of config.py")
    parser.add_argument(
        "--batch_size",
        type=positive,
        help="full-length segments in a batch, or as many shorter ones as take the same space; "
        f"default: {GPU_BATCH_SIZE} on a GPU, {CPU_BATCH_SIZE} on a CPU",
    )
    parser.add_argument("--num_workers", type=int, help="processes that read ahead; default: by files and cores")
    return parser


def run(args: argparse.Namespace, suffixes: Iterable[str], load: Callable[[], Loaded], get_global: bool = False) -> int:
    """Extracts, prints the counts (of several processes the first), gives the exit status."""
    try:
        sources = input_files(args.input_dir, args.output_dir, suffixes)
        device = distributed.start()
        loaded = load()
        loaded.model.to(device)
        report = extract_files(
            sources,
            args.input_dir,
            args.output_dir,
            loaded,
            get_global=get_global,
            batch_size=args.batch_size,
            workers=args.num_workers,
        )
        if distributed.rank() == 0:
            print(report.summary())
        return report.exit_status
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        distributed.stop()


def main(argv: list[str] | None = None) -> int:
    parser = build_parser(__doc__, EXAMPLE)
    parser.add_argument("--epoch", type=int, help="take the checkpoint of this epoch")
    parser.add_argument("--get_global", action="store_true", help="one vector a file")
    args = parser.parse_args(argv)

    def load() -> Loaded:
        return load_clamp3(args.variant, args.config, config=CONFIG, epoch=args.epoch)

    return run(args, MODALITIES, load, args.get_global)


if __name__ == "__main__":
    sys.exit(main())

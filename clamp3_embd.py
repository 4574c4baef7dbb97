"""Features of raw files by CLaMP 3: scores, MIDI, recordings, images and texts, mixed as they are.

Each file gives one .npy: with --get_global one vector [1, 768], else the last hidden states [1, length, 768].
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "code"))  # this clone's library and settings

from clamplib.command import add_variant

EXAMPLE = "example: python clamp3_embd.py music features --get_global"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLE)
    parser.add_argument("input_dir", help="a folder with its sub-folders, or a file")
    parser.add_argument("output_dir", help="folder for the .npy files; what is up to date there is skipped")
    parser.add_argument("--get_global", action="store_true", help="one vector per file")
    add_variant(parser)
    args = parser.parse_args(argv)
    words = ["embed", args.input_dir, args.output_dir, "--images"]
    words += [] if args.get_global else ["--temporal"]
    words += ["--variant", args.variant] if args.variant else []
    from clamplib.app import cli

    return cli.main(words)


if __name__ == "__main__":
    sys.exit(main())

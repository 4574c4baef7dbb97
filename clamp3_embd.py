"""Extracts CLaMP 3 features from raw files: scores, MIDI, recordings, images and texts, in any mixture.

Each file gives one .npy: with --get_global one vector [1, 768], else the last hidden states [1, length, 768].

example: python clamp3_embd.py music features --get_global
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "code"))  # this clone's library and settings

from clamplib.command import add_variant, make_parser


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__)
    parser.add_argument("input_dir", help="a folder with its sub-folders, or a file")
    parser.add_argument("output_dir", help="folder for the .npy files; files that are up to date are skipped")
    parser.add_argument("--get_global", action="store_true", help="write one vector per file")
    add_variant(parser)
    args = parser.parse_args(argv)
    words = ["embed", args.input_dir, args.output_dir, "--images"]
    if not args.get_global:
        words.append("--temporal")
    if args.variant:
        words += ["--variant", args.variant]
    from clamplib.app import cli

    return cli.main(words)


if __name__ == "__main__":
    sys.exit(main())

"""Packs the music files of a JSONL into a few large files, called shards, and writes a JSONL of the same pieces.

Shards are uncompressed tars. To train on them, set CLAMP3_TRAIN_JSONL in config.py to the new JSONL beside them.

example: python pack_shards.py pieces.jsonl packed/ --shard_size 1GB
"""

import argparse
import re
import sys

from clamplib.command import guarded, make_parser, report_batch
from clamplib.training.packing import pack

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


@guarded
def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__)
    parser.add_argument("jsonl", help="one piece per line, with file paths relative to its folder")
    parser.add_argument("output_dir", help="a new folder, or that of an interrupted run")
    parser.add_argument("--shard_size", type=size, default="1GB", help="in bytes, KB, MB or GB (default: 1GB)")
    args = parser.parse_args(argv)
    return report_batch(pack(args.jsonl, args.output_dir, args.shard_size))


def size(text: str) -> int:
    """Returns the bytes that a text such as 500MB stands for, as the `type` of an option."""
    match = re.fullmatch(r"([1-9]\d*) ?([KMG]B)?", text.upper())
    if not match:
        raise argparse.ArgumentTypeError(f"expected a size such as 1GB or 500MB, got {text}")
    return int(match[1]) * UNITS[match[2] or ""]


if __name__ == "__main__":
    sys.exit(main())

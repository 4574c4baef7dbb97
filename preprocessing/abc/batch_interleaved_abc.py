"""Converts standard ABC, as batch_xml2abc.py writes it, to interleaved ABC, which M3 and CLaMP 3 read.

example: python preprocessing/abc/batch_interleaved_abc.py abc_folder interleaved_folder
"""

import sys
from pathlib import Path

from clamplib.command import batch_parser, convert_folder
from clamplib.formats.notation import interleave_and_compare
from clamplib.formats.score_files import read_text

input_dir = "<path_to_your_abc_files>"  # the default input


def write_interleaved(source: Path, target: Path) -> str | None:
    interleaved, bars_differ = interleave_and_compare(read_text(source))
    target.write_text(interleaved, encoding="utf-8", newline="\n")
    return "voices differ in the length of a bar" if bars_differ else None


def main(argv: list[str] | None = None) -> int:
    parser = batch_parser(__doc__, input_dir, "_interleaved")
    return convert_folder(parser, parser.parse_args(argv), write_interleaved, (".abc",), ".abc")


if __name__ == "__main__":
    sys.exit(main())

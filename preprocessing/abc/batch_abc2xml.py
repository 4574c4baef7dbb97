"""Converts ABC, standard or interleaved, with one tune per file, to MusicXML.

example: python preprocessing/abc/batch_abc2xml.py abc_folder xml_folder
"""

import sys
from pathlib import Path

from clamplib.command import batch_parser, convert_folder, text_writer
from clamplib.files import InputError, show
from clamplib.formats.notation import abc_to_xml, split_tunes
from clamplib.formats.score_files import read_text

input_dir = "<path_to_your_abc_files>"  # the default input


def convert(path: Path) -> str:
    tunes = split_tunes(read_text(path))
    if len(tunes) != 1:
        raise InputError(f"{show(path)}: expected one tune, got {len(tunes)}; batch_xml2abc.py splits tunebooks")
    return abc_to_xml(tunes[0])


def main(argv: list[str] | None = None) -> int:
    parser = batch_parser(__doc__, input_dir, "_xml")
    return convert_folder(parser, parser.parse_args(argv), text_writer(convert), (".abc",), ".xml")


if __name__ == "__main__":
    sys.exit(main())

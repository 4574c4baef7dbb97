"""Converts scores to standard ABC: MusicXML, ABC of any kind, kern, MEI, NoteWorthy and RomanText.

A file of several tunes gives one output per tune: name-0001.abc, name-0002.abc ...

example: python preprocessing/abc/batch_xml2abc.py score_folder abc_folder
"""

import sys

from clamplib.command import batch_parser, convert_folder, text_writer
from clamplib.formats.score_files import SCORE_SUFFIXES, list_tunes, score_to_abc

input_dir = "<path_to_your_xml_files>"  # the default input


def main(argv: list[str] | None = None) -> int:
    parser = batch_parser(__doc__, input_dir, "_abc")
    args = parser.parse_args(argv)
    return convert_folder(parser, args, text_writer(score_to_abc), SCORE_SUFFIXES, ".abc", split=list_tunes)


if __name__ == "__main__":
    sys.exit(main())

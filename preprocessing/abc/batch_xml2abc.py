"""Scores -> standard ABC: MusicXML, ABC from the wild, kern, MEI, NoteWorthy, RomanText.

A file that holds many tunes gives one output a tune: name-0001.abc, name-0002.abc ...

    python preprocessing/abc/batch_xml2abc.py score_folder abc_folder
"""

import sys

from clamplib.command import batch_parser, convert_folder, text_writer
from clamplib.formats.score_files import SCORE_SUFFIXES, score_to_abc, tunes

input_dir = "<path_to_your_xml_files>"  # what is converted when no folder is given


def main(argv: list[str] | None = None) -> int:
    parser = batch_parser(__doc__, input_dir, "_abc")
    args = parser.parse_args(argv)
    return convert_folder(parser, args, text_writer(score_to_abc), SCORE_SUFFIXES, ".abc", split=tunes)


if __name__ == "__main__":
    sys.exit(main())

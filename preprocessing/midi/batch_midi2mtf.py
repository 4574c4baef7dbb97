"""Converts MIDI files to MTF, the MIDI text format that M3 and CLaMP 3 read.

example: python preprocessing/midi/batch_midi2mtf.py midi_folder mtf_folder
"""

import argparse
import os
import sys
from functools import partial

from clamplib.command import batch_parser, convert_folder, text_writer
from clamplib.formats.mtf import midi_to_mtf

input_dir = "<path_to_your_midi_files>"  # the default input
m3_compatible = True  # leave out the messages that hold words, as in the training of M3


def load_midi(path: str | os.PathLike, m3_compatible: bool = m3_compatible) -> str:
    """Returns the MTF of one MIDI file."""
    return midi_to_mtf(path, m3_compatible)


def main(argv: list[str] | None = None) -> int:
    parser = batch_parser(__doc__, input_dir, "_mtf")
    parser.add_argument(
        "--m3_compatible",
        action=argparse.BooleanOptionalAction,
        default=m3_compatible,
        help="leave out the messages that hold words, as in the training of M3",
    )
    args = parser.parse_args(argv)
    convert = text_writer(partial(midi_to_mtf, m3_compatible=args.m3_compatible))
    return convert_folder(parser, args, convert, (".mid", ".midi"), ".mtf")


if __name__ == "__main__":
    sys.exit(main())

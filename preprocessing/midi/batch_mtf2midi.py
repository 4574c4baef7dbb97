"""Converts MTF to MIDI files of one track.

example: python preprocessing/midi/batch_mtf2midi.py mtf_folder midi_folder
"""

import sys
from pathlib import Path

from clamplib.command import batch_parser, convert_folder
from clamplib.formats.mtf import mtf_to_midi
from clamplib.formats.score_files import read_text

input_dir = "<path_to_your_mtf_files>"  # the default input


def write_midi(source: Path, target: Path) -> None:
    mtf_to_midi(read_text(source)).save(target)


def main(argv: list[str] | None = None) -> int:
    parser = batch_parser(__doc__, input_dir, "_mid")
    return convert_folder(parser, parser.parse_args(argv), write_midi, (".mtf",), ".mid")


if __name__ == "__main__":
    sys.exit(main())

"""Recordings -> spectral features (.npy), which the small model `mini` hears in place of MERT's.

python preprocessing/audio/extract_spectral.py recordings features/spectral
"""

import os
import sys
from pathlib import Path

import numpy as np

from clamplib.audio import SUFFIXES
from clamplib.audio.spectral import recording_features
from clamplib.command import batch_parser, convert_folder

input_dir = "<path_to_your_recordings>"  # what is read when no folder is given


def main(argv: list[str] | None = None) -> int:
    parser = batch_parser(__doc__, input_dir, "_spectral")
    return convert_folder(parser, parser.parse_args(argv), _save, SUFFIXES, ".npy")


def _save(source: os.PathLike, target: Path) -> None:
    with target.open("wb") as out:
        np.save(out, recording_features(source))


if __name__ == "__main__":
    sys.exit(main())

"""Extracts features of sheet music and MIDI, by M3.

Takes interleaved .abc and .mtf. Each file gives one .npy of the last hidden states, [1, patches, 768].

example: accelerate launch extract_m3.py scores features/scores_m3
"""

import sys

from clamplib.models.settings import load_m3_variant
from clamplib.models.variants import LoadedModel
from extract_clamp3 import extract, extraction_parser
from utils import CONFIG


def main(argv: list[str] | None = None) -> int:
    args = extraction_parser(__doc__).parse_args(argv)

    def load() -> LoadedModel:
        return load_m3_variant(args.variant, args.config, config=CONFIG)

    return extract(args, (".abc", ".mtf"), load)


if __name__ == "__main__":
    sys.exit(main())

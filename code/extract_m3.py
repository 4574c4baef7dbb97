"""Extracts features of sheet music and MIDI, by M3.

Takes interleaved .abc and .mtf. Each file gives one .npy of the last hidden states, [1, patches, 768].

example: accelerate launch extract_m3.py scores features/scores_m3
"""

import sys
from functools import partial

from clamplib.models.settings import find_m3_variant
from extract_clamp3 import CONFIG, extract, extraction_parser


def main(argv: list[str] | None = None) -> int:
    args = extraction_parser(__doc__).parse_args(argv)
    find = partial(find_m3_variant, args.variant, args.config, config=CONFIG)
    return extract(args, (".abc", ".mtf"), find)


if __name__ == "__main__":
    sys.exit(main())

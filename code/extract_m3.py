"""Features of sheet music and MIDI, by M3.

Takes interleaved .abc and .mtf. Each file gives one .npy of the last hidden states, [1, patches, 768].
"""

import sys

from clamplib.models.checkpoints import Loaded
from clamplib.models.settings import load_m3
from extract_clamp3 import build_parser, run
from utils import CONFIG

EXAMPLE = "example: accelerate launch extract_m3.py scores features/scores_m3"


def main(argv: list[str] | None = None) -> int:
    args = build_parser(__doc__, EXAMPLE).parse_args(argv)

    def load() -> Loaded:
        return load_m3(args.variant, args.config, config=CONFIG)

    return run(args, (".abc", ".mtf"), load)


if __name__ == "__main__":
    sys.exit(main())

"""Features of sheet music and MIDI, by M3.

Takes interleaved .abc and .mtf. Each file gives one .npy of the last hidden states, [1, patches, 768].
"""

import sys
from pathlib import Path

from clamplib.checkpoints import Loaded, load_m3
from extract_clamp3 import build_parser, run
from utils import load_settings, make_geometry

EXAMPLE = "example: accelerate launch extract_m3.py scores features/scores_m3"


def main(argv: list[str] | None = None) -> int:
    args = build_parser(__doc__, EXAMPLE).parse_args(argv)

    def load() -> Loaded:
        settings = load_settings(args.config)
        own = Path(settings.M3_WEIGHTS_PATH)
        return load_m3(
            own if args.variant is None and own.is_file() else args.variant or settings.CLAMP3_VARIANT,
            weights_folder=own.parent,
            geometry=make_geometry(settings),
            learning_rate=settings.M3_LEARNING_RATE,
            batch_size=settings.M3_BATCH_SIZE,
            mask_ratio=settings.M3_MASK_RATIO,
        )

    return run(args, (".abc", ".mtf"), load)


if __name__ == "__main__":
    sys.exit(main())

"""Turns trained checkpoints into one folder that every script takes as `--variant FOLDER`.

The folder holds CLaMP 3 (the best epoch by its evaluation), M3 if it was trained, the tokenizer and the sizes.

example: python export_clamp3.py my_variant --config my_config.py
"""

import sys
from dataclasses import replace
from pathlib import Path

from clamplib.command import guarded, make_parser
from clamplib.models.settings import load_settings, make_geometry
from clamplib.models.variants import load_clamp3, load_m3, load_tokenizer

CONFIG = Path(__file__).resolve().with_name("config.py")  # of this clone, wherever the library is installed
DTYPES = ("float16", "float32")


@guarded
def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__)
    parser.add_argument("folder", type=Path, help="folder to write")
    parser.add_argument(
        "--config", type=Path, nargs="+", default=[], metavar="FILE", help="the files that it was trained with"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float16", help="of the weights (default: float16)")
    args = parser.parse_args(argv)
    import torch  # imports torch, which --help does not need

    from clamplib.models.loading import save_variant

    settings = load_settings(*args.config, config=CONFIG)
    geometry = make_geometry(settings)
    weights, m3_weights = Path(settings.CLAMP3_WEIGHTS_PATH), Path(settings.M3_WEIGHTS_PATH)
    clamp3 = load_clamp3(weights, weights_folder=weights.parent, geometry=geometry)
    m3 = None
    if m3_weights.is_file():
        m3 = load_m3(m3_weights, weights_folder=m3_weights.parent, geometry=geometry).model
    own = replace(geometry, text_model_name=args.folder.resolve().name)  # the folder has its config and tokenizer
    save_variant(args.folder, clamp3.model, load_tokenizer(geometry), own, m3, getattr(torch, args.dtype))
    size = sum(path.stat().st_size for path in args.folder.iterdir())
    print(f"{args.folder}: {size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Turns trained checkpoints into one folder that every script takes as `--variant FOLDER`.

The folder holds CLaMP 3 (the epoch with the best evaluation), M3 where it was trained, the tokenizer and the sizes.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch

from clamplib.files import InputError
from clamplib.models.checkpoints import load_clamp3, load_m3, save_variant
from clamplib.models.settings import load_tokenizer, make_geometry
from utils import load_settings

EXAMPLE = "example: python code/export_clamp3.py code/clamplib/mini --config mini/config.py"
DTYPES = {"float16": torch.float16, "float32": torch.float32}


def main(argv: list[str] | None = None) -> int:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], epilog=EXAMPLE)
    parser.add_argument("folder", type=Path, help="folder to write")
    parser.add_argument("--config", type=Path, nargs="+", default=[], metavar="FILE", help="as it was trained with")
    parser.add_argument("--dtype", choices=DTYPES, default="float16", help="of the weights (default: float16)")
    args = parser.parse_args(argv)
    try:
        settings = load_settings(*args.config)
        geometry = make_geometry(settings)
        weights, m3_weights = Path(settings.CLAMP3_WEIGHTS_PATH), Path(settings.M3_WEIGHTS_PATH)
        clamp3 = load_clamp3(weights, weights_folder=weights.parent, geometry=geometry)
        m3 = None
        if m3_weights.is_file():
            m3 = load_m3(m3_weights, weights_folder=m3_weights.parent, geometry=geometry).model
        tokenizer = load_tokenizer(settings)
        geometry = replace(geometry, text_model_name=args.folder.resolve().name)  # it lies in the folder itself
        save_variant(args.folder, clamp3.model, tokenizer, geometry, m3, DTYPES[args.dtype])
    except (InputError, FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    size = sum(path.stat().st_size for path in args.folder.iterdir())
    print(f"{args.folder}: {size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Trains CLaMP 3 on pairs of texts and symbolic music (.abc, .mtf) of CLAMP3_TRAIN_JSONL (see config.py).

examples:
  python train_clamp3_symbolic.py
  python -m torch.distributed.launch --nproc_per_node=2 --use_env train_clamp3_symbolic.py
  torchrun --nproc_per_node=2 train_clamp3_symbolic.py --config my_config.py
"""

import sys
from pathlib import Path

from clamplib.training.options import training_parser

CONFIG = Path(__file__).resolve().with_name("config.py")  # of this clone, wherever the library is installed


def main(argv: list[str] | None = None) -> int:
    args = training_parser(__doc__, "symbolic").parse_args(argv)
    from clamplib.training.script import run_training  # imports torch, which --help does not need

    return run_training(args, CONFIG, "symbolic")


if __name__ == "__main__":
    sys.exit(main())

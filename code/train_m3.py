"""Trains M3, the encoder of symbolic music, on the .abc and .mtf files of M3_TRAIN_FOLDERS (see config.py).

examples:
  python train_m3.py
  python -m torch.distributed.launch --nproc_per_node=2 --use_env train_m3.py
  torchrun --nproc_per_node=2 train_m3.py --config my_config.py
"""

import sys

from clamplib.training.script import run_training, training_parser
from utils import CONFIG


def main(argv: list[str] | None = None) -> int:
    args = training_parser(__doc__).parse_args(argv)
    return run_training(args, CONFIG)


if __name__ == "__main__":
    sys.exit(main())

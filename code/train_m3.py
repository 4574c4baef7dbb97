"""Trains M3, the encoder of symbolic music, on the files .abc and .mtf of M3_TRAIN_FOLDERS (config.py)."""

import sys

from training_utils import run_training

EXAMPLE = """examples:
  python train_m3.py
  python -m torch.distributed.launch --nproc_per_node=2 --use_env train_m3.py
  torchrun --nproc_per_node=2 train_m3.py --config my_config.py"""


def main(argv: list[str] | None = None) -> int:
    return run_training(None, __doc__, EXAMPLE, argv)


if __name__ == "__main__":
    sys.exit(main())

"""Trains CLaMP 3 on pairs of texts and audio features (.npy) of CLAMP3_TRAIN_JSONL (see config.py)."""

import sys

from training_utils import run_training

EXAMPLE = """examples:
  python train_clamp3_audio.py
  python -m torch.distributed.launch --nproc_per_node=2 --use_env train_clamp3_audio.py
  torchrun --nproc_per_node=2 train_clamp3_audio.py --config my_config.py"""


def main(argv: list[str] | None = None) -> int:
    return run_training("audio", __doc__, EXAMPLE, argv)


if __name__ == "__main__":
    sys.exit(main())

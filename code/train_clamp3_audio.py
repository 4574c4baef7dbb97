"""Trains CLaMP 3 on pairs of texts and audio features (.npy) of CLAMP3_TRAIN_JSONL (see config.py).

examples:
  python train_clamp3_audio.py
  python -m torch.distributed.launch --nproc_per_node=2 --use_env train_clamp3_audio.py
  torchrun --nproc_per_node=2 train_clamp3_audio.py --config my_config.py
"""

import sys

from clamplib.training.script import run_training, training_parser
from utils import CONFIG


def main(argv: list[str] | None = None) -> int:
    args = training_parser(__doc__, "audio").parse_args(argv)
    return run_training(args, CONFIG, "audio")


if __name__ == "__main__":
    sys.exit(main())

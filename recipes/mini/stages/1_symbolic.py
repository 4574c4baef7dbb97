"""Stage 1 aligns texts and scores, and the forms of a piece with each other."""

from clamplib.models import distributed

CLAMP3_NUM_EPOCH = 22
CLAMP3_LEARNING_RATE = 1e-3
CLAMP3_WARMUP_STEPS = 150
CLAMP3_BATCH_SIZE = 64 // distributed.world_size()  # in each process
PAIR_WEIGHT = 0.4

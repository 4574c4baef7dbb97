"""Stage 1 aligns texts and scores, and the forms of a piece with each other."""

CLAMP3_NUM_EPOCH = 22
CLAMP3_LEARNING_RATE = 1e-3
CLAMP3_WARMUP_STEPS = 150
CLAMP3_BATCH_SIZE = 32  # in each of two processes
PAIR_WEIGHT = 0.4

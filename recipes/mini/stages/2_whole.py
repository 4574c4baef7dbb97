"""Stage 2 trains on whole pieces in larger batches."""

CLAMP3_NUM_EPOCH = 4
CLAMP3_LEARNING_RATE = 5e-4
CLAMP3_WARMUP_STEPS = 50
CLAMP3_BATCH_SIZE = 64  # in each of two processes
PAIR_WEIGHT = 0.5

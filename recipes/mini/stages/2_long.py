"""Stage 2 trains on whole tunes in larger batches and draws the ABC and MIDI of a piece closer together."""

CLAMP3_NUM_EPOCH = 10
CLAMP3_LEARNING_RATE = 8e-4
CLAMP3_WARMUP_STEPS = 100
CLAMP3_BATCH_SIZE = 64  # in each of two processes
PAIR_WEIGHT = 0.5

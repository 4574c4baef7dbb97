"""Stage 1 aligns texts and scores. Pieces longer than 64 patches, as most MIDI is, are cropped for speed."""

PATCH_LENGTH = 64
CLAMP3_NUM_EPOCH = 28
CLAMP3_LEARNING_RATE = 8e-4
CLAMP3_WARMUP_STEPS = 150
CLAMP3_BATCH_SIZE = 32  # in each of two processes; with batches of 128 the loss stays at chance
PAIR_WEIGHT = 0.25

"""Stage 3 trains the score encoder against frozen texts, like the last stage of SAAS."""

FREEZE_TEXT = True
CLAMP3_NUM_EPOCH = 4
CLAMP3_LEARNING_RATE = 4e-4
CLAMP3_WARMUP_STEPS = 50
CLAMP3_BATCH_SIZE = 64  # in each of two processes
PAIR_WEIGHT = 0.5

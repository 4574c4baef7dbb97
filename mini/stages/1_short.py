"""Texts and scores meet. Of what is longer than 64 patches, as most tunes are in MIDI, a part is read: faster."""

PATCH_LENGTH = 64
CLAMP3_NUM_EPOCH = 28
CLAMP3_LEARNING_RATE = 8e-4
CLAMP3_WARMUP_STEPS = 150
CLAMP3_BATCH_SIZE = 32  # in each of two processes; a training on batches of 128 stays at chance
PAIR_WEIGHT = 0.25

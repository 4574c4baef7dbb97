"""How `mini` learns to hear, over the values of mini/config.py: `--config mini/config.py mini/audio_config.py`."""

FREEZE_TEXT = True  # and the symbolic encoder is frozen anyway: the recordings come to the others
CLAMP3_NUM_EPOCH = 12
CLAMP3_LEARNING_RATE = 1e-3
CLAMP3_WARMUP_STEPS = 100
PAIR_WEIGHT = 1.0  # a recording is drawn to a score of the piece as much as to its text

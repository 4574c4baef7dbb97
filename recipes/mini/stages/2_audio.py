"""Stage 2 trains the audio encoder against frozen texts and scores."""

from clamplib.models import distributed

CLAMP3_TRAIN_JSONL = "../../../out/mini/train_audio.jsonl"
FREEZE_TEXT = True
CLAMP3_NUM_EPOCH = 9
WEIGHT_DECAY = 0.05
CLAMP3_LEARNING_RATE = 1e-3
CLAMP3_WARMUP_STEPS = 100
CLAMP3_BATCH_SIZE = 128 // distributed.world_size()  # in each process
PAIR_WEIGHT = 1.0  # the score of a piece attracts its recording as much as its text does

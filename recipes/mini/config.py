"""The settings that train `mini`: code/config.py's names with other values. Each stage in stages/ overrides some.

    python code/train_clamp3_symbolic.py --config recipes/mini/config.py recipes/mini/stages/1_symbolic.py

Paths are relative to this file.
"""

import os

import torch

from clamplib.models import distributed

processes = distributed.world_size()  # that share a batch
SEED = 7
NUM_WORKERS = min(8, max(1, os.cpu_count() // processes - 1))  # in each process
DROPOUT = 0.0  # the model is small for its data, and faster without it
SCHEDULE = "cosine"
# bf16 on a CPU too, where its instructions have it: a third faster. With AVX2 it is forty times slower.
PRECISION = "bf16" if torch.backends.cpu.get_cpu_capability() == "AVX512" else "auto"
SAVE_EVERY = 100
CHUNK_BATCHES = 5  # few, so that batches keep mixed lengths and length alone does not tell tunes apart

# data, as recipes.mini.build writes it
M3_TRAIN_FOLDERS = ["../../out/mini/notes/0"]  # each piece once in each of its keys
M3_EVAL_FOLDERS = []
CLAMP3_TRAIN_JSONL = "../../out/mini/train.jsonl"
CLAMP3_EVAL_JSONL = "../../out/mini/eval.jsonl"

# sizes
PATCH_LENGTH = 64  # nearly every tune in the canonical form; longer pieces are read in several segments
PATCH_NUM_LAYERS = 4
TOKEN_NUM_LAYERS = 1
M3_HIDDEN_SIZE = 192
CLAMP3_HIDDEN_SIZE = 192
MAX_TEXT_LENGTH = 48
TEXT_MODEL_NAME = "../../out/mini/text_model"
AUDIO_HIDDEN_SIZE = 448
AUDIO_NUM_LAYERS = 2
MAX_AUDIO_LENGTH = 8  # the windows of half a minute, which training recordings have, and two frames around them

# M3
M3_NUM_EPOCH = 1
M3_LEARNING_RATE = 5e-4
M3_WARMUP_STEPS = 100
M3_BATCH_SIZE = 128 // processes
M3_MASK_RATIO = 0.2  # decodes only a fifth of the patches; decoding is most of the work
M3_WEIGHTS_PATH = "../../out/mini/weights_m3.pth"
M3_LOGS_PATH = "../../out/mini/logs_m3.txt"

# CLaMP 3
CLAMP3_VARIANT = "mini"
CLAMP3_ABC = "as found"  # the canonical form is the same either way
CLAMP3_NOTES = "canonical"  # one form for ABC and MIDI, whatever hand wrote them
CLAMP3_LOAD_M3 = False  # with M3's weights all pieces start out alike (cosine .996), and the loss stays at chance
CLAMP3_WEIGHTS_PATH = "../../out/mini/weights_clamp3.pth"
CLAMP3_LOGS_PATH = "../../out/mini/logs_clamp3.txt"
HIDE_HEADER_RATIO = 0.25  # otherwise the model reads key and meter off the header alone
LEARNED_TEMPERATURE = True
CLAMP3_BEST_BY = "mrr"  # in stage 1 the loss is lowest in epoch 18 of 22, but the MRR is highest in the last
LOGIT_SCALE = 5  # at CLIP's 14 and without clipping, the features collapse within 20 steps
GRADIENT_CLIP = 0.5
MASK_SAME_TEXT = True

"""Hyperparameters and paths of the training and extraction scripts. The defaults are the published ones.

Edit the values here, or write your own into a file of the same kind and name it: train_m3.py --config my.py
A relative path is relative to the file that states it, so a bare name in this file is in code/.
Line 66 switches between the published variants: `saas` (best for audio) and `c2` (best for symbolic music).
"""

# -------------------------------------------------------------------- all training
EVAL_SPLIT = 0.01  # share of the training data to evaluate on if no evaluation data is named
SEED = 42  # of the split, the order of the items, all random choices about an item, and dropout
SAVE_EVERY = 5  # epochs between the checkpoints that are kept as …_N.pth; 0: keep none
NUM_WORKERS = 2  # processes per GPU that read and prepare batches; 0: the training does it itself
CHUNK_BATCHES = 20  # items are sorted by length within this many shuffled batches; 1: they are not sorted
PRECISION = "auto"  # "bf16", "fp16" (with scaled gradients) or "float32"; "auto": bf16 on CUDA, else float32
DROPOUT = 0.1  # of all encoders and of the decoder
WEIGHT_DECAY = 0.01  # of AdamW
SCHEDULE = "constant"  # of the learning rate after its warm-up: "constant", or "cosine" down to zero
GRADIENT_CLIP = 0.0  # largest norm of the gradient; 0: no limit
WANDB_KEY = ""  # curves go to wandb.ai if *_WANDB_LOG is True and a key is here or in WANDB_API_KEY

# -------------------------------------------------------------------- M3: data
M3_TRAIN_FOLDERS = []  # folders or tars of interleaved .abc and .mtf files, searched with their sub-folders
M3_EVAL_FOLDERS = []  # empty: EVAL_SPLIT of the training files

# -------------------------------------------------------------------- M3: sizes
PATCH_SIZE = 64  # characters per patch
PATCH_LENGTH = 512  # patches per segment
PATCH_NUM_LAYERS = 12  # layers of the encoder over patches
TOKEN_NUM_LAYERS = 3  # layers of the decoder over characters
M3_HIDDEN_SIZE = 768  # of both

# -------------------------------------------------------------------- M3: training
M3_NUM_EPOCH = 100
M3_LEARNING_RATE = 1e-4
M3_WARMUP_STEPS = 1000
M3_BATCH_SIZE = 16  # pieces per GPU
M3_MASK_RATIO = 0.45  # share of the patches to be reconstructed
M3_DETERMINISTIC = True  # only deterministic cuDNN kernels
M3_WANDB_LOG = False
M3_LOAD_CKPT = True  # go on from the last checkpoint if there is one

# -------------------------------------------------------------------- CLaMP 3: data
CLAMP3_TRAIN_JSONL = None  # one piece per line; file paths are relative to the folder of the JSONL
CLAMP3_EVAL_JSONL = None  # None: EVAL_SPLIT of the training pieces

# -------------------------------------------------------------------- CLaMP 3: sizes
CLAMP3_HIDDEN_SIZE = 768  # of the joint space
TEXT_MODEL_NAME = "FacebookAI/xlm-roberta-base"  # a name on the hub, or a folder with config.json and tokenizer.json
MAX_TEXT_LENGTH = 128  # tokens per segment of a text
AUDIO_HIDDEN_SIZE = 768  # of the audio features and of their encoder
AUDIO_NUM_LAYERS = 12
MAX_AUDIO_LENGTH = 128  # frames of 5 s: 640 s

# -------------------------------------------------------------------- CLaMP 3: training
CLAMP3_NUM_EPOCH = 100
CLAMP3_LEARNING_RATE = 1e-5
CLAMP3_WARMUP_STEPS = 1000
CLAMP3_BATCH_SIZE = 256  # pairs per GPU
CLAMP3_DETERMINISTIC = True  # only deterministic cuDNN kernels
CLAMP3_LOAD_M3 = True  # start the symbolic encoder from M3's weights
CLAMP3_WANDB_LOG = False
CLAMP3_LOAD_CKPT = True  # go on from the last checkpoint if there is one
FREEZE_TEXT = False  # leave the text encoder unchanged

# -------------------------------------------------------------------- CLaMP 3: which variant
CLAMP3_WEIGHTS = "weights_clamp3_saas"  # the published weights to use, or the name of those that you train
CLAMP3_ABC = ""  # reading of ABC that is not interleaved: "as found", "converted", or "": as found, with a warning
CLAMP3_NOTES = ""  # form of symbolic music that the model reads: "canonical" (clamplib/formats/canonical.py), or as is

# -------------------------------------------------------------------- CLaMP 3: random changes to items
TEXT_DROPOUT = True  # random lines of all text fields; False: `analysis`, as in evaluation
INSTRUMENT_DROPOUT = 0.9  # share of symbolic items that lose the names of their instruments
HIDE_HEADER_RATIO = 0.0  # share of ABC items that lose their lines K: M: L: Q: %%

# -------------------------------------------------------------------- CLaMP 3: loss
LOGIT_SCALE = 1  # factor of the dot products, or its first value if it is learned
LEARNED_TEMPERATURE = False  # True: features are normalized and the factor is learned
MASK_SAME_TEXT = False  # True: items with the same text or id are not negatives of each other
PAIR_WEIGHT = 0.0  # above 0: each step contrasts two files of a piece (audio: and a score) with this weight

# -------------------------------------------------------------------- CLaMP 3: which epoch is kept
CLAMP3_BEST_BY = "loss"  # the one with the lowest evaluation "loss", or the one with the highest "mrr"

# -------------------------------------------------------------------- memory for training
CLAMP3_ACCUMULATION = 1  # each batch is encoded in so many parts, for the same loss in less memory; 1: at once
GRADIENT_CHECKPOINTING = False  # True: layers are computed again in the backward pass, in place of being kept

# -------------------------------------------------------------------- names made from the settings above
M3_NAME = (
    f"m3_p_size_{PATCH_SIZE}_p_length_{PATCH_LENGTH}_t_layers_{TOKEN_NUM_LAYERS}_p_layers_{PATCH_NUM_LAYERS}"
    f"_h_size_{M3_HIDDEN_SIZE}_lr_{M3_LEARNING_RATE}_batch_{M3_BATCH_SIZE}_mask_{M3_MASK_RATIO}"
)
M3_WEIGHTS_PATH = f"weights_{M3_NAME}.pth"
M3_LOGS_PATH = f"logs_{M3_NAME}.txt"
CLAMP3_VARIANT = CLAMP3_WEIGHTS.removeprefix("weights_clamp3_")
CLAMP3_NAME = (
    f"clamp3_{CLAMP3_VARIANT}_h_size_{CLAMP3_HIDDEN_SIZE}_t_model_{TEXT_MODEL_NAME.replace('/', '_')}"
    f"_t_length_{MAX_TEXT_LENGTH}_a_size_{AUDIO_HIDDEN_SIZE}_a_layers_{AUDIO_NUM_LAYERS}"
    f"_a_length_{MAX_AUDIO_LENGTH}_s_size_{M3_HIDDEN_SIZE}_s_layers_{PATCH_NUM_LAYERS}"
    f"_p_size_{PATCH_SIZE}_p_length_{PATCH_LENGTH}"
)
CLAMP3_WEIGHTS_PATH = f"weights_{CLAMP3_NAME}.pth"
CLAMP3_LOGS_PATH = f"logs_{CLAMP3_NAME}.txt"

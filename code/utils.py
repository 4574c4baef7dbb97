"""The names that other projects import from CLaMP 3's code, on top of the library.

    from clamp3.code.utils import *          # or, with this folder on the path: from utils import *

All settings of config.py are here too. They are the defaults of the models, the patchilizer and the functions.
"""

import random
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from clamplib.formats import patchilizer
from clamplib.models import encoders as models
from clamplib.models import settings
from clamplib.models.configs import AnyConfig, read_text_config
from clamplib.models.encoders import M3Model, M3TokenDecoder
from clamplib.models.loss import contrastive_loss
from clamplib.training.augment import corrupt_patches, remove_instrument_info, select_patches

CONFIG = Path(__file__).resolve().with_name("config.py")  # of this clone, wherever the library is installed
CONSTANTS = settings.read_assignments(CONFIG)
SETTINGS = settings.load_settings(config=CONFIG)
load_settings = partial(settings.load_settings, config=CONFIG)

__all__ = [
    "CLaMP3Model",
    "ClipLoss",
    "M3Model",
    "M3PatchEncoder",
    "M3Patchilizer",
    "M3TokenDecoder",
    "mask_patches",
    "remove_instrument_info",
    "split_data",
]
__all__.extend(CONSTANTS)
globals().update(CONSTANTS)


class M3Patchilizer(patchilizer.M3Patchilizer):
    """The library's patchilizer. Its sizes are the configured ones by default."""

    def __init__(self, patch_size: int = SETTINGS.PATCH_SIZE, patch_length: int = SETTINGS.PATCH_LENGTH):
        super().__init__(patch_size, patch_length)


class M3PatchEncoder(models.M3PatchEncoder):
    """The library's encoder over patches. Its patch size is the configured one by default."""

    def __init__(self, config: AnyConfig, patch_size: int = SETTINGS.PATCH_SIZE):
        super().__init__(config, patch_size)


class CLaMP3Model(models.CLaMP3Model):
    """The library's CLaMP 3, of the configured sizes.

    Args:
        audio_config: config of the encoder over audio features, by transformers or by the library.
        symbolic_config: config of the encoder over patches.
        global_rank, world_size: have no effect, because a model finds the other processes by itself.
        text_model_name: a name on the hub or a folder. The text encoder begins with its pretrained weights.
        hidden_size: the size of the joint space.
        load_m3: starts the symbolic encoder from the weights of M3, if they are there.
    """

    def __init__(
        self,
        audio_config: AnyConfig,
        symbolic_config: AnyConfig,
        global_rank: int | None = None,
        world_size: int | None = None,
        text_model_name: str = SETTINGS.TEXT_MODEL_NAME,
        hidden_size: int = SETTINGS.CLAMP3_HIDDEN_SIZE,
        load_m3: bool = SETTINGS.CLAMP3_LOAD_M3,
    ):
        super().__init__(
            audio_config,
            symbolic_config,
            read_text_config(text_model_name),
            hidden_size,
            SETTINGS.LOGIT_SCALE,
            SETTINGS.LEARNED_TEMPERATURE,
            SETTINGS.PATCH_SIZE,
        )
        _load_text_weights(self, text_model_name)
        if load_m3 and Path(SETTINGS.M3_WEIGHTS_PATH).is_file():
            settings.load_m3_encoder(self, SETTINGS)


def _load_text_weights(model: CLaMP3Model, name: str) -> None:
    """Starts the text encoder from pretrained weights. If there are none, a warning says so."""
    try:
        settings.load_text_encoder(model, name)
    except OSError as error:
        reason = str(error).partition("\n")[0]
        warnings.warn(
            f"the text encoder begins with random weights: those of {name} are neither in a folder nor in the cache of "
            f"huggingface_hub, and could not be fetched ({reason}). Load a checkpoint before you use the model.",
            stacklevel=3,
        )


class ClipLoss(nn.Module):
    """The contrastive loss, with the name and the arguments that it has in open_clip.

    The arguments have no effect: the features of all processes are always gathered, with their gradient.
    """

    def __init__(
        self,
        local_loss: bool = False,
        gather_with_grad: bool = True,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
    ):
        super().__init__()

    def forward(
        self,
        image_features: torch.Tensor,
        text_features: torch.Tensor,
        logit_scale: torch.Tensor | float = SETTINGS.LOGIT_SCALE,
        output_dict: bool = False,
    ) -> torch.Tensor | dict[str, torch.Tensor]:
        """Computes the loss.

        Args:
            image_features: features [B, H].
            text_features: features [B, H]; row i belongs to row i of the others.
            logit_scale: the factor of the dot products.
            output_dict: returns the loss in a dict, as "contrastive_loss".
        """
        loss = contrastive_loss(image_features, text_features, logit_scale)
        return {"contrastive_loss": loss} if output_dict else loss


def split_data(data: Sequence, eval_ratio: float = SETTINGS.EVAL_SPLIT) -> tuple[list, list]:
    """Splits data at random, by Python's `random`.

    Returns:
        The items to train on, and the items to evaluate on, whose share is `eval_ratio`.
    """
    shuffled = list(data)
    random.shuffle(shuffled)
    count = int(len(shuffled) * eval_ratio)
    return shuffled[count:], shuffled[:count]


def mask_patches(
    target_patches: Sequence[Sequence[int]] | np.ndarray | torch.Tensor, patchilizer: M3Patchilizer, mode: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Selects the patches of a piece that M3 reconstructs, and corrupts them in training.

    Args:
        target_patches: codes [n, S].
        patchilizer: has no effect, because all patchilizers have the same special codes.
        mode: "train", or "eval", which leaves the patches unchanged.

    Returns:
        The patches that M3 reads, int64 [n, S], and 1 at the selected ones, float32 [n].
    """
    patches = np.asarray(target_patches).astype(np.int64)
    selected = select_patches(len(patches), SETTINGS.M3_MASK_RATIO, random)
    inputs = patches if mode == "eval" else corrupt_patches(patches, selected, random)
    return torch.from_numpy(inputs), torch.from_numpy(selected).float()

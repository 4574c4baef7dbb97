"""How to train; the state of a training, saved and resumed; and its curves on wandb.

The checkpoints lie beside each other: NAME.pth is the best epoch by its evaluation, NAME_N.pth is kept every
few epochs, and NAME_latest.pth is the state from which training resumes. Each has the published entries model,
optimizer, lr_sched, epoch, best_epoch and min_eval_loss, and for CLaMP 3 modality.
"""

import logging
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from clamplib.files import InputError
from clamplib.models import distributed
from clamplib.models.checkpoints import fit_positions, load_checkpoint, load_weights, save_checkpoint

logger = logging.getLogger(__name__)

FUSED = ("cpu", "cuda")  # devices where AdamW updates all parameters in one call, five times as fast on a CPU
PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "float32": None}
SCHEDULES = ("constant", "cosine")
MEASURES = ("loss", "mrr")


@dataclass(frozen=True)
class TrainingRecipe:
    """How to train, apart from the data and the objective.

    Attributes:
        weights_path: of the best epoch, a .pth; the other checkpoints lie beside it.
        logs_path: a text file that gets one line per epoch.
        epochs: how many to train in all.
        learning_rate: after the warm-up.
        warmup_steps: over which the learning rate rises from 0.
        schedule: of the learning rate after that, "constant", or "cosine" down to 0.
        weight_decay: of AdamW.
        gradient_clip: the largest norm of the gradient; 0 for any.
        precision: "bf16", "fp16" (with scaled gradients), "float32", or "auto": bf16 on CUDA, else float32.
        deterministic: only deterministic cuDNN kernels.
        load_checkpoint: resumes from a checkpoint, if there is one.
        best_by: what the best epoch has: the lowest evaluation "loss", or the highest "mrr".
        save_every: epochs between the checkpoints that are kept; 0 for none.
        seed: of the dropout.
        stage: goes into the checkpoints, such as {"modality": "symbolic"}. Training resumes from a checkpoint of the
            same stage, and takes only the weights from one of another stage.

    Raises:
        ValueError: an unknown precision, schedule or measure of the best epoch.
    """

    weights_path: Path
    logs_path: Path
    epochs: int
    learning_rate: float
    warmup_steps: int = 1000
    schedule: str = "constant"
    weight_decay: float = 0.01
    gradient_clip: float = 0.0
    precision: str = "auto"
    deterministic: bool = True
    load_checkpoint: bool = True
    best_by: str = "loss"
    save_every: int = 5
    seed: int = 42
    stage: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.precision not in ("auto", *PRECISIONS):
            raise ValueError(f"precision must be one of auto, {', '.join(PRECISIONS)}, not {self.precision!r}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, not {self.schedule!r}")
        if self.best_by not in MEASURES:
            raise ValueError(f"best_by must be one of {', '.join(MEASURES)}, not {self.best_by!r}")

    @property
    def latest_path(self) -> Path:
        """The checkpoint from which training resumes."""
        return self.weights_path.with_stem(f"{self.weights_path.stem}_latest")

    def epoch_path(self, epoch: int) -> Path:
        """Returns the path of the checkpoint that is kept of an epoch."""
        return self.weights_path.with_stem(f"{self.weights_path.stem}_{epoch}")

    def checkpoint(self) -> Path | None:
        """Returns the checkpoint to resume from: the latest state, or the best one (such as a published one)."""
        if self.load_checkpoint:
            for path in (self.latest_path, self.weights_path):
                if path.is_file():
                    return path
        return None


@dataclass
class Progress:
    """How far a training is.

    Attributes:
        epoch: how many epochs are done.
        best_epoch: the one that the recipe calls the best, counted from 1.
        min_eval_loss: its evaluation loss.
        max_eval_mrr: its MRR, for CLaMP 3.
        step: how many steps of the next epoch are done.
        loss_sum: the sum of their losses.
    """

    epoch: int = 0
    best_epoch: int = 0
    min_eval_loss: float = math.inf
    max_eval_mrr: float = 0.0
    step: int = 0
    loss_sum: float = 0.0


class TrainingState:
    """A model, its optimizer, schedule and gradient scaler, and their checkpoints.

    Attributes:
        progress: how far the training is; the loop updates it.

    Args:
        model: on its device.
        recipe: how to train it.
        steps_per_epoch: the number of training batches.
        device: of the model.
    """

    def __init__(self, model: nn.Module, recipe: TrainingRecipe, steps_per_epoch: int, device: torch.device):
        self.model = model
        self.recipe = recipe
        self.device = device
        self.progress = Progress()
        # All parameters, as in the published files; frozen ones get no gradient.
        self.optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            fused=device.type in FUSED,
        )
        factor = learning_rate_factor(recipe, recipe.epochs * steps_per_epoch)
        self.scheduler = LambdaLR(self.optimizer, factor)
        automatic = "bf16" if device.type == "cuda" else "float32"
        self.dtype = PRECISIONS[automatic if recipe.precision == "auto" else recipe.precision]
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)

    def finish_epoch(self, numbers: dict) -> bool:
        """Counts an epoch as done. Returns whether its evaluation is better than those of all epochs before."""
        progress = self.progress
        progress.epoch = numbers["epoch"]
        progress.step = 0
        progress.loss_sum = 0.0
        if self.recipe.best_by == "mrr":
            best = numbers["eval_mrr"] > progress.max_eval_mrr
        else:
            best = numbers["eval_loss"] < progress.min_eval_loss
        if best:
            progress.best_epoch = progress.epoch
            progress.min_eval_loss = numbers["eval_loss"]
            progress.max_eval_mrr = numbers.get("eval_mrr", 0.0)
        return best

    def autocast(self) -> torch.autocast:
        """Returns a context in which the model computes in the recipe's precision."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None)

    def step(self, loss: torch.Tensor) -> None:
        """Takes one step of the optimizer and of the schedule.

        Where fp16 gradients overflow, it takes none and only lowers their scale.
        """
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        if self.recipe.gradient_clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.gradient_clip)
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scaler.get_scale() >= scale:  # a lower scale means that the gradients overflowed
            self.scheduler.step()

    def save(self, path: Path) -> None:
        """Writes a checkpoint. All processes call this; the first one writes, and the others wait for it.

        Raises:
            OSError: the file cannot be written.
        """
        if distributed.rank() == 0:
            entries = {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "lr_sched": self.scheduler.state_dict(),
                "scaler": self.scaler.state_dict(),
            }
            save_checkpoint(path, {**entries, **vars(self.progress), **self.recipe.stage})
        distributed.wait()

    def resume(self) -> None:
        """Resumes from the recipe's checkpoint, if there is one.

        Raises:
            InputError: the checkpoint is damaged, is of another geometry, or has only weights.
        """
        path = self.recipe.checkpoint()
        if path is None:
            return
        found = load_checkpoint(path)
        stage = self.recipe.stage
        differing = sorted(name for name in stage if found.get(name, stage[name]) != stage[name])
        if differing:
            self._begin_stage(differing)
            return
        load_weights(self.model, found["model"], path)
        try:
            self.optimizer.load_state_dict(found["optimizer"])
            self.scheduler.load_state_dict({"lr_lambdas": [None], **found["lr_sched"]})
            if found.get("scaler"):
                self.scaler.load_state_dict(found["scaler"])
            self.progress = Progress(**{name: found[name] for name in vars(Progress()) if name in found})
        except (KeyError, ValueError) as error:
            raise InputError(
                f"{path}: expected a checkpoint to go on from, with optimizer and lr_sched ({error}). "
                "Move it away, or set LOAD_CKPT to False."
            ) from error
        done = f"{self.progress.epoch} epochs and {self.progress.step} steps are done"
        rate = self.scheduler.base_lrs[0]
        logger.info("Going on from %s: %s, learning rate %g as it was.", path, done, rate)

    def _begin_stage(self, differing: list[str]) -> None:
        """Takes the best weights of the previous stage."""
        best = self.recipe.weights_path
        path = best if best.is_file() else self.recipe.latest_path
        load_weights(self.model, fit_positions(load_checkpoint(path)["model"], self.model), path)
        logger.info("Weights from %s; a new stage begins, its %s differing.", path, ", ".join(differing))


def learning_rate_factor(recipe: TrainingRecipe, steps: int) -> Callable[[int], float]:
    """Makes the schedule: a function of the step that gives a factor of the learning rate, from 0 to 1.

    Args:
        recipe: has the schedule and its warm-up.
        steps: of the whole training.
    """

    def factor(step: int) -> float:
        if step < recipe.warmup_steps:
            return step / recipe.warmup_steps
        if recipe.schedule == "constant":
            return 1.0
        done = (step - recipe.warmup_steps) / max(1, steps - recipe.warmup_steps)
        return (1 + math.cos(math.pi * min(1.0, done))) / 2

    return factor


def start_curves(
    *, project: str, name: str, settings: dict, key: str = "", wanted: bool = True
) -> Callable[[dict], None] | None:
    """Starts a run on wandb, if that is wanted and possible.

    Without a key nothing is sent. With WANDB_MODE=offline no key is needed, and the curves stay in the folder wandb/.

    Args:
        project: of the run.
        name: of the run.
        settings: kept with the run.
        key: of the account; else that of the environment variable WANDB_API_KEY.
        wanted: False does nothing.

    Returns:
        A function that sends the numbers of an epoch, or None. A warning says why there is none, such as a key that
        wandb refuses.
    """
    if not wanted:
        return None
    offline = os.environ.get("WANDB_MODE") == "offline"
    key = key or os.environ.get("WANDB_API_KEY", "")
    if not (key or offline):
        logger.warning("no curves on wandb: WANDB_KEY is empty")
        return None
    try:
        import wandb

        if not offline:
            wandb.login(key=key, verify=True)
        run = wandb.init(project=project, name=name, config=settings)
    except Exception as error:  # no failure of wandb is a reason not to train
        logger.warning("no curves on wandb: %s: %s", type(error).__name__, error)
        return None
    return lambda numbers: run.log(numbers, step=numbers["epoch"])

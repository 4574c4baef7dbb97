"""How to train, and the state of a training: model, optimizer, schedule and progress, saved and resumed.

Files, beside each other: NAME.pth is the epoch with the lowest evaluation loss, NAME_N.pth every few epochs,
and NAME_latest.pth the state to go on from. Each has the published entries: model, optimizer, lr_sched,
epoch, best_epoch, min_eval_loss, and modality for CLaMP 3.
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

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "float32": None}
SCHEDULES = ("constant", "cosine")


@dataclass(frozen=True)
class Recipe:
    """How to train, apart from the data and the objective.

    `stage` goes into the checkpoints, such as {"modality": "symbolic"}: training goes on from a checkpoint of
    the same stage, and takes the weights alone from one of another.
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
    save_every: int = 5
    seed: int = 42
    stage: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.precision not in ("auto", *PRECISIONS):
            raise ValueError(f"precision must be one of auto, {', '.join(PRECISIONS)}, not {self.precision!r}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, not {self.schedule!r}")

    @property
    def latest_path(self) -> Path:
        return self.weights_path.with_stem(f"{self.weights_path.stem}_latest")

    def checkpoint(self) -> Path | None:
        """What to go on from: the latest state, else the best one (a published one, say), if there is any."""
        paths = [path for path in (self.latest_path, self.weights_path) if path.is_file()]
        return paths[0] if paths and self.load_checkpoint else None

    def epoch_path(self, epoch: int) -> Path:
        return self.weights_path.with_stem(f"{self.weights_path.stem}_{epoch}")


@dataclass
class Progress:
    """How far training is: `epoch` epochs done, and `step` steps of the next one with their `loss_sum`."""

    epoch: int = 0
    best_epoch: int = 0
    min_eval_loss: float = math.inf
    step: int = 0
    loss_sum: float = 0.0


class TrainingState:
    """Model, optimizer, schedule and gradient scaler, and their checkpoints."""

    def __init__(self, model: nn.Module, recipe: Recipe, steps_an_epoch: int, device: torch.device):
        self.model, self.recipe, self.device = model, recipe, device
        # All parameters, also the frozen ones, which get no gradient: so it is in the published files.
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        factor = learning_rate_factor(recipe, recipe.epochs * steps_an_epoch)
        self.scheduler = LambdaLR(self.optimizer, factor)
        automatic = "bf16" if device.type == "cuda" else "float32"
        self.dtype = PRECISIONS[automatic if recipe.precision == "auto" else recipe.precision]
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None)

    def step(self, loss: torch.Tensor) -> None:
        """One step of optimizer and schedule."""
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        if self.recipe.gradient_clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.gradient_clip)
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scaler.get_scale() >= scale:  # a smaller scale: the gradients overflowed, no step was taken
            self.scheduler.step()

    def save(self, path: Path, progress: Progress) -> None:
        """Writes a checkpoint; all processes call this, the first one writes, the others wait for it."""
        if distributed.rank() == 0:
            entries = {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "lr_sched": self.scheduler.state_dict(),
                "scaler": self.scaler.state_dict(),
            }
            save_checkpoint(path, {**entries, **vars(progress), **self.recipe.stage})
        distributed.wait()

    def resume(self) -> Progress:
        """Goes on from the recipe's checkpoint, if there is one."""
        path = self.recipe.checkpoint()
        if path is None:
            return Progress()
        found = load_checkpoint(path)
        stage = self.recipe.stage
        differing = sorted(name for name in stage if found.get(name, stage[name]) != stage[name])
        if differing:
            self._begin_stage(differing)
            return Progress()
        load_weights(self.model, found["model"], path)
        try:
            self.optimizer.load_state_dict(found["optimizer"])
            self.scheduler.load_state_dict({"lr_lambdas": [None], **found["lr_sched"]})
            if found.get("scaler"):
                self.scaler.load_state_dict(found["scaler"])
            progress = Progress(**{name: found[name] for name in vars(Progress()) if name in found})
        except (KeyError, ValueError) as error:
            raise InputError(
                f"{path}: expected a checkpoint to go on from, with optimizer and lr_sched ({error}). "
                "Move it away, or set LOAD_CKPT to False."
            ) from error
        rate = self.scheduler.base_lrs[0]
        done = f"{progress.epoch} epochs and {progress.step} steps are done, learning rate {rate:g} as it was"
        logger.info("Going on from %s: %s.", path, done)
        return progress

    def _begin_stage(self, differing: list[str]) -> None:
        """Takes the best weights of the stage before."""
        best = self.recipe.weights_path
        path = best if best.is_file() else self.recipe.latest_path
        load_weights(self.model, fit_positions(load_checkpoint(path)["model"], self.model), path)
        logger.info("Weights from %s; a new stage begins, its %s differing.", path, ", ".join(differing))


def learning_rate_factor(recipe: Recipe, steps: int) -> Callable[[int], float]:
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
    """A function that takes the numbers of an epoch to wandb, or None, with the reason in a warning.

    Without a key (an argument, or WANDB_API_KEY) nothing is sent; with WANDB_MODE=offline no key is needed
    and the curves stay in the folder wandb/. A key that wandb refuses, a placeholder say, is only warned of.
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
    except Exception as error:  # whatever goes wrong here is no reason not to train
        logger.warning("no curves on wandb: %s: %s", type(error).__name__, error)
        return None
    return lambda numbers: run.log(numbers, step=numbers["epoch"])

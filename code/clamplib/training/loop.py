"""The one training loop: an objective is minimized over batches, and evaluated after every epoch.

Resuming is exact, in the middle of an epoch too: items draw from (seed, epoch, index) and dropout from
(seed, epoch, step, rank), so a checkpoint needs no generator's state. (See training_state for the files.)
"""

import logging
import math
import random
import signal
import sys
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm

from clamplib.models import distributed
from clamplib.training.batches import Stopwatch
from clamplib.training.objectives import Objective
from clamplib.training.state import Progress, Recipe, TrainingState

logger = logging.getLogger(__name__)

PROGRESS_SECONDS = 0.5 if sys.stderr.isatty() else 30  # between two states of the progress bar


def train(
    model: nn.Module,
    objective: Objective,
    train_batches: DataLoader,
    eval_batches: DataLoader,
    recipe: Recipe,
    *,
    device: torch.device,
    report: Callable[[dict], None] | None = None,
) -> int:
    """Trains to the end, or until SIGINT or SIGTERM, which saves first; returns the exit status of a script.

    `report` is called after every epoch with its numbers, among them the share of the training's time that its
    steps waited for data. The status is 0, or 128 + the signal's number.
    Raises FloatingPointError where the loss is no longer finite.
    """
    torch.backends.cudnn.deterministic = recipe.deterministic
    torch.backends.cudnn.benchmark = not recipe.deterministic
    state = TrainingState(model.to(device), recipe, len(train_batches), device)
    progress = state.resume()
    if progress.epoch >= recipe.epochs:
        _say(
            f"Training has finished: {progress.epoch} of {recipe.epochs} epochs are done, the best was "
            f"{progress.best_epoch}. Raise the number of epochs to go on."
        )
        return 0
    step = _parallel(_Loss(model, objective), device)
    with _Signals() as signals:
        while progress.epoch < recipe.epochs:
            started, stopwatch = time.monotonic(), Stopwatch()
            stopped_by = _train_epoch(step, state, progress, train_batches, signals, stopwatch)
            if stopped_by:
                state.save(recipe.latest_path, progress)
                return _stopped(stopped_by)
            waiting = round(stopwatch.share(), 3)  # without the evaluation
            numbers = {"epoch": progress.epoch + 1, "train_loss": progress.loss_sum / len(train_batches)}
            numbers |= {f"eval_{name}": value for name, value in _evaluate(state, objective, eval_batches).items()}
            numbers |= {"lr": state.scheduler.get_last_lr()[0]}
            numbers |= {"seconds": time.monotonic() - started, "waiting": waiting}
            _finish_epoch(state, progress, numbers, report)
            stopped_by = distributed.largest(signals.received)
            if stopped_by:
                return _stopped(stopped_by)
    return 0


def _stopped(number: int) -> int:
    _say(f"Stopped by {signal.Signals(number).name}; the same command goes on from here.")
    return 128 + number


class _Loss(nn.Module):
    """An objective's loss as a module's forward, which is what DistributedDataParallel takes."""

    def __init__(self, model: nn.Module, objective: Objective):
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: dict) -> torch.Tensor:
        return self.objective.loss(self.model, batch)


def _parallel(step: nn.Module, device: torch.device) -> nn.Module:
    if distributed.world_size() == 1:
        return step
    devices = [device] if device.type == "cuda" else None
    # The poolers, for one, take no part in the loss.
    return DistributedDataParallel(step, device_ids=devices, find_unused_parameters=True)


def _train_epoch(
    step: nn.Module,
    state: TrainingState,
    progress: Progress,
    batches: DataLoader,
    signals: "_Signals",
    stopwatch: Stopwatch,
) -> int:
    """The rest of an epoch; returns the number of the signal that ended it early, or 0."""
    state.model.train()
    sampler = batches.batch_sampler
    sampler.epoch, sampler.first_step = progress.epoch, progress.step
    loss_sum, stopped_by = torch.tensor(progress.loss_sum, device=state.device), 0
    with _ProgressBar(progress.epoch + 1, sampler) as bar:
        for batch in stopwatch.waits(batches):
            # Each rank its own dropout, and the same again after resuming.
            torch.manual_seed(_step_seed(state.recipe.seed, progress))
            with state.autocast():
                loss = step(to_device(batch, state.device))
            state.step(loss)
            loss_sum += loss.detach()
            progress.step += 1
            bar.update(loss, progress)
            stopped_by = distributed.largest(signals.received)
            if stopped_by:
                break
    sampler.first_step = 0
    progress.loss_sum = distributed.total(loss_sum.item()) / distributed.world_size()
    _check_finite(progress.loss_sum, progress)
    return stopped_by if progress.step < len(batches) else 0


@torch.no_grad()
def _evaluate(state: TrainingState, objective: Objective, batches: DataLoader) -> dict[str, float]:
    state.model.eval()
    with state.autocast():
        return objective.evaluate(state.model, (to_device(batch, state.device) for batch in batches))


def _finish_epoch(
    state: TrainingState, progress: Progress, numbers: dict, report: Callable[[dict], None] | None
) -> None:
    """Saves and reports an epoch."""
    recipe = state.recipe
    progress.epoch, progress.step, progress.loss_sum = numbers["epoch"], 0, 0.0
    improved = numbers["eval_loss"] < progress.min_eval_loss
    if improved:
        progress.best_epoch, progress.min_eval_loss = progress.epoch, numbers["eval_loss"]
        state.save(recipe.weights_path, progress)
    if recipe.save_every and progress.epoch % recipe.save_every == 0:
        state.save(recipe.epoch_path(progress.epoch), progress)
    state.save(recipe.latest_path, progress)
    line = "  ".join(f"{name} {_short(value)}" for name, value in numbers.items()) + "  best" * improved
    _say(line)
    if distributed.rank() == 0:
        recipe.logs_path.parent.mkdir(parents=True, exist_ok=True)
        with open(recipe.logs_path, "a", encoding="utf-8") as log:
            log.write(line + "\n")
        if report:
            report(numbers)


def to_device(batch, device: torch.device):
    """Every tensor in a structure of dicts, lists and tuples, on the device."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {name: to_device(value, device) for name, value in batch.items()}
    return [to_device(value, device) for value in batch]


class _Signals:
    """Takes SIGINT and SIGTERM as a wish to stop after the step; a second one of a kind ends the process.

    (One of each kind comes where torchrun passes an interrupt on.)
    """

    NUMBERS = (signal.SIGINT, signal.SIGTERM)

    def __enter__(self) -> "_Signals":
        self.received = 0
        self._before = {number: signal.signal(number, self._receive) for number in self.NUMBERS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: object) -> None:
        self.received = int(number)
        signal.signal(number, self._before[number])


class _ProgressBar:
    """Items a second, time left and mean loss of an epoch, shown by the first process."""

    def __init__(self, epoch: int, sampler):
        self._sizes = [len(batch) for batch in sampler.batches()]
        self._bar = tqdm(
            total=sum(self._sizes),
            initial=sum(self._sizes[: sampler.first_step]),
            desc=f"epoch {epoch}",
            unit="item",
            mininterval=PROGRESS_SECONDS,
            leave=False,
            disable=distributed.rank() > 0,
        )

    def __enter__(self) -> "_ProgressBar":
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def update(self, loss: torch.Tensor, progress: Progress) -> None:
        if self._bar.update(self._sizes[progress.step - 1]):  # shown just now: worth a wait for the GPU
            value = loss.item()
            self._bar.set_postfix(loss=f"{value:.4f}", refresh=False)
            _check_finite(value, progress)


def _check_finite(loss: float, progress: Progress) -> None:
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"the loss is {loss} in epoch {progress.epoch + 1}, step {progress.step}. The last checkpoint is "
            "kept; try a lower learning rate, gradient clipping, or precision float32."
        )


def _step_seed(seed: int, progress: Progress) -> int:
    return random.Random(f"{seed} {progress.epoch} {progress.step} {distributed.rank()}").getrandbits(63)


def _short(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"


def _say(line: str) -> None:
    if distributed.rank() == 0:
        logger.info(line)

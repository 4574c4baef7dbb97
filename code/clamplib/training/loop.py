"""The one training loop: an objective is minimized over batches, and evaluated after every epoch.

Resuming is exact, also in the middle of an epoch: items draw from (seed, epoch, index) and dropout from (seed, epoch,
step, rank), so that a checkpoint needs no state of a random generator. (See state for the files.)
"""

import logging
import math
import random
import signal
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from clamplib.models import distributed
from clamplib.training.batches import BatchLoader, LengthSortedBatches, Stopwatch
from clamplib.training.objectives import Objective
from clamplib.training.state import Progress, TrainingRecipe, TrainingState

logger = logging.getLogger(__name__)

TIMES = "  seconds "  # begins what differs when an epoch is repeated, in a line of the log
PROGRESS_SECONDS = 0.5 if sys.stderr.isatty() else 30  # between two updates of the progress bar


@dataclass(frozen=True)
class Training:
    """A model, what it minimizes, and the batches that it is trained and evaluated on (see batches.make_loader)."""

    model: nn.Module
    objective: Objective
    train_batches: BatchLoader
    eval_batches: BatchLoader


def fit(
    training: Training,
    recipe: TrainingRecipe,
    *,
    device: torch.device,
    report: Callable[[dict], None] | None = None,
) -> int:
    """Trains to the last epoch, or until SIGINT or SIGTERM, after which the state is saved. Closes the loaders.

    Args:
        training: what to train.
        recipe: how to train it; its checkpoint is resumed from.
        device: to train on.
        report: called after every epoch with its numbers, among them `waiting`, the share of the training's time that
            was spent waiting for batches.

    Returns:
        The number of the signal that stopped the training, or 0.

    Raises:
        FloatingPointError: the loss is NaN or infinite.
        InputError: the checkpoint cannot be resumed from, or a file cannot be read.
    """
    torch.backends.cudnn.deterministic = recipe.deterministic
    torch.backends.cudnn.benchmark = not recipe.deterministic
    state = TrainingState(training.model.to(device), recipe, len(training.train_batches), device)
    state.resume()
    if state.progress.epoch >= recipe.epochs:
        _say(
            f"Training has finished: {state.progress.epoch} of {recipe.epochs} epochs are done, the best was "
            f"{state.progress.best_epoch}. Raise the number of epochs to go on."
        )
        return 0
    step = _parallel(_Loss(training.model, training.objective), device)
    stopped_by = 0
    with closing(training.train_batches), closing(training.eval_batches), _Signals() as signals:
        while state.progress.epoch < recipe.epochs and not stopped_by:
            started = time.monotonic()
            stopwatch = Stopwatch()
            stopped_by = _train_epoch(step, state, training.train_batches, signals, stopwatch)
            if stopped_by:
                state.save(recipe.latest_path)
                break
            waiting = round(stopwatch.share(), 3)  # without the evaluation
            evaluation = _evaluate(state, training.objective, training.eval_batches)
            numbers = {
                "epoch": state.progress.epoch + 1,
                "train_loss": state.progress.loss_sum / len(training.train_batches),
                **{f"eval_{name}": value for name, value in evaluation.items()},
                "lr": state.scheduler.get_last_lr()[0],
                "seconds": time.monotonic() - started,
                "waiting": waiting,
            }
            _finish_epoch(state, numbers, report)
            stopped_by = distributed.largest(signals.received)
        if stopped_by:  # said while a signal that is late in this process is still noted
            _say(f"Stopped by {signal.Signals(stopped_by).name}; the same command goes on from here.")
    return stopped_by


class _Loss(nn.Module):
    """An objective's loss as a module's forward, which is what DistributedDataParallel takes."""

    def __init__(self, model: nn.Module, objective: Objective):
        super().__init__()
        self.model = model
        self.objective = objective

    def forward(self, batch: dict) -> torch.Tensor:
        return self.objective.loss(self.model, batch)


def _parallel(step: nn.Module, device: torch.device) -> nn.Module:
    if distributed.world_size() == 1:
        return step
    devices = [device] if device.type == "cuda" else None
    # Some parameters, such as those of the poolers, have no part in the loss.
    return DistributedDataParallel(step, device_ids=devices, find_unused_parameters=True)


def _train_epoch(
    step: nn.Module, state: TrainingState, batches: BatchLoader, signals: "_Signals", stopwatch: Stopwatch
) -> int:
    """Trains the rest of an epoch; returns the number of the signal that ended it early, or 0."""
    state.model.train()
    progress, sampler = state.progress, batches.batch_sampler
    sampler.epoch = progress.epoch
    sampler.first_step = progress.step
    loss_sum = torch.tensor(progress.loss_sum, device=state.device)
    stopped_by = 0
    with _ProgressBar(progress, sampler) as bar:
        for batch in stopwatch.watch(batches):
            # The dropout of each rank is its own, and the same after resuming.
            torch.manual_seed(_step_seed(state.recipe.seed, progress))
            with state.autocast():
                loss = step(to_device(batch, state.device))
            state.step(loss)
            loss_sum += loss.detach()
            progress.step += 1
            bar.update(loss)
            stopped_by = distributed.largest(signals.received)
            if stopped_by:
                break
    sampler.first_step = 0
    progress.loss_sum = distributed.total(loss_sum.item()) / distributed.world_size()
    _check_finite(progress.loss_sum, progress)
    return stopped_by if progress.step < len(batches) else 0


@torch.no_grad()
def _evaluate(state: TrainingState, objective: Objective, batches: BatchLoader) -> dict[str, float]:
    state.model.eval()
    with state.autocast():
        return objective.evaluate(state.model, (to_device(batch, state.device) for batch in batches))


def _finish_epoch(state: TrainingState, numbers: dict, report: Callable[[dict], None] | None) -> None:
    """Saves, logs and reports an epoch."""
    recipe, progress = state.recipe, state.progress
    best = state.finish_epoch(numbers)
    if best:
        state.save(recipe.weights_path)
    if recipe.save_every and progress.epoch % recipe.save_every == 0:
        state.save(recipe.epoch_path(progress.epoch))
    line = "  ".join(f"{name} {_short(value)}" for name, value in numbers.items())
    if best:
        line += "  best"
    if distributed.rank() == 0:
        _write_log(recipe.logs_path, line)  # before the state, else a training that is killed here loses the line
    state.save(recipe.latest_path)
    _say(line)
    if report and distributed.rank() == 0:
        report(numbers)


def _write_log(path: Path, line: str) -> None:
    """Appends a line, unless the last one is of the same epoch, which was interrupted before its state was saved."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8", errors="replace") as log:
        log.seek(0)
        last = log.read().rpartition("\n")[0].rpartition("\n")[2]
        if last.partition(TIMES)[0] != line.partition(TIMES)[0]:
            log.write(line + "\n")


def to_device(batch, device: torch.device):
    """Moves every tensor in a structure of dicts, lists and tuples to a device; tuples become lists."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {name: to_device(value, device) for name, value in batch.items()}
    return [to_device(value, device) for value in batch]


class _Signals:
    """Notes SIGINT and SIGTERM, so that training stops after the step. A second one of a kind ends the process.

    torchrun turns an interrupt into one of each kind.
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
    """Shows items per second, time left and current loss of an epoch, in the first process."""

    def __init__(self, progress: Progress, sampler: LengthSortedBatches):
        self._progress = progress
        self._sizes = [len(batch) for batch in sampler.batches()]
        self._bar = tqdm(
            total=sum(self._sizes),
            initial=sum(self._sizes[: sampler.first_step]),
            desc=f"epoch {progress.epoch + 1}",
            unit="item",
            mininterval=PROGRESS_SECONDS,
            leave=False,
            disable=distributed.rank() > 0,
        )

    def __enter__(self) -> "_ProgressBar":
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def update(self, loss: torch.Tensor) -> None:
        if self._bar.update(self._sizes[self._progress.step - 1]):  # just shown: only then wait for the GPU
            value = loss.item()
            self._bar.set_postfix(loss=f"{value:.4f}", refresh=False)
            _check_finite(value, self._progress)


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

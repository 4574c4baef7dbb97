"""A linear classifier on global features: trained, saved, loaded, applied.

Training is logistic regression on the whole matrix: an epoch is one step of Adam on all items. It begins at the
linear discriminant, which has a closed form. For with few items to evaluate on, the best accuracy is partly
luck, and luck that picks an early epoch would pick bad weights. Features are standardised meanwhile, so that
one learning rate suits every encoder; at the end mean and scale are folded into the weights, which take
features as they are.

The weights file is a dict, saved by torch: model (fc.weight [C, D], fc.bias [C]), labels (label -> index),
input_size, epoch, best_epoch, max_eval_acc, and space (the features' space.json, or None).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from clamplib.evaluation.classification import Examples, number_labels
from clamplib.evaluation.metrics import classification_metrics, confusion_matrix
from clamplib.files import InputError, show
from clamplib.models.checkpoints import load_checkpoint, load_weights, save_checkpoint
from clamplib.retrieval.similarity import Features, load_features
from clamplib.space import check_same_space

PENALTY = 1.0  # half of it times the squared weights is added to the loss, summed over all items
SHRINKAGE, LEAST_SHRINKAGE = 5.0, 1e-4  # added to the variances within a class: the first a share of the items
SMALLEST_SCALE = 0.01  # of a dimension, as a share of the root mean square of all: a constant one stays small
SAVED = ("labels", "epoch", "best_epoch", "max_eval_acc", "space")
NUMPY_SCALARS = [  # what published files may hold a number as
    np._core.multiarray.scalar,
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),
    np.dtype,
    np.dtypes.Float64DType,
    np.dtypes.Float32DType,
    np.dtypes.Int64DType,
]


@dataclass(frozen=True)
class Recipe:
    """How to train."""

    epochs: int = 1000
    learning_rate: float = 1e-5  # larger ones look better on the items to evaluate on, and are worse on others
    balanced: bool = False  # as many items of each class as the smallest has, drawn anew every epoch
    patience: int = 50  # epochs with neither a better accuracy nor a lower loss before the end; 0: never
    seed: int = 42


class LinearProbe(nn.Module):
    """Features [N, D] -> logits [N, C]."""

    def __init__(self, input_size: int, classes: int):
        super().__init__()
        self.fc = nn.Linear(input_size, classes)

    @classmethod
    def of(cls, weight: np.ndarray, bias: np.ndarray) -> "LinearProbe":
        """With weights [C, D] and bias [C]."""
        model = cls(weight.shape[1], weight.shape[0])
        parts = {"fc.weight": weight, "fc.bias": bias}
        model.load_state_dict({name: torch.from_numpy(part) for name, part in parts.items()})
        return model

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        return self.fc(vectors)


@dataclass
class Probe:
    """A trained classifier and what its weights file says of it."""

    model: LinearProbe
    labels: dict[str, int]  # label -> index
    space: dict | None
    epoch: int = 0  # the last one trained
    best_epoch: int = 0  # the one kept
    max_eval_acc: float = 0.0

    @property
    def classes(self) -> list[str]:
        return sorted(self.labels, key=self.labels.get)

    @torch.inference_mode()
    def probabilities(self, vectors: np.ndarray) -> np.ndarray:
        """Features float32 [N, D] -> float32 [N, C]."""
        return self.model(torch.from_numpy(vectors)).softmax(1).numpy()

    def confusion(self, examples: Examples) -> np.ndarray:
        """The confusion matrix [C, C] of examples whose labels it knows."""
        predicted = self.probabilities(examples.vectors).argmax(1)
        return confusion_matrix(examples.numbers(self.labels), predicted, len(self.labels))

    def save(self, path: str | Path) -> None:
        """Writes the weights file, whole or not at all."""
        state = {"model": self.model.state_dict(), "input_size": self.model.fc.in_features}
        save_checkpoint(path, state | {name: getattr(self, name) for name in SAVED})


def load_probe(path: str | Path) -> Probe:
    """Reads a weights file, also one of the published training. InputError says what is wrong with it."""
    with torch.serialization.safe_globals(NUMPY_SCALARS):
        state = load_checkpoint(path)
    labels, size = state.get("labels"), state.get("input_size")
    if not (isinstance(size, int) and isinstance(labels, dict) and {*labels.values()} == {*range(len(labels))}):
        raise InputError(
            f"{show(path)}: expected the weights of a linear probe, with input_size and labels (label -> 0, 1, ...)"
        )
    model = LinearProbe(size, len(labels))
    load_weights(model, state["model"], path)
    return Probe(model, space=state.get("space"), **{name: state[name] for name in SAVED[:-1] if name in state})


def classify_folder(weights_path: str | Path, folder: str | Path) -> tuple[Probe, Features, np.ndarray]:
    """The probe, the features of a folder, and the probability of each class for each: float32 [N, C].

    InputError where the features are of another space or width than those that the probe was trained on.
    """
    probe, features = load_probe(weights_path), load_features(folder)
    check_same_space(folder, features.space, weights_path, probe.space)
    expected, got = probe.model.fc.in_features, features.matrix.shape[1]
    if got != expected:
        raise InputError(f"{show(folder)}: expected {expected} values a feature as in {show(weights_path)}, got {got}")
    return probe, features, probe.probabilities(features.raw)


def train(
    training: Examples,
    evaluation: Examples,
    recipe: Recipe,
    *,
    device: torch.device,
    space: dict | None = None,
    report: Callable[[dict], None] | None = None,
) -> Probe:
    """Trains, and keeps the epoch of the best evaluation accuracy; among equals, that of the lowest loss.

    `report` is called after every epoch with its numbers. Raises InputError where there is nothing to learn or
    to evaluate, FloatingPointError where the loss is no longer finite.
    """
    labels = number_labels(training, evaluation)
    mean, scale = standardisation(training.vectors)
    inputs, eval_inputs = ((part.vectors - mean) / scale for part in (training, evaluation))
    targets, eval_targets = (part.numbers(labels) for part in (training, evaluation))
    model = LinearProbe.of(*discriminant(inputs, targets, len(labels), recipe.balanced)).to(device)
    x, y, eval_x, eval_y = (torch.from_numpy(a).to(device) for a in (inputs, targets, eval_inputs, eval_targets))
    draw = _Draw(y, recipe)
    weights = {"params": [model.fc.weight], "weight_decay": PENALTY / draw.size}
    optimizer = torch.optim.Adam([weights, {"params": [model.fc.bias]}], lr=recipe.learning_rate)
    best = _Best()
    for epoch in range(1, recipe.epochs + 1):
        numbers = {"epoch": epoch, **_step(model, optimizer, *draw(x, y)), **_evaluate(model, eval_x, eval_y)}
        if not math.isfinite(numbers["eval_loss"]):
            raise FloatingPointError(f"the loss of epoch {epoch} is not finite: lower the learning rate")
        numbers["best"] = best.update(numbers, model)
        if report:
            report(numbers)
        if recipe.patience and best.waited == recipe.patience:
            break
    weight = best.weight / scale
    model = LinearProbe.of(weight, best.bias - weight @ mean)
    probe = Probe(model, labels, space, epoch, best.epoch)
    probe.max_eval_acc = classification_metrics(probe.confusion(evaluation))["accuracy"]
    return probe


def standardisation(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation, float32 [D] each, of vectors [N, D]; no deviation is near zero."""
    deviation = vectors.std(0, dtype=np.float64)
    least = SMALLEST_SCALE * np.sqrt((deviation**2).mean()) or 1.0
    return vectors.mean(0, dtype=np.float64).astype(np.float32), np.maximum(deviation, least).astype(np.float32)


def discriminant(x: np.ndarray, y: np.ndarray, classes: int, balanced: bool) -> tuple[np.ndarray, np.ndarray]:
    """The linear discriminant of items [N, D] and their classes [N], as logits: weights [C, D] and bias [C].

    Each class is taken for a cloud around its mean, all clouds having one shape, shrunk towards a ball; the
    balanced one takes classes for equally frequent.
    """
    counts = np.bincount(y, minlength=classes)
    priors = np.full(classes, 1 / classes) if balanced else counts / len(y)
    means = np.eye(classes, dtype=np.float32)[y].T @ x / counts[:, None]
    within = x - means[y].astype(np.float32)
    shares = (priors / counts)[y].astype(np.float32)  # what each item counts
    shape = within.T @ (within * shares[:, None]) + (SHRINKAGE / len(y) + LEAST_SHRINKAGE) * np.eye(x.shape[1])
    weight = np.linalg.solve(shape, means.T).T
    bias = np.log(priors) - (weight * means).sum(1) / 2
    return weight.astype(np.float32), bias.astype(np.float32)


class _Draw:
    """The items of an epoch: all, or of each class as many as the smallest one has."""

    def __init__(self, y: torch.Tensor, recipe: Recipe):
        self.rows = [torch.nonzero(y.cpu() == number)[:, 0] for number in y.unique().tolist()]
        self.least = min(map(len, self.rows))
        self.balanced, self.device = recipe.balanced, y.device
        self.size = self.least * len(self.rows) if recipe.balanced else len(y)
        self.generator = torch.Generator().manual_seed(recipe.seed)

    def __call__(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.balanced:
            return x, y
        drawn = [rows[torch.randperm(len(rows), generator=self.generator)[: self.least]] for rows in self.rows]
        rows = torch.cat(drawn).to(self.device)
        return x[rows], y[rows]


class _Best:
    """The weights of the best epoch, and for how many epochs nothing has become better."""

    def __init__(self) -> None:
        self.quality, self.lowest_loss, self.waited = (-math.inf, -math.inf), math.inf, 0

    def update(self, numbers: dict, model: LinearProbe) -> bool:
        """Takes an epoch's numbers; whether it is the best one so far."""
        quality = (numbers["eval_acc"], -numbers["eval_loss"])
        better = quality > self.quality
        self.waited = 0 if better or numbers["eval_loss"] < self.lowest_loss else self.waited + 1
        self.lowest_loss = min(self.lowest_loss, numbers["eval_loss"])
        if better:
            self.quality, self.epoch = quality, numbers["epoch"]
            self.weight, self.bias = (part.detach().cpu().numpy().copy() for part in (model.fc.weight, model.fc.bias))
        return better


def _step(model: LinearProbe, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor) -> dict:
    """One step on items [N, D] of classes [N]; loss and accuracy before it."""
    logits = model(x)
    loss = cross_entropy(logits, y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return {"train_loss": loss.item(), "train_acc": (logits.argmax(1) == y).float().mean().item()}


@torch.inference_mode()
def _evaluate(model: LinearProbe, x: torch.Tensor, y: torch.Tensor) -> dict:
    logits = model(x)
    confusion = confusion_matrix(y.cpu(), logits.argmax(1).cpu(), logits.shape[1])
    metrics = {f"eval_{name}": value for name, value in classification_metrics(confusion).items()}
    return {"eval_loss": cross_entropy(logits, y).item(), "eval_acc": metrics.pop("eval_accuracy"), **metrics}

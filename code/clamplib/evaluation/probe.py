"""A linear classifier on global features: training, saving, loading, and applying it.

Training is logistic regression on the whole matrix: an epoch is one step of Adam on all items. It starts at the linear
discriminant, which has a closed form. From a random start, the best accuracy on few evaluation items would partly be
luck, and luck in an early epoch would keep bad weights. During training features are standardized, so that one learning
rate suits every encoder. At the end mean and scale are folded into the weights, which then take features as they are.

The weights file is a dict, saved by torch: model (fc.weight [C, D], fc.bias [C]), labels (label -> number), input_size,
epoch, best_epoch, max_eval_acc, and space (the features' space.json, or None).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from clamplib.evaluation.classification import LabeledVectors, ProbeSettings, number_labels
from clamplib.evaluation.metrics import classification_metrics, confusion_matrix
from clamplib.files import InputError, show
from clamplib.models.checkpoints import load_checkpoint, load_weights, save_checkpoint
from clamplib.retrieval.similarity import Features, load_features
from clamplib.space import check_same_space

PENALTY = 1.0  # half of it times the squared weights is added to the loss, summed over all items
SHRINKAGE = 5.0  # divided by the number of items, this is added to the variances within a class
LEAST_SHRINKAGE = 1e-4  # and this is added in any case
SMALLEST_SCALE = 0.01  # of a dimension, relative to the root mean square of all, so that a constant one stays small
SAVED = ("labels", "epoch", "best_epoch", "max_eval_acc", "space")
NUMPY_SCALARS = [  # types of numbers in published weights files
    np._core.multiarray.scalar,
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),
    np.dtype,
    np.dtypes.Float64DType,
    np.dtypes.Float32DType,
    np.dtypes.Int64DType,
]


class LinearProbe(nn.Module):
    """Maps features [N, D] to logits [N, C]."""

    def __init__(self, input_size: int, classes: int):
        super().__init__()
        self.fc = nn.Linear(input_size, classes)

    @classmethod
    def of(cls, weight: np.ndarray, bias: np.ndarray) -> "LinearProbe":
        """Creates one with weights [C, D] and bias [C]."""
        model = cls(weight.shape[1], weight.shape[0])
        parts = {"fc.weight": weight, "fc.bias": bias}
        model.load_state_dict({name: torch.from_numpy(part) for name, part in parts.items()})
        return model

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        return self.fc(vectors)


@dataclass
class Probe:
    """A trained classifier, with what its weights file holds."""

    model: LinearProbe
    labels: dict[str, int]  # label -> number of the class
    space: dict | None
    epoch: int = 0  # the last epoch trained
    best_epoch: int = 0  # the epoch whose weights were kept
    max_eval_acc: float = 0.0

    @property
    def classes(self) -> list[str]:
        """The labels in the order of their numbers."""
        return sorted(self.labels, key=self.labels.get)

    @torch.inference_mode()
    def probabilities(self, vectors: np.ndarray) -> np.ndarray:
        """Returns the probability of each class, float32 [N, C], for features float32 [N, D]."""
        return self.model(torch.from_numpy(vectors)).softmax(1).numpy()

    def confusion(self, examples: LabeledVectors) -> np.ndarray:
        """Returns the confusion matrix, int64 [C, C], on vectors whose labels it knows."""
        predicted = self.probabilities(examples.vectors).argmax(1)
        return confusion_matrix(examples.numbers(self.labels), predicted, len(self.labels))

    def save(self, path: str | Path) -> None:
        """Writes the weights file, whole or not at all."""
        state = {"model": self.model.state_dict(), "input_size": self.model.fc.in_features}
        save_checkpoint(path, state | {name: getattr(self, name) for name in SAVED})


def load_probe(path: str | Path) -> Probe:
    """Reads a weights file, also one of the published training.

    Raises:
        InputError: the file does not hold the weights of a linear probe.
    """
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
    """Applies a saved probe to the features of a folder.

    Returns:
        The probe, the features (N of them), and the probability of each class, float32 [N, C].

    Raises:
        InputError: the features are of another space or width than those that the probe was trained on.
    """
    probe, features = load_probe(weights_path), load_features(folder)
    check_same_space(folder, features.space, weights_path, probe.space)
    expected, got = probe.model.fc.in_features, features.matrix.shape[1]
    if got != expected:
        raise InputError(
            f"{show(folder)}: expected {expected} values per feature as in {show(weights_path)}, got {got}"
        )
    return probe, features, probe.probabilities(features.raw)


def train_probe(
    training: LabeledVectors,
    evaluation: LabeledVectors,
    settings: ProbeSettings,
    *,
    device: torch.device,
    space: dict | None = None,
    report: Callable[[dict], None] | None = None,
) -> Probe:
    """Trains a probe, and keeps the epoch of the best evaluation accuracy; among equals, that of the lowest loss.

    Args:
        training: what to train on.
        evaluation: what to evaluate on after every epoch.
        settings: how to train.
        device: where to train.
        space: the space of the features, which the probe remembers.
        report: called after every epoch with its numbers.

    Raises:
        InputError: there is nothing to learn or to evaluate.
        FloatingPointError: the loss is not finite.
    """
    labels = number_labels(training, evaluation)
    mean, scale = standardization(training.vectors)
    x, y = _tensors(training, labels, mean, scale, device)
    eval_x, eval_y = _tensors(evaluation, labels, mean, scale, device)
    start = discriminant(x.cpu().numpy(), y.cpu().numpy(), len(labels), settings.balanced)
    model = LinearProbe.of(*start).to(device)
    draw = EpochItems(y, settings)
    weights = {"params": [model.fc.weight], "weight_decay": PENALTY / draw.size}
    optimizer = torch.optim.Adam([weights, {"params": [model.fc.bias]}], lr=settings.learning_rate)
    best = _Best()
    for epoch in range(1, settings.epochs + 1):
        numbers = {"epoch": epoch, **_step(model, optimizer, *draw(x, y)), **_evaluate(model, eval_x, eval_y)}
        if not math.isfinite(numbers["eval_loss"]):
            raise FloatingPointError(f"the loss of epoch {epoch} is not finite: lower the learning rate")
        numbers["best"] = best.update(numbers, model)
        if report:
            report(numbers)
        if settings.patience and best.waited == settings.patience:
            break
    weight = best.weight / scale
    model = LinearProbe.of(weight, best.bias - weight @ mean)
    probe = Probe(model, labels, space, epoch, best.epoch)
    probe.max_eval_acc = classification_metrics(probe.confusion(evaluation))["accuracy"]
    return probe


def _tensors(
    examples: LabeledVectors, labels: dict[str, int], mean: np.ndarray, scale: np.ndarray, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns standardized vectors [N, D] and class numbers [N] on a device."""
    vectors = torch.from_numpy((examples.vectors - mean) / scale)
    return vectors.to(device), torch.from_numpy(examples.numbers(labels)).to(device)


def standardization(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and standard deviation, float32 [D] each, of vectors [N, D]. No deviation is near zero."""
    deviation = vectors.std(0, dtype=np.float64)
    least = SMALLEST_SCALE * np.sqrt((deviation**2).mean()) or 1.0
    return vectors.mean(0, dtype=np.float64).astype(np.float32), np.maximum(deviation, least).astype(np.float32)


def discriminant(x: np.ndarray, y: np.ndarray, classes: int, balanced: bool) -> tuple[np.ndarray, np.ndarray]:
    """Computes the linear discriminant in closed form, as logits.

    Each class is modeled as a normal distribution. All classes share one covariance, which is shrunk towards a multiple
    of the identity.

    Args:
        x: items [N, D].
        y: their classes, int64 [N].
        classes: C.
        balanced: whether to treat all classes as equally frequent.

    Returns:
        Weights, float32 [C, D], and bias, float32 [C].
    """
    counts = np.bincount(y, minlength=classes)
    priors = np.full(classes, 1 / classes) if balanced else counts / len(y)
    means = np.eye(classes, dtype=np.float32)[y].T @ x / counts[:, None]
    within = x - means[y].astype(np.float32)
    shares = (priors / counts)[y].astype(np.float32)  # the weight of each item
    covariance = within.T @ (within * shares[:, None]) + (SHRINKAGE / len(y) + LEAST_SHRINKAGE) * np.eye(x.shape[1])
    weight = np.linalg.solve(covariance, means.T).T
    bias = np.log(priors) - (weight * means).sum(1) / 2
    return weight.astype(np.float32), bias.astype(np.float32)


class EpochItems:
    """Chooses the items of an epoch: all, or as many of each class as the smallest one has."""

    def __init__(self, y: torch.Tensor, settings: ProbeSettings):
        self.rows = [torch.nonzero(y.cpu() == number)[:, 0] for number in y.unique().tolist()]
        self.least = min(map(len, self.rows))
        self.balanced = settings.balanced
        self.device = y.device
        self.size = self.least * len(self.rows) if settings.balanced else len(y)
        self.generator = torch.Generator().manual_seed(settings.seed)

    def __call__(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.balanced:
            return x, y
        drawn = [rows[torch.randperm(len(rows), generator=self.generator)[: self.least]] for rows in self.rows]
        rows = torch.cat(drawn).to(self.device)
        return x[rows], y[rows]


class _Best:
    """Keeps the weights of the best epoch, and counts the epochs since something improved."""

    def __init__(self) -> None:
        self.quality = (-math.inf, -math.inf)
        self.lowest_loss = math.inf
        self.waited = 0

    def update(self, numbers: dict, model: LinearProbe) -> bool:
        """Takes an epoch's numbers and returns whether it is the best one so far."""
        quality = (numbers["eval_acc"], -numbers["eval_loss"])
        better = quality > self.quality
        self.waited = 0 if better or numbers["eval_loss"] < self.lowest_loss else self.waited + 1
        self.lowest_loss = min(self.lowest_loss, numbers["eval_loss"])
        if better:
            self.quality = quality
            self.epoch = numbers["epoch"]
            self.weight = model.fc.weight.detach().cpu().numpy().copy()
            self.bias = model.fc.bias.detach().cpu().numpy().copy()
        return better


def _step(model: LinearProbe, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor) -> dict:
    """Takes one step on items [N, D] of classes [N]. Returns loss and accuracy before it."""
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

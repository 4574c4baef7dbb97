"""The training scripts: a training of M3 or of CLaMP 3, made from the settings of a config.py."""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

from clamplib.command import guarded
from clamplib.files import check_writable
from clamplib.models import distributed
from clamplib.models.encoders import CLaMP3Model, M3Model
from clamplib.models.settings import load_m3_encoder, load_settings, load_text_encoder, make_geometry
from clamplib.models.variants import load_tokenizer
from clamplib.processes import watch_parent
from clamplib.training.batches import BatchLoader, CollateCLaMP3, collate_m3, make_loader
from clamplib.training.datasets import CLaMP3Dataset, M3Dataset
from clamplib.training.loop import Training, fit
from clamplib.training.objectives import CLaMP3Objective, M3Objective
from clamplib.training.options import settings_prefix
from clamplib.training.pieces import Piece, find_pieces, read_pieces, split_pieces
from clamplib.training.state import TrainingRecipe, start_curves

NAMED_PROBLEMS = 10  # the others are only counted
FROZEN = {  # the parts of the model that training on a modality leaves as they are
    "symbolic": ["audio_model", "audio_proj"],
    "audio": ["symbolic_model", "symbolic_proj"],
}


@guarded
def run_training(args: argparse.Namespace, config: str | Path, modality: str | None = None) -> int:
    """Trains M3 or CLaMP 3 as its script does: messages on standard output, errors on standard error.

    Args:
        args: parsed by `training_parser`.
        config: the config.py with all settings.
        modality: "symbolic" or "audio" for CLaMP 3; None for M3.

    Returns:
        The exit status: 0 after the last epoch, 128 plus the number of the signal that stopped the training, or 1
        after an error.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the loader's workers already use the cores
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun is the parent; if it is killed, the state is saved
        watch_parent(os.getppid(), partial(os.kill, os.getpid(), signal.SIGTERM))
    distributed.start()
    device = distributed.own_device()
    settings = load_settings(*args.config, config=config)
    if modality and args.freeze_text:
        settings.FREEZE_TEXT = True
    if args.epochs is not None:
        setattr(settings, f"{settings_prefix(modality)}_NUM_EPOCH", args.epochs)
    with _messages_on_terminal():
        stopped_by = _train(settings, modality, device)
    distributed.stop()  # not after an error, when the others are not there; they notice that this process ends
    return 128 + stopped_by if stopped_by else 0


def _train(settings: SimpleNamespace, modality: str | None, device: torch.device) -> int:
    """Trains by the settings; returns the number of the signal that stopped the training, or 0."""
    torch.manual_seed(settings.SEED)  # of the weights that begin at random
    recipe = make_recipe(settings, modality)
    if distributed.rank() == 0:
        for path in (recipe.weights_path, recipe.logs_path):
            check_writable(path.parent)
    training = clamp3_training(settings, modality, recipe) if modality else m3_training(settings)
    if settings.GRADIENT_CHECKPOINTING:
        checkpoint_layers(training.model)
    prefix = settings_prefix(modality)
    report = start_curves(
        project=prefix.lower(),
        name=recipe.weights_path.stem,
        settings=vars(settings),
        key=settings.WANDB_KEY,
        wanted=getattr(settings, f"{prefix}_WANDB_LOG") and distributed.rank() == 0,
    )
    return fit(training, recipe, device=device, report=report)


@contextmanager
def _messages_on_terminal() -> Iterator[None]:
    """Prints the library's messages as plain lines: all of the first process, the warnings of the others."""
    log = logging.getLogger("clamplib")
    handler = logging.StreamHandler(sys.stdout)
    log.setLevel(logging.INFO if distributed.rank() == 0 else logging.WARNING)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


def checkpoint_layers(model: nn.Module) -> None:
    """Makes the encoders and the decoder of a model keep only each layer's input for the backward pass of a training.

    Raises:
        ValueError: a text model of transformers cannot do this.
    """
    for module in model.modules():
        if hasattr(module, "gradient_checkpointing_enable"):  # of transformers, where the method is being renamed
            enable = getattr(module, "activation_checkpointing_enable", None) or module.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        elif hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = True


def make_recipe(settings: SimpleNamespace, modality: str | None = None) -> TrainingRecipe:
    """Makes the recipe of the settings, for CLaMP 3 on a modality or, without one, for M3."""
    prefix = settings_prefix(modality)
    own = {name.removeprefix(f"{prefix}_"): value for name, value in vars(settings).items()}
    stage = {"modality": modality, "freeze_text": settings.FREEZE_TEXT} if modality else {}
    return TrainingRecipe(
        weights_path=Path(own["WEIGHTS_PATH"]),
        logs_path=Path(own["LOGS_PATH"]),
        epochs=own["NUM_EPOCH"],
        learning_rate=own["LEARNING_RATE"],
        warmup_steps=own["WARMUP_STEPS"],
        schedule=settings.SCHEDULE,
        weight_decay=settings.WEIGHT_DECAY,
        gradient_clip=settings.GRADIENT_CLIP,
        precision=settings.PRECISION,
        deterministic=own["DETERMINISTIC"],
        load_checkpoint=own["LOAD_CKPT"],
        best_by=settings.CLAMP3_BEST_BY if modality else "loss",
        save_every=settings.SAVE_EVERY,
        seed=settings.SEED,
        stage={**stage, "patch_length": settings.PATCH_LENGTH},
    )


def m3_training(settings: SimpleNamespace) -> Training:
    """Makes the training of M3.

    Raises:
        ValueError: M3_TRAIN_FOLDERS is empty, or the folders have no music.
        OSError: a folder cannot be read.
    """
    if not settings.M3_TRAIN_FOLDERS:
        raise ValueError("M3_TRAIN_FOLDERS is empty: name folders of .abc and .mtf files in config.py")
    train_pieces, eval_pieces = _train_and_eval_pieces(
        find_pieces, settings.M3_TRAIN_FOLDERS, settings.M3_EVAL_FOLDERS, settings
    )
    make_dataset = partial(
        M3Dataset,
        patchilizer=make_geometry(settings).make_patchilizer(),
        mask_ratio=settings.M3_MASK_RATIO,
        seed=settings.SEED,
    )
    make_batches = partial(_loader, batch_size=settings.M3_BATCH_SIZE, collate=collate_m3, settings=settings)
    return Training(
        M3Model.from_geometry(make_geometry(settings)),
        M3Objective(),
        make_batches(make_dataset(train_pieces, training=True)),
        make_batches(make_dataset(eval_pieces, training=False)),
    )


def clamp3_training(settings: SimpleNamespace, modality: str, recipe: TrainingRecipe) -> Training:
    """Makes the training of CLaMP 3 on a modality.

    Args:
        settings: those of a config.py.
        modality: "symbolic" or "audio".
        recipe: where it has no checkpoint to resume from, the encoders begin with pretrained weights.

    Raises:
        ValueError: CLAMP3_TRAIN_JSONL is not set, or has no pieces of the modality.
        OSError: a file cannot be read or fetched.
    """
    if not settings.CLAMP3_TRAIN_JSONL:
        raise ValueError("CLAMP3_TRAIN_JSONL is not set: name a JSONL of pieces and their texts in config.py")
    pairs = settings.PAIR_WEIGHT > 0
    read = partial(
        read_pieces,
        modality=modality,
        audio_size=settings.AUDIO_HIDDEN_SIZE,
        with_scores=pairs and modality == "audio",
    )
    train_pieces, eval_pieces = _train_and_eval_pieces(
        read, settings.CLAMP3_TRAIN_JSONL, settings.CLAMP3_EVAL_JSONL, settings
    )
    tokenizer = load_tokenizer(make_geometry(settings))
    make_dataset = partial(
        CLaMP3Dataset,
        modality=modality,
        tokenizer=tokenizer,
        patchilizer=make_geometry(settings).make_patchilizer(),
        max_text_length=settings.MAX_TEXT_LENGTH,
        max_audio_length=settings.MAX_AUDIO_LENGTH,
        audio_size=settings.AUDIO_HIDDEN_SIZE,
        text_dropout=settings.TEXT_DROPOUT,
        instrument_dropout=settings.INSTRUMENT_DROPOUT,
        hide_header_ratio=settings.HIDE_HEADER_RATIO,
        pairs=pairs,
        seed=settings.SEED,
    )
    objective = CLaMP3Objective(
        batch_size=settings.CLAMP3_BATCH_SIZE * distributed.world_size(),
        mask_same_text=settings.MASK_SAME_TEXT,
        pair_weight=settings.PAIR_WEIGHT,
        accumulation=settings.CLAMP3_ACCUMULATION,
    )
    collate = CollateCLaMP3(tokenizer.pad_token_id)
    make_batches = partial(_loader, batch_size=settings.CLAMP3_BATCH_SIZE, collate=collate, settings=settings)
    return Training(
        _clamp3_model(settings, modality, pretrained=not recipe.checkpoint()),
        objective,
        make_batches(make_dataset(train_pieces, training=True)),
        make_batches(make_dataset(eval_pieces, training=False)),
    )


def _clamp3_model(settings: SimpleNamespace, modality: str, pretrained: bool) -> CLaMP3Model:
    """The model, with pretrained encoders if they are wanted; what the modality does not train is frozen."""
    model = CLaMP3Model.from_geometry(make_geometry(settings))
    if pretrained:
        if _has_text_weights(settings.TEXT_MODEL_NAME):
            load_text_encoder(model, settings.TEXT_MODEL_NAME)
        if settings.CLAMP3_LOAD_M3:
            load_m3_encoder(model, settings)
    text_parts = ["text_model", "text_proj"] if settings.FREEZE_TEXT else []
    model.set_trainable(FROZEN[modality] + text_parts)
    return model


def _has_text_weights(text_model: str) -> bool:
    """Whether the text model has weights, on the hub or in its folder; else the text encoder begins at random."""
    folder = Path(text_model)
    return not folder.is_dir() or any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))


def _train_and_eval_pieces(
    read: Callable[[object], tuple[list[Piece], list[str]]],
    train_source: object,
    eval_source: object,
    settings: SimpleNamespace,
) -> tuple[list[Piece], list[Piece]]:
    """Pieces to train and to evaluate on; without a source of the latter, EVAL_SPLIT of the former."""
    train_pieces, problems = read(train_source)
    _print_problems(problems)
    if not eval_source:
        return split_pieces(train_pieces, settings.EVAL_SPLIT, settings.SEED)
    eval_pieces, problems = read(eval_source)
    _print_problems(problems)
    return train_pieces, eval_pieces


def _print_problems(problems: Sequence[str]) -> None:
    """Counts and names what was left out of the data, in the first process."""
    if problems and distributed.rank() == 0:
        lines = [f"{len(problems)} problems, left out of the data:", *problems[:NAMED_PROBLEMS]]
        if len(problems) > NAMED_PROBLEMS:
            lines.append(f"and {len(problems) - NAMED_PROBLEMS} more")
        print(*lines, sep="\n  ")


def _loader(
    dataset: M3Dataset | CLaMP3Dataset, batch_size: int, collate: Callable, settings: SimpleNamespace
) -> BatchLoader:
    return make_loader(
        dataset,
        batch_size,
        collate,
        chunk_batches=settings.CHUNK_BATCHES,
        seed=settings.SEED,
        num_workers=settings.NUM_WORKERS,
    )

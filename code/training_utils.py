"""What the training scripts share: their command line, and data, model and recipe made from the settings."""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from torch.utils.data import DataLoader
from transformers import AutoModel, PreTrainedModel

from clamplib.formats.patchilizer import M3Patchilizer
from clamplib.models import distributed
from clamplib.models.encoders import CLaMP3Model, M3Model
from clamplib.models.settings import load_m3_encoder, load_tokenizer, make_geometry
from clamplib.training.batches import CollateCLaMP3, collate_m3, make_loader
from clamplib.training.datasets import CLaMP3Dataset, M3Dataset
from clamplib.training.loop import train
from clamplib.training.objectives import clamp3_objective, m3_objective
from clamplib.training.pieces import m3_files, read_pieces, split_items
from clamplib.training.state import Recipe, start_curves
from utils import load_settings

NAMED_PROBLEMS = 10
FROZEN = {  # the parts that training on a modality leaves alone
    "symbolic": ["audio_model", "audio_proj"],
    "audio": ["symbolic_model", "symbolic_proj"],
}


def run_training(modality: str | None, description: str, example: str, argv: list[str] | None = None) -> int:
    """A training script: M3, or CLaMP 3 on a modality ("symbolic" or "audio"). Returns the exit status."""
    model_name = "CLAMP3" if modality else "M3"
    parser = argparse.ArgumentParser(
        description=description, epilog=example, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="files of assignments that replace those of config.py; a later file replaces those of an earlier one",
    )
    parser.add_argument("--epochs", type=int, help=f"in place of {model_name}_NUM_EPOCH")
    if modality:
        parser.add_argument("--freeze_text", action="store_true", help="as FREEZE_TEXT: keep the text encoder as it is")
    args = parser.parse_args(argv)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the loader's workers are the parallelism
    device = distributed.start()
    try:
        settings = load_settings(*args.config)
        if modality and args.freeze_text:
            settings.FREEZE_TEXT = True
        if args.epochs is not None:
            setattr(settings, f"{model_name}_NUM_EPOCH", args.epochs)
        with _messages_on_terminal():
            return _train(modality, settings, model_name, device)
    except (OSError, ValueError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        distributed.stop()


def _train(modality: str | None, settings: SimpleNamespace, model_name: str, device: torch.device) -> int:
    torch.manual_seed(settings.SEED)  # of the weights that begin at random
    stage = {"modality": modality, "freeze_text": settings.FREEZE_TEXT} if modality else {}
    stage["patch_length"] = settings.PATCH_LENGTH
    recipe = make_recipe(settings, model_name, stage)
    model, *parts = clamp3_training(modality, settings, recipe) if modality else m3_training(settings)
    if device.type == "cpu":
        for part in model.modules():
            if isinstance(part, PreTrainedModel):
                part.set_attn_implementation("eager")  # its backward pass is the faster one there
    report = start_curves(
        project=model_name.lower(),
        name=recipe.weights_path.stem,
        settings=vars(settings),
        key=settings.WANDB_KEY,
        wanted=getattr(settings, f"{model_name}_WANDB_LOG") and distributed.rank() == 0,
    )
    return train(model, *parts, recipe, device=device, report=report)


@contextmanager
def _messages_on_terminal() -> Iterator[None]:
    """The library's messages as plain lines: all of the first process, the warnings of the others."""
    log, handler = logging.getLogger("clamplib"), logging.StreamHandler(sys.stdout)
    log.setLevel(logging.INFO if distributed.rank() == 0 else logging.WARNING)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


def make_recipe(settings: SimpleNamespace, model_name: str, stage: dict) -> Recipe:
    """How to train "M3" or "CLAMP3" by the settings."""
    own = {name.removeprefix(f"{model_name}_"): value for name, value in vars(settings).items()}
    return Recipe(
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
        save_every=settings.SAVE_EVERY,
        seed=settings.SEED,
        stage=stage,
    )


def m3_training(settings: SimpleNamespace) -> tuple:
    """Model, objective and batches of M3."""
    if not settings.M3_TRAIN_FOLDERS:
        raise ValueError("M3_TRAIN_FOLDERS is empty: name folders of .abc and .mtf files in config.py")
    train_files, eval_files = _train_and_eval_items(
        m3_files, settings.M3_TRAIN_FOLDERS, settings.M3_EVAL_FOLDERS, settings
    )
    datasets = [
        M3Dataset(
            files,
            patchilizer=M3Patchilizer(settings.PATCH_SIZE, settings.PATCH_LENGTH),
            mask_ratio=settings.M3_MASK_RATIO,
            training=training,
            seed=settings.SEED,
        )
        for files, training in ((train_files, True), (eval_files, False))
    ]
    model = M3Model.from_geometry(make_geometry(settings))
    return model, m3_objective(), *_loaders(datasets, settings.M3_BATCH_SIZE, collate_m3, settings)


def clamp3_training(modality: str, settings: SimpleNamespace, recipe: Recipe) -> tuple:
    """Model, objective and batches of CLaMP 3 on "symbolic" or "audio"."""
    if not settings.CLAMP3_TRAIN_JSONL:
        raise ValueError("CLAMP3_TRAIN_JSONL is not set: name a JSONL of pieces and their texts in config.py")
    pairs = settings.PAIR_WEIGHT > 0
    read = partial(
        read_pieces,
        modality=modality,
        audio_size=settings.AUDIO_HIDDEN_SIZE,
        with_scores=pairs and modality == "audio",
    )
    train_pieces, eval_pieces = _train_and_eval_items(
        read, settings.CLAMP3_TRAIN_JSONL, settings.CLAMP3_EVAL_JSONL, settings
    )
    tokenizer = load_tokenizer(settings)
    datasets = [
        CLaMP3Dataset(
            pieces,
            modality=modality,
            tokenizer=tokenizer,
            patchilizer=M3Patchilizer(settings.PATCH_SIZE, settings.PATCH_LENGTH),
            max_text_length=settings.MAX_TEXT_LENGTH,
            max_audio_length=settings.MAX_AUDIO_LENGTH,
            audio_size=settings.AUDIO_HIDDEN_SIZE,
            training=training,
            text_dropout=settings.TEXT_DROPOUT,
            instrument_dropout=settings.INSTRUMENT_DROPOUT,
            hide_header_ratio=settings.HIDE_HEADER_RATIO,
            pairs=pairs,
            seed=settings.SEED,
        )
        for pieces, training in ((train_pieces, True), (eval_pieces, False))
    ]
    objective = clamp3_objective(
        batch_size=settings.CLAMP3_BATCH_SIZE * distributed.world_size(),
        mask_same_text=settings.MASK_SAME_TEXT,
        pair_weight=settings.PAIR_WEIGHT,
    )
    collate = CollateCLaMP3(tokenizer.pad_token_id)
    model = _clamp3_model(modality, settings, begin=not recipe.checkpoint())
    return model, objective, *_loaders(datasets, settings.CLAMP3_BATCH_SIZE, collate, settings)


def _clamp3_model(modality: str, settings: SimpleNamespace, begin: bool) -> CLaMP3Model:
    """The model, with what the modality does not train frozen; to `begin`, pretrained parts are loaded."""
    model = CLaMP3Model.from_geometry(make_geometry(settings))
    if begin:
        if _has_text_weights(settings.TEXT_MODEL_NAME):
            pretrained = AutoModel.from_pretrained(settings.TEXT_MODEL_NAME)
            model.text_model.load_state_dict(pretrained.state_dict())
        if settings.CLAMP3_LOAD_M3:
            load_m3_encoder(model, settings)
    model.set_trainable(FROZEN[modality] + (["text_model", "text_proj"] if settings.FREEZE_TEXT else []))
    return model


def _has_text_weights(text_model: str) -> bool:
    """Whether there are weights to begin with: on the hub, or in a folder; else they begin at random."""
    folder = Path(text_model)
    return not folder.is_dir() or any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))


def _train_and_eval_items(
    read: Callable, train_source: object, eval_source: object, settings: SimpleNamespace
) -> tuple[list, list]:
    """Items to train and to evaluate on; without an evaluation source, EVAL_SPLIT of the others."""
    train_items = _report(*read(train_source))
    if eval_source:
        return train_items, _report(*read(eval_source))
    return split_items(train_items, settings.EVAL_SPLIT, settings.SEED)


def _report(items: list, problems: list[str]) -> list:
    """The items; the problems met on the way to them are counted and named, by the first process."""
    if problems and distributed.rank() == 0:
        rest = [f"and {len(problems) - NAMED_PROBLEMS} more"] if len(problems) > NAMED_PROBLEMS else []
        print(f"{len(problems)} problems, left out of the data:", *problems[:NAMED_PROBLEMS], *rest, sep="\n  ")
    return items


def _loaders(datasets: list, batch_size: int, collate: Callable, settings: SimpleNamespace) -> list[DataLoader]:
    return [
        make_loader(
            dataset,
            batch_size,
            collate,
            training=training,
            chunk_batches=settings.CHUNK_BATCHES,
            seed=settings.SEED,
            num_workers=settings.NUM_WORKERS,
        )
        for dataset, training in zip(datasets, (True, False), strict=True)
    ]

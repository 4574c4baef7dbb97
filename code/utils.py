"""What the scripts share: config.py read as settings, and models, tokenizer and data made from them.

Its classes are the library's with the settings as defaults, for projects that hold this repository as a
folder: `from clamp3.code.utils import CLaMP3Model, M3Patchilizer`.
"""

import argparse
import ast
import logging
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

from torch.utils.data import DataLoader
from transformers import (
    AutoConfig,
    AutoModel,
    BertConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from clamplib import checkpoints, curves, distributed, models, patchilizer
from clamplib.datasets import CLaMP3Dataset, M3Dataset, m3_files, read_pieces, split_indices
from clamplib.files import InputError
from clamplib.geometry import Geometry
from clamplib.loading import CollateCLaMP3, collate_m3, make_loader
from clamplib.models import M3Model, M3PatchEncoder, M3TokenDecoder
from clamplib.objectives import clamp3_objective, m3_objective
from clamplib.training import Recipe, train

__all__ = ["CLaMP3Model", "M3Model", "M3PatchEncoder", "M3Patchilizer", "M3TokenDecoder"]

CONFIG = Path(__file__).resolve().with_name("config.py")
PATHS = tuple(f"{model}_{kind}_PATH" for model in ("M3", "CLAMP3") for kind in ("WEIGHTS", "LOGS"))
PATHS += ("M3_TRAIN_FOLDERS", "M3_EVAL_FOLDERS", "CLAMP3_TRAIN_JSONL", "CLAMP3_EVAL_JSONL")


# ------------------------------------------------------------------------------------ settings


def load_settings(file: str | Path | None = None) -> SimpleNamespace:
    """The settings of config.py, with those of another file of assignments in their place.

    What config.py makes from a setting, such as the names of the weights, follows the new value. A relative
    path is relative to the file that it is written in. ValueError for a name that config.py does not have.
    """
    own = _assignments(file, {}) if file else {}
    settings = _assignments(CONFIG, own)
    unknown = sorted(set(own) - set(settings))
    if unknown:
        raise ValueError(f"{file}: config.py has no setting called {', '.join(unknown)}")
    for name in (*PATHS, "TEXT_MODEL_NAME"):
        folder = Path(file if name in own else CONFIG).resolve().parent
        settings[name] = _from_folder(folder, name, settings[name])
    return SimpleNamespace(**settings)


def _assignments(file: str | Path, instead: dict) -> dict:
    """The upper-case names that a file assigns; where one is among `instead`, that value goes on with."""
    tree = ast.parse(Path(file).read_text(encoding="utf-8"), str(file))
    values = {"__file__": str(file)}
    for statement in tree.body:
        exec(compile(ast.Module([statement], []), str(file), "exec"), values)
        values |= {name: value for name, value in instead.items() if name in values}
    return {name: value for name, value in values.items() if name.isupper()}


def _from_folder(folder: Path, name: str, value: str | list | None) -> str | list | None:
    if isinstance(value, list | tuple):
        return [_from_folder(folder, name, path) for path in value]
    if value is None or (name == "TEXT_MODEL_NAME" and not (folder / value).is_dir()):  # a name on the hub
        return value
    return str(folder / value)


def make_geometry(settings: SimpleNamespace) -> Geometry:
    """The sizes of the models; a local text model's config is read from its folder."""
    text_model = settings.TEXT_MODEL_NAME
    local = Path(text_model).is_dir()
    return Geometry(
        patch_size=settings.PATCH_SIZE,
        patch_length=settings.PATCH_LENGTH,
        patch_num_layers=settings.PATCH_NUM_LAYERS,
        token_num_layers=settings.TOKEN_NUM_LAYERS,
        m3_hidden_size=settings.M3_HIDDEN_SIZE,
        clamp3_hidden_size=settings.CLAMP3_HIDDEN_SIZE,
        text_model_name=text_model,
        max_text_length=settings.MAX_TEXT_LENGTH,
        audio_hidden_size=settings.AUDIO_HIDDEN_SIZE,
        audio_num_layers=settings.AUDIO_NUM_LAYERS,
        max_audio_length=settings.MAX_AUDIO_LENGTH,
        text_config=AutoConfig.from_pretrained(text_model).to_dict() if local else None,
        logit_scale=settings.LOGIT_SCALE,
        learned_temperature=settings.LEARNED_TEMPERATURE,
        dropout=settings.DROPOUT,
    )


def load_tokenizer(settings: SimpleNamespace) -> PreTrainedTokenizerBase:
    """The text model's tokenizer, from its folder, the hub or the hub's cache."""
    if Path(settings.TEXT_MODEL_NAME).is_dir():
        return PreTrainedTokenizerFast.from_pretrained(settings.TEXT_MODEL_NAME)
    return checkpoints.load_tokenizer(make_geometry(settings))


# ------------------------------------------------------------------------------------ classes with settings

SETTINGS = load_settings()


class M3Patchilizer(patchilizer.M3Patchilizer):
    """The library's, of the configured patch size."""

    def __init__(self, patch_size: int = SETTINGS.PATCH_SIZE, patch_length: int = SETTINGS.PATCH_LENGTH):
        super().__init__(patch_size, patch_length)


class CLaMP3Model(models.CLaMP3Model):
    """The library's, of the configured sizes; with `load_m3` it begins with M3's weights if they are there.

    `global_rank` and `world_size` have no effect: a model finds the other processes by itself.
    """

    def __init__(
        self,
        audio_config: BertConfig,
        symbolic_config: BertConfig,
        global_rank: int | None = None,
        world_size: int | None = None,
        text_model_name: str = SETTINGS.TEXT_MODEL_NAME,
        hidden_size: int = SETTINGS.CLAMP3_HIDDEN_SIZE,
        load_m3: bool = SETTINGS.CLAMP3_LOAD_M3,
    ):
        super().__init__(
            audio_config,
            symbolic_config,
            AutoConfig.from_pretrained(text_model_name),
            hidden_size,
            SETTINGS.LOGIT_SCALE,
            SETTINGS.LEARNED_TEMPERATURE,
            SETTINGS.PATCH_SIZE,
        )
        if load_m3 and Path(SETTINGS.M3_WEIGHTS_PATH).is_file():
            load_m3_encoder(self, SETTINGS)


def load_m3_encoder(model: models.CLaMP3Model, settings: SimpleNamespace) -> None:
    """Starts the symbolic encoder from M3's weights: the configured file, or the published one."""
    path = Path(settings.M3_WEIGHTS_PATH)
    try:
        m3 = checkpoints.load_m3(
            path if path.is_file() else settings.CLAMP3_VARIANT,
            weights_folder=path.parent,
            geometry=make_geometry(settings),
            learning_rate=settings.M3_LEARNING_RATE,
            batch_size=settings.M3_BATCH_SIZE,
            mask_ratio=settings.M3_MASK_RATIO,
        )
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error} For training: train M3 first, or set CLAMP3_LOAD_M3 to False to start without it."
        ) from error
    model.symbolic_model.load_state_dict(m3.model.encoder.state_dict())


# ------------------------------------------------------------------------------------ training


def run_training(modality: str | None, description: str, example: str, argv: list[str] | None = None) -> int:
    """A training script: M3, or CLaMP 3 on a modality ("symbolic" or "audio"). Returns the exit status."""
    model_name = "CLAMP3" if modality else "M3"
    parser = argparse.ArgumentParser(
        description=description, epilog=example, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, help="a file of assignments that replace those of config.py")
    parser.add_argument("--epochs", type=int, help=f"in place of {model_name}_NUM_EPOCH")
    args = parser.parse_args(argv)
    _log_to_terminal()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the workers are the parallelism
    try:
        device = distributed.start()
        settings = load_settings(args.config)
        if args.epochs is not None:
            setattr(settings, f"{model_name}_NUM_EPOCH", args.epochs)
        stage = {"modality": modality, "freeze_text": settings.FREEZE_TEXT} if modality else {}
        recipe = make_recipe(settings, model_name, stage)
        prepare = partial(clamp3_training, modality) if modality else m3_training
        model, objective, train_batches, eval_batches = prepare(settings, recipe)
        report = curves.start(
            project=model_name.lower(),
            name=recipe.weights_path.stem,
            settings=vars(settings),
            key=settings.WANDB_KEY,
            wanted=getattr(settings, f"{model_name}_WANDB_LOG") and distributed.rank() == 0,
        )
        return train(model, objective, train_batches, eval_batches, recipe, device=device, report=report)
    except (InputError, FileNotFoundError, FloatingPointError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        distributed.stop()


def _log_to_terminal() -> None:
    """The library's messages as plain lines; of several processes, the first one's and warnings."""
    log = logging.getLogger("clamplib")
    if not log.handlers:
        log.addHandler(logging.StreamHandler(sys.stdout))
        log.setLevel(logging.INFO)


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


def m3_training(settings: SimpleNamespace, recipe: Recipe) -> tuple:
    """Model, objective and batches of M3."""
    if not settings.M3_TRAIN_FOLDERS:
        raise InputError("M3_TRAIN_FOLDERS is empty: name folders of .abc and .mtf files in config.py")
    train_files = m3_files(settings.M3_TRAIN_FOLDERS)
    eval_files = m3_files(settings.M3_EVAL_FOLDERS) if settings.M3_EVAL_FOLDERS else None
    groups = [str(path.with_suffix("")) for path in train_files]  # a piece's .abc and .mtf on one side
    train_files, eval_files = _split(train_files, groups, eval_files, settings)
    datasets = [
        M3Dataset(
            files,
            patchilizer=patchilizer.M3Patchilizer(settings.PATCH_SIZE, settings.PATCH_LENGTH),
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
        raise InputError("CLAMP3_TRAIN_JSONL is not set: name a JSONL of pieces and their texts in config.py")
    train_pieces = read_pieces(settings.CLAMP3_TRAIN_JSONL, modality)
    eval_pieces = read_pieces(settings.CLAMP3_EVAL_JSONL, modality) if settings.CLAMP3_EVAL_JSONL else None
    groups = [str(piece["id"]) for piece in train_pieces]
    train_pieces, eval_pieces = _split(train_pieces, groups, eval_pieces, settings)
    tokenizer = load_tokenizer(settings)
    datasets = [
        CLaMP3Dataset(
            pieces,
            modality=modality,
            tokenizer=tokenizer,
            patchilizer=patchilizer.M3Patchilizer(settings.PATCH_SIZE, settings.PATCH_LENGTH),
            max_text_length=settings.MAX_TEXT_LENGTH,
            max_audio_length=settings.MAX_AUDIO_LENGTH,
            audio_size=settings.AUDIO_HIDDEN_SIZE,
            training=training,
            text_dropout=settings.TEXT_DROPOUT,
            instrument_dropout=settings.INSTRUMENT_DROPOUT,
            hide_header_ratio=settings.HIDE_HEADER_RATIO,
            pairs=settings.PAIR_WEIGHT > 0,
            seed=settings.SEED,
        )
        for pieces, training in ((train_pieces, True), (eval_pieces, False))
    ]
    objective = clamp3_objective(
        modality,
        batch_size=settings.CLAMP3_BATCH_SIZE * distributed.world_size(),
        mask_same_text=settings.MASK_SAME_TEXT,
        pair_weight=settings.PAIR_WEIGHT,
    )
    collate = CollateCLaMP3(tokenizer.pad_token_id)
    model = _clamp3_model(modality, settings, begin=not recipe.checkpoint())
    return model, objective, *_loaders(datasets, settings.CLAMP3_BATCH_SIZE, collate, settings)


def _clamp3_model(modality: str, settings: SimpleNamespace, begin: bool) -> models.CLaMP3Model:
    """The model, with what the modality does not train frozen; to `begin`, pretrained parts are loaded."""
    model = models.CLaMP3Model.from_geometry(make_geometry(settings))
    if begin:
        if _has_text_weights(settings.TEXT_MODEL_NAME):
            pretrained = AutoModel.from_pretrained(settings.TEXT_MODEL_NAME)
            model.text_model.load_state_dict(pretrained.state_dict())
        if settings.CLAMP3_LOAD_M3:
            load_m3_encoder(model, settings)
    frozen = {"symbolic": ["audio_model", "audio_proj"], "audio": ["symbolic_model", "symbolic_proj"]}[
        modality
    ]
    model.set_trainable(frozen + (["text_model", "text_proj"] if settings.FREEZE_TEXT else []))
    return model


def _has_text_weights(text_model: str) -> bool:
    """Whether there are weights to begin with: on the hub, or in a folder; else they begin at random."""
    folder = Path(text_model)
    return not folder.is_dir() or any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))


def _split(train_items: list, groups: list[str], eval_items: list | None, settings: SimpleNamespace) -> tuple:
    """Items to train and to evaluate on; without the latter, EVAL_SPLIT of the former."""
    if eval_items is not None:
        return train_items, eval_items
    train_indices, eval_indices = split_indices(groups, settings.EVAL_SPLIT, settings.SEED)
    return [train_items[index] for index in train_indices], [train_items[index] for index in eval_indices]


def _loaders(
    datasets: list, batch_size: int, collate: Callable, settings: SimpleNamespace
) -> list[DataLoader]:
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

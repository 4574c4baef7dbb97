"""Settings in files of assignments such as config.py, and the models that they name.

The library takes arguments. This module alone reads a config.py, for the scripts and for callers that name no weights,
so that every script, the `clamp3` command and `CLaMP3Encoder.from_pretrained()` begin with the same variant: the one
that is named, else that of a `--config FILE`, else that of the environment variable CLAMP3_VARIANT, else that of line
66 of config.py.
"""

import ast
import os
from pathlib import Path
from types import SimpleNamespace

from transformers import AutoConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from clamplib.models import checkpoints
from clamplib.models.checkpoints import Loaded
from clamplib.models.encoders import CLaMP3Model
from clamplib.models.geometry import Geometry

CODE = Path(__file__).parents[2]  # of a clone
CONFIG = CODE / "config.py"
VARIABLE = "CLAMP3_VARIANT"  # of the environment
PUBLISHED = "saas"  # the default where there is no config.py, and the name under which M3 is published
PATHS = tuple(f"{model}_{kind}_PATH" for model in ("M3", "CLAMP3") for kind in ("WEIGHTS", "LOGS"))
PATHS += ("M3_TRAIN_FOLDERS", "M3_EVAL_FOLDERS", "CLAMP3_TRAIN_JSONL", "CLAMP3_EVAL_JSONL")


# ------------------------------------------------------------------------------------ settings


def load_settings(*files: str | Path | None, config: str | Path = CONFIG) -> SimpleNamespace:
    """Reads the settings of a config.py. Other files replace some of them, a later file those of an earlier one.

    What config.py derives from a setting, such as the names of the weights, follows the new value. A relative path
    is relative to the file that it is written in.

    Args:
        files: files of assignments; None is skipped.
        config: the config.py, which has all settings.

    Raises:
        ValueError: a file sets a name that config.py does not have.
    """
    own, source = {}, {}
    for file in filter(None, files):
        values = read_assignments(file)
        own |= values
        source |= dict.fromkeys(values, file)
    settings = read_assignments(config, own)
    for name in own:
        if name not in settings:
            raise ValueError(f"{source[name]}: config.py has no setting called {name}")
    for name in (*PATHS, "TEXT_MODEL_NAME"):
        folder = Path(source.get(name, config)).resolve().parent
        settings[name] = _from_folder(folder, name, settings[name])
    return SimpleNamespace(**settings)


def read_assignments(file: str | Path, instead: dict | None = None) -> dict:
    """The upper-case names that a file assigns. The values of `instead` replace its own, for what follows too."""
    tree = ast.parse(Path(file).read_text(encoding="utf-8"), str(file))
    values = {"__file__": str(file)}
    for statement in tree.body:
        exec(compile(ast.Module([statement], []), str(file), "exec"), values)
        values |= {name: value for name, value in (instead or {}).items() if name in values}
    return {name: value for name, value in values.items() if name.isupper()}


def _from_folder(folder: Path, name: str, value: str | list | None) -> str | list | None:
    if isinstance(value, list | tuple):
        return [_from_folder(folder, name, path) for path in value]
    if value is None or (name == "TEXT_MODEL_NAME" and not (folder / value).is_dir()):  # a name on the hub
        return value
    return str(folder / value)


# ------------------------------------------------------------------------------------ models


def make_geometry(settings: SimpleNamespace) -> Geometry:
    """The sizes of the models. A local text model's config is read from its folder."""
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


def load_clamp3(
    variant: str | Path | None = None,
    *files: str | Path | None,
    config: str | Path = CONFIG,
    weights_folder: str | Path | None = None,
    epoch: int | None = None,
    revision: str | None = None,
) -> Loaded:
    """CLaMP 3 of a variant, or of the default one (see the head of this module).

    Args:
        variant: as for `checkpoints.load_clamp3`; None: the default.
        files: files of assignments that replace settings of `config`.
        config: the config.py of a clone. It gives sizes, and the place of weights that are no folder; without the
            file they are those of the published weights.
        weights_folder: another place for them.
        epoch: takes the checkpoint `..._N.pth` of that epoch.
        revision: a branch, tag or commit of the hub.

    Raises:
        FileNotFoundError: the weights are not there and cannot be fetched; the message says what to do.
        InputError: they are damaged, or of other sizes.
    """
    variant = variant or _default_variant(files)
    if not _is_clone(config):
        folder = weights_folder or CODE
        return checkpoints.load_clamp3(variant or PUBLISHED, weights_folder=folder, epoch=epoch, revision=revision)
    settings = load_settings(*files, config=config)
    own = Path(settings.CLAMP3_WEIGHTS_PATH)
    if epoch is not None:
        own = own.with_stem(f"{own.stem}_{epoch}")
    trained = variant is None and not weights_folder and own.is_file()
    return checkpoints.load_clamp3(
        own if trained else variant or settings.CLAMP3_VARIANT,
        weights_folder=weights_folder or own.parent,
        epoch=None if trained else epoch,
        revision=revision,
        geometry=make_geometry(settings),
    )


def load_m3(variant: str | Path | None = None, *files: str | Path | None, config: str | Path = CONFIG) -> Loaded:
    """M3 of a variant, or of the default one; arguments and errors as for `load_clamp3`."""
    return _load_m3(variant or _default_variant(files), load_settings(*files, config=config))


def load_m3_encoder(model: CLaMP3Model, settings: SimpleNamespace) -> None:
    """Starts the symbolic encoder from M3's weights: the configured file, or the published one."""
    try:
        m3 = _load_m3(None if Path(settings.M3_WEIGHTS_PATH).is_file() else PUBLISHED, settings)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error} For training: train M3 first, or set CLAMP3_LOAD_M3 to False to start without it."
        ) from error
    model.symbolic_model.load_state_dict(m3.model.encoder.state_dict())


def _load_m3(variant: str | Path | None, settings: SimpleNamespace) -> Loaded:
    own = Path(settings.M3_WEIGHTS_PATH)
    return checkpoints.load_m3(
        own if variant is None and own.is_file() else variant or settings.CLAMP3_VARIANT,
        weights_folder=own.parent,
        geometry=make_geometry(settings),
        learning_rate=settings.M3_LEARNING_RATE,
        batch_size=settings.M3_BATCH_SIZE,
        mask_ratio=settings.M3_MASK_RATIO,
    )


def _default_variant(files: tuple) -> str | None:
    """The variant in the environment; None where a file of settings, which is nearer, decides, or config.py."""
    return None if any(files) else os.environ.get(VARIABLE) or None


def _is_clone(config: str | Path) -> bool:
    """Whether this config.py lies among the scripts; another program's may lie beside an installed library."""
    return Path(config).with_name("extract_clamp3.py").is_file() and Path(config).is_file()

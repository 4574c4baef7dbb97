"""Settings in files of assignments such as config.py, and the models that they name.

The library takes arguments. Only this module reads a config.py, for the scripts and for callers that name no weights.
Every script, the `clamp3` command and `CLaMP3Encoder.from_pretrained()` therefore take the same variant by default: the
one that is named, else that of a `--config FILE`, else that of the environment variable CLAMP3_VARIANT, else that of
line 66 of config.py.
"""

import ast
import os
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

from clamplib.files import InputError, cause_of, show
from clamplib.models import variants
from clamplib.models.configs import read_text_config
from clamplib.models.geometry import Geometry
from clamplib.models.variants import FoundModel

if TYPE_CHECKING:  # which imports torch
    from clamplib.models.encoders import CLaMP3Model

CODE = Path(__file__).parents[2]  # the folder code/ of a clone
CONFIG_PY = CODE / "config.py"
VARIANT_VARIABLE = "CLAMP3_VARIANT"  # an environment variable
FALLBACK_VARIANT = "saas"  # the default without a config.py, and a name under which the published M3 is found
PATHS = (  # settings that are paths, or lists of paths
    "M3_WEIGHTS_PATH",
    "M3_LOGS_PATH",
    "M3_TRAIN_FOLDERS",
    "M3_EVAL_FOLDERS",
    "CLAMP3_WEIGHTS_PATH",
    "CLAMP3_LOGS_PATH",
    "CLAMP3_TRAIN_JSONL",
    "CLAMP3_EVAL_JSONL",
)


# ------------------------------------------------------------------------------------ settings


def load_settings(*files: str | Path | None, config: str | Path = CONFIG_PY) -> SimpleNamespace:
    """Reads the settings of a config.py, some of which other files may replace.

    What config.py derives from a setting, such as the names of the weights, follows the new value. A relative path is
    relative to the file that states it.

    Args:
        files: files of assignments, of which a later one takes precedence; None is skipped.
        config: the config.py, which has all settings.

    Raises:
        ValueError: a file sets a name that config.py does not have.
    """
    replaced = {}
    source = {}
    for file in filter(None, files):
        for name, value in read_assignments(file).items():
            replaced[name] = value
            source[name] = file
    settings = read_assignments(config, replaced)
    for name in replaced:
        if name not in settings:
            raise ValueError(f"{source[name]}: config.py has no setting called {name}")
    for name in (*PATHS, "TEXT_MODEL_NAME"):
        folder = Path(source.get(name, config)).resolve().parent
        settings[name] = _from_folder(folder, name, settings[name])
    return SimpleNamespace(**settings)


def read_assignments(file: str | Path, instead: dict | None = None) -> dict:
    """Reads the upper-case names that a file assigns.

    Args:
        file: a file of Python, which is run.
        instead: values that replace those of the file, also in the assignments that follow.
    """
    instead = instead or {}
    tree = ast.parse(Path(file).read_text(encoding="utf-8"), str(file))
    values = {"__file__": str(file)}
    for statement in tree.body:
        exec(compile(ast.Module([statement], []), str(file), "exec"), values)
        for name in instead.keys() & values.keys():
            values[name] = instead[name]
    return {name: value for name, value in values.items() if name.isupper()}


def _from_folder(folder: Path, name: str, value: str | list | None) -> str | list | None:
    """A path, or a list of them, relative to the folder of the file that states it."""
    if isinstance(value, list | tuple):
        return [_from_folder(folder, name, path) for path in value]
    if value is None:
        return None
    if name == "TEXT_MODEL_NAME" and not (folder / value).is_dir():
        return value  # a name on the hub
    return str(folder / value)


# ------------------------------------------------------------------------------------ models


def make_geometry(settings: SimpleNamespace) -> Geometry:
    """Makes the geometry that the settings describe. A local text model's config is read from its folder."""
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
        text_config=read_text_config(text_model).to_dict() if local else None,
        logit_scale=settings.LOGIT_SCALE,
        learned_temperature=settings.LEARNED_TEMPERATURE,
        dropout=settings.DROPOUT,
        abc=settings.CLAMP3_ABC,
        notes=settings.CLAMP3_NOTES,
    )


def find_variant(
    variant: str | Path | None = None,
    *files: str | Path | None,
    config: str | Path = CONFIG_PY,
    weights_folder: str | Path | None = None,
    epoch: int | None = None,
    revision: str | None = None,
) -> FoundModel:
    """Finds the weights of CLaMP 3 of a variant, or of the default one (see the top of this module).

    Args:
        variant: as for `variants.find_clamp3`; None: the default.
        files: files of assignments that replace settings of `config`.
        config: the config.py of a clone. It states the sizes and the place of weights that are not a folder. Without
            the file these are the published weights.
        weights_folder: another place for them.
        epoch: takes the checkpoint `..._N.pth` of that epoch.
        revision: a branch, tag or commit of the hub.

    Raises:
        FileNotFoundError: the weights are not there and cannot be fetched; the message says what to do.
        InputError: a config is damaged.
    """
    variant = variant or _default_variant(files)
    if not _is_clone(config):
        variant = variant or FALLBACK_VARIANT
        return variants.find_clamp3(variant, weights_folder=weights_folder or CODE, epoch=epoch, revision=revision)
    settings = load_settings(*files, config=config)
    geometry = make_geometry(settings)
    own = Path(settings.CLAMP3_WEIGHTS_PATH)
    if epoch is not None:
        own = own.with_stem(f"{own.stem}_{epoch}")
    if variant is None and not weights_folder and own.is_file():
        return variants.find_clamp3(own, weights_folder=own.parent, geometry=geometry)
    return variants.find_clamp3(
        variant or settings.CLAMP3_VARIANT,
        weights_folder=weights_folder or own.parent,
        epoch=epoch,
        geometry=geometry,
        revision=revision,
    )


def find_m3_variant(
    variant: str | Path | None = None, *files: str | Path | None, config: str | Path = CONFIG_PY
) -> FoundModel:
    """Finds the weights of M3 of a variant, or of the default one. The arguments are those of `find_variant`."""
    return _find_m3(variant or _default_variant(files), load_settings(*files, config=config))


def load_text_encoder(model: "CLaMP3Model", name: str) -> None:
    """Starts a model's text encoder from the pretrained weights of `name`, a folder or a model of the hub.

    Raises:
        OSError: the weights are not there and cannot be fetched.
        InputError: the weights are damaged, or not those of this text encoder.
    """
    from transformers import AutoModel

    from clamplib.models.checkpoints import load_weights

    read_text_config(name)  # checks the sizes first
    try:
        pretrained = AutoModel.from_pretrained(name, trust_remote_code=False)
    except OSError:
        raise
    except Exception as error:  # transformers, safetensors and torch raise a dozen kinds
        raise InputError(f"{show(name)}: expected the weights of a text model ({cause_of(error)})") from error
    load_weights(model.text_model, pretrained.state_dict(), name)


def load_m3_encoder(model: "CLaMP3Model", settings: SimpleNamespace) -> None:
    """Starts a model's symbolic encoder from the weights of M3: the configured file, or else the published one.

    Raises:
        FileNotFoundError: the weights are not there and cannot be fetched; the message says what to do.
    """
    try:
        m3 = _find_m3(None if Path(settings.M3_WEIGHTS_PATH).is_file() else FALLBACK_VARIANT, settings).load()
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error} For training: train M3 first, or set CLAMP3_LOAD_M3 to False to start without it."
        ) from error
    model.symbolic_model.load_state_dict(m3.model.encoder.state_dict())


def _find_m3(variant: str | Path | None, settings: SimpleNamespace) -> FoundModel:
    own = Path(settings.M3_WEIGHTS_PATH)
    return variants.find_m3(
        own if variant is None and own.is_file() else variant or settings.CLAMP3_VARIANT,
        weights_folder=own.parent,
        geometry=make_geometry(settings),
        learning_rate=settings.M3_LEARNING_RATE,
        batch_size=settings.M3_BATCH_SIZE,
        mask_ratio=settings.M3_MASK_RATIO,
    )


def _default_variant(files: tuple) -> str | None:
    """The variant of the environment, over which a file of settings takes precedence; None without one."""
    return None if any(files) else os.environ.get(VARIANT_VARIABLE) or None


def _is_clone(config: str | Path) -> bool:
    """Whether this config.py is the one of the scripts, and not another program's next to an installed library."""
    return Path(config).with_name("extract_clamp3.py").is_file() and Path(config).is_file()

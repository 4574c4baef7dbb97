"""What the scripts share: config.py read as settings, and models, tokenizer and data made from them.

Its classes are the library's with the settings as defaults, for projects that hold this repository as a
folder: `from clamp3.code.utils import CLaMP3Model, M3Patchilizer`.
"""

import ast
from pathlib import Path
from types import SimpleNamespace

from transformers import AutoConfig, BertConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from clamplib import checkpoints, models, patchilizer
from clamplib.geometry import Geometry
from clamplib.models import M3Model, M3PatchEncoder, M3TokenDecoder

__all__ = ["CLaMP3Model", "M3Model", "M3PatchEncoder", "M3Patchilizer", "M3TokenDecoder"]

CONFIG = Path(__file__).resolve().with_name("config.py")
PATHS = tuple(f"{model}_{kind}_PATH" for model in ("M3", "CLAMP3") for kind in ("WEIGHTS", "LOGS"))
PATHS += ("M3_TRAIN_FOLDERS", "M3_EVAL_FOLDERS", "CLAMP3_TRAIN_JSONL", "CLAMP3_EVAL_JSONL")


# ------------------------------------------------------------------------------------ settings


def load_settings(*files: str | Path | None) -> SimpleNamespace:
    """The settings of config.py, with those of other files of assignments in their place, the last file's first.

    What config.py makes from a setting, such as the names of the weights, follows the new value. A relative
    path is relative to the file that it is written in. ValueError for a name that config.py does not have.
    """
    own, source = {}, {}
    for file in filter(None, files):
        values = _assignments(file, {})
        own |= values
        source |= dict.fromkeys(values, file)
    settings = _assignments(CONFIG, own)
    for name in own:
        if name not in settings:
            raise ValueError(f"{source[name]}: config.py has no setting called {name}")
    for name in (*PATHS, "TEXT_MODEL_NAME"):
        folder = Path(source.get(name, CONFIG)).resolve().parent
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
            path if path.is_file() else "saas",  # one M3 for both published variants
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

"""Variants: finding the weights, the sizes and the tokenizer of one. Nothing here reads the weights or imports torch.

A variant is "saas" or "c2" (the published weights), "mini" (which is part of this package), or a folder on this machine
or on the hub (by its name, owner/name):

    config.json         the geometry (Geometry.to_dict)
    model.safetensors   CLaMP 3; weights in half precision are loaded as float32
    m3.safetensors      M3, if the variant has it
    tokenizer.json, tokenizer_config.json
    modules.json        the modules that sentence-transformers makes of the folder

A folder may come from anyone. Code in it is never run, and its sizes are compared with its weights before memory is
taken.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clamplib import __version__
from clamplib.files import InputError, read_object, show
from clamplib.models.configs import CONFIG_NAME
from clamplib.models.geometry import Geometry
from clamplib.models.hub import (
    CLAMP3_REPO,
    HUB_NAME,
    M3_REPO,
    PUBLISHED,
    USE_MINI,
    fetch_file,
    fetch_folder,
    fetching,
    weights_sha256,
)
from clamplib.models.tokenizer import TextTokenizer, fetch_tokenizer, read_tokenizer

if TYPE_CHECKING:  # which imports torch
    from clamplib.models.loading import LoadedModel

MINI = Path(__file__).parents[1] / "mini"
CLAMP3_WEIGHTS, M3_WEIGHTS = "model.safetensors", "m3.safetensors"


@dataclass(frozen=True)
class FoundModel:
    """A model whose weights are not read yet.

    Attributes:
        path: the file of its weights.
        geometry: the sizes of the model.
        space: what identifies the embedding space; see `clamplib.space`.
        folder: that of the variant, which states the geometry; None if the settings do.
        m3: whether it is M3 and not CLaMP 3.
    """

    path: Path
    geometry: Geometry
    space: dict
    folder: Path | None
    m3: bool

    def load(self) -> "LoadedModel":
        """Reads the weights and the tokenizer. Errors are those of `load_clamp3` and `load_m3`."""
        from clamplib.models.loading import load_model

        return load_model(self)


def load_clamp3(
    variant: str | Path,
    *,
    weights_folder: str | Path,
    epoch: int | None = None,
    geometry: Geometry | None = None,
    revision: str | None = None,
) -> "LoadedModel":
    """Loads CLaMP 3 and its tokenizer. The arguments are those of `find_clamp3`.

    Raises:
        FileNotFoundError: the weights are not there and cannot be fetched; the message says what to do.
        InputError: a file is damaged, the weights do not fit the geometry, or the tokenizer does not fit the weights.
        ValueError: an epoch is named for a folder.
    """
    options = {"epoch": epoch, "geometry": geometry, "revision": revision}
    return find_clamp3(variant, weights_folder=weights_folder, **options).load()


def find_clamp3(
    variant: str | Path,
    *,
    weights_folder: str | Path,
    epoch: int | None = None,
    geometry: Geometry | None = None,
    revision: str | None = None,
) -> FoundModel:
    """Finds the weights of CLaMP 3.

    Args:
        variant: a variant (see the top of this module), the name of weights that you train, or a .pth file.
        weights_folder: where weights lie that are not a folder, under the name that the geometry gives them or under
            the short name `weights_clamp3_VARIANT.pth` of the model card. Published ones that are not there are
            fetched.
        epoch: takes the checkpoint `..._N.pth` of that epoch.
        geometry: the sizes of weights that are not a folder. By default they are the published ones.
        revision: a branch, tag or commit of the hub.

    Raises:
        FileNotFoundError: the weights are not there and cannot be fetched; the message says what to do.
        InputError: a config is damaged.
        ValueError: an epoch is named for a folder.
    """
    folder = variant_folder(variant) or _fetch_variant(str(variant), revision)
    if folder:
        geometry, path = _folder_weights(folder, CLAMP3_WEIGHTS, epoch)
    else:
        geometry = geometry or Geometry()
        names = [geometry.clamp3_weights_name(str(variant)), f"weights_clamp3_{variant}.pth"]
        path = _find_weights(variant, names, weights_folder, epoch, CLAMP3_REPO, revision)
    return FoundModel(path, geometry, _space(variant, path, geometry), folder, m3=False)


def load_m3(
    variant: str | Path,
    *,
    weights_folder: str | Path,
    geometry: Geometry | None = None,
    learning_rate: float = 1e-4,
    batch_size: int = 16,
    mask_ratio: float = 0.45,
) -> "LoadedModel":
    """Loads M3, which has no tokenizer. The arguments are those of `find_m3`.

    Raises:
        FileNotFoundError: the weights are not there and cannot be fetched; the message says what to do.
        InputError: the weights are damaged or do not fit the geometry.
    """
    settings = {"learning_rate": learning_rate, "batch_size": batch_size, "mask_ratio": mask_ratio}
    return find_m3(variant, weights_folder=weights_folder, geometry=geometry, **settings).load()


def find_m3(
    variant: str | Path,
    *,
    weights_folder: str | Path,
    geometry: Geometry | None = None,
    learning_rate: float = 1e-4,
    batch_size: int = 16,
    mask_ratio: float = 0.45,
) -> FoundModel:
    """Finds the weights of M3.

    Args:
        variant: a folder with M3 in it, a .pth file, or any other name for the weights in `weights_folder`.
        weights_folder: where weights lie that are not a folder. Published ones that are not there are fetched.
        geometry: the sizes of weights that are not a folder. By default they are the published ones.
        learning_rate, batch_size, mask_ratio: settings of the training, which are part of the weights' name.

    Raises:
        FileNotFoundError: the weights are not there and cannot be fetched; the message says what to do.
        InputError: a config is damaged.
    """
    folder = variant_folder(variant) or _fetch_variant(str(variant), None)
    if folder:
        geometry, path = _folder_weights(folder, M3_WEIGHTS)
    else:
        geometry = geometry or Geometry()
        names = [geometry.m3_weights_name(learning_rate, batch_size, mask_ratio)]
        path = _find_weights(variant, names, weights_folder, None, M3_REPO)
    return FoundModel(path, geometry, _space(variant, path, geometry), folder, m3=True)


def variant_folder(variant: str | Path) -> Path | None:
    """Returns the folder of a variant that is a folder on this machine, such as "mini"; None for any other variant."""
    if variant == "mini":
        return MINI
    folder = Path(variant)
    return folder if folder.is_dir() else None


def load_tokenizer(geometry: Geometry) -> TextTokenizer:
    """Loads the tokenizer of the geometry's text model, from its folder, the hub or the hub's cache.

    Raises:
        FileNotFoundError: the tokenizer cannot be fetched.
        InputError: the tokenizer is damaged.
    """
    name = geometry.text_model_name
    if Path(name).is_dir():
        return read_tokenizer(name)
    with fetching(f"the tokenizer of {name}", f"Run once with a network, {USE_MINI}."):
        return fetch_tokenizer(name)


def _space(variant: str | Path, path: Path, geometry: Geometry) -> dict:
    """What identifies the embedding space of a model (see `clamplib.space`)."""
    return {
        "variant": str(variant),
        "weights_sha256": weights_sha256(path),
        "geometry": geometry.to_dict(),
        "abc": geometry.abc or "as found",
        **({"notes": geometry.notes} if geometry.notes else {}),
        "library": __version__,
    }


def _folder_weights(folder: Path, name: str, epoch: int | None = None) -> tuple[Geometry, Path]:
    """The geometry of a variant's folder, and the path of the weights called `name` in it."""
    if epoch is not None:
        raise ValueError(
            f"expected no epoch for the folder {show(folder)}, which holds one set of weights, got {epoch}"
        )
    for part in (CONFIG_NAME, name):
        if not (folder / part).is_file():
            raise FileNotFoundError(f"{show(folder)}: expected a folder of weights with {part} in it")
    config = folder / CONFIG_NAME
    values = read_object(config, "a model's geometry")
    try:
        return Geometry.from_dict(values), folder / name
    except ValueError as error:
        raise InputError(f"{show(config)}: expected the geometry of a model ({error})") from error


def _find_weights(
    variant: str | Path,
    names: Sequence[str],
    weights_folder: str | Path,
    epoch: int | None,
    repo: str,
    revision: str | None = None,
) -> Path:
    """The first of the named files that is in the folder, else the published file of the first name."""
    if Path(variant).suffix == ".pth":
        return Path(variant)
    folder = Path(weights_folder)
    if epoch is not None:
        names = [f"{Path(names[0]).stem}_{epoch}.pth"]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    if (repo, names[0]) not in PUBLISHED:
        path = show(folder / names[0])
        raise FileNotFoundError(f"{path}: there are no such weights. Train them, put them there, {USE_MINI}.")
    size = PUBLISHED[repo, names[0]].size
    stated = f" ({size:,} bytes)" if size else ""
    with fetching(f"{names[0]}{stated} of the hub's {repo}", f"Put the file into {show(folder)}, {USE_MINI}."):
        return fetch_file(repo, names[0], revision)


def _fetch_variant(name: str, revision: str | None) -> Path | None:
    """A variant's folder from the hub or its cache, its content checked; None if `name` is not a name of the hub."""
    if not HUB_NAME.fullmatch(name) or name.endswith(".pth"):
        return None
    with fetching(f"{name} is not a folder here,", f"Name a folder of weights, saas or c2, {USE_MINI}."):
        return fetch_folder(name, revision, ["*.json", "*.safetensors"])  # nothing that could hold code

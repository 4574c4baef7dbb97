"""Fixtures that several test files share: the golden cases, and the tiny models that made their outputs."""

import gzip
import json
import os
import shutil
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's library is imported; nothing is fetched, nor tried five times

import pytest
from transformers import AutoTokenizer

from clamplib.models.geometry import Geometry
from clamplib.models.loading import save_variant
from clamplib.models.variants import load_clamp3, load_m3

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(autouse=True, scope="session")
def no_cache_of_the_user(tmp_path_factory):
    """Vectors are kept in a folder of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLAMP3_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of cases with expected outputs; its README says what each is."""
    return GOLDEN


@pytest.fixture(scope="session")
def tiny_geometry() -> Geometry:
    values = json.loads((GOLDEN / "tiny/tiny_config.json").read_text())
    names = {field for field in Geometry().to_dict() if field.upper() in values}
    return Geometry(text_model_name=str(GOLDEN / "tiny/text_model"), **{name: values[name.upper()] for name in names})


@pytest.fixture(scope="session")
def tiny_tokenizer():
    return AutoTokenizer.from_pretrained(GOLDEN / "tiny/text_model")


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory) -> Path:
    """A folder with clamp3_tiny.pth and m3_tiny.pth, in the layout of the published checkpoints."""
    folder = tmp_path_factory.mktemp("tiny_weights")
    for name in ("clamp3_tiny.pth", "m3_tiny.pth"):
        (folder / name).write_bytes(gzip.decompress((GOLDEN / f"tiny/{name}.gz").read_bytes()))
    return folder


@pytest.fixture
def tiny_clamp3(tiny_weights, tiny_geometry):
    """CLaMP 3 in evaluation mode; every test gets its own."""
    path = tiny_weights / "clamp3_tiny.pth"
    return load_clamp3(path, weights_folder=tiny_weights, geometry=tiny_geometry).model


@pytest.fixture
def tiny_m3(tiny_weights, tiny_geometry):
    """M3 in evaluation mode; every test gets its own."""
    path = tiny_weights / "m3_tiny.pth"
    return load_m3(path, weights_folder=tiny_weights, geometry=tiny_geometry).model


@pytest.fixture(scope="session")
def tiny_variant(tmp_path_factory, tiny_weights, tiny_geometry, tiny_tokenizer) -> Path:
    """The tiny models as a variant's folder, for `--variant FOLDER`."""
    folder = tmp_path_factory.mktemp("tiny_variant")
    m3 = load_m3(tiny_weights / "m3_tiny.pth", weights_folder=tiny_weights, geometry=tiny_geometry).model
    clamp3 = load_clamp3(tiny_weights / "clamp3_tiny.pth", weights_folder=tiny_weights, geometry=tiny_geometry).model
    save_variant(folder, clamp3, tiny_tokenizer, tiny_geometry, m3)
    return folder


@pytest.fixture(scope="session")
def mert_weights(golden, tmp_path_factory) -> Path:
    """A folder in the published layout: MERT, two layers of width 64."""
    folder = tmp_path_factory.mktemp("mert")
    shutil.copy(golden / "tiny/mert/nocqt/config.json", folder)
    packed = (golden / "tiny/mert/nocqt/pytorch_model.bin.gz").read_bytes()
    (folder / "pytorch_model.bin").write_bytes(gzip.decompress(packed))
    return folder

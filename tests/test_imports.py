"""What other projects do with a clone in a folder called `clamp3`, the library being installed."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

MODEL_CODE = """
from transformers import BertConfig
from clamp3.code.config import *
from clamp3.code.utils import CLaMP3Model, M3Model, M3PatchEncoder, M3Patchilizer, M3TokenDecoder

audio_config = BertConfig(
    vocab_size=1, hidden_size=AUDIO_HIDDEN_SIZE, num_hidden_layers=AUDIO_NUM_LAYERS,
    num_attention_heads=AUDIO_HIDDEN_SIZE // 64, intermediate_size=AUDIO_HIDDEN_SIZE * 4,
    max_position_embeddings=MAX_AUDIO_LENGTH,
)
symbolic_config = BertConfig(
    vocab_size=1, hidden_size=M3_HIDDEN_SIZE, num_hidden_layers=PATCH_NUM_LAYERS,
    num_attention_heads=M3_HIDDEN_SIZE // 64, intermediate_size=M3_HIDDEN_SIZE * 4,
    max_position_embeddings=PATCH_LENGTH,
)
model = CLaMP3Model(
    audio_config=audio_config, symbolic_config=symbolic_config, text_model_name=TEXT_MODEL_NAME,
    hidden_size=CLAMP3_HIDDEN_SIZE, load_m3=CLAMP3_LOAD_M3,
)
import torch
model.load_state_dict(torch.load("clamp3_tiny.pth", weights_only=True)["model"])
patches = torch.tensor(M3Patchilizer().encode("K:C\\nC2|D2|]", add_special_patches=True))[None]
print(*model.eval().get_symbolic_features(patches, torch.ones(patches.shape[:2]), get_global=True).shape)
"""


@pytest.fixture(scope="module")
def clone(golden, tiny_weights, tiny_geometry, tmp_path_factory):
    """The parent folder of a clone, its config set to the sizes of the tiny models."""
    parent = tmp_path_factory.mktemp("clone")
    ignore = shutil.ignore_patterns("clamplib*", "__pycache__", "weights_*", "logs_*")
    shutil.copytree(ROOT / "code", parent / "clamp3/code", ignore=ignore)
    config = parent / "clamp3/code/config.py"
    lines = config.read_text().split("\n")
    sizes = {name.upper(): value for name, value in tiny_geometry.to_dict().items()}
    for number, line in enumerate(lines):
        name = line.partition(" = ")[0]
        if name in sizes:
            lines[number] = f"{name} = {sizes[name]!r}"
    config.write_text("\n".join(lines))
    shutil.copy(tiny_weights / "clamp3_tiny.pth", parent)
    return parent


def run(clone, code):
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_models_from_a_clone(clone):
    before = sorted(path for path in clone.rglob("*") if "__pycache__" not in path.parts)
    assert run(clone, MODEL_CODE) == "1 96\n"
    assert sorted(path for path in clone.rglob("*") if "__pycache__" not in path.parts) == before


def test_config_has_settings_alone(clone):
    code = "from clamp3.code.config import *; print(*[name for name in dir() if not name.startswith('_')])"
    assert all(name.isupper() for name in run(clone, code).split())


def test_code_stays_pythons_own():
    assert not (ROOT / "code/__init__.py").exists()

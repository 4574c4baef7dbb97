"""config.py: its values, line 66, and files of other values."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from clamplib.models.geometry import Geometry
from clamplib.models.settings import make_geometry

CODE = Path(__file__).parents[2] / "code"
PUBLISHED = {
    "PATCH_SIZE": 64,
    "PATCH_LENGTH": 512,
    "PATCH_NUM_LAYERS": 12,
    "TOKEN_NUM_LAYERS": 3,
    "M3_HIDDEN_SIZE": 768,
    "M3_NUM_EPOCH": 100,
    "M3_LEARNING_RATE": 1e-4,
    "M3_BATCH_SIZE": 16,
    "M3_MASK_RATIO": 0.45,
    "M3_DETERMINISTIC": True,
    "M3_LOAD_CKPT": True,
    "CLAMP3_HIDDEN_SIZE": 768,
    "TEXT_MODEL_NAME": "FacebookAI/xlm-roberta-base",
    "MAX_TEXT_LENGTH": 128,
    "AUDIO_HIDDEN_SIZE": 768,
    "AUDIO_NUM_LAYERS": 12,
    "MAX_AUDIO_LENGTH": 128,
    "CLAMP3_NUM_EPOCH": 100,
    "CLAMP3_LEARNING_RATE": 1e-5,
    "CLAMP3_BATCH_SIZE": 256,
    "LOGIT_SCALE": 1,
    "EVAL_SPLIT": 0.01,
    "FREEZE_TEXT": False,
    "TEXT_DROPOUT": True,
    "SAVE_EVERY": 5,
    "CLAMP3_DETERMINISTIC": True,
    "CLAMP3_LOAD_CKPT": True,
    "CLAMP3_LOAD_M3": True,
}


@pytest.fixture
def utils(monkeypatch):
    monkeypatch.syspath_prepend(CODE)
    import utils

    return utils


def test_published_values_as_plain_assignments():
    tree = ast.parse((CODE / "config.py").read_text())
    assert all(isinstance(statement, ast.Assign) for statement in tree.body[1:])
    values = {
        statement.targets[0].id: ast.literal_eval(statement.value)
        for statement in tree.body[1:]
        if isinstance(statement.value, ast.Constant | ast.List)
    }
    assert {name: values[name] for name in PUBLISHED} == PUBLISHED


@pytest.mark.parametrize("edit", ["66s/saas/c2/", "s/weights_clamp3_saas/weights_clamp3_c2/"])
def test_line_66_switches_the_variant(edit, tmp_path):
    shutil.copy(CODE / "config.py", tmp_path)
    subprocess.run(["sed", "-i", edit, "config.py"], cwd=tmp_path, check=True)
    before, after = (folder.joinpath("config.py").read_text().split("\n") for folder in (CODE, tmp_path))
    assert [number for number, lines in enumerate(zip(before, after, strict=True), 1) if len(set(lines)) > 1] == [66]
    code = "from config import *; print(CLAMP3_VARIANT, CLAMP3_WEIGHTS_PATH, CLAMP3_LOGS_PATH)"
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)
    name = Geometry().clamp3_weights_name("c2")
    assert run.stdout.split() == ["c2", name, name.replace("weights", "logs").replace(".pth", ".txt")]


def test_names_are_those_of_the_geometry(utils):
    settings = utils.load_settings()
    assert make_geometry(settings) == Geometry()
    assert settings.CLAMP3_WEIGHTS_PATH == str(CODE / Geometry().clamp3_weights_name("saas"))
    assert settings.M3_WEIGHTS_PATH == str(CODE / Geometry().m3_weights_name())
    assert settings.M3_LOGS_PATH == str(CODE / Geometry().m3_weights_name().replace("weights", "logs"))[:-4] + ".txt"


def test_a_file_of_other_values(utils, tmp_path, monkeypatch):
    (tmp_path / "text").mkdir()
    (tmp_path / "my.py").write_text(
        "import math\nsmall = 128\nM3_HIDDEN_SIZE = small\nM3_TRAIN_FOLDERS = ['music', '/other']\n"
        "CLAMP3_WEIGHTS_PATH = 'out/my.pth'\nTEXT_MODEL_NAME = 'text'\nLOGIT_SCALE = math.sqrt(4)\n"
    )
    monkeypatch.chdir("/")
    settings = utils.load_settings(tmp_path / "my.py")
    assert settings.M3_HIDDEN_SIZE == 128
    assert settings.LOGIT_SCALE == 2
    assert settings.PATCH_SIZE == 64
    assert settings.M3_TRAIN_FOLDERS == [str(tmp_path / "music"), "/other"]
    assert settings.CLAMP3_WEIGHTS_PATH == str(tmp_path / "out/my.pth")
    assert settings.TEXT_MODEL_NAME == str(tmp_path / "text")
    assert settings.M3_WEIGHTS_PATH == str(CODE / Geometry(m3_hidden_size=128).m3_weights_name())


def test_a_later_file_replaces_an_earlier_one(utils, tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "a.py").write_text("M3_HIDDEN_SIZE = 128\nCLAMP3_TRAIN_JSONL = 'a.jsonl'\nSEED = 1\n")
    (tmp_path / "b/b.py").write_text("CLAMP3_TRAIN_JSONL = 'b.jsonl'\nSEED = 2\n")
    settings = utils.load_settings(tmp_path / "a.py", tmp_path / "b/b.py")
    assert (settings.M3_HIDDEN_SIZE, settings.SEED) == (128, 2)
    assert settings.CLAMP3_TRAIN_JSONL == str(tmp_path / "b/b.jsonl")
    assert utils.load_settings(tmp_path / "b/b.py", tmp_path / "a.py").CLAMP3_TRAIN_JSONL == str(tmp_path / "a.jsonl")


def test_unknown_names_are_refused(utils, tmp_path):
    (tmp_path / "my.py").write_text("M3_EPOCHS = 3\nPATCH_SIZE = 64\n")
    with pytest.raises(ValueError, match=r"my.py: config.py has no setting called M3_EPOCHS$"):
        utils.load_settings(tmp_path / "my.py")

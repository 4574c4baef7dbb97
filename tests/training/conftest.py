"""Fixtures of the tests of training: a folder of music, and the scripts on a tiny corpus at tiny sizes."""

import json
import random
import shutil

import numpy as np
import pytest
from training_helpers import ABC, CODE, MTF

SETTINGS = """
PATCH_NUM_LAYERS = 1
TOKEN_NUM_LAYERS = 1
M3_HIDDEN_SIZE = 64
PATCH_LENGTH = 64
CLAMP3_HIDDEN_SIZE = 32
AUDIO_HIDDEN_SIZE = 128
AUDIO_NUM_LAYERS = 1
NUM_WORKERS = 0
EVAL_SPLIT = 0.25
SAVE_EVERY = 2
M3_TRAIN_FOLDERS = ["music"]
M3_NUM_EPOCH = 2
M3_WARMUP_STEPS = 3
M3_LEARNING_RATE = 1e-3
M3_BATCH_SIZE = 4
M3_WEIGHTS_PATH = "out/m3.pth"
M3_LOGS_PATH = "out/m3.txt"
CLAMP3_TRAIN_JSONL = "pieces.jsonl"
CLAMP3_NUM_EPOCH = 2
CLAMP3_WARMUP_STEPS = 3
CLAMP3_LEARNING_RATE = 1e-3
CLAMP3_BATCH_SIZE = 4
CLAMP3_LOAD_M3 = False
CLAMP3_WEIGHTS_PATH = "out/clamp3.pth"
CLAMP3_LOGS_PATH = "out/clamp3.txt"
"""


@pytest.fixture
def folder(tmp_path):
    """a.abc and a.mtf, b.MTF alone, long.abc, and a.npy."""
    (tmp_path / "a.abc").write_text(ABC)
    (tmp_path / "a.mtf").write_text(MTF)
    (tmp_path / "b.MTF").write_text(MTF)
    (tmp_path / "long.abc").write_text(ABC + "[V:1]G8|\n" * 700)
    np.save(tmp_path / "a.npy", np.ones((1, 300, 8), dtype=np.float32))
    return tmp_path


@pytest.fixture(scope="session")
def trained_corpus(tmp_path_factory):
    """Twelve pieces: ABC and MTF, the last three MTF alone, and audio features."""
    folder, rng = tmp_path_factory.mktemp("corpus"), random.Random(0)
    (folder / "music").mkdir()
    lines = []
    for number in range(12):
        stem = folder / f"music/p{number}"
        if number < 9:
            bars = ["".join(rng.choices("CDEFGAB", k=4)) + "|" for _ in range(rng.randint(3, 30))]
            stem.with_suffix(".abc").write_text("M:4/4\nK:C\n" + "\n".join(bars) + "\n")
        notes = [f"note_on {rng.randint(0, 99)} 0 {rng.randint(40, 80)} 64" for _ in range(rng.randint(3, 30))]
        stem.with_suffix(".mtf").write_text("ticks_per_beat 480\n" + "\n".join(notes))
        np.save(stem.with_suffix(".npy"), np.random.default_rng(number).normal(size=(1, number + 2, 128)))
        suffixes = (".abc", ".mtf", ".npy") if number < 9 else (".mtf", ".npy")
        piece = {
            "id": number,
            "filepaths": [f"music/p{number}{suffix}" for suffix in suffixes],
            "title": f"piece {number}",
        }
        if number % 2:
            piece |= {"analysis": f"it has number {number}", "translations": {"title": f"Stück {number}"}}
        lines += [json.dumps(piece), ""]
    (folder / "pieces.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture
def make_config(trained_corpus, golden, tmp_path):
    """make_config(NAME=value, ...): a new folder with the corpus and a config.py; returns the latter."""
    count = iter(range(100))

    def make(**changes):
        folder = tmp_path / f"run{next(count)}"
        shutil.copytree(trained_corpus, folder)
        (folder / "out").mkdir()
        changes = {"TEXT_MODEL_NAME": str(golden / "tiny/text_model")} | changes
        config = folder / "config.py"
        config.write_text(SETTINGS + "".join(f"{name} = {value!r}\n" for name, value in changes.items()))
        return config

    return make


@pytest.fixture
def call_script(monkeypatch):
    """call_script(name, *arguments): a script of code/ in this process; returns its exit status."""
    monkeypatch.syspath_prepend(CODE)
    return lambda name, *args: __import__(name).main([str(arg) for arg in args])


@pytest.fixture
def run(call_script):
    """run(script, config, *arguments): a training script in this process; returns its exit status."""
    return lambda script, config, *args: call_script(script, "--config", config, *args)

"""What the tests of training share beside fixtures: the scripts' names, and what a training leaves behind."""

import json
from pathlib import Path

import torch

from clamplib.models.checkpoints import load_checkpoint

CODE = Path(__file__).parents[2] / "code"
M3, SYMBOLIC, AUDIO = "train_m3", "train_clamp3_symbolic", "train_clamp3_audio"
ABC = 'L:1/8\nM:4/4\nK:G\nV:1 treble nm="Violin"\n' + "[V:1]G2 B2 d2 g2|\n" * 3
MTF = "ticks_per_beat 480\nprogram_change 0 0 40\n" + "note_on 0 0 60 64\nnote_off 480 0 60 0\n" * 40
FIELDS = {
    "id": "p1",
    "filepaths": ["p1.abc"],
    "language": "English",
    "title": "A reel",
    "tags": ["fast", "fast", None, "Irish\nfiddle"],
    "background": None,
    "translations": {"language": "German", "title": "Ein Reel"},
}


def write_jsonl(folder, *lines):
    """Writes lines, given as text or as objects, to folder/pieces.jsonl; returns its path."""
    path = folder / "pieces.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


def name_of(script):
    """What the files of a script's training begin with."""
    return "m3" if script == M3 else "clamp3"


def weights(config, name="m3_latest"):
    """The checkpoint of a name, of the training with this config."""
    return load_checkpoint(config.parent / f"out/{name}.pth")


def assert_same_model(state, other):
    assert state["model"].keys() == other["model"].keys()
    for name, value in state["model"].items():
        assert torch.equal(value, other["model"][name]), name


def read_log(config, name="clamp3"):
    """The lines of a log as dicts of numbers."""
    lines = [line.split() for line in (config.parent / f"out/{name}.txt").read_text().splitlines()]
    return [dict(zip(line[::2], map(float, line[1::2]), strict=False)) for line in lines]


def log_without_times(config, name):
    """The lines of a log up to what differs from run to run."""
    lines = (config.parent / f"out/{name}.txt").read_text().splitlines()
    return [line.partition("  seconds")[0] for line in lines]

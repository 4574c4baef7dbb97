"""Training through its scripts, at tiny sizes: resumed, stopped, in several processes, on little data."""

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from clamplib.models.checkpoints import load_checkpoint, load_clamp3, load_m3, save_checkpoint
from clamplib.models.settings import make_geometry
from clamplib.training import loop as training
from clamplib.training.state import Recipe, TrainingState, learning_rate_factor, start_curves

CODE = Path(__file__).parents[2] / "code"
M3, SYMBOLIC, AUDIO = "train_m3", "train_clamp3_symbolic", "train_clamp3_audio"
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


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
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
def make_config(corpus, golden, tmp_path):
    """make_config(NAME=value, ...): a new folder with the corpus and a config.py; returns the latter."""
    count = iter(range(100))

    def make(**changes):
        folder = tmp_path / f"run{next(count)}"
        shutil.copytree(corpus, folder)
        (folder / "out").mkdir()
        changes = {"TEXT_MODEL_NAME": str(golden / "tiny/text_model")} | changes
        config = folder / "config.py"
        config.write_text(SETTINGS + "".join(f"{name} = {value!r}\n" for name, value in changes.items()))
        return config

    return make


@pytest.fixture
def run(monkeypatch):
    """run(script, config, *arguments): a script in this process; returns its exit status."""
    monkeypatch.syspath_prepend(CODE)
    return lambda script, config, *args: __import__(script).main(["--config", str(config), *args])


def weights(config, name="m3_latest"):
    return load_checkpoint(config.parent / f"out/{name}.pth")


def assert_same(state, other):
    assert state["model"].keys() == other["model"].keys()
    for name, value in state["model"].items():
        assert torch.equal(value, other["model"][name]), name


def name_of(script):
    return "m3" if script == M3 else "clamp3"


@pytest.mark.parametrize("script", [M3, SYMBOLIC, AUDIO])
def test_resumed_equals_uninterrupted(script, run, make_config, capsys):
    whole, parts = make_config(), make_config()
    assert run(script, whole) == 0
    assert run(script, parts, "--epochs", "1") == 0
    assert run(script, parts, "--epochs", "2") == 0
    assert "Going on from" in capsys.readouterr().out
    name = name_of(script)
    state, other = weights(whole, f"{name}_latest"), weights(parts, f"{name}_latest")
    assert_same(state, other)
    assert state["lr_sched"] == other["lr_sched"]
    for key in ("epoch", "best_epoch", "min_eval_loss"):
        assert state[key] == other[key]
    logs = [strip_time(config.parent / f"out/{name}.txt") for config in (whole, parts)]
    assert logs[0] == logs[1] and len(logs[0]) == 2
    assert run(script, whole) == 0
    assert "Training has finished: 2 of 2 epochs are done" in capsys.readouterr().out


@pytest.mark.parametrize("script", [M3, SYMBOLIC, AUDIO])
def test_shards_and_workers_train_as_files_do(script, run, make_config):
    files = make_config()
    packed = make_config(CLAMP3_TRAIN_JSONL="packed/pieces.jsonl", M3_TRAIN_FOLDERS=["music.tar"], NUM_WORKERS=2)
    folder = packed.parent
    pack = __import__("pack_shards").main  # `run` makes the scripts importable
    assert pack([f"{folder}/pieces.jsonl", f"{folder}/packed", "--shard_size", "9KB"]) == 0
    assert len(list((folder / "packed").glob("*.tar"))) > 3
    with tarfile.open(folder / "music.tar", "w") as tar:
        tar.add(folder / "music", "music")
    shutil.rmtree(folder / "music")
    assert run(script, files) == 0 and run(script, packed) == 0
    name = name_of(script)
    assert_same(weights(files, f"{name}_latest"), weights(packed, f"{name}_latest"))
    logs = [strip_time(config.parent / f"out/{name}.txt") for config in (files, packed)]
    assert logs[0] == logs[1]
    assert all(0 < line["waiting"] < 1 for line in read_log(files.parent / f"out/{name}.txt"))


def strip_time(log):
    return [line.partition("  seconds")[0] for line in log.read_text().splitlines()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_in_mid_epoch_goes_on_from_there(number, run, make_config, monkeypatch, capsys):
    whole, parts = make_config(DROPOUT=0.2), make_config(DROPOUT=0.2)
    assert run(SYMBOLIC, whole) == 0
    steps, take_step = [], TrainingState.step

    def step_and_signal(state, loss):
        take_step(state, loss)
        steps.append(loss)
        if len(steps) in (2, 4):
            os.kill(os.getpid(), number)

    monkeypatch.setattr(TrainingState, "step", step_and_signal)
    assert run(SYMBOLIC, parts) == 128 + number
    assert weights(parts, "clamp3_latest")["step"] == 2
    assert run(SYMBOLIC, parts) == 128 + number
    assert weights(parts, "clamp3_latest")["epoch"] == 1
    assert run(SYMBOLIC, parts) == 0
    assert f"Stopped by {signal.Signals(number).name}" in capsys.readouterr().out
    assert_same(weights(whole, "clamp3_latest"), weights(parts, "clamp3_latest"))
    logs = [strip_time(config.parent / "out/clamp3.txt") for config in (whole, parts)]
    assert logs[0] == logs[1]
    assert signal.getsignal(number) not in (None, training._Signals._receive)


LAUNCHERS = {
    "torchrun": ["-m", "torch.distributed.run"],
    "launch": ["-W", "ignore", "-m", "torch.distributed.launch", "--use_env"],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "launcher", "batch"),
    [(M3, "launch", "M3_BATCH_SIZE"), (SYMBOLIC, "torchrun", "CLAMP3_BATCH_SIZE")],
)
def test_two_processes_equal_one(script, launcher, batch, run, make_config):
    options = {"DROPOUT": 0.0, "MASK_SAME_TEXT": True, "LEARNED_TEMPERATURE": True, "PAIR_WEIGHT": 0.5}
    alone = make_config(**options, **{batch: 6})
    together = make_config(**options, **{batch: 3})
    assert run(script, alone) == 0
    command = [sys.executable, *LAUNCHERS[launcher], "--nproc_per_node=2", "--master_port", str(free_port())]
    command += [CODE / f"{script}.py", "--config", together]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "training" not in done.stderr  # where a warning of ours would name its file
    states = [weights(config, f"{name_of(script)}_latest") for config in (alone, together)]
    assert states[1]["min_eval_loss"] == pytest.approx(states[0]["min_eval_loss"], rel=1e-4)
    logs = [read_log(config.parent / f"out/{name_of(script)}.txt") for config in (alone, together)]
    for line, other in zip(*logs, strict=True):
        for times in ("seconds", "waiting"):
            del line[times], other[times]
        assert other == pytest.approx(line, rel=1e-4)
    for name, value in states[0]["model"].items():
        if not name.endswith("key.bias"):  # its gradient is nothing but rounding, which Adam makes steps of
            torch.testing.assert_close(value, states[1]["model"][name], atol=2e-4, rtol=1e-3, msg=name)


def read_log(path):
    lines = [line.split() for line in path.read_text().splitlines()]
    return [dict(zip(line[::2], map(float, line[1::2]), strict=False)) for line in lines]


def free_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_files_after_training(run, make_config, tiny_tokenizer):
    config = make_config(M3_NUM_EPOCH=5, CLAMP3_LOAD_M3=True)
    assert run(M3, config) == 0 and run(SYMBOLIC, config) == 0
    out = config.parent / "out"
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["m3.pth", "m3_2.pth", "m3_4.pth", "m3_latest.pth", "m3.txt"]
        + ["clamp3.pth", "clamp3_2.pth", "clamp3_latest.pth", "clamp3.txt"]
    )
    best = weights(config, "m3")
    lines = read_log(out / "m3.txt")
    assert best["best_epoch"] == best["epoch"] == 1 + np.argmin([line["eval_loss"] for line in lines])
    assert {"model", "optimizer", "lr_sched", "epoch", "best_epoch", "min_eval_loss"} <= best.keys()
    assert weights(config, "clamp3")["modality"] == "symbolic"
    assert {"eval_loss", "eval_mrr", "eval_hit@1", "eval_hit@10"} <= read_log(out / "clamp3.txt")[0].keys()
    utils = __import__("utils")
    geometry = make_geometry(utils.load_settings(config))
    load_clamp3(out / "clamp3.pth", weights_folder=out, geometry=geometry)
    load_m3(out / "m3.pth", weights_folder=out, geometry=geometry)


def test_exported_weights_are_those_that_were_trained(run, make_config, capsys):
    config = make_config(M3_NUM_EPOCH=1, CLAMP3_NUM_EPOCH=1)
    export, folder = __import__("export_clamp3").main, config.parent / "variant"
    assert export([str(folder), "--config", str(config)]) == 1
    assert "clamp3.pth" in capsys.readouterr().err
    assert run(M3, config) == 0 and run(SYMBOLIC, config) == 0
    assert export([str(folder), "--config", str(config)]) == 0
    for name, load in (("clamp3", load_clamp3), ("m3", load_m3)):
        trained = weights(config, name)["model"]
        for part, value in load(folder, weights_folder=folder).model.state_dict().items():
            torch.testing.assert_close(value, trained[part].half().float(), msg=part)


def test_symbolic_encoder_starts_from_m3(run, make_config):
    config = make_config(M3_NUM_EPOCH=1, CLAMP3_LOAD_M3=True, CLAMP3_LEARNING_RATE=0.0)
    assert run(M3, config) == 0 and run(SYMBOLIC, config) == 0
    m3, clamp3 = weights(config)["model"], weights(config, "clamp3_latest")["model"]
    for name, value in m3.items():
        part, _, rest = name.partition(".")
        if part == "encoder":
            assert torch.equal(value, clamp3[f"symbolic_model.{rest}"]), name


def test_missing_m3_says_what_to_do(run, make_config, capsys):
    assert run(SYMBOLIC, make_config(CLAMP3_LOAD_M3=True)) == 1
    error = capsys.readouterr().err
    assert "m3" in error and "CLAMP3_LOAD_M3" in error


def test_another_modality_gives_weights_only(run, make_config, capsys):
    config = make_config(CLAMP3_NUM_EPOCH=1, CLAMP3_LEARNING_RATE=0.0)
    assert run(SYMBOLIC, config) == 0
    before = {name: value.clone() for name, value in weights(config, "clamp3_latest")["model"].items()}
    assert run(AUDIO, config) == 0
    assert "a new stage begins, its modality differing" in capsys.readouterr().out
    after = weights(config, "clamp3_latest")
    assert after["modality"] == "audio" and after["epoch"] == 1
    assert_same({"model": before}, after)


@pytest.mark.parametrize("length", [8, 24])
def test_another_patch_length_keeps_the_positions_there_are(length, run, make_config, capsys):
    config = make_config(CLAMP3_NUM_EPOCH=1, CLAMP3_LEARNING_RATE=0.0, PATCH_LENGTH=16)
    assert run(SYMBOLIC, config) == 0
    before = weights(config, "clamp3_latest")["model"]
    config.write_text(config.read_text() + f"PATCH_LENGTH = {length}\n")
    assert run(SYMBOLIC, config) == 0
    assert "a new stage begins, its patch_length differing" in capsys.readouterr().out
    after = weights(config, "clamp3_latest")
    name, kept = "symbolic_model.base.embeddings.position_embeddings.weight", min(length, 16)
    positions = after["model"].pop(name)
    assert len(positions) == length and torch.equal(positions[:kept], before.pop(name)[:kept])
    assert_same({"model": before}, after)


@pytest.mark.parametrize(("script", "frozen"), [(SYMBOLIC, "audio_"), (AUDIO, "symbolic_")])
@pytest.mark.parametrize("freeze_text", [True, False])
def test_frozen_parts_stay(script, frozen, freeze_text, run, make_config, monkeypatch):
    config = make_config(CLAMP3_NUM_EPOCH=1, FREEZE_TEXT=freeze_text)
    starts = {}
    initialize = TrainingState.__init__

    def remember(state, model, *args):
        starts.update({name: value.clone() for name, value in model.state_dict().items()})
        initialize(state, model, *args)

    monkeypatch.setattr(TrainingState, "__init__", remember)
    assert run(script, config) == 0
    frozen = (frozen, "text_") if freeze_text else (frozen,)
    moved = {
        name
        for name, value in weights(config, "clamp3_latest")["model"].items()
        if not torch.equal(value, starts[name])
    }
    assert moved and not {name for name in moved if name.startswith(frozen)}
    assert freeze_text or any(name.startswith("text_model") for name in moved)


def test_the_four_stages_of_saas(run, make_config, capsys):
    """Symbolic; audio with the text frozen; audio; symbolic with the text frozen: each from the weights before."""
    config = make_config(CLAMP3_NUM_EPOCH=1)
    stages = [
        (SYMBOLIC, [], {"text", "symbolic"}),
        (AUDIO, ["--freeze_text"], {"audio"}),
        (AUDIO, [], {"text", "audio"}),
        (SYMBOLIC, ["--freeze_text"], {"symbolic"}),
    ]
    before = None
    for script, options, trained in stages:
        assert run(script, config, *options) == 0
        state = weights(config, "clamp3_latest")["model"]
        if before is not None:
            assert "a new stage begins" in capsys.readouterr().out
            moved = {name.partition("_")[0] for name in state if not torch.equal(state[name], before[name])}
            assert moved == trained
        before = state
    assert len(read_log(config.parent / "out/clamp3.txt")) == 4


def test_audio_beside_scores(run, make_config):
    """With PAIR_WEIGHT the recordings are drawn to the frozen scores too."""
    states = []
    for pair_weight in (0.0, 0.5):
        config = make_config(CLAMP3_NUM_EPOCH=1, FREEZE_TEXT=True, PAIR_WEIGHT=pair_weight)
        assert run(AUDIO, config) == 0
        states.append(weights(config, "clamp3_latest")["model"])
    differ = {name.partition("_")[0] for name in states[0] if not torch.equal(states[0][name], states[1][name])}
    assert differ == {"audio"}


def test_less_data_than_a_batch(run, make_config):
    config = make_config(CLAMP3_BATCH_SIZE=256, M3_BATCH_SIZE=256, CLAMP3_EVAL_JSONL="pieces.jsonl")
    lines = (config.parent / "pieces.jsonl").read_text().splitlines()
    (config.parent / "pieces.jsonl").write_text(lines[0] + "\n")
    assert run(SYMBOLIC, config) == 0 and run(M3, config) == 0


def test_no_data_says_so(run, make_config, capsys):
    assert run(SYMBOLIC, make_config(CLAMP3_TRAIN_JSONL=None)) == 1
    assert "CLAMP3_TRAIN_JSONL is not set" in capsys.readouterr().err
    assert run(M3, make_config(M3_TRAIN_FOLDERS=[])) == 1
    assert "M3_TRAIN_FOLDERS is empty" in capsys.readouterr().err
    assert run(M3, make_config(M3_TRAIN_FOLDERS=["gone"])) == 1
    assert "gone" in capsys.readouterr().err


def test_bad_lines_are_counted_and_named(run, make_config, capsys):
    config = make_config(CLAMP3_NUM_EPOCH=1)
    with open(config.parent / "pieces.jsonl", "a") as lines:
        lines.write("\n{\n" + json.dumps({"id": "x", "filepaths": ["gone.abc"], "title": "x"}) + "\n")
    assert run(SYMBOLIC, config) == 0
    out = capsys.readouterr().out
    assert "2 problems, left out of the data" in out and "line 25" in out and "gone.abc" in out


def test_bad_audio_features_end_no_training(run, make_config, capsys):
    config = make_config()
    music = config.parent / "music"
    np.save(music / "p3.npy", np.ones((1, 5, 64), np.float32))
    features = np.load(music / "p4.npy")
    features[0, 1] = np.nan
    np.save(music / "p4.npy", features)
    assert run(AUDIO, config) == 0
    said = capsys.readouterr()
    assert "1 problems, left out of the data" in said.out and "p3.npy: expected MERT features" in said.out
    assert "p4.npy: left out 1 of 6 frames" in said.out
    assert np.isfinite(read_log(config.parent / "out/clamp3.txt")[1]["eval_loss"])


def test_weights_of_another_geometry_are_refused(run, make_config, capsys):
    config = make_config(M3_NUM_EPOCH=1)
    assert run(M3, config) == 0
    assert run(M3, config, "--epochs", "2") == 0
    config.write_text(config.read_text() + "M3_HIDDEN_SIZE = 128\n")
    assert run(M3, config, "--epochs", "3") == 1
    assert "m3_latest.pth: these weights are of another geometry" in capsys.readouterr().err


def test_weights_alone_cannot_be_resumed(run, make_config, capsys):
    config = make_config(M3_NUM_EPOCH=1)
    assert run(M3, config) == 0
    out = config.parent / "out"
    (out / "m3_latest.pth").unlink()
    save_checkpoint(out / "m3.pth", {"model": weights(config, "m3")["model"]})
    assert run(M3, config) == 1
    assert "m3.pth: expected a checkpoint to go on from" in capsys.readouterr().err


def test_published_layout_is_resumed(run, make_config, capsys):
    """A checkpoint with the published entries alone: optimizer and schedule go on."""
    config = make_config(M3_NUM_EPOCH=1)
    assert run(M3, config) == 0
    state = weights(config)
    published = {
        name: state[name] for name in ("model", "optimizer", "lr_sched", "epoch", "best_epoch", "min_eval_loss")
    }
    save_checkpoint(config.parent / "out/m3.pth", published)
    steps = state["lr_sched"]["last_epoch"]
    (config.parent / "out/m3_latest.pth").unlink()
    assert run(M3, config, "--epochs", "2") == 0
    after = weights(config)
    assert after["lr_sched"]["last_epoch"] == 2 * steps and after["epoch"] == 2
    assert all(entry["step"] == 2 * steps for entry in after["optimizer"]["state"].values())


def test_golden_checkpoint_is_resumed(run, golden, tiny_weights, make_config, capsys):
    """A file in the published layout, of another implementation: its modality goes on, another starts anew."""
    sizes = json.loads((golden / "tiny/tiny_config.json").read_text())
    resumed = "7 epochs and 0 steps are done, learning rate 1e-05 as it was"
    for script, said in ((AUDIO, resumed), (SYMBOLIC, "its modality differing")):
        config = make_config(**sizes, CLAMP3_LOAD_M3=True)
        shutil.copy(tiny_weights / "clamp3_tiny.pth", config.parent / "out/clamp3.pth")
        assert run(script, config, "--epochs", "8" if script == AUDIO else "1") == 0
        assert said in capsys.readouterr().out
        assert weights(config, "clamp3_latest")["epoch"] == (8 if script == AUDIO else 1)


def test_scaled_gradients_that_overflow_take_no_step():
    """What fp16 does on CUDA: neither optimizer nor schedule moves, the scale shrinks."""
    model = torch.nn.Linear(2, 1)
    state = TrainingState(model, recipe(warmup_steps=0, gradient_clip=1.0), 10, torch.device("cpu"))
    state.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    before = model.weight.detach().clone()
    state.step(model(torch.full((1, 2), 1e38)).sum() * 10)
    assert torch.equal(model.weight, before) and state.scheduler.last_epoch == 0
    assert state.scaler.get_scale() == 512
    state.step(model(torch.ones(1, 2)).sum())
    assert not torch.equal(model.weight, before) and state.scheduler.last_epoch == 1


@pytest.mark.parametrize("script", [M3, SYMBOLIC, AUDIO])
def test_half_precision_trains_and_evaluates_alike(script, run, make_config):
    """As on CUDA: everything runs under autocast, and the weights stay float32."""
    losses = []
    for precision in ("float32", "bf16", "fp16"):
        config = make_config(PRECISION=precision)
        assert run(script, config) == 0
        losses.append(weights(config, f"{name_of(script)}_latest")["min_eval_loss"])
        state = weights(config, f"{name_of(script)}_latest")["model"]
        assert {value.dtype for value in state.values() if value.is_floating_point()} == {torch.float32}
    assert len(set(losses)) == 3 and losses == pytest.approx([losses[0]] * 3, rel=0.02)


def test_a_loss_that_is_not_finite_ends_the_training(run, make_config, capsys):
    assert run(M3, make_config(M3_LEARNING_RATE=1e30, M3_WARMUP_STEPS=0)) == 1
    assert "the loss is nan in epoch" in capsys.readouterr().err


def recipe(**changes):
    return Recipe(weights_path=Path("w.pth"), logs_path=Path("l.txt"), epochs=1, learning_rate=1.0, **changes)


def test_schedules():
    constant = learning_rate_factor(recipe(warmup_steps=4), 100)
    assert [constant(step) for step in (0, 1, 4, 99, 1000)] == [0, 0.25, 1, 1, 1]
    cosine = learning_rate_factor(recipe(warmup_steps=20, schedule="cosine"), 100)
    assert [cosine(step) for step in (10, 20, 60, 100, 101)] == pytest.approx([0.5, 1, 0.5, 0, 0])
    for wrong in ({"schedule": "linear"}, {"precision": "fp8"}):
        with pytest.raises(ValueError, match="must be one of"):
            recipe(**wrong)


def test_cosine_and_clipping_in_a_training(run, make_config):
    config = make_config(SCHEDULE="cosine", GRADIENT_CLIP=0.5)
    assert run(M3, config) == 0
    assert weights(config)["lr_sched"]["_last_lr"][0] == pytest.approx(0, abs=1e-12)


def test_first_loss_is_that_of_chance(run, make_config):
    config = make_config(
        CLAMP3_NUM_EPOCH=1,
        CLAMP3_LEARNING_RATE=0.0,
        LEARNED_TEMPERATURE=True,
        CLAMP3_EVAL_JSONL="pieces.jsonl",
    )
    assert run(SYMBOLIC, config) == 0
    line = read_log(config.parent / "out/clamp3.txt")[0]
    assert 0.5 * math.log(4) < line["eval_loss"] < 3 * math.log(4)
    assert line["eval_hit@10"] >= 10 / 12 - 0.3


def numbers_of_an_epoch():
    return {"epoch": 1, "train_loss": 0.5}


def test_no_curves_without_a_key(monkeypatch, caplog):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert start_curves(project="p", name="n", settings={}, wanted=False) is None and not caplog.records
    assert start_curves(project="p", name="n", settings={}) is None
    assert "WANDB_KEY is empty" in caplog.text


def test_a_refused_key_is_only_warned_of(monkeypatch, caplog):
    wandb = pytest.importorskip("wandb")

    def refuse(**options):
        raise ValueError("API key must have 40+ characters")

    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(wandb, "login", refuse)
    assert start_curves(project="p", name="n", settings={}, key="<YOUR_WANDB_KEY>") is None
    assert "40+ characters" in caplog.text


@pytest.mark.slow
def test_curves_offline(run, make_config, monkeypatch):
    pytest.importorskip("wandb")
    config = make_config(M3_NUM_EPOCH=1, M3_WANDB_LOG=True)
    monkeypatch.chdir(config.parent)
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert run(M3, config) == 0
    assert list((config.parent / "wandb").glob("offline-run-*"))

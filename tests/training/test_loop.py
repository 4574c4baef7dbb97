"""The loop, through the scripts at tiny sizes: resumed, stopped, in several processes, on little data."""

import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import torch
from training_helpers import (
    AUDIO,
    CODE,
    M3,
    SYMBOLIC,
    assert_same_model,
    log_without_times,
    name_of,
    read_log,
    weights,
)

from clamplib.models.settings import load_settings, make_geometry
from clamplib.models.variants import load_clamp3, load_m3
from clamplib.training.loop import to_device
from clamplib.training.state import TrainingState


@pytest.mark.parametrize("script", [M3, SYMBOLIC, AUDIO])
def test_resumed_equals_uninterrupted(script, run, make_config, capsys):
    whole, parts = make_config(), make_config()
    assert run(script, whole) == 0
    assert run(script, parts, "--epochs", "1") == 0
    assert run(script, parts, "--epochs", "2") == 0
    assert "Going on from" in capsys.readouterr().out
    name = name_of(script)
    state, other = weights(whole, f"{name}_latest"), weights(parts, f"{name}_latest")
    assert_same_model(state, other)
    assert state["lr_sched"] == other["lr_sched"]
    for key in ("epoch", "best_epoch", "min_eval_loss"):
        assert state[key] == other[key]
    logs = [log_without_times(config, name) for config in (whole, parts)]
    assert logs[0] == logs[1]
    assert len(logs[0]) == 2
    assert run(script, whole) == 0
    assert "Training has finished: 2 of 2 epochs are done" in capsys.readouterr().out


@pytest.mark.parametrize("script", [M3, SYMBOLIC, AUDIO])
def test_shards_and_workers_train_as_files_do(script, run, call_script, make_config):
    files = make_config()
    packed = make_config(CLAMP3_TRAIN_JSONL="packed/pieces.jsonl", M3_TRAIN_FOLDERS=["music.tar"], NUM_WORKERS=2)
    folder = packed.parent
    assert call_script("pack_shards", folder / "pieces.jsonl", folder / "packed", "--shard_size", "9KB") == 0
    assert len(list((folder / "packed").glob("*.tar"))) > 3
    with tarfile.open(folder / "music.tar", "w") as tar:
        tar.add(folder / "music", "music")
    shutil.rmtree(folder / "music")
    assert run(script, files) == 0
    assert run(script, packed) == 0
    name = name_of(script)
    assert_same_model(weights(files, f"{name}_latest"), weights(packed, f"{name}_latest"))
    assert log_without_times(files, name) == log_without_times(packed, name)
    assert all(0 <= line["waiting"] < 1 for line in read_log(files, name))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_in_mid_epoch_goes_on_from_there(number, run, make_config, monkeypatch, capsys):
    whole, parts = make_config(DROPOUT=0.2), make_config(DROPOUT=0.2)
    assert run(SYMBOLIC, whole) == 0
    handler = signal.getsignal(number)
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
    assert_same_model(weights(whole, "clamp3_latest"), weights(parts, "clamp3_latest"))
    assert log_without_times(whole, "clamp3") == log_without_times(parts, "clamp3")
    assert signal.getsignal(number) == handler


def test_a_training_that_is_killed_before_it_saves_logs_the_epoch_once(run, make_config, monkeypatch):
    whole, parts = make_config(), make_config()
    assert run(M3, whole) == 0
    save = TrainingState.save

    def save_all_but_the_latest(state, path):
        if path == state.recipe.latest_path and state.progress.epoch == 2:
            raise OSError("killed")
        save(state, path)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingState, "save", save_all_but_the_latest)
        assert run(M3, parts) == 1
    assert weights(parts)["epoch"] == 1
    assert run(M3, parts) == 0
    assert_same_model(weights(whole), weights(parts))
    assert log_without_times(whole, "m3") == log_without_times(parts, "m3")


LESS_MEMORY = {"CLAMP3_ACCUMULATION": 2, "GRADIENT_CHECKPOINTING": True}


@pytest.mark.parametrize("script", [M3, SYMBOLIC, AUDIO])
def test_less_memory_trains_alike(script, run, make_config):
    plain, less = make_config(DROPOUT=0.0), make_config(DROPOUT=0.0, **LESS_MEMORY)
    assert run(script, plain) == 0
    assert run(script, less) == 0
    logs = [read_log(config, name_of(script)) for config in (plain, less)]
    for line, other in zip(*logs, strict=True):
        assert other["train_loss"] == pytest.approx(line["train_loss"], rel=1e-4)
        assert other["eval_loss"] == pytest.approx(line["eval_loss"], rel=1e-4)


def test_no_parts_are_refused(run, make_config, capsys):
    assert run(SYMBOLIC, make_config(CLAMP3_ACCUMULATION=0)) == 1
    assert "accumulation must be at least 1, not 0" in capsys.readouterr().err


LAUNCHERS = {
    "torchrun": ["-m", "torch.distributed.run"],
    "launch": ["-W", "ignore", "-m", "torch.distributed.launch", "--use_env"],
}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "launcher", "batch", "memory"),
    [
        (M3, "launch", "M3_BATCH_SIZE", {}),
        (SYMBOLIC, "torchrun", "CLAMP3_BATCH_SIZE", {}),
        (SYMBOLIC, "torchrun", "CLAMP3_BATCH_SIZE", LESS_MEMORY),
    ],
)
def test_two_processes_equal_one(script, launcher, batch, memory, run, make_config):
    options = {"DROPOUT": 0.0, "MASK_SAME_TEXT": True, "LEARNED_TEMPERATURE": True, "PAIR_WEIGHT": 0.5}
    alone = make_config(**options, **{batch: 6})
    together = make_config(**options, **memory, **{batch: 3})
    assert run(script, alone) == 0
    command = [sys.executable, *LAUNCHERS[launcher], "--nproc_per_node=2", "--master_port", str(free_port())]
    command += [CODE / f"{script}.py", "--config", together]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "training" not in done.stderr  # where a warning of ours would name its file
    states = [weights(config, f"{name_of(script)}_latest") for config in (alone, together)]
    assert states[1]["min_eval_loss"] == pytest.approx(states[0]["min_eval_loss"], rel=1e-4)
    logs = [read_log(config, name_of(script)) for config in (alone, together)]
    for line, other in zip(*logs, strict=True):
        for times in ("seconds", "waiting"):
            del line[times], other[times]
        assert other == pytest.approx(line, rel=1e-4)
    for name, value in states[0]["model"].items():
        if not name.endswith("key.bias"):  # its gradient is nothing but rounding, which Adam makes steps of
            torch.testing.assert_close(value, states[1]["model"][name], atol=2e-4, rtol=1e-3, msg=name)


def test_files_after_training(run, make_config):
    config = make_config(M3_NUM_EPOCH=5, CLAMP3_LOAD_M3=True)
    assert run(M3, config) == 0
    assert run(SYMBOLIC, config) == 0
    out = config.parent / "out"
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["m3.pth", "m3_2.pth", "m3_4.pth", "m3_latest.pth", "m3.txt"]
        + ["clamp3.pth", "clamp3_2.pth", "clamp3_latest.pth", "clamp3.txt"]
    )
    best = weights(config, "m3")
    lines = read_log(config, "m3")
    assert best["best_epoch"] == best["epoch"] == 1 + np.argmin([line["eval_loss"] for line in lines])
    assert {"model", "optimizer", "lr_sched", "epoch", "best_epoch", "min_eval_loss"} <= best.keys()
    assert weights(config, "clamp3")["modality"] == "symbolic"
    assert {"eval_loss", "eval_mrr", "eval_hit@1", "eval_hit@10"} <= read_log(config)[0].keys()
    geometry = make_geometry(load_settings(config, config=CODE / "config.py"))
    load_clamp3(out / "clamp3.pth", weights_folder=out, geometry=geometry)
    load_m3(out / "m3.pth", weights_folder=out, geometry=geometry)


def test_the_epoch_with_the_highest_mrr_is_kept(run, make_config):
    config = make_config(CLAMP3_NUM_EPOCH=5, CLAMP3_BEST_BY="mrr")
    assert run(SYMBOLIC, config) == 0
    lines = read_log(config)
    best = weights(config, "clamp3")
    assert best["best_epoch"] == best["epoch"] == 1 + np.argmax([line["eval_mrr"] for line in lines])
    assert best["max_eval_mrr"] == pytest.approx(lines[best["epoch"] - 1]["eval_mrr"], rel=1e-4)


@pytest.mark.parametrize("script", [M3, SYMBOLIC, AUDIO])
def test_half_precision_trains_and_evaluates_alike(script, run, make_config):
    """As on CUDA: everything runs under autocast, and the weights stay float32."""
    losses = []
    for precision in ("float32", "bf16", "fp16"):
        # At this learning rate it makes no difference whether a step of fp16 overflows, and is left out.
        config = make_config(PRECISION=precision, M3_LEARNING_RATE=1e-4, CLAMP3_LEARNING_RATE=1e-4)
        assert run(script, config) == 0
        losses.append(weights(config, f"{name_of(script)}_latest")["min_eval_loss"])
        state = weights(config, f"{name_of(script)}_latest")["model"]
        assert {value.dtype for value in state.values() if value.is_floating_point()} == {torch.float32}
    assert len(set(losses)) == 3
    assert losses == pytest.approx([losses[0]] * 3, rel=0.02)


def test_less_data_than_a_batch(run, make_config):
    config = make_config(CLAMP3_BATCH_SIZE=256, M3_BATCH_SIZE=256, CLAMP3_EVAL_JSONL="pieces.jsonl")
    lines = (config.parent / "pieces.jsonl").read_text().splitlines()
    (config.parent / "pieces.jsonl").write_text(lines[0] + "\n")
    assert run(SYMBOLIC, config) == 0
    assert run(M3, config) == 0


def test_first_loss_is_that_of_chance(run, make_config):
    config = make_config(
        CLAMP3_NUM_EPOCH=1,
        CLAMP3_LEARNING_RATE=0.0,
        LEARNED_TEMPERATURE=True,
        CLAMP3_EVAL_JSONL="pieces.jsonl",
    )
    assert run(SYMBOLIC, config) == 0
    line = read_log(config)[0]
    assert 0.5 * math.log(4) < line["eval_loss"] < 3 * math.log(4)
    assert line["eval_hit@10"] >= 10 / 12 - 0.3


def test_tensors_are_moved_wherever_they_stand():
    batch = {"a": torch.ones(2), "music": [(torch.ones(1), torch.ones(1))]}
    moved = to_device(batch, torch.device("meta"))
    assert moved["a"].device.type == "meta"
    assert [tensor.device.type for tensor in moved["music"][0]] == ["meta", "meta"]

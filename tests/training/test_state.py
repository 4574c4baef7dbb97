import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_helpers import AUDIO, M3, SYMBOLIC, assert_same_model, weights

from clamplib.models.checkpoints import save_checkpoint
from clamplib.training.state import Progress, TrainingRecipe, TrainingState, learning_rate_factor, start_curves


def recipe(**changes):
    return TrainingRecipe(weights_path=Path("w.pth"), logs_path=Path("l.txt"), epochs=1, learning_rate=1.0, **changes)


def test_a_recipe_resumes_from_the_latest_state_or_else_the_best(tmp_path):
    own = replace(recipe(), weights_path=tmp_path / "w.pth")
    assert own.checkpoint() is None
    (tmp_path / "w.pth").touch()
    assert own.checkpoint() == tmp_path / "w.pth"
    (tmp_path / "w_latest.pth").touch()
    assert own.checkpoint() == tmp_path / "w_latest.pth"
    assert replace(own, load_checkpoint=False).checkpoint() is None


def test_a_saved_state_is_resumed(tmp_path):
    own = replace(recipe(), weights_path=tmp_path / "w.pth")
    state, other = (TrainingState(torch.nn.Linear(2, 1), own, 10, torch.device("cpu")) for _ in range(2))
    state.step(state.model(torch.ones(1, 2)).sum())
    state.progress = Progress(epoch=3, best_epoch=2, min_eval_loss=0.5, max_eval_mrr=0.25, step=1, loss_sum=0.25)
    state.save(own.latest_path)
    other.resume()
    assert other.progress == state.progress
    assert torch.equal(other.model.weight, state.model.weight)
    assert other.scheduler.state_dict() == state.scheduler.state_dict()


def test_scaled_gradients_that_overflow_take_no_step():
    """What fp16 does on CUDA: neither optimizer nor schedule moves, the scale shrinks."""
    model = torch.nn.Linear(2, 1)
    state = TrainingState(model, recipe(warmup_steps=0, gradient_clip=1.0), 10, torch.device("cpu"))
    state.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    before = model.weight.detach().clone()
    state.step(model(torch.full((1, 2), 1e38)).sum() * 10)
    assert torch.equal(model.weight, before)
    assert state.scheduler.last_epoch == 0
    assert state.scaler.get_scale() == 512
    state.step(model(torch.ones(1, 2)).sum())
    assert not torch.equal(model.weight, before)
    assert state.scheduler.last_epoch == 1


def test_schedules():
    constant = learning_rate_factor(recipe(warmup_steps=4), 100)
    assert [constant(step) for step in (0, 1, 4, 99, 1000)] == [0, 0.25, 1, 1, 1]
    cosine = learning_rate_factor(recipe(warmup_steps=20, schedule="cosine"), 100)
    assert [cosine(step) for step in (10, 20, 60, 100, 101)] == pytest.approx([0.5, 1, 0.5, 0, 0])


def test_the_best_epoch_is_that_of_the_lowest_loss_or_the_highest_mrr():
    evaluations = [(2.0, 0.1), (1.0, 0.2), (1.5, 0.3), (1.6, 0.3)]
    for best_by, expected in (("loss", [True, True, False, False]), ("mrr", [True, True, True, False])):
        state = TrainingState(torch.nn.Linear(2, 1), recipe(best_by=best_by), 10, torch.device("cpu"))
        found = [
            state.finish_epoch({"epoch": epoch, "eval_loss": loss, "eval_mrr": mrr})
            for epoch, (loss, mrr) in enumerate(evaluations, 1)
        ]
        assert found == expected
        assert state.progress.best_epoch == sum(expected)
        assert (state.progress.min_eval_loss, state.progress.max_eval_mrr) == evaluations[sum(expected) - 1]


@pytest.mark.parametrize("wrong", [{"schedule": "linear"}, {"precision": "fp8"}, {"best_by": "acc"}])
def test_unknown_words_in_a_recipe(wrong):
    with pytest.raises(ValueError, match="must be one of"):
        recipe(**wrong)


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
    assert after["lr_sched"]["last_epoch"] == 2 * steps
    assert after["epoch"] == 2
    assert all(entry["step"] == 2 * steps for entry in after["optimizer"]["state"].values())


def test_weights_alone_cannot_be_resumed(run, make_config, capsys):
    config = make_config(M3_NUM_EPOCH=1)
    assert run(M3, config) == 0
    out = config.parent / "out"
    (out / "m3_latest.pth").unlink()
    save_checkpoint(out / "m3.pth", {"model": weights(config, "m3")["model"]})
    assert run(M3, config) == 1
    assert "m3.pth: expected a checkpoint to go on from" in capsys.readouterr().err


def test_weights_of_another_geometry_are_refused(run, make_config, capsys):
    config = make_config(M3_NUM_EPOCH=1)
    assert run(M3, config) == 0
    assert run(M3, config, "--epochs", "2") == 0
    config.write_text(config.read_text() + "M3_HIDDEN_SIZE = 128\n")
    assert run(M3, config, "--epochs", "3") == 1
    assert "m3_latest.pth: these weights are of another geometry" in capsys.readouterr().err


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


def test_another_modality_gives_weights_only(run, make_config, capsys):
    config = make_config(CLAMP3_NUM_EPOCH=1, CLAMP3_LEARNING_RATE=0.0)
    assert run(SYMBOLIC, config) == 0
    before = {name: value.clone() for name, value in weights(config, "clamp3_latest")["model"].items()}
    assert run(AUDIO, config) == 0
    assert "a new stage begins, its modality differing" in capsys.readouterr().out
    after = weights(config, "clamp3_latest")
    assert (after["modality"], after["epoch"]) == ("audio", 1)
    assert_same_model({"model": before}, after)


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
    assert len(positions) == length
    assert torch.equal(positions[:kept], before.pop(name)[:kept])
    assert_same_model({"model": before}, after)


def test_cosine_and_clipping_in_a_training(run, make_config):
    config = make_config(SCHEDULE="cosine", GRADIENT_CLIP=0.5)
    assert run(M3, config) == 0
    assert weights(config)["lr_sched"]["_last_lr"][0] == pytest.approx(0, abs=1e-12)


def test_no_curves_without_a_key(monkeypatch, caplog):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert start_curves(project="p", name="n", settings={}, wanted=False) is None
    assert not caplog.records
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

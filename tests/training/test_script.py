"""The scripts at tiny sizes: what each stage begins with, trains and leaves, and what is said of bad data."""

import json

import numpy as np
import pytest
import torch
from training_helpers import AUDIO, M3, SYMBOLIC, read_log, weights

from clamplib.models.variants import load_clamp3, load_m3
from clamplib.training.state import TrainingState


def test_exported_weights_are_those_that_were_trained(run, call_script, make_config, capsys):
    config = make_config(M3_NUM_EPOCH=1, CLAMP3_NUM_EPOCH=1)
    folder = config.parent / "variant"
    assert call_script("export_clamp3", folder, "--config", config) == 1
    assert "clamp3.pth" in capsys.readouterr().err
    assert run(M3, config) == 0
    assert run(SYMBOLIC, config) == 0
    assert call_script("export_clamp3", folder, "--config", config) == 0
    for name, load in (("clamp3", load_clamp3), ("m3", load_m3)):
        trained = weights(config, name)["model"]
        for part, value in load(folder, weights_folder=folder).model.state_dict().items():
            torch.testing.assert_close(value, trained[part].half().float(), msg=part)


def test_symbolic_encoder_starts_from_m3(run, make_config):
    config = make_config(M3_NUM_EPOCH=1, CLAMP3_LOAD_M3=True, CLAMP3_LEARNING_RATE=0.0)
    assert run(M3, config) == 0
    assert run(SYMBOLIC, config) == 0
    m3, clamp3 = weights(config)["model"], weights(config, "clamp3_latest")["model"]
    for name, value in m3.items():
        part, _, rest = name.partition(".")
        if part == "encoder":
            assert torch.equal(value, clamp3[f"symbolic_model.{rest}"]), name


def test_missing_m3_says_what_to_do(run, make_config, capsys):
    assert run(SYMBOLIC, make_config(CLAMP3_LOAD_M3=True)) == 1
    error = capsys.readouterr().err
    assert "m3" in error
    assert "CLAMP3_LOAD_M3" in error


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
    state = weights(config, "clamp3_latest")["model"]
    moved = {name for name in state if not torch.equal(state[name], starts[name])}
    assert moved
    assert not {name for name in moved if name.startswith(frozen)}
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
    assert len(read_log(config)) == 4


def test_audio_beside_scores(run, make_config):
    """With PAIR_WEIGHT the recordings are drawn to the frozen scores too."""
    states = []
    for pair_weight in (0.0, 0.5):
        config = make_config(CLAMP3_NUM_EPOCH=1, FREEZE_TEXT=True, PAIR_WEIGHT=pair_weight)
        assert run(AUDIO, config) == 0
        states.append(weights(config, "clamp3_latest")["model"])
    differ = {name.partition("_")[0] for name in states[0] if not torch.equal(states[0][name], states[1][name])}
    assert differ == {"audio"}


def test_no_data_says_so(run, make_config, capsys):
    assert run(SYMBOLIC, make_config(CLAMP3_TRAIN_JSONL=None)) == 1
    assert "CLAMP3_TRAIN_JSONL is not set" in capsys.readouterr().err
    assert run(M3, make_config(M3_TRAIN_FOLDERS=[])) == 1
    assert "M3_TRAIN_FOLDERS is empty" in capsys.readouterr().err
    assert run(M3, make_config(M3_TRAIN_FOLDERS=["gone"])) == 1
    assert "gone" in capsys.readouterr().err


def test_bad_lines_are_counted_and_named(run, make_config, capsys):
    config = make_config(CLAMP3_NUM_EPOCH=1, NUM_WORKERS=2)
    with open(config.parent / "pieces.jsonl", "a") as lines:
        lines.write("\n{\n" + json.dumps({"id": "x", "filepaths": ["gone.abc"], "title": "x"}) + "\n")
        lines.write(json.dumps({"id": "y", "filepaths": ["music/p0.abc"], "title": "\ud800"}) + "\n" + "[" * 200_000)
    assert run(SYMBOLIC, config) == 0
    out = capsys.readouterr().out
    for words in ("4 problems, left out of the data", "line 25", "gone.abc", "line 27: expected Unicode", "line 28: "):
        assert words in out


def test_bad_audio_features_end_no_training(run, make_config, capsys):
    config = make_config()
    music = config.parent / "music"
    np.save(music / "p3.npy", np.ones((1, 5, 64), np.float32))
    features = np.load(music / "p4.npy")
    features[0, 1] = np.nan
    np.save(music / "p4.npy", features)
    assert run(AUDIO, config) == 0
    said = capsys.readouterr()
    assert "1 problems, left out of the data" in said.out
    assert "p3.npy: expected MERT features" in said.out
    assert "p4.npy: left out 1 of 6 frames" in said.out
    assert np.isfinite(read_log(config)[1]["eval_loss"])


def test_only_some_problems_are_named(run, make_config, capsys):
    config = make_config(CLAMP3_NUM_EPOCH=1)
    with open(config.parent / "pieces.jsonl", "a") as lines:
        lines.write("\n{" * 12)
    assert run(SYMBOLIC, config) == 0
    out = capsys.readouterr().out
    assert out.startswith("12 problems, left out of the data:\n  ")
    assert out.count("expected a JSON object") == 10
    assert "\n  and 2 more\n" in out


def test_unknown_settings_are_refused(run, make_config, capsys):
    assert run(M3, make_config(M3_EPOCHS=3)) == 1
    assert "config.py has no setting called M3_EPOCHS" in capsys.readouterr().err


def test_an_output_folder_that_takes_nothing_is_noticed_before_the_training(run, make_config, capsys):
    config = make_config()
    (config.parent / "out").rmdir()
    (config.parent / "out").write_text("a file")
    assert run(SYMBOLIC, config) == 1
    said = capsys.readouterr()
    assert "out: expected an output folder that can be written to" in said.err and "epoch" not in said.out

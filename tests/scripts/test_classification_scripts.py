"""The classification scripts: the golden inference, training from folders to files, zero-shot on real tunes."""

import json
import re
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from clamplib.embedding.encoding import encode_scores, encode_texts
from clamplib.models.variants import load_clamp3
from recipes.mini.convert import without_labels
from recipes.mini.corpus import corpus_pieces

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "classification"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The current folder: one with the golden features in train/, eval/ and infer/."""
    for name, vector in np.load(GOLDEN / "features.npz").items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, vector)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a script: returns (status, stdout, stderr)."""
    for folder in ("classification", "retrieval"):
        monkeypatch.syspath_prepend(ROOT / folder)

    def run(script, *args):
        status = __import__(script).main([str(arg) for arg in args])
        return status, *capsys.readouterr()

    return run


def write(root, vectors):
    for name, vector in vectors.items():
        path = Path(root, f"{name}.npy")
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.asarray(vector, np.float32))
    return root


def test_golden_inference(place, run):
    expected = json.loads((GOLDEN / "inference_out.json").read_text())
    info = json.loads((GOLDEN / "info.json").read_text())
    assert run("inference_cls", GOLDEN / "weights-train.pth", "infer", "new/out.json")[0] == 0
    assert json.loads(Path("new/out.json").read_text()) == expected
    status, out, err = run("inference_cls", GOLDEN / "weights-train.pth", "infer/", "out.json", "--probabilities")
    assert (status, err) == (0, "") and "12 features labeled" in out
    found = json.loads(Path("out.json").read_text())
    assert {path: each["label"] for path, each in found.items()} == expected
    for path, each in found.items():
        assert [each["probabilities"][label] for label in info["labels"]] == pytest.approx(
            info["infer_probs"][path], abs=1e-5
        )


@pytest.mark.parametrize("flags", [[], ["--balanced_training"], ["--eval_folder", "eval"]])
def test_from_training_to_labels(place, run, flags):
    pytest.importorskip("matplotlib")
    status, out, err = run("train_cls", "--train_folder", "train/", "--num_epochs", 30, *flags)
    assert (status, err) == (0, "")
    state = torch.load("weights-train.pth", weights_only=True)
    assert state["labels"] == {"folk": 0, "jazz": 1, "rock": 2} and state["input_size"] == 64
    assert f"Max Eval Accuracy : {state['max_eval_acc']}" in out and state["max_eval_acc"] == 1.0
    assert "Macro F1: 1.0000" in out and re.search(r"2 rock +\. +\. +\d", out)
    log = Path("logs-train.txt").read_text()
    assert len(re.findall(r"(?m)^Epoch \d+\n", log)) == state["epoch"] == 30
    assert [float(value) for value in re.findall(r"eval_acc: (.*)", log)] == [1.0] * 30
    assert Path("confusion-train.png").read_bytes().startswith(b"\x89PNG")
    assert run("inference_cls", "weights-train.pth", "infer", "out.json")[0] == 0
    assert json.loads(Path("out.json").read_text()) == json.loads((GOLDEN / "inference_out.json").read_text())


def test_a_second_run_replaces_the_first_and_says_so(place, run):
    command = ["train_cls", "--train_folder", "train", "--output_dir", "mine"]
    _, out, _ = run(*command, "--num_epochs", 3)
    assert "in place of" not in out
    status, out, _ = run(*command, "--num_epochs", 5)
    assert status == 0 and "mine/weights-train.pth' in place of those of an earlier run" in out
    assert torch.load("mine/weights-train.pth", weights_only=True)["epoch"] == 5
    assert Path("mine/logs-train.txt").read_text().count("Epoch") == 5


def test_a_run_that_fails_leaves_the_earlier_files(place, run):
    run("train_cls", "--train_folder", "train", "--num_epochs", 3)
    before = {path.name: path.read_bytes() for path in place.iterdir() if path.is_file()}
    status, _, err = run("train_cls", "--train_folder", "train", "--learning_rate", "inf")
    assert status == 1 and "lower the learning rate" in err
    assert {path.name: path.read_bytes() for path in place.iterdir() if path.is_file()} == before


def test_labels_of_a_table(place, run, caplog):
    rows = [f"{path},{'b' if 'rock' in path.name else 'a'}\n" for path in place.glob("train/**/*.npy")]
    Path("t.csv").write_text("path,label\n" + "".join(rows[:-1]))
    status, out, _ = run("train_cls", "--train_folder", "train", "--labels", "t.csv", "--num_epochs", 3)
    assert status == 0 and "2 labels" in out and "1 features have no label" in caplog.text
    assert list(torch.load("weights-train.pth", weights_only=True)["labels"]) == ["a", "b"]


def test_joined_labels_are_warned_of(tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    names = [f"{label}_{number}" for label in ("hip_hop", "hip_house", "jazz") for number in range(4)]
    write("genres", {name: rng.normal(size=4) for name in names})
    status, out, err = run("train_cls", "--train_folder", "genres", "--num_epochs", 2)
    assert status == 0 and "2 labels" in out
    assert "warning:" in err and "'hip' for hip_hop, hip_house" in err and "--labels" in err
    Path("t.jsonl").write_text("".join(json.dumps({"key": n, "label": n.rpartition("_")[0]}) + "\n" for n in names))
    status, out, err = run("train_cls", "--train_folder", "genres", "--num_epochs", 2, "--labels", "t.jsonl")
    assert (status, err) == (0, "") and "3 labels" in out


def test_bad_features_are_left_out_with_status_1(place, run):
    write("train", {"s1/rock_nan": [np.nan] * 64, "jazz_wide": np.ones((1, 65))})
    write("infer", {"s1/folk_temporal": np.ones((1, 3, 64))})
    for flags in ([], ["--eval_folder", "eval"]):
        status, out, err = run("train_cls", "--train_folder", "train", "--num_epochs", 3, *flags)
        assert status == 1 and "Weights saved" in out
        assert "left out: train/s1/rock_nan.npy: expected finite" in err
        assert "left out: train/jazz_wide.npy: expected 64 values" in err
    status, _, err = run("inference_cls", "weights-train.pth", "infer", "out.json")
    assert status == 1 and "infer/s1/folk_temporal.npy: expected one vector" in err
    assert json.loads(Path("out.json").read_text()) == json.loads((GOLDEN / "inference_out.json").read_text())


def test_bad_input_is_an_error_and_status_1(place, run):
    write("one", {f"jig_{n}": [n, 1] for n in range(5)})
    write("singles", {f"{n}": [1, n] for n in range(5)})
    write("strange", {"polka_1": np.ones(64)})
    train = ["train_cls", "--num_epochs", 2, "--train_folder"]
    for command, message in (
        ([*train, "absent"], "absent: expected an input folder"),
        ([*train, "one"], "at least two labels to tell apart"),
        ([*train, "singles"], "a label with two pieces"),
        ([*train, "train", "--eval_folder", "one"], "one: expected 64 values per vector"),
        ([*train, "train", "--eval_folder", "strange"], "no feature to train on is labeled 'polka'"),
        ([*train, "train", "--eval_split", "1"], "a share between 0 and 1"),
        ([*train, "train", "--labels", "absent.csv"], "absent.csv"),
        (["inference_cls", "absent.pth", "infer", "o.json"], "absent.pth"),
        (["inference_cls", GOLDEN / "features.npz", "infer", "o.json"], "expected a checkpoint"),
        (["inference_cls", GOLDEN / "weights-train.pth", "one", "o.json"], "one: expected 64 values"),
        (["zero_shot", "infer", "absent"], "absent"),
    ):
        status, _, err = run(*command)
        assert status == 1 and message in err, command
    assert not list(place.glob("*.pth")) and not Path("o.json").exists()


def test_features_of_two_spaces_are_refused(place, run):
    for folder, digest in (("train", "ab"), ("eval", "cd")):
        Path(folder, "space.json").write_text(json.dumps({"kind": "clamp3 global", "weights_sha256": digest}))
    command = ["train_cls", "--train_folder", "train", "--num_epochs", 2]
    status, _, err = run(*command, "--eval_folder", "eval")
    assert status == 1 and "two embedding spaces" in err
    assert run(*command)[0] == 0
    status, _, err = run("inference_cls", "weights-train.pth", "eval", "out.json")
    assert status == 1 and "two embedding spaces" in err and not Path("out.json").exists()


def test_without_matplotlib_only_the_picture_is_missing(place, run, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    status, out, _ = run("train_cls", "--train_folder", "train", "--num_epochs", 2)
    assert status == 0 and "No picture" in out and "pip install matplotlib" in out
    assert Path("weights-train.pth").exists()


def test_wandb_without_a_key_only_warns(place, run, monkeypatch, caplog):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert run("train_cls", "--train_folder", "train", "--num_epochs", 2, "--wandb_log")[0] == 0
    assert "no curves on wandb" in caplog.text


def test_zero_shot_on_real_tunes(tmp_path, run, monkeypatch):
    """Jigs and reels, told apart by two sentences each, and found by semantic_search against the prototypes."""
    monkeypatch.chdir(tmp_path)
    tunes: dict[str, list[str]] = {"jig": [], "reel": []}
    for piece in islice(corpus_pieces(), 1600):
        if piece.facts.kind in tunes:
            tunes[piece.facts.kind].append(without_labels(piece.abc))
    loaded = load_clamp3("mini", weights_folder=".")
    names = [f"{kind}_{number:02}" for kind in tunes for number in range(20)]
    music = encode_scores(loaded, [tune for found in tunes.values() for tune in found[:20]])
    write("music", dict(zip(names, music, strict=True)))
    prompts = {"jig.1": "a jig", "jig.2": "a lively Irish jig", "reel.1": "a reel", "reel.2": "a fast Irish reel"}
    write("words", dict(zip(prompts, encode_texts(loaded, list(prompts.values())), strict=True)))

    flags = ["--labels", "names", "--output", "labels.json", "--prototypes", "prototypes"]
    status, out, err = run("zero_shot", "music", "words", *flags)
    assert (status, err) == (0, "") and "40 features, 2 classes, 4 prompts" in out
    accuracy = float(re.search(r"Accuracy: (\S+) of 40", out)[1])
    labels = json.loads(Path("labels.json").read_text())
    assert accuracy == np.mean([Path(path).name.startswith(label) for path, label in labels.items()])
    assert accuracy >= 0.8 and re.search(r"1 reel +\S+ +\d+", out)

    _, out, _ = run("zero_shot", "music", "words")
    assert all(line.split()[1] in tunes for line in out.splitlines()[1:])
    _, out, _ = run("semantic_search", "music/jig_03.npy", "prototypes", "--top_k", "1")
    assert out.splitlines()[1].split()[0] == labels["music/jig_03.npy"]


def test_zero_shot_draws_and_counts_what_it_leaves_out(tmp_path, run, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    write("music", {"a_1": [1, 0], "b_1": [0, 1], "c_1": [1, 1], "bad_1": [np.nan, 1]})
    write("words", {"a": [1, 0], "b": [0, 1]})
    status, out, err = run("zero_shot", "music", "words", "--labels", "names", "--plot", "c.png")
    assert status == 1 and "bad_1.npy: expected finite" in err
    assert "1 features have no true label, or one that is no class" in out and "Accuracy: 1.0000 of 2" in out
    assert Path("c.png").exists()
    with pytest.raises(SystemExit, match="2"):
        run("zero_shot", "music", "words", "--plot", "c.png")


@pytest.mark.parametrize("script", ["train_cls", "inference_cls", "zero_shot"])
def test_scripts_start_from_any_folder(script, tmp_path):
    command = [sys.executable, ROOT / "classification" / f"{script}.py", "--help"]
    printed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert "example:" in printed

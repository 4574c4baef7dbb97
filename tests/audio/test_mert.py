"""MERT: golden features, every layout of its weights, and the script that extracts its features."""

import importlib.util
import json
import os
import pickle
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file
from sound import sine, write
from transformers import HubertConfig, HubertModel

from clamplib.audio import mert as mert_module
from clamplib.audio import recordings
from clamplib.audio.mert import load_mert
from clamplib.audio.recordings import encode_recordings, encode_windows
from clamplib.embedding.folders import write_features
from clamplib.files import InputError

SCRIPT = Path(__file__).parents[2] / "preprocessing/audio/extract_mert.py"
TOLERANCE = {"atol": 2e-5, "rtol": 1e-4}  # the golden cases ask for 1e-4 and 1e-3, and that at 24 kHz
NAMES = ("exact_1s", "mono_22k05_1s7", "saw_44k1_stereo_1s3", "silence_1s2", "sine_24k_5s3")


@pytest.fixture(scope="session")
def mert(mert_weights):
    return load_mert(mert_weights)


@pytest.fixture
def own(mert_weights, tmp_path):
    """A copy of the folder, to be changed."""
    return Path(shutil.copytree(mert_weights, tmp_path / "own"))


def load_state(folder):
    return torch.load(folder / "pytorch_model.bin", weights_only=True)


def script():
    spec = importlib.util.spec_from_file_location("extract_mert", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(capsys):
    """The script in this process: (status, stdout, stderr)."""

    def run(*args):
        status = script().main([str(arg) for arg in args])
        return status, *capsys.readouterr()

    return run


def last_line(out):
    return out.splitlines()[-1]


def test_golden(run, golden, mert_weights, tmp_path):
    """All rates, since the resampler is the reference's."""
    expected = np.load(golden / "mert/expected.npz")
    for kind, options in (("all", ()), ("mean", ("--mean_features",))):
        status, out, _ = run(golden / "mert/wav", tmp_path / kind, "--model_path", mert_weights, *options)
        assert status == 0
        assert last_line(out) == "6 done, 0 skipped, 0 failed"
        for name in NAMES:
            found = np.load(tmp_path / kind / f"{name}.npy")
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, expected[f"nocqt/{kind}/{name}"], **TOLERANCE, err_msg=name)
        short = np.load(tmp_path / kind / "short_0s5.npy")  # the reference gave none
        assert short.shape == (3 if kind == "all" else 1, 1, 64)
        assert np.isfinite(short).all()


def test_every_layout_of_the_weights(own, mert):
    sound = np.random.default_rng(0).standard_normal((2, 24_000)).astype(np.float32)
    expected = mert.encode(sound)
    state = load_state(own)
    (own / "pytorch_model.bin").unlink()
    new = {name.replace("weight_g", "parametrizations.weight.original0") for name in state}
    assert len(new - set(state)) == 1
    save_file({name: value.contiguous() for name, value in state.items()}, own / "model.safetensors")
    np.testing.assert_array_equal(load_mert(own).encode(sound), expected)
    save_file({name: value.contiguous() for name, value in mert.model.state_dict().items()}, own / "model.safetensors")
    np.testing.assert_array_equal(load_mert(own).encode(sound), expected)
    (own / "model.safetensors").unlink()
    torch.save(state, own / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    np.testing.assert_array_equal(load_mert(own).encode(sound), expected)
    torch.save({name: value.half() for name, value in state.items()}, own / "pytorch_model.bin")
    np.testing.assert_allclose(load_mert(own).encode(sound), expected, atol=0.02)


def test_every_weight_is_accounted_for(own):
    state = load_state(own)
    for name in ("encoder.layer_norm.bias", "encoder.pos_conv_embed.conv.weight_g", "masked_spec_embed"):
        torch.save({key: value for key, value in state.items() if key != name}, own / "pytorch_model.bin")
        with pytest.raises(InputError, match="got none"):
            load_mert(own)
    torch.save({**state, "encoder.cqt.weight": torch.ones(2)}, own / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"encoder.cqt.weight: expected none, got \[2\]"):
        load_mert(own)
    torch.save({**state, "encoder.layer_norm.bias": torch.ones(2)}, own / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"encoder.layer_norm.bias: expected \[64\], got \[2\]"):
        load_mert(own)


@pytest.mark.parametrize("variant, switch", [("cqt", "feature_extractor_cqt"), ("deepnorm", "deepnorm")])
def test_models_that_need_more_are_refused(own, golden, variant, switch):
    shutil.copy(golden / f"tiny/mert/{variant}/config.json", own)
    with pytest.raises(InputError, match=f"config.json: this model needs .*{switch}: True"):
        load_mert(own)


def test_relaxed_attention_is_refused(own):
    config = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps({**config, "attention_relax": 32.0}))
    with pytest.raises(InputError, match="attention_relax: 32.0"):
        load_mert(own)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 10**6}, "num_hidden_layers must be at most 1000"),
        ({"conv_dim": [8] * 20_000}, "conv_dim must have at most 10000 entries"),
        ({"hidden_size": "64"}, "'hidden_size' expected int"),
        ({"hidden_act": "magic"}, "magic"),
        ({"sample_rate": 10**12}, "sample_rate must be a whole number from 1 to 384000, not 1000000000000"),
        ({"sample_rate": "24000"}, "sample_rate must be a whole number"),
        ({"conv_stride": [0, 2]}, "conv_stride must be whole numbers above 0"),
    ],
)
def test_sizes_of_no_model_are_refused(own, changes, message):
    config = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(InputError, match=rf"config\.json: expected the sizes of a MERT model \(.*{message}"):
        load_mert(own)


def test_sizes_are_compared_with_the_weights_before_memory_is_taken(own):
    config = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps({**config, "intermediate_size": 10**12}))
    with pytest.raises(InputError, match=r"pytorch_model\.bin: .*another geometry"):
        load_mert(own)


def test_code_is_not_run(own, monkeypatch):
    monkeypatch.setattr("builtins.input", None)
    (own / "modeling_mert.py").write_text("raise SystemExit('this code was run')")
    config = json.loads((own / "config.json").read_text())
    code = {"AutoConfig": "modeling_mert.MERTConfig", "AutoModel": "modeling_mert.MERTModel"}  # as published
    (own / "config.json").write_text(json.dumps({**config, "auto_map": code}))
    load_mert(own)


class Malice:
    def __reduce__(self):
        return os.mkdir, ("malice",)


def test_damaged_weights_are_named(own, monkeypatch):
    monkeypatch.chdir(own)
    path = own / "pytorch_model.bin"
    whole = path.read_bytes()
    for content in (b"", b"words", whole[:1000], whole[:-1000], pickle.dumps(Malice(), 2)):
        path.write_bytes(content)
        with pytest.raises(
            InputError, match=f"pytorch_model.bin: expected a checkpoint or weights, got {len(content):,} bytes"
        ):
            load_mert(own)
    for content in ([1, 2], {"weight": {}}):
        torch.save(content, path)
        with pytest.raises(InputError, match="pytorch_model.bin: expected weights, a dict of tensors, got another"):
            load_mert(own)
    assert not Path("malice").exists()
    (own / "model.safetensors").write_bytes(b"words")
    with pytest.raises(InputError, match="model.safetensors: expected a checkpoint or weights, got 5 bytes"):
        load_mert(own)
    for content in ("words", "[]", "[" * 200_000):
        (own / "config.json").write_text(content)
        with pytest.raises(InputError, match="config.json: expected the JSON of a MERT model"):
            load_mert(own)
    (own / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="expected config.json and model.safetensors or pytorch_model.bin"):
        load_mert(own)


def test_the_hub_is_asked_for_the_very_files(mert_weights, monkeypatch, mert):
    asked = []

    def download(repo, name, revision):
        asked.append((repo, name))
        if not (mert_weights / name).is_file():
            raise LocalEntryNotFoundError("no such entry")
        return str(mert_weights / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert load_mert().space["weights_sha256"] == mert.space["weights_sha256"]
    assert asked == [("m-a-p/MERT-v1-95M", name) for name in ("config.json", "model.safetensors", "pytorch_model.bin")]


def test_what_cannot_be_fetched_is_named(run, golden, tmp_path, monkeypatch):
    def refuse(repo, name, revision):
        raise LocalEntryNotFoundError("outgoing traffic has been disabled")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    status, _, err = run(golden / "mert/wav", tmp_path / "out")
    assert status == 1 and not (tmp_path / "out").exists()
    for part in ("m-a-p/MERT-v1-95M", "config.json", "pytorch_model.bin", "380 MB", "CC-BY-NC-4.0", "--model_path"):
        assert part in err
    monkeypatch.undo()
    status, _, err = run(golden / "mert/wav", tmp_path / "out", "--model_path", tmp_path / "absent")
    assert status == 1 and f"{tmp_path}/absent is not a folder" in err


def test_equal_windows_are_encoded_together():
    sizes = [5, 5, 2, 5, 3, 5, 2, 5]
    windows = [np.full(size, number, np.float32) for number, size in enumerate(sizes)]
    batches = []

    def encode(batch):
        batches.append(batch.shape)
        return batch[:, :1, None]

    assert [feature.item() for feature in encode_windows(windows, encode, 3)] == list(range(8))
    assert sorted(batches) == [(1, 3), (2, 2), (2, 5), (3, 5)]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_processes_and_chunks_change_nothing(mert, tmp_path, workers, monkeypatch):
    """Recordings of many lengths, of several pieces and chunks, in any batches, give what each gives alone."""
    monkeypatch.setattr(recordings, "PART_WINDOWS", 2)
    monkeypatch.setattr(recordings, "CHUNK_BATCHES", 2)
    folder, expected = tmp_path / "in", {}
    folder.mkdir()
    for seconds in (3, 7.5, 11, 11, 26):
        name = f"{len(expected)}.wav"
        sound = np.random.default_rng(len(expected)).uniform(-1, 1, (1, round(seconds * 24_000)))
        write(folder / name, sound.astype(np.float32), 24_000, "pcm_s16le")
        features = [mert.encode(window[None])[0] for window in mert.read(folder / name)]
        expected[name.replace("wav", "npy")] = np.stack(features, 1)
    (folder / "bad.wav").write_text("words")
    files = sorted(folder.iterdir())
    out = tmp_path / "out"
    encode = partial(encode_recordings, read=mert.read, encode=mert.encode, batch_size=3, workers=workers)
    report = write_features(encode, files, folder, out, mert.space)
    assert (report.done, len(report.failures)) == (5, 1)
    for name, feature in expected.items():
        np.testing.assert_allclose(np.load(out / name), feature, atol=1e-5)


def test_resume(run, golden, mert_weights, tmp_path):
    folder, out = Path(shutil.copytree(golden / "mert/wav", tmp_path / "in")), tmp_path / "out"
    options = ("--model_path", mert_weights, "--mean_features")
    assert last_line(run(folder, out, *options)[1]) == "6 done, 0 skipped, 0 failed"
    assert last_line(run(folder, out, *options)[1]) == "0 done, 6 skipped, 0 failed"
    os.utime(folder / "exact_1s.wav")
    assert last_line(run(folder, out, *options)[1]) == "0 done, 6 skipped, 0 failed"  # the content decides
    with (folder / "exact_1s.wav").open("ab") as file:
        file.write(b"more")
    (out / "short_0s5.npy").unlink()
    assert last_line(run(folder, out, *options)[1]) == "2 done, 4 skipped, 0 failed"
    status, _, err = run(folder, out, "--model_path", mert_weights)  # all hidden states beside their means
    assert status == 1 and "kind differ" in err


def test_every_input_gets_a_feature_or_a_reason(run, mert_weights, tmp_path):
    folder = tmp_path / "in"
    (folder / "a b").mkdir(parents=True)
    tone = sine(1.5, 44_100, 440, 550)
    write(folder / "a b/LOUD.MP3", tone, 44_100, "libmp3lame", "mp3")
    write(folder / "a b/LOUD.Flac", tone, 44_100, "flac", "flac")
    write(folder / "film.mp4", tone, 44_100, "aac", film=True)
    write(folder / "wav.mp3", tone, 44_100, "pcm_u8", "wav")
    write(folder / "30 ms.wav", tone[:, :1323], 44_100, "pcm_s24le")
    write(folder / "silence.wav", tone * 0, 44_100, "pcm_f32le")
    cut = write(folder / "cut.mp3", np.tile(tone, 5), 44_100, "libmp3lame")
    cut.write_bytes(cut.read_bytes()[:30_000])
    write(folder / "10 ms.wav", tone[:, :441], 44_100, "pcm_s16le")
    tone[:, 99] = np.nan
    write(folder / "nan.wav", tone, 44_100, "pcm_f32le")
    (folder / "words.wav").write_text("words\n" * 99)
    (folder / "empty.ogg").touch()
    out = tmp_path / "out"
    status, text, _ = run(folder, out, "--model_path", mert_weights)
    assert status == 1 and last_line(text).startswith("7 done, 0 skipped, 4 failed")
    found = {path.relative_to(out).as_posix(): np.load(path) for path in out.rglob("*.npy")}
    names = ("30 ms", "a b/LOUD.Flac", "a b/LOUD.MP3", "cut", "film", "silence", "wav")
    assert sorted(found) == [f"{name}.npy" for name in names]
    assert all(np.isfinite(feature).all() and feature.shape == (3, 1, 64) for feature in found.values())
    failures = [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]
    reasons = ("expected 17 ms of sound or more, got 10", "cannot be decoded", "got NaN", "cannot be decoded")
    for failure, name, reason in zip(
        failures, ("10 ms.wav", "empty.ogg", "nan.wav", "words.wav"), reasons, strict=True
    ):
        assert failure["file"] == str(folder / name) and failure["error"].startswith(f"{folder / name}: ")
        assert reason in failure["error"]


def test_arguments(run, tmp_path, mert_weights, capsys):
    with pytest.raises(SystemExit, match="0"):
        run("--help")
    assert "accelerate launch extract_mert.py recordings features/mert --mean_features" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        run(tmp_path, tmp_path / "out", "--batch_size", "0")
    status, _, err = run(tmp_path / "absent", tmp_path / "out", "--model_path", mert_weights)
    assert status == 1 and "absent" in err
    status, _, err = run(tmp_path, tmp_path / "out", "--model_path", mert_weights)
    assert status == 1 and ".wav .mp3 .flac" in err


def test_a_model_that_gives_nan_is_a_failure(mert, golden, tmp_path):
    files = [golden / "mert/wav/exact_1s.wav"]
    silent = partial(encode_recordings, read=mert.read, encode=lambda _: np.full((1, 3, 64), np.nan), workers=0)
    report = write_features(silent, files, golden / "mert/wav", tmp_path, mert.space)
    assert report.done == 0 and "NaN" in report.failures[0]["error"]
    assert not list(tmp_path.glob("*.npy"))


def test_the_published_size():
    """Thirteen states of width 768 from HubertModel's own defaults, which are MERT-v1-95M's."""
    with torch.device("meta"):
        model = HubertModel(HubertConfig()).eval()
        states = model(torch.empty(2, 120_000), output_hidden_states=True).hidden_states
    assert [tuple(state.shape) for state in states] == [(2, 374, 768)] * 13
    mert = mert_module.Mert(model, 24_000, {})
    assert mert.shortest == 400 and pickle.loads(pickle.dumps(mert.read)).keywords["rate"] == 24_000


@pytest.mark.slow
def test_two_processes_by_accelerate_launch(golden, mert_weights, tmp_path):
    folder = Path(shutil.copytree(golden / "mert/wav", tmp_path / "in"))
    for name in ("bad", "worse"):  # one for each process
        (folder / f"{name}.wav").write_bytes(b"words")
    command = [Path(sys.executable).with_name("accelerate"), "launch", "--num_machines", "1"]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no", "--num_processes", "2", "--multi_gpu"]
    command += ["--main_process_port", "0", SCRIPT, "in", "out", "--model_path", mert_weights]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(map(str, command), cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 1
    assert len(ended.stdout.splitlines()) == 1, ended.stderr
    assert ended.stdout.startswith("6 done, 0 skipped, 2 failed")
    lines = (tmp_path / "out/failures.jsonl").read_text().splitlines()
    assert [Path(json.loads(line)["file"]).name for line in lines] == ["bad.wav", "worse.wav"]
    expected = np.load(golden / "mert/expected.npz")
    for name in NAMES:
        np.testing.assert_allclose(np.load(tmp_path / f"out/{name}.npy"), expected[f"nocqt/all/{name}"], **TOLERANCE)

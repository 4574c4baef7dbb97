"""MERT as programs outside call it: the script from a shell, and its modules by import."""

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from sound import sine, write

from clamplib.audio import Waveform
from clamplib.audio.decoding import samples
from clamplib.files import InputError

FOLDER = Path(__file__).parents[2] / "preprocessing/audio"
MODULES = ("extract_mert", "hf_pretrains", "MERT_utils")
NAMES = ("exact_1s", "mono_22k05_1s7", "saw_44k1_stereo_1s3", "silence_1s2", "sine_24k_5s3")
TOLERANCE = {"atol": 1e-4, "rtol": 1e-3}
RATE = 24_000


@pytest.fixture(scope="module")
def expected(golden):
    return np.load(golden / "mert/expected.npz")


@pytest.fixture(scope="module")
def outside():
    """The modules by name, imported as from a program that has their folder on its path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        yield {name: import_module(name) for name in MODULES}
    for name in MODULES:
        del sys.modules[name]


@pytest.fixture(scope="module")
def extractor(outside, mert_weights):
    make = outside["hf_pretrains"].HuBERTFeature
    return make(str(mert_weights), RATE, force_half=False, processor_normalize=True).to("cpu").eval()


@pytest.fixture(scope="module")
def load_audio(outside):
    return outside["MERT_utils"].load_audio


@pytest.fixture
def tone(tmp_path):
    """One second at 24 kHz, whose peak is 0.5."""
    return write(tmp_path / "tone.wav", sine(1.0, RATE, 440), RATE, "pcm_f32le")


def run(place, *words):
    """Runs the script in another folder with standard input closed."""
    command = [sys.executable, FOLDER / "extract_mert.py", *words]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "error"}
    return subprocess.run(
        map(str, command), cwd=place, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )


def test_paths_by_flag(golden, mert_weights, expected, tmp_path):
    (tmp_path / "in").symlink_to(golden / "mert/wav")
    (tmp_path / "weights").symlink_to(mert_weights)
    ended = run(tmp_path, *"--input_path in --output_path out --model_path weights --mean_features".split())
    assert (ended.returncode, ended.stdout) == (0, "6 done, 0 skipped, 0 failed\n"), ended.stderr
    for name in NAMES:
        np.testing.assert_allclose(np.load(tmp_path / f"out/{name}.npy"), expected[f"nocqt/mean/{name}"], **TOLERANCE)


def test_paths_by_place_for_one_file(golden, mert_weights, expected, tmp_path):
    ended = run(tmp_path, golden / "mert/wav/sine_24k_5s3.wav", "--model_path", mert_weights, "out")
    assert (ended.returncode, ended.stdout) == (0, "1 done, 0 skipped, 0 failed\n"), ended.stderr
    assert [path.name for path in sorted(tmp_path.rglob("*.npy"))] == ["sine_24k_5s3.npy"]
    found = np.load(tmp_path / "out/sine_24k_5s3.npy")
    np.testing.assert_allclose(found, expected["nocqt/all/sine_24k_5s3"], **TOLERANCE)


def test_a_recording_that_is_none(mert_weights, tmp_path):
    (tmp_path / "words.wav").write_text("words\n" * 99)
    ended = run(tmp_path, "--input_path=words.wav", "out", "--model_path", mert_weights)
    assert ended.returncode == 1 and ended.stdout.startswith("0 done, 0 skipped, 1 failed")
    assert "words.wav: expected a recording" in json.loads((tmp_path / "out/failures.jsonl").read_text())["error"]


@pytest.mark.parametrize(
    "words",
    ["in out", "--input_path in --output_path out", "in --output_path=out", "--input_path in out", "-- in out"],
)
def test_forms(outside, words):
    words = words.split()
    args = outside["extract_mert"].build_parser(words).parse_args(words)
    assert (args.input_path, args.output_path) == ("in", "out")


@pytest.mark.parametrize(
    "words, message",
    [
        ("", "required: input_path, output_path"),
        ("in", "required: output_path"),
        ("--input_path in", "required: output_path"),
        ("--output_path out --mean_features", "required: input_path"),
        ("--output_path out in --input_path", "--input_path: expected one argument"),
        ("in out --output_path other", "unrecognized arguments: out"),
        ("in out other", "unrecognized arguments: other"),
        ("--input_path in --input_path=other out", "--input_path: expected once, got 2 times"),
    ],
)
def test_usage_errors(outside, capsys, words, message):
    with pytest.raises(SystemExit, match="2"):
        outside["extract_mert"].main(words.split())
    printed = capsys.readouterr()
    assert message in printed.err and not printed.out


def test_help_shows_both_forms(outside, capsys):
    with pytest.raises(SystemExit, match="0"):
        outside["extract_mert"].main(["--help"])
    printed = capsys.readouterr().out
    assert "extract_mert.py recordings features/mert" in printed
    assert "extract_mert.py --input_path recordings --output_path features/mert" in printed


@pytest.mark.parametrize("absent", ["in", "weights"])
def test_a_folder_that_is_not_there(outside, golden, mert_weights, tmp_path, monkeypatch, capsys, absent):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folders = {"in": golden / "mert/wav", "weights": mert_weights, absent: tmp_path / absent}
    words = ["--input_path", folders["in"], "--output_path", tmp_path / "out", "--model_path", folders["weights"]]
    assert outside["extract_mert"].main([str(word) for word in words]) == 1
    assert f"error: {tmp_path / absent}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", NAMES)
def test_features_of_a_recording(outside, extractor, golden, expected, name):
    path = golden / f"mert/wav/{name}.wav"
    found = outside["extract_mert"].mert_infr_features(extractor, str(path), torch.device("cpu"))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected[f"nocqt/all/{name}"], **TOLERANCE)
    np.testing.assert_array_equal(outside["extract_mert"].mert_infr_features(extractor, path), found)


def test_step_by_step(extractor, load_audio, golden, expected):
    """The calls of a program that cuts its own windows."""
    for name in ("mono_22k05_1s7", "saw_44k1_stereo_1s3", "silence_1s2"):  # of one window each
        wave = load_audio(golden / f"mert/wav/{name}.wav", target_sr=RATE, is_mono=True, device=torch.device("cpu"))
        states = extractor(extractor.process_wav(wave), layer=None, reduction="mean")
        np.testing.assert_allclose(states.numpy(), expected[f"nocqt/all/{name}"], **TOLERANCE)


def test_hidden_states(extractor):
    sound = torch.randn(2, RATE, generator=torch.Generator().manual_seed(0))
    frames = extractor(sound, reduction="none")
    assert frames.shape == (3, 2, 74, 64) and frames.dtype == torch.float32
    torch.testing.assert_close(extractor(sound), frames.mean(2))
    torch.testing.assert_close(extractor(sound, reduction="max"), frames.amax(2))
    torch.testing.assert_close(extractor(sound, layer=1, reduction="none"), frames[1])
    torch.testing.assert_close(extractor(sound, 2), frames[2].mean(1))
    with pytest.raises(ValueError, match="expected a reduction of mean, max, none, got sum"):
        extractor(sound, reduction="sum")


def test_a_probe_on_the_states_can_be_trained(extractor):
    probe = torch.nn.Linear(64, 1)
    probe(extractor(torch.randn(1, RATE), layer=-1)).sum().backward()
    assert probe.weight.grad is not None
    assert all(weight.grad is None for weight in extractor.parameters())


def test_sound_is_normalized(extractor):
    sound = np.random.default_rng(0).normal(3, 2, RATE)  # float64
    wave = extractor.process_wav(sound)
    assert wave.shape == (1, RATE) and wave.dtype == torch.float32
    np.testing.assert_allclose(wave[0], (sound - sound.mean()) / sound.std(), atol=1e-5)
    torch.testing.assert_close(extractor.process_wav(torch.from_numpy(sound)[None]), wave)
    for shape in ((2, 9), (1, 1, 9), (0,)):
        with pytest.raises(InputError, match=r"expected mono sound \[n\] or \[1, n\], got"):
            extractor.process_wav(np.zeros(shape))


def test_sound_as_it_is(outside, mert_weights):
    raw = outside["hf_pretrains"].HuBERTFeature(mert_weights, RATE, processor_normalize=False)
    sound = np.random.default_rng(0).uniform(-0.1, 0.1, 2 * RATE).astype(np.float32)
    assert torch.equal(raw.process_wav(sound), torch.from_numpy(sound)[None])
    found = outside["extract_mert"].mert_infr_features(raw, Waveform(sound, RATE))
    np.testing.assert_allclose(found, raw(torch.from_numpy(sound)[None]).numpy(), **TOLERANCE)


def test_half_precision(outside, extractor, mert_weights):
    half = outside["hf_pretrains"].HuBERTFeature(mert_weights, RATE, force_half=True).eval()
    assert {weight.dtype for weight in half.model.parameters()} == {torch.float16}
    sound = Waveform(np.random.default_rng(0).uniform(-1, 1, RATE).astype(np.float32), RATE)
    exact, found = (outside["extract_mert"].mert_infr_features(each, sound) for each in (extractor, half))
    assert found.dtype == np.float32 and not np.array_equal(found, exact)
    np.testing.assert_allclose(found, exact, atol=0.02)
    assert half(torch.randn(1, RATE)).dtype == torch.float32


def test_another_sample_rate_is_refused(outside, mert_weights):
    with pytest.raises(InputError, match="expected a sample rate of 24000 Hz, got 16000"):
        outside["hf_pretrains"].HuBERTFeature(mert_weights, 16_000)


@pytest.mark.parametrize("rate", [16_000, RATE, 44_100])
def test_load_audio(load_audio, golden, rate):
    path = golden / "mert/wav/saw_44k1_stereo_1s3.wav"
    wave = load_audio(str(path), rate)
    assert wave.dtype == torch.float32 and wave.shape[0] == 1
    np.testing.assert_array_equal(wave[0], np.concatenate(list(samples(path, rate))))
    peak = load_audio(path, rate, is_normalize=True)
    torch.testing.assert_close(peak, wave / wave.abs().max())


def test_silence_has_no_peak(load_audio, golden):
    assert not load_audio(golden / "mert/wav/silence_1s2.wav", RATE, is_normalize=True).any()


def test_crops(load_audio, tone):
    whole = load_audio(tone, RATE)
    assert torch.equal(load_audio(tone, RATE, crop_to_length_in_sec=0.25), whole[:, :6000])
    assert torch.equal(load_audio(tone, RATE, crop_to_length_in_sample_points=99), whole[:, :99])
    assert torch.equal(load_audio(tone, RATE, crop_to_length_in_sec=2), whole)
    starts = set()
    for _ in range(5):
        wave, start = load_audio(tone, RATE, crop_to_length_in_sec=0.5, crop_randomly=True, return_start=True)
        assert torch.equal(wave, whole[:, start : start + 12_000])
        starts.add(start)
    assert len(starts) > 1 and max(starts) <= 12_000


def test_pads(load_audio, tone):
    whole = load_audio(tone, RATE, pad=True)
    assert whole.shape == (1, RATE)
    wave, start = load_audio(
        tone, RATE, crop_to_length_in_sec=2, crop_randomly=True, pad=True, return_start=True, device="cpu"
    )
    assert start == 0 and wave.shape == (1, 2 * RATE)
    assert torch.equal(wave[:, :RATE], whole) and not wave[:, RATE:].any()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"is_mono": False}, "recordings are read as mono only"),
        ({"crop_to_length_in_sec": 1, "crop_to_length_in_sample_points": 9}, "expected one length to crop to"),
        ({"crop_to_length_in_sample_points": 0}, "expected a length of 1 sample or more, got 0"),
    ],
)
def test_what_load_audio_refuses(load_audio, tone, options, message):
    with pytest.raises(ValueError, match=message):
        load_audio(tone, RATE, **options)


@pytest.mark.parametrize("content", ["words\n" * 99, None])
def test_bad_recordings(outside, load_audio, extractor, tmp_path, content):
    path = tmp_path / "words.wav"
    if content:
        path.write_text(content)
    with pytest.raises(InputError, match="words.wav: expected a recording"):
        load_audio(path, RATE)
    with pytest.raises(InputError, match="words.wav: expected a recording"):
        outside["extract_mert"].mert_infr_features(extractor, path, "cpu")

"""The extraction scripts as users start them: alone, and in two processes by `accelerate launch`."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
CODE = ROOT / "code"
TOLERANCE = {"atol": 2e-5, "rtol": 1e-4}


@pytest.fixture(scope="session")
def tiny_config(golden, tmp_path_factory):
    """A file for --config: the tiny geometry."""
    values = json.loads((golden / "tiny/tiny_config.json").read_text())
    values["TEXT_MODEL_NAME"] = str(golden / "tiny/text_model")
    file = tmp_path_factory.mktemp("config") / "tiny.py"
    file.write_text("".join(f"{name} = {value!r}\n" for name, value in values.items()))
    return file


@pytest.fixture
def run(monkeypatch, capsys):
    """A script in this process: returns (status, stdout, stderr)."""
    monkeypatch.syspath_prepend(CODE)

    def run(script, *args):
        status = __import__(script).main([str(arg) for arg in args])
        return status, *capsys.readouterr()

    return run


def compare(folder, expected, inputs):
    """Every golden feature of the inputs; a text file may have a name of its own kind."""
    assert expected.files
    for name in expected.files:
        kind, stem = name.split("/")
        shared = len(list((inputs / kind).glob(f"{stem}.*"))) > 1
        path = folder / kind / (f"{stem}.{kind}.npy" if shared else f"{stem}.npy")
        np.testing.assert_allclose(np.load(path), expected[name], **TOLERANCE, err_msg=name)


def test_clamp3_golden(run, golden, tiny_config, tiny_weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inputs = golden / "model/in"
    options = ("--config", tiny_config, "--variant", tiny_weights / "clamp3_tiny.pth")
    status, out, _ = run("extract_clamp3", inputs, "global", "--get_global", *options)
    assert status == 0 and out.splitlines()[-1] == "27 done, 0 skipped, 0 failed"
    compare(tmp_path / "global", np.load(golden / "model/expected_clamp3_global.npz"), inputs)
    status, out, _ = run("extract_clamp3", f"{inputs}/", "temporal", *options)
    assert status == 0
    compare(tmp_path / "temporal", np.load(golden / "model/expected_clamp3_temporal.npz"), inputs)
    status, _, err = run("extract_clamp3", inputs, "global", *options)
    assert status == 1 and "kind differ" in err


def test_m3_golden(run, golden, tiny_config, tiny_weights, tmp_path):
    inputs = golden / "model/in"
    options = ("--config", tiny_config, "--variant", tiny_weights / "m3_tiny.pth")
    status, out, _ = run("extract_m3", inputs, tmp_path, *options)
    assert status == 0 and out.splitlines()[-1] == "12 done, 0 skipped, 0 failed"
    compare(tmp_path, np.load(golden / "model/expected_m3.npz"), inputs)


def test_a_variant_folder_and_the_epoch_of_ones_own_weights(
    run, golden, tiny_variant, tiny_config, tiny_weights, tiny_geometry, tmp_path
):
    inputs = golden / "model/in/txt"
    assert run("extract_clamp3", inputs, tmp_path / "a", "--variant", tiny_variant, "--get_global")[0] == 0
    weights = tmp_path / "weights"
    weights.mkdir()
    name = Path(tiny_geometry.clamp3_weights_name("own")).stem + "_7.pth"
    os.link(tiny_weights / "clamp3_tiny.pth", weights / name)
    config = weights / "config_own.py"
    config.write_text(tiny_config.read_text() + f"CLAMP3_VARIANT = 'own'\nCLAMP3_WEIGHTS_PATH = '{name}'\n")
    status, _, err = run("extract_clamp3", inputs, tmp_path / "b", "--config", config, "--epoch", "7")
    assert status == 0, err
    status, _, err = run("extract_clamp3", inputs, tmp_path / "c", "--config", config, "--epoch", "8")
    assert status == 1 and "_8.pth" in err


def test_wrong_arguments(run, tmp_path, tiny_variant):
    status, _, err = run("extract_clamp3", tmp_path / "absent", tmp_path / "out", "--variant", tiny_variant)
    assert status == 1 and "absent" in err
    status, _, err = run("extract_m3", tmp_path, tmp_path / "out", "--variant", tiny_variant)
    assert status == 1 and ".abc .mtf" in err
    with pytest.raises(SystemExit, match="2"):
        run("extract_clamp3", tmp_path, tmp_path / "out", "--batch_size", "0")


def launch(folder, machines, *args):
    """extract_clamp3.py in two processes on one machine or two, both this one; returns (status, stdout, stderr).

    --multi_gpu is accelerate's way to start several processes, on a CPU too.
    """
    command = [Path(sys.executable).with_name("accelerate"), "launch", "--num_machines", machines]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no", "--num_processes", "2", "--multi_gpu"]
    if machines > 1:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command += ["--main_process_ip", "127.0.0.1", "--main_process_port", port]
    else:
        command += ["--main_process_port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    started = []
    for rank in range(machines):
        words = [*command, *(["--machine_rank", rank] if machines > 1 else []), CODE / "extract_clamp3.py", *args]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(list(map(str, words)), cwd=folder, env=environment, **pipes))
    said = [process.communicate(timeout=240) for process in started]
    return max(process.returncode for process in started), *map("".join, zip(*said, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("machines", [1, 2])
def test_two_processes_by_accelerate_launch(machines, golden, tiny_config, tiny_weights, tmp_path):
    inputs = tmp_path / "in"
    for kind in ("txt", "npy"):
        (inputs / kind).mkdir(parents=True)
        for source in sorted((golden / f"model/in/{kind}").iterdir()):
            (inputs / kind / source.name).write_bytes(source.read_bytes())
    for name in ("bad", "worse"):  # one for each process
        (inputs / f"{name}.txt").write_bytes(b"\xff")
    weights = tiny_weights / "clamp3_tiny.pth"
    options = ("--get_global", "--config", tiny_config, "--variant", weights)
    status, printed, errors = launch(tmp_path, machines, "in", "out", *options)
    assert status == 1
    assert len(printed.splitlines()) == 1, errors
    assert printed.startswith("15 done, 0 skipped, 2 failed")
    lines = (tmp_path / "out/failures.jsonl").read_text().splitlines()
    assert [Path(json.loads(line)["file"]).name for line in lines] == ["bad.txt", "worse.txt"]
    expected = np.load(golden / "model/expected_clamp3_global.npz")
    names = [name for name in expected.files if name[:3] in ("txt", "npy")]
    assert len(names) == 15
    for name in names:
        np.testing.assert_allclose(np.load(tmp_path / f"out/{name}.npy"), expected[name], **TOLERANCE)

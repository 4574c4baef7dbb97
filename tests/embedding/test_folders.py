import json
import os

import numpy as np
import pytest
import torch

from clamplib.embedding import encoding
from clamplib.embedding.folders import extract_files, input_files
from clamplib.embedding.reading import SEQUENCE_SUFFIXES
from clamplib.files import InputError
from clamplib.models.variants import load_clamp3, load_m3

GLOBAL = {"get_global": True}


@pytest.fixture
def loaded(tiny_weights, tiny_geometry):
    return load_clamp3(tiny_weights / "clamp3_tiny.pth", weights_folder=tiny_weights, geometry=tiny_geometry)


@pytest.fixture
def inputs(tmp_path):
    """One file of each kind, three of one name, and one in a sub-folder with a hard name."""
    folder = tmp_path / "in"
    hard = folder / "sub $(x) 'ü'\nb"
    hard.mkdir(parents=True)
    (folder / "a.txt").write_text("a slow waltz")
    (folder / "a.abc").write_text("K:C\nCDEF|GABc|\n")
    (folder / "a.MTF").write_text("ticks_per_beat 480\nnote_on 0 0 60 64\nend_of_track 0")
    (hard / f"{'é' * 125}.TXT").write_text("jazz")
    np.save(folder / "b.npy", np.ones((1, 5, 128), np.float32))
    return folder


def extract(inputs, output, loaded, suffixes=SEQUENCE_SUFFIXES, **options):
    return extract_files(input_files(inputs, output, suffixes), inputs, output, loaded, **options)


def counts(report):
    return report.done, report.skipped, len(report.failures)


def features(folder):
    return {str(path.relative_to(folder)): np.load(path) for path in sorted(folder.rglob("*.npy"))}


def test_every_input_has_its_output(inputs, tmp_path, loaded):
    report = extract(inputs, tmp_path / "out", loaded, **GLOBAL)
    assert counts(report) == (5, 0, 0) and report.exit_status == 0
    found = features(tmp_path / "out")
    hard = f"sub $(x) 'ü'\nb/{'é' * 125}.npy"
    assert sorted(found) == sorted(["a.txt.npy", "a.abc.npy", "a.MTF.npy", "b.npy", hard])
    assert all(vector.shape == (1, 96) and vector.dtype == np.float32 for vector in found.values())
    space = json.loads((tmp_path / "out/space.json").read_text())
    assert space["kind"] == "clamp3 global"
    assert set(space) == {"variant", "weights_sha256", "geometry", "library", "kind", "abc"}
    assert not (tmp_path / "out/failures.jsonl").exists()


def test_a_second_run_does_what_is_missing_or_out_of_date(inputs, tmp_path, loaded):
    output = tmp_path / "out"
    extract(inputs, output, loaded, **GLOBAL)
    assert counts(extract(inputs, f"{output}/", loaded, **GLOBAL)) == (0, 5, 0)
    (output / "b.npy").unlink()
    (inputs / "a.txt").write_text("another text")
    os.utime(inputs / "a.txt", ns=(2**62, 2**62))
    before = features(output)
    assert counts(extract(f"{inputs}/", output, loaded, **GLOBAL)) == (2, 3, 0)
    assert np.abs(features(output)["a.txt.npy"] - before["a.txt.npy"]).max() > 1e-4


def test_bad_inputs_are_reported_and_the_rest_is_done(inputs, tmp_path, loaded):
    (inputs / "latin.txt").write_bytes(b"caf\xe9")
    (inputs / "empty.abc").write_text("")
    (inputs / "empty.npy").write_text("")
    np.save(inputs / "nan.npy", np.full((3, 128), np.nan, np.float32))
    np.save(inputs / "narrow.npy", np.ones((3, 100), np.float32))
    report = extract(inputs, tmp_path / "out", loaded, **GLOBAL)
    assert counts(report) == (5, 0, 5) and report.exit_status == 1
    lines = (tmp_path / "out/failures.jsonl").read_text().splitlines()
    failures = {os.path.basename(f["file"]): f["error"] for f in map(json.loads, lines)}
    assert list(failures) == ["empty.abc", "empty.npy", "latin.txt", "nan.npy", "narrow.npy"]
    assert all(name in error and "expected" in error for name, error in failures.items())
    assert len(features(tmp_path / "out")) == 5


def test_a_model_that_gives_nan_is_a_failure(inputs, tmp_path, loaded):
    with torch.no_grad():
        loaded.model.text_proj.bias.fill_(torch.nan)
    report = extract(inputs, tmp_path / "out", loaded, **GLOBAL)
    assert counts(report) == (3, 0, 2)
    assert "NaN" in report.failures[0]["error"]


def test_another_space_is_refused_before_any_work(inputs, tmp_path, loaded):
    output = tmp_path / "out"
    extract(inputs, output, loaded, **GLOBAL)
    before = features(output)
    with pytest.raises(InputError, match="kind differ"):
        extract(inputs, output, loaded)
    with pytest.raises(InputError, match="kind differ"):
        extract(inputs, output / "below", loaded)
    loaded.space["weights_sha256"] = "another"
    with pytest.raises(InputError, match="weights_sha256 differ"):
        extract(inputs, output, loaded, **GLOBAL)
    assert list(features(output)) == list(before)


def test_features_of_unknown_origin_are_made_anew(inputs, tmp_path, loaded):
    output = tmp_path / "out"
    output.mkdir()
    np.save(output / "b.npy", np.zeros((1, 96), np.float32))
    assert counts(extract(inputs, output, loaded, **GLOBAL)) == (5, 0, 0)
    assert np.load(output / "b.npy").any()


def test_m3_takes_scores_only_and_keeps_time(inputs, tmp_path, tiny_weights, tiny_geometry):
    m3 = load_m3(tiny_weights / "m3_tiny.pth", weights_folder=tiny_weights, geometry=tiny_geometry)
    report = extract(inputs, tmp_path / "out", m3, suffixes=(".abc", ".mtf"))
    assert counts(report) == (2, 0, 0)
    shapes = {name: states.shape for name, states in features(tmp_path / "out").items()}
    assert shapes == {"a.MTF.npy": (1, 5, 64), "a.abc.npy": (1, 5, 64)}
    assert json.loads((tmp_path / "out/space.json").read_text())["kind"] == "m3"


def test_small_chunks_and_workers_change_nothing(inputs, tmp_path, loaded, monkeypatch):
    extract(inputs, tmp_path / "out", loaded)
    monkeypatch.setattr(encoding, "CPU_CHUNK_ROWS", 7)
    extract(inputs, tmp_path / "small", loaded, batch_size=1, workers=2)
    expected, found = features(tmp_path / "out"), features(tmp_path / "small")
    assert list(expected) == list(found)
    for name, states in expected.items():
        np.testing.assert_allclose(found[name], states, atol=2e-5, rtol=1e-4)


def test_outputs_are_no_inputs(inputs, tmp_path, loaded):
    with pytest.raises(InputError, match="other than the input folder"):
        input_files(inputs, f"{inputs}/../in", SEQUENCE_SUFFIXES)
    with pytest.raises(InputError, match=r"b\.npy: .* replaces an input"):
        extract(inputs / "b.npy", inputs, loaded, **GLOBAL)
    extract(inputs, inputs / "out", loaded, **GLOBAL)
    assert counts(extract(inputs, inputs / "out", loaded, **GLOBAL)) == (0, 5, 0)


def test_a_missing_input_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        input_files(tmp_path / "absent", tmp_path / "out", SEQUENCE_SUFFIXES)
    with pytest.raises(InputError, match=r"\.txt \.abc \.mtf \.npy"):
        input_files(tmp_path, tmp_path / "out", SEQUENCE_SUFFIXES)


def test_a_single_file_may_be_the_input(inputs, tmp_path, loaded):
    assert counts(extract(inputs / "a.txt", tmp_path / "out", loaded)) == (1, 0, 0)
    assert features(tmp_path / "out")["a.npy"].shape[0] == 1


def test_cut_bars_are_counted(tmp_path, loaded, caplog):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/long.abc").write_text(f"K:C\n{'C' * 70}|{'C' * 80}|CD|\n")
    extract(tmp_path / "in", tmp_path / "out", loaded)
    assert "2 bars or messages are longer than the 62 characters" in caplog.text


@pytest.mark.parametrize("kind", ["global", "m3"])
@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_other_precisions_are_close_and_stated(kind, precision, inputs, tmp_path, loaded, tiny_weights, tiny_geometry):
    suffixes = SEQUENCE_SUFFIXES
    if kind == "m3":
        suffixes = (".abc", ".mtf")
        loaded = load_m3(tiny_weights / "m3_tiny.pth", weights_folder=tiny_weights, geometry=tiny_geometry)
    options = {"get_global": kind == "global"}
    extract(inputs, tmp_path / "whole", loaded, suffixes, **options)
    report = extract(inputs, tmp_path / "rounded", loaded, suffixes, precision=precision, **options)
    assert report.done and not report.failures
    expected, found = features(tmp_path / "whole"), features(tmp_path / "rounded")
    assert expected.keys() == found.keys()
    for name, value in found.items():
        error = np.linalg.norm(value - expected[name]) / np.linalg.norm(expected[name])
        assert 0 < error < 0.05
    assert json.loads((tmp_path / "rounded/space.json").read_text())["precision"] == precision

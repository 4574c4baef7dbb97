"""The conversion scripts, run as a user runs them."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parents[1] / "golden"
SCRIPTS = {path.stem: path for path in ROOT.glob("preprocessing/*/batch_*.py")}
TUNE = "X:1\nT:A tune\nM:4/4\nL:1/8\nK:C\nCDEF GABc|c8|]\n"


def script(name: str):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS[name])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(name: str, *args: object) -> int:
    return script(name).main([*map(str, args), "--workers", "1"])


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def midis(tmp_path) -> Path:
    (tmp_path / "midis" / "sub").mkdir(parents=True)
    shutil.copy(GOLDEN / "midi/in/hm_type0.mid", tmp_path / "midis/a.mid")
    shutil.copy(GOLDEN / "midi/in/upper_EXT.MID", tmp_path / "midis/sub/b.MID")
    return tmp_path / "midis"


def test_midi_to_mtf_and_back(midis, tmp_path, capsys):
    assert run("batch_midi2mtf", midis) == 0
    assert capsys.readouterr().out == "2 done, 0 skipped, 0 failed\n"
    assert files(tmp_path / "midis_mtf") == ["a.mtf", "sub/b.mtf"]
    assert (tmp_path / "midis_mtf/a.mtf").read_bytes() == (GOLDEN / "midi/mtf_m3/hm_type0.mtf").read_bytes()
    assert run("batch_mtf2midi", tmp_path / "midis_mtf") == 0
    assert files(tmp_path / "midis_mtf_mid") == ["a.mid", "sub/b.mid"]


def test_scores_to_interleaved_abc_and_back(tmp_path):
    (tmp_path / "scores").mkdir()
    for name in ("bach__bwv154.3.mxl", "handmade__grand.musicxml"):
        shutil.copy(GOLDEN / "abc/xml" / name, tmp_path / "scores")
    assert run("batch_xml2abc", tmp_path / "scores", tmp_path / "abc") == 0
    assert run("batch_interleaved_abc", tmp_path / "abc") == 0
    assert run("batch_abc2xml", tmp_path / "abc_interleaved") == 0
    for stem in ("bach__bwv154.3", "handmade__grand"):
        for folder, golden in (("abc", "std"), ("abc_interleaved", "interleaved")):
            expected = (GOLDEN / "abc" / golden / f"{stem}.abc").read_bytes()
            assert (tmp_path / folder / f"{stem}.abc").read_bytes() == expected
        assert (tmp_path / "abc_interleaved_xml" / f"{stem}.xml").read_text().startswith("<?xml")


def test_m3_compatible_is_an_argument(midis, tmp_path):
    shutil.copy(GOLDEN / "midi/in/hm_text_metas.mid", midis / "a.mid")
    for flag, form in (("--m3_compatible", "m3"), ("--no-m3_compatible", "full")):
        assert run("batch_midi2mtf", midis, tmp_path / form, flag) == 0
        expected = (GOLDEN / f"midi/mtf_{form}/hm_text_metas.mtf").read_bytes()
        assert (tmp_path / form / "a.mtf").read_bytes() == expected


def test_variables_at_the_top_are_the_defaults(midis, tmp_path):
    copy = tmp_path / "edited.py"
    text = SCRIPTS["batch_midi2mtf"].read_text()
    copy.write_text(text.replace('"<path_to_your_midi_files>"', repr(f"{midis}/")))
    subprocess.run([sys.executable, copy, "--workers", "1"], check=True, capture_output=True)
    assert files(tmp_path / "midis_mtf") == ["a.mtf", "sub/b.mtf"]


def test_from_another_folder_with_all_cores_and_relative_paths(midis):
    command = [sys.executable, SCRIPTS["batch_midi2mtf"], ".", "../out"]
    result = subprocess.run(command, cwd=midis, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "2 done, 0 skipped, 0 failed\n")
    assert files(midis.parent / "out") == ["a.mtf", "sub/b.mtf"]
    result = subprocess.run(command[:3], cwd=midis, capture_output=True, text=True)
    assert files(midis.parent / "midis_mtf") == ["a.mtf", "sub/b.mtf"]


def test_a_single_file(midis, tmp_path):
    assert run("batch_midi2mtf", midis / "a.mid", tmp_path / "out") == 0
    assert files(tmp_path / "out") == ["a.mtf"]
    assert run("batch_midi2mtf", midis / "a.mid") == 0
    assert files(midis / "a_mtf") == ["a.mtf"]


def test_failures_are_listed_counted_and_tried_again(midis, tmp_path, capsys):
    for name in (
        "bad_empty.mid",
        "bad_text.mid",
        "raw_truncated.mid",
        "hm_type2.mid",
        "raw_smpte_division.mid",
    ):
        shutil.copy(GOLDEN / "midi/in" / name, midis)
    assert run("batch_midi2mtf", midis, tmp_path / "out") == 1
    assert capsys.readouterr().out.startswith("2 done, 0 skipped, 5 failed (see failures.jsonl")
    failures = [json.loads(line) for line in (tmp_path / "out/failures.jsonl").read_text().splitlines()]
    assert all(failure["error"].startswith(failure["file"] + ": expected ") for failure in failures)
    assert files(tmp_path / "out") == ["a.mtf", "failures.jsonl", "sub/b.mtf"]
    for path in midis.glob("[brh]*.mid"):
        shutil.copy(midis / "a.mid", path)
    assert run("batch_midi2mtf", midis, tmp_path / "out") == 0
    assert capsys.readouterr().out == "5 done, 2 skipped, 0 failed\n"
    assert "failures.jsonl" not in files(tmp_path / "out")


def test_a_changed_input_is_done_again(midis, tmp_path):
    run("batch_midi2mtf", midis, tmp_path / "out")
    output = tmp_path / "out/a.mtf"
    output.write_text("kept")
    run("batch_midi2mtf", midis, tmp_path / "out")
    assert output.read_text() == "kept"
    os.utime(midis / "a.mid", ns=(1, output.stat().st_mtime_ns + 1))
    run("batch_midi2mtf", midis, tmp_path / "out")
    assert output.read_text() == "kept"  # the content decides, not the time
    shutil.copy2(GOLDEN / "midi/in/hm_long.mid", midis / "a.mid")
    os.utime(midis / "a.mid", ns=(1, 1))
    run("batch_midi2mtf", midis, tmp_path / "out")
    assert output.read_text() != "kept"


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_input_is_an_error(name, tmp_path, capsys):
    for folder, message in ((tmp_path / "gone", "there is none"), (tmp_path, "found none")):
        assert run(name, folder) == 1
        assert f"{folder}: expected" in (error := capsys.readouterr().err) and message in error


def test_outputs_within_the_input_folder_are_no_inputs(tmp_path, capsys):
    (tmp_path / "a.abc").write_text(TUNE)
    assert run("batch_xml2abc", tmp_path, tmp_path / "out") == 0
    assert run("batch_xml2abc", tmp_path, tmp_path / "out") == 0
    command = [sys.executable, SCRIPTS["batch_xml2abc"], ".", tmp_path / "out", "--workers", "1"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "0 done, 1 skipped, 0 failed\n")
    assert files(tmp_path) == ["a.abc", "out/a.abc"]
    assert run("batch_xml2abc", tmp_path, f"{tmp_path}/") == 1
    assert "other than the input" in capsys.readouterr().err
    assert (tmp_path / "a.abc").read_text() == TUNE


def test_back_to_musicxml_takes_one_tune_a_file(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/two.abc").write_text(TUNE + "\n" + TUNE)
    (tmp_path / "in/one.abc").write_text(TUNE)
    assert run("batch_abc2xml", tmp_path / "in", tmp_path / "out") == 1
    assert files(tmp_path / "out") == ["failures.jsonl", "one.xml"]
    assert "expected one tune, got 2" in (tmp_path / "out/failures.jsonl").read_text()


def test_a_cluster_needs_its_package(midis, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert run("batch_midi2mtf", midis, "--backend", "ray") == 1
    assert "pip install ray" in capsys.readouterr().err


def test_one_output_a_tune_and_none_lost(tmp_path, capsys):
    scores = tmp_path / "scores"
    scores.mkdir()
    (scores / "jigs.abc").write_text(TUNE + "\n" + "X:2\nT:no key\n\n" + TUNE.replace("X:1", "X:3"))
    (scores / "jigs-0001.ABC").write_text(TUNE)
    shutil.copy(GOLDEN / "abc/xml/handmade__grace.musicxml", scores / "same.musicxml")
    (scores / "same.abc").write_text(TUNE)
    (scores / "empty.abc").write_text("")
    assert run("batch_xml2abc", scores) == 1
    expected = [
        "jigs-0001.ABC.abc",
        "jigs-0001.abc.abc",
        "jigs-0003.abc",
        "same.abc.abc",
        "same.musicxml.abc",
    ]
    assert files(tmp_path / "scores_abc") == sorted(["failures.jsonl", *expected])
    report = (tmp_path / "scores_abc/failures.jsonl").read_text().splitlines()
    failed = {json.loads(line)["file"] for line in report}
    assert failed == {str(scores / "empty.abc"), f"{scores / 'jigs.abc'}#2"}


@pytest.mark.parametrize("name", ["sp ace", "quo'te\"s", "$(touch x) `touch x`", "new\nline", "音楽", "-rf", "n" * 250])
def test_file_names_are_data(name, tmp_path):
    folder = tmp_path / name[:100]
    folder.mkdir()
    shutil.copy(GOLDEN / "midi/in/hm_type0.mid", folder / f"{name}.mid")
    (folder / f"{name}.abc").write_text(TUNE)
    for command, *args in (
        ("batch_midi2mtf", folder, tmp_path / "mtf"),
        ("batch_mtf2midi", tmp_path / "mtf", tmp_path / "mid"),
        ("batch_xml2abc", folder, tmp_path / "abc"),
        ("batch_interleaved_abc", tmp_path / "abc", tmp_path / "inter"),
        ("batch_abc2xml", tmp_path / "inter", tmp_path / "xml"),
    ):
        assert run(command, *args) == 0
        assert len(files(args[1])) == 1
    assert files(tmp_path / "xml") == [f"{name}.xml"]


def test_a_vendored_clone_gives_load_midi(tmp_path):
    (tmp_path / "clamp3").symlink_to(ROOT)
    midi = GOLDEN / "midi/in/hm_text_metas.mid"
    code = (
        "from clamp3.preprocessing.midi.batch_midi2mtf import load_midi\n"
        f"print(load_midi({str(midi)!r}, m3_compatible=True), end='')"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, check=True)
    assert result.stdout == (GOLDEN / "midi/mtf_m3/hm_text_metas.mtf").read_bytes()

"""What hostile files and names do to a command: they fail by name, the others are answered, and nothing hangs."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from clamplib.app import cli
from clamplib.embedding import reading
from clamplib.embedding.encoder import CLaMP3Encoder
from clamplib.embedding.reading import Reader, read_ahead
from clamplib.jobs import Limits

LATIN_1 = os.fsdecode(b"caf\xe9.txt")  # a name that is not UTF-8
ESCAPES = "red \x1b[31m.txt"  # a name that colors a terminal


@pytest.fixture
def folder(tmp_path, golden) -> Path:
    """Two texts with odd names, a score, and what is not a regular file."""
    folder = tmp_path / "music"
    folder.mkdir()
    (folder / LATIN_1).write_text("a slow air")
    (folder / ESCAPES).write_text("a quick reel")
    shutil.copy(golden / "abc/interleaved/handmade__chords.abc", folder / "chords.abc")
    for suffix in (".abc", ".mid", ".wav", ".npy"):
        os.mkfifo(folder / f"pipe{suffix}")
    (folder / "zero.wav").symlink_to("/dev/zero")
    (folder / "zero.txt").symlink_to("/dev/zero")
    return folder


def run(*words: str | bytes, **environment: str) -> subprocess.CompletedProcess:
    """Runs `clamp3` with standard input closed."""
    command = [sys.executable, "-m", "clamplib", *words]
    environment = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=120, env=environment)


@pytest.mark.parametrize("environment", [{}, {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}])
def test_a_folder_of_odd_names_and_files_is_answered(folder, environment):
    found = run("search", b"na\xefve caf\xe9", str(folder), "--variant", "mini", "--no_cache", **environment)
    assert found.returncode == 1, found.stderr.decode()  # the pipes and devices
    lines = found.stdout.decode("ascii").splitlines()
    assert len(lines) == 3 and b"\x1b" not in found.stdout + found.stderr
    assert any("caf\\udce9.txt" in line for line in lines) and any("red \\x1b[31m.txt" in line for line in lines)
    said = found.stderr.decode()
    assert "Traceback" not in said
    for name in ("pipe.abc", "pipe.mid", "pipe.wav"):
        assert f"{name}: expected a regular file, got a named pipe" in said
    for name in ("zero.wav", "zero.txt"):
        assert f"{name}: expected a regular file, got a device" in said


def test_json_of_odd_names_is_json(folder):
    found = run("search", "an air", str(folder), "--variant", "mini", "--no_cache", "--json", PYTHONIOENCODING="ascii")
    answer = json.loads(found.stdout)
    assert {Path(hit["path"]).name for hit in answer["hits"]} == {LATIN_1, ESCAPES, "chords.abc"}
    assert len(answer["failures"]) == 5


def test_extraction_names_what_is_not_a_regular_file(folder, tmp_path, capsys):
    status = cli.main(["embed", str(folder), str(tmp_path / "out"), "--variant", "mini", "--no_cache"])
    assert status == 1
    failures = [json.loads(line) for line in (tmp_path / "out/failures.jsonl").read_text().splitlines()]
    assert len(failures) == 5
    assert all(failure["stage"] == "read" and "expected a regular file" in failure["error"] for failure in failures)


def test_half_a_character_does_not_stop_an_answer():
    encoder = CLaMP3Encoder.from_pretrained("mini", device="cpu")
    np.testing.assert_array_equal(encoder.encode("caf\udce9"), encoder.encode("caf\ufffd"))
    np.testing.assert_array_equal(encoder.encode("\ud83c\udfb5"), encoder.encode("\U0001f3b5"))


def test_a_file_that_takes_too_long_is_that_files_failure(tmp_path, golden, capsys):
    """Twenty spines that split and split again: no rule refuses them, and music21 takes minutes."""
    folder = tmp_path / "music"
    folder.mkdir()
    shutil.copy(golden / "midi/in/hm_type0.mid", folder / "good.mid")
    rows = ["\t".join(["**kern"] * 30), *["\t".join(["4c"] * 30)] * 3000, "\t".join(["*-"] * 30)]
    (folder / "slow.krn").write_text("\n".join(rows))
    assert cli.main(["embed", str(folder), str(tmp_path / "out"), "--variant", "mini", "--timeout", "2"]) == 1
    assert [path.name for path in (tmp_path / "out").glob("*.npy")] == ["good.npy"]
    [line] = (tmp_path / "out/failures.jsonl").read_text().splitlines()
    assert "reading it took more than 2 seconds; --timeout allows more" in json.loads(line)["error"]


def test_items_in_memory_are_read_within_the_limits(tiny_geometry, golden, monkeypatch):
    data = (golden / "midi/in/hm_type0.mid").read_bytes()
    [good] = read_ahead(Reader(tiny_geometry), [data], "midi")
    assert good.value.encoder == "symbolic"
    asked = []
    monkeypatch.setattr(reading, "run_jobs", lambda *_, limits, **__: asked.append(limits) or [])
    assert list(read_ahead(Reader(tiny_geometry, Limits(seconds=7)), [data], "midi")) == []
    assert asked == [Limits(seconds=7)]


def test_large_files_are_read_within_the_limits(tiny_geometry, tmp_path, monkeypatch):
    """Also those that need no conversion."""
    asked = []
    monkeypatch.setattr(reading, "run_jobs", lambda *_, limits, **__: asked.append(limits) or [])
    for name in ("small.abc", "large.abc", "large.mtf"):
        (tmp_path / name).write_text("C" * (1000 if name == "small.abc" else 2_000_000))
        list(read_ahead(Reader(tiny_geometry, Limits(seconds=7)), [tmp_path / name]))
    assert asked == [Limits(seconds=7)] * 2


def test_verbose_gives_the_traceback(tmp_path):
    (tmp_path / "bad.mid").write_text("no MIDI")
    quiet = run("embed", str(tmp_path), str(tmp_path / "out"), "--variant", "mini")
    loud = run("embed", str(tmp_path), str(tmp_path / "out"), "--variant", "mini", "--verbose")
    assert quiet.returncode == loud.returncode == 1
    assert b"Traceback" not in quiet.stderr and b"Traceback" in loud.stderr and b"parse_midi" in loud.stderr
    wrong = run("embed", str(tmp_path / "missing"), str(tmp_path / "out"), "--variant", "mini", "--verbose")
    assert b"Traceback" in wrong.stderr and b"error: " in wrong.stderr


@pytest.mark.parametrize("number", ["0", "-1", "nan", "inf", "x"])
def test_limits_are_numbers_above_0(number, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["embed", "in", "out", f"--timeout={number}"])
    assert stopped.value.code == 2
    assert f"expected a number above 0, got '{number}'" in capsys.readouterr().err


def test_an_unusable_cache_costs_no_answer(folder, tmp_path):
    (tmp_path / "file").touch()
    found = run("search", "an air", str(folder), "--variant", "mini", CLAMP3_CACHE=str(tmp_path / "file" / "cache"))
    assert len(found.stdout.splitlines()) == 3
    assert found.stderr.count(b"expected a cache that can be read and written") == 1

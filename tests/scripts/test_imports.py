"""What a command imports and loads: nothing that it does not need, because the imports take longer than the work."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from clamplib.app import cli
from clamplib.models import loading

ROOT = Path(__file__).parents[2]
SLOW = ("torch", "transformers", "music21", "librosa", "scipy", "matplotlib", "ray", "dask", "wandb")
FOLDERS = ("code", "preprocessing/abc", "preprocessing/midi", "preprocessing/audio", "retrieval", "classification", ".")
FILES = [path for folder in FOLDERS for path in sorted(Path(ROOT, folder).glob("*.py"))]
SCRIPTS = [path for path in FILES if "__main__" in path.read_text("utf-8")]
RUN = """
import runpy, sys
for words in {lines!r}:
    sys.argv, sys.path[0] = words, words[0].rpartition("/")[0]
    try:
        runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        assert not end.code, words
    print("imported:", words[0], *sorted({slow!r} & sys.modules.keys()))
"""


def imports_of(*lines: list[str], **environment: str) -> list[list[str]]:
    """Runs command lines in one process; what each has imported so far of SLOW."""
    code = RUN.format(lines=[list(map(str, words)) for words in lines], slow=set(SLOW))
    environment = {**os.environ, **environment}
    command = [sys.executable, "-W", "error", "-c", code]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert not run.returncode, run.stderr
    found = [line.split()[2:] for line in run.stdout.splitlines() if line.startswith("imported:")]
    assert len(found) == len(lines)
    return found


def test_help_imports_nothing_slow():
    assert len(SCRIPTS) > 20
    lines = [[script, "--help"] for script in SCRIPTS]
    lines += [[ROOT / "code/clamplib/app/cli.py", "search", "--help"]]
    assert imports_of(*lines) == [[]] * len(lines)


@pytest.fixture
def texts(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for name, text in (("a", "a slow air"), ("b", "a lively jig"), ("c", "ein langsamer Walzer")):
        (folder / f"{name}.txt").write_text(text)
    return folder


def test_a_search_needs_no_transformers(texts, tmp_path):
    words = [ROOT / "code/clamplib/app/cli.py", "search", "a waltz", texts, "--variant", "mini"]
    assert imports_of(words, CLAMP3_CACHE=str(tmp_path / "cache")) == [["torch"]]


def test_a_finished_folder_needs_no_torch(texts, tmp_path, monkeypatch):
    words = [ROOT / "code/extract_clamp3.py", texts, tmp_path / "out", "--get_global", "--variant", "mini"]
    environment = {"CLAMP3_CACHE": str(tmp_path / "cache"), "WORLD_SIZE": "1"}
    assert "torch" in imports_of(words, **environment)[0]
    assert imports_of(words, **environment) == [[]]
    (texts / "d.txt").write_text("a march")
    assert "torch" in imports_of(words, **environment)[0]
    assert len(list((tmp_path / "out").glob("*.npy"))) == 4


def test_what_is_cached_needs_no_model(texts, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CLAMP3_CACHE", str(tmp_path / "cache"))
    mini = ["--variant", "mini", "--device", "cpu"]
    commands = [
        ["embed", texts, tmp_path / "out"],
        ["index", texts, tmp_path / "index"],
        ["score", texts, texts],
        ["eval", texts, texts],
        ["search", texts / "a.txt", texts],
        ["map", texts, tmp_path / "map.html"],
    ]

    def run(words):
        return cli.main([*map(str, words), *mini])

    assert [run(words) for words in commands] == [0] * len(commands)
    expected = capsys.readouterr().out

    def refuse(found):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(loading, "load_model", refuse)
    assert [run(words) for words in commands] == [0] * len(commands)
    assert capsys.readouterr().out.splitlines()[2:] == expected.splitlines()[2:]  # embed and index have done it
    with pytest.raises(AssertionError, match="the model was loaded"):
        run(["search", "a waltz", texts])

"""The blocks of README.md and docs/, and a way to run them in a prepared folder."""

import contextlib
import importlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from sound import sine, write

from clamplib.app import cli

ROOT = Path(__file__).parents[1]
TEXTS = {"lament": "a slow sad song", "jig": "eine schnelle Gigue", "reel": "快いリール", "0": "tune 0", "1": "tune 1"}
TUNES = {"air": "M:6/8\nK:D\nAFA dAF|AFA dfd|\n", "reel": "M:4/4\nK:D\neAce aAce|eAce aAce|\n"}
PIECE = '{{"id": "{0}", "filepaths": ["abc/{0}.abc", "mtf/{0}.mtf", "audio/{0}.npy"], "title": "piece {0}"}}\n'
TINY = """
PATCH_NUM_LAYERS = TOKEN_NUM_LAYERS = AUDIO_NUM_LAYERS = M3_NUM_EPOCH = CLAMP3_NUM_EPOCH = 1
M3_HIDDEN_SIZE = PATCH_LENGTH = AUDIO_HIDDEN_SIZE = 64
CLAMP3_HIDDEN_SIZE = 32
M3_BATCH_SIZE = CLAMP3_BATCH_SIZE = 4
EVAL_SPLIT = 0.25
NUM_WORKERS = 0
"""


def blocks(page: str) -> list[tuple[str, str]]:
    """Returns the language and the text of every fenced block of a page, such as "docs/scale.md"."""
    return re.findall(r"(?ms)^```(\w*)\n(.*?)^```$", (ROOT / page).read_text("utf-8"))


def commands(block: str) -> list[str]:
    """Returns the commands of a bash block, without their remarks."""
    lines = re.sub(r"\s*\\\n\s*", " ", block).splitlines()
    return [re.sub(r"\s+#.*", "", line) for line in lines if line.strip()]


def run_page(page: str, place: Path, not_run: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> dict:
    """Runs the bash and python blocks of a page in order, and returns the names that the python blocks define.

    Args:
        place: the folder to run them in.
        not_run: commands, and first lines of python blocks, that are left out, each with the reason.
    """
    monkeypatch.chdir(place)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    names: dict = {}
    for language, block in blocks(page):
        if language == "bash":
            for command in commands(block):
                if command not in not_run:
                    run_command(command, monkeypatch)
        elif language == "python" and block.partition("\n")[0] not in not_run:
            run_python(block, names)
    return names


def run_command(command: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a command in the working folder, and returns what it prints; those that import torch run in this process."""
    program, *words = shlex.split(command)
    if program == "export":
        monkeypatch.setenv(*words[0].split("=", 1))
        return ""
    if program == "clamp3":
        return _run_here(command, cli.main, words)
    if program == "python" and Path(words[0]).parent == Path("code"):
        monkeypatch.syspath_prepend(ROOT / "code")
        return _run_here(command, importlib.import_module(Path(words[0]).stem).main, words[1:])
    assert program in ("python", "sed", "tar"), f"{command}: expected a reason in NOT_RUN"
    argv = [sys.executable if program == "python" else program, *words]
    env = {**os.environ, "PYTHONWARNINGS": "error"}
    done = subprocess.run(argv, env=env, text=True, capture_output=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    assert done.stdout.strip() or program != "python", command
    return done.stdout


def _run_here(command: str, main, words: list[str]) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        status = main(words)
    assert status == 0, f"{command}\n{printed.getvalue()}"
    assert printed.getvalue().strip(), command
    return printed.getvalue()


def run_python(block: str, names: dict) -> None:
    """Executes a block, and compares what each print prints with the remark after it."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(block, names)
    assert printed.getvalue().splitlines() == re.findall(r"(?m)^print\(.*\)  # (.*)$", block)


def prepare(place: Path, golden: Path) -> Path:
    """Makes a folder look like a clone of this repository with the files of a user in it."""
    for name in ("classification", "preprocessing", "retrieval"):
        (place / name).symlink_to(ROOT / name)
    (place / "code").mkdir()
    for path in (ROOT / "code").iterdir():
        (place / "code" / path.name).symlink_to(path)
    (place / "code/config.py").unlink()
    shutil.copy(ROOT / "code/config.py", place / "code/config.py")  # which a command of a page edits

    for folder, sources in {
        "scores": ["abc/xml/bach__bwv154.3.mxl", "abc/xml/handmade__chords.musicxml"],
        "midi": ["midi/in/hm_type0.mid", "midi/in/m21__handmade__grace.mid"],
    }.items():
        (place / folder).mkdir()
        for number, source in enumerate(sources):
            shutil.copy(golden / source, place / folder / f"{number}{Path(source).suffix}")
    (place / "texts/scores").mkdir(parents=True)
    for name, text in TEXTS.items():
        (place / f"texts/{name}.txt").write_text(text, encoding="utf-8")
    (place / "recordings").mkdir()
    write(place / "recordings/tone.wav", sine(2.0, 44_100, 440), 44_100, "pcm_s16le")

    for folder in ("music/scores", "music/midi"):
        (place / folder).mkdir(parents=True)
    for name, notes in TUNES.items():
        (place / f"music/scores/{name}.abc").write_text(f"X:1\nT:{name}\n{notes}")
        (place / f"texts/scores/{name}.txt").write_text(name)
        shutil.copy(place / f"midi/{int(name == 'reel')}.mid", place / f"music/midi/{name}.mid")
    return place


def prepare_classification(place: Path) -> None:
    """Adds features of tunes in two clusters, of the texts of their classes, and a table of labels."""
    rng = np.random.default_rng(0)
    rows = ["key,label"]
    for label in ("jig", "reel"):
        direction = rng.standard_normal(192)
        features = {f"tunes/{label}{number}": 0.1 for number in range(20)}
        features |= {f"scores/{label}{number}": 0.1 for number in range(4)}
        features |= {f"kinds/{label}": 0.0}
        for name, noise in features.items():
            path = place / f"features/{name}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, (direction + noise * rng.standard_normal(192))[None].astype(np.float32))
        rows += [f"{label}{number},{label}" for number in range(20)]
    (place / "kinds.csv").write_text("\n".join(rows) + "\n")


def prepare_training(place: Path, golden: Path, sample: str) -> None:
    """Adds twelve pieces, and `sample` as my_config.py, at tiny sizes."""
    for folder in ("abc", "mtf", "audio"):
        (place / folder).mkdir()
    for number in range(12):
        notes = [f"note_on {pitch} 0 {60 + number} 64" for pitch in range(number + 3)]
        (place / f"abc/{number}.abc").write_text("M:4/4\nK:C\n" + "CDEF|\n" * (number + 3))
        (place / f"mtf/{number}.mtf").write_text("ticks_per_beat 480\n" + "\n".join(notes))
        np.save(place / f"audio/{number}.npy", np.random.default_rng(number).normal(size=(1, number + 2, 64)))
    (place / "pieces.jsonl").write_text("".join(PIECE.format(number) for number in range(12)))
    text_model = f'TEXT_MODEL_NAME = "{golden / "tiny/text_model"}"\n'
    (place / "my_config.py").write_text(sample + TINY + text_model)

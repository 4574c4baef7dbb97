"""The commands of the README's walk from files to answers, run one after another as they stand there."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import demo

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
TEXTS = {"lament": "a slow sad song", "jig": "eine schnelle Gigue", "reel": "快いリール"}


def commands(heading: str) -> list[str]:
    """The commands in the code blocks below a heading, without the remarks behind them."""
    section = re.search(rf"(?ms)^## {heading}$(.*?)^## ", README)[1]
    blocks = re.findall(r"(?s)```bash\n(.*?)```", section)
    return [re.sub(r"\s+#.*", "", line) for block in blocks for line in block.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, golden) -> Path:
    """A folder that looks like the clone, with somebody's scores, MIDI files and texts in it."""
    place = tmp_path_factory.mktemp("clone")
    for name in ("code", "preprocessing", "retrieval"):
        (place / name).symlink_to(ROOT / name)
    for folder, sources in {
        "scores": ["abc/xml/bach__bwv154.3.mxl", "abc/xml/handmade__chords.musicxml"],
        "midi": ["midi/in/hm_type0.mid", "midi/in/m21__handmade__grace.mid"],
    }.items():
        (place / folder).mkdir()
        for number, source in enumerate(sources):
            data = (golden / source).read_bytes()
            (place / folder / f"{number}{Path(source).suffix}").write_bytes(data)
    (place / "texts").mkdir()
    for name, text in TEXTS.items():
        (place / "texts" / f"{name}.txt").write_text(text, encoding="utf-8")
    for number in range(2):  # eval_mrr and clamp3_score go by key
        (place / "texts" / f"{number}.txt").write_text(f"tune {number}", encoding="utf-8")
    return place


def test_from_files_to_answers(workplace):
    walked = commands("From your files to answers")
    assert len(walked) >= 12
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "error"}
    for command in walked:
        words = [sys.executable if word == "python" else word for word in shlex.split(command)]
        done = subprocess.run(words, cwd=workplace, env=env, text=True, capture_output=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        assert done.stdout.strip(), command
    vectors = sorted((workplace / "features" / "texts").glob("*.npy"))
    assert len(vectors) == len(TEXTS) + 2
    assert all(np.isfinite(np.load(path)).all() for path in vectors)


def test_in_your_own_code(monkeypatch):
    monkeypatch.chdir(ROOT)
    names = {}
    exec(re.search(r"(?s)```python\n(.*?)```", README)[1], names)
    assert names["sentences"].shape == (2, 192)
    assert np.isfinite(names["sentences"]).all()


@pytest.mark.slow
def test_demo(tmp_path, capsys):
    assert demo.main(["--output", str(tmp_path / "demo"), "--tunes", "24"]) == 0
    printed = capsys.readouterr().out
    for language, sentence, _ in demo.QUESTIONS:
        assert f"{sentence}  ({language})" in printed
    assert len({language for language, *_ in demo.QUESTIONS}) >= 4
    assert len(re.findall(r"(?m)^ [+ ] 0?-?[01]\.\d{3}  ", printed)) == demo.BEST * len(demo.QUESTIONS)
    assert re.search(r"among the 5 best: \d+%; chance would give \d+%", printed)


def test_line_66_is_the_switch_that_the_readme_names():
    assert "sed -i '66s/saas/c2/' code/config.py" in README
    line = (ROOT / "code" / "config.py").read_text("utf-8").splitlines()[65]
    assert line.startswith('CLAMP3_VARIANT = "saas"')


def test_every_file_that_the_readme_links_is_there():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target

"""The README's commands, run one after another as they stand there."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock
from urllib.request import urlopen

import numpy as np
import pytest
from sound import sine, write

import demo
from clamplib import CLaMP3Encoder
from clamplib.app import cli
from clamplib.models import checkpoints

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
    for name in ("classification", "code", "preprocessing", "retrieval"):
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


def run(command: str, place: Path) -> str:
    """Runs a command of the README where somebody would; returns what it prints."""
    words = shlex.split(command)
    python = {"python": [sys.executable], "clamp3": [sys.executable, "-m", "clamplib.app.cli"]}
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "error"}
    done = subprocess.run(python[words[0]] + words[1:], cwd=place, env=env, text=True, capture_output=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    assert done.stdout.strip(), command
    return done.stdout


def test_step_by_step(workplace):
    walked = commands("Step by step")
    assert len(walked) >= 12
    for command in walked:
        run(command, workplace)
    vectors = sorted((workplace / "features" / "texts").glob("*.npy"))
    assert len(vectors) == len(TEXTS) + 2
    assert all(np.isfinite(np.load(path)).all() for path in vectors)


@pytest.fixture(scope="module")
def music(tmp_path_factory, golden) -> Path:
    """The folder above `music`, somebody's scores and MIDI files, and `texts` about them."""
    place = tmp_path_factory.mktemp("home")
    for folder in ("music/scores", "music/midi", "texts/scores"):
        (place / folder).mkdir(parents=True)
    notes = "M:6/8\nK:D\nAFA dAF|AFA dfd|\n"
    for name in ("air", "reel"):
        (place / f"music/scores/{name}.abc").write_text(f"X:1\nT:{name}\n{notes}")
        (place / f"texts/scores/{name}.txt").write_text(name)
        notes = notes.replace("6/8", "4/4").replace("AFA dAF", "eAce aAce")
    for name, source in (("air", "hm_type0"), ("reel", "m21__handmade__grace")):
        (place / f"music/midi/{name}.mid").write_bytes((golden / f"midi/in/{source}.mid").read_bytes())
    return place


@pytest.mark.slow
def test_one_command_one_page(music, monkeypatch, capsys):
    walked = commands("One command, one call, one page")
    assert {command.split()[1] for command in walked} == set(cli.build_parser()._subparsers._group_actions[0].choices)
    *commands_that_end, serve = walked
    monkeypatch.chdir(music)
    for command in commands_that_end:  # in this process, which has torch already
        assert cli.main(shlex.split(command)[1:]) == 0, command
        assert capsys.readouterr().out.strip(), command
    assert (music / "map.html").is_file() and (music / "ranks.csv").is_file()
    words = [sys.executable, "-m", "clamplib.app.cli", *shlex.split(serve)[1:], "--port", "0"]
    with subprocess.Popen(words, cwd=music, text=True, stdout=subprocess.PIPE) as server:
        try:
            said = server.stdout.readline()
            address = re.match(r"Search 4 sources at (http://127\.0\.0\.1:\d+)", said)[1]
            with urlopen(f"{address}/api/search?q=a%20reel", timeout=120) as answer:
                assert len(json.load(answer)["results"]) == 4
        finally:
            server.kill()


def test_a_table_of_right_answers(music, monkeypatch, capsys):
    monkeypatch.chdir(music)
    Path("right.csv").write_text(re.search(r"(?s)```\n(query,reference,relevance\n.*?)```", README)[1])
    command = re.search(r"`(clamp3 eval [^`]* --relevance [^`]*)`", README)[1]
    assert cli.main(shlex.split(command)[1:]) == 0
    assert "ap@" in capsys.readouterr().out.lower()


def test_in_python(music, monkeypatch):
    monkeypatch.chdir(music)
    names = {}
    exec(re.search(r"(?s)```python\n(.*?)```", README)[1], names)
    assert names["vectors"].shape == (3, 192) and np.isfinite(names["vectors"]).all()


def test_in_sentence_transformers(monkeypatch):
    monkeypatch.chdir(ROOT)
    names = {}
    exec(re.search(r"(?s)```python\n(from sentence_transformers.*?)```", README)[1], names)
    texts = ["a slow air", "a lively reel"]
    np.testing.assert_allclose(names["vectors"], CLaMP3Encoder.from_pretrained("mini").encode(texts), atol=1e-5)


def test_in_mteb(monkeypatch, tmp_path):
    """As far as without the weights: the names are there, and the lack of weights is said."""
    monkeypatch.setenv("MTEB_CACHE", str(tmp_path))  # mteb makes the folder when it is imported
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code = re.search(r"(?s)```python\n(import mteb\n.*?)```", README)[1]
    names = {}
    exec(code.rpartition("\n\n")[0], names)
    assert len(names["mteb"].get_benchmark(re.search(r'get_benchmark\("(.*?)"\)', code)[1]).tasks) > 20
    monkeypatch.setattr(checkpoints.huggingface_hub, "hf_hub_download", Mock(side_effect=OSError("no network")))
    with pytest.raises(FileNotFoundError, match="weights_clamp3_saas.*no network"):
        names["CLaMP3MTEB"]("saas")


def test_recordings_offline(tmp_path):
    for name in ("code", "preprocessing", "retrieval"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in ("recordings", "texts"):
        (tmp_path / name).mkdir()
    write(tmp_path / "recordings/tone.wav", sine(2.0, 44_100, 440), 44_100, "pcm_s16le")
    (tmp_path / "texts/lament.txt").write_text("a slow sad song")
    run("python code/extract_clamp3.py texts features/texts --get_global --variant mini", tmp_path)
    walked = [command for command in commands("Recordings") if "spectral" in command or "heard" in command]
    assert len(walked) == 3
    printed = [run(command, tmp_path) for command in walked]
    assert "tone" in printed[-1]


def test_classification(tmp_path):
    for name in ("classification", "code"):
        (tmp_path / name).symlink_to(ROOT / name)
    rng = np.random.default_rng(0)
    directions = {"jig": rng.standard_normal(192), "reel": rng.standard_normal(192)}
    rows = ["key,label"]
    for folder, count in (("tunes", 20), ("scores", 4), ("kinds", 1)):
        (tmp_path / "features" / folder).mkdir(parents=True)
        for label, direction in directions.items():
            for number in range(count):
                key = label if folder == "kinds" else f"{label}{number}"
                vector = direction + 0.1 * rng.standard_normal(192)
                np.save(tmp_path / f"features/{folder}/{key}.npy", vector[None].astype(np.float32))
                rows += [f"{key},{label}"] if folder == "tunes" else []
    (tmp_path / "kinds.csv").write_text("\n".join(rows) + "\n")
    walked = commands("Classification")
    printed = [run(command, tmp_path) for command in walked]
    assert len(walked) == 3 and all("1.0" in said or "100" in said for said in (printed[0], printed[2]))


@pytest.mark.slow
def test_demo(tmp_path, capsys):
    assert demo.main(["--output", str(tmp_path / "demo"), "--tunes", "24"]) == 0
    printed = capsys.readouterr().out
    for language, sentence, _ in demo.QUESTIONS:
        assert f"{sentence}  ({language})" in printed
    assert len({language for language, *_ in demo.QUESTIONS}) >= 4
    asked = len(demo.QUESTIONS) + demo.HEARD
    assert len(re.findall(r"(?m)^ [+ ] 0?-?[01]\.\d{3}  ", printed)) == demo.BEST * asked
    assert len(re.findall(r"among the 5 best: \d+%; chance would give \d+%", printed)) == 2


def test_line_66_is_the_switch_that_the_readme_names():
    assert "sed -i '66s/saas/c2/' code/config.py" in README
    line = (ROOT / "code" / "config.py").read_text("utf-8").splitlines()[65]
    assert line.startswith('CLAMP3_WEIGHTS = "weights_clamp3_saas"')


def test_every_file_that_the_readme_links_is_there():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target

"""The README: it is short, in its order, its links lead somewhere, and its commands and examples run."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock
from urllib.request import urlopen

import pytest
from pages import ROOT, blocks, commands, prepare, run_page

from clamplib.app import cli
from clamplib.models import hub

README = (ROOT / "README.md").read_text("utf-8")
CARD = (ROOT / "code/clamplib/mini/README.md").read_text("utf-8")
WORDS = 1200
SECTIONS = [
    "Install and see answers",
    "Search your own folder",
    "Use it in Python",
    "Models",
    "Coming from the reference",
    "Read more",
    "Licenses",
    "Citation",
]
NOT_RUN = {
    "make demo": "takes a minute; tests/app/test_demo.py asks fewer tunes",
    "clamp3 demo": "the same",
    "source .venv/bin/activate": "the tests run in their own environment",
    'pip install -c constraints.txt -e ".[all]"': "a download; its names are tested below",
    "conda env create -f environment.yml": "a download; its file is tested below",
    "clamp3 serve music": "does not end; test_the_search_page runs it",
    "import mteb": "needs the published weights; test_the_example_of_mteb goes as far as without them",
}


@pytest.fixture
def place(tmp_path, golden) -> Path:
    return prepare(tmp_path, golden)


def test_a_newcomer_can_read_it_in_five_minutes():
    prose = re.sub(r"(?ms)^```.*?^```$|^\|.*?$", "", README)
    assert len(prose.split()) <= WORDS


def test_its_sections_are_in_order():
    assert re.findall(r"(?m)^## (.*)$", README) == SECTIONS


def test_make_demo_is_its_first_command():
    assert commands(next(block for language, block in blocks("README.md") if language == "bash")) == ["make demo"]


@pytest.mark.slow
def test_every_command_and_example_runs(place, monkeypatch):
    names = run_page("README.md", place, NOT_RUN, monkeypatch)
    assert names["vectors"].shape == (3, 192)
    assert (place / "map.html").is_file() and (place / "ranks.csv").is_file()


def test_every_clamp3_command_is_in_it():
    named = set()
    for language, block in blocks("README.md"):
        if language == "bash":
            named |= {command.split()[1] for command in commands(block) if command.startswith("clamp3 ")}
    assert named == set(re.findall(r"(?m)^    (\w+)", cli.build_parser().format_help()))


def test_the_search_page(place, monkeypatch):
    monkeypatch.setenv("CLAMP3_VARIANT", "mini")
    [serve] = [command for command in NOT_RUN if command.startswith("clamp3 serve")]
    words = [sys.executable, "-m", "clamplib.app.cli", *shlex.split(serve)[1:], "--port", "0"]
    with subprocess.Popen(words, cwd=place, text=True, stdout=subprocess.PIPE) as server:
        try:
            said = server.stdout.readline()
            address = re.match(r"Search 4 sources at (http://127\.0\.0\.1:\d+)", said)[1]
            with urlopen(f"{address}/api/search?q=a%20reel", timeout=120) as answer:
                assert len(json.load(answer)["results"]) == 4
        finally:
            server.kill()


def test_figures_of_mini_are_those_of_its_card():
    [row] = re.findall(r"(?m)^\| `mini`.*$", README)
    figures = re.findall(r"\b0\.\d+", row)
    assert len(figures) == 6
    for figure in figures:
        assert figure in CARD or figure.rstrip("0") in CARD, figure


def test_the_example_of_mteb(monkeypatch, tmp_path):
    """It fails only for want of the weights."""
    monkeypatch.setenv("MTEB_CACHE", str(tmp_path))  # mteb makes the folder when it is imported
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code = next(text for _, text in blocks("README.md") if text.startswith("import mteb"))
    names = {}
    exec(code.rpartition("\n\n")[0], names)
    assert len(names["mteb"].get_benchmark(re.search(r'get_benchmark\("(.*?)"\)', code)[1]).tasks) > 20
    monkeypatch.setattr(hub.huggingface_hub, "hf_hub_download", Mock(side_effect=OSError("no network")))
    with pytest.raises(FileNotFoundError, match="weights_clamp3_saas.*no network"):
        names["CLaMP3MTEB"]("saas")

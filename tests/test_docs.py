"""The pages of docs/ and the other documents: their commands and examples run, and what they name is there."""

import re
from importlib.metadata import metadata
from pathlib import Path

import numpy as np
import pytest
import yaml
from pages import ROOT, TEXTS, blocks, commands, prepare, prepare_classification, prepare_training, run_page
from test_house import GROUND, MAY_IMPORT

import clamplib
from clamplib import CLaMP3Encoder

PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "code/clamplib/mini/README.md", *PAGES]
MERT = "needs the weights of MERT and of CLaMP 3"
SEVERAL_PROCESSES = "several processes; tests/scripts/test_extract_scripts.py runs two"
TRAINING_PROCESSES = "several processes; tests/training/test_loop.py runs two"
CLUSTER = "needs a cluster; tests/scripts/test_cluster.py and tests/embedding/test_collections.py make one"
EXTRACT = "code/extract_clamp3.py scores_interleaved features/scores --get_global"
TRAIN = "code/train_clamp3_symbolic.py --config my_config.py"
NOT_RUN = {
    "python preprocessing/audio/extract_mert.py recordings features/mert --mean_features": MERT,
    "python code/extract_clamp3.py features/mert features/recordings --get_global --variant saas": MERT,
    "python code/extract_clamp3.py texts features/texts_saas --get_global --variant saas": MERT,
    "python retrieval/semantic_search.py features/texts_saas/lament.npy features/recordings": MERT,
    "clamp3 index music --milvus http://localhost:19530": "needs a server; tests/retrieval/test_milvus.py takes one",
    "clamp3 embed music features --backend ray": CLUSTER,
    "clamp3 index music library --backend dask": CLUSTER,
    "python preprocessing/abc/batch_xml2abc.py scores scores_abc --backend ray": CLUSTER,
    f"accelerate launch {EXTRACT}": SEVERAL_PROCESSES,
    f"accelerate launch --multi_gpu --num_processes 2 {EXTRACT}": SEVERAL_PROCESSES,
    "accelerate launch --multi_gpu --num_machines 2 --machine_rank 0 --num_processes 16 "
    f"--main_process_ip 10.0.0.1 --main_process_port 29500 {EXTRACT}": "needs two machines",
    f"python -m torch.distributed.launch --nproc_per_node=2 --use_env {TRAIN}": TRAINING_PROCESSES,
    f"torchrun --nproc_per_node=2 {TRAIN}": TRAINING_PROCESSES,
    "make mini OPENSCORE=folder OPENEWLD=folder": "hours of training",
    "make eval-mini OPENSCORE=folder OPENEWLD=folder": "needs OpenScore",
    "make leave-out COLLECTION=ryansMammoth": "hours of training",
    "make bench": "takes minutes",
    'pip install -c constraints.txt -e ".[all]"': "a download",
}


@pytest.fixture
def place(tmp_path, golden) -> Path:
    return prepare(tmp_path, golden)


def text_of(document: str) -> str:
    return (ROOT / document).read_text("utf-8")


def block_of(page: str, language: str) -> str:
    """Returns the first block of a language."""
    return next(text for name, text in blocks(page) if name == language)


# ------------------------------------------------------------------------------------------- the pages


@pytest.mark.slow
def test_scripts(place, monkeypatch):
    run_page("docs/scripts.md", place, NOT_RUN, monkeypatch)
    vectors = sorted((place / "features/texts").glob("*.npy"))
    assert len(vectors) == len(TEXTS)
    assert all(np.isfinite(np.load(path)).all() for path in vectors)
    line = (place / "code/config.py").read_text("utf-8").splitlines()[65]
    assert line.startswith('CLAMP3_WEIGHTS = "weights_clamp3_c2"')


@pytest.mark.slow
def test_training(place, golden, monkeypatch):
    prepare_training(place, golden, block_of("docs/training.md", "python"))
    run_page("docs/training.md", place, NOT_RUN, monkeypatch)
    assert CLaMP3Encoder.from_pretrained(place / "my_variant").encode("a slow air").shape == (32,)
    assert (place / "packed/shard-00000.tar").is_file() and (place / "packed/pieces.jsonl").is_file()


@pytest.mark.slow
def test_evaluation(place, monkeypatch):
    prepare_classification(place)
    (place / "right.csv").write_text(block_of("docs/evaluation.md", "csv"))
    run_page("docs/evaluation.md", place, NOT_RUN, monkeypatch)
    assert "air" in (place / "ranks.csv").read_text() and "air" in (place / "similarities.csv").read_text()
    assert (place / "weights-tunes.pth").is_file() and "jig" in (place / "labels.json").read_text()


@pytest.mark.slow
def test_scale(place, monkeypatch):
    pytest.importorskip("milvus_lite")
    run_page("docs/scale.md", place, NOT_RUN, monkeypatch)


@pytest.mark.slow
def test_python(place, monkeypatch):
    names = run_page("docs/python.md", place, NOT_RUN, monkeypatch)
    expected = names["encoder"].encode(["a slow air", "a lively reel"])
    np.testing.assert_allclose(names["vectors"], expected, atol=1e-5)  # those of SentenceTransformer


@pytest.mark.slow
def test_reliability(place, monkeypatch):
    names = run_page("docs/reliability.md", place, NOT_RUN, monkeypatch)
    assert list((place / "features").rglob("*.npy")) and names["encoder"].limits.seconds == 20


@pytest.mark.parametrize("page", ["docs/reference.md", "docs/speed.md", "docs/licenses.md"])
def test_pages_without_examples(page, place, monkeypatch):
    run_page(page, place, NOT_RUN, monkeypatch)


def test_every_page_is_run():
    tested = Path(__file__).read_text("utf-8")
    assert all(f'"{page}"' in tested for page in PAGES)


def test_what_is_not_run_is_on_a_page():
    on_pages = set()
    for page in PAGES:
        for language, block in blocks(page):
            on_pages |= set(commands(block)) if language == "bash" else {block.partition("\n")[0]}
    assert set(NOT_RUN) <= on_pages


# ------------------------------------------------------------------------------------------- what they name


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_to_files_and_headings(document):
    targets = re.findall(r"\]\((?!https?:)([^)]+)\)", text_of(document)) + re.findall(r'src="(.*?)"', text_of(document))
    for target in targets:
        name, _, heading = target.partition("#")
        path = (ROOT / document).parent / name if name else ROOT / document
        assert path.exists(), target
        headings = re.findall(r"(?m)^#+ (.*)$", path.read_text("utf-8")) if heading else []
        assert not heading or heading in [re.sub(r"[^\w-]", "", each.lower().replace(" ", "-")) for each in headings]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_make_has_the_targets_that_are_named(document):
    targets = re.search(r"(?m)^\.PHONY: (.*)$", text_of("Makefile"))[1].split()
    assert set(re.findall(r"(?:`|^)make ([\w-]+)", text_of(document), re.M)) <= set(targets)


def test_installs_from_a_clone_name_extras_that_there_are():
    extras = set(metadata("clamplib").get_all("Provides-Extra"))
    sources = [ROOT / document for document in DOCUMENTS]
    for folder in ("code", "preprocessing", "retrieval", "classification", "recipes"):
        sources += (ROOT / folder).rglob("*.py")
    found = [extra for path in sources for extra in re.findall(r'-e \\?"\.\[(.*?)\]', path.read_text("utf-8"))]
    assert found and {name for extra in found for name in extra.split(",")} <= extras
    assert not [path for path in sources if re.search(r"pip install ['\"\\]*clamplib", path.read_text("utf-8"))]
    environment = yaml.safe_load(text_of("environment.yml"))
    assert {"pip": ["-c constraints.txt", "-e .[all]"]} in environment["dependencies"]


def test_contributing_states_who_may_import_whom():
    table = {}
    for room, imports in re.findall(r"(?m)^\| `(\w+)` \| .* \| (.*)\|$", text_of("CONTRIBUTING.md")):
        table[room] = set(re.findall(r"`([\w.]+)`", imports)) | (GROUND if "the ground" in imports else set())
    assert table == {room: allowed for room, allowed in MAY_IMPORT.items() if room != "__main__"}


def test_citation():
    cited = yaml.safe_load(text_of("CITATION.cff"))
    assert cited["cff-version"] == "1.2.0" and cited["version"] == clamplib.__version__
    paper = cited["preferred-citation"]
    bibtex = block_of("README.md", "bibtex")
    authors = re.sub(r"\s+", " ", re.search(r"(?s)author = \{(.*?)\}", bibtex)[1]).split(" and ")
    assert [f"{author['given-names']} {author['family-names']}" for author in paper["authors"]] == authors
    assert paper["title"] in bibtex and paper["identifiers"][0]["value"] == "arXiv:2502.10362"

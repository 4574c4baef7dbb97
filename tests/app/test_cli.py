"""The `clamp3` command: what each part of it prints, in words and in JSON, and what it says of bad input."""

import csv
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from clamplib.app import cli
from clamplib.app.commands import COMMANDS
from clamplib.embedding.encoder import CLaMP3Encoder
from clamplib.retrieval.similarity import load_vector

TUNES = {
    "jigs/book.abc": "X:1\nT:First Jig\nM:6/8\nK:D\nAFA dAF|AFA dfd|\n\nX:2\nT:Second\nM:6/8\nK:G\nGBd gdB|\n",
    "reels/reel.abc": "X:1\nT:A Reel\nM:4/4\nL:1/8\nK:A\neAce aAce|fAdf aAdf|\n",
    "texts/reel.txt": "a lively reel",
    "texts/book.txt": "a jig in six eight",
}


@pytest.fixture(scope="module")
def encoder():
    return CLaMP3Encoder.from_pretrained("mini")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch, encoder):
    """Each test has its own cache, and all share one model."""
    monkeypatch.setenv("CLAMP3_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(CLaMP3Encoder, "from_pretrained", lambda variant, **options: encoder)


@pytest.fixture
def music(tmp_path, golden) -> Path:
    for name, text in TUNES.items():
        path = tmp_path / "music" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    midi = (golden / "midi/in/hm_type0.mid").read_bytes()
    (tmp_path / "music/reels/reel.mid").write_bytes(midi)
    return tmp_path / "music"


@pytest.fixture
def ask(capsys):
    """ask(words…, status=0) -> the JSON that the command answers."""

    def run(*words, status=0):
        assert cli.main([*map(str, words), "--variant", "mini", "--json"]) == status
        return json.loads(capsys.readouterr().out)

    return run


def names(answer):
    return [Path(hit["path"]).name for hit in answer["hits"]]


def test_search_finds_what_python_finds(ask, music, encoder):
    answer = ask("search", "a lively reel", music, "--top_k", 3)
    assert names(answer)[0] == "reel.txt" and answer["hits"][0]["similarity"] == pytest.approx(1, abs=1e-4)
    vectors = encoder.encode_files([music / "reels/reel.abc", music / "reels/reel.mid"])
    among_reels = ask("search", "a lively reel", music / "reels")
    expected = encoder.search("a lively reel", vectors)[0]
    assert [hit["similarity"] for hit in among_reels["hits"]] == pytest.approx([s for _, s in expected], abs=1e-4)
    scores = ask("search", "jig", music, "--modality", "score")
    assert {hit["modality"] for hit in scores["hits"]} == {"score"} and len(scores["hits"]) == 3
    assert sum(name.startswith("book.abc#") for name in names(scores)) == 2


def test_a_file_may_ask(ask, music):
    answer = ask("search", music / "reels/reel.abc", music / "reels", "--top_k", 1)
    assert names(answer) == ["reel.abc"]


def test_words_for_people(music, capsys):
    assert cli.main(["search", "a jig", str(music), "--variant", "mini", "--top_k", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all(re.fullmatch(r" *-?\d\.\d{3}  .+", line) for line in lines)


def test_a_second_search_runs_no_model_on_files(ask, music, encoder, monkeypatch):
    first = ask("search", "a jig", music)
    monkeypatch.setattr(CLaMP3Encoder, "encode_each", forbid_files(CLaMP3Encoder.encode_each))
    assert ask("search", "a jig", music) == first


def forbid_files(encode_each):
    def only_texts(self, items, *args, **options):
        assert all(isinstance(item, str) for item in items), "a file was embedded again"
        return encode_each(self, items, *args, **options)

    return only_texts


def test_bad_files_are_named_and_the_others_found(ask, music, capsys):
    (music / "broken.mid").write_bytes(b"MThd")
    answer = ask("search", "a jig", music, status=1)
    assert len(answer["hits"]) == 6
    assert [Path(failure["file"]).name for failure in answer["failures"]] == ["broken.mid"]
    assert cli.main(["search", "a jig", str(music), "--variant", "mini"]) == 1
    assert "left out: " in (error := capsys.readouterr().err) and "broken.mid" in error


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["search", "a jig", "MUSIC/none"], "there is none"),
        (["search", "a jig"], "expected a folder or an index to search"),
        (["search", "a jig", "MUSIC", "--below", "MUSIC/reels"], "need an index"),
        (["search", "a jig", "MUSIC/reels", "--modality", "audio"], "expected audio files, found none"),
        (["classify", "MUSIC", "jig"], "at least two classes"),
        (["classify", "MUSIC/reels", "jig", "reel", "--labels", "folders"], "expected true labels such as 'jig'"),
        (["eval", "MUSIC/texts", "MUSIC/reels", "--csv", "MUSIC"], "music: expected the name of a file to write"),
        (["eval", "MUSIC/texts", "MUSIC/jigs"], "expected common keys, found none"),
        (["eval", "MUSIC/texts", "MUSIC/jigs", "--relevance", "MUSIC/none.csv"], "none.csv"),
        (["index", "MUSIC"], "expected a folder for the index"),
        (["search", "a jig", "--milvus", "MUSIC/none.db"], "make it with `clamp3 index`"),
    ],
)
def test_errors_say_what_to_do(words, said, ask, music):
    answer = ask(*(word.replace("MUSIC", str(music)) for word in words), status=1)
    assert said in answer["error"]


def test_embed_writes_features_that_search_takes(ask, music, tmp_path, encoder):
    output = tmp_path / "features"
    assert ask("embed", music, output)["done"] == 6
    assert ask("embed", music, output) == {"done": 0, "skipped": 6, "failures": []}
    assert (output / "space.json").is_file() and (output / "jigs/book-0002.npy").is_file()
    expected = encoder.encode(music / "reels/reel.abc", normalize_embeddings=False)
    np.testing.assert_allclose(load_vector(output / "reels/reel.abc.npy"), expected, atol=1e-4)
    assert len(ask("search", "a jig", output, "--top_k", 4)["hits"]) == 4


def test_index_follows_its_folder(ask, music, tmp_path):
    place = tmp_path / "library"
    assert ask("index", music, place, "--labels", "folders") == {
        "changed": 6,
        "removed": 0,
        "records": 6,
        "failures": [],
    }
    assert ask("index", music, place, "--labels", "folders")["changed"] == 0
    found = ask("search", "a lively reel", place, "--top_k", 9)
    assert names(found) == names(ask("search", "a lively reel", music, "--top_k", 9))
    assert set(names(ask("search", "a jig", place, "--label", "jigs"))) == {"book.abc#1", "book.abc#2"}
    below = ask("search", "a jig", place, "--below", music / "reels")
    assert set(names(below)) == {"reel.abc", "reel.mid"}
    (music / "reels/reel.mid").unlink()
    (music / "jigs/book.abc").rename(music / "jigs/moved.abc")
    assert ask("index", music, place, "--labels", "folders") == {
        "changed": 2,
        "removed": 3,
        "records": 5,
        "failures": [],
    }
    assert {"moved.abc#1", "moved.abc#2"} <= set(names(ask("search", "a jig", place)))


def test_index_names_what_it_cannot_read(ask, music, tmp_path, capsys):
    (music / "gone.abc").symlink_to("nowhere")
    (music / "broken.mid").write_bytes(b"MThd")
    answer = ask("index", music, tmp_path / "library", status=1)
    assert (answer["changed"], answer["records"]) == (6, 6)
    assert [Path(failure["file"]).name for failure in answer["failures"]] == ["broken.mid", "gone.abc"]
    assert cli.main(["index", str(music), str(tmp_path / "library"), "--variant", "mini"]) == 1
    said = capsys.readouterr()
    assert "gone.abc: there is no such file" in said.err
    assert said.out == f"0 added or changed, 0 removed, 6 in {tmp_path / 'library'}\n"


def test_index_in_milvus(ask, music, tmp_path):
    pytest.importorskip("pymilvus")
    pytest.importorskip("milvus_lite")
    place = tmp_path / "library.db"
    assert ask("index", music, "--milvus", place)["records"] == 6
    found = ask("search", "a lively reel", "--milvus", place)
    expected = ask("search", "a lively reel", music)
    assert names(found) == names(expected)


def test_index_shows_no_password(music, tmp_path, capsys):
    pytest.importorskip("pymilvus")
    pytest.importorskip("milvus_lite")
    from milvus_lite.adapter.grpc.server import start_server_in_thread

    server, data, port = start_server_in_thread(str(tmp_path / "data"))
    try:
        place = f"http://somebody:secret@127.0.0.1:{port}"
        assert cli.main(["index", str(music / "texts"), "--milvus", place, "--variant", "mini"]) == 0
        shown = capsys.readouterr()
        assert f"2 added or changed, 0 removed, 2 in http://127.0.0.1:{port}\n" in shown.out
        assert "secret" not in shown.out + shown.err
    finally:
        server.stop(grace=0).wait()
        data.close()


def test_score(ask, music, tmp_path):
    twin = tmp_path / "twin"
    twin.mkdir()
    for name in ("reel.abc", "reel.mid"):
        (twin / name).write_bytes((music / "reels" / name).read_bytes())
    table = tmp_path / "pairs.csv"
    answer = ask("score", twin, music / "reels", "--csv", table)
    assert answer["similarity of centroids"]["value"] == pytest.approx(1, abs=1e-4)
    assert answer["Frechet distance"] == pytest.approx(0, abs=1e-3)
    assert answer["sizes"] == [2, 2] and any("Frechet" in note for note in answer["notes"])
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [*rows[0]] == ["query", "reference", "similarity"] and float(rows[0]["similarity"]) == pytest.approx(1)


def test_eval(ask, music, tmp_path):
    scores = tmp_path / "scores"
    scores.mkdir()
    for name in ("reel", "book"):
        (scores / f"{name}.txt").write_text(TUNES[f"texts/{name}.txt"])
    table = tmp_path / "ranks.csv"
    answer = ask("eval", music / "texts", scores, "--at", 1, "--csv", table)
    assert answer["mrr"] == {"value": 1.0, "low": 1.0, "high": 1.0} and answer["hit@1"]["value"] == 1
    assert answer["queries"] == answer["references"] == 2
    assert [row["rank"] for row in csv.DictReader(table.read_text().splitlines())] == ["1", "1"]


@pytest.fixture
def judged(tmp_path, encoder) -> Path:
    """Queries a, b and c, four references, and what is right: a finds r1, r2, r3, r4 in this order, b the other way."""
    axes = np.eye(encoder.dimension, dtype=np.float32)
    vectors = {"queries/a": axes[0], "queries/b": -axes[0], "queries/c": axes[1]}
    for number, similarity in enumerate((0.9, 0.8, 0.7, 0.6), start=1):
        vectors[f"references/r{number}"] = similarity * axes[0] + np.sqrt(1 - similarity**2) * axes[number]
    for name, vector in vectors.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        np.save(tmp_path / f"{name}.npy", vector)
    (tmp_path / "right.csv").write_text("query,reference,relevance\na,r2,1\na,r4,3\nb,r4,2\nb,r1,0\n")
    return tmp_path


def test_eval_by_a_table(ask, judged, capsys):
    words = ["eval", judged / "queries", judged / "references", "--relevance", judged / "right.csv", "--at", 1, 2, 4]
    answer = ask(*words, "--csv", judged / "values.csv")
    assert (answer["queries"], answer["references"]) == (2, 4) and answer["left_out"] == {"queries": 1, "references": 0}
    expected = {  # a: wrong, grade 1, wrong, grade 3; b: grade 2 first
        "median_rank": (2, 1),
        "mrr": (1 / 2, 1),
        "hit@1": (0, 1),
        "hit@2": (1, 1),
        "ndcg@2": (1 / np.log2(3) / (3 + 1 / np.log2(3)), 1),
        "ndcg@4": ((1 / np.log2(3) + 3 / np.log2(5)) / (3 + 1 / np.log2(3)), 1),
        "map": ((1 / 2 + 2 / 4) / 2, 1),
        "map@2": (1 / 2 / 2, 1),
    }
    for name, values in expected.items():
        assert answer[name]["value"] == pytest.approx(np.mean(values)), name
        assert [answer[name]["low"], answer[name]["high"]] == pytest.approx(sorted(values)), name  # of two queries
    a, b = csv.DictReader((judged / "values.csv").read_text().splitlines())
    assert [Path(row["query"]).name for row in (a, b)] == ["a.npy", "b.npy"]
    assert [(row["right"], row["rank"], float(row["ap"])) for row in (a, b)] == [("2", "2", 0.5), ("1", "1", 1)]
    assert float(a["ndcg@4"]) == pytest.approx(expected["ndcg@4"][0])
    assert cli.main([*map(str, words), "--variant", "mini"]) == 0
    first, *table = capsys.readouterr().out.splitlines()
    left = f"1 queries without a right reference in {judged / 'right.csv'}"
    assert first == f"2 queries among 4 references; left out: {left}"
    assert "map          0.7500  (95 %: 0.5000 to 1.0000)" in table


def test_eval_names_what_its_table_misnames(ask, judged):
    (judged / "right.csv").write_text("query,reference\na,r1\nb,r9\n")
    answer = ask("eval", judged / "queries", judged / "references", "--relevance", judged / "right.csv", status=1)
    expected = "right.csv, line 3: expected the key of a reference with a vector, such as 'r1', got 'r9'"
    assert answer["error"].endswith(expected)


def test_classify(ask, music, tmp_path, encoder):
    (music / "texts").rename(tmp_path / "texts")
    answer = ask("classify", music, "jigs", "reels", "--labels", "folders")
    paths = [music / "reels/reel.abc", music / "reels/reel.mid"]
    given = {Path(label["path"]).name: label["label"] for label in answer["labels"]}
    assert [given["reel.abc"], given["reel.mid"]] == encoder.classify(paths, ["jigs", "reels"])
    assert len(answer["labels"]) == 4 and 0 <= answer["accuracy"] <= 1 and np.sum(answer["confusion"]) == 4
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps({"jigs": ["a jig", "a jig in six eight"], "reels": ["a reel"]}))
    assert len(ask("classify", music, "--prompts", prompts)["labels"]) == 4


@pytest.mark.parametrize("suffix", [".html", ".png"])
def test_map(suffix, ask, music, tmp_path):
    output = tmp_path / f"map{suffix}"
    assert ask("map", music, output) == {"points": 6, "output": str(output), "failures": []}
    if suffix == ".html":
        assert all(title in output.read_text("utf-8") for title in ("First Jig", "Second", "A Reel", "reel.mid"))
    else:
        assert output.read_bytes().startswith(b"\x89PNG")


def test_serve_gets_the_library(music, monkeypatch):
    web = pytest.importorskip("clamplib.app.web")
    served = {}
    monkeypatch.setattr(
        web, "serve_page", lambda encoder, library, folder, **options: served.update(options, n=len(library))
    )
    assert cli.main(["serve", str(music), "--variant", "mini", "--port", "0"]) == 0
    assert served == {"n": 6, "host": "127.0.0.1", "port": 0, "open_browser": False}
    assert cli.main(["serve", str(music), "--variant", "mini"]) == 0
    assert served["port"] == web.PORT


def test_classify_prints_accuracy_once(music, capsys):
    """Of the six files four are judged: the two texts have a label that is not a class."""
    assert cli.main(["classify", str(music), "jigs", "reels", "--labels", "folders", "--variant", "mini"]) == 0
    out = capsys.readouterr().out
    assert "2 features have no true label, or one that is no class: they are not judged." in out
    assert len(re.findall(r"\baccuracy\b", out, re.IGNORECASE)) == 1
    assert len(re.findall(r"\bmacro f1\b", out, re.IGNORECASE)) == 1
    assert re.search(r"^Accuracy: \S+ of 4 \(95 % interval", out, re.MULTILINE)


def test_prompts_are_classes_with_texts(ask, music, tmp_path):
    (tmp_path / "prompts.json").write_text('["jig", "reel"]')
    answer = ask("classify", music, "--prompts", tmp_path / "prompts.json", status=1)
    assert "at least two classes" in answer["error"]


def test_help_loads_no_torch():
    code = (
        "import sys, clamplib.app.cli as c\ntry: c.main(['search', '--help'])\nfinally: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert "example: clamp3 search" in done.stdout and done.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_ends_with_an_example_that_parses(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main([name, "--help"])
    shown = capsys.readouterr().out
    example = shown.strip().splitlines()[-1].removeprefix("example: clamp3 ")
    assert "%" not in shown and shlex.split(example)[0] == name
    assert cli.build_parser().parse_args(shlex.split(example)).command == name


def test_the_package_runs_as_the_command():
    done = subprocess.run([sys.executable, "-m", "clamplib", "search"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("usage: clamp3 search")

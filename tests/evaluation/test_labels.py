import json

import numpy as np
import pytest

from clamplib.evaluation.labels import (
    feature_labels,
    label_in_name,
    merged_labels,
    merged_warning,
    read_table,
    save_labels,
)
from clamplib.files import InputError
from clamplib.retrieval.similarity import load_features


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Features under a folder that is named relative to the working directory, as a user would."""
    monkeypatch.chdir(tmp_path)
    for name in ("jig_1", "more/reel_1", "more/reel_2.a", "plain"):
        path = tmp_path / "f" / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.ones((1, 2), np.float32))
    return "f"


def table(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def labels(folder, source="names"):
    features = load_features(folder)
    return dict(zip(features.keys, feature_labels(features.paths, features.keys, folder, source), strict=True))


def test_the_label_is_before_the_first_underscore(folder):
    names = ("jig_1.npy", "a/slip-jig_2_x.npy", "v1.0_x.npy", "reel.1.npy", "慢板_1.npy")
    assert [label_in_name(name) for name in names] == ["jig", "slip-jig", "v1.0", "reel", "慢板"]
    assert labels(folder) == {"jig_1": "jig", "more/reel_1": "reel", "more/reel_2": "reel", "plain": "plain"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", "label,key,composer\nslip_jig,jig_1,x\nreel,more/reel_2,\n,plain,\n"),
        ("t.CSV", '\ufeffkey,label\r\njig_1,"slip_jig"\r\nmore/reel_2,reel\r\n'),
        ("t.tsv", "path\tlabel\njig_1.npy\tslip_jig\n./more/reel_2.a.npy\treel\n"),
        ("t.csv", "path,label\nf/jig_1.npy,slip_jig\nf/more/reel_2.a.npy,reel\nelsewhere.npy,x\n"),
        (
            "t.jsonl",
            '{"path": "HERE/f/jig_1.npy", "label": "slip_jig"}\n\n{"path": "more/reel_2.a.npy", "label": "reel"}',
        ),
    ],
)
def test_tables(folder, tmp_path, name, text):
    source = table(tmp_path / name, text.replace("HERE", str(tmp_path)))
    assert labels(folder, source) == {"jig_1": "slip_jig", "more/reel_1": None, "more/reel_2": "reel", "plain": None}


def test_numbers_can_be_labels(tmp_path):
    assert read_table(table(tmp_path / "t.jsonl", '{"key": "a", "label": 3}')).labels == {"a": "3"}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.txt", "", "expected a table of labels"),
        ("t.csv", "", "found none in it"),
        ("t.csv", "path;label\na;b\n", r"t\.csv, line 2: expected `path` or `key`, and `label`; got 'path;label'"),
        ("t.csv", "key,label\na,b\na,c\n", "line 3: expected one label for 'a', got 'c' here and 'b' before"),
        ("t.jsonl", '{"key": "a", "label": "b"}\n{"path": "a", "label": "b"}', "got both"),
        ("t.jsonl", '\n{"key": "a"', "line 2: expected a JSON object"),
        ("t.jsonl", "[1]", "line 1: expected a JSON object, got list"),
    ],
)
def test_bad_tables_are_named(tmp_path, name, text, message):
    with pytest.raises(InputError, match=message):
        read_table(table(tmp_path / name, text))


def test_a_table_that_is_not_utf_8(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"key,label\na,\xff\n")
    with pytest.raises(InputError, match="UTF-8"):
        read_table(tmp_path / "t.csv")


def test_a_table_of_other_files_is_refused(folder, tmp_path):
    source = table(tmp_path / "t.csv", "path,label\nx.npy,a\n")
    with pytest.raises(InputError, match=r"such as path 'jig_1\.npy'; its 1 rows, such as 'x\.npy', name none of them"):
        labels(folder, source)


def numbered(**counts):
    names = []
    for name, count in counts.items():
        names += [f"{name}_{number:02}.npy" for number in range(count)]
    return names


def test_merged_labels_are_suspected():
    names = numbered(hip_hop=3, hip_house=2, rock_hard=4, rock_soft=4, rock=1, jazz=5)
    assert merged_labels(names) == {"hip": ["hip_hop", "hip_house"], "rock": ["rock_hard", "rock_soft"]}
    warning = merged_warning(names)
    assert "'hip' for hip_hop, hip_house" in warning and "--labels" in warning
    deeper = [f"{kind}_{i}_v{i}.1.npy" for kind in ("drum_bass", "drum_solo") for i in range(3)]
    assert merged_labels(deeper) == {"drum": ["drum_bass", "drum_solo"]}


@pytest.mark.parametrize(
    "names",
    [
        numbered(jig=5, reel=5),
        numbered(folk_song=9, rock_song=9),
        numbered(folk_song=9, rock_hymn=9),  # one word per label: nothing is merged
        numbered(jig_train=3, jig_test=3, reel_train=3, reel_test=3),
        numbered(jig_smith=3, jig_jones=3, reel_smith=2, reel_jones=4),
        ["jig_the_lark.npy", "jig_the_wind.npy", "jig_old_joe.npy", "jig_old_man.npy"],
        ["jig_morning_dew_1.npy", "jig_morning_star_2.npy", "jig_old_man_3.npy", "jig_lark_4.npy", "jig_ben_5.npy"],
        ["a_12_34.npy", "a_13_35.npy", "a_12_36.npy", "a_13_37.npy"],  # dates, or ids
        ["a_0f3c_1.npy", "a_0f3c_2.npy", "a_9b2d_1.npy", "a_9b2d_2.npy"],
        ["plain.npy"],
    ],
)
def test_other_names_are_not_suspected(names):
    assert merged_labels(names) == {}
    assert merged_warning(names) is None


def test_saved_labels_are_json(tmp_path):
    save_labels(tmp_path / "new" / "labels.json", {"ü/a.npy": "慢板"})
    assert json.loads((tmp_path / "new" / "labels.json").read_text("utf-8")) == {"ü/a.npy": "慢板"}

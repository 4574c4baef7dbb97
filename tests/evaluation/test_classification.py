import sys

import numpy as np
import pytest

from clamplib.evaluation.classification import describe_confusion, draw_confusion
from clamplib.files import InputError

MATRIX = np.array([[20, 1, 0], [2, 18, 1], [0, 0, 5]])


def test_confusion_as_text():
    lines = describe_confusion(MATRIX, ["jig", "slip jig", "慢板"]).splitlines()
    assert lines[0].startswith("Accuracy: 0.9149 of 47 (95 % interval 0.8")
    assert lines[1].startswith("Macro F1: 0.9")
    assert [line.split() for line in lines[3:]] == [
        ["0", "1", "2"],
        ["0", "jig", "20", "1", "."],
        ["1", "slip", "jig", "2", "18", "1"],
        ["2", "慢板", ".", ".", "5"],
    ]
    ends = {len(line) for line in lines[3:]}
    assert len(ends) == 1  # columns are aligned


@pytest.mark.parametrize("classes", [3, 40])
def test_confusion_as_a_picture(tmp_path, classes):
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    matrix = np.pad(MATRIX, (0, classes - 3))
    names = [f"${number}_{{" for number in range(classes)]  # not a formula
    draw_confusion(tmp_path / "new" / "a.png", matrix, names)
    picture = imread(tmp_path / "new" / "a.png")
    assert min(picture.shape[:2]) >= 400 and picture[..., :3].std() > 0.05
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]


def test_a_suffix_of_another_kind_is_refused(tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.raises(InputError, match="a.txt: expected the name of a picture"):
        draw_confusion(tmp_path / "a.txt", MATRIX, ["a", "b", "c"])


def test_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        draw_confusion(tmp_path / "a.png", MATRIX, ["a", "b", "c"])
    assert not (tmp_path / "a.png").exists()

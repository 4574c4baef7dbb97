import json
import math
import random
from collections import Counter

import numpy as np
import pytest
from training_helpers import FIELDS

from clamplib.formats.patchilizer import M3Patchilizer
from clamplib.training import augment

ABC = (
    '%%score 1\nL:1/8\nQ:1/4=96\nM:3/4\nK:G\nV:1 treble nm="Violin"\n[V:1]G2 [K:D] "^M: no header"B2|\nK:D\n[V:1]d6|]\n'
)


def test_instruments_golden(golden):
    for name, case in json.loads((golden / "instrument/cases.json").read_text()).items():
        assert augment.remove_instrument_info(case["in"]) == case["out"], name


def test_hidden_header():
    assert augment.hide_header(ABC) == 'V:1 treble nm="Violin"\n[V:1]G2 [K:D] "^M: no header"B2|\n[V:1]d6|]\n'


def test_mtf_has_no_header_to_hide():
    mtf = "ticks_per_beat 480\nkey_signature G 0\n"
    assert augment.hide_header(mtf) == mtf


def draws(fields, count=4000):
    return [augment.drop_text(fields, random.Random(seed)) for seed in range(count)]


def test_text_dropout_shares():
    drawn = draws(FIELDS)
    own = [lines for lines in drawn if set(lines) <= {"A reel", "fast", "Irish", "fiddle"}]
    assert len(own) / len(drawn) == pytest.approx(0.5, abs=0.03)
    assert all(set(lines) <= {"German", "Ein Reel"} for lines in drawn if lines not in own)
    lengths = Counter(map(len, own))  # each line with 1/2; none: all
    for length in (1, 2, 3):
        assert lengths[length] / len(own) == pytest.approx(math.comb(4, length) / 16, abs=0.04)
    assert lengths[4] / len(own) == pytest.approx(2 / 16, abs=0.03)
    assert len({tuple(lines) for lines in own if len(lines) == 4}) > 15  # shuffled


@pytest.mark.parametrize("translations", [None, {}, [], {"title": None}, [None], "odd"])
def test_text_without_translations(translations):
    assert all(lines == ["A reel"] for lines in draws({"title": "A reel", "translations": translations}, 50))


def test_text_in_translations_only():
    assert all(lines == ["Ein Reel"] for lines in draws({"translations": {"title": "Ein Reel"}}, 50))


def test_one_of_several_translations():
    fields = {"title": "A reel", "translations": [{"title": "Ein Reel"}, {"title": "Un reel"}]}
    shares = Counter(lines[0] for lines in draws(fields))
    assert shares["Ein Reel"] / 4000 == pytest.approx(0.25, abs=0.03)
    assert shares["Un reel"] / 4000 == pytest.approx(0.25, abs=0.03)


def test_windows():
    assert augment.random_window(5, 5, random.Random(0)) == slice(0, 5)
    starts = Counter(augment.random_window(14, 10, random.Random(seed)).start for seed in range(6000))
    expected = {0: 4 / 12, 4: 5 / 12, 1: 1 / 12, 2: 1 / 12, 3: 1 / 12}
    assert set(starts) == set(expected)
    for start, share in expected.items():
        assert starts[start] / 6000 == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize("count", [1, 2, 7, 512])
def test_number_of_selected_patches(count):
    assert augment.select_patches(count, 0.45, random.Random(1)).sum() == math.ceil(0.45 * count)


def test_corrupted_patches():
    patches = M3Patchilizer().encode_array(ABC, add_special_patches=True)
    selected = augment.select_patches(len(patches), 0.45, random.Random(0))
    before, fates = patches.copy(), Counter()
    for seed in range(2000):
        read = augment.corrupt_patches(patches, selected, random.Random(seed))
        assert (read[~selected] == patches[~selected]).all()
        if (read == patches).all():
            fates["kept"] += 1
        elif (read[selected] == 3).all():
            fates["masked"] += 1
        else:
            fates["shuffled"] += 1
            assert (np.sort(read) == np.sort(patches)).all()
            assert (read[:, 0] == 1).all()
            assert ((read == 2) == (patches == 2)).all()
    assert (patches == before).all()
    assert fates["masked"] / 2000 == pytest.approx(0.8, abs=0.04)
    assert fates["shuffled"] / 2000 == pytest.approx(0.1, abs=0.03)

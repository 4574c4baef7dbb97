"""A thousand mutated files give whole values or one reason each, and so do all inputs that were findings once."""

import json
import os
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import fuzz
import pytest
from fuzz_outcomes import LEAKED, LEFT, NOT_WHOLE, PRINTED, REASON, examine, is_unchanged, make_input
from fuzz_readers import READERS, Broken, FuzzedReader
from fuzz_seeds import write_seeds

from clamplib.files import InputError
from clamplib.jobs import Limits

COUNT = 1000
SEED = 3
LIMITS = Limits(seconds=60, memory=2)  # so that a busy machine makes no finding
OPEN: set[str] = set()  # findings that are not mended yet
FINDINGS = sorted((Path(__file__).parent / "findings").glob("*/*"))


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


@pytest.fixture(scope="module")
def seeds(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz") / "seeds"
    write_seeds(folder)
    return folder


@pytest.mark.slow
def test_mutated_files_are_read_whole_or_refused(seeds):
    rows, findings = fuzz.run(seeds, fuzz.plan(COUNT, SEED, list(READERS)), SEED, workers=1, limits=LIMITS)
    counts = sum((row.counts for row in rows.values()), Counter())
    assert sum(counts.values()) == COUNT and len(rows) == len(READERS)
    assert min(counts[fuzz.WHOLE], counts[fuzz.REFUSED]) > COUNT / 5, "the mutations are too wild or too tame"
    defects = [finding for finding in findings if finding.outcome not in fuzz.LIMITED]
    assert not defects, defects
    assert sum(counts[outcome] for outcome in fuzz.LIMITED) < COUNT / 100


@pytest.fixture(scope="module")
def results(seeds) -> dict[Path, fuzz.Result]:
    jobs = [(path.parent.name, path.read_bytes()) for path in FINDINGS]
    return dict(zip(FINDINGS, fuzz.examine_all(seeds, jobs, 2, LIMITS), strict=True))


@pytest.mark.parametrize("path", FINDINGS, ids=name_of)
def test_a_finding_is_mended(results, path, request):
    if name_of(path) in OPEN:
        request.applymarker(pytest.mark.xfail(strict=True, reason="is not mended yet"))
    result = results[path]
    assert result.outcome in (fuzz.WHOLE, fuzz.REFUSED), f"{result.outcome} {result.place}: {result.detail}"


def test_equal_seeds_make_equal_inputs(seeds, tmp_path):
    write_seeds(tmp_path / "again")
    for name in READERS:
        inputs = [make_input(seeds, 1, name, number) for number in range(1, 6)]
        assert inputs == [make_input(tmp_path / "again", 1, name, number) for number in range(1, 6)], name
        assert inputs != [make_input(seeds, 2, name, number) for number in range(1, 6)]


def test_an_unchanged_seed_is_among_the_inputs(seeds):
    assert is_unchanged(0)
    assert make_input(seeds, 1, "mtf", 0) in [path.read_bytes() for path in (seeds / "mtf").iterdir()]


def refuse(reason: str):
    def read(path):
        raise InputError(reason.replace("PATH", str(path)))

    return read


def leak(path):
    return {}["x"]


def be_broken(path):
    raise Broken("half a value")


def leave_a_file(path):
    Path(tempfile.mkdtemp(), "x").touch()


@pytest.mark.parametrize(
    ("read", "outcome"),
    [
        (lambda path: path.read_bytes(), fuzz.WHOLE),
        (refuse("PATH: expected a text, got another"), fuzz.REFUSED),
        (refuse("expected a text, got another"), REASON),  # of which file?
        (refuse("PATH: this is wrong"), REASON),
        (refuse("PATH: expected a text, got \x1b[31m"), REASON),
        (leak, LEAKED),
        (be_broken, NOT_WHOLE),
        (lambda path: print("x"), PRINTED),
        (lambda path: os.write(2, b"x"), PRINTED),
        (lambda path: warnings.warn("x", stacklevel=1), PRINTED),
        (leave_a_file, LEFT),
        (lambda path: path.with_name("x").touch(), LEFT),
        (lambda path: path.write_bytes(b"y") and None, LEFT),
    ],
)
def test_outcomes(read, outcome, seeds, monkeypatch):
    monkeypatch.setitem(READERS, "own", FuzzedReader(read, "text", "text", "input.txt"))
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # as in the processes of a user
        assert examine(seeds, ("own", b"x")).outcome == outcome


def test_a_finding_is_made_smaller(seeds):
    finding = fuzz.Finding("text", fuzz.REFUSED, "", "", [1], b"a slow air \xff in D" * 20)
    assert fuzz.shrink(seeds, finding, 60, 1, LIMITS) == b"\xff"


def test_ended_processes_have_their_outcomes():
    assert fuzz.ended("reading it took more than 60 seconds; --timeout allows more").outcome == fuzz.TIME
    assert fuzz.ended("reading it took more than 4 GiB of memory; --memory allows more").outcome == fuzz.MEMORY
    assert fuzz.ended("the process that worked on it died: out of memory, or a crash").outcome == fuzz.DIED


def test_the_command_reports_and_replays(tmp_path, capsys):
    words = ["--readers", "text", "labels.csv", "--count", "20", "--workers", "1", "--out", str(tmp_path / "out")]
    assert fuzz.main([*words, "--report", str(tmp_path / "report.json")]) == 0
    assert "| all | 20 |" in capsys.readouterr().out
    assert set(json.loads((tmp_path / "report.json").read_text())["readers"]) == {"text", "labels.csv"}
    (tmp_path / "a.txt").write_bytes(b"\xff")
    assert fuzz.main(["--replay", str(tmp_path / "a.txt"), "--reader", "text"]) == 0
    assert "expected UTF-8 text" in capsys.readouterr().out

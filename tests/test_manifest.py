"""What decides that an output is up to date: the size, the times and the content of its input."""

import os

import pytest

from clamplib import database
from clamplib.files import file_state
from clamplib.manifest import Manifest, content_of


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CLAMP3_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def made(tmp_path):
    """An input, and an output that was made from it."""
    source, target = tmp_path / "in.txt", tmp_path / "in.npy"
    source.write_text("one")
    target.touch()
    note(source, target)
    return source, target


def note(source, target):
    with Manifest() as manifest:
        manifest.add(target, file_state(source), content_of(source, file_state(source)))


def is_done(source, target) -> bool:
    with Manifest() as manifest:
        return manifest.missing([(source, target)]) == []


def test_a_changed_input_with_an_older_time_is_seen(made):
    source, target = made
    assert is_done(source, target)
    for text in ("two", "of another size"):
        source.write_text(text)
        os.utime(source, ns=(1, 1))
        assert not is_done(source, target)


def test_the_same_content_with_other_times_is_done_and_not_read_twice(made, monkeypatch):
    source, target = made
    os.utime(source)
    assert is_done(source, target)
    monkeypatch.setattr("clamplib.manifest.sha256", None)
    assert is_done(source, target)


def test_what_is_gone_is_not_done(made):
    source, target = made
    target.unlink()
    assert not is_done(source, target)
    target.touch()
    source.unlink()
    assert not is_done(source, target)


def test_an_input_that_changed_while_it_was_read_is_read_again(made):
    source, target = made
    before = file_state(source)
    source.write_text("while it was read")
    with Manifest() as manifest:
        manifest.add(target, before, content_of(source, before))
    assert not is_done(source, target)


@pytest.mark.parametrize("lost", [True, False])
def test_outputs_that_are_not_known_are_judged_by_their_times(made, tmp_path, monkeypatch, lost, caplog):
    source, target = made
    database = tmp_path / "cache/outputs.sqlite"
    if lost:
        database.unlink()
    else:
        database.write_bytes(b"no database" * 99)
    assert is_done(source, target)
    os.utime(target, ns=(1, 1))
    assert not is_done(source, target)
    assert len(caplog.records) == (0 if lost else 2)  # one for each Manifest


def test_what_was_noted_before_an_error_is_kept(made):
    source, target = made
    os.utime(target, ns=(1, 1))
    source.write_text("two")
    with pytest.raises(KeyboardInterrupt), Manifest() as manifest:
        manifest.add(target, file_state(source), content_of(source, file_state(source)))
        raise KeyboardInterrupt
    assert is_done(source, target)


def test_outputs_are_noted_once_per_second(tmp_path, monkeypatch):
    now, written = [0.0], []
    monkeypatch.setattr("clamplib.manifest.time.monotonic", lambda: now[0])
    monkeypatch.setattr(database.Database, "write", lambda self, statement, rows: written.append(len(rows)))
    with Manifest() as manifest:
        for now[0] in (0, 0.1, 0.9, 1.0, 1.1, 9, 9.5):
            manifest.add(tmp_path / f"{now[0]}", "state", "content")
    assert written == [4, 2, 1]


def test_many_at_once_and_names_that_are_not_text(tmp_path, monkeypatch):
    monkeypatch.setattr(database, "ASKED_AT_ONCE", 50)
    jobs = []
    for number in range(201):
        source, target = tmp_path / os.fsdecode(b"%d \xe9\n.txt" % number), tmp_path / f"{number}.npy"
        source.touch()
        target.touch()
        jobs.append((source, target))
    with Manifest() as manifest:
        for source, target in jobs:
            manifest.add(target, file_state(source), content_of(source, file_state(source)))
    for _, target in jobs:
        os.utime(target, ns=(1, 1))
    jobs[7][0].write_text("changed")
    with Manifest() as manifest:
        assert manifest.missing(jobs) == [jobs[7]]

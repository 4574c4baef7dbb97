"""Results are saved soon, many at a time, whatever happens next."""

import time

import pytest

from clamplib.embedding import saving
from clamplib.embedding.saving import Saver


def wait_for(condition) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_results_are_saved_while_nothing_else_happens(monkeypatch):
    monkeypatch.setattr(saving, "SAVE_SECONDS", 0.001)
    saved = []
    with Saver(saved.extend) as saver:
        for number in range(3):
            saver.add(number)
            wait_for(lambda number=number: saved == list(range(number + 1)))


def test_quick_results_are_saved_together(monkeypatch):
    monkeypatch.setattr(saving, "SAVE_SECONDS", 1000)
    monkeypatch.setattr(saving, "SAVED_AT_ONCE", 40)
    saved = []
    with Saver(saved.append) as saver:
        for number in range(100):
            saver.add(number)
    assert saved == [list(range(40)), list(range(40, 80)), list(range(80, 100))]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, SystemExit])
def test_what_was_added_before_an_exception_is_saved(error, monkeypatch):
    monkeypatch.setattr(saving, "SAVE_SECONDS", 1000)
    saved = []
    with pytest.raises(error), Saver(saved.extend) as saver:
        saver.add(1)
        raise error
    assert saved == [1]


def test_ctrl_c_while_results_are_saved_loses_none(monkeypatch):
    monkeypatch.setattr(saving, "SAVE_SECONDS", 1000)
    monkeypatch.setattr(saving, "SAVED_AT_ONCE", 2)
    saved = []

    def save(results):
        if "interrupted" not in saved:
            saved.append("interrupted")
            raise KeyboardInterrupt
        saved.extend(results)

    with pytest.raises(KeyboardInterrupt), Saver(save) as saver:
        for number in range(9):
            saver.add(number)
    assert saved == ["interrupted", 0, 1]


def test_what_was_added_before_a_generator_is_closed_is_saved():
    saved = []

    def results():
        with Saver(saved.extend) as saver:
            for number in range(9):
                saver.add(number)
                yield number

    run = results()
    assert [next(run), next(run)] == [0, 1]
    run.close()
    assert saved == [0, 1]


@pytest.mark.parametrize("seconds", [0.001, 1000])
def test_an_error_while_saving_is_raised(seconds, monkeypatch):
    """In the thread as well as at the end. Nothing is saved after it."""
    monkeypatch.setattr(saving, "SAVE_SECONDS", seconds)
    tried = []

    def save(results):
        tried.extend(results)
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"), Saver(save) as saver:
        saver.add(1)
        if seconds < 1:
            while True:  # until the thread has tried
                saver.add(2)
    assert tried.count(1) == 1


def test_nothing_added_saves_nothing():
    with Saver(None):
        pass

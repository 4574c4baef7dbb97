import asyncio
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from sound import midi_file

from clamplib.app.queries import MOST_CHARACTERS, Queries
from clamplib.embedding.encoder import CLaMP3Encoder
from clamplib.embedding.reading import Reading
from clamplib.files import InputError
from clamplib.jobs import Outcome

SIZES = SimpleNamespace(patch_length=4, max_audio_length=4)


class Busy:
    """An encoder whose first call waits. The vector of a text is its length and 1."""

    geometry = SIZES

    def __init__(self):
        self.batches, self.entered, self.release = [], threading.Event(), threading.Event()

    def encode_readings(self, readings):
        self.batches.append([reading.sequence for _, reading, _ in readings])
        self.entered.set()
        assert self.release.wait(60)
        for number, reading, _ in readings:
            if reading.sequence == "bad":
                yield Outcome(number, error="it is bad")
            elif reading.sequence == "broken":
                raise RuntimeError("a bug")
            else:
                yield Outcome(number, np.array([[len(reading.sequence), 1.0]], np.float32))


async def ask(encoder, texts, leave=()):
    """Sends the first text, and the others once the model is busy with it; `leave` are cancelled before their turn."""
    queries = Queries(encoder)
    asking = [asyncio.create_task(queries.encode(Reading("text", texts[0])))]
    while not encoder.entered.is_set():
        await asyncio.sleep(0.01)
    asking += [asyncio.create_task(queries.encode(Reading("text", text))) for text in texts[1:]]
    await asyncio.sleep(0.01)
    for number in leave:
        asking[number].cancel()
    await asyncio.sleep(0.01)
    encoder.release.set()
    return await asyncio.gather(*asking, return_exceptions=True)


def test_queries_that_wait_are_encoded_together():
    encoder = Busy()
    answers = asyncio.run(ask(encoder, ["a", "bb", "ccc", "gone"], leave=[3]))
    assert encoder.batches == [["a"], ["bb", "ccc"]]
    for length, answer in enumerate(answers[:3], 1):
        np.testing.assert_allclose(answer, np.array([length, 1]) / np.hypot(length, 1), rtol=1e-6)


def test_a_batch_is_bounded():
    encoder = Busy()
    asyncio.run(ask(encoder, ["a", *["b" * 400] * 5]))
    assert [len(batch) for batch in encoder.batches] == [1, 2, 2, 1]


def test_a_query_that_fails_fails_alone():
    bad, good = asyncio.run(ask(Busy(), ["a", "bad", "bb"]))[1:]
    assert isinstance(bad, InputError) and str(bad) == "it is bad" and good.shape == (2,)


def test_after_a_bug_others_are_encoded():
    encoder = Busy()
    first, broken, *_ = asyncio.run(ask(encoder, ["a", "broken", "bb"]))
    assert first.shape == (2,) and isinstance(broken, RuntimeError)
    queries = Queries(encoder)
    assert asyncio.run(queries.encode(Reading("text", "a"))).shape == (2,)


def test_long_texts_are_refused():
    with pytest.raises(InputError, match="at most 50000 characters, got 50001"):
        asyncio.run(Queries(Busy()).encode(Reading("text", "a" * (MOST_CHARACTERS + 1))))


@pytest.mark.parametrize("notes", [1, 100, 2000])
def test_a_long_query_in_parts_has_the_vector_of_the_whole(notes, tmp_path, monkeypatch):
    encoder = CLaMP3Encoder.from_pretrained("mini", device="cpu")
    path = midi_file(tmp_path / "a.mid", [(40 + step % 50, 100) for step in range(notes)]) or tmp_path / "a.mid"
    [outcome] = encoder.read_each([path])
    rows = len(outcome.value.sequence)
    lengths = []
    inner = encoder.encode_readings

    def encode_readings(readings):
        lengths.extend(len(reading.sequence) for _, reading, _ in readings)
        return inner(readings)

    monkeypatch.setattr(encoder, "encode_readings", encode_readings)
    vector = asyncio.run(Queries(encoder).encode(outcome.value))
    np.testing.assert_allclose(vector, encoder.encode(path), atol=1e-5)
    assert sum(lengths) == rows and (len(lengths) > 1) == (rows >= 4 * encoder.loaded.geometry.patch_length)

"""Features against the golden ones, and that batches change nothing."""

import numpy as np
import pytest
import torch

from clamplib.embedding import encoding
from clamplib.embedding.encoding import (
    Encoder,
    Span,
    clamp3_encoders,
    encode,
    encode_each,
    encode_scores,
    encode_texts,
    length_batches,
    m3_encoders,
    segment_spans,
)
from clamplib.embedding.reading import Reader, read_ahead
from clamplib.models.variants import load_clamp3, load_m3

TOLERANCE = {"atol": 2e-5, "rtol": 1e-4}


@pytest.fixture
def loaded(tiny_weights, tiny_geometry):
    return load_clamp3(tiny_weights / "clamp3_tiny.pth", weights_folder=tiny_weights, geometry=tiny_geometry)


@pytest.fixture
def loaded_m3(tiny_weights, tiny_geometry):
    return load_m3(tiny_weights / "m3_tiny.pth", weights_folder=tiny_weights, geometry=tiny_geometry)


def compare(encoders, expected, folder, tokenizer, geometry):
    """All golden cases in as few batches as they fit."""
    names = expected.files
    files = [folder / f"{name}.{name.split('/')[0]}" for name in names]
    outcomes = list(encode_each(read_ahead(Reader(geometry), files), encoders, tokenizer))
    assert sorted(outcome.number for outcome in outcomes) == list(range(len(names)))
    for number, feature, error in outcomes:
        assert error is None and feature.dtype == np.float32
        np.testing.assert_allclose(feature, expected[names[number]], **TOLERANCE, err_msg=names[number])


@pytest.mark.parametrize("kind", ["global", "temporal"])
def test_clamp3_golden(kind, golden, loaded, tiny_geometry):
    expected = np.load(golden / f"model/expected_clamp3_{kind}.npz")
    encoders = clamp3_encoders(loaded, kind == "global")
    compare(encoders, expected, golden / "model/in", loaded.tokenizer, tiny_geometry)


def test_m3_golden(golden, loaded_m3, tiny_geometry):
    expected = np.load(golden / "model/expected_m3.npz")
    compare(m3_encoders(loaded_m3), expected, golden / "model/in", None, tiny_geometry)


def test_lines_in_first_seen_order_give_one_of_the_acceptable_vectors(golden, loaded):
    vector = encode_texts(loaded, [(golden / "model/multiline/multi.txt").read_text()])
    acceptable = np.load(golden / "model/multiline/acceptable_global.npz")
    distances = {name: np.abs(acceptable[name] - vector).max() for name in acceptable.files}
    print(distances)
    assert min(distances.values()) < 2e-5


def test_spans_by_hand():
    assert segment_spans(3, 4) == [Span(0, 3, 3)]
    assert segment_spans(4, 4) == [Span(0, 4, 4)]
    assert segment_spans(5, 4) == [Span(0, 4, 4), Span(1, 5, 1)]
    assert segment_spans(8, 4) == [Span(0, 4, 4), Span(4, 8, 4)]
    assert segment_spans(11, 4) == [Span(0, 4, 4), Span(4, 8, 4), Span(7, 11, 3)]


def test_batches_are_sorted_and_bounded():
    batches = list(length_batches([1, 5, 2, 9, 5, 1], space=10))
    assert batches == [[3], [1, 4], [2, 0, 5]]
    assert list(length_batches([50, 1], space=10)) == [[0], [1]]  # too long for the space: alone
    assert list(length_batches([], space=10)) == []


def test_segments_are_joined_by_hand():
    def mean(inputs, masks):
        return (inputs[..., 0] * masks).sum(1, keepdim=True) / masks.sum(1, keepdim=True)

    rows = np.arange(5, dtype=np.float32)[:, None]
    pooled = Encoder(mean, max_length=4, hidden_size=2, pooled=True, device=torch.device("cpu"))
    # segments 0 1 2 3 and 1 2 3 4: means 1.5 and 2.5, weights 4 and 1
    np.testing.assert_allclose(encode(pooled, [rows])[0], [[(4 * 1.5 + 2.5) / 5]])
    states = Encoder(
        lambda inputs, masks: inputs, max_length=4, hidden_size=2, pooled=False, device=torch.device("cpu")
    )
    short, long = encode(states, [rows[:2], rows])
    np.testing.assert_array_equal(short, rows[None, :2])
    np.testing.assert_array_equal(long, rows[None])


def test_neither_batch_nor_order_nor_padding_changes_a_vector(loaded):
    texts = [" ".join(["slow waltz in a minor key"] * n) for n in (1, 40, 3, 80, 2)]
    together = encode_texts(loaded, texts)
    alone = np.concatenate([encode_texts(loaded, [text]) for text in texts])
    np.testing.assert_allclose(together, alone, **TOLERANCE)
    np.testing.assert_allclose(encode_texts(loaded, texts[::-1])[::-1], together, **TOLERANCE)
    np.testing.assert_allclose(encode_texts(loaded, texts, batch_size=1), together, **TOLERANCE)


def test_scores_in_memory_equal_the_golden_files(golden, loaded):
    expected = np.load(golden / "model/expected_clamp3_global.npz")
    names = ("abc/short", "mtf/short")
    scores = [(golden / "model/in" / f"{name}.{name[:3]}").read_text() for name in names]
    vectors = encode_scores(loaded, scores)
    assert vectors.shape == (2, 96)
    np.testing.assert_allclose(vectors, np.concatenate([expected[name] for name in names]), **TOLERANCE)


@pytest.mark.parametrize("kind", ["global", "temporal"])
def test_a_giant_is_announced_before_it_is_encoded(loaded, tiny_geometry, monkeypatch, caplog, kind, tmp_path):
    monkeypatch.setattr(encoding, "MANY_SEGMENTS", 3)
    monkeypatch.setattr(encoding, "LONG_SECONDS", 0)
    encoders = clamp3_encoders(loaded, kind == "global")
    note = "note_on 0 0 60 64\nnote_off 480 0 60 0\n"
    (tmp_path / "short.mtf").write_text("ticks_per_beat 480\n" + note)
    (tmp_path / "giant.mtf").write_text("ticks_per_beat 480\n" + note * 20 * tiny_geometry.patch_length)
    files = sorted(tmp_path.iterdir())
    readings = list(read_ahead(Reader(tiny_geometry), files))
    segments = len(segment_spans(len(readings[0].value.sequence), tiny_geometry.patch_length))
    outcomes = encode_each(readings, encoders, None, name=lambda number: files[number].name)
    next(outcomes)
    [record] = caplog.records
    assert record.message == f"giant.mtf: has {segments} segments, which take about 0 minutes"
    announced = [outcome.value for outcome in [*encode_each(readings, encoders, None)]]
    monkeypatch.setattr(encoding, "LONG_SECONDS", 1e9)
    for value, (_, same, _) in zip(announced, encode_each(readings, encoders, None), strict=True):
        np.testing.assert_array_equal(value, same)
    assert len(caplog.records) == 2 and caplog.records[1].message.startswith("item 0: has ")

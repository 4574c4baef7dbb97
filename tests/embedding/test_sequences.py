import numpy as np
import pytest

from clamplib.embedding.sequences import audio_frames, symbolic_patches, text_tokens
from clamplib.files import InputError
from clamplib.formats.patchilizer import M3Patchilizer


def test_lines_are_unique_in_first_seen_order(tiny_tokenizer):
    tokens = text_tokens("waltz\n\njazz\nwaltz\n", tiny_tokenizer)
    assert tokens.dtype == np.int64
    assert tokens.tolist() == tiny_tokenizer("waltz</s>jazz")["input_ids"]
    assert text_tokens("", tiny_tokenizer).tolist() == tiny_tokenizer("")["input_ids"]


def test_patches_stand_between_special_ones():
    patches = symbolic_patches("K:C\nCDEF|GABc|\n", M3Patchilizer())
    assert patches.dtype == np.uint8 and patches.shape == (5, 64)
    assert patches[0].tolist() == [1] * 64 and patches[-1].tolist() == [1] + [2] * 63
    for text in ("", "\n", " \n"):
        with pytest.raises(InputError, match="no bar"):
            symbolic_patches(text, M3Patchilizer())


def test_audio_is_padded_with_zero_frames():
    features = np.arange(12, dtype=np.float32).reshape(1, 3, 4)
    frames = audio_frames(features, 4)
    assert frames.dtype == np.float32
    np.testing.assert_array_equal(frames, [[0] * 4, *features[0], [0] * 4])


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.zeros((3, 5)), r"\[1, frames, 4\], got shape \[3, 5\]"),
        (np.zeros((1, 0, 4)), r"got shape \[1, 0, 4\]"),
        (np.float32(1), r"got shape \[\]"),
        (np.zeros((13, 3, 4)), "--mean_features"),
    ],
)
def test_bad_audio_features(features, message):
    with pytest.raises(InputError, match=message):
        audio_frames(features, 4)

import numpy as np
import pytest

from clamplib.embedding.sequences import Reader, audio_frames, symbolic_patches, text_tokens
from clamplib.files import InputError
from clamplib.formats.patchilizer import M3Patchilizer


@pytest.fixture
def reader(tiny_geometry, tiny_tokenizer):
    return Reader(tiny_geometry, tiny_tokenizer)


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


def test_a_file_is_read_by_its_suffix(tmp_path, reader):
    (tmp_path / "a.TXT").write_bytes(b"\xef\xbb\xbfwaltz\r\n")
    (tmp_path / "a.Abc").write_text("K:C\nCDEF|\n")
    (tmp_path / "a.mtf").write_text("ticks_per_beat 480\nend_of_track 0")
    np.save(tmp_path / "a.npy", np.ones((2, 128), np.float32))
    assert reader(tmp_path / "a.TXT").tolist() == text_tokens("waltz", reader.tokenizer).tolist()
    assert reader(tmp_path / "a.Abc").shape == reader(tmp_path / "a.mtf").shape == (4, 64)
    assert reader(tmp_path / "a.npy").shape == (4, 128)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"caf\xe9", "expected UTF-8"),
        ("a.abc", b"K:C\n\xff|", "expected UTF-8"),
        ("a.mtf", b"", "no bar"),
        ("a.npy", b"", "expected"),
        ("a.npy", b"no numpy", "expected a .npy file"),
    ],
)
def test_an_error_names_the_file(tmp_path, reader, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name}: .*{message}"):
        reader(tmp_path / name)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.array([{}], object), "allow_pickle"),
        (np.zeros((3, 128), complex), "dtype complex128"),
        (np.full((3, 128), np.nan), "NaN"),
        (np.full((3, 128), 1e300), "infinity"),
        (np.zeros((3, 127)), r"expected MERT features \[1, frames, 128\]"),
    ],
)
def test_an_error_of_audio_features_names_the_file(tmp_path, reader, features, message):
    np.save(tmp_path / "a.npy", features, allow_pickle=True)
    with pytest.raises(InputError, match=rf"a\.npy: .*{message}") as caught:
        reader(tmp_path / "a.npy")
    assert str(caught.value).count("a.npy") == 1


def test_cut_patches_are_counted(reader):
    patches = symbolic_patches(f"K:C\n{'C' * 62}|{'C' * 61}|CDEF|\n", reader.patchilizer)
    assert reader.count_cut(patches) == 1
    assert reader.count_cut(np.zeros((2, 128), np.float32)) == 0

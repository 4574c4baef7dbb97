"""CLaMP3Encoder: vectors of anything equal those of the scripts, alone or in company; what is made of them."""

import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import mido
import music21
import numpy as np
import pytest
import torch
from sound import sine, write

from clamplib.audio import spectral
from clamplib.audio.mert import load_mert
from clamplib.embedding import encoder as encoder_module
from clamplib.embedding import encoding, reading
from clamplib.embedding.encoder import CLaMP3Encoder, Hit
from clamplib.embedding.encoding import encode_audio, encode_scores, encode_texts
from clamplib.embedding.reading import Waveform, read_item
from clamplib.files import InputError
from clamplib.formats.score_files import list_tunes
from clamplib.models import settings
from clamplib.models.encoders import CLaMP3Model
from clamplib.models.loading import LoadedModel, save_variant
from clamplib.models.variants import load_clamp3

TUNE = "X:1\nT:A tune\nM:4/4\nL:1/8\nK:C\nCDEF GABc|c8|]\n"
CLOSE = {"atol": 1e-5, "rtol": 0}
RATE = 24_000


@pytest.fixture(scope="session")
def hearing_variant(tmp_path_factory, tiny_variant) -> Path:
    """The tiny variant with an audio encoder, of random weights, for the tiny MERT's features."""
    folder = tmp_path_factory.mktemp("hearing_variant")
    tiny = load_clamp3(tiny_variant, weights_folder=folder)
    geometry = replace(tiny.geometry, audio_hidden_size=64)
    torch.manual_seed(0)
    model = CLaMP3Model.from_geometry(geometry).eval()
    save_variant(folder, model, tiny.tokenizer, geometry)
    return folder


@pytest.fixture(scope="module")
def encoder(hearing_variant, mert_weights):
    return CLaMP3Encoder.from_pretrained(hearing_variant, device="cpu", mert=mert_weights)


@pytest.fixture(scope="module")
def folder(golden, tmp_path_factory) -> Path:
    """A file of every kind."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "air.txt").write_text("a slow air\nsad")
    (folder / "book.abc").write_text(TUNE + "\n" + TUNE.replace("CDEF", "EFGA"))
    (folder / "tune.abc").write_text(TUNE)
    for source in ("abc/xml/handmade__grace.musicxml", "abc/xml/bach__bwv154.3.mxl", "mert/wav/sine_24k_5s3.wav"):
        shutil.copy(golden / source, folder)
    shutil.copy(next(path for path in sorted((golden / "midi/in").glob("*.mid")) if readable(path)), folder / "a.mid")
    np.save(folder / "frames.npy", np.random.default_rng(0).standard_normal((1, 7, 64)).astype(np.float32))
    write(folder / "stereo.mp3", sine(2, 44_100, 440, 660), 44_100, "libmp3lame")
    return folder


def readable(path: Path) -> bool:
    try:
        return bool(read_item(path))
    except InputError:
        return False


@pytest.fixture(scope="module")
def items(folder):
    """Items of every kind, in no order."""
    first, second = list_tunes(folder / "book.abc")
    wave = Waveform(sine(1.5, 44_100, 330, 550), 44_100)
    words = " ".join(["very sad"] * 120)  # two segments
    files = [path for path in sorted(folder.iterdir()) if path.name != "book.abc"]
    stream = music21.converter.parse("tinynotation: 4/4 c4 d e f g1")
    return ["a jig", wave, second, *files, mido.MidiFile(folder / "a.mid"), stream, words, first, "a reel"]


@pytest.fixture(scope="module")
def alone(encoder, items):
    """The vector of each item by itself, as the model gives it."""
    return np.stack([encoder.encode(item, normalize_embeddings=False) for item in items])


def expected_vectors(encoder, paths):
    """As the scripts make them: converted, then encoded."""
    mert, encode = load_mert(encoder._mert_path), {"text": encode_texts, "score": encode_scores, "midi": encode_scores}
    for path in paths:
        if path.suffix in (".wav", ".mp3"):
            features = np.stack([mert.encode(window[None], mean=True)[0] for window in mert.read(path)], axis=1)
            yield encode_audio(encoder.loaded, [features])[0]
        elif path.suffix == ".npy":
            yield encode_audio(encoder.loaded, [np.load(path)])[0]
        else:
            content = read_item(path)
            yield encode[content.modality](encoder.loaded, [content.value])[0]


def test_files_equal_the_scripts_pipeline(encoder, folder):
    paths = [path for path in sorted(folder.iterdir()) if path.name != "book.abc"]
    vectors = encoder.encode(paths, normalize_embeddings=False)
    np.testing.assert_allclose(vectors, list(expected_vectors(encoder, paths)), **CLOSE)
    np.testing.assert_array_equal(encoder.encode_files(map(str, paths), normalize_embeddings=False), vectors)
    np.testing.assert_array_equal(encoder.encode_files(str(paths[0])), encoder.encode(paths[0]))


def test_golden_vectors(golden, tiny_weights, tiny_geometry):
    loaded = load_clamp3(tiny_weights / "clamp3_tiny.pth", weights_folder=tiny_weights, geometry=tiny_geometry)
    encoder = CLaMP3Encoder(loaded, device="cpu")
    for kind, encode in (("global", encoder.encode_files), ("temporal", encoder.encode_frames)):
        expected = np.load(golden / f"model/expected_clamp3_{kind}.npz")
        names = [name for name in expected.files if name not in ("abc/barless", "abc/one_line_no_newline")]  # no bars
        paths = [golden / "model/in" / f"{name}.{name.split('/')[0]}" for name in names]
        options = {"normalize_embeddings": False} if kind == "global" else {}
        for name, found in zip(names, encode(paths, **options), strict=True):
            np.testing.assert_allclose(found, expected[name][0], atol=2e-5, rtol=1e-4, err_msg=name)


def test_company_order_and_batches_change_nothing(encoder, items, alone):
    np.testing.assert_allclose(encoder.encode(items, normalize_embeddings=False), alone, **CLOSE)
    np.testing.assert_allclose(encoder.encode(items[::-1], normalize_embeddings=False)[::-1], alone, **CLOSE)
    np.testing.assert_allclose(encoder.encode(items, normalize_embeddings=False, batch_size=1), alone, **CLOSE)


def test_processes_and_chunks_change_nothing(encoder, items, alone, monkeypatch):
    monkeypatch.setattr(encoding, "CPU_CHUNK_ROWS", 40)
    np.testing.assert_allclose(encoder.encode(items, normalize_embeddings=False, workers=1), alone, **CLOSE)
    monkeypatch.setattr(reading, "FEW", 2)
    np.testing.assert_allclose(encoder.encode(items, normalize_embeddings=False, workers=2), alone, **CLOSE)


def test_a_bad_item_among_processes(encoder, items, monkeypatch, tmp_path):
    monkeypatch.setattr(reading, "FEW", 2)
    (tmp_path / "bad.mid").write_text("words")
    with pytest.raises(InputError, match=r"bad\.mid: expected a MIDI file"):
        encoder.encode([*items, tmp_path / "bad.mid"], workers=2)
    assert encoder.encode(["a jig"]).shape == (1, 96)  # and nothing is left half open


def test_shapes_and_lengths(encoder, items, alone):
    for one in (items[0], items[1], items[3], items[-4]):
        assert encoder.encode(one).shape == (encoder.dimension,) == (96,)
        assert encoder.encode([one]).shape == (1, 96)
    assert encoder.encode([]).shape == (0, 96) and encoder.encode([], normalize_embeddings=False).shape == (0, 96)
    assert encoder.encode_frames([]) == []
    vectors = encoder.encode(items)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(vectors, alone / np.linalg.norm(alone, axis=1, keepdims=True), **CLOSE)


def test_the_keywords_of_sentence_transformers(encoder, items):
    texts = ["a jig", "a slow air"]
    vectors = encoder.encode(texts)
    tensor = encoder.encode(texts, convert_to_tensor=True)
    assert isinstance(tensor, torch.Tensor) and tensor.device == encoder.device
    np.testing.assert_array_equal(tensor.numpy(), vectors)
    listed = encoder.encode(texts, convert_to_numpy=False)
    assert [type(vector) for vector in listed] == [torch.Tensor] * 2
    np.testing.assert_array_equal(np.stack(listed), vectors)
    assert encoder.encode(texts[0], convert_to_tensor=True).shape == encoder.encode(items[-4]).shape == (96,)
    for encode in (encoder.encode_query, encoder.encode_document):
        np.testing.assert_array_equal(encode(texts, batch_size=2, show_progress_bar=False), vectors)
        np.testing.assert_allclose(encode(texts[0], normalize_embeddings=True), vectors[0], **CLOSE)
    assert encoder.get_sentence_embedding_dimension() == encoder.get_embedding_dimension() == 96
    np.testing.assert_allclose(
        encoder.similarity_pairwise(tensor, vectors[::-1]), [vectors[0] @ vectors[1]] * 2, **CLOSE
    )
    np.testing.assert_allclose(encoder.similarity(tensor, tensor), vectors @ vectors.T, **CLOSE)
    with pytest.raises(InputError, match="expected pairs, got 2 and 1 items"):
        encoder.similarity_pairwise(texts, texts[:1])


class AudioDecoder:
    """The two attributes that are read of torchcodec's."""

    def __init__(self, sound, rate):
        self.sound, self.rate = sound, rate

    def get_all_samples(self):
        return SimpleNamespace(data=torch.from_numpy(self.sound)[None], sample_rate=self.rate)


def test_rows_of_audio_tensors_and_arrays_are_items(encoder, folder):
    wave = sine(2.0, 24_000, 440)[0]
    expected = encoder.encode(Waveform(wave, 24_000))
    rows = [
        {"array": wave, "sampling_rate": 24_000, "path": "a.wav"},
        {"array": wave.astype(np.float64), "sampling_rate": 24_000},
        {"array": torch.from_numpy(wave)[None], "sampling_rate": 24_000},
        {"array": wave.tolist(), "sampling_rate": 24_000},
        Waveform(torch.from_numpy(wave).requires_grad_(), 24_000),
        AudioDecoder(wave, 24_000),
    ]
    np.testing.assert_allclose(encoder.encode(rows), np.tile(expected, (len(rows), 1)), **CLOSE)
    np.testing.assert_allclose(encoder.encode(rows[0]), expected, **CLOSE)
    features = np.load(folder / "frames.npy")
    expected = encoder.encode(folder / "frames.npy")
    for numbers in (features, torch.from_numpy(features)):
        np.testing.assert_allclose(encoder.encode(numbers, "audio"), expected, **CLOSE)
        np.testing.assert_allclose(encoder.encode([numbers], "audio"), expected[None], **CLOSE)
    texts = np.array(["a jig", "a slow air"])
    np.testing.assert_array_equal(encoder.encode(texts), encoder.encode(texts.tolist()))
    np.testing.assert_array_equal(encoder.encode(texts.astype(object)), encoder.encode(texts.tolist()))
    for bad, message in (({"array": wave}, "got dict with the keys 'array'"), (features, "got ndarray")):
        with pytest.raises(InputError, match=message):
            encoder.encode(bad)


def test_frames(encoder, folder):
    wav, text, frames = folder / "sine_24k_5s3.wav", "a slow air", folder / "frames.npy"
    heard, words, given = encoder.encode_frames([wav, text, frames])
    assert heard.shape == (1 + 2, 64)  # 5.3 s are one window, between two frames of zeros
    assert words.shape == (len(encoder.loaded.tokenizer(text)["input_ids"]), 64)
    assert given.shape == (7 + 2, 64) and given.dtype == np.float32
    np.testing.assert_allclose(encoder.encode_frames(text)[0], words, **CLOSE)


def test_progress_is_shown_when_asked_for(encoder, capsys):
    encoder.encode(["a", "b"])
    assert not capsys.readouterr().err
    encoder.encode(["a", "b"], show_progress_bar=True)
    assert "2/2" in capsys.readouterr().err


def test_each_bad_item_is_named_and_the_others_go_on(encoder, folder, tmp_path):
    (tmp_path / "words.wav").write_text("words")
    (tmp_path / "odd.abc").write_text("words")
    (tmp_path / "words.mtf").write_text("words")
    np.save(tmp_path / "wide.npy", np.zeros((1, 3, 32), np.float32))
    bad = {
        "gone.abc": tmp_path / "gone.abc",
        "words.wav": tmp_path / "words.wav",
        "words.mtf: expected MTF": tmp_path / "words.mtf",
        "wide.npy": tmp_path / "wide.npy",
        "odd.abc": tmp_path / "odd.abc",
        "item 5: bytes may be anything: name their modality": b"bytes",
        "item 6: expected a text, a path": [1, 2],
        "item 7: this recording: expected samples of floats": Waveform(np.zeros(9, int), 8000),
    }
    items = [*bad.values(), "a jig", folder / "a.mid"]
    outcomes = {number: (vector, error) for number, vector, error in encoder.encode_each(items)}
    assert sorted(outcomes) == list(range(len(items)))
    for number, part in enumerate(bad):
        assert outcomes[number][0] is None and part in outcomes[number][1]
    np.testing.assert_allclose(outcomes[8][0], encoder.encode(["a jig"], normalize_embeddings=False), **CLOSE)
    assert outcomes[9][1] is None
    for part, item in bad.items():
        with pytest.raises(InputError, match=part.partition(": ")[2] or part):
            encoder.encode([item])


def test_mert_of_another_width_is_an_error_of_each_recording(tiny_variant, mert_weights, folder):
    encoder = CLaMP3Encoder.from_pretrained(tiny_variant, device="cpu", mert=mert_weights)
    (outcome,) = encoder.encode_each([folder / "sine_24k_5s3.wav"])
    assert outcome[:2] == (0, None) and "sine_24k_5s3.wav: " in outcome[2] and "128" in outcome[2]


def test_missing_mert_is_said_before_the_work(tiny_variant, tmp_path, folder, monkeypatch):
    encoder = CLaMP3Encoder.from_pretrained(tiny_variant, device="cpu", mert=tmp_path / "none")
    monkeypatch.setattr(encoder_module, "encode_each", None)
    with pytest.raises(FileNotFoundError, match="none is not a folder"):
        encoder.encode(["a jig", folder / "sine_24k_5s3.wav"])


def test_nan_of_the_model_is_an_error(encoder, monkeypatch):
    monkeypatch.setattr(encoding, "encode", lambda *_: [np.full((1, 96), np.nan, np.float32)])
    with pytest.raises(InputError, match="item 0: expected finite features, but the model gave NaN"):
        encoder.encode("a jig")


def axes(*rows):
    """Vectors [N, 96] that begin so and are 0 behind."""
    return np.pad(np.array(rows, np.float32), ((0, 0), (0, 96 - len(rows[0]))))


def test_similarity_by_hand(encoder, items, alone):
    found = encoder.similarity(axes([2, 0], [1, 1]), axes([0, 5], [3, 0], [-1, 0]))
    half = 0.5**0.5
    np.testing.assert_allclose(found, [[0, 1, -1], [half, half, -half]], atol=1e-6)
    np.testing.assert_allclose(encoder.similarity(axes([3, 4])[0], axes([1, 0])), [[0.6]], atol=1e-6)
    unit = alone / np.linalg.norm(alone, axis=1, keepdims=True)
    np.testing.assert_allclose(encoder.similarity(items[0], items), unit[:1] @ unit.T, **CLOSE)
    with pytest.raises(InputError, match=r"expected vectors \[N, 96\], got \[2, 95\]"):
        encoder.similarity(np.ones((2, 95)), "a jig")


def test_search_by_hand(encoder):
    among = axes([0, 1], [1, 0], [3, 4], [-1, 0])
    (hits,) = encoder.search(axes([1, 0]), among, top_k=3)
    assert [hit.number for hit in hits] == [1, 2, 0] and isinstance(hits[0], Hit)
    np.testing.assert_allclose([hit.similarity for hit in hits], [1, 0.6, 0], atol=1e-6)
    assert [len(found) for found in encoder.search(among, among)] == [4] * 4
    texts = ["a slow air", "a fast reel", "a jig"]
    assert [found[0].number for found in encoder.search(texts, texts, top_k=1)] == [0, 1, 2]
    assert encoder.search([], texts) == []
    with pytest.raises(InputError, match="at least one item to search among"):
        encoder.search("a jig", [])


def test_classify_by_hand(encoder, monkeypatch):
    points = {"a jig": [1, 0], "in six": [0, 1], "a reel": [-1, 0]}
    monkeypatch.setattr(encoder, "encode", lambda texts, modality=None: axes(*(points[t] for t in as_list(texts))))
    vectors = axes([1, 2], [-2, 1], [-1, 0])
    assert encoder.classify(vectors, {"jig": ["a jig", "in six"], "reel": "a reel"}) == ["jig", "reel", "reel"]
    assert encoder.classify(vectors, ["a jig", "a reel"]) == ["a jig", "a reel", "a reel"]
    half = 0.5**0.5
    found = encoder.prototypes({"jig": ["a jig", "in six"], "reel": ["a reel"]})
    np.testing.assert_allclose(found, axes([half, half], [-1, 0]), atol=1e-6)
    for labels in ([], {}, {"jig": []}, {"jig": ""}):
        with pytest.raises(InputError, match="expected at least one label, and a text for each"):
            encoder.classify(vectors, labels)


def as_list(texts):
    return [texts] if isinstance(texts, str) else texts


def test_classify_takes_each_text_for_itself(encoder):
    assert encoder.classify(["a jig", "a slow air"], ["a slow air", "a jig"]) == ["a jig", "a slow air"]


def test_score_by_hand(encoder):
    a, b = axes([1, 0], [0, 2]), axes([3, 4], [0, 1])
    assert encoder.score(a, b) == pytest.approx((0.6 + 1) / 2)
    # means [.5, 1] and [1.5, 2.5]
    assert encoder.score(a, b, group=True) == pytest.approx((0.75 + 2.5) / np.sqrt(1.25 * 8.5), rel=1e-5)
    assert encoder.score(a, b[:1], group=True) == pytest.approx((1.5 + 4) / np.sqrt(1.25 * 25), rel=1e-5)
    assert encoder.score(["a jig"], "a jig") == pytest.approx(1)
    with pytest.raises(InputError, match="expected pairs, got 2 and 1 items"):
        encoder.score(a, b[:1])
    with pytest.raises(InputError, match="expected at least one pair of items"):
        encoder.score([], [])
    with pytest.raises(InputError, match="1 or more vectors"):
        encoder.score([], a, group=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.int8])
def test_precisions_are_close(hearing_variant, mert_weights, items, alone, dtype):
    encoder = CLaMP3Encoder.from_pretrained(hearing_variant, "cpu", dtype, mert=mert_weights)
    found = encoder.encode(items)
    assert found.dtype == np.float32 and encoder.precision == str(dtype).partition(".")[2]
    unit = alone / np.linalg.norm(alone, axis=1, keepdims=True)
    assert (found * unit).sum(1).min() > (0.999999 if dtype == torch.float32 else 0.999)
    assert np.array_equal(found, encoder.encode(items)) and (dtype == torch.float32 or not np.array_equal(found, unit))


def test_no_file_is_left_behind(encoder, items, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    encoder.encode([item for item in items if not isinstance(item, str)])
    with pytest.raises(InputError):
        encoder.encode(tmp_path / "gone.krn")
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_the_published_layout(tiny_weights, tiny_geometry, golden, monkeypatch):
    monkeypatch.setattr(settings, "make_geometry", lambda _: tiny_geometry)
    encoder = CLaMP3Encoder.from_pretrained(tiny_weights / "clamp3_tiny.pth", device="cpu")
    expected = np.load(golden / "model/expected_clamp3_global.npz")["abc/short"]
    found = encoder.encode(golden / "model/in/abc/short.abc", normalize_embeddings=False)
    np.testing.assert_allclose(found, expected[0], atol=2e-5, rtol=1e-4)


def test_weights_that_are_not_at_hand(tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(FileNotFoundError) as raised:
        CLaMP3Encoder.from_pretrained("saas", weights_folder=tmp_path)
    for part in ("weights_clamp3_saas", "2,571,027,658 bytes", f"Put the file into {tmp_path}", "no network"):
        assert part in str(raised.value)
    with pytest.raises(FileNotFoundError, match="someone/model is not a folder here, .* could not be fetched"):
        CLaMP3Encoder.from_pretrained("someone/model")


def test_save_pretrained_gives_the_same_vectors(encoder, items, tmp_path):
    encoder.save_pretrained(tmp_path / "new/saved")
    saved = CLaMP3Encoder.from_pretrained(tmp_path / "new/saved", "cpu", mert=encoder._mert_path)
    # the weights were in half precision already
    np.testing.assert_array_equal(saved.encode(items), encoder.encode(items))
    assert saved.space_id == f"clamp3-saved-{saved.space['weights_sha256'][:16]}"
    geometry = replace(saved.loaded.geometry, text_config=None)
    assert geometry == replace(encoder.loaded.geometry, text_config=None)


def test_int8_is_not_saved_but_stated(tiny_variant, tmp_path):
    encoder = CLaMP3Encoder.from_pretrained(tiny_variant, "cpu", torch.int8)
    assert encoder.space["precision"] == "int8"
    encoder.save_pretrained(tmp_path)
    saved, expected = load_clamp3(tmp_path, weights_folder="."), load_clamp3(tiny_variant, weights_folder=".")
    state = saved.model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in expected.model.state_dict().items())


def test_save_pretrained_rounds_to_half_precision(tiny_clamp3, tiny_tokenizer, tiny_geometry, tmp_path):
    whole = CLaMP3Encoder(LoadedModel(tiny_clamp3, tiny_tokenizer, tiny_geometry, {}), device="cpu")
    whole.save_pretrained(tmp_path)
    saved = CLaMP3Encoder.from_pretrained(tmp_path, device="cpu")
    np.testing.assert_allclose(saved.encode(["a jig", TUNE]), whole.encode(["a jig", TUNE]), atol=1e-3)


class Hub:
    """What HfApi does, by a folder."""

    def __init__(self, folder):
        self.folder, self.calls = folder, []

    def create_repo(self, repo_id, private, exist_ok):
        self.calls.append(("create", repo_id, private, exist_ok))
        return f"https://hub/{repo_id}"

    def create_branch(self, repo_id, branch, exist_ok):
        self.calls.append(("branch", repo_id, branch, exist_ok))

    def upload_folder(self, repo_id, folder_path, revision):
        self.calls.append(("upload", repo_id, revision))
        shutil.copytree(folder_path, self.folder / repo_id)
        self.uploaded = Path(folder_path)


def test_push_to_hub_and_back(encoder, tmp_path, monkeypatch):
    hub = Hub(tmp_path)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    assert encoder.push_to_hub("me/tiny", private=True) == "https://hub/me/tiny"
    assert hub.calls == [("create", "me/tiny", True, True), ("upload", "me/tiny", None)]
    assert not hub.uploaded.exists()
    assert encoder.push_to_hub("me/other", revision="v2") == "https://hub/me/other"
    assert hub.calls[2:] == [("create", "me/other", False, True), ("branch", "me/other", "v2", True)] + [
        ("upload", "me/other", "v2")
    ]
    asked = []

    def download(name, revision, allow_patterns):
        asked.append((name, revision))
        return str(tmp_path / name)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    back = CLaMP3Encoder.from_pretrained("me/tiny", "cpu", revision="v1")
    assert asked == [("me/tiny", "v1")]
    np.testing.assert_array_equal(back.encode("a jig"), encoder.encode("a jig"))
    assert back.space_id.startswith("clamp3-tiny-")


def test_names_of_the_space(encoder, hearing_variant, mert_weights, tmp_path):
    assert json.loads(json.dumps(encoder.space))["kind"] == "clamp3 global"
    assert encoder.space_id == f"clamp3-{hearing_variant.name}-{encoder.space['weights_sha256'][:16]}"
    mert_id = f"mert-{load_mert(mert_weights).space['weights_sha256'][:16]}"
    assert encoder.audio_front_id == encoder.front_id(Path("a.mp3")) == mert_id
    assert encoder.front_id(Path("a.npy")) == encoder.front_id(Path("a.abc")) == encoder.front_id(Path("a.png")) == ""
    assert dict(encoder.pretrained)["name"] == hearing_variant


def test_mini_hears_by_spectral_features(folder):
    mini = CLaMP3Encoder.from_pretrained("mini", device="cpu")
    if mini.loaded.geometry.audio_hidden_size != spectral.SIZE:
        pytest.skip("this mini does not hear")
    wav = folder / "sine_24k_5s3.wav"
    expected = encode_audio(mini.loaded, [read_item(wav).value])[0]
    np.testing.assert_allclose(mini.encode(wav, normalize_embeddings=False), expected, **CLOSE)
    assert mini.audio_front_id == "spectral"


def test_what_recordings_need_is_wanted_for_recordings_alone():
    code = """
import sys
sys.modules["av"] = None
from clamplib import CLaMP3Encoder
print(CLaMP3Encoder.from_pretrained("mini", "cpu").encode("a jig").shape)
"""
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert run.stdout == "(192,)\n", run.stderr

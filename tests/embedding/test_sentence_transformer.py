"""SentenceTransformer("a variant's folder"): the encoder's vectors, evaluation, training and saving."""

import json
import pickle
import shutil
import socket
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.modules import Normalize
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)
from sound import sine

from clamplib import CLaMP3Encoder, CLaMP3Module, Waveform
from clamplib.files import InputError
from clamplib.models.variants import MINI, load_clamp3

CLOSE = {"atol": 1e-6, "rtol": 0}
LONG = " ".join(["a slow and very sad air"] * 60)
TEXTS = ["a slow air", "", LONG, "a jig\na jig\nin D major", "快いリール", "een wals " * 70, "a reel"]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args):
        raise OSError(f"no network in this test: {args[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def load(folder, **options) -> SentenceTransformer:
    return SentenceTransformer(str(folder), device="cpu", trust_remote_code=True, **options)


@pytest.fixture(scope="module", params=["tiny", "mini"])
def pair(request, tiny_variant) -> tuple[SentenceTransformer, CLaMP3Encoder]:
    folder = MINI if request.param == "mini" else tiny_variant
    return load(folder), CLaMP3Encoder.from_pretrained(folder, device="cpu")


@pytest.fixture(scope="module")
def mini() -> tuple[SentenceTransformer, CLaMP3Encoder]:
    return load(MINI), CLaMP3Encoder.from_pretrained("mini", device="cpu")


@pytest.fixture
def tiny(tiny_variant) -> SentenceTransformer:
    return load(tiny_variant)


@pytest.fixture
def copied(tiny_variant, tmp_path) -> Path:
    return shutil.copytree(tiny_variant, tmp_path / "variant")


def test_texts_get_the_encoders_vectors(pair):
    model, encoder = pair
    expected = encoder.encode(TEXTS)
    np.testing.assert_allclose(model.encode(TEXTS), expected, **CLOSE)
    np.testing.assert_allclose(model.encode(TEXTS, batch_size=1), expected, **CLOSE)
    np.testing.assert_allclose(model.encode(TEXTS[::-1], batch_size=2)[::-1], expected, **CLOSE)
    np.testing.assert_allclose(model.encode(LONG), expected[2], **CLOSE)
    assert len(encoder.loaded.tokenizer(LONG)["input_ids"]) > 2 * model.max_seq_length


def test_loading_prints_nothing(tiny_variant, capfd, caplog):
    model = load(tiny_variant)
    assert [type(module) for module in model] == [CLaMP3Module, Normalize]
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_what_the_library_asks_of_a_model(pair):
    model, encoder = pair
    assert model.get_embedding_dimension() == encoder.dimension
    assert model.max_seq_length == encoder.loaded.geometry.max_text_length
    assert model.tokenizer is model[0].tokenizer
    assert model.tokenizer("a jig")["input_ids"]
    assert [modality for modality in ("text", "audio", "image") if model.supports(modality)] == ["text", "audio"]
    assert "max_seq_length" in repr(model[0])
    texts = TEXTS[:4]
    vectors = encoder.encode(texts)
    np.testing.assert_allclose(model.encode_query(texts), vectors, **CLOSE)
    np.testing.assert_allclose(model.encode_document(texts), vectors, **CLOSE)
    np.testing.assert_allclose(model.similarity(vectors, vectors), vectors @ vectors.T, **CLOSE)
    prompted = encoder.encode([f"music for: {text}" for text in texts])
    np.testing.assert_allclose(model.encode(texts, prompt="music for: "), prompted, **CLOSE)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).encode(texts), model.encode(texts))


def test_scores_midi_and_recordings(mini, golden):
    model, encoder = mini
    recording = golden / "mert/wav/sine_24k_5s3.wav"
    paths = [golden / "abc/xml/bach__bwv154.3.mxl", golden / "midi/in/hm_type0.mid", recording]
    wave = Waveform(sine(1.5, 44_100, 330, 550), 44_100)
    row = {"array": wave.samples, "sampling_rate": wave.rate}
    items = [LONG, *paths, wave, "a jig"]
    expected = encoder.encode(items)
    np.testing.assert_allclose(model.encode(items), expected, **CLOSE)
    np.testing.assert_allclose(model.encode(items, batch_size=2), expected, **CLOSE)
    np.testing.assert_allclose(model.encode([row, row]), expected[[4, 4]], **CLOSE)
    np.testing.assert_allclose(model.encode(row), expected[4], **CLOSE)
    # The library takes the path of a recording as the recording, for every model with audio.
    np.testing.assert_allclose(model.encode(str(recording)), expected[3], **CLOSE)
    np.testing.assert_allclose(model.encode("gone.wav"), encoder.encode("gone.wav"), **CLOSE)


def test_long_items_take_several_passes(mini, monkeypatch):
    model, encoder = mini
    monkeypatch.setattr("clamplib.embedding.sentence_transformer.SEGMENTS", 3)
    np.testing.assert_allclose(model.encode(TEXTS), encoder.encode(TEXTS), **CLOSE)


def test_golden_vectors(golden, tiny_weights, tiny_geometry):
    loaded = load_clamp3(tiny_weights / "clamp3_tiny.pth", weights_folder=tiny_weights, geometry=tiny_geometry)
    model = SentenceTransformer(modules=[CLaMP3Module(loaded)], device="cpu")  # not normalized
    expected = np.load(golden / "model/expected_clamp3_global.npz")
    names = [name for name in expected.files if name not in ("abc/barless", "abc/one_line_no_newline")]  # no bars
    names = [name for name in names if not name.startswith("npy/")]  # features, which are no item without a modality
    paths = [golden / "model/in" / f"{name}.{name.split('/')[0]}" for name in names]
    vectors = model.encode(paths)
    texts = [(path, vector) for path, vector in zip(paths, vectors, strict=True) if path.suffix == ".txt"]
    assert texts and len(texts) < len(paths)
    for name, vector in zip(names, vectors, strict=True):
        np.testing.assert_allclose(vector, expected[name][0], atol=2e-5, rtol=1e-4, err_msg=name)
    found = model.encode([path.read_text("utf-8") for path, _ in texts])
    np.testing.assert_allclose(found, [vector for _, vector in texts], **CLOSE)


def test_an_evaluator_of_sentence_transformers(mini):
    model, encoder = mini
    queries = {"q1": "a slow sad song", "q2": "eine schnelle Gigue", "q3": "a piece for piano"}
    corpus = {"d1": "a lament", "d2": "a jig in 6/8", "d3": "piano music", "d4": "a march"}
    relevant = {"q1": {"d4"}, "q2": {"d2"}, "q3": {"d3"}}
    similarities = encoder.similarity(list(queries.values()), list(corpus.values()))
    rights = [list(corpus).index(*relevant[query]) for query in queries]
    ranks = [1 + (row > row[right]).sum() for row, right in zip(similarities, rights, strict=True)]
    found = InformationRetrievalEvaluator(queries, corpus, relevant, write_csv=False)(model)
    assert found["cosine_mrr@10"] == pytest.approx(np.mean([1 / rank for rank in ranks]))
    assert found["cosine_accuracy@1"] == pytest.approx(np.mean(np.array(ranks) == 1))


PAIRS = {
    "anchor": ["a slow air", LONG, "a jig\nin D", "a waltz"],
    "positive": ["a lament", "very sad", "een gigue " * 60, "a dance in 3/4"],
}


def train(model, data, folder, loss):
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        max_steps=2,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        logging_steps=1,
        save_strategy="steps",
        save_steps=2,
    )
    trainer = SentenceTransformerTrainer(model, arguments, train_dataset=data, loss=loss)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_fine_tuning(tiny, tiny_variant, tmp_path):
    before = {name: value.clone() for name, value in tiny[0].model.state_dict().items()}
    losses = train(tiny, datasets.Dataset.from_dict(PAIRS), tmp_path / "run", MultipleNegativesRankingLoss(tiny))
    assert len(losses) == 2
    assert np.isfinite(losses).all()
    moved = {name.split(".")[0] for name, value in tiny[0].model.state_dict().items() if not before[name].equal(value)}
    assert moved == {"text_model", "text_proj"}
    vectors = tiny.encode(TEXTS)
    assert np.abs(vectors - load(tiny_variant).encode(TEXTS)).max() > 1e-3
    tiny.save_pretrained(str(tmp_path / "tuned"))
    for folder in (tmp_path / "tuned", tmp_path / "run/checkpoint-2"):
        np.testing.assert_array_equal(load(folder).encode(TEXTS), vectors)
        encoder = CLaMP3Encoder.from_pretrained(folder, device="cpu")
        np.testing.assert_allclose(encoder.encode(TEXTS), vectors, **CLOSE)
        assert json.loads((folder / "modules.json").read_text()) == json.loads((MINI / "modules.json").read_text())


def test_fine_tuning_with_scores(tiny, golden, tmp_path):
    names = ["bach__bwv154.3.mxl", "handmade__chords.musicxml"]
    paths = [str(golden / "abc/xml" / name) for name in names]
    data = datasets.Dataset.from_dict({"text": ["a chorale", "some chords"], "piece": paths})
    data = data.with_transform(lambda rows: {**rows, "piece": list(map(Path, rows["piece"]))})
    before = {name: value.clone() for name, value in tiny[0].model.state_dict().items()}
    losses = train(tiny, data, tmp_path, MultipleNegativesRankingLoss(tiny))
    assert len(losses) == 2
    assert np.isfinite(losses).all()
    moved = {name.split(".")[0] for name, value in tiny[0].model.state_dict().items() if not before[name].equal(value)}
    assert moved == {"text_model", "text_proj", "symbolic_model", "symbolic_proj"}


def test_a_loss_may_cut_batches(tiny, golden):
    """A loss that works through a batch in small parts has the plain loss's gradient, long and mixed items included."""
    positives = [*PAIRS["positive"][:3], golden / "abc/xml/bach__bwv154.3.mxl"]
    gradients = []
    for loss in (MultipleNegativesRankingLoss(tiny), CachedMultipleNegativesRankingLoss(tiny, mini_batch_size=1)):
        tiny.eval().zero_grad()
        value = loss([tiny.preprocess(items) for items in (PAIRS["anchor"], positives)], None)
        value.backward()
        model = tiny[0].model
        gradients.append(torch.cat([p.weight.grad.flatten() for p in (model.text_proj, model.symbolic_proj)]))
    assert gradients[0].abs().max() > 1e-3
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-3)


def test_saved_variants_carry_the_same_modules(tiny_variant):
    assert (tiny_variant / "modules.json").read_bytes() == (MINI / "modules.json").read_bytes()


def test_without_remote_code(tiny_variant):
    """The library asks before it imports a class of another package. A module that it is given needs no permission."""
    with pytest.raises(ValueError, match=r"(?s)sentence_transformer\.CLaMP3Module'.*trust_remote_code=True"):
        SentenceTransformer(str(tiny_variant), device="cpu")
    model = SentenceTransformer(modules=[CLaMP3Module.load(str(tiny_variant)), Normalize()], device="cpu")
    np.testing.assert_array_equal(model.encode(TEXTS), load(tiny_variant).encode(TEXTS))


def test_damaged_folders_are_named(tiny_variant, tmp_path):
    """With the option that lets a folder run code of its own, too."""
    own = Path(shutil.copytree(tiny_variant, tmp_path / "own"))
    whole = json.loads((own / "config.json").read_text())
    evil = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}}
    (own / "evil.py").write_text("raise SystemExit('this code was run')")
    for changes, message in (
        ({"m3_hidden_size": 64 * 10**9}, "m3_hidden_size must be at most 65536"),
        ({"text_config": evil}, "code that comes with a model is never run"),
    ):
        (own / "config.json").write_text(json.dumps(whole | changes))
        with pytest.raises(InputError, match=rf"own/config\.json: .*{message}"):
            load(own)
    (own / "config.json").write_text(json.dumps(whole))
    (own / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match=r"own/tokenizer\.json: expected the tokenizer"):
        load(own)


def test_the_module_itself_runs_no_code_of_a_folder(tiny_variant, tmp_path):
    own = Path(shutil.copytree(tiny_variant, tmp_path / "own"))
    (own / "evil.py").write_text("raise SystemExit('this code was run')")
    (own / "modules.json").write_text('[{"idx": 0, "name": "0", "path": "", "type": "evil.Evil"}]')
    model = SentenceTransformer(modules=[CLaMP3Module.load(str(own)), Normalize()], device="cpu")
    np.testing.assert_array_equal(model.encode(TEXTS), load(tiny_variant).encode(TEXTS))


def test_a_variant_in_the_hubs_cache(tiny, tiny_variant, tmp_path):
    commit = "0123456789" * 4
    cached = tmp_path / "models--somebody--tiny"
    shutil.copytree(tiny_variant, cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text(commit)
    for revision in (None, "main", commit):
        model = load("somebody/tiny", cache_folder=str(tmp_path), revision=revision, local_files_only=True)
        np.testing.assert_array_equal(model.encode(TEXTS), tiny.encode(TEXTS))


def test_damaged_weights(copied):
    path = copied / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"model\.safetensors: expected a checkpoint or weights, got 1,000 bytes"):
        load(copied)


def test_weights_of_another_geometry(copied):
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "clamp3_hidden_size": 128}))
    with pytest.raises(InputError, match=r"(?s)another geometry.*text_proj\.weight: expected \[128"):
        load(copied)


def test_missing_files(copied):
    (copied / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"expected a folder of weights with model\.safetensors in it"):
        load(copied)
    with pytest.raises(FileNotFoundError, match="gone: expected a variant's folder"):
        CLaMP3Module.load(str(copied), subfolder="gone")


def test_options_that_cannot_be_followed(tiny_variant):
    with pytest.raises(ValueError, match=r"takes no model_kwargs.*model\.bfloat16"):
        load(tiny_variant, model_kwargs={"dtype": torch.bfloat16})
    with pytest.raises(ValueError, match="runs in torch"):
        load(tiny_variant, backend="onnx")


def test_bad_items_are_named(tiny, tmp_path):
    (tmp_path / "bad.mid").write_text("words")
    for item, message in {
        tmp_path / "bad.mid": r"bad\.mid: expected a MIDI file",
        tmp_path / "gone.abc": r"gone\.abc: there is no such file",
        tmp_path / "a.xyz": r"a\.xyz: expected a file ending in",
        1984: "1984: expected a text",
        b"MThd": "b'MThd': bytes may be anything",
    }.items():
        with pytest.raises(InputError, match=message):
            tiny.encode(["a much longer text than the others", item, "a jig"])
    with pytest.raises(ValueError, match="Modality 'image' is not supported"):
        tiny.encode(np.zeros((3, 8, 8), np.uint8))


def test_other_precisions(tiny_variant):
    expected = load(tiny_variant).encode(TEXTS)
    vectors = load(tiny_variant).bfloat16().encode(TEXTS)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, expected, atol=0.03)


def test_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers.base.modules", None)
    monkeypatch.delitem(sys.modules, "clamplib.embedding.sentence_transformer")
    with pytest.raises(ImportError, match=r'pip install -c constraints.txt -e "\.\[sentence-transformers\]"'):
        from clamplib import CLaMP3Module  # noqa: F401

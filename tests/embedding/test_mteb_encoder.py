"""CLaMP 3 in mteb: its tasks give the scores that the vectors have, and nothing is fetched."""

import importlib
import io
import json
import random
import socket
import sys
import tempfile

import numpy as np
import pytest
import soundfile
import torch
from datasets import Audio, Dataset, DatasetDict
from PIL import Image
from sklearn.linear_model import LogisticRegression
from torch.utils.data import DataLoader

from clamplib.audio.spectral import RATE
from clamplib.embedding.encoder import CLaMP3Encoder
from clamplib.files import InputError
from clamplib.formats.mtf import midi_to_mtf
from clamplib.formats.notes import read_notes
from clamplib.models.loading import save_variant
from recipes.mini.render import MERLIN, render

with pytest.MonkeyPatch.context() as patch:  # mteb makes the folder of its cache when it is imported
    patch.setenv("MTEB_CACHE", tempfile.gettempdir())
    import mteb
    from mteb.abstasks import AbsTaskClassification, AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.models import EncoderProtocol, ModelMeta

    from clamplib.embedding.mteb_encoder import NAMES, CLaMP3MTEB, clamp3_meta

TUNES = {
    "m21__oneills1850__0001-0050_15": "an Irish air from O'Neill's Music of Ireland",
    "m21__liliuokalani__aloha_oe": "Aloha Oe, a Hawaiian song with piano",
    "m21__johnson_j_r__lift_every_voice": "a hymn for four voices in A flat major",
    "m21__monteverdi__madrigal.3.1_old": "a madrigal by Monteverdi",
}
CLOSE = {"atol": 1e-5, "rtol": 0}
CLIP = 8 * RATE  # samples
ANY_TASK = {"task_metadata": None, "hf_split": "test", "hf_subset": "default"}
QUIET = {"show_progress_bar": False}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Makes every connection fail."""

    def refuse(*arguments, **options):
        raise AssertionError(f"expected no connection, got one to {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def encoder() -> CLaMP3Encoder:
    return CLaMP3Encoder.from_pretrained("mini", device="cpu")


@pytest.fixture(scope="module")
def model(encoder) -> CLaMP3MTEB:
    return CLaMP3MTEB.from_encoder(encoder)


@pytest.fixture(scope="module")
def clips(golden) -> list[list[np.ndarray]]:
    """Three clips of eight seconds per tune, one after the other, played by a synthesizer."""
    pieces = [read_notes(midi_to_mtf(golden / f"midi/in/{name}.mid")) for name in TUNES]
    sounds = [render(piece, MERLIN, random.Random(1)) for piece in pieces]
    return [[sound[start : start + CLIP] for start in range(0, 3 * CLIP, CLIP)] for sound in sounds]


@pytest.fixture
def evaluate(tmp_path):
    """A function that gives the scores of a model in one task."""

    def evaluate(model, task) -> dict:
        result = mteb.evaluate(model, task, cache=mteb.ResultCache(tmp_path), **QUIET)
        [scores] = result.task_results[0].scores["test"]
        return scores

    return evaluate


def row(clip: np.ndarray) -> dict:
    return {"array": clip, "sampling_rate": RATE}


def wav(clip: np.ndarray) -> dict:
    """A recording as datasets stores it."""
    file = io.BytesIO()
    soundfile.write(file, clip, RATE, format="WAV", subtype="FLOAT")
    return {"bytes": file.getvalue(), "path": None}


def loader_of(batch: dict) -> DataLoader:
    """A loader of one batch."""
    return DataLoader([batch], batch_size=None)


def metadata(kind: str, category: str, modalities: list[str], main_score: str) -> TaskMetadata:
    return TaskMetadata(
        name=f"Local{kind}",
        description="Made by a test.",
        dataset={"path": "nowhere/at-all", "revision": "1"},
        type=kind,
        category=category,
        modalities=modalities,
        main_score=main_score,
        eval_langs=["eng-Latn"],
    )


def retrieval(kind: str, category: str, modalities: list[str], queries: dict, corpus: dict) -> AbsTaskRetrieval:
    """A task in which document 0 answers query 0, document 1 query 1, and so on."""
    count = len(next(iter(queries.values())))
    ids = list(map(str, range(count)))

    class Task(AbsTaskRetrieval):
        def load_data(self, **options):
            data = {
                "queries": Dataset.from_dict({"id": ids, **queries}),
                "corpus": Dataset.from_dict({"id": ids, **corpus}),
                "relevant_docs": {number: {number: 1} for number in ids},
                "top_ranked": None,
            }
            self.dataset, self.data_loaded = {"default": {"test": data}}, True

    Task.metadata = metadata(kind, category, modalities, "ndcg_at_10")
    return Task()


def classification(kind: str, modality: str, train: list, test: list, feature: Audio | None = None):
    """A task with as many labels as rows of `test`. Labels follow each other in order."""

    class Task(AbsTaskClassification):
        input_column_name = modality
        n_experiments = 1

        def load_data(self, **options):
            labels = {"train": np.arange(len(train)) % len(test), "test": np.arange(len(test))}
            splits = {
                name: Dataset.from_dict({modality: rows, "label": labels[name]})
                for name, rows in (("train", train), ("test", test))
            }
            if feature:
                splits = {name: split.cast_column(modality, feature) for name, split in splits.items()}
            self.dataset, self.data_loaded = DatasetDict(splits), True

    Task.metadata = metadata(kind, f"{modality[0]}2c", [modality], "accuracy")
    return Task()


def assert_scores_of(similarities: np.ndarray, scores: dict) -> None:
    """Checks mteb's scores against similarities [Q, Q] of which the diagonal is correct."""
    ranks = (similarities >= np.diag(similarities)[:, None]).sum(1)
    assert scores["ndcg_at_10"] == pytest.approx(np.mean(1 / np.log2(ranks + 1)), abs=1e-5)
    assert scores["main_score"] == scores["ndcg_at_10"]
    assert scores["hit_rate_at_1"] == pytest.approx(np.mean(ranks == 1), abs=1e-5)
    assert scores["mrr_at_10"] == pytest.approx(np.mean(1 / ranks), abs=1e-5)


def test_text_to_audio_retrieval(model, encoder, clips, evaluate):
    texts, sounds = list(TUNES.values()), [row(first) for first, *_ in clips]
    task = retrieval("Any2AnyRetrieval", "t2a", ["text", "audio"], {"text": texts}, {"audio": sounds})
    similarities = encoder.encode(texts) @ encoder.encode(sounds).T
    assert_scores_of(similarities, evaluate(model, task))


def test_audio_to_text_retrieval(model, encoder, clips, evaluate):
    texts, sounds = list(TUNES.values()), [row(first) for first, *_ in clips]
    task = retrieval("Any2AnyRetrieval", "a2t", ["text", "audio"], {"audio": sounds}, {"text": texts})
    similarities = encoder.encode(sounds) @ encoder.encode(texts).T
    assert_scores_of(similarities, evaluate(model, task))


def test_text_retrieval(model, encoder, evaluate):
    texts = list(TUNES.values())
    titles, bodies = ["air", "song", "hymn", "madrigal"], ["from Ireland", "from Hawaii", "in A flat", "of 1592"]
    documents = [f"{title} {body}" for title, body in zip(titles, bodies, strict=True)]  # as mteb joins them
    task = retrieval("Retrieval", "t2t", ["text"], {"text": texts}, {"title": titles, "text": bodies})
    assert_scores_of(encoder.encode(texts) @ encoder.encode(documents).T, evaluate(model, task))


@pytest.mark.filterwarnings("ignore:Precision is ill-defined")  # four clips: a class may be guessed for none of them
def test_audio_classification(model, encoder, clips, evaluate):
    """The recordings are files in a column of datasets, as in MAEB. No decoder of datasets is needed."""
    train, test = [clip[part] for part in (0, 1) for clip in clips], [clip[2] for clip in clips]
    task = classification("AudioClassification", "audio", list(map(wav, train)), list(map(wav, test)), Audio())
    scores = evaluate(model, task)
    labels = np.arange(len(test))
    order = np.random.RandomState(task.seed).permutation(len(train))
    classifier = LogisticRegression(max_iter=100, random_state=task.seed)
    classifier.fit(encoder.encode(list(map(row, train)))[order], np.tile(labels, 2)[order])
    accuracy = classifier.score(encoder.encode(list(map(row, test))), labels)
    assert scores["accuracy"] == scores["main_score"] == pytest.approx(accuracy)
    assert accuracy > 0.5  # chance: 0.25


def test_results_are_filed_under_the_model(model, encoder, tmp_path):
    texts = {"text": list(TUNES.values())}
    result = mteb.evaluate(
        model, retrieval("Retrieval", "t2t", ["text"], texts, texts), cache=mteb.ResultCache(tmp_path), **QUIET
    )
    meta = model.mteb_model_meta
    assert (result.model_name, result.model_revision) == (meta.name, meta.revision)
    [saved] = tmp_path.rglob("model_meta.json")
    saved = json.loads(saved.read_text())
    assert (saved["name"], saved["loader"]) == ("clamplib/clamp3-mini", "CLaMP3MTEB")
    assert saved["revision"] == encoder.space["weights_sha256"]


def test_images_are_refused(model, encoder, evaluate, monkeypatch):
    pictures = [Image.new("RGB", (8, 8))] * 2
    with pytest.raises(ValueError, match=r"supports \['audio', 'text'\].*modalities=\['image'\]"):
        evaluate(model, classification("ImageClassification", "image", pictures, pictures))

    monkeypatch.setattr(encoder, "encode", None)  # refused before anything is encoded
    for batch in ({"image": pictures}, {"text": ["a", "b"], "image": pictures}, {"id": ["0", "1"]}):
        with pytest.raises(InputError, match=f"expected batches of text, audio or both, .* {', '.join(sorted(batch))}"):
            model.encode(loader_of(batch), **ANY_TASK, **QUIET)


def test_text_with_audio_is_the_sum(model, encoder, clips):
    texts, sounds = ["an air", "a hymn"], [row(clips[0][0]), row(clips[2][0])]
    both = model.encode(loader_of({"text": texts, "audio": sounds}), **ANY_TASK, **QUIET)
    total = encoder.encode(texts) + encoder.encode(sounds)
    np.testing.assert_allclose(both, total / np.linalg.norm(total, axis=1, keepdims=True), **CLOSE)
    assert both.dtype == np.float32


def test_recordings_may_be_files_on_disk(model, encoder, clips, tmp_path):
    path = tmp_path / "air.wav"
    path.write_bytes(wav(clips[0][0])["bytes"])
    data = Dataset.from_dict({"audio": [str(path)]}).cast_column("audio", Audio())
    loader = DataLoader(data, batch_size=2, collate_fn=lambda rows: {"audio": [row["audio"] for row in rows]})
    vectors = model.encode(loader, **ANY_TASK, **QUIET)
    np.testing.assert_allclose(vectors, encoder.encode([path]), **CLOSE)


def test_no_rows_and_other_precisions(model, encoder):
    nothing = DataLoader(Dataset.from_dict({"text": []}))
    assert model.encode(nothing, **ANY_TASK, **QUIET).shape == (0, encoder.dimension)
    with pytest.raises(InputError, match="expected the precision float32, got int8"):
        model.encode(nothing, **ANY_TASK, **QUIET, precision="int8")


def test_similarity_of_arrays_and_tensors(model, encoder):
    assert isinstance(model, EncoderProtocol)
    a, b = encoder.encode(["an air", "a reel"]), encoder.encode(["a jig", "a hymn"])
    for kind in (np.asarray, torch.tensor):
        np.testing.assert_allclose(model.similarity(kind(a), kind(3 * b)), a @ b.T, **CLOSE)
        np.testing.assert_allclose(model.similarity_pairwise(kind(a), kind(3 * b)), (a * b).sum(1), **CLOSE)
    assert float(model.similarity(a[0], b[0])) == pytest.approx(a[0] @ b[0], abs=1e-5)  # as summarization tasks ask


def test_metadata_of_a_variant_on_the_hub_claims_nothing():
    meta = clamp3_meta("owner/name", revision="v1")
    assert (meta.name, meta.revision, meta.reference) == ("owner/name", "v1", "https://huggingface.co/owner/name")
    assert (meta.n_parameters, meta.memory_usage_mb, meta.embed_dim, meta.license) == (None, None, None, None)


@pytest.mark.parametrize("variant", NAMES)
def test_metadata_of_named_variants(variant):
    meta = clamp3_meta(variant)
    assert (meta.name, meta.license, meta.open_weights) == (NAMES[variant], "mit", True)
    assert meta.modalities == ["audio", "text"]
    assert meta.similarity_fn_name == "cosine"
    assert "deu-Latn" in meta.languages
    assert meta.loader is CLaMP3MTEB
    assert meta.to_dict()["loader"] == "CLaMP3MTEB"


def test_known_counts_are_those_of_the_model(encoder):
    known, counted = clamp3_meta("mini"), clamp3_meta("mini", encoder)
    for field in ("n_parameters", "memory_usage_mb", "embed_dim"):
        assert getattr(known, field) == getattr(counted, field)


def test_metadata_of_a_folder_loads_it(encoder, tmp_path, monkeypatch):
    folder = tmp_path / "my model"
    save_variant(folder, encoder.loaded.model, encoder.loaded.tokenizer, encoder.loaded.geometry)
    model = CLaMP3MTEB(folder, device="cpu", dtype=torch.bfloat16)
    meta = model.mteb_model_meta
    assert (meta.name, meta.license, meta.languages) == ("local/my model", None, None)
    assert (meta.embed_dim, meta.n_parameters) == (encoder.dimension, 11_135_937)
    assert meta.revision == model.encoder.space["weights_sha256"]
    assert meta.experiment_kwargs == {"dtype": "bfloat16"}  # so its results are kept apart

    monkeypatch.setattr(ModelMeta, "_check_requirements", lambda self: None)  # of mteb[audio]; the text needs none
    again = meta.load_model(device="cpu")
    assert again.mteb_model_meta.model_name_with_experiment == "local/my model (dtype=bfloat16)"
    assert again.mteb_model_meta.revision == meta.revision
    assert again.encoder.precision == "bfloat16"
    with pytest.raises(InputError, match="expected weights of SHA-256 0000"):
        CLaMP3MTEB(folder, "0" * 64, device="cpu")
    np.testing.assert_allclose(again.encoder.encode("an air"), encoder.encode("an air"), atol=0.02)


def test_mteb_loads_by_name():
    model = CLaMP3MTEB(NAMES["mini"], None, device="cpu")
    assert model.encoder.space["variant"] == "mini"
    assert CLaMP3MTEB.from_encoder(model.encoder).mteb_model_meta == model.mteb_model_meta


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.delitem(sys.modules, "clamplib.embedding.mteb_encoder")
    monkeypatch.setitem(sys.modules, "mteb", None)
    with pytest.raises(ImportError, match=r'pip install -c constraints.txt -e "\.\[mteb\]"'):
        importlib.import_module("clamplib.embedding.mteb_encoder")

"""Images by their captions, from a tiny BLIP whose captions are meaningless but differ from image to image."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipProcessor
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from clamplib.embedding import captions
from clamplib.embedding.cache import VectorCache
from clamplib.embedding.captions import BLIP_REPO, Captioner, open_image
from clamplib.embedding.collections import embed_sources, find_sources
from clamplib.embedding.encoder import CLaMP3Encoder
from clamplib.embedding.reading import modality_of
from clamplib.files import InputError

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] a slow sad red blue fast bright air jig reel".split()
FRONT_LAYERS = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 32}


@pytest.fixture(scope="module")
def blip(tmp_path_factory) -> Path:
    """A folder of weights in the published layout, initialized so that captions depend on the image."""
    folder = tmp_path_factory.mktemp("blip")
    ends = {"bos_token_id": 2, "sep_token_id": 3, "eos_token_id": 3, "pad_token_id": 0}
    text = {**FRONT_LAYERS, **ends, "vocab_size": len(WORDS), "encoder_hidden_size": 32, "max_position_embeddings": 64}
    vision = {**FRONT_LAYERS, "image_size": 32, "patch_size": 16, "initializer_range": 1.0}
    torch.manual_seed(0)
    model = BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision, projection_dim=16))
    for name, weights in model.named_parameters():
        if "crossattention" in name and "weight" in name and "LayerNorm" not in name:
            torch.nn.init.normal_(weights)
    model.save_pretrained(folder)
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(WORDS)})
    BlipProcessor(BlipImageProcessorPil(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def captioner(blip):
    return Captioner(blip)


def picture(seed: int) -> Image.Image:
    colors = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(colors).resize((60, 40), Image.Resampling.NEAREST)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Pictures 0 to 3, in files of every kind."""
    for number, name in enumerate(("0.png", "1.JPG", "2.jpeg", "3.webp")):
        picture(number).save(tmp_path / name)
    return tmp_path


def test_captions_depend_on_the_image_alone(captioner, monkeypatch):
    pictures = [picture(seed) for seed in range(5)]
    together = captioner(pictures)
    assert len(set(together)) == 5
    assert set(" ".join(together).split()) <= set(WORDS[5:])
    assert captioner(pictures[::-1]) == together[::-1]
    monkeypatch.setattr(captions, "BATCH_SIZE", 2)
    assert captioner(pictures) == together
    assert [captioner([each])[0] for each in pictures] == together
    assert captioner([]) == []


def test_files_bytes_and_pictures_get_the_same_caption(captioner, folder):
    path = folder / "0.png"
    assert len(set(captioner([path, str(path), path.read_bytes(), picture(0)]))) == 1
    lossless = folder / "lossless.webp"
    picture(0).save(lossless, lossless=True)
    assert captioner([lossless]) == captioner([path])
    assert all(captioner([file]) for file in folder.iterdir())


def test_pictures_stand_upright_on_white(tmp_path):
    turned = picture(1).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it by 270 degrees to see it upright
    turned.save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "turned.png")), np.asarray(picture(1)))
    ink = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    ink.putpixel((3, 3), (0, 0, 0, 255))
    ink.save(tmp_path / "ink.png")
    found = np.asarray(open_image(tmp_path / "ink.png"))
    assert found[3, 3].tolist() == [0, 0, 0]
    assert (found == 255).sum() == 3 * 63
    gray = open_image(ImageOps.grayscale(picture(2)))
    assert gray.mode == "RGB"


def bad_images(folder: Path):
    whole = (folder / "0.png").read_bytes()
    for name, content in (("empty.png", b""), ("text.jpg", b"words"), ("cut.png", whole[: len(whole) // 2])):
        (folder / name).write_bytes(content)
        yield folder / name
    picture(0).save(folder / "gif.png", format="GIF")
    yield folder / "gif.png"
    yield folder / "absent.png"


def test_bad_images_are_named(captioner, folder):
    for path in bad_images(folder):
        with pytest.raises(InputError, match="expected an image, PNG, JPEG or WebP") as raised:
            captioner([path])
        assert str(raised.value).startswith(f"{path}: ")
    with pytest.raises(InputError, match="this image: expected"):
        captioner([b"words"])


def test_nothing_is_loaded_before_the_first_call(tmp_path):
    late = Captioner(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"config\.json and model\.safetensors or .* \(about 990 MB\)"):
        late([])


def test_damaged_weights_are_named(blip, tmp_path):
    own = Path(shutil.copytree(blip, tmp_path / "own"))
    weights = (own / "model.safetensors").read_bytes()
    (own / "model.safetensors").write_bytes(weights[:1000])
    with pytest.raises(InputError, match=r"model\.safetensors: expected a checkpoint or weights, got 1,000 bytes"):
        Captioner(own)([])
    (own / "model.safetensors").write_bytes(weights)
    (own / "tokenizer.json").write_text("words")
    with pytest.raises(InputError, match="own: expected all files of Salesforce/blip"):
        Captioner(own)([])
    for text, reason in (
        ("words", "expected the JSON of a BLIP model"),
        ("[]", "expected the JSON of a BLIP model, an object, got list"),
        ("[" * 200_000, "expected the JSON of a BLIP model"),
        ('{"model_type": "bert"}', "got 'bert'"),
    ):
        (own / "config.json").write_text(text)
        with pytest.raises(InputError, match=rf"config\.json: .*{reason}"):
            Captioner(own)([])


def change(path: Path, part: str | None = None, **changes) -> None:
    """Changes entries of a JSON file, or of a part of it."""
    values = json.loads(path.read_text())
    (values[part] if part else values).update(changes)
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("text_config", {"num_hidden_layers": 10**6}, r"config\.json: .*num_hidden_layers must be at most 1000"),
        ("vision_config", {"num_labels": 10**9}, r"config\.json: .*num_labels must be at most 65536"),
        ("text_config", {"vocab_size": 10**12}, r"model\.safetensors: expected weights of [\d,]+ values, .*, got"),
        ("vision_config", {"hidden_size": "x"}, r"own: expected all files of .*'hidden_size' expected int"),
    ],
)
def test_sizes_of_no_model_are_refused(blip, tmp_path, part, changes, message):
    own = Path(shutil.copytree(blip, tmp_path / "own"))
    change(own / "config.json", part, **changes)
    with pytest.raises(InputError, match=message):
        Captioner(own)([])


def test_images_are_not_enlarged_beyond_what_the_model_reads(blip, tmp_path):
    own = Path(shutil.copytree(blip, tmp_path / "own"))
    [settings] = [path for path in own.iterdir() if '"height"' in path.read_text("latin-1")]
    settings.write_text(settings.read_text().replace('"height": 32', '"height": 1000000000'))
    with pytest.raises(InputError, match="own: .*images must be brought to 32 x 32"):
        Captioner(own)([])


def test_code_is_not_run(blip, tmp_path, monkeypatch):
    def ask(*_):
        raise AssertionError("a question was asked")

    monkeypatch.setattr("builtins.input", ask)
    own = Path(shutil.copytree(blip, tmp_path / "own"))
    (own / "evil.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\nclass Evil: pass")
    names = ("AutoConfig", "AutoModel", "AutoProcessor", "AutoImageProcessor", "AutoTokenizer")
    for path in own.glob("*.json"):
        if path.name != "tokenizer.json":
            code = {name: ["evil.Evil", "evil.Evil"] if name == "AutoTokenizer" else "evil.Evil" for name in names}
            change(path, auto_map=code)
    assert Captioner(own)([picture(0)]) == Captioner(blip)([picture(0)])
    for path in own.glob("*.json"):  # classes that transformers does not have
        if "processor" in path.name or path.name == "tokenizer_config.json":
            change(path, tokenizer_class="Evil", image_processor_type="Evil", processor_class="Evil")
    try:
        Captioner(own)([picture(0)])
    except InputError as error:
        assert "own: expected all files" in str(error)
    assert not (tmp_path / "ran").exists()


def test_pickled_code_is_not_run(blip, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    own = Path(shutil.copytree(blip, tmp_path / "own"))
    (own / "model.safetensors").unlink()
    torch.save({"weight": Evil()}, own / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pytorch_model\.bin: expected a checkpoint or weights"):
        Captioner(own)([])
    assert not (tmp_path / "ran").exists()


def test_the_hub_is_asked_for_what_is_needed(blip, tmp_path, monkeypatch, captioner):
    asked = []
    cached = Path(shutil.copytree(blip, tmp_path / "cached"))

    def download(name, revision, allow_patterns):
        asked.append((name, *allow_patterns))
        return str(cached)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert Captioner().weights_sha256 == captioner.weights_sha256
    assert asked == [(BLIP_REPO, "*.json", "*.txt", "model.safetensors")]
    (cached / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError):
        Captioner("someone/blip")([])
    assert asked[1:] == [
        ("someone/blip", "*.json", "*.txt", "model.safetensors"),
        ("someone/blip", "pytorch_model.bin"),
    ]

    def refuse(name, revision, allow_patterns):
        raise OSError("refused")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(FileNotFoundError) as raised:
        Captioner()([])
    for part in (BLIP_REPO, "refused", "990 MB", "into a folder"):
        assert part in str(raised.value)


@pytest.fixture(scope="module")
def encoder(blip, tiny_variant):
    return CLaMP3Encoder.from_pretrained(tiny_variant, device="cpu", captioner=blip)


def test_an_image_is_encoded_by_its_caption(encoder, captioner, folder):
    paths = sorted(folder.iterdir())
    items = ["a jig", *paths, "a reel"]
    texts = ["a jig", *captioner(paths), "a reel"]
    assert [encoder.caption(path) for path in paths] == texts[1:-1]
    np.testing.assert_allclose(encoder.encode(items), encoder.encode(texts), atol=1e-5)
    vector = encoder.encode(paths[0].read_bytes(), "image")
    np.testing.assert_allclose(vector, encoder.encode(texts[1]), atol=1e-5)
    np.testing.assert_allclose(encoder.encode(paths[0], "image"), vector, atol=1e-5)
    (frames,) = encoder.encode_frames(paths[0])
    np.testing.assert_allclose(frames, encoder.encode_frames(texts[1])[0], atol=1e-5)
    with pytest.raises(InputError, match="expected an image, got the text"):
        encoder.encode("a.png", "image")


def test_bad_images_do_not_stop_the_others(encoder, folder):
    items = [*bad_images(folder), "a jig", folder / "0.png"]
    outcomes = {number: error for number, _, error in encoder.encode_each(items)}
    assert [number for number in range(len(items)) if not outcomes[number]] == [len(items) - 2, len(items) - 1]
    assert all(error.startswith(f"{items[number]}: expected") for number, error in outcomes.items() if error)


def test_missing_weights_are_not_blamed_on_an_image(tiny_variant, tmp_path, folder):
    encoder = CLaMP3Encoder.from_pretrained(tiny_variant, device="cpu", captioner=tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="none is not a folder, is not in the cache"):
        encoder.encode(folder / "0.png")


def test_without_a_captioner_images_are_refused(tiny_variant, folder):
    encoder = CLaMP3Encoder.from_pretrained(tiny_variant, device="cpu")
    for item, modality in ((folder / "0.png", None), ((folder / "0.png").read_bytes(), "image")):
        with pytest.raises(InputError, match="give the encoder a captioner, such as .*blip"):
            encoder.encode(item, modality)
    with pytest.raises(InputError, match=r"0\.png: an image is encoded by its caption"):
        encoder.encode(folder / "0.png")
    with pytest.raises(InputError, match="give the encoder a captioner"):
        encoder.caption(folder / "0.png")
    with pytest.raises(InputError, match="found none"):
        find_sources(folder, encoder.suffixes)


def test_folders_hold_images_for_an_encoder_that_takes_them(encoder, captioner, folder, tmp_path):
    (folder / "words.txt").write_text("a jig")
    with_images = find_sources(folder, encoder.suffixes)
    assert find_sources(folder) == [folder / "words.txt"]
    assert [path.name for path in with_images] == ["0.png", "1.JPG", "2.jpeg", "3.webp", "words.txt"]
    assert {modality_of(path) for path in with_images} == {"image", "text"}
    cache = VectorCache(tmp_path / "cache/vectors.sqlite")
    first = embed_sources(encoder, with_images, cache=cache, progress=False)
    np.testing.assert_allclose(first.matrix[0], encoder.encode(captioner([with_images[0]]))[0], atol=1e-5)
    assert first.modalities == ["image"] * 4 + ["text"]
    again = embed_sources(encoder, with_images, cache=cache, progress=False)
    np.testing.assert_array_equal(again.features.raw, first.features.raw)
    assert encoder.front_id(with_images[0]) == f"blip-{captioner.weights_sha256[:16]}"
    assert encoder.front_id(with_images[-1]) == ""


def test_pillow_is_needed_only_for_images():
    code = """
import sys
sys.modules["PIL"] = None
import clamplib.embedding.encoder
try:
    import clamplib.embedding.captions
except ImportError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == (
        'images need an extra package; in a clone, run: pip install -c constraints.txt -e ".[images]"\n'
    )

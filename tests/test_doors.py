"""One file has one vector, by whichever door it comes in."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from sound import sine, write

from clamplib.app import cli
from clamplib.embedding.collections import open_collection
from clamplib.embedding.encoder import CLaMP3Encoder
from clamplib.files import InputError
from clamplib.formats.mtf import midi_to_mtf
from clamplib.models.loading import save_variant
from clamplib.models.variants import load_clamp3
from clamplib.retrieval.similarity import load_features, load_folders

ROOT = Path(__file__).parents[1]
WILD = "X:1\nT:A wild tune\nR:reel\nM:4/4\nL:1/8\nK:G\nGABc d2Bd|e2dB G4|\nV:2\nG,4 D4|C4 G,4|\n"


@pytest.fixture(scope="module")
def encoder() -> CLaMP3Encoder:
    return CLaMP3Encoder.from_pretrained("mini", device="cpu")


@pytest.fixture(scope="module")
def folder(golden, tmp_path_factory) -> Path:
    """A file of each kind, each with a name of its own."""
    folder = tmp_path_factory.mktemp("doors") / "music"
    folder.mkdir()
    (folder / "wild.abc").write_text(WILD)
    (folder / "words.txt").write_text("a slow air\nin D minor\n")
    shutil.copy(golden / "abc/interleaved/handmade__chords.abc", folder / "interleaved.abc")
    shutil.copy(golden / "abc/xml/handmade__grand.musicxml", folder / "score.musicxml")
    shutil.copy(golden / "midi/in/hm_type0.mid", folder / "piece.mid")
    (folder / "messages.mtf").write_text(midi_to_mtf(folder / "piece.mid"))
    write(folder / "tone.wav", sine(6.0, 22_050, 440), 22_050, "pcm_s16le")
    return folder


@pytest.fixture(scope="module")
def expected(encoder, folder) -> dict[str, np.ndarray]:
    """The vector of each file by `encode`, the file alone."""
    return {path.stem: encoder.encode(path, normalize_embeddings=False) for path in sorted(folder.iterdir())}


def check(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], names: set[str]) -> None:
    assert found.keys() == names
    for name, vector in found.items():
        np.testing.assert_allclose(vector, expected[name], atol=1e-5, err_msg=name)


def vectors(folder: Path) -> dict[str, np.ndarray]:
    features = load_features(folder)
    return dict(zip(features.keys, features.raw, strict=True))


def test_the_encoder(encoder, folder, expected):
    paths = sorted(folder.iterdir())
    together = encoder.encode(paths, normalize_embeddings=False)
    check(dict(zip([path.stem for path in paths], together, strict=True)), expected, set(expected))
    for name, modality in (("wild.abc", "score"), ("interleaved.abc", "score"), ("messages.mtf", "midi")):
        path = folder / name
        for item in (path.read_bytes(), path.read_text()):
            found = encoder.encode(item, modality, normalize_embeddings=False)
            check({path.stem: found}, expected, {path.stem})


def test_a_collection_and_an_index(encoder, folder, expected, tmp_path, monkeypatch, capsys):
    opened = open_collection(encoder, folder)
    check(dict(zip(opened.features.keys, opened.features.raw, strict=True)), expected, set(expected))
    monkeypatch.setenv("CLAMP3_CACHE", str(tmp_path / "cache"))
    assert cli.main(["index", str(folder), str(tmp_path / "index"), "--variant", "mini"]) == 0
    assert (
        cli.main(["search", str(folder / "wild.abc"), str(tmp_path / "index"), "--variant", "mini", "--top_k", "1"])
        == 0
    )
    first = capsys.readouterr().out.strip().splitlines()[-1]
    assert first.split()[0] == "1.000" and first.endswith("wild.abc")


def test_the_command(folder, expected, tmp_path):
    assert cli.main(["embed", str(folder), str(tmp_path), "--variant", "mini", "--no_cache"]) == 0
    check(vectors(tmp_path), expected, set(expected))


@pytest.fixture
def scripts(monkeypatch):
    """Runs a script's main in this process."""
    for place in ("code", "preprocessing/abc", "preprocessing/midi", "preprocessing/audio"):
        monkeypatch.syspath_prepend(ROOT / place)

    def run(name: str, *words) -> None:
        assert __import__(name).main([str(word) for word in words]) == 0

    yield run
    for name in ("batch_xml2abc", "batch_interleaved_abc", "batch_midi2mtf", "extract_spectral", "extract_clamp3"):
        sys.modules.pop(name, None)


def test_the_scripts(folder, expected, tmp_path, scripts):
    """What the encoder reads at once goes by the published scripts one after the other."""
    for kind, names in {
        "texts": ("wild.abc", "interleaved.abc", "messages.mtf", "words.txt"),
        "xml": ("score.musicxml",),
        "midi": ("piece.mid",),
        "sound": ("tone.wav",),
    }.items():
        (tmp_path / kind).mkdir()
        for name in names:
            shutil.copy(folder / name, tmp_path / kind)
    for script, source, target in (
        ("batch_xml2abc", "xml", "standard"),
        ("batch_interleaved_abc", "standard", "score"),
        ("batch_midi2mtf", "midi", "mtf"),
        ("extract_spectral", "sound", "spectral"),
    ):
        scripts(script, tmp_path / source, tmp_path / target, "--workers", 1)  # processes may lack this one's path
    found = {}
    for kind in ("texts", "score", "mtf", "spectral"):
        scripts("extract_clamp3", tmp_path / kind, tmp_path / "out" / kind, "--get_global", "--variant", "mini")
        found |= vectors(tmp_path / "out" / kind)
    check(found, expected, set(expected))


def test_abc_read_in_two_ways_is_not_compared(encoder, folder, tmp_path, golden):
    """A variant that wants ABC converted has another space than the same weights that take it as found."""
    loaded = load_clamp3("mini", weights_folder=tmp_path)
    for way in ("as found", "converted"):
        geometry = loaded.geometry.from_dict({**loaded.geometry.to_dict(), "abc": way, "notes": ""})
        save_variant(tmp_path / way, loaded.model, loaded.tokenizer, geometry)
        words = ["embed", folder / "wild.abc", tmp_path / f"{way} features", "--variant", tmp_path / way, "--no_cache"]
        assert cli.main(list(map(str, words))) == 0
    a, b = (vectors(tmp_path / f"{way} features")["wild"] for way in ("as found", "converted"))
    assert np.abs(a - b).max() > 0.01
    with pytest.raises(InputError, match="abc differ"):
        load_folders(tmp_path / "as found features", tmp_path / "converted features")

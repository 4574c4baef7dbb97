"""Every kind of item as the encoders read it, and what is said of those that cannot be read."""

import os
import pickle
import zipfile
from pathlib import Path

import mido
import music21
import numpy as np
import pytest
from sound import sine, write

from clamplib.audio.spectral import SIZE, recording_features
from clamplib.embedding.reading import (
    MODALITIES,
    SUFFIXES,
    Content,
    Reader,
    Waveform,
    is_image,
    is_recording,
    modality_of,
    read_item,
)
from clamplib.files import InputError
from clamplib.formats.mtf import midi_to_mtf
from clamplib.formats.notation import interleave, xml_to_abc
from clamplib.formats.score_files import list_tunes

TUNE = "X:1\nT:Ä tune\nM:4/4\nL:1/8\nK:C\nCDEF GABc|c8|]\n"
TWO_VOICES = "X:1\nL:1/8\nM:4/4\nK:C\nV:1\nV:2\n[V:1] CDEF GABc|c8|]\n[V:2] C,8|C,8|]\n"
KERN = "**kern\n*M4/4\n4c\n4d\n4e\n4f\n=\n*-\n"


@pytest.fixture
def xml(golden) -> Path:
    return golden / "abc/xml/handmade__grace.musicxml"


def whole_midi(golden: Path) -> Path:
    return next(path for path in sorted((golden / "midi/in").glob("*.mid")) if not path.name.startswith("bad"))


def notes(abc: str) -> str:
    """The bars, without the fields before them."""
    return abc[abc.index("[V:1]") :]


def test_text_in_every_way(tmp_path):
    expected = Content("text", "slow, träumerisch\nand sad")
    path = tmp_path / "a.TXT"
    path.write_text(expected.value, encoding="utf-8-sig")
    for item, modality in ((expected.value, None), (path, None), (expected.value.encode(), "text")):
        assert read_item(item, modality) == expected
    path.rename(tmp_path / "a.dat")
    assert read_item(tmp_path / "a.dat", "text") == expected


@pytest.mark.parametrize("name", ["handmade__grace.musicxml", "demos__drum_sample.xml", "bach__bwv154.3.mxl"])
def test_musicxml_in_every_way(golden, name):
    path = golden / "abc/xml" / name
    expected = Content("score", (golden / f"abc/interleaved/{path.stem}.abc").read_bytes().decode())
    assert read_item(path) == expected
    assert read_item(path.read_bytes(), "score") == expected
    assert read_item(expected.value, "score") == expected


def test_bytes_of_musicxml_behind_a_byte_order_mark(xml):
    text = xml.read_text(encoding="utf-8")
    expected = read_item(xml)
    assert read_item(text.encode("utf-8-sig"), "score") == expected
    declared = text[text.index("?>") + 2 :].lstrip()
    assert read_item(declared.encode("utf-16"), "score") == expected


def test_interleaved_abc_stays_as_it_is(golden, tmp_path):
    """However it is given; interleaving it again would move bar lines and clefs."""
    for path in sorted((golden / "abc/interleaved").iterdir()):
        text = path.read_text()
        assert read_item(path).value == text, path.name
        assert read_item(text, "score").value == text
        assert read_item(path.read_bytes(), "score").value == text


@pytest.mark.parametrize("abc", ["", "as found", "converted"])
def test_abc_of_the_wild_is_read_as_the_variant_wants_it(abc, tmp_path):
    path = tmp_path / "a.abc"
    expected = read_item(TUNE, "score", abc)
    if abc == "converted":
        assert expected.notes == "converted"
        assert notes(expected.value).splitlines() == ["[V:1]CDEF GABc|", "[V:1]c8|]"]
    else:
        assert expected == Content("score", TUNE, "as found")
    for encoding in ("utf-8", "latin-1", "utf-16"):
        path.write_bytes(TUNE.replace("\n", "\r\n").encode(encoding))
        assert read_item(path, abc=abc) == read_item(path.read_bytes(), "score", abc) == expected


def test_voices_on_lines_of_their_own_are_not_taken_for_interleaved():
    first, second = notes(read_item(TWO_VOICES, "score", "converted").value).splitlines()
    assert first.startswith("[V:1]CDEF GABc|[V:2]") and "c8" in second


def test_a_tune_of_a_tunebook(tmp_path):
    path = tmp_path / "jigs.abc"
    path.write_text(TUNE + "\n" + TUNE.replace("X:1", "X:2").replace("CDEF", "EFGA"))
    first, second = list_tunes(path)
    assert "CDEF" in read_item(first).value and "EFGA" in read_item(second).value
    assert read_item(first).modality == "score"


def test_a_tune_of_a_tunebook_of_interleaved_looks(tmp_path):
    path = tmp_path / "two.abc"
    path.write_text(TWO_VOICES + "\n" + TWO_VOICES)
    second = read_item(list_tunes(path)[1], abc="converted").value
    assert notes(second).splitlines()[0].startswith("[V:1]CDEF GABc|[V:2]")


def test_kern_and_mei(tmp_path):
    (tmp_path / "a.krn").write_text(KERN)
    assert "C2" in notes(read_item(tmp_path / "a.krn").value)
    mei = Path(music21.__file__).parent / "mei/test/test_file.mei"
    assert read_item(mei).modality == "score" and "[V:1]" in read_item(mei).value


def test_midi_in_every_way(golden, tmp_path):
    for path in sorted((golden / "midi/mtf_m3").glob("*.mtf")):
        expected = Content("midi", path.read_text())
        if "smpte" in path.name:  # which has no beats
            continue
        (source,) = [each for each in (golden / "midi/in").iterdir() if each.stem == path.stem]
        assert read_item(source) == expected, source.name
        assert read_item(source.read_bytes(), "midi") == expected
        assert read_item(mido.MidiFile(source)) == expected
        assert read_item(path) == read_item(path.read_text(), "midi") == expected
        assert read_item(path.read_bytes(), "midi") == expected


def test_a_music21_stream(xml):
    score = music21.converter.parse(xml)
    made = read_item(score)
    assert made.modality == "score" and notes(made.value) == notes(read_item(xml).value)
    part = music21.converter.parse("tinynotation: 4/4 c4 d e f g1")
    assert "G8" in notes(read_item(part).value)


@pytest.mark.parametrize("rate", [22_050, 44_100, 8_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_recordings_in_every_way(tmp_path, rate, channels):
    sound = sine(6, rate, *(440, 660)[:channels])
    path = write(tmp_path / "a.wav", sound, rate, "pcm_f32le")
    expected = recording_features(path)
    assert expected.shape == (1, 2, SIZE)
    for item, modality in (
        (path, None),
        (path.read_bytes(), "audio"),
        (Waveform(sound, rate), None),
        (Waveform(sound.astype(np.float64), rate), "audio"),
    ):
        found = read_item(item, modality)
        assert found.modality == "audio"
        np.testing.assert_allclose(found.value, expected, atol=1e-4)
    if channels == 1:
        np.testing.assert_allclose(read_item(Waveform(sound[0], rate)).value, expected, atol=1e-4)


def test_features_of_recordings(tmp_path):
    features = np.random.default_rng(0).standard_normal((1, 3, 256)).astype(np.float32)
    np.save(tmp_path / "a.npy", features)
    for modality in (None, "audio"):
        found = read_item(tmp_path / "a.npy", modality)
        assert found.modality == "audio"
        np.testing.assert_array_equal(found.value, features)


def test_what_counts_as_what(tmp_path):
    kinds = {".txt": "text", ".MXL": "score", ".krn": "score", ".mid": "midi", ".mtf": "midi", ".mp3": "audio"}
    kinds |= {".npy": "audio", ".png": "image", ".JPEG": "image"}
    for suffix, modality in kinds.items():
        assert modality_of(Path("a" + suffix)) == modality and modality in MODALITIES
    assert {modality_of("a" + suffix) for suffix in SUFFIXES} == {"text", "score", "midi", "audio"}
    sound = Waveform(np.zeros(9), 9)
    assert is_recording(Path("a.WAV")) and is_recording(b"", "audio") and is_recording(sound)
    assert is_recording(Path("a.dat"), "audio")
    for item, modality in ((Path("a.npy"), None), (Path("a.npy"), "audio"), ("a.wav", None), (Path("a.wav"), "text")):
        assert not is_recording(item, modality)
    assert is_image(Path("a.WebP")) and is_image(b"", "image") and is_image(Path("a"), "image")
    assert not is_image("a.png") and not is_image(b"") and not is_image(Path("a.png"), "text")


def bad_files(folder: Path, golden: Path):
    """(path, what is said of it)."""
    midi = whole_midi(golden).read_bytes()
    contents = {
        "empty.abc": (b"", "expected text, got an empty file"),
        "binary.abc": (b"K:C\0\1", "expected text, got a binary file"),
        "no tune.abc": (b"hello there\n", "expected an ABC tune with a K: line"),
        "book.abc": ((TUNE + "\n" + TUNE).encode(), "expected one tune of ABC, got 2"),
        "empty.musicxml": (b"", "expected MusicXML, got an empty file"),
        "empty.mxl": (b"", "expected MusicXML, got an empty file"),
        "cut.mxl": (b"PK\3\4words", "expected a whole .mxl archive"),
        "two.krn": ((KERN + KERN).encode(), "expected one score, got 2"),
        "empty.mid": (b"", "expected a MIDI file (it begins with MThd), got an empty file"),
        "words.mid": (b"words", "expected a MIDI file (it begins with MThd), got b'words'"),
        "cut.mid": (midi[: len(midi) // 2], "cut short"),
        "words.mtf": (b"words", "expected MTF, got the text 'words'"),
        "latin.txt": ("ä".encode("latin-1"), "expected UTF-8 text"),
        "empty.wav": (b"", "expected a recording"),
        "words.mp3": (b"words", "expected a recording"),
        "words.npy": (b"words", "expected a .npy file of numbers"),
        "a.pdf": (b"words", "expected a file ending in .txt"),
        "no suffix": (b"words", "expected a file ending in .txt"),
    }
    for name, (content, reason) in contents.items():
        (folder / name).write_bytes(content)
        yield folder / name, reason
    yield folder / "gone.abc", "there is no such file"
    yield folder, "expected a file ending in"


def test_bad_files(tmp_path, golden):
    for path, reason in bad_files(tmp_path, golden):
        with pytest.raises(InputError) as raised:
            read_item(path, abc="converted")
        assert reason in str(raised.value), (path, str(raised.value))


@pytest.mark.parametrize(
    "item, modality, reason",
    [
        (b"MThd", None, "bytes may be anything: name their modality, one of text, score, midi, audio, image"),
        ([1, 2], None, "expected a text, a path, bytes with a modality, a Waveform, .* got list"),
        (None, None, "got NoneType"),
        (3, "text", "got int"),
        ("words", "music", "expected one of the modalities text, score, midi, audio, image, got 'music'"),
        ("words", "midi", "expected MTF, got the text 'words'; for a file give its pathlib.Path"),
        ("a.wav", "audio", "expected a recording, got the text 'a.wav'; for a file give its pathlib.Path"),
        ("", "score", "expected one tune of ABC, got 0"),
        (TUNE + "\n" + TUNE, "score", "expected one tune of ABC, got 2"),
        (b"", "score", "this score: expected text, got an empty file"),
        (b"", "midi", "this midi: expected text, got an empty file|an empty file"),
        (b"MThd", "midi", "this MIDI: expected whole tracks, got a MIDI file that is cut short"),
        (b"words", "audio", "this recording: expected a recording"),
        (Waveform(np.zeros(0), 8000), None, "expected samples of floats"),
        (Waveform(np.zeros(9, np.int16), 8000), None, r"expected samples of floats .* got int16 \[9\]"),
        (Waveform(np.zeros((1, 1, 9)), 8000), None, r"got float64 \[1, 1, 9\]"),
        (Waveform(np.zeros(9000), 7), None, "expected a sample rate of 1,000"),
        (Waveform(np.full(9000, np.nan), 8000), None, "got NaN"),
        (mido.MidiFile(type=2), None, "type 2"),
        (music21.stream.Stream(), None, "expected|met"),
    ],
)
def test_bad_items(item, modality, reason):
    with pytest.raises(InputError, match=reason):
        read_item(item, modality, abc="converted")


def test_what_is_read_crosses_processes():
    for item in (Content("text", "words"), Content("audio", np.zeros((1, 2, 3)))):
        assert pickle.loads(pickle.dumps(item)).modality == item.modality


def test_links_and_odd_names(tmp_path, xml):
    for name in ("$HOME ~ 'x'\n.musicxml", os.fsdecode(b"\xff\xfe.musicxml")):
        (tmp_path / name).write_bytes(xml.read_bytes())
        assert read_item(tmp_path / name) == read_item(xml)
    with zipfile.ZipFile(tmp_path / "a.mxl", "w") as archive:
        archive.write(xml, "score.musicxml")
    (tmp_path / "link.mxl").symlink_to(tmp_path / "a.mxl")
    assert read_item(tmp_path / "link.mxl") == read_item(xml)


def test_they_agree_with_the_conversions(xml, golden):
    assert read_item(xml).value == interleave(xml_to_abc(xml))
    midi = whole_midi(golden)
    assert read_item(midi).value == midi_to_mtf(midi)


@pytest.fixture
def reader(tiny_geometry):
    return Reader(tiny_geometry)


def test_a_file_is_read_by_its_suffix(tmp_path, reader):
    (tmp_path / "a.TXT").write_bytes(b"\xef\xbb\xbfwaltz\r\n")
    (tmp_path / "a.Abc").write_text("K:C\nCDEF|\n")
    (tmp_path / "a.mtf").write_text("ticks_per_beat 480\nend_of_track 0")
    np.save(tmp_path / "a.npy", np.ones((2, 128), np.float32))
    assert reader(tmp_path / "a.TXT") == ("text", "waltz\n", "", 0)
    assert reader(tmp_path / "a.Abc").sequence.shape == reader(tmp_path / "a.mtf").sequence.shape == (4, 64)
    assert reader(tmp_path / "a.npy").sequence.shape == (4, 128)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"caf\xe9", "expected UTF-8"),
        ("a.mtf", b"", "expected text, "),
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
        (np.array([{}], object), "dtype object"),
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
    reading = reader(f"K:C\n{'C' * 62}|{'C' * 61}|CDEF|\n", "score")
    assert reading.cut == 1

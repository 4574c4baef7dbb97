"""Decoding: every format, resampling, windows, and what is said of files that cannot be read."""

import os
import subprocess
import sys
import tracemalloc
import wave

import av
import numpy as np
import pytest
from sound import sine, write

from clamplib.audio import Waveform, decoding, recording_name
from clamplib.audio.decoding import samples, windows
from clamplib.files import InputError

RATE = 24_000


def read(path, rate=RATE):
    return np.concatenate(list(samples(path, rate)))


def test_torch_is_not_imported():
    code = "import sys, clamplib.audio.decoding; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "name, codec, rate",
    [
        ("a.mp3", "libmp3lame", 44_100),
        ("a.flac", "flac", 96_000),
        ("a.ogg", "vorbis", 44_100),
        ("a.opus", "libopus", 48_000),
        ("a.m4a", "aac", 32_000),
        ("a.aac", "aac", 22_050),
        ("a.aiff", "pcm_s16be", 11_025),
        ("a.webm", "libopus", 48_000),
    ],
)
def test_every_format(tmp_path, name, codec, rate):
    sound = read(write(tmp_path / name, sine(2, rate, 440, 440), rate, codec))
    assert sound.dtype == np.float32
    assert abs(len(sound) / RATE - 2) < 0.1  # encoders fill up their last frame
    middle = sound[RATE // 2 : 3 * RATE // 2]
    spectrum = np.abs(np.fft.rfft(middle))
    assert spectrum.argmax() == 440
    assert np.square(spectrum[439:442]).sum() > 0.98 * np.square(spectrum).sum()
    assert abs(np.abs(middle).max() - 0.5) < 0.05


@pytest.mark.parametrize(
    "codec, error",
    [("pcm_u8", 2**-7), ("pcm_s16le", 2**-15), ("pcm_s24le", 2**-22), ("pcm_f32le", 0), ("pcm_f64le", 0)],
)
def test_wav_of_every_depth(tmp_path, codec, error):
    sound = sine(0.1, RATE, 440)
    found = read(write(tmp_path / "a.wav", sound, RATE, codec))
    np.testing.assert_allclose(found, sound[0], atol=error, rtol=0)


@pytest.mark.parametrize("channels", [1, 2, 6, 8])
@pytest.mark.parametrize("name, codec", [("a.wav", "pcm_s16le"), ("a.mkv", "pcm_f32le"), ("a.flac", "flac")])
def test_channels_are_averaged(tmp_path, channels, name, codec):
    sound = sine(0.5, RATE, *range(300, 300 + 100 * channels, 100))
    found = read(write(tmp_path / name, sound, RATE, codec))
    np.testing.assert_allclose(found, sound.mean(0), atol=2**-14)


def test_eight_channels_on_planes_of_their_own(tmp_path):
    """As in recordings with surround sound."""
    sound = np.repeat(sine(1, RATE, 440), 8, axis=0)
    heard = read(write(tmp_path / "a.m4a", sound, RATE, "aac"))
    assert 0.4 < np.abs(heard).max() < 0.55  # one of the channels has no treble


def naive(sound, source_rate, rate):
    """The published formula, one sample at a time."""
    cutoff = 0.99 * min(source_rate, rate)
    times = np.arange(len(sound)) / source_rate
    made = []
    for k in range(-(-len(sound) * rate // source_rate)):
        crossings = np.clip((k / rate - times) * cutoff, -6, 6)
        made.append(sound @ (np.sinc(crossings) * np.cos(np.pi * crossings / 12) ** 2) * cutoff / source_rate)
    return np.array(made)


@pytest.mark.parametrize(
    "source_rate, rate", [(22_050, 24_000), (44_100, 24_000), (48_000, 24_000), (8_000, 22_050), (44_101, 24_000)]
)
def test_resampling_in_blocks_equals_the_formula(source_rate, rate, monkeypatch):
    sound = np.random.default_rng(0).standard_normal(1500).astype(np.float32)
    expected = naive(sound, source_rate, rate)
    for block in (1500, 400, 7, 1):  # samples
        monkeypatch.setattr(decoding, "BLOCK_SECONDS", block / source_rate)
        np.testing.assert_allclose(read(Waveform(sound, source_rate), rate), expected, atol=2e-6)


@pytest.mark.parametrize(
    "seconds, lengths",
    [(0.03, [0.03]), (0.5, [0.5]), (1, [1]), (5, [5]), (5.99, [5]), (6, [5, 1]), (14.5, [5, 5, 4.5]), (25, [5] * 5)],
)
def test_windows(tmp_path, seconds, lengths):
    sound = np.random.default_rng(0).uniform(-1, 1, round(seconds * RATE)).astype(np.float32)
    found = list(windows(write(tmp_path / "a.wav", sound[None], RATE, "pcm_f32le"), RATE))
    assert [len(window) / RATE for window in found] == lengths
    np.testing.assert_array_equal(np.concatenate(found), sound[: round(sum(lengths) * RATE)])


@pytest.mark.parametrize("spool", [1, 1 << 25])
def test_the_whole_recording_is_normalized(tmp_path, spool, monkeypatch):
    monkeypatch.setattr(decoding, "SPOOL_BYTES", spool)
    sound = 0.1 + sine(12, RATE, 440, level=0.2) * np.linspace(0, 1, 12 * RATE, dtype=np.float32)
    found = list(windows(write(tmp_path / "a.wav", sound, RATE, "pcm_f32le"), normalize=True))
    assert [len(window) for window in found] == [5 * RATE, 5 * RATE, 2 * RATE]
    expected = (sound[0] - sound.mean(dtype=float)) / sound.std(dtype=float)
    np.testing.assert_allclose(np.concatenate(found), expected, atol=1e-4)


@pytest.mark.parametrize("level", [0, 0.5])
def test_silence_stays_silent(tmp_path, level):
    path = write(tmp_path / "a.wav", np.full((1, RATE), level, np.float32), RATE, "pcm_s16le")
    np.testing.assert_allclose(next(windows(path, normalize=True)), 0, atol=1e-6)


def test_long_recordings_take_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "SPOOL_BYTES", 1 << 20)
    path, minutes = tmp_path / "a.wav", 4
    write(path, np.tile(sine(60, 8_000, 440), minutes), 8_000, "pcm_s16le")
    tracemalloc.start()
    count = sum(len(window) for window in windows(path, normalize=True))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == minutes * 60 * RATE
    assert 2 * peak < count * 4  # bytes


def test_a_name_may_be_anything(tmp_path):
    source = write(tmp_path / "a.wav", sine(0.1, RATE, 440), RATE, "pcm_s16le").read_bytes()
    for name in (b"http:a.wav", b"concat:b|c.mp3", b"100%20$(x)\n'\".mp3", b"\xff\xfe.wav", b"none"):
        path = os.fsdecode(os.path.join(os.fsencode(tmp_path), name))
        with open(path, "wb") as file:
            file.write(source)
        assert len(read(path)) == RATE / 10


def test_the_content_decides_and_not_the_name(tmp_path):
    assert len(read(write(tmp_path / "wav.mp3", sine(1, RATE, 440), RATE, "pcm_s16le", "wav"))) == RATE
    film = write(tmp_path / "film.mp4", sine(1, 44_100, 440, 660), 44_100, "aac", film=True)
    assert abs(len(read(film)) - RATE) < RATE / 10


def test_a_cut_or_damaged_recording_is_read_with_a_warning(tmp_path, caplog):
    whole = write(tmp_path / "whole.mp3", sine(6, 44_100, 440), 44_100, "libmp3lame").read_bytes()
    half = len(whole) // 2
    damaged = whole[: half // 2] + b"\xaa" * half + whole[half // 2 + half :]
    for name, content in (("cut.mp3", whole[: half + 77]), ("damaged.mp3", damaged)):
        path = tmp_path / name
        path.write_bytes(content)
        assert 2.5 < len(read(path)) / RATE < 3.5
        assert f"{path}: expected 6.0 s of sound, got" in caplog.messages[-1]
    read(tmp_path / "whole.mp3")
    assert len(caplog.messages) == 2


def bad_files(folder):
    """Pairs of a file that cannot be read and its error."""
    other = write(folder / "other.wav", sine(1, RATE, 440), RATE, "pcm_s16le")
    texts = {
        "text.wav": "no sound at all\n" * 100,
        "text.mp3": "no sound at all\n" * 100,
        "empty.wav": "",
        "empty.mp3": "",
        "list.mp3": f"ffconcat version 1.0\nfile '{other}'\n",
        "hls.mp3": f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{other}\n#EXT-X-ENDLIST\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
        yield folder / name, "expected a recording, got data that cannot be decoded"
    (folder / "noise.mp3").write_bytes(np.random.default_rng(0).bytes(50_000))
    yield folder / "noise.mp3", "expected a recording"
    cut = write(folder / "cut.m4a", sine(2, RATE, 440), RATE, "aac")  # its index stood at its end
    cut.write_bytes(cut.read_bytes()[:10_000])
    yield cut, "cannot be decoded"
    with wave.open(str(folder / "none.wav"), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
    yield folder / "none.wav", "got one without samples"
    for value in (np.nan, np.inf):
        sound = sine(1, RATE, 440)
        sound[:, 777] = value
        yield write(folder / f"{value}.wav", sound, RATE, "pcm_f32le"), "got NaN or infinity"
    with av.open(str(folder / "silent film.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10, width=32, height=32)
        for packet in stream.encode(av.VideoFrame(32, 32, "yuv420p")) + stream.encode():
            container.mux(packet)
    yield folder / "silent film.mp4", "expected a sound track, got none"
    slow = bytearray(other.read_bytes())
    slow[24:28] = (7).to_bytes(4, "little")
    (folder / "slow.wav").write_bytes(slow)
    yield folder / "slow.wav", "expected a sample rate of 1,000 to 1,000,000 Hz, got 7"
    two = [write(folder / f"{rate}.mp3", sine(1, rate, 440), rate, "libmp3lame") for rate in (44_100, 32_000)]
    (folder / "two rates.mp3").write_bytes(b"".join(path.read_bytes() for path in two))
    yield folder / "two rates.mp3", "expected one sample rate"


def test_bad_files_are_named_with_the_reason(tmp_path, capfd):
    for path, reason in bad_files(tmp_path):
        with pytest.raises(InputError) as caught:
            list(windows(path))
        assert str(caught.value).startswith(f"{path}: ")
        assert reason in str(caught.value)
    assert capfd.readouterr() == ("", "")  # no decoder prints


@pytest.mark.parametrize("rate, channels", [(RATE, 1), (44_100, 2), (8_000, 2)])
def test_bytes_and_waveforms_sound_like_their_file(tmp_path, rate, channels):
    sound = np.random.default_rng(0).uniform(-1, 1, (channels, 12 * rate)).astype(np.float32)
    path = write(tmp_path / "a.wav", sound, rate, "pcm_f32le")
    for normalize in (False, True):
        expected = list(windows(path, normalize=normalize))
        for recording in (path.read_bytes(), Waveform(sound, rate), Waveform(sound.astype(np.float64), rate)):
            found = list(windows(recording, normalize=normalize))
            assert [len(window) for window in found] == [5 * RATE, 5 * RATE, 2 * RATE]
            np.testing.assert_allclose(np.concatenate(found), np.concatenate(expected), atol=1e-5)
    np.testing.assert_array_equal(read(Waveform(sound[0], rate)), read(Waveform(sound[:1], rate)))


def test_bytes_of_every_container(tmp_path):
    for name, codec in (("a.mp3", "libmp3lame"), ("a.flac", "flac"), ("a.m4a", "aac")):
        path = write(tmp_path / name, sine(1, 44_100, 440, 440), 44_100, codec)
        np.testing.assert_array_equal(read(path.read_bytes()), read(path))


def test_bytes_cannot_open_other_files(tmp_path):
    other = write(tmp_path / "other.wav", sine(1, RATE, 440), RATE, "pcm_s16le")
    for text in (f"ffconcat version 1.0\nfile '{other}'\n", f"#EXTM3U\n#EXTINF:5,\n{other}\n#EXT-X-ENDLIST\n"):
        with pytest.raises(InputError, match="this recording: expected a recording, got data that cannot be decoded"):
            read(text.encode())


@pytest.mark.parametrize(
    "samples, rate, reason",
    [
        (np.zeros(0, np.float32), RATE, r"expected samples of floats .* got float32 \[0\]"),
        (np.zeros((2, 0), np.float32), RATE, r"got float32 \[2, 0\]"),
        (np.zeros(9, np.int16), RATE, r"got int16 \[9\]"),
        (np.zeros((1, 2, 9)), RATE, r"got float64 \[1, 2, 9\]"),
        (np.zeros(9), 0, "expected a sample rate of 1,000 to 1,000,000 Hz, got 0"),
        (np.full(9, np.inf), RATE, "got NaN or infinity"),
    ],
)
def test_bad_waveforms_are_refused(samples, rate, reason):
    with pytest.raises(InputError, match=f"this recording: .*{reason}"):
        list(windows(Waveform(samples, rate)))


def test_names_of_recordings(tmp_path):
    assert recording_name(tmp_path) == recording_name(str(tmp_path)) == str(tmp_path)
    assert recording_name(b"") == recording_name(Waveform(np.zeros(1), RATE)) == "this recording"

"""Recordings of any kind -> mono windows of sound at one sample rate.

    for window in windows("song.mp3", rate=24_000, seconds=5.0):  # float32 [120000]
        ...

Decoding is PyAV's, which brings its own decoders: nothing needs to be installed beside it. What a file is, its
content says and not its name, so that a wav called .mp3 and the sound track of a video are read too. A recording is
decoded in blocks, so that one of hours takes no more memory than one of minutes.

Conventions: channels are averaged, then the sample rate is changed, by SciPy's polyphase filter with the kernel
that torchaudio.functional.resample documents as its default, a sinc of six zero crossings to each side under a Hann
window, cut off at 0.99 of the lower Nyquist frequency; blocks do not show in the result. So MERT's features of 22.05
and 44.1 kHz recordings equal those of the published pipeline, which uses torchaudio, to 4e-6 (5e-6 of their standard
deviation); another good resampler, soxr, would move them by up to 0.17 (21 %).
"""

import io
import itertools
import logging
import math
import os
import tempfile
from collections.abc import Iterable, Iterator

import numpy as np

from clamplib.audio import Recording, Waveform, recording_name
from clamplib.files import InputError

try:
    import av
    from scipy.signal import resample_poly
except ImportError as error:
    raise ImportError('audio needs packages of its own: pip install "clamplib[audio]"') from error

logger = logging.getLogger(__name__)

# Formats of sound and video alone: FFmpeg also knows playlists, which would open other files.
FORMATS = "aac,aiff,ape,asf,au,avi,caf,flac,matroska,mov,mp3,mpeg,mpegts,ogg,tta,w64,wav,wv"
RATES = range(1_000, 1_000_001)  # Hz; others are a damaged header's
BLOCK_SECONDS = 10
SPOOL_BYTES = 1 << 25  # of a recording that is normalized, what stays in memory: six minutes at 24 kHz
CUT_OFF_SECONDS = 1.0  # a recording that ends so much before its header says is noted

ZERO_CROSSINGS = 6  # torchaudio's lowpass_filter_width
ROLLOFF = 0.99
VARIANCE_FLOOR = 1e-7  # as in the published feature extractor; digital silence stays zeros


def windows(
    recording: Recording,
    rate: int = 24_000,
    seconds: float = 5.0,
    *,
    minimum: float = 1.0,
    normalize: bool = False,
) -> Iterator[np.ndarray]:
    """Windows of a recording one after the other, without overlap: mono float32 [rate * seconds], finite.

    The last one may be shorter; under `minimum` seconds it is dropped, unless it is the only one. `normalize` gives
    the whole recording zero mean and unit variance; what of it does not fit into memory waits in a temporary file.
    InputError where there is no sound: see `samples`.
    """
    blocks = samples(recording, rate)
    length = round(rate * seconds)
    held, first = np.empty(0, np.float32), True
    for block in _normalized(blocks) if normalize else blocks:
        held = np.concatenate([held, block])
        while len(held) >= length:
            yield held[:length]
            held, first = held[length:], False
    if first or len(held) >= minimum * rate:
        yield held


def samples(recording: Recording, rate: int) -> Iterator[np.ndarray]:
    """A recording's mono sound at `rate` Hz, in blocks of some seconds: float32 [n], finite, one sample at least.

    InputError for what is no recording or has no sound track, for no samples, and for NaN or infinite ones. What is
    damaged within is skipped, and what is cut off ends early; where a second or more is missing, a warning says so.
    """
    name = recording_name(recording)
    try:
        if isinstance(recording, Waveform):
            yield from _finite(_resample(_cut(recording), int(recording.rate), rate))
            return
        # a path as a URL, so that no name is taken for another protocol's
        source = io.BytesIO(recording) if isinstance(recording, bytes) else f"file:{os.path.abspath(recording)}"
        options = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
        with av.open(source, options=options, metadata_errors="ignore") as container:
            source_rate, blocks = _decode(container)
            count = 0
            for block in _finite(_resample(blocks, source_rate, rate)):
                count += len(block)
                yield block
            _note_early_end(name, container, count / rate)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    except av.FFmpegError as error:
        raise InputError(f"{name}: expected a recording, could not read it as one ({error.strerror})") from error


def _cut(waveform: Waveform) -> Iterator[np.ndarray]:
    """The mean of a waveform's channels, in blocks."""
    sound = np.asarray(waveform.samples)
    channels_first = sound.ndim == 1 or sound.ndim == 2 and len(sound) <= sound.shape[1]
    if not channels_first or not sound.size or sound.dtype.kind != "f":
        raise InputError(f"expected samples of floats [n] or [channels, n], got {sound.dtype} {list(sound.shape)}")
    _check_rate(waveform.rate)
    sound = np.atleast_2d(sound).mean(axis=0, dtype=np.float32)
    step = BLOCK_SECONDS * int(waveform.rate)
    return (sound[start : start + step] for start in range(0, len(sound), step))


def _finite(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    for block in blocks:
        if not np.isfinite(block).all():
            raise InputError("expected finite samples, found NaN or infinity")
        yield block


def _check_rate(rate: int) -> None:
    if rate not in RATES:
        raise InputError(f"expected a sample rate of {RATES[0]:,} to {RATES[-1]:,} Hz, got {rate:,}")


def _decode(container: av.container.InputContainer) -> tuple[int, Iterator[np.ndarray]]:
    """The sample rate, and the sound in blocks [n]."""
    frames = _frames(container)
    first = next(frames, None)
    if first is None:
        raise InputError("expected a recording, found no samples in it")
    rate = first.sample_rate
    _check_rate(rate)
    return rate, _blocks(itertools.chain([first], frames), rate)


def _frames(container: av.container.InputContainer) -> Iterator[av.AudioFrame]:
    stream = container.streams.best("audio")
    if stream is None:
        raise InputError("expected a sound track, found none")
    for packet in container.demux(stream):
        try:
            yield from packet.decode()
        except av.InvalidDataError:  # damaged; the next one may be whole
            continue


def _blocks(frames: Iterable[av.AudioFrame], rate: int) -> Iterator[np.ndarray]:
    held, count = [], 0
    for frame in frames:
        if frame.sample_rate != rate:
            raise InputError(f"expected one sample rate, got {rate:,} Hz and then {frame.sample_rate:,}")
        held.append(_mono(frame))
        count += frame.samples
        if count >= BLOCK_SECONDS * rate:
            yield np.concatenate(held)
            held, count = [], 0
    if held:
        yield np.concatenate(held)


def _mono(frame: av.AudioFrame) -> np.ndarray:
    """The mean of a frame's channels, full scale being 1: float32 [n]."""
    sound = frame.to_ndarray()  # [channels, n], or [1, n * channels] with the channels side by side
    if not frame.format.is_planar:
        sound = sound.reshape(-1, frame.layout.nb_channels).T
    if sound.dtype.kind in "iu":
        half = 2.0 ** (8 * sound.itemsize - 1)
        sound = sound.astype(np.float32) / np.float32(half) - np.float32(sound.dtype.kind == "u")
    return sound.astype(np.float32).mean(axis=0)


def _resample(blocks: Iterable[np.ndarray], source_rate: int, rate: int) -> Iterator[np.ndarray]:
    """Blocks at another rate, ceil(n * rate / source_rate) samples of n in all."""
    divisor = math.gcd(source_rate, rate)
    up, down = rate // divisor, source_rate // divisor
    if up == down:
        yield from blocks
        return
    kernel = _kernel(up, down)
    # samples that a filtered one needs on either side; of `down` samples `up` are made, so all begins at a multiple
    context = math.ceil(len(kernel) / 2 / (up * down)) * down
    edge = context // down * up

    def filtered(sound: np.ndarray) -> np.ndarray:
        return resample_poly(sound, up, down, window=kernel)[edge:-edge]

    held = np.zeros(context, np.float32)
    for block in blocks:
        held = np.concatenate([held, block])
        ready = (len(held) - 2 * context) // down * down
        if ready > 0:
            yield filtered(held[: ready + 2 * context])
            held = held[ready:]
    left = len(held) - context
    yield filtered(np.pad(held, (0, context + -left % down)))[: math.ceil(left * up / down)]


def _kernel(up: int, down: int) -> np.ndarray:
    """The filter for resampling by up / down, sampled at the rate of both: float32 [odd]."""
    cutoff = ROLLOFF * min(up, down)
    half = math.floor(ZERO_CROSSINGS * up * down / cutoff)
    crossings = np.arange(-half, half + 1) / (up * down) * cutoff
    hann = np.cos(np.pi / 2 * crossings / ZERO_CROSSINGS) ** 2
    return (np.sinc(crossings) * hann * cutoff / (up * down)).astype(np.float32)


def _normalized(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Blocks of a sound, made zero mean and unit variance over all of it."""
    count, total, squares, largest = 0, 0.0, 0.0, 1
    with tempfile.SpooledTemporaryFile(SPOOL_BYTES) as spool:
        for block in blocks:
            spool.write(block.tobytes())
            count, largest = count + len(block), max(largest, len(block))
            total += block.sum(dtype=np.float64)
            squares += np.square(block, dtype=np.float64).sum()
        mean = total / count
        deviation = math.sqrt(max(squares / count - mean**2, 0.0) + VARIANCE_FLOOR)
        spool.seek(0)
        while data := spool.read(largest * np.dtype(np.float32).itemsize):
            yield ((np.frombuffer(data, np.float32) - mean) / deviation).astype(np.float32)


def _note_early_end(recording: str, container: av.container.InputContainer, seconds: float) -> None:
    stream = container.streams.best("audio")
    expected = float(stream.duration * stream.time_base) if stream.duration else seconds
    if seconds < expected - CUT_OFF_SECONDS:
        message = "%s: expected %.1f s of sound, found %.1f s: it may be cut off or damaged"
        logger.warning(message, recording, expected, seconds)

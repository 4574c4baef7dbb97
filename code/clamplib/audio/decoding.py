"""Recordings of any format -> mono windows of sound at one sample rate.

    for window in windows("song.mp3", rate=24_000, seconds=5.0):  # float32 [120000]
        ...

PyAV decodes them. It brings its own decoders, so that nothing else needs to be installed. It judges a file by its
content, not by its name, so that a wav called .mp3 and the sound track of a video are read too. A recording is decoded
in blocks, so that one of hours takes no more memory than one of minutes.

Channels are averaged first, then the sample rate is changed. This takes SciPy's polyphase filter with the kernel that
torchaudio.functional.resample documents as its default: a sinc of six zero crossings to each side under a Hann window,
cut off at 0.99 of the lower Nyquist frequency. The size of the blocks does not change the result. MERT's features of
22.05 and 44.1 kHz recordings therefore equal those of the published pipeline, which uses torchaudio, to 4e-6 (5e-6 of
their standard deviation). Another good resampler, soxr, would move them by up to 0.17 (21 %).
"""

import io
import itertools
import logging
import math
import os
import tempfile
from collections.abc import Iterable, Iterator

import numpy as np

from clamplib.audio import WINDOW_SECONDS, Recording, Waveform, recording_name
from clamplib.files import InputError, check_file

try:
    import av
    from scipy.signal import resample_poly
except ImportError as error:
    raise ImportError(
        'audio needs extra packages; in a clone, run: pip install -c constraints.txt -e ".[audio]"'
    ) from error

logger = logging.getLogger(__name__)

# Only formats of sound and video: FFmpeg also reads playlists, which would open other files.
CONTAINER_FORMATS = "aac,aiff,ape,asf,au,avi,caf,flac,matroska,mov,mp3,mpeg,mpegts,ogg,tta,w64,wav,wv"
RATES = range(1_000, 1_000_001)  # Hz; a header that states another rate is damaged
PLANES = 8  # of a frame; PyAV reads beyond the last plane of one with as many channels, and crashes
BLOCK_SECONDS = 10  # what is decoded at a time
SPOOL_BYTES = 1 << 25  # what stays in memory of a recording that is normalized: six minutes at 24 kHz
CUT_OFF_SECONDS = 1.0  # a warning says so if a recording ends this much before its header says

ZERO_CROSSINGS = 6  # torchaudio's lowpass_filter_width
ROLLOFF = 0.99
VARIANCE_FLOOR = 1e-7  # as in the published feature extractor; with it digital silence stays zero


def windows(
    recording: Recording,
    rate: int = 24_000,
    seconds: float = WINDOW_SECONDS,
    *,
    minimum: float = 1.0,
    normalize: bool = False,
) -> Iterator[np.ndarray]:
    """Cuts a recording into windows, one after the other and without overlap.

    Args:
        recording: a path, the bytes of a file, or a Waveform.
        rate: the sample rate of the windows in Hz.
        seconds: the length of a window. The last one may be shorter.
        minimum: the length in seconds under which the last window is dropped, unless it is the only one.
        normalize: gives the whole recording zero mean and unit variance. A temporary file holds what does not fit into
            the memory meant for it.

    Yields:
        Mono sound, float32 [rate * seconds], without NaN and infinity.

    Raises:
        InputError: the recording has no sound or cannot be read; see `samples`.
    """
    blocks = samples(recording, rate)
    length = round(rate * seconds)
    held = np.empty(0, np.float32)
    is_first = True
    for block in _normalized(blocks) if normalize else blocks:
        held = np.concatenate([held, block])
        while len(held) >= length:
            yield held[:length]
            held = held[length:]
            is_first = False
    if is_first or len(held) >= minimum * rate:
        yield held


def samples(recording: Recording, rate: int) -> Iterator[np.ndarray]:
    """Reads a recording in blocks of some seconds.

    Damaged parts are skipped, and a recording that is cut off ends early. If a second or more is missing, a warning
    says so.

    Args:
        recording: a path, the bytes of a file, or a Waveform.
        rate: the sample rate of the result in Hz.

    Yields:
        Mono sound, float32 [n], without NaN and infinity. A recording has one sample or more.

    Raises:
        InputError: the recording cannot be decoded, has no sound track or no samples, or has samples that are NaN or
            infinite.
    """
    name = recording_name(recording)
    if isinstance(recording, os.PathLike) and os.path.exists(recording):
        check_file(recording)
    try:
        if isinstance(recording, Waveform):
            yield from _finite(_resample(_waveform_blocks(recording), int(recording.rate), rate))
            return
        # The path is given as a URL, because FFmpeg would take "http:a.wav" for another protocol.
        source = io.BytesIO(recording) if isinstance(recording, bytes) else f"file:{os.path.abspath(recording)}"
        options = {"format_whitelist": CONTAINER_FORMATS, "protocol_whitelist": "file"}
        with av.open(source, options=options, metadata_errors="ignore") as container:
            source_rate, blocks = _decoded_blocks(container)
            count = 0
            for block in _finite(_resample(blocks, source_rate, rate)):
                count += len(block)
                yield block
            _warn_if_cut_off(name, container, count / rate)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    except av.FFmpegError as error:
        raise InputError(f"{name}: expected a recording, got data that cannot be decoded ({error.strerror})") from error


def _waveform_blocks(waveform: Waveform) -> Iterator[np.ndarray]:
    """The mean of a waveform's channels, in blocks [n]."""
    sound = np.asarray(waveform.samples)
    channels_first = sound.ndim == 1 or sound.ndim == 2 and len(sound) <= sound.shape[1]
    if not channels_first or not sound.size or sound.dtype.kind != "f":
        raise InputError(f"expected samples of floats [n] or [channels, n], got {sound.dtype} {list(sound.shape)}")
    _check_rate(waveform.rate)
    sound = np.atleast_2d(sound).mean(axis=0, dtype=np.float32)
    step = round(BLOCK_SECONDS * waveform.rate)
    return (sound[start : start + step] for start in range(0, len(sound), step))


def _finite(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    for block in blocks:
        if not np.isfinite(block).all():
            raise InputError("expected finite samples, got NaN or infinity")
        yield block


def _check_rate(rate: int) -> None:
    if rate not in RATES:
        raise InputError(f"expected a sample rate of {RATES[0]:,} to {RATES[-1]:,} Hz, got {rate:,}")


def _decoded_blocks(container: av.container.InputContainer) -> tuple[int, Iterator[np.ndarray]]:
    """The sample rate, and the mean of the channels in blocks [n]."""
    frames = _frames(container)
    first = next(frames, None)
    if first is None:
        raise InputError("expected a recording, got one without samples")
    rate = first.sample_rate
    _check_rate(rate)
    return rate, _blocks(itertools.chain([first], frames), rate)


def _frames(container: av.container.InputContainer) -> Iterator[av.AudioFrame]:
    stream = container.streams.best("audio")
    if stream is None:
        raise InputError("expected a sound track, got none")
    for packet in container.demux(stream):
        try:
            yield from packet.decode()
        except av.InvalidDataError:  # damaged; the next packet may be whole
            continue


def _blocks(frames: Iterable[av.AudioFrame], rate: int) -> Iterator[np.ndarray]:
    held = []
    count = 0
    for frame in frames:
        if frame.sample_rate != rate:
            raise InputError(f"expected one sample rate, got {rate:,} Hz and then {frame.sample_rate:,}")
        held.append(_mono(frame))
        count += frame.samples
        if count >= BLOCK_SECONDS * rate:
            yield np.concatenate(held)
            held = []
            count = 0
    if held:
        yield np.concatenate(held)


def _mono(frame: av.AudioFrame) -> np.ndarray:
    """The mean of a frame's channels, float32 [n]; full scale is 1."""
    if frame.format.is_planar and frame.layout.nb_channels >= PLANES:
        [frame] = av.AudioResampler(format="flt").resample(frame)
    sound = frame.to_ndarray()  # [channels, n], or [1, n * channels] with the channels interleaved
    if not frame.format.is_planar:
        sound = sound.reshape(-1, frame.layout.nb_channels).T
    if sound.dtype.kind in "iu":
        half = 2.0 ** (8 * sound.itemsize - 1)
        sound = sound.astype(np.float32) / np.float32(half) - np.float32(sound.dtype.kind == "u")
    return sound.astype(np.float32).mean(axis=0)


def _resample(blocks: Iterable[np.ndarray], source_rate: int, rate: int) -> Iterator[np.ndarray]:
    """Changes the sample rate of blocks [n]. N samples in all become ceil(N * rate / source_rate)."""
    divisor = math.gcd(source_rate, rate)
    up, down = rate // divisor, source_rate // divisor
    if up == down:
        yield from blocks
        return
    kernel = _kernel(up, down)
    # A filtered sample needs so many on either side. They are a multiple of `down`, because `down` samples become `up`.
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
    """The filter for resampling by up / down, float32 [odd], at `up` times the source rate."""
    cutoff = ROLLOFF * min(up, down)
    half = math.floor(ZERO_CROSSINGS * up * down / cutoff)
    crossings = np.arange(-half, half + 1) / (up * down) * cutoff
    hann = np.cos(np.pi / 2 * crossings / ZERO_CROSSINGS) ** 2
    return (np.sinc(crossings) * hann * cutoff / (up * down)).astype(np.float32)


def _normalized(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Gives blocks [n] zero mean and unit variance over all of them."""
    count = 0
    total = squares = 0.0
    largest = 1
    with tempfile.SpooledTemporaryFile(SPOOL_BYTES) as spool:
        for block in blocks:
            spool.write(block.tobytes())
            count += len(block)
            largest = max(largest, len(block))
            total += block.sum(dtype=np.float64)
            squares += np.square(block, dtype=np.float64).sum()
        mean = total / count
        deviation = math.sqrt(max(squares / count - mean**2, 0.0) + VARIANCE_FLOOR)
        spool.seek(0)
        while data := spool.read(largest * np.dtype(np.float32).itemsize):
            yield ((np.frombuffer(data, np.float32) - mean) / deviation).astype(np.float32)


def _warn_if_cut_off(recording: str, container: av.container.InputContainer, seconds: float) -> None:
    stream = container.streams.best("audio")
    expected = float(stream.duration * stream.time_base) if stream.duration else seconds
    if seconds < expected - CUT_OFF_SECONDS:
        message = "%s: expected %.1f s of sound, got %.1f s; the file may be cut off or damaged"
        logger.warning(message, recording, expected, seconds)

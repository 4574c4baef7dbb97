"""Makes the audio that `mini` learns to hear and is judged by, in the folder that mini/build.py made.

    python mini/build_audio.py out/mini

Every piece is played once (see render): training pieces by one sound font, held-out clips by another with other
instruments. What is kept of a clip is its spectral features, audio/<same path>.npy, which train.jsonl and eval.jsonl
name beside the scores. A copy in another key has the features of its tune, moved by as many semitones; and all have
variants, as other instruments and other rooms might give them.
"""

import argparse
import random
import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from build import audio_name, held_out_clips, read_jsonl
from clamplib.files import Report, run_batch
from clamplib.mtf import mtf_to_midi
from clamplib.spectral import (
    MINIMUM,
    OCTAVES,
    PITCH_CLASSES,
    RATE,
    SECONDS,
    SIZE,
    spectral_features,
    transpose,
)
from render import MERLIN, TIMGM6MB, render

COPIES = "audio/transposed/"
TONE, NOISE = 0.35, 0.08  # standard deviations; a level of 1 is 20 dB


def main(argv: list[str] | None = None) -> int:
    """Render what is not there yet; pieces that cannot be played are counted and left out, as by build.py."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, help="the folder that mini/build.py made, for example out/mini")
    parser.add_argument("--held_out", action="store_true", help="only the clips to judge by")
    parser.add_argument("--workers", type=int, help="processes (default: all cores)")
    args = parser.parse_args(argv)
    clips = [audio_name(record["files"][""]) for record in held_out_clips(args.data)]
    reports = [play(clips, args.data, MERLIN, args.workers)]
    if not args.held_out:
        lines = [line for name in ("train", "eval") for line in read_jsonl(args.data / f"{name}.jsonl")]
        names = [audio_name(line["filepaths"]) for line in lines]
        reports.append(play([name for name in names if not name.startswith(COPIES)], args.data, TIMGM6MB, args.workers))
        for line in lines:
            vary(line["filepaths"], args.data)
    for report in reports:
        print(report.summary())
    return 0


def play(names: Sequence[str], data: Path, font: tuple[str, str], workers: int | None) -> Report:
    """Writes the audio features of these names."""
    targets = [data / name for name in names]
    sources = [data / name.replace("audio/", "mtf/", 1).replace(".npy", ".mtf") for name in names]
    return run_batch(
        partial(_hear, font=font), sources, targets, output_root=data / "audio", workers=workers, description=font[0]
    )


def vary(files: list[str], data: Path) -> None:
    """Writes the audio of a line that is not played itself, if its tune was: see the head of this module."""
    name, *variants = [file for file in files if file.startswith("audio/")]
    tune = name.replace(COPIES, "audio/train/", 1).partition("@")[0].removesuffix(".npy") + ".npy"
    if not (data / tune).exists():
        return
    features = np.load(data / tune)
    if name != tune:
        features = transpose(features, _first_note(data, name) - _first_note(data, tune))
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(data / name, features)
    for variant in variants:
        np.save(data / variant, varied(features, np.random.default_rng(list(variant.encode()))))


def varied(features: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Features [1, T, 256] of a part of a clip, in another tone (levels bent smoothly over the octaves), with noise."""
    kept = rng.integers((features.shape[1] + 1) // 2, features.shape[1] + 1)
    start = rng.integers(features.shape[1] - kept + 1)
    bins = OCTAVES * PITCH_CLASSES
    tone = np.interp(np.arange(bins) / PITCH_CLASSES, np.arange(OCTAVES + 1), rng.normal(0, TONE, OCTAVES + 1))
    tone = np.concatenate((tone, np.zeros(SIZE - bins)))
    part = features[:, start : start + kept]
    return (part + tone + rng.normal(0, NOISE, part.shape)).astype(np.float32)


def _first_note(data: Path, name: str) -> int:
    """MIDI pitch of the first note of the piece with this audio."""
    text = (data / name.replace("audio/", "mtf/", 1)).with_suffix(".mtf").read_text("utf-8")
    return int(re.search(r"(?m)^note_on \d+ \d+ (\d+)", text)[1])


def _hear(source: Path, target: Path, font: tuple[str, str]) -> None:
    sound = render(mtf_to_midi(source.read_text("utf-8")), font, random.Random(f"{source.parent.name}/{source.name}"))
    length = round(RATE * SECONDS)
    windows = [sound[start : start + length] for start in range(0, len(sound), length)]
    kept = [window for window in windows if len(window) >= RATE * MINIMUM] or windows[:1]
    with target.open("wb") as out:
        np.save(out, np.stack([spectral_features(window) for window in kept])[None])  # [1, T, 256]


if __name__ == "__main__":
    sys.exit(main())

"""Makes the audio that `mini` learns to hear and is judged by, in the folder that mini/build.py made.

    python mini/build_audio.py out/mini

Every piece is played once (see render): training pieces by one sound font, held-out clips by another with other
instruments. What is kept of a clip is its spectral features, audio/<same path>.npy, which train.jsonl and eval.jsonl
name beside the scores.
"""

import argparse
import random
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from build import audio_name, held_out_clips, read_jsonl
from clamplib.files import Report, run_batch
from clamplib.mtf import mtf_to_midi
from clamplib.spectral import MINIMUM, RATE, SECONDS, spectral_features
from render import MERLIN, TIMGM6MB, render


def main(argv: list[str] | None = None) -> int:
    """Render what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, help="the folder that mini/build.py made, for example out/mini")
    parser.add_argument("--held_out", action="store_true", help="only the clips to judge by")
    parser.add_argument("--workers", type=int, help="processes (default: all cores)")
    args = parser.parse_args(argv)
    clips = [audio_name(record["files"][""]) for record in held_out_clips(args.data)]
    reports = [play(clips, args.data, MERLIN, args.workers)]
    if not args.held_out:
        lines = [line for name in ("train", "eval") for line in read_jsonl(args.data / f"{name}.jsonl")]
        heard = [name for line in lines for name in line["filepaths"] if name.startswith("audio/")]
        reports.append(play(heard, args.data, TIMGM6MB, args.workers))
    for report in reports:
        print(report.summary())
    return max(report.exit_status for report in reports)


def play(names: Sequence[str], data: Path, font: tuple[str, str], workers: int | None) -> Report:
    """Writes the audio features of these names."""
    targets = [data / name for name in names]
    sources = [data / name.replace("audio/", "mtf/", 1).replace(".npy", ".mtf") for name in names]
    return run_batch(
        partial(_hear, font=font), sources, targets, output_root=data / "audio", workers=workers, description=font[0]
    )


def _hear(source: Path, target: Path, font: tuple[str, str]) -> None:
    sound = render(mtf_to_midi(source.read_text("utf-8")), font, random.Random(f"{source.parent.name}/{source.name}"))
    length = round(RATE * SECONDS)
    windows = [sound[start : start + length] for start in range(0, len(sound), length)]
    kept = [window for window in windows if len(window) >= RATE * MINIMUM] or windows[:1]
    with target.open("wb") as out:
        np.save(out, np.stack([spectral_features(window) for window in kept])[None])  # [1, T, 256]


if __name__ == "__main__":
    sys.exit(main())

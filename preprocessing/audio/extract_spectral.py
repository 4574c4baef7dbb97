"""Extracts spectral features of recordings, which the small model `mini` takes in place of MERT's.

Each recording gives one .npy, [1, windows of five seconds, 448].

example: python preprocessing/audio/extract_spectral.py recordings features/spectral
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from clamplib.audio import RECORDING_SUFFIXES
from clamplib.audio.spectral import SPACE, recording_features
from clamplib.command import batch_parser, beside, guarded, limits_of, report_batch
from clamplib.embedding.folders import input_files, write_features
from clamplib.jobs import Outcome, run_jobs

input_dir = "<path_to_your_recordings>"  # what is read when no folder is given


@guarded
def main(argv: list[str] | None = None) -> int:
    args = batch_parser(__doc__, input_dir, "_spectral").parse_args(argv)
    output_dir = args.output_dir or beside(Path(args.input_dir), "_spectral")
    sources = input_files(args.input_dir, output_dir, RECORDING_SUFFIXES)

    def outcomes(recordings: Sequence[Path]) -> Iterator[Outcome]:
        limits = limits_of(args)
        return run_jobs(recording_features, recordings, workers=args.workers, backend=args.backend, limits=limits)

    return report_batch(write_features(outcomes, sources, args.input_dir, output_dir, SPACE))


if __name__ == "__main__":
    sys.exit(main())

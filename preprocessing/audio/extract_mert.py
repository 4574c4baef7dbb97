"""MERT features of recordings, which CLaMP 3 takes as its audio input.

Takes wav, mp3, flac, ogg, m4a, aac and more, of any sample rate. Each file gives one .npy: with --mean_features
[1, windows of five seconds, 768], which is what extract_clamp3.py expects, else the averages of all 13 hidden states,
[13, windows, 768]. The weights of MERT are under CC-BY-NC-4.0: not for commercial use.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING

import numpy as np

from clamplib.audio import RECORDING_SUFFIXES, Recording
from clamplib.command import guarded, positive, report_batch
from clamplib.embedding.folders import input_files, write_features
from clamplib.files import InputError
from clamplib.jobs import Outcome
from clamplib.models import distributed
from clamplib.models.hub import MERT_REPO

if TYPE_CHECKING:  # this file also works where its folder is not on the path
    import torch
    from hf_pretrains import HuBERTFeature

EXAMPLES = """examples:
  accelerate launch extract_mert.py recordings features/mert --mean_features
  python extract_mert.py --input_path recordings --output_path features/mert --mean_features"""
PATHS = {
    "input_path": "a recording, or a folder of them with its sub-folders; also as --input_path",
    "output_path": "folder for the .npy files; what is up to date there is skipped; also as --output_path",
}


def build_parser(argv: list[str]) -> argparse.ArgumentParser:
    """Returns the parser for this command line, in which each path stands in its place or after its flag."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags = [word.partition("=")[0] for word in argv]
    for path, text in PATHS.items():  # not optional in both forms: that loses a path which follows an option
        if f"--{path}" in flags:
            parser.add_argument(f"--{path}", required=True, help=text)
        else:
            parser.add_argument(path, help=text)
    parser.add_argument("--model_path", default=MERT_REPO, help="a folder, or a name on the hub; default: %(default)s")
    parser.add_argument("--mean_features", action="store_true", help="the mean of the hidden states")
    parser.add_argument("--batch_size", type=positive, help="windows of five seconds in a batch; default: by device")
    parser.add_argument("--num_workers", type=int, help="processes that decode ahead; default: by files and cores")
    for path in PATHS:
        if flags.count(f"--{path}") > 1:
            parser.error(f"argument --{path}: expected once, got {flags.count(f'--{path}')} times")
    return parser


@guarded
def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args = build_parser(argv).parse_args(argv)
    from clamplib.audio.mert import Mert, find_mert  # imports torch, which --help does not need
    from clamplib.audio.recordings import encode_recordings

    try:
        sources = input_files(args.input_path, args.output_path, RECORDING_SUFFIXES)
        distributed.start()
        found = find_mert(args.model_path)
        space = {**found.space, "kind": "mert mean" if args.mean_features else "mert"}

        @cache
        def load() -> Mert:
            mert = found.load()
            mert.model.to(distributed.own_device())
            return mert

        def outcomes(recordings: Sequence[Recording]) -> Iterator[Outcome]:
            if not recordings:
                return
            mert = load()
            encode = partial(mert.encode, mean=args.mean_features)
            batch_size = args.batch_size or mert.batch_size
            options = {"batch_size": batch_size, "workers": args.num_workers}
            yield from encode_recordings(recordings, mert.read, encode, **options)

        report = write_features(outcomes, sources, args.input_path, args.output_path, space, load=load)
        return report_batch(report) if distributed.rank() == 0 else report.exit_status
    finally:
        distributed.stop()


def mert_infr_features(
    feature_extractor: "HuBERTFeature", audio_file: Recording, device: "torch.device | str | None" = None
) -> np.ndarray:
    """Computes the features that this script writes for one recording without --mean_features.

    Args:
        feature_extractor: the model, from hf_pretrains.
        audio_file: a path, or anything else that a recording may be.
        device: where the model moves to; by default it stays where it is.

    Returns:
        The time averages of the hidden states, float32 [layers + 1, windows, H].

    Raises:
        InputError: the recording cannot be read, or it is too short.
    """
    from clamplib.audio.recordings import encode_recordings

    feature_extractor.to(device)
    mert = feature_extractor.mert
    read = partial(mert.read, normalize=feature_extractor.processor_normalize)
    [(_, features, error)] = encode_recordings([audio_file], read, mert.encode, batch_size=mert.batch_size, workers=0)
    if error:
        raise InputError(error)
    return features


if __name__ == "__main__":
    sys.exit(main())

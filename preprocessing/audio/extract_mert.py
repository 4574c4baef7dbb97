"""MERT features of recordings, which CLaMP 3 takes as its audio input.

Takes wav, mp3, flac, ogg, m4a, aac and more, of any sample rate. Each file gives one .npy: with --mean_features
[1, windows of five seconds, 768], which is what extract_clamp3.py expects, else the averages of all 13 hidden states,
[13, windows, 768]. The weights of MERT are under CC-BY-NC-4.0: not for commercial use.
"""

import argparse
import sys
from functools import partial

from clamplib import distributed
from clamplib.batch import positive
from clamplib.extraction import input_files
from clamplib.mert import MERT_REPO, load_mert
from clamplib.recordings import extract_recordings
from clamplib.sound import SUFFIXES

EXAMPLE = "example: accelerate launch extract_mert.py recordings features/mert --mean_features"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("input_path", help="folder of recordings; its sub-folders are kept")
    parser.add_argument("output_path", help="folder for the .npy files; what is up to date there is skipped")
    parser.add_argument("--model_path", default=MERT_REPO, help="a folder, or a name on the hub; default: %(default)s")
    parser.add_argument("--mean_features", action="store_true", help="the mean of the hidden states")
    parser.add_argument("--batch_size", type=positive, help="windows of five seconds in a batch; default: by device")
    parser.add_argument("--num_workers", type=int, help="processes that decode ahead; default: by files and cores")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        sources = input_files(args.input_path, args.output_path, SUFFIXES)
        device = distributed.start()
        mert = load_mert(args.model_path)
        mert.model.to(device)
        report = extract_recordings(
            sources,
            args.input_path,
            args.output_path,
            mert.read,
            partial(mert.encode, mean=args.mean_features),
            {**mert.space, "kind": "mert mean" if args.mean_features else "mert"},
            batch_size=args.batch_size or mert.batch_size,
            workers=args.num_workers,
        )
        if distributed.rank() == 0:
            print(report.summary())
        return report.exit_status
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        distributed.stop()


if __name__ == "__main__":
    sys.exit(main())

"""Times the library against a naive way to do the same, in one run.

    python -m bench [startup formats audio models library retrieval training precision]
    python -m bench gpu

`make bench` runs all subjects but `gpu`, which has a table of its own (see bench/gpu.py). Compare the ratios: the times
depend on the machine and on what else it does. Nothing is asserted.
"""

import argparse
import importlib
import sys

SUBJECTS = ("startup", "formats", "audio", "models", "library", "retrieval", "training", "precision")


def main(argv: list[str] | None = None) -> int:
    """Print a table, each row as soon as it is measured."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.partition("\n")[0])
    parser.add_argument("subjects", nargs="*", default=SUBJECTS, help=f"of {', '.join(SUBJECTS)} (default: all)")
    subjects = parser.parse_args(argv).subjects
    if subjects == ["gpu"]:
        return _gpu()
    if unknown := set(subjects) - set(SUBJECTS):
        parser.error(f"expected subjects among {', '.join(SUBJECTS)}, got {', '.join(sorted(unknown))}")
    print(f"| {'task':44} | naive | here | ratio | |\n| {'-' * 44} | --- | --- | --- | --- |")
    for subject in subjects:
        for row in importlib.import_module(f"bench.{subject}").rows():
            times = f"{row.naive:.2f} s | {row.ours:.2f} s | {row.naive / row.ours:.1f} x"
            print(f"| {row.name:44} | {times} | {row.note} |", flush=True)
    return 0


def _gpu() -> int:
    import torch

    from bench.gpu import table

    if not torch.cuda.is_available():
        print("error: expected a GPU that torch can use by CUDA, found none", file=sys.stderr)
        return 1
    for line in table(torch.device("cuda")):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

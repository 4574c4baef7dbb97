"""Times the library against the naive way of doing the same, in one run: `make bench`, or `python -m bench [NAME …]`.

The ratios are what counts: machines differ, and are busy. Nothing is asserted.
"""

import argparse
import importlib
import sys

SUBJECTS = ("formats", "audio", "models", "library", "retrieval", "training")


def main(argv: list[str] | None = None) -> int:
    """Prints a table, a row as soon as its subject is measured."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.partition("\n")[0])
    parser.add_argument("subjects", nargs="*", default=SUBJECTS, help=f"of {', '.join(SUBJECTS)}; default: all")
    subjects = parser.parse_args(argv).subjects
    if unknown := set(subjects) - set(SUBJECTS):
        parser.error(f"expected subjects among {', '.join(SUBJECTS)}, came {', '.join(sorted(unknown))}")
    print(f"| {'task':44} | naive | here | ratio | |\n| {'-' * 44} | --- | --- | --- | --- |")
    for subject in subjects:
        for row in importlib.import_module(f"bench.{subject}").rows():
            ratio = row["naive_s"] / row["ours_s"]
            times = f"{row['naive_s']:.2f} s | {row['ours_s']:.2f} s | {ratio:.1f} x"
            print(f"| {row['name']:44} | {times} | {row['note']} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Prepares a training without one of the collections, which is then judged by it (see elsewhere).

    python -m recipes.mini.leave_out out/mini ryansMammoth

Writes train.jsonl and settings.py for code/train_clamp3_symbolic.py into without/<collection>/ of the data. The
training has 8 epochs. `make leave-out COLLECTION=ryansMammoth` runs all of it.
"""

import argparse
import sys
from pathlib import Path

from recipes.mini.build import read_jsonl, write_jsonl

SETTINGS = '''"""Stage 1 of mini without {collection}, in fewer epochs."""

CLAMP3_TRAIN_JSONL = "train.jsonl"
CLAMP3_WEIGHTS_PATH = "weights_clamp3.pth"
CLAMP3_LOGS_PATH = "logs_clamp3.txt"
CLAMP3_NUM_EPOCH = 8
'''


def main(argv: list[str] | None = None) -> int:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, help="the folder that recipes.mini.build made, for example out/mini")
    parser.add_argument("collection", help="its folder in the corpus, for example ryansMammoth or openewld")
    args = parser.parse_args(argv)
    lines = read_jsonl(args.data / "train.jsonl")
    kept = [line for line in lines if not line["id"].startswith(args.collection + "/")]
    if len(kept) == len(lines):
        print(f"error: {args.data} has no pieces of {args.collection}")
        return 1
    folder = args.data / "without" / args.collection
    folder.mkdir(parents=True, exist_ok=True)
    for line in kept:  # relative to the folder of the JSONL
        line["filepaths"] = [f"../../{name}" for name in line["filepaths"]]
    write_jsonl(folder / "train.jsonl", kept)
    (folder / "settings.py").write_text(SETTINGS.format(collection=args.collection), encoding="utf-8")
    print(f"{folder}: {len(kept)} of {len(lines)} lines")
    return 0


if __name__ == "__main__":
    sys.exit(main())

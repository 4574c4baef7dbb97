"""What stands between a command and its answer: `--help`, a warm search, and a finished folder, in CPU seconds.

The naive way is the floor: the import of torch alone. A command whose answer needs no torch takes less.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.common import Row

ROOT = Path(__file__).parents[1]
EXTRACT = [ROOT / "code/extract_clamp3.py"]
CLAMP3 = ["-m", "clamplib"]
MINI = ["--variant", "mini"]
FILES = 1000
REPEATS = 3  # of which the fastest counts


def rows() -> Iterator[Row]:
    """Yields five comparisons, for `mini` and a folder of texts."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = folder / "texts"
        texts.mkdir()
        for number in range(FILES):
            (texts / f"{number}.txt").write_text(f"a {'slow' if number % 2 else 'lively'} tune, number {number}")
        environment = {**os.environ, "CLAMP3_CACHE": str(folder / "cache")}
        commands = {
            "extract_clamp3.py --help": [*EXTRACT, "--help"],
            f"extract_clamp3.py, {FILES:,} finished files": [*EXTRACT, texts, folder / "features", *MINI],
            f"clamp3 search, an index of {FILES:,}": [*CLAMP3, "search", "a slow air", folder / "index", *MINI],
            f"clamp3 search, a cached folder of {FILES:,}": [*CLAMP3, "search", "a slow air", texts, *MINI],
            f"clamp3 embed, {FILES:,} finished files": [*CLAMP3, "embed", texts, folder / "vectors", *MINI],
        }
        _cpu_seconds([*CLAMP3, "index", texts, folder / "index", *MINI], environment)
        for words in commands.values():  # fills the folders and the cache
            _cpu_seconds(words, environment)
        floor = min(_cpu_seconds(["-c", "import torch"], environment) for _ in range(REPEATS))
        for task, words in commands.items():
            ours = min(_cpu_seconds(words, environment) for _ in range(REPEATS))
            yield Row(task, floor, ours, "naive: importing torch alone; CPU seconds")


def _cpu_seconds(words: list, environment: dict[str, str]) -> float:
    """Returns how much CPU time a command of Python takes, with the processes that it starts."""
    before = os.times()
    command = [sys.executable, *map(str, words)]
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system

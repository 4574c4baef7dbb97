"""What the benchmarks share: a row of the table, the clock, and music21's corpus."""

import re
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch

PRODUCT = (2048, 768, 3072)  # the sizes of a large product, which gives the machine's rate
CORPUS = Path(find_spec("music21").origin).with_name("corpus")  # importing music21 takes seconds
ESSEN = "essenFolksong"  # thousands of short tunes in a few files


class Row(NamedTuple):
    """A comparison of two ways to do the same."""

    name: str
    naive: float  # seconds
    ours: float  # seconds
    note: str


def seconds(task: Callable[[], Any]) -> float:
    """Returns how long a call takes."""
    start = time.perf_counter()
    task()
    return time.perf_counter() - start


def cpu_seconds(task: Callable[[], Any]) -> float:
    """Returns how much CPU time a call takes in this process, which other work on the machine hardly changes."""
    start = time.process_time()
    task()
    return time.process_time() - start


def product_rate(device: str = "cpu", dtype: torch.dtype = torch.float32) -> float:
    """Returns how many operations per second a large matrix product does, two per multiplication."""
    rows, inner, columns = PRODUCT
    left, right = (torch.randn(shape, device=device, dtype=dtype) for shape in ((rows, inner), (inner, columns)))

    def multiply() -> None:
        left @ right
        if device == "cuda":
            torch.cuda.synchronize()

    return 2 * rows * inner * columns / min(seconds(multiply) for _ in range(10))


def resident_bytes(name: str) -> float:
    """Returns VmRSS or VmHWM of this process, or NaN without Linux. (getrusage may give the peak of its parent.)"""
    try:
        status = Path("/proc/self/status").read_text("utf-8")
    except OSError:
        return float("nan")
    return int(re.search(rf"^{name}:\s+(\d+) kB", status, re.MULTILINE)[1]) * 1024


def tune_books() -> list[Path]:
    """Returns the files of tunes in ABC, without Essen."""
    return [path for path in sorted(CORPUS.glob("*/*.abc")) if path.parent.name != ESSEN]

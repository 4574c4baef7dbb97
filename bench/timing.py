"""How long things take."""

import time
from collections.abc import Callable
from typing import Any


def seconds(task: Callable[[], Any]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    task()
    return time.perf_counter() - start

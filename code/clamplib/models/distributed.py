"""One process or several: the few things that a process asks of the others. A process that is alone answers itself.

A process that is alone imports torch here only when it asks for its device.
"""

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def start() -> None:
    """Joins the processes that torchrun started, if it did."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        import torch.distributed as dist

        device = own_device()
        # With gloo beside NCCL, numbers on the CPU are exchanged without a wait for the GPU.
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, device_id=device if device.type == "cuda" else None)


def own_device() -> "torch.device":
    """Returns the device of this process: CUDA, or else the GPU of Apple, or else the CPU.

    Of several processes on a machine, each takes the CUDA device of its number.

    Raises:
        ValueError: the machine has fewer CUDA devices than processes.
    """
    import torch

    if torch.cuda.is_available():
        local_rank, count = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
        if local_rank >= count:
            raise ValueError(f"expected a GPU for each process, got process {local_rank + 1} of a machine with {count}")
        torch.cuda.set_device(local_rank)
        return torch.device("cuda", local_rank)
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def stop() -> None:
    """Leaves the other processes."""
    if _is_started():
        import torch.distributed as dist

        dist.destroy_process_group()


def _is_started() -> bool:
    dist = sys.modules.get("torch.distributed")
    return dist is not None and dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Returns the number of this process, from 0."""
    return sys.modules["torch.distributed"].get_rank() if _is_started() else 0


def world_size() -> int:
    """Returns the number of processes."""
    return sys.modules["torch.distributed"].get_world_size() if _is_started() else 1


def wait() -> None:
    """Waits until all processes have called this."""
    total(0)


def total(value: float) -> float:
    """Returns the sum of the values of all processes."""
    if world_size() == 1:
        return value
    import torch
    import torch.distributed as dist

    values = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(values)
    return values.item()


def largest(value: int) -> int:
    """Returns the largest of the values of all processes."""
    if world_size() == 1:
        return value
    import torch
    import torch.distributed as dist

    values = torch.tensor(value)
    dist.all_reduce(values, dist.ReduceOp.MAX)
    return values.item()


def gather(value: object) -> list:
    """Returns the values of all processes, in the order of their ranks."""
    if world_size() == 1:
        return [value]
    import torch.distributed as dist

    values = [None] * world_size()
    dist.all_gather_object(values, value)
    return values

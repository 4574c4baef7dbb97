"""One process or several: the few things that a process asks of the others. A process that is alone answers itself."""

import os

import torch
import torch.distributed as dist


def start() -> torch.device:
    """Joins the processes that torchrun started, if it did.

    Returns:
        The device of this process.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    device = best_device(local_rank)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        # With gloo beside NCCL, numbers on the CPU are exchanged without a wait for the GPU.
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, device_id=device if device.type == "cuda" else None)
    return device


def best_device(local_rank: int = 0) -> torch.device:
    """Returns CUDA, or else the GPU of Apple, or else the CPU.

    Args:
        local_rank: of this process among those of its machine; each takes the CUDA device of its number.
    """
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
        return torch.device("cuda", local_rank)
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def stop() -> None:
    """Leaves the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """Returns the number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Returns the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def wait() -> None:
    """Waits until all processes have called this."""
    total(0)


def total(value: float) -> float:
    """Returns the sum of the values of all processes."""
    if world_size() == 1:
        return value
    values = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(values)
    return values.item()


def largest(value: int) -> int:
    """Returns the largest of the values of all processes."""
    if world_size() == 1:
        return value
    values = torch.tensor(value)
    dist.all_reduce(values, dist.ReduceOp.MAX)
    return values.item()


def gather(value: object) -> list:
    """Returns the values of all processes, in the order of their ranks."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value)
    return values

"""A Worker's GPU: begun after the fork, before the Worker is confined; held to its share; what its failures mean.

The share is torch's to keep: its allocator refuses what is over it. It is no wall against hostile code in the Worker.
"""

from __future__ import annotations

import torch

from grid_jupyter.wire.worker import WorkerLimits
from grid_jupyter.worker.devices import CONTEXT_BYTES, WHOLE, fraction


def begin(limits: WorkerLimits) -> None:
    """Start CUDA on the device of these limits, and hold this process to its share of it."""
    if limits.device == "cpu":
        return
    device = torch.device(limits.device)
    torch.cuda.set_device(device)
    torch.zeros(1, device=device).add_(1).item()  # makes the context; all of that opens files, which later it may not
    total = torch.cuda.get_device_properties(device).total_memory
    share = total * (limits.device_parts or WHOLE) // WHOLE - CONTEXT_BYTES
    torch.cuda.set_per_process_memory_fraction(max(share, 1) / total, device)


def seed(device: torch.device, number: int) -> None:
    """Seed the generator that random operations on this device take from."""
    torch.default_generator.manual_seed(number)  # torch.manual_seed asks for every other device too: 0.3 ms
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(number)


def is_full(error: BaseException) -> bool:
    """Whether this is the device's memory, or the process's, that is used up."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate" in str(error)


def is_lost(error: BaseException) -> bool:
    """Whether the device failed in a way after which this process cannot use it: an assertion in a kernel, say."""
    return (
        isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError) and "CUDA error" in str(error)
    )


def let_go(device: torch.device) -> None:
    """Give back what the allocator keeps for later: what did not fit may do so then."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def memory_of(limits: WorkerLimits) -> str:
    """The memory that a Worker computes in, in words, and how to get more."""
    if limits.device == "cpu":
        return f"memory of {limits.memory_bytes >> 20} MB"
    return f"share of {limits.device}, {fraction(limits.device_parts or WHOLE)} of its memory"

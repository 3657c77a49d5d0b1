"""Looks which GPUs torch finds here, in a process of its own: a fork server that had asked could fork no Workers.

Run as `python -m grid_jupyter.worker.probing`; prints JSON: the devices, and why there are none.
"""

from __future__ import annotations

import sys

import msgspec
import torch

from grid_jupyter.worker.devices import Device, Found


def look() -> Found:
    """The CUDA devices of this machine."""
    if not torch.backends.cuda.is_built():
        return Found(devices=(), why_none=f"torch {torch.__version__} is built without CUDA")
    if not torch.cuda.is_available():
        return Found(devices=(), why_none="the machine has none, or NVIDIA's driver does not run")
    devices = []
    for number in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(number)
        devices.append(Device(name=f"cuda:{number}", label=found.name, memory_bytes=found.total_memory))
    return Found(devices=tuple(devices))


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(look()))

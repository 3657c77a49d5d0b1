"""Which engine runs plans here: the one that was asked for, else torch, else ONNX Runtime, by what is installed."""

from __future__ import annotations

import importlib.util
from typing import Any

from grid_jupyter.errors import DependencyError
from grid_jupyter.plans.engine import Engine

ENGINES = {"torch": "torch", "onnx": "onnxruntime"}
"""Engines by name, in order of preference, and the package that each needs."""


def engine(name: str | None = None, device: str = "cpu") -> Engine[Any]:
    """The engine with this name, or the first that can run here, on a device ("cpu" or "cuda").

    Torch comes first because a host that has it has loaded it anyway; ONNX Runtime needs a tenth of the disk. Raises
    DependencyError where what it needs is not installed, ValueError for another name.
    """
    if name is not None and name not in ENGINES:
        raise ValueError(f"there is no engine {name}; there are {', '.join(ENGINES)}")
    for one, package in ENGINES.items():
        if name in (None, one) and importlib.util.find_spec(package) is not None:
            return _made(one, device)
    packages = " or ".join([ENGINES[name]] if name else ENGINES.values())
    raise DependencyError(f"plans are run by {packages}, which is not installed: pip install {packages.split()[-1]}")


def _made(name: str, device: str) -> Engine[Any]:
    if name == "torch":
        from grid_jupyter.plans.torch_engine import TorchEngine

        return TorchEngine(device)
    from grid_jupyter.plans.onnx_engine import OnnxEngine

    return OnnxEngine(device)

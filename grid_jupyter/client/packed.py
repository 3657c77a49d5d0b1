"""Weights of a model in one run of bytes, as rounds of jobs carry them (wire/jobs.py)."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import torch

from grid_jupyter.errors import InvalidDataError, ResponseSignatureError
from grid_jupyter.ops.raw import DTYPES
from grid_jupyter.tensors.text import plain
from grid_jupyter.wire.dtypes import nbytes
from grid_jupyter.wire.jobs import Part, offsets

Weights = Mapping[str, Any]
"""Tensors by their names in the model's state_dict."""


class ForMany(dict[str, torch.Tensor]):
    """Weights that go to many Nodes, and are packed once for all of them. They must not change any more."""

    def __init__(self, weights: Mapping[str, torch.Tensor]) -> None:
        super().__init__(weights)
        self._lock = threading.Lock()
        self._packed: tuple[tuple[Part, ...], torch.Tensor] | None = None

    def packed(self, model: tuple[Part, ...]) -> torch.Tensor:
        """The run of bytes, which is not to be written to. From any thread. Raises InvalidDataError."""
        with self._lock:
            if self._packed is None or self._packed[0] != model:
                self._packed = model, _run_of(model, self)
            return self._packed[1]


def packed(model: tuple[Part, ...], weights: Weights) -> torch.Tensor:
    """Weights in one run of bytes. Raises InvalidDataError for what is not the model's."""
    return weights.packed(model) if isinstance(weights, ForMany) else _run_of(model, weights)


def named(flat: torch.Tensor, model: tuple[Part, ...]) -> dict[str, torch.Tensor]:
    """The tensors in a run of bytes, which they share. Raises ResponseSignatureError for another length."""
    begins, total = offsets(model)
    if len(flat) != total:
        raise ResponseSignatureError("the Node sent weights of another size than the model's; its version may differ")
    return {part.name: _view(flat, part, begin) for part, begin in zip(model, begins, strict=True)}


def _run_of(model: tuple[Part, ...], weights: Weights) -> torch.Tensor:
    begins, total = offsets(model)
    flat = torch.zeros(total, dtype=torch.uint8)
    with torch.no_grad():
        for part, begin in zip(model, begins, strict=True):
            given = weights.get(part.name)
            if given is None:
                raise InvalidDataError(f"the weights lack the model's {plain(part.name)}")
            tensor = torch.as_tensor(given)
            if tuple(tensor.shape) != part.shape or tensor.dtype != DTYPES[part.dtype]:
                raise InvalidDataError(
                    f"the model's {plain(part.name)} is {part.dtype} {list(part.shape)}, and {tensor.dtype} "
                    f"{list(tensor.shape)} was given"
                )
            _view(flat, part, begin).copy_(tensor)
    return flat


def _view(flat: torch.Tensor, part: Part, begin: int) -> torch.Tensor:
    return flat[begin : begin + nbytes(part.dtype, part.shape)].view(DTYPES[part.dtype]).reshape(part.shape)

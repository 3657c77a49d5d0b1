"""The same lines of torch run twice, on local tensors and on remote ones, and compared bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from grid_jupyter import send, send_module
from grid_jupyter.tensors.remote import RemoteTensor


class Here:
    """Where local torch computes: tensors and modules stay what they are."""

    def tensor(self, values: torch.Tensor) -> Any:
        return values.clone()

    def module(self, module: nn.Module) -> Any:
        return module


class There(Here):
    """Where a place computes: tensors and modules are sent."""

    def __init__(self, place: Any) -> None:
        self.place = place

    def tensor(self, values: torch.Tensor) -> Any:
        return send(values, self.place)

    def module(self, module: nn.Module) -> Any:
        return send_module(module, self.place.session)


def fetched(value: Any) -> Any:
    """Results with the values that are elsewhere; everything else as it is."""
    if isinstance(value, RemoteTensor):
        return value.detach().get(deregister_ptr=False)
    if isinstance(value, torch.Tensor):
        return value.detach()
    if isinstance(value, dict):
        return {key: fetched(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [fetched(part) for part in value]
    return value


def compare(found: Any, expected: Any, tolerance: float = 0.0) -> None:
    """The same structure, shapes, dtypes and bits; `tolerance` is relative and absolute, where bits cannot agree."""
    if isinstance(expected, torch.Tensor):
        assert isinstance(found, torch.Tensor)
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance, equal_nan=True)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        compare(list(found.values()), list(expected.values()), tolerance)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            compare(one, other, tolerance)
    else:
        assert found == expected


def both(place: Any, lines: Callable[[Any], Any], tolerance: float = 0.0) -> None:
    """Run `lines(where)` here and there; the results must be the same."""
    torch.manual_seed(7)
    expected = fetched(lines(Here()))
    torch.manual_seed(7)
    compare(fetched(lines(There(place))), expected, tolerance)

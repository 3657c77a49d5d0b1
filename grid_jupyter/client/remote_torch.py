"""`worker.remote.torch.zeros(3)`: torch's functions by the name of a worker, as 0.2.9 had them."""

from __future__ import annotations

from typing import Any

import torch

from grid_jupyter.errors import BadRequest


class RemoteTorch:
    """`torch`, with results at one place. A function of pointers runs where they are; what a function makes of
    plain arguments is made here, with this side's generator, and sent."""

    def __init__(self, place: Any) -> None:
        self._place = place

    @property
    def torch(self) -> RemoteTorch:
        """torch's functions."""
        return self

    def __getattr__(self, name: str) -> Any:
        function = getattr(torch, name, None)
        if name.startswith("_") or not callable(function) or isinstance(function, type):
            raise AttributeError(f"torch has no function {name!r}")

        def call(*args: Any, **kwargs: Any) -> Any:
            made = function(*args, **kwargs)
            if not isinstance(made, torch.Tensor):
                raise BadRequest(f"torch.{name} gives no tensor; call it on a pointer, or here")
            return made if getattr(made, "_ref", None) is not None else self._place.receive(made)

        call.__name__ = name
        return call

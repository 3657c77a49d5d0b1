"""Names of 0.2.9 whose work is done otherwise here, or not at all: each says why, and what to do instead."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final, NoReturn

from grid_jupyter.errors import BadRequest

_SHARES: Final = (
    "nothing here computes on secret shares or in fixed precision: send values to Nodes, whose owners' rules say who "
    "may read them and what is computed from them"
)
_PLANS: Final = (
    "no place keeps plans under ids: plan.send(place) makes one that is called there, .get() gives it back, and "
    "plan.to_bytes() and Plan.from_bytes(data) hand it on"
)
_PROTOCOLS: Final = "there are no protocols here: 0.2.9 stored them, and ran none"
_FITS: Final = "a worker trains nothing by itself: use node.submit(model, loss=…, data=…), or grid.train(…) for many"

OF_TENSORS: Final = {
    **dict.fromkeys(
        (
            "share", "share_", "fix_prec", "fix_prec_", "fix_precision", "fix_precision_", "float_prec", "float_prec_",
            "float_precision", "encrypt", "decrypt", "refresh",
        ),
        _SHARES,
    ),
    "numpy_tensor": "a tensor is no wrapper of a NumPy array here: x.numpy() is the array, torch.from_numpy(a) the way "
    "back",
}  # fmt: skip
OF_MODULES: Final = dict.fromkeys(("share", "fix_precision", "float_precision", "encrypt", "decrypt"), _SHARES)
OF_OPTIMISERS: Final = {"fix_precision": _SHARES}


def refusing(names: dict[str, str]) -> dict[str, Callable[..., NoReturn]]:
    """A method for each name; called, it raises BadRequest with the reason."""
    return {name: _refusal(name, why) for name, why in names.items()}


def _refusal(name: str, why: str) -> Callable[..., NoReturn]:
    def refused(self: Any, *args: Any, **kwargs: Any) -> NoReturn:
        raise BadRequest(f"{name}() of 0.2.9 is not here: {why}")

    refused.__name__ = name
    refused.__doc__ = f"Raises BadRequest: {why}."
    return refused


class OfModules:
    """A refusal on modules, which gives way to a submodule, parameter or buffer that somebody calls so."""

    def __init__(self, name: str, why: str) -> None:
        self._name = name
        self._refused = _refusal(name, why)

    def __get__(self, module: Any, kind: type[Any] | None = None) -> Callable[..., NoReturn]:
        if module is None:
            return self._refused
        if any(self._name in vars(module).get(kept, ()) for kept in ("_modules", "_parameters", "_buffers")):
            raise AttributeError(self._name)  # torch then looks among what the module has
        return functools.partial(self._refused, module)


class FormerPlace:
    """What places had in 0.2.9, and have no more."""

    fetch_plan = _refusal("fetch_plan", _PLANS)
    fetch_protocol = _refusal("fetch_protocol", _PROTOCOLS)


class FormerClient(FormerPlace):
    """What clients of WebSocket workers had in 0.2.9, and have no more."""

    fit = _refusal("fit", _FITS)
    async_fit = _refusal("async_fit", _FITS)
    evaluate = _refusal("evaluate", _FITS)

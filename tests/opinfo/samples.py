"""The samples of torch's operator database as pairs: a call on local tensors, and the same call on remote ones."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy
import torch
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.opinfo.core import OpInfo

OPERATORS: dict[str, OpInfo] = {
    info.name + (f".{info.variant_test_name}" if info.variant_test_name else ""): info for info in op_db
}
"""Every entry of the database by its name, with its variant after a dot."""

_PREFERRED = (torch.float32, torch.complex64, torch.int64, torch.bool)


def dtype_of(info: OpInfo, wanted: torch.dtype | None = None) -> torch.dtype | None:
    """The dtype to test an operator with: the wanted one or None, else float32, or what it has instead."""
    has = info.supported_dtypes("cpu")
    if wanted is not None:
        return wanted if wanted in has else None
    return next((dtype for dtype in (*_PREFERRED, *sorted(has, key=str)) if dtype in has), None)


@dataclass
class Call:
    """One call of an operator, with its tensors as they are here and as pointers."""

    local: tuple[tuple[Any, ...], dict[str, Any]]
    remote: tuple[tuple[Any, ...], dict[str, Any]]
    leaves: list[tuple[torch.Tensor, Any]] = field(default_factory=list)  # those that require gradients
    tensors: int = 0
    differentiated: Callable[[Any], Any] = lambda result: result


def calls(
    info: OpInfo, dtype: torch.dtype, send: Callable[[torch.Tensor], Any], gradients: bool, most: int
) -> Iterator[Call]:
    """At most `most` of the operator's samples, spread over all that it has."""
    torch.manual_seed(0)
    numpy.random.seed(0)
    random.seed(0)
    samples = list(islice(info.sample_inputs("cpu", dtype, requires_grad=gradients), 400))
    step = max(1, -(-len(samples) // most))
    for sample in samples[::step]:
        call = _pair((sample.input, *sample.args), sample.kwargs, send)
        call.differentiated = sample.output_process_fn_grad
        yield call


def _pair(args: tuple[Any, ...], kwargs: dict[str, Any], send: Callable[[torch.Tensor], Any]) -> Call:
    call = Call(((), {}), ((), {}))
    seen: dict[int, tuple[torch.Tensor, Any]] = {}

    def both(value: Any) -> tuple[Any, Any]:
        if isinstance(value, torch.Tensor):
            found = seen.get(id(value))
            if found is None:
                found = seen[id(value)] = _copies(value, send)
                call.tensors += 1
                if value.requires_grad:
                    for copy in found:
                        copy.requires_grad_()
                    call.leaves.append(found)
            return found
        if isinstance(value, (list, tuple)):
            pairs = [both(part) for part in value]
            kind = type(value)
            if kind in (list, tuple):
                return kind(one for one, _ in pairs), kind(other for _, other in pairs)
            return value, value  # torch.Size and the like
        if isinstance(value, dict):
            named = {key: both(part) for key, part in value.items()}
            return {key: one for key, (one, _) in named.items()}, {key: other for key, (_, other) in named.items()}
        return value, value

    call.local, call.remote = zip(both(args), both(kwargs), strict=True)
    return call


def _copies(tensor: torch.Tensor, send: Callable[[torch.Tensor], Any]) -> tuple[torch.Tensor, Any]:
    """A local and a remote copy, of the same strides where those are a permutation or an expansion of dense ones."""
    if tensor.layout != torch.strided:
        return tensor, send(tensor)
    plain = tensor.detach().resolve_conj().resolve_neg()
    order = sorted(range(plain.dim()), key=lambda dim: -plain.stride(dim))
    back = [order.index(dim) for dim in range(plain.dim())]
    small = plain
    for dim in range(plain.dim()):
        if plain.stride(dim) == 0 and plain.shape[dim] > 1:
            small = small.narrow(dim, 0, 1)
    dense = small.permute(order).contiguous().clone()

    def shaped(copy: Any) -> Any:
        return copy if order == back == list(range(plain.dim())) else copy.permute(back)

    local, remote = shaped(dense), shaped(send(dense))
    if small is not plain:
        local, remote = local.expand(plain.shape), remote.expand(plain.shape)
    return local, remote

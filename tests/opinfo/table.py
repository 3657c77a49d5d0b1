"""Runs operators of torch's database on a Node beside local torch, and says of each how that went."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch.testing._internal.opinfo.core import OpInfo

from grid_jupyter import NodeClient
from grid_jupyter.errors import GridError, RemoteOperationError, SessionLostError
from grid_jupyter.tensors.remote import RemoteTensor

from .compare import Differs, SeededAsRemote, fetched, flat, same_result, same_values
from .samples import OPERATORS, Call, calls, dtype_of

AGREES, REFUSED, NOWHERE, DIFFERS, CRASHES, HANGS = "agrees", "refused", "nowhere", "differs", "crashes", "hangs"
OUTCOMES = (AGREES, REFUSED, NOWHERE, DIFFERS, CRASHES, HANGS)
"""The same here and there; an error says that it does not run there; not even torch runs it on a CPU; not the same."""
FAULTS = (DIFFERS, CRASHES, HANGS)
PATIENCE_S = 120
UNINITIALISED = frozenset({"empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided"})


class Verdict(NamedTuple):
    """How one operator went: the worst of its samples, with the reason."""

    operator: str
    outcome: str
    reason: str = ""
    samples: int = 0
    gradients: int = 0  # samples whose gradients were compared
    tensors: int = 0  # that were sent: an operator that takes none makes its result here


class Nowhere(Exception):
    """The local call failed."""


class Hangs(Exception):
    """The operator took too long."""


def table(
    names: list[str], connect: Callable[[], NodeClient], most: int, wanted: torch.dtype | None
) -> Iterator[Verdict]:
    """A verdict for each of the operators, as they come; those without the wanted dtype are left out."""
    client = connect()
    try:
        for name in names:
            info = OPERATORS[name]
            dtype = dtype_of(info, wanted)
            if dtype is None:
                if wanted is None:
                    yield Verdict(name, NOWHERE, "torch itself has no CPU kernel for it")
                continue
            verdict = _verdict(name, info, dtype, client, most)
            yield verdict
            if verdict.outcome in (CRASHES, HANGS):
                client.close()
                client = connect()
    finally:
        client.close()


def _verdict(name: str, info: OpInfo, dtype: torch.dtype, client: NodeClient, most: int) -> Verdict:
    done = {"samples": 0, "gradients": 0, "tensors": 0}
    try:
        with _patience(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _outputs(name, info, dtype, client, most, done)
            if info.supports_autograd and dtype in info.supported_backward_dtypes("cpu"):
                _gradients(name, info, dtype, client, most, done)
        return Verdict(name, AGREES, "", **done)
    except Differs as error:
        return Verdict(name, DIFFERS, str(error), **done)
    except Nowhere as error:
        return Verdict(name, NOWHERE, f"torch itself does not run it on a CPU: {error}", **done)
    except SessionLostError as error:
        return Verdict(name, CRASHES, str(error), **done)
    except Hangs as error:
        return Verdict(name, HANGS, str(error), **done)
    except GridError as error:
        return Verdict(name, REFUSED, str(error), **done)
    except Exception as error:  # whatever torch or we raise: the table shows it
        return Verdict(name, REFUSED, " ".join(f"{type(error).__name__}: {error}".split()), **done)


@contextmanager
def _patience() -> Iterator[None]:
    def late(number: int, frame: Any) -> None:
        raise Hangs(f"not done in {PATIENCE_S} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(PATIENCE_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _outputs(name: str, info: OpInfo, dtype: torch.dtype, client: NodeClient, most: int, done: dict[str, int]) -> None:
    for call in calls(info, dtype, client.receive, False, most):
        same_result(_here(info, call)[0], _there(info, call), name not in UNINITIALISED)
        done["samples"] += 1
        done["tensors"] += call.tensors


def _gradients(
    name: str, info: OpInfo, dtype: torch.dtype, client: NodeClient, most: int, done: dict[str, int]
) -> None:
    for call in calls(info, dtype, client.receive, True, most):
        here, modes = _here(info, call)
        there = _there(info, call)
        outs = [
            (one, other)
            for one, other in zip(flat(call.differentiated(here)), flat(call.differentiated(there)), strict=True)
            if isinstance(one, torch.Tensor) and one.requires_grad
        ]
        if not outs or not call.leaves:
            continue
        seeds = [torch.randn(one.shape, dtype=one.dtype) for one, _ in outs]
        far = [client.receive(seed) for seed in seeds]
        leaves, pointers = [leaf for leaf, _ in call.leaves], [pointer for _, pointer in call.leaves]
        with modes():
            expected = torch.autograd.grad([one for one, _ in outs], leaves, seeds, allow_unused=True)
        if not all(type(other) is RemoteTensor and other.requires_grad for _, other in outs):
            if any(one is not None and bool(one.any()) for one in expected):
                raise Differs("a result that requires grad here does not there")
            continue  # what is nowhere but zero need not be computed
        if len(outs) == 1:
            outs[0][1].backward(far[0])
            found = [pointer.grad for pointer in pointers]
        else:
            found = list(torch.autograd.grad([other for _, other in outs], pointers, far, allow_unused=True))
        for leaf, one, other in zip(leaves, expected, found, strict=True):
            try:
                _same_gradient(leaf, one, other)
            except Differs as error:
                raise Differs(f"gradient: {error}") from None
        done["gradients"] += 1


def _same_gradient(leaf: torch.Tensor, one: torch.Tensor | None, other: Any) -> None:
    if one is not None:
        if other is None:
            raise Differs("one here, none there")
        same_values(one, fetched(other))
        return
    # no path leads there: torch says None, a Node's autograd.grad zeros, and .backward() that there is none
    try:
        same_values(torch.zeros_like(leaf), torch.zeros_like(leaf) if other is None else fetched(other))
    except RemoteOperationError as error:
        if "there is no gradient" not in str(error):
            raise


def _here(info: OpInfo, call: Call) -> tuple[Any, Callable[[], AbstractContextManager[Any]]]:
    """The result, and the mode that its gradients are to be computed in."""
    args, kwargs = call.local
    torch.manual_seed(1)
    try:
        plain = info.op(*args, **kwargs)
    except Exception as error:
        raise Nowhere(str(error)) from error
    torch.manual_seed(1)
    with SeededAsRemote() as mode:
        seeded = info.op(*args, **kwargs)
    return (seeded, SeededAsRemote) if mode.seen else (plain, nullcontext)


def _there(info: OpInfo, call: Call) -> Any:
    args, kwargs = call.remote
    torch.manual_seed(1)
    return info.op(*args, **kwargs)

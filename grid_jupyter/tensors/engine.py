"""Where torch's own functions end when they are given remote tensors: autograd's engine, custom functions.

Prepared once, when the first session is made. What torch is given besides remote tensors goes its usual way.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Sequence
from typing import Any

import torch

from grid_jupyter.errors import RemoteOperationError, TensorsNotCollocatedException
from grid_jupyter.tensors.autograd import (
    Autograd,
    after_backward,
    gradient_layout,
    upload,
)
from grid_jupyter.tensors.packing import pad, pad_each
from grid_jupyter.wire import commands

_ft: Any = torch._C._functorch


@functools.cache
def prepare() -> None:
    """Let torch.autograd.grad, torch.autograd.backward and what rests on them take remote tensors."""
    autograd: Any = torch.autograd
    local_engine = autograd._engine_run_backward
    local_apply = inspect.getattr_static(autograd.Function, "apply")  # Python's or, since torch 2.15, C's

    @functools.wraps(local_engine)
    def run(outputs: Any, grads: Any, *args: Any, **kwargs: Any) -> Any:
        remote = [isinstance(one, Autograd) for one in outputs]
        if not any(remote):
            return local_engine(outputs, grads, *args, **kwargs)
        if all(remote):
            return _run(outputs, grads, *args, **kwargs)
        if not kwargs.get("accumulate_grad"):
            raise TensorsNotCollocatedException("some of the outputs are remote and some are not: ask for one by one")
        for here in (True, False):
            picked = [index for index, there in enumerate(remote) if there is not here]
            engine = local_engine if here else _run
            engine(tuple(outputs[i] for i in picked), tuple(grads[i] for i in picked), *args, **kwargs)
        return ()

    @functools.wraps(autograd.Function.apply)
    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled() and any(isinstance(one, Autograd) and one.requires_grad for one in args):
            raise RemoteOperationError(
                f"{cls.__name__} is a torch.autograd.Function of your own: no code of yours runs where the values "
                f"are, so its backward cannot. Write it with torch's operations, or call it under torch.no_grad()"
                f"{_HINTS.get(cls.__name__, '')}"
            )
        return local_apply.__get__(None, cls)(*args, **kwargs)

    autograd._engine_run_backward = run
    autograd.Function.apply = classmethod(apply)
    library = torch.library.Library("aten", "IMPL")
    library.impl("tensor_split.tensor_indices_or_sections", _split, "AutogradCPU")
    library.impl("_pad_packed_sequence", pad, "AutogradCPU")
    library.impl("pad_sequence", pad_each, "AutogradCPU")
    _kept.append(library)
    _keep_the_compiler_out()


_kept: list[Any] = []


def _split(self: Any, indices: torch.Tensor, dim: int = 0) -> Any:
    """torch reads the places to split at from memory: those of a remote tensor are read through the release gate."""
    if isinstance(indices, Autograd) and indices.dim() == 1 and indices.dtype is torch.int64:
        given: Any = indices
        return torch.tensor_split(self, given.tolist(), dim)
    composite: Any = torch.ops.aten.tensor_split.tensor_indices_or_sections
    return composite._op_dk(torch._C.DispatchKey.CompositeImplicitAutograd, self, indices, dim)


def _keep_the_compiler_out() -> None:
    """torch.compile would trace what a pointer does, and replay the ids of its first commands."""
    from grid_jupyter.tensors.remote import RemoteTensor  # it is above this module

    try:
        from torch._C._dynamo import eval_frame

        skip = eval_frame._FrameAction.SKIP
        strategy = eval_frame._FrameExecStrategy(skip, skip)
        eval_frame.set_code_exec_strategy(RemoteTensor.__torch_dispatch__.__code__, strategy)
    except (ImportError, AttributeError):  # a torch that has another way to say so; there compile is slow, not wrong
        return


_HINTS = {
    "CheckpointFunction": "; checkpoint(…, use_reentrant=False) works",
    "BackwardHookFunction": "; backward hooks of modules are such functions, forward hooks are not",
}


def _run(
    outputs: Sequence[Any],
    grads: Sequence[Any],
    retain: bool,
    create: bool,
    inputs: Sequence[Any] = (),
    unused: bool = False,
    accumulate_grad: bool = False,
    **options: Any,
) -> tuple[Any, ...]:
    """What torch's engine does: accumulate gradients in the leaves, or return those of the inputs."""
    for one in (*outputs, *grads, *inputs):
        if isinstance(one, Autograd):
            one.requires_grad  # noqa: B018 - makes a leaf of what a factory says it of
    if not accumulate_grad:
        return _gradients(outputs, grads, retain, create, inputs, options.get("allow_unreachable", unused))
    for session in dict.fromkeys(output._ref.session for output in outputs):
        there = [index for index, output in enumerate(outputs) if output._ref.session is session]
        backward(
            [outputs[index] for index in there],
            [grads[index] for index in there],
            retain,
            create,
            [one for one in inputs if one._ref.session is session],
        )
    return ()


def backward(outputs: Sequence[Any], grads: Sequence[Any], retain: bool, create: bool, inputs: Sequence[Any]) -> None:
    """torch.autograd.backward over outputs of one session: one command."""
    session = outputs[0]._ref.session
    held = [upload(grad, session) for grad in grads]
    number = -session.new_id()
    session.sites.note(number, sys._getframe(1))
    session.buffer.append(
        [
            commands.BACKWARD_MANY, [output._ref.id for output in outputs], [0 if h is None else h.id for h in held],
            [one._ref.id for one in inputs], bool(retain), bool(create), number,
        ]
    )  # fmt: skip
    reached = _union([*outputs, *(grads if create else ())]) or frozenset()
    if inputs:
        for one in inputs:
            session.leaves[one._ref.id] = one
        reached_inputs = frozenset(one._ref.id for one in inputs if one._leaves is not None and one._leaves & reached)
        after_backward(session, reached_inputs, reached, create)
    else:
        after_backward(session, reached, reached, create)


def _gradients(
    outputs: Sequence[Any], grads: Sequence[Any], retain: bool, create: bool, inputs: Sequence[Any], unused: bool
) -> tuple[Any, ...]:
    session = outputs[0]._ref.session
    if any(one._ref.session is not session for one in (*outputs, *(i for i in inputs if isinstance(i, Autograd)))):
        raise TensorsNotCollocatedException("outputs and inputs of a gradient must be in one place")
    grads, batch = _unbatched(grads)
    reached = _union(outputs) or frozenset()
    asked: list[Any] = []
    for one in inputs:
        if not isinstance(one, Autograd) or not one.requires_grad:
            raise RuntimeError("One of the differentiated Tensors does not require grad")
        if reached & (one._leaves or frozenset()):
            asked.append(one)
        elif not unused:
            raise RuntimeError(
                "One of the differentiated Tensors appears to not have been used in the graph. "
                "Set allow_unused=True if this is the desired behavior."
            )
    held = [upload(grad, session) for grad in grads]
    identities = [session.new_id() for _ in asked]
    session.sites.note(identities[0] if identities else 0, sys._getframe(1))
    session.buffer.append(
        [
            commands.GRADIENTS, identities, [output._ref.id for output in outputs],
            [0 if h is None else h.id for h in held], [one._ref.id for one in asked], bool(retain), bool(create),
            bool(unused), batch is not None,
        ]
    )  # fmt: skip
    leaves = _union([*outputs, *grads]) if create else None
    rows = () if batch is None else (batch.rows,)
    made = {
        id(one): one._make(gradient_layout(one._layout, rows), identity, session, 0, leaves)
        for one, identity in zip(asked, identities, strict=True)
    }
    if len(session.buffer) >= session.limit:
        session.flush()
    found = [made.get(id(one)) for one in inputs]
    return tuple(one if one is None or batch is None else batch.add(one) for one in found)


def _union(tensors: Sequence[Any]) -> frozenset[int] | None:
    leaves: frozenset[int] | None = None
    for one in tensors:
        reached = one._leaves if isinstance(one, Autograd) else None
        if reached is not None:
            leaves = reached if leaves is None else leaves | reached
    return leaves


class _Batch:
    """The level of torch's vmap that gradients are asked under: `is_grads_batched`, or vmap around autograd.grad."""

    def __init__(self, level: int, rows: int, functorch: bool) -> None:
        self.level = level
        self.rows = rows
        self._functorch = functorch

    def add(self, tensor: Any) -> Any:
        """The same tensor, its first dimension hidden as the batch."""
        made: Any = _ft._add_batch_dim(tensor, 0, self.level) if self._functorch else _add(tensor, 0, self.level)
        return made


_add: Any = torch._add_batch_dim
_remove: Any = torch._remove_batch_dim


def _unbatched(grads: Sequence[Any]) -> tuple[Sequence[Any], _Batch | None]:
    """Gradients with their batch as the first dimension, and what hides it again."""
    given = [grad for grad in grads if grad is not None]
    if not given or all(isinstance(grad, Autograd) for grad in given):
        return grads, None
    if any(_ft.is_batchedtensor(grad) for grad in given):
        level = max(_ft.maybe_get_level(grad) for grad in given if _ft.is_batchedtensor(grad))
        plain = []
        for grad in grads:
            value, dim = (grad, None) if not _ft.is_batchedtensor(grad) else _ft._unwrap_batched(grad, level)
            plain.append(value if dim in (None, 0) else value.movedim(dim, 0))
        if len(given) != len(grads) or not all(_ft.is_batchedtensor(grad) for grad in given):
            raise RemoteOperationError("under vmap, give a gradient for each of the outputs, all with the batch")
        return plain, _Batch(level, plain[0].shape[0], True)
    level = int(torch._C._vmapmode_increment_nesting()) - 1
    torch._C._vmapmode_decrement_nesting()
    if level < 1:
        return grads, None
    plain = [_remove(grad, level, 1, 0) for grad in grads]
    return plain, _Batch(level, plain[0].shape[0], False)

"""Plans on remote tensors: a plan's operations run where the values are, as a recording, by one message a call.

The Worker learns nothing new: it gets the same commands as from the function itself, so that what may be done with
the results, and what is refused, is decided as always.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from grid_jupyter.errors import NotRecordableError, TensorsNotCollocatedException
from grid_jupyter.ops.shapes import Layout
from grid_jupyter.plans.document import Document
from grid_jupyter.plans.engine import Feed, check_range
from grid_jupyter.plans.plan import Plan
from grid_jupyter.plans.torch_engine import TorchProgram
from grid_jupyter.plans.torch_kernels import KERNELS, Kernel
from grid_jupyter.tensors.inplace import unwrapped
from grid_jupyter.tensors.recording import Recording
from grid_jupyter.tensors.remote import RemoteTensor, send
from grid_jupyter.tensors.session import Lost, Session

Named = Mapping[str, Mapping[str, Any]]
"""Tensors by role and name."""
_ARGUMENTS = ("arg", "x", "y")


def run(plan: Plan, given: Named, batch: int) -> list[Any]:
    """One call of a plan on remote tensors: its outputs in the document's order, remote ones.

    `given` has the arguments, all of one session, and what the plan carries, which is local. Raises
    TensorsNotCollocatedException, PlanInvalidError for tensors that do not fit, OperationNotAllowedError.
    """
    arguments = {
        role: {name: unwrapped(value) for name, value in given[role].items()} for role in _ARGUMENTS if role in given
    }
    session = _session_of(plan, [value for named in arguments.values() for value in named.values()])
    measured = {role: {name: _measured(value) for name, value in named.items()} for role, named in arguments.items()}
    return _there(plan, session).call({**plan.carried, **measured}, batch)


def keep(plan: Plan, session: Session) -> None:
    """Let what a plan carries travel to a session now. It stays there while the plan and the session live."""
    _there(plan, session).carry(plan.carried)
    session.flush()


def _session_of(plan: Plan, arguments: Sequence[Any]) -> Session:
    found = {value._ref.session if isinstance(value, RemoteTensor) else None: value for value in arguments}
    if len(found) > 1:
        places = " and ".join(
            "on this side" if one is None else f"on {value.location.id}" for one, value in found.items()
        )
        raise TensorsNotCollocatedException(
            f"the arguments of the plan {plan.name} are {places}: bring them together first, with .get() or by "
            f"sending them to the same place"
        )
    (session,) = found
    if not isinstance(session, Session):
        raise TensorsNotCollocatedException(
            f"the arguments of the plan {plan.name} are pointers to pointers: .get() the inner ones first"
        )
    return session


def _measured(pointer: Any) -> Any:
    """The pointer with lengths that are numbers here. Those that depend on values are read, if that is allowed."""
    if type(pointer._layout) is Layout:
        return pointer
    lengths = [int(length) for length in pointer.shape]
    return pointer if type(pointer._layout) is Layout else pointer.reshape(lengths)


# ------------------------------------------------------------------ at one session


class _There:
    """A plan at one session: what it carries, its program, and the recordings of its runs."""

    def __init__(self, document: Document, session: Session) -> None:
        self.document = document
        self.cleared = session.cleared
        self._program = _Program(document, session)
        self._carried: dict[tuple[str, str], tuple[torch.Tensor, int, RemoteTensor]] = {}
        self._recording = Recording(self._run, steady=True)

    def carry(self, given: Named) -> dict[str, dict[str, Any]]:
        """What the plan carries, as it is there; what changed since it was sent is sent anew."""
        there: dict[str, dict[str, Any]] = {}
        for role, tensors in given.items():
            there[role] = {}
            for name, tensor in tensors.items():
                known = self._carried.get((role, name))
                version = 0 if tensor.is_inference() else tensor._version
                if known is None or known[0] is not tensor or known[1] != version:
                    known = self._carried[role, name] = tensor, version, self._program.sent(tensor)
                there[role][name] = known[2]
        return there

    def call(self, given: Named, batch: int) -> list[Any]:
        """One run."""
        there = self.carry({role: named for role, named in given.items() if role not in _ARGUMENTS})
        values = Feed(self._program).values({**given, **there}, batch)
        try:
            return self._recording(*values)
        except NotRecordableError:  # too long for one, or the session has as many as it keeps: as always, then
            return self._run(*values)

    def _run(self, *values: Any) -> list[Any]:
        # copies of what came in and of views of it: who fetches or changes a result leaves what the plan carries alone
        kept = {id(value) for value in (*values, *(constant for _, constant in self._program.constants))}
        results = self._program.run(values)
        return [result.clone() if {id(result), id(result._root)} & kept else result for result in results]


class _Program(TorchProgram):
    """A plan as calls of torch's functions on the tensors of one session."""

    def __init__(self, document: Document, session: Session) -> None:
        check_range(document)
        super().__init__(document, torch.device("cpu"), None, lambda role: True)
        self._where = session
        self.constants = [(k, self.sent(constant)) for k, constant in self.constants]
        scalar = self.sent(torch.zeros(()))
        self._kernels = {**KERNELS, "full": lambda arguments, device: _full(scalar, arguments)}

    def sent(self, tensor: torch.Tensor) -> RemoteTensor:
        """A local tensor as it is there. Gradients go to arguments of a plan, not to what it carries."""
        return send(tensor.detach(), self._where)

    def native(self, array: np.ndarray[Any, Any]) -> torch.Tensor:
        """As Program.native."""
        return self.sent(super().native(array))


def _full(scalar: RemoteTensor, arguments: Sequence[Any]) -> Kernel:
    shape, value, dtype = arguments
    return lambda: scalar.new_full(shape, value, dtype=dtype)


_kept: weakref.WeakKeyDictionary[Plan, dict[Session, _There]] = weakref.WeakKeyDictionary()


def _there(plan: Plan, session: Session) -> _There:
    places = _kept.setdefault(plan, {})
    there = places.get(session)
    if there is None or there.document is not plan.document or there.cleared != session.cleared:
        for one in [one for one in places if isinstance(one.buffer, Lost)]:
            del places[one]
        there = places[session] = _There(plan.document, session)
    return there

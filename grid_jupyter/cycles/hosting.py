"""What somebody hosts, held against itself: configurations, plans read as hostile, and the model that they are of."""

from __future__ import annotations

import gc
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from grid_jupyter.cycles.admission import check_keys
from grid_jupyter.cycles.terms import Terms, read_terms
from grid_jupyter.errors import BadRequest, PlanInvalidError
from grid_jupyter.plans.document import Document, canonical, parsed
from grid_jupyter.plans.expressions import has_batch
from grid_jupyter.plans.reader import MAX_BRACKETS, MAX_BYTES, read_plan
from grid_jupyter.wire.limits import MAX_NAME_CHARS
from grid_jupyter.wire.training import HostTraining

if TYPE_CHECKING:
    from grid_jupyter.aggregation.form import Form

MAX_PLANS = 16
MAX_CLIENT_CONFIG_BYTES = 64 << 10
_NAME = re.compile(r"[A-Za-z0-9_.:+-][A-Za-z0-9_.:+ -]{0,126}")


@dataclass(frozen=True)
class Hosted:
    """What is hosted, checked."""

    name: str
    version: str
    client_config: dict[str, Any]
    server_config: dict[str, Any]
    terms: Terms
    plans: Mapping[str, Document]
    averaging: Document | None
    """How the host's own plan makes one diff of those of a cycle."""
    texts: Mapping[str, bytes]
    """The plans in their canonical form, by name; the averaging plan's is ''."""


def read_hosting(body: HostTraining) -> Hosted:
    """Check all of it but the model, in a thread. Takes as long as its plans are large.

    Raises BadRequest, PlanInvalidError.
    """
    with _COLLECTOR.rests():
        return _read(body)


class _Collector:
    """Python's collector of cycles. A plan is hundreds of thousands of objects without any: while one is read, it would
    look through all of them again and again, and keep the event loop waiting for a quarter of a second each time."""

    def __init__(self) -> None:
        self._lock, self._resting = threading.Lock(), 0

    @contextmanager
    def rests(self) -> Iterator[None]:
        with self._lock:
            self._resting += 1
            gc.disable()
        try:
            yield
        finally:
            with self._lock:
                self._resting -= 1
                if not self._resting:
                    if not gc.get_freeze_count():  # what is new counts as old, and nobody looks through it at once
                        gc.freeze()
                        gc.unfreeze()
                    gc.enable()


_COLLECTOR = _Collector()


def _read(body: HostTraining) -> Hosted:
    if body.protocols:
        raise BadRequest("this Node hosts no protocols: leave them out")
    name, version = (_named(body.client_config, key) for key in ("name", "version"))
    if len(json.dumps(body.client_config)) > MAX_CLIENT_CONFIG_BYTES:
        raise BadRequest(f"client_config is over the limit of {MAX_CLIENT_CONFIG_BYTES} bytes as JSON")
    terms = read_terms(body.server_config)
    if terms.authentication is not None:
        check_keys(terms.authentication)
    if not 1 <= len(body.plans) <= MAX_PLANS:
        raise BadRequest(f"a training has 1 to {MAX_PLANS} plans: what devices are to run")
    read = {_plan_name(key): _plan(bytes(raw)) for key, raw in body.plans.items()}
    plans = {key: document for key, (document, _) in read.items()}
    texts = {key: text for key, (_, text) in read.items()}
    averaging = None
    if bytes(body.averaging_plan) != b"null":
        averaging, texts[""] = _plan(bytes(body.averaging_plan))
    if averaging is None and terms.iterative_plan:
        raise BadRequest("iterative_plan says how an averaging plan is run, and there is none: leave it out")
    told = _with_term(body.client_config, terms, plans)
    return Hosted(name, version, told, body.server_config, terms, plans, averaging, texts)


def check_fits(plans: Mapping[str, Document], form: Form) -> None:
    """Whether the model has what each plan takes as parameters and buffers. Raises BadRequest naming what does not
    fit; plans of functions take their tensors as arguments, and fit any model."""
    parts = {name: (dtype.name, shape) for name, dtype, shape in form.parts}
    for key, plan in plans.items():
        for one in plan.inputs_of("param", "buffer"):
            found = parts.get(one.name)
            if found is None:
                raise BadRequest(f"the plan {key!r} takes {one.role} {one.name!r}, which the model has not")
            if any(has_batch(length) for length in one.spec.shape) or found != (one.spec.dtype, one.spec.shape):
                raise BadRequest(f"the plan {key!r} takes {one.role} {one.name!r} of another dtype or shape")


def _with_term(config: dict[str, Any], terms: Terms, plans: Mapping[str, Document]) -> dict[str, Any]:
    """What devices are told; under FedProx its mu as well. Raises BadRequest for plans that it cannot be added to."""
    if terms.chosen is None or terms.chosen.name != "FedProx":
        return config
    mu = terms.chosen.numbers["mu"]
    if config.get("proximal_mu", mu) != mu:
        raise BadRequest("client_config has another proximal_mu than the strategy FedProx has mu: leave it out")
    for key, plan in plans.items():
        numbers = {one.name for one in plan.inputs_of("hyper")}
        if plan.kind == "step" and (plan.inputs_of("state") or "lr" not in numbers):
            raise BadRequest(
                f"the plan {key!r} is no step of plain SGD with a learning rate 'lr', which FedProx adds its term to"
            )
    return {**config, "proximal_mu": mu}


def buffers_of(plans: Mapping[str, Document]) -> tuple[str, ...]:
    """Names of the tensors that no plan trains, such as a batch norm's running mean: they are averaged, no more."""
    trained = {one.name for plan in plans.values() for one in plan.inputs_of("param")}
    return tuple(sorted({one.name for plan in plans.values() for one in plan.inputs_of("buffer")} - trained))


def _named(config: Mapping[str, Any], key: str) -> str:
    value = config.get(key)
    if not isinstance(value, str) or not _NAME.fullmatch(value) or len(value) > MAX_NAME_CHARS:
        raise BadRequest(f"client_config needs {key!r}: a text of letters, digits, spaces and . _ : + -")
    return value


def _plan_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise BadRequest("names of plans are texts of letters, digits, spaces and . _ : + -")
    return name


def _plan(raw: bytes) -> tuple[Document, bytes]:
    """A plan as it stands within other JSON, whoever wrote that: it is put into its one spelling first."""
    if len(raw) > MAX_BYTES or raw.count(b"[") + raw.count(b"{") > MAX_BRACKETS:
        raise PlanInvalidError(f"a plan is over the limit of {MAX_BYTES} bytes, or {MAX_BRACKETS} lists and objects")
    try:
        tree = parsed(raw)
        spelled = canonical(tree) if isinstance(tree, dict) else raw
    except (ValueError, RecursionError):
        raise PlanInvalidError("a plan is a JSON object, as Plan.to_bytes() has it") from None
    return read_plan(spelled), spelled

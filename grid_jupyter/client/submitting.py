"""Submitting jobs to a Node, and looking at those that are there: the half of a Node's client that is about jobs."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import torch

from grid_jupyter.client.jobs import Job
from grid_jupyter.client.listings import JobList
from grid_jupyter.client.pointers import DatasetRef, RemoteArrays, RemoteTable
from grid_jupyter.errors import BadRequest, InvalidDataError
from grid_jupyter.link.bulk import of_memory, upload
from grid_jupyter.link.client import WebSocketLink
from grid_jupyter.link.http import Address, call
from grid_jupyter.ops.raw import DTYPES, NAMES, to_bytes
from grid_jupyter.plans.models import loss_plan
from grid_jupyter.plans.optimisers import SGD, moved_by, optimiser_of
from grid_jupyter.plans.plan import Plan
from grid_jupyter.tensors.remote import RemoteTensor
from grid_jupyter.tensors.text import plain
from grid_jupyter.wire.jobs import Arguments, JobInfo, Rows, Submit
from grid_jupyter.wire.messages import DatasetInfo
from grid_jupyter.wire.safetensors import PREFIX_BYTES, build_header, parse_header

_EXAMPLE_ROWS = 5


class Submitting:
    """What a Node's client does about jobs."""

    address: Address
    id: str

    _token_of: Callable[[str | None], str]
    _connection: Callable[[], WebSocketLink]

    def token_of(self, user: str | None) -> str:
        """The credential of a user, or of the client. Raises NotAuthenticatedError."""
        return self._token_of(user)

    def connect(self) -> WebSocketLink:
        """A connection of its own, with the client's credential: a session in which rounds of jobs are asked for."""
        return self._connection()

    def submit(
        self,
        plan: Plan | torch.nn.Module,
        model: torch.nn.Module | None = None,
        *,
        data: Mapping[str, Any],
        loss: Any = None,
        optimizer: Any = None,
        epochs: int = 1,
        batch_size: int = 32,
        shuffle: bool = True,
        seed: int = 0,
        metrics: Any = None,
        rounds: int = 1,
        proximal: float = 0.0,
        corrected: bool = False,
        reason: str = "",
        device: str = "",
        device_fraction: float = 0.0,
        user: str | None = None,
    ) -> Job:
        """Ask this Node to train a model on its data, which stays there.

        `plan` is a loss plan (`loss_plan(model, loss, inputs=…)`), or a module with `loss=`, of which one is made.
        `model` gives the weights to start from; without it, those that the plan was captured with. `data` names what
        the plan takes: `{"x": pointer, "y": pointer}`, pointers to published tensors, columns of a table, or
        `(table, ["a", "b"])`. `optimizer` is one of torch's, or `SGD(…)`, `Adam(…)` of `grid_jupyter.plans`; by
        default SGD of 0.01. The same seed gives the same training. With `rounds`, the job waits for weights and gives
        back new ones so often (`job.round(weights)`), each time training `epochs`; `proximal` and `corrected` are for
        federated strategies. `reason` is what the data's owners read. `device` (`"cuda"`, `"cuda:1"`, `"cpu"`) and
        `device_fraction`, of its memory, are for Nodes whose Workers share devices; left out, they are the Node's. A
        plan of a whole step (`training_plan`) can be submitted too; no policy accepts one by itself.

        Returns at once with the job, which is durable at the Node. Raises PlanInvalidError, BadRequest,
        InvalidDataError and LimitExceededError for what does not fit, ObjectNotFoundError, NotCapturableError.
        """
        places = {name: place_of(one) for name, one in data.items()}
        if not isinstance(plan, Plan):
            if loss is None:
                raise BadRequest("a module is submitted with its loss: submit(model, loss=torch.nn.…, data=…)")
            model = plan if model is None else model
            plan = captured(plan, loss, places, metrics)
        document = plan.document
        if model is not None and document.kind != "step":
            check_moves(optimizer, model, {one.name for one in document.inputs_of("param")})
        known = tuple(one.name for one in document.outputs_of("metric"))
        chosen = known if metrics is None or isinstance(metrics, Mapping) else tuple(metrics)
        if document.kind == "step":
            name, numbers = "step", {key: float(one) for key, one in plan.hyper.items()}
        else:
            name, numbers = _numbers(optimizer)
        arguments = Arguments(
            optimizer=name, numbers=numbers, epochs=epochs, batch_size=batch_size, shuffle=shuffle, seed=seed,
            metrics=chosen, rounds=rounds, proximal=proximal, corrected=corrected,
        )  # fmt: skip
        weights = {**plan.params, **plan.buffers} if model is None else dict(model.state_dict())
        if model is not None:
            weights |= dict(model.named_parameters()) | dict(model.named_buffers())
        named = [one.name for one in (*document.inputs_of("param"), *document.inputs_of("buffer"))]
        missing = [one for one in named if one not in weights]
        if missing:
            raise InvalidDataError(f"the model has no {missing[0]}, which the plan takes")
        key = secrets.token_hex(16)
        self._send_work(key, plan.to_bytes(), [weights[one].detach().cpu() for one in named], user)
        request = Submit(
            upload=key, data={name: rows for name, (rows, _, _) in places.items()}, arguments=arguments, reason=reason,
            device=device, device_fraction=device_fraction,
        )  # fmt: skip
        token = self._token_of(user)
        made: JobInfo = call(self.address, "POST", "/data-centric/jobs", request, token=token, kind=JobInfo)
        return Job(self, made, model, user)

    def _send_work(self, key: str, plan: bytes, weights: list[torch.Tensor], user: str | None) -> None:
        tensors = {"plan": torch.frombuffer(bytearray(plan), dtype=torch.uint8)}
        for number, tensor in enumerate(weights):
            if tensor.dtype not in NAMES:
                raise InvalidDataError(f"weights of {tensor.dtype} do not travel; convert the model")
            tensors[f"w/{number}"] = tensor
        header = build_header([(name, NAMES[one.dtype], tuple(one.shape)) for name, one in tensors.items()])
        total = len(header) + sum(one.numel() * one.element_size() for one in tensors.values())
        order = sorted(parse_header(header[:PREFIX_BYTES], header[PREFIX_BYTES:], total), key=lambda one: one.begin)
        body = b"".join(bytes(to_bytes(tensors[one.name])) for one in order)
        headers = {"Authorization": f"Bearer {self._token_of(user)}"}
        where = f"/data-centric/jobs/uploads/{key}"
        upload(self.address, where, "", of_memory(header, memoryview(body)), total, headers, "submitting")

    def jobs(self, user: str | None = None) -> list[Job]:
        """Jobs that you submitted, or that are on data of yours (of a Node's owner: all), newest first."""
        token = self._token_of(user)
        found: list[JobInfo] = call(self.address, "GET", "/data-centric/jobs", token=token, kind=list[JobInfo])
        return JobList(Job(self, info, None, user) for info in found)

    def job(self, job: str, model: torch.nn.Module | None = None, user: str | None = None) -> Job:
        """A job by its id, as after a kernel was started again; `model` is what `result()` fills. Raises
        ObjectNotFoundError."""
        token = self._token_of(user)
        info: JobInfo = call(self.address, "GET", f"/data-centric/jobs/{job}", token=token, kind=JobInfo)
        return Job(self, info, model, user)


Place = tuple[Rows, str, tuple[int, ...]]
"""Where one input lies, and the dtype and shape that it has."""


def captured(module: torch.nn.Module, loss: Any, places: Mapping[str, Place], metrics: Any) -> Plan:
    """The plan of a module and its loss, for data of the form that lies there.

    Raises BadRequest, NotCapturableError, InvalidDataError for a model that does not take rows of this form.
    """
    if not {"x", "y"} <= places.keys():
        raise BadRequest("a job takes data={'x': …, 'y': …}; capture plans with other inputs by loss_plan")
    examples = example_of(places["x"]), example_of(places["y"])
    try:
        return loss_plan(module, loss, inputs=examples, metrics=metrics)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:  # torch's, of examples that are nobody's
        forms = " and ".join(f"{one.dtype} {['rows', *one.shape[1:]]}" for one in examples)
        said = str(error).partition("\n")[0]
        raise InvalidDataError(f"model and loss do not take the data, which is {forms}: {said}") from error


def check_moves(optimizer: Any, model: torch.nn.Module, trained: AbstractSet[str]) -> None:
    """Raises BadRequest where an optimiser of torch's has some of the parameters that would be trained, but not all."""
    left = sorted(trained - moved_by(optimizer, model)) if isinstance(optimizer, torch.optim.Optimizer) else []
    if left:
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        raise BadRequest(
            f"the optimiser does not have {plain(left[0])}{more}, which would be trained: "
            "what is to stay as it is needs no gradient; call requires_grad_(False) on it before the plan is made"
        )


def place_of(data: Any) -> Place:
    """Where a pointer to published data points. Raises BadRequest for anything else."""
    if isinstance(data, tuple) and len(data) == 2 and isinstance(data[0], RemoteTable):
        table, columns = data
        names = [columns] if isinstance(columns, str) else list(columns)
        refs = [_ref(table[name]) for name in names]
        tensors = tuple(one.tensor for one in refs)
        rows = Rows(dataset=table.dataset.id, version=table.dataset.version, tensors=tensors, columns=True)
        return rows, "float32", (table.shape[0], len(tensors))
    if isinstance(data, RemoteArrays) and not isinstance(data, RemoteTable) and len(data) == 1:
        return place_of(data[data.keys()[0]])
    ref = _ref(data)
    dataset: DatasetInfo = ref.dataset
    info = next(one for one in dataset.tensors if one.name == ref.tensor)
    return Rows(dataset=dataset.id, version=dataset.version, tensors=(info.name,)), info.dtype, info.shape


def _ref(data: Any) -> DatasetRef:
    if not isinstance(data, RemoteTensor) or not isinstance(data._ref, DatasetRef):
        raise BadRequest(
            "a job's data are pointers to what is published, as a search gives them: a tensor, a column without "
            "missing entries, or (table, [columns]); what was computed is published first"
        )
    return data._ref


def example_of(place: Place) -> torch.Tensor:
    """Rows of the same form, which are nobody's: what a plan is captured with."""
    _, dtype, shape = place
    if dtype == "float64":
        dtype = "float32"  # what a model has
    if DTYPES[dtype].is_floating_point:
        return torch.rand((_EXAMPLE_ROWS, *shape[1:]), dtype=DTYPES[dtype])
    return torch.zeros((_EXAMPLE_ROWS, *shape[1:]), dtype=DTYPES[dtype])


def _numbers(optimizer: Any) -> tuple[str, dict[str, float]]:
    """An optimiser as its name and its numbers. Raises NotCapturableError."""
    rule = optimiser_of(SGD() if optimizer is None else optimizer)
    if isinstance(rule, SGD):
        return "sgd", {
            "lr": rule.lr,
            "momentum": rule.momentum,
            "weight_decay": rule.weight_decay,
            "nesterov": float(rule.nesterov),
        }
    numbers = {"lr": rule.lr, "beta1": rule.betas[0], "beta2": rule.betas[1], "eps": rule.eps}
    return ("adamw" if rule.decoupled else "adam"), {**numbers, "weight_decay": rule.weight_decay}

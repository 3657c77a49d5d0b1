"""`FLClient` and `FLJob` of 0.2.9: one cycle of training by listeners, for who runs the plan by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from grid_jupyter.aggregation.diffs import FORMS, packed
from grid_jupyter.client.invitations import Invitations
from grid_jupyter.client.measuring import Told
from grid_jupyter.client.tensor_files import Array, arrays_of, read_arrays, write_arrays
from grid_jupyter.client.training_line import TrainingLine
from grid_jupyter.errors import BadRequest, GridError, InvalidDataError
from grid_jupyter.link.http import Address
from grid_jupyter.plans.plan import Plan, State

Listener = Callable[..., Any]


class FLClient:
    """A device of a Node that hosts models: `FLClient("ws://alice:5000", auth_token).new_job("mnist", "1.0")`."""

    def __init__(
        self,
        url: str,
        auth_token: str | None = None,
        verbose: bool = False,
        *,
        push_token: str | None = None,
        ca_file: str | Path | None = None,
    ) -> None:
        """`verbose` prints what happens. `push_token` is one of Firebase, by which the Node reaches this device."""
        self.address = Address(url, ca_file)
        self.auth_token = auth_token
        self.push_token = push_token
        self.verbose = verbose

    def new_job(self, model_name: str, model_version: str | None = None) -> FLJob:
        """One cycle of a model, to be started; without a version of its newest."""
        return FLJob(self, model_name, model_version)


class FLJob:
    """One cycle: `add_listener`, then `start()`, which asks for a place and calls the listener of what comes.

    In the listener of EVENT_ACCEPTED, `job.plans`, `job.model` and `job.client_config` are there, and
    `job.report(params)` hands in what was trained.
    """

    EVENT_ACCEPTED = "accepted"
    EVENT_REJECTED = "rejected"
    EVENT_ERROR = "error"

    def __init__(self, client: FLClient, model_name: str, model_version: str | None) -> None:
        self.model_name, self.model_version = model_name, model_version
        self.plans: dict[str, Plan] = {}
        self.client_config: dict[str, Any] = {}
        self.model: State = State()
        self.cycle: int | None = None
        self.diff_forms: tuple[str, ...] = FORMS[:1]
        self._client = client
        self._line = TrainingLine(client.address)
        self._listeners: dict[str, list[Listener]] = {}
        self._before: dict[str, Array] = {}
        self._place: tuple[str, str] | None = None

    def add_listener(self, event: str, listener: Listener) -> None:
        """Call `listener(job)` when the job is accepted, `listener(job, timeout)` when it is rejected (None: training
        is over), `listener(job, text)` for an error. Raises BadRequest for another event."""
        if event not in (self.EVENT_ACCEPTED, self.EVENT_REJECTED, self.EVENT_ERROR):
            raise BadRequest(f"a job has no event {event!r}, but accepted, rejected and error")
        self._listeners.setdefault(event, []).append(listener)

    def start(self, listen: bool = False) -> None:
        """Ask for a place; returns when the listeners have. With `listen` the job sleeps until the Node invites it, in
        place of being rejected with a timeout. Errors go to the listeners of EVENT_ERROR, and are raised
        where there is none; what listeners raise is raised."""
        try:
            answer = self._ask(listen)
        except GridError as error:
            self._say(f"error: {error}")
            if not self._listeners.get(self.EVENT_ERROR):
                raise
            self._tell(self.EVENT_ERROR, str(error))
            return
        finally:
            self._line.close()
        if answer["status"] == "accepted":
            self._say(f"accepted for cycle {self.cycle}")
            self._tell(self.EVENT_ACCEPTED)
        else:
            self._say(f"rejected: {answer.get('reason', '')}")
            self._tell(self.EVENT_REJECTED, answer.get("timeout"))

    def report(
        self, updated_params: Iterable[Tensor] | Mapping[str, Tensor], num_samples: int | None = None, *,
        metrics: Mapping[str, float] | None = None, diff: str | None = None,
    ) -> None:  # fmt: skip
        """Hand in trained parameters, in the order of `job.model`, or by name; what is sent is original − trained.
        `metrics` are told along with it, as measured on these samples. `diff` is the form in which it is sent:
        "float32", "float16" or "int8", of those that the Node takes; without it the first of them. "topk" keeps a rest
        for the next cycle, which a job has not: Device.participate does it.

        Raises BadRequest before a place was given, and for a form that is not taken; InvalidDataError for other
        tensors, Conflict for a late report.
        """
        if self._place is None:
            raise BadRequest("there is no place to report for: start() the job, and report when it is accepted")
        if not isinstance(updated_params, Mapping):
            updated = list(updated_params)
            if len(updated) != len(self._before):
                raise InvalidDataError(f"the model has {len(self._before)} tensors, and {len(updated)} are reported")
            updated_params = dict(zip(self._before, updated, strict=True))
        trained = arrays_of(updated_params)
        if trained.keys() != self._before.keys():
            raise InvalidDataError(f"the model's tensors are {', '.join(self._before)}; report all of them")
        kind = diff or next((form for form in self.diff_forms if form != "topk"), "topk")
        if kind == "topk" or kind not in self.diff_forms:
            raise BadRequest(f"a job sends no diff as {kind}; this training takes {', '.join(self.diff_forms)}")
        arrays = {name: numpy.subtract(array, trained[name]) for name, array in self._before.items()}
        sent = write_arrays(packed(arrays, kind, numpy.random.default_rng()))
        try:
            told = Told(dict(metrics or {}), num_samples or 1)
            self._line.report(*self._place, sent, num_samples, zipped=False, told=told)
        finally:
            self._line.close()

    def _ask(self, listen: bool) -> dict[str, Any]:
        worker_id, measured = self._line.authenticate(
            self.model_name, self.model_version, self._client.auth_token, self._client.push_token
        )
        speeds = self._line.speeds(worker_id) if measured else {}
        if listen:
            with closing(Invitations(self._line, worker_id)) as invitations:
                answer = invitations.request(self.model_name, self.model_version, speeds)
        else:
            answer = self._line.cycle_request(worker_id, self.model_name, self.model_version, speeds, wait_s=0)
        if answer["status"] == "accepted":
            key = str(answer["request_key"])
            fetched = self._line.get_model(worker_id, key, answer["model_id"], answer["model_sha256"])
            self._before = read_arrays(fetched)
            self.model = State(torch.from_numpy(array.copy()) for array in self._before.values())
            self.plans = {
                name: Plan.from_bytes(self._line.get_plan(worker_id, key, number))
                for name, number in answer["plans"].items()
            }
            self.client_config, self.cycle = answer["client_config"], int(answer["cycle_id"])
            self._place = worker_id, key
            self.diff_forms = tuple(answer.get("diff_forms", FORMS[:1]))
        return answer

    def _tell(self, event: str, *facts: Any) -> None:
        for listener in self._listeners.get(event, []):
            listener(self, *facts)

    def _say(self, text: str) -> None:
        if self._client.verbose:
            print(f"{self.model_name}: {text}")

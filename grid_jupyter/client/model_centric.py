"""The client of a Node that hosts models: `ModelCentricFLClient` hosts, follows and retrieves. No torch is needed."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import msgspec

from grid_jupyter.aggregation.strategies import Strategy, numbered
from grid_jupyter.client.credentials import Credentials
from grid_jupyter.client.listings import Stands
from grid_jupyter.client.metrics import ReadsMetrics, told_of
from grid_jupyter.client.tensor_files import Array, arrays_of, read_arrays, write_arrays
from grid_jupyter.client.training_line import MODEL_TRIES, OTHER_MODEL
from grid_jupyter.errors import BadRequest, NodeUnavailableError, ResponseSignatureError
from grid_jupyter.link.bulk import of_memory, upload
from grid_jupyter.link.http import Address, call, fetch
from grid_jupyter.tensors.text import plain

if TYPE_CHECKING:
    from grid_jupyter.plans.plan import Plan, State

_WAIT_S = 30


class ModelCentricFLClient(ReadsMetrics):
    """A connection to a Node: `ModelCentricFLClient("me", "alice:5000")`, the address without a scheme as in 0.2.9.

    Hosting, following and retrieving need an account there: `user="Ann"` presents Ann's stored credential.
    """

    def __init__(
        self,
        id: str,  # noqa: A002
        address: str,
        secure: bool = False,
        *,
        user: str | None = None,
        ca_file: str | Path | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        """Raises NotAuthenticatedError where no credential of this user is stored."""
        self.id = id
        self.address = Address(address if "//" in address else f"{'https' if secure else 'http'}://{address}", ca_file)
        self.node: str | None = None
        self._token = "" if user is None else (credentials or Credentials()).get(self.address.url, user)

    def connect(self) -> ModelCentricFLClient:
        """Find the Node and learn its name. Raises NodeUnavailableError."""
        answer: Any = call(self.address, "GET", "/data-centric/identity/")
        name = answer.get("identity") if isinstance(answer, dict) else None
        if not isinstance(name, str):
            raise NodeUnavailableError(f"{self.address.url} answers, but is no Node of a grid")
        self.node = name
        return self

    @property
    def connected(self) -> bool:
        """Whether the Node answered."""
        return self.node is not None

    def close(self) -> None:
        """Forget the Node."""
        self.node = None

    def host_federated_training(
        self,
        model: Any,
        client_plans: Mapping[str, Plan],
        client_protocols: Mapping[str, Any] | None = None,
        client_config: Mapping[str, Any] | None = None,
        server_averaging_plan: Plan | None = None,
        server_config: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Host a model that devices train from here on.

        `model` is a module, tensors by name, or a State. `client_config` names it (`name`, `version`) and tells
        devices what they need (`batch_size`, `lr`, `max_updates`); `server_config` says how cycles go
        (docs/protocol-model-centric.md), where `strategy` may be one of those of `grid.train`.
        `server_averaging_plan` makes the average diff instead: of (average, diff, number) with `iterative_plan`, else
        of a list of diffs, each a list of tensors in the model's order.

        Returns `{"status": "success", "advice": […]}`.

        Raises BadRequest, PlanInvalidError, InvalidDataError, Conflict where name and version are taken,
        SendNotPermittedError, NotAuthenticatedError.
        """
        if client_protocols:
            raise BadRequest("Nodes host no protocols: leave them out")
        data, key = write_arrays(arrays_of(model)), secrets.token_hex(16)
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        path = f"/model-centric/uploads/{key}"
        upload(self.address, path, "", of_memory(b"", memoryview(data)), len(data), headers, "hosting")
        body: dict[str, Any] = {
            "model": key,
            "plans": {name: msgspec.Raw(plan.to_bytes()) for name, plan in client_plans.items()},
            "client_config": dict(client_config or {}),
            "server_config": _written(server_config or {}),
            **(
                {}
                if server_averaging_plan is None
                else {"averaging_plan": msgspec.Raw(server_averaging_plan.to_bytes())}
            ),
        }
        return dict(call(self.address, "POST", "/model-centric/host-training", body, token=self._token))

    host = host_federated_training

    def retrieve(self, name: str, version: str | None = None, checkpoint: int | str = "latest") -> dict[str, Array]:
        """A checkpoint's arrays by name: the latest, or number 1 (as hosted), 2, … Raises NotFound, and
        ResponseSignatureError where other bytes come than the Node says, again and again."""
        query = _query(name, version, checkpoint=checkpoint)
        for _ in range(MODEL_TRIES):
            told, data = fetch(self.address, f"/model-centric/retrieve-model?{query}", token=self._token)
            sha256 = {name.lower(): value for name, value in told.items()}.get("x-grid-sha256")
            if sha256 in (None, hashlib.sha256(data).hexdigest()):  # a Node of before tells none
                return {name: array.copy() for name, array in read_arrays(data).items()}
        raise ResponseSignatureError(OTHER_MODEL.format(self.address.url))

    def get_model(self, name: str, version: str | None = None, checkpoint: int | str = "latest") -> State:
        """A checkpoint's tensors as a State, in the order in which they were hosted. Raises NotFound."""
        import torch

        from grid_jupyter.plans.plan import State

        return State(torch.from_numpy(array) for array in self.retrieve(name, version, checkpoint).values())

    def end(self, name: str, version: str | None = None) -> dict[str, Any]:
        """End a training: devices are told that it is over, and its checkpoints stay. Reports of the cycle that is
        under way come to nothing. Returns how it stands.

        Raises NotFound, and Forbidden for who neither hosts it nor manages the Node.
        """
        body = {"name": name, **({} if version is None else {"version": version})}
        return dict(call(self.address, "POST", "/model-centric/end-training", body, token=self._token))

    def delete(self, name: str, version: str) -> None:
        """End a training and forget it, its checkpoints included. Raises as `end` does."""
        call(self.address, "DELETE", f"/model-centric/training?{_query(name, version)}", token=self._token)

    def status(self, name: str, version: str | None = None) -> dict[str, Any]:
        """How a training stands: its cycle, phase, reports, completed cycles. Raises NotFound."""
        return Stands(call(self.address, "GET", f"/model-centric/cycle?{_query(name, version)}", token=self._token))

    def follow(self, name: str, version: str | None = None) -> Iterator[dict[str, Any]]:
        """How a training stands, each time that more cycles are complete, until it is over. Raises NotFound.

        For who hosts it `metrics` has what devices measured in the last complete cycle, as means weighted by samples.
        """
        seen, reading = self.status(name, version), self._reading(name, version)
        yield {**seen, **told_of(reading, seen["completed"])}
        while seen["phase"] not in ("over", "failed"):
            query = _query(name, version, after=seen["completed"], wait_s=_WAIT_S)
            now: dict[str, Any] = dict(call(self.address, "GET", f"/model-centric/cycle?{query}", token=self._token))
            if now["completed"] > seen["completed"]:
                yield {**now, **told_of(reading, now["completed"])}
            seen = now

    def push(
        self,
        name: str,
        version: str | None = None,
        *,
        title: str = "",
        text: str = "",
        data: Mapping[str, str] | None = None,
        workers: Sequence[str] | None = None,
        key: str = "",
    ) -> int:
        """Say something to the devices of a training, or to some of them by their ids; to how many it goes.

        `title` and `text` are shown to people, `data` is for the app. Sent again with the same `key` it is one push.
        Raises Forbidden for who is no owner of the Node, NotFound, BadRequest, LimitExceededError beyond the quota.
        """
        body: dict[str, Any] = {"model": name, "version": version, "title": title, "text": text, "key": key}
        body |= {"data": dict(data or {}), "workers": None if workers is None else list(workers)}
        told: Any = call(self.address, "POST", "/model-centric/send_push_event", body, token=self._token)
        return int(told["devices"])

    def pushes(self) -> dict[str, Any]:
        """How notices to devices stand: waiting, sent, given_up and why. Raises Forbidden for who is no owner."""
        return dict(call(self.address, "GET", "/model-centric/send_push_event", token=self._token))

    def __repr__(self) -> str:
        where = f"{plain(self.node)} at {self.address.url}" if self.node else f"not connected to {self.address.url}"
        return f"<ModelCentricFLClient id:{plain(self.id)} {where}>"


def _written(config: Mapping[str, Any]) -> dict[str, Any]:
    """A server_config as it travels: a strategy by its name and numbers, its norm bound beside it."""
    strategy = config.get("strategy")
    if not isinstance(strategy, Strategy):
        return dict(config)
    bound = {} if strategy.max_norm is None else {"max_norm": strategy.max_norm}
    return {**bound, **config, "strategy": numbered(strategy)}


def _query(name: str, version: str | None, **more: Any) -> str:
    asked = {"name": name, **({} if version is None else {"version": version}), **more}
    return urlencode(asked)

"""The OpenAPI document of `<base_url>/grid/api/…`, and the door of the Jupyter server where it is."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import JupyterHandler
from tornado import web

from grid_jupyter.client.previews import Preview
from grid_jupyter.server.openapi import JSON, TEXT, Named, Operation, Surface, document
from grid_jupyter.server.panel_doors import PANEL_RULES, PanelDoor
from grid_jupyter.server.publish_doors import PUBLISH_RULES
from grid_jupyter.server.search_doors import SEARCH_RULES
from grid_jupyter.wire import answers, panel
from grid_jupyter.wire.jobs import JobInfo
from grid_jupyter.wire.messages import Edit, Unpublished
from grid_jupyter.wire.owner import FilePreview, FilePublish, NetworkSearch, NetworkView, OwnedDataset
from grid_jupyter.wire.requests import Approve, RequestInfo, Say
from grid_jupyter.wire.training import EndOrDelete

_Number = Annotated[int, msgspec.Meta(ge=0)]

OPERATIONS: dict[tuple[str, str], Operation] = {
    ("GET", "/grid/api/status"): Operation(
        told="How the Node is", answers={JSON: panel.ProcessStatus}, refused=(403,)
    ),
    ("POST", "/grid/api/node/{verb}"): Operation(
        told="Start, stop or restart the Node's process",
        answers={JSON: panel.ProcessStatus}, refused=(400, 403, 409, 503),
    ),
    ("GET", "/grid/api/datasets"): Operation(
        told="The data sets of the Node, newest first", answers={JSON: panel.Datasets}, refused=(403, 503)
    ),
    ("PATCH", "/grid/api/datasets/{dataset}"): Operation(
        told="Change tags, description, rules",
        bodies={JSON: Edit}, answers={JSON: OwnedDataset}, refused=(400, 403, 404, 413, 503),
    ),
    ("DELETE", "/grid/api/datasets/{dataset}"): Operation(
        told="Unpublish, and say what ended", answers={JSON: Unpublished}, refused=(403, 404, 503)
    ),
    ("POST", "/grid/api/preview"): Operation(
        told="Form and first rows of a file that Jupyter serves",
        bodies={JSON: FilePreview}, answers={JSON: Preview}, refused=(400, 403, 404, 413),
    ),
    ("POST", "/grid/api/publish"): Operation(
        told="Publish a file that Jupyter serves",
        bodies={JSON: FilePublish}, answers={JSON: OwnedDataset}, refused=(400, 403, 404, 409, 413, 503, 507),
    ),
    ("GET", "/grid/api/network"): Operation(
        told="A Network: who is there, which tags are public, as whom one can search",
        query=(Named("network", "its address; the one that the Node joined without it"),),
        answers={JSON: NetworkView}, refused=(403,),
    ),
    ("POST", "/grid/api/network/search"): Operation(
        told="Data sets with all of these tags, Node by Node",
        bodies={JSON: NetworkSearch}, answers={JSON: panel.Found}, refused=(400, 401, 403, 404, 413, 503),
    ),
    ("GET", "/grid/api/requests"): Operation(
        told="Requests to decide on",
        query=(Named("state", "those in a state; the open ones without it"),),
        answers={JSON: panel.Requests}, refused=(400, 403, 503),
    ),
    ("POST", "/grid/api/requests/{request}/{verb}"): Operation(
        told="Decide: approve (Approve), deny or ask (Say), revoke (no body)",
        bodies={JSON: (Approve, Say)}, optional=True, answers={JSON: RequestInfo},
        refused=(400, 403, 404, 409, 413, 503, 507),
    ),
    ("GET", "/grid/api/jobs"): Operation(
        told="The jobs of the Node, newest first", answers={JSON: panel.Jobs}, refused=(403, 503)
    ),
    ("DELETE", "/grid/api/jobs/{job}"): Operation(
        told="Cancel a job, or delete its result", answers={JSON: JobInfo}, refused=(403, 404, 503)
    ),
    ("GET", "/grid/api/trainings"): Operation(
        told="The trainings of the Node, oldest first", answers={JSON: panel.Trainings}, refused=(403, 503)
    ),
    ("POST", "/grid/api/trainings"): Operation(
        told="End a training, or delete it",
        bodies={JSON: EndOrDelete}, answers={JSON: (answers.Ended, answers.Done)}, refused=(400, 403, 404, 413, 503),
    ),
    ("GET", "/grid/api/trainings/metrics"): Operation(
        told="What devices measured in a training",
        query=(
            Named("name", "of the model", required=True), Named("version", "the newest without it"),
            Named("after", "`next` of the answer before", _Number),
        ),
        answers={JSON: answers.MetricsPage}, refused=(400, 403, 404, 503),
    ),
    ("GET", "/grid/api/metrics"): Operation(
        told="Metrics of the Node, as Prometheus reads them", answers={TEXT: str}, refused=(403, 503)
    ),
    ("GET", "/grid/api/events"): Operation(
        told="A WebSocket. From the server text messages as Event: the first at once, then whenever the Node or its "
        "process changes",
        status=101, refused=(403,),
    ),
    ("GET", "/grid/api/openapi.json"): Operation(
        told="This document", answers={JSON: dict[str, Any]}, refused=(403,)
    ),
}  # fmt: skip
"""What each route takes and answers; which routes there are, the doors say."""

SCHEMES = {
    "token": {"type": "apiKey", "in": "header", "name": "Authorization", "description": "`token TOKEN`, of Jupyter"},
    "cookie": {"type": "apiKey", "in": "cookie", "name": "_xsrf",
               "description": "Jupyter's own cookies, with the header X-XSRFToken"},
}  # fmt: skip
TOLD = """\
What the JupyterLab panel and the widgets ask of a notebook server's Node; for whoever may use this Jupyter server, \
who is the Node's owner. Nobody else is answered (403). What the Node refuses is told with `error` and `code`, what \
Jupyter refuses with `reason`; `message` is always there. While no Node runs, most routes answer 503.
"""


class PanelOpenApi(PanelDoor):
    """GET <base_url>/grid/api/openapi.json: all of these routes as an OpenAPI document."""

    @web.authenticated
    @authorized
    async def get(self) -> None:
        self.tell({**panel_document(), "servers": [{"url": self.base_url}]})


API_RULES: list[tuple[str, type[JupyterHandler]]] = [(r"grid/api/openapi.json", PanelOpenApi)]
GRID_API_RULES = [*PANEL_RULES, *PUBLISH_RULES, *SEARCH_RULES, *API_RULES]


def panel_document() -> dict[str, Any]:
    """The document. Paths are below the Jupyter server's base_url."""
    return document(
        Surface(
            title="The grid, for the owner of a notebook server",
            told=TOLD,
            rules=GRID_API_RULES,
            operations=OPERATIONS,
            failed=panel.Refusal,
            schemes=SCHEMES,
            is_open=lambda door, method: False,
            beside=(panel.Event,),
        )
    )

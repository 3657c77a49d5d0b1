"""The OpenAPI document of model-centric training, and the Node's door where it is."""

from __future__ import annotations

import functools
from typing import Annotated, Any, Literal

import msgspec
from tornado.web import RequestHandler

from grid_jupyter.cycles.terms import KNOWN, Terms
from grid_jupyter.server.door import Door
from grid_jupyter.server.metrics_doors import METRICS_RULES
from grid_jupyter.server.openapi import BYTES, JSON, Named, Operation, Surface, document
from grid_jupyter.server.push_doors import PUSH_RULES
from grid_jupyter.server.report_doors import REPORT_RULES
from grid_jupyter.server.training_doors import TRAINING_RULES, TrainingDoor
from grid_jupyter.wire import answers
from grid_jupyter.wire.metrics import MetricsReport, UploadStats
from grid_jupyter.wire.places import WITH_MODEL
from grid_jupyter.wire.push import Listen, Notice, Received, SavePushToken, SendPush, WorkerStatus
from grid_jupyter.wire.training import Authenticate, CycleRequest, HostTraining, NextPlace, Report, Samples, Which

_Number = Annotated[int, msgspec.Meta(ge=0)]

WORKER = Named("worker_id", "of authenticate", required=True)
KEY = Named("request_key", "of the cycle-request that was accepted", required=True)
NAME = Named("name", "of the model", required=True)
VERSION = Named("version", "of the model; the newest without it")
RANDOM = Named("random", "anything: it keeps caches out")
LENGTH = Named("Content-Length", "of the body, in bytes", _Number, required=True)
OFFSET = Named("Upload-Offset", "the byte of the body from which on this is", _Number, required=True)
HERE = (Named("Upload-Offset", "bytes that are here", _Number), Named("Upload-Complete", "?1: all of it; ?0"))
AFTER = Named("after", "`next` of the answer before", _Number)
MEASURED = (NAME, VERSION, AFTER, Named("format", "of the answer", Literal["json", "csv"]))
NEXT = Named("next", "NextPlace as JSON: what cycle-request would answer comes with this answer, as its `next`")
REPORTED = (
    WORKER, KEY,
    Named("num_samples", "rows that the diff rests on; 1 without it", Samples),
    Named("train_num_samples", "the same by its name of 0.2.9", Samples),
    Named("metrics", "a JSON object of numbers by name: what was measured"),
    Named("metrics_samples", "rows that this was measured on; num_samples without it", Samples),
    NEXT,
)  # fmt: skip
ENCODING = Named("Content-Encoding", "of the body: none, or gzip", Literal["gzip", "identity"])

OPERATIONS: dict[tuple[str, str], Operation] = {
    ("PUT", "/model-centric/uploads/{upload_id}"): Operation(
        told="Upload a model, a safetensors file; host-training then names the id, which the client chooses",
        headers=(LENGTH,), bodies={BYTES: None}, answers={JSON: answers.Uploaded},
        refused=(400, 401, 403, 409, 413, 507),
    ),
    ("HEAD", "/model-centric/uploads/{upload_id}"): Operation(
        told="How much of an upload is here", sent=HERE, refused=(401, 404)
    ),
    ("PATCH", "/model-centric/uploads/{upload_id}"): Operation(
        told="The rest of an upload that was cut",
        headers=(LENGTH, OFFSET), bodies={BYTES: None}, answers={JSON: answers.Uploaded},
        refused=(400, 401, 403, 404, 409, 413, 507),
    ),
    ("POST", "/model-centric/host-training"): Operation(
        told="Host a model that was uploaded, with its plans and configurations",
        bodies={JSON: HostTraining}, answers={JSON: answers.Hosted}, refused=(400, 401, 403, 409, 413, 507),
    ),
    ("POST", "/model-centric/authenticate"): Operation(
        told="A worker_id for a device",
        bodies={JSON: Authenticate}, answers={JSON: answers.Authenticated}, refused=(400, 401, 404, 413, 503),
    ),
    ("GET", "/model-centric/speed-test"): Operation(
        told="Nothing, for the ping, or 64 MiB, of which as much is read as is needed",
        query=(WORKER, RANDOM, Named("is_ping", "anything: the answer is empty")),
        answers={JSON: answers.Nothing, BYTES: None}, refused=(400, 401, 404),
    ),
    ("POST", "/model-centric/speed-test"): Operation(
        told="Takes up to 64 MiB",
        query=(WORKER, RANDOM), headers=(LENGTH,), bodies={BYTES: None}, answers={JSON: answers.Nothing},
        refused=(400, 401, 404, 413),
    ),
    ("POST", "/model-centric/cycle-request"): Operation(
        told="A place in the cycle, or when to ask again; without a timeout training is over",
        bodies={JSON: CycleRequest}, answers={JSON: (answers.Accepted, answers.Rejected), WITH_MODEL: None},
        refused=(400, 401, 404, 409, 413),
    ),
    ("GET", "/model-centric/get-model"): Operation(
        told="The checkpoint that this cycle trains, a safetensors file",
        query=(WORKER, KEY, Named("model_id", "of the accepted place", _Number, required=True)),
        answers={BYTES: None}, refused=(400, 401, 404, 409),
    ),
    ("GET", "/model-centric/get-plan"): Operation(
        told="A plan: its document, or the same as ONNX",
        query=(
            WORKER, KEY, Named("plan_id", "one of the accepted place's plans", _Number, required=True),
            Named("receive_operations_as", "the form: `list`, the document, also without it", Literal["list", "onnx"]),
        ),
        answers={BYTES: None}, refused=(400, 401, 404, 409, 501),
    ),
    ("GET", "/model-centric/get-protocol"): Operation(
        told="This Node hosts no protocols: there is none to fetch",
        query=(WORKER, KEY, Named("protocol_id", "any", _Number, required=True)), refused=(400, 401, 404, 409),
    ),
    ("GET", "/model-centric/req-join"): Operation(
        told="What a device that came now would be told; nothing is promised",
        query=(Named("model_name", "the model", required=True), Named("model_version", "the newest without it")),
        answers={JSON: (answers.Welcome, answers.Rejected)}, refused=(400, 401, 404),
    ),
    ("POST", "/model-centric/report"): Operation(
        told="A diff (original - trained), as a safetensors file, or in base64 within JSON. With 200 it counts, "
        "whatever happens to the Node",
        query=tuple(Named(one.name, f"{one.told} (of a report of bytes)", one.kind) for one in REPORTED),
        headers=(LENGTH, ENCODING), bodies={BYTES: None, JSON: Report},
        answers={JSON: answers.Counted, WITH_MODEL: None},
        refused=(400, 401, 404, 409, 413, 503, 507),
    ),
    ("HEAD", "/model-centric/report"): Operation(
        told="How much of a report is here; `Upload-Complete: ?1`: it counts already", query=(WORKER, KEY), sent=HERE,
        refused=(400, 401, 404, 409),
    ),
    ("PATCH", "/model-centric/report"): Operation(
        told="The rest of a report that was cut; answered as the POST would have been",
        query=(WORKER, KEY, NEXT), headers=(LENGTH, OFFSET), bodies={BYTES: None},
        answers={JSON: answers.Counted, WITH_MODEL: None},
        refused=(400, 401, 404, 409, 413, 503, 507),
    ),
    ("POST", "/model-centric/metrics"): Operation(
        told="What a device measured in its place",
        bodies={JSON: MetricsReport}, answers={JSON: answers.Done}, refused=(400, 401, 404, 409, 413),
    ),
    ("GET", "/model-centric/metrics"): Operation(
        told="What devices measured: for who hosts the model, and who has can_triage_requests",
        query=MEASURED, answers={JSON: answers.MetricsPage, "text/csv": str}, refused=(400, 401, 403, 404),
    ),
    ("POST", "/model-centric/upload_stats"): Operation(
        told="Metrics of places, as 0.2.9's fork tells them: all entries or none",
        bodies={JSON: UploadStats}, answers={JSON: answers.Told}, refused=(400, 401, 404, 409, 413),
    ),
    ("GET", "/model-centric/training-metrics"): Operation(
        told="As metrics, by the names of 0.2.9's fork",
        query=MEASURED, answers={JSON: answers.Stats, "text/csv": str}, refused=(400, 401, 403, 404),
    ),
    ("POST", "/model-centric/save-fcm-token"): Operation(
        told="A device can be reached by a push token",
        bodies={JSON: SavePushToken}, answers={JSON: answers.Told}, refused=(400, 401, 404, 409, 413),
    ),
    ("POST", "/model-centric/update-worker-status"): Operation(
        told="A device is there, and may be invited",
        bodies={JSON: WorkerStatus}, answers={JSON: answers.Done}, refused=(400, 401, 404, 409, 413),
    ),
    ("GET", "/model-centric/send_push_event"): Operation(
        told="How notices stand; for owners of the Node", answers={JSON: answers.Notices}, refused=(401, 403)
    ),
    ("POST", "/model-centric/send_push_event"): Operation(
        told="An owner's words to devices; for owners of the Node",
        bodies={JSON: SendPush}, answers={JSON: answers.Pushed}, refused=(400, 401, 403, 404, 413),
    ),
    ("GET", "/model-centric/retrieve-model"): Operation(
        told="A checkpoint, a safetensors file",
        query=(NAME, VERSION, Named("checkpoint", "`latest`, or a number; 1 is the model as it was hosted")),
        answers={BYTES: None}, refused=(400, 401, 404),
        sent=(Named("X-Grid-Checkpoint", "its number", _Number), Named("X-Grid-Sha256", "of the file, in hex")),
    ),
    ("GET", "/model-centric/cycle"): Operation(
        told="How a training stands",
        query=(
            NAME, VERSION, Named("after", "answer when more than so many cycles are complete", _Number),
            Named("wait_s", "how long to wait for that, at most 60 s", _Number),
        ),
        answers={JSON: answers.Standing}, refused=(400, 401, 404),
    ),
    ("POST", "/model-centric/end-training"): Operation(
        told="Training is over; its checkpoints stay",
        bodies={JSON: Which}, answers={JSON: answers.Ended}, refused=(400, 401, 403, 404, 413),
    ),
    ("DELETE", "/model-centric/training"): Operation(
        told="End a training and forget all of it",
        query=(NAME, Named("version", "of the model", required=True)), answers={JSON: answers.Done},
        refused=(400, 401, 403, 404),
    ),
    ("GET", "/model-centric/openapi.json"): Operation(told="This document", answers={JSON: dict[str, Any]}),
}  # fmt: skip
"""What each route takes and answers; which routes there are, the doors say."""

SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "A token of an account of this Node"},
    "token": {"type": "apiKey", "in": "header", "name": "token", "description": "The same, by 0.2.9's header"},
}
TOLD = """\
Training a model on devices whose data stays on them. `docs/protocol-model-centric.md` of grid_jupyter explains it: \
the steps of a device, what a server_config may say, the forms of a diff. Devices need no account; a `worker_id` and a \
`request_key` are secrets. An error is its status with `{"error", "code"}`, never a 200. Fields of a device's body \
that are not described are not read. An answer of the type `application/vnd.grid-jupyter.place` is the length of the \
JSON (8 bytes, little-endian), the JSON, and the safetensors file of the model; only who sends `inline_bytes` gets one.

The same goes over a WebSocket at the Node's address: text messages `{"type", "data", "request_id"?}`, each answered \
by `{"type", "data", "request_id"?}`; of an error, `data` is `Failed`. `data` has the schema of the route's body, and \
of its answer: `model-centric/host-training` (HostTraining → Hosted), `model-centric/authenticate` (Authenticate → \
Authenticated), `model-centric/cycle-request` (CycleRequest → Accepted or Rejected), `model-centric/report` (Report → \
Done), `model-centric/metrics` (MetricsReport → Done), `model-centric/upload_stats` (UploadStats → Told), \
`model-centric/save-fcm-token` (SavePushToken → Told), `model-centric/update-worker-status` (WorkerStatus → Done). \
There alone: `model-centric/listen` (Listen → Done), after which notices to that device come as `{"type": "push", \
"data": Notice}`, and `model-centric/notice-received` (Received → Done), by which each is acknowledged; `socket-ping` \
→ `{"alive": "True"}` and `get-id` → `{"id", "syft_version"}`, beside `type`. Messages are at most 8 MiB.
"""


class OpenApi(TrainingDoor):
    """GET: all of these routes as an OpenAPI document."""

    open_to_all = frozenset({"GET"})

    async def get(self) -> None:
        self.finish(_encoded())


API_RULES: list[tuple[str, type[Door]]] = [(r"/model-centric/openapi.json", OpenApi)]
MODEL_CENTRIC_RULES = [*REPORT_RULES, *TRAINING_RULES, *METRICS_RULES, *PUSH_RULES, *API_RULES]


def training_document() -> dict[str, Any]:
    """The document."""
    return document(
        Surface(
            title="Model-centric training on a Node of a grid",
            told=TOLD,
            rules=MODEL_CENTRIC_RULES,
            operations=OPERATIONS,
            failed=answers.Failed,
            schemes=SCHEMES,
            is_open=_is_open,
            beside=(Listen, Received, Notice, NextPlace),
            replaced={("HostTraining", "server_config"): _config()},
        )
    )


def _is_open(door: type[RequestHandler], method: str) -> bool:
    return issubclass(door, Door) and method in door.open_to_all


def _config() -> Any:
    """A server_config: Terms without what they come to; a key that is null is as if it were not there."""
    fields = {one.name: one for one in msgspec.structs.fields(Terms)}
    given = [(name, fields[name].type | None, None) for name in KNOWN]
    return msgspec.defstruct(
        "ServerConfig",
        given,
        namespace={"__doc__": "What each key does, the page on the protocol says. Null is as if it were not there."},
        forbid_unknown_fields=True,
        kw_only=True,
    )


@functools.cache
def _encoded() -> bytes:
    return msgspec.json.encode(training_document())

"""What can go wrong, as others see it: every exception with its code, HTTP status and remedy.

GridError                               grid-error                  500
├── BadRequest                          bad-request                 400
│   ├── InvalidMessageError             invalid-message             400
│   ├── InvalidDataError                invalid-data                400
│   ├── LimitExceededError              limit-exceeded              413
│   ├── NotRecordableError              not-recordable              400
│   ├── NotCapturableError              not-capturable              400
│   ├── PlanInvalidError                plan-invalid                400
│   ├── VersionMismatchError            version-mismatch            426
│   ├── CannotRequestObjectAttribute    cannot-request-attribute    400
│   ├── InvalidTensorForRemoteGet       not-a-pointer-chain         400
│   ├── PureFrameworkTensorFoundError   tensor-is-here              400
│   └── RemoteObjectFoundError          tensor-is-remote            400
├── NotAuthenticatedError               not-authenticated           401
├── TooManyAttemptsError                too-many-attempts           429
├── TooSlowError                        too-slow                    408
├── Forbidden                           forbidden                   403
│   ├── GetNotPermittedError            get-not-permitted           403
│   ├── SendNotPermittedError           send-not-permitted          403
│   ├── ComputeNotPermittedError        compute-not-permitted       403
│   └── OperationNotAllowedError        operation-not-allowed       403
├── NotFound                            not-found                   404
│   ├── ObjectNotFoundError             object-not-found            404
│   └── WorkerNotFoundException         worker-not-found            404
├── Conflict                            conflict                    409
│   └── IdNotUniqueError                id-not-unique               409
├── SessionLostError                    session-lost                410
├── RemoteOperationError                remote-operation            422
├── NodeUnavailableError                node-unavailable            503
│   └── OutcomeUnknownError             outcome-unknown             503
├── StorageFullError                    storage-full                507
├── TensorsNotCollocatedException       tensors-not-collocated      400
├── ResponseSignatureError              response-signature          502
├── DependencyError                     dependency-missing          501
├── TranslationUnavailableError         translation-unavailable     501
└── EmptyCryptoPrimitiveStoreError      crypto-store-empty          503

Three names of PySyft 0.2.9 are other names of these: CompressionNotFoundException (InvalidMessageError),
InvalidProtocolFileError (VersionMismatchError), PlanCommandUnknownError (OperationNotAllowedError).

An error crosses the wire as its code and its text (`to_wire`, `from_wire`): never a traceback,
never the text of an exception that is not in this tree.
"""

from __future__ import annotations

import traceback
from pathlib import Path

_PACKAGE = f"{Path(__file__).parent}/"
_MACHINERY = ("/site-packages/torch/", "/site-packages/IPython/")


class GridError(Exception):
    """Anything this package raises on purpose. `str(error)` says what happened and what to do."""

    code = "grid-error"
    status = 500
    value = 0
    """Id of the value whose computation failed, in the session that it belongs to; 0: it is none."""

    def to_wire(self) -> dict[str, str]:
        """The error as another party may see it."""
        return {"code": self.code, "error": str(self)}

    def _render_traceback_(self) -> list[str]:
        """What IPython shows: the caller's own lines and the text. What this package and torch did in between is in
        `error.__traceback__` for who wants it."""
        lines = []
        for frame in traceback.extract_tb(self.__traceback__):
            if not frame.filename.startswith(_PACKAGE) and not any(part in frame.filename for part in _MACHINERY):
                cell = "ipykernel_" in frame.filename or frame.filename.startswith("<ipython")
                where = "this notebook" if cell else frame.filename
                lines.append(f"{where}, line {frame.lineno}:\n    {frame.line}")
        return [*lines, "", f"{type(self).__name__}: {self}"]


class BadRequest(GridError):
    """The request cannot be understood or served as it stands."""

    code = "bad-request"
    status = 400


class InvalidMessageError(BadRequest):
    """A frame or message does not follow docs/protocol.md."""

    code = "invalid-message"


class InvalidDataError(BadRequest):
    """Data offered for publication is not what it claims to be."""

    code = "invalid-data"


class LimitExceededError(BadRequest):
    """Something is larger, longer or more than the limit that the text names."""

    code = "limit-exceeded"
    status = 413


class NotRecordableError(BadRequest):
    """A function cannot be recorded: it reads values, or does not do the same work at each call."""

    code = "not-recordable"


class NotCapturableError(BadRequest):
    """A function or model cannot become a plan; the text names the operation, or what differs from torch's result."""

    code = "not-capturable"


class PlanInvalidError(BadRequest):
    """A plan does not follow docs/plans.md, or would take more memory or work than is allowed."""

    code = "plan-invalid"


class VersionMismatchError(BadRequest):
    """Client and Node speak different protocol versions; the text says who must upgrade."""

    code = "version-mismatch"
    status = 426


class CannotRequestObjectAttribute(BadRequest):
    """A pointer to an attribute of a value was asked for the values: it only names them."""

    code = "cannot-request-attribute"


class InvalidTensorForRemoteGet(BadRequest):
    """remote_get() and mid_get() fetch through a chain of pointers, and this is none."""

    code = "not-a-pointer-chain"


class PureFrameworkTensorFoundError(BadRequest):
    """The tensor is here, in this process; the call is for one that is elsewhere."""

    code = "tensor-is-here"


class RemoteObjectFoundError(BadRequest):
    """The tensor is elsewhere; the call is for one in this process."""

    code = "tensor-is-remote"


class NotAuthenticatedError(GridError):
    """No credential, or one that does not count here."""

    code = "not-authenticated"
    status = 401


class TooManyAttemptsError(GridError):
    """Too many wrong credentials from one place; the text says how long to wait."""

    code = "too-many-attempts"
    status = 429


class TooSlowError(GridError):
    """A body came so slowly that the Node waits for it no longer."""

    code = "too-slow"
    status = 408


class Forbidden(GridError):
    """The caller is known and may not do this."""

    code = "forbidden"
    status = 403


class GetNotPermittedError(Forbidden):
    """The caller may compute on this value but may not read it."""

    code = "get-not-permitted"


class SendNotPermittedError(Forbidden):
    """The caller may not publish here."""

    code = "send-not-permitted"


class ComputeNotPermittedError(Forbidden):
    """The caller may not compute on this data set, or not on this Node."""

    code = "compute-not-permitted"


class OperationNotAllowedError(Forbidden):
    """The operation is not on the allow-list (docs/operations.md)."""

    code = "operation-not-allowed"


class NotFound(GridError):
    """There is no such thing here."""

    code = "not-found"
    status = 404


class ObjectNotFoundError(NotFound):
    """The remote value or data set does not exist, or no longer."""

    code = "object-not-found"


class WorkerNotFoundException(NotFound):
    """No worker of that name is known here."""

    code = "worker-not-found"


class Conflict(GridError):
    """The request contradicts what is already here."""

    code = "conflict"
    status = 409


class IdNotUniqueError(Conflict):
    """The name is taken."""

    code = "id-not-unique"


class SessionLostError(GridError):
    """The session's Worker ended, so the values computed in it are gone. Open the data again."""

    code = "session-lost"
    status = 410


class RemoteOperationError(GridError):
    """An operation failed where the tensor lives; raised at the next read of what depends on it."""

    code = "remote-operation"
    status = 422


class NodeUnavailableError(GridError):
    """The Node or Network does not answer."""

    code = "node-unavailable"
    status = 503


class OutcomeUnknownError(NodeUnavailableError):
    """The Node's database went away in the middle of a commit, and nobody knows whether that happened. What was asked
    for may be kept: look, or ask again."""

    code = "outcome-unknown"


class StorageFullError(GridError):
    """The disk of the Node is full; nothing was kept of the request."""

    code = "storage-full"
    status = 507


class TensorsNotCollocatedException(GridError):
    """One operation was given tensors that live in different places."""

    code = "tensors-not-collocated"
    status = 400


class ResponseSignatureError(GridError):
    """The answer does not have the form that the question asks for; the other side's version may differ."""

    code = "response-signature"
    status = 502


class DependencyError(GridError, ImportError):
    """Something that this name needs is not installed; the text says how to install it."""

    code = "dependency-missing"
    status = 501


class TranslationUnavailableError(GridError):
    """A plan cannot be put into the form that was asked for."""

    code = "translation-unavailable"
    status = 501


class EmptyCryptoPrimitiveStoreError(GridError):
    """The material for computing on secret shares is used up; ask the provider for more."""

    code = "crypto-store-empty"
    status = 503


CompressionNotFoundException = InvalidMessageError
InvalidProtocolFileError = VersionMismatchError
PlanCommandUnknownError = OperationNotAllowedError


def _tree(root: type[GridError]) -> dict[str, type[GridError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found.update(_tree(child))
    return found


BY_CODE = _tree(GridError)


def from_wire(code: object, text: object, value: int = 0) -> GridError:
    """The exception that another party reported; an unknown code becomes a plain GridError."""
    kind = BY_CODE.get(code if isinstance(code, str) else "", GridError)
    error = kind(text if isinstance(text, str) else "the other side reported an error without a text")
    error.value = value
    return error

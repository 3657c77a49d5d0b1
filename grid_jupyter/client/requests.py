"""Sign-off, on both sides: what a scientist asks for and waits for, what an owner decides on, what the log has."""

from __future__ import annotations

import html
import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, overload
from urllib.parse import quote

from grid_jupyter.client.request_text import lines, markup
from grid_jupyter.errors import BadRequest, ResponseSignatureError
from grid_jupyter.link.http import Address, call, fetch
from grid_jupyter.ops.raw import from_bytes
from grid_jupyter.tensors.private import PrivateTensor
from grid_jupyter.wire.requests import Approve, AuditEvent, AuditVerified, RequestInfo, Say

TENSOR_HEADER = "X-Grid-Tensor"
WAIT_S = (0.2, 5.0)
"""How often `wait` looks: at first, and at last, in seconds."""
_LOOK_S = 2.0
"""How often an owner's `requests(wait_s=…)` looks at last."""
_ROWS = 1_000


class Request:
    """A request for a value or a job: `request.state` and `print(request)` tell how it stands, as it is now.

    Its asker waits, answers and gets; its owners approve, deny, ask and revoke.
    """

    def __init__(self, place: SignOff, info: RequestInfo, user: str | None = None, pointer: Any = None) -> None:
        self._place = place
        self._info = info
        self._user = user
        self._pointer = pointer  # where nobody had to be asked

    @property
    def id(self) -> int:
        """The request's number on its Node; 0 where nobody had to be asked."""
        return self._info.id

    @property
    def info(self) -> RequestInfo:
        """All that the Node says of it, asked anew."""
        if self.id:
            self._info = self._ask("GET", "")
        return self._info

    @property
    def state(self) -> str:
        """waiting, question, approved, denied, expired, revoked, withdrawn or used; granted where nobody is asked."""
        return self.info.state

    def _ask(self, method: str, verb: str, body: Any = None) -> RequestInfo:
        where = f"/data-centric/requests/{self.id}{verb}"
        place = self._place
        return call(place.address, method, where, body, token=place._token_of(self._user), kind=RequestInfo)

    def _do(self, verb: str, body: Any = None) -> Request:
        self._info = self._ask("POST", f"/{verb}", {} if body is None else body)
        return self

    # -------------------------------------------------------------- the asker

    def wait(self, timeout: float | None = None) -> str:
        """Wait until somebody decided or asks back, for so many seconds at most; the state then."""
        deadline = None if timeout is None else time.monotonic() + timeout
        pause, longest = WAIT_S
        while (state := self.state) == "waiting":
            left = longest if deadline is None else deadline - time.monotonic()
            if left <= 0:
                break
            time.sleep(min(pause, left))
            pause = min(2 * pause, longest)
        return state

    def get(self) -> Any:
        """The value that was approved, as it was when it was asked for. It can be fetched again until the approval
        ends, from any session of the asker.

        Raises GetNotPermittedError, which says how the request stands, or what the computation failed with.
        """
        if self._pointer is not None:
            return self._pointer.get(user=self._user)
        where = f"/data-centric/requests/{self.id}/value"
        headers, data = fetch(self._place.address, where, token=self._place._token_of(self._user))
        try:
            form = json.loads(headers.get(TENSOR_HEADER, ""))
            tensor = from_bytes(data, str(form["dtype"]), tuple(int(n) for n in form["shape"]))
            return PrivateTensor(tensor, tuple(form["readers"]))
        except (ValueError, KeyError, TypeError):
            raise ResponseSignatureError(
                "the Node answered with something else than a value; its version may differ"
            ) from None

    def answer(self, text: str) -> Request:
        """Answer the question that an owner asked."""
        return self._do("answer", Say(text=text))

    def withdraw(self) -> Request:
        """Ask for it no longer."""
        return self._do("withdraw")

    # -------------------------------------------------------------- the owner

    def approve(self, expires_s: float | None = None, *, review: bool = False) -> Request:
        """Let it go, for `expires_s` seconds (7 days). Of a job, `review` lets it run and asks again before its
        result goes. Raises Forbidden, Conflict for a request that is over."""
        return self._do("approve", Approve(expires_s=expires_s, review=review))

    def deny(self, reason: str) -> Request:
        """Refuse it; the asker reads the reason."""
        return self._do("deny", Say(text=reason))

    def ask(self, question: str) -> Request:
        """Ask the asker something before deciding."""
        return self._do("ask", Say(text=question))

    def revoke(self) -> Request:
        """Take an approval back, as long as nothing left by it."""
        return self._do("revoke")

    # -------------------------------------------------------------- as text

    def __repr__(self) -> str:
        return "\n".join(lines(self._info))

    def _repr_html_(self) -> str:
        return markup(self._info)


class Requests(Sequence[Request]):
    """Requests, newest first. Prints them with all that is to be known for a decision."""

    def __init__(self, found: list[Request], what: str) -> None:
        self._found = found
        self._what = what

    @overload
    def __getitem__(self, index: int) -> Request: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Request]: ...
    def __getitem__(self, index: Any) -> Any:
        try:
            return self._found[index]
        except IndexError:
            raise IndexError(f"there are {len(self)} {self._what}") from None

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._found)

    def __repr__(self) -> str:
        return "\n\n".join(map(repr, self._found)) or f"no {self._what}"

    def _repr_html_(self) -> str:
        return "".join(one._repr_html_() for one in self._found) or f"<pre>no {html.escape(self._what)}</pre>"


class SignOff:
    """What a Node's client does about requests, approvals and the audit log."""

    address: Address
    _token_of: Callable[[str | None], str]

    def requests(self, state: str = "", user: str | None = None, *, wait_s: float = 0.0) -> Requests:
        """Requests on which the caller decides: the open ones, or those in a state. Where there are none, wait so many
        seconds for the first."""
        path = "/data-centric/requests" + (f"?state={quote(state)}" if state else "")
        until = time.monotonic() + wait_s
        pause = WAIT_S[0]
        while True:
            found = self._requests(path, "requests to decide on", user)
            left = until - time.monotonic()
            if found or left <= 0:
                return found
            time.sleep(min(pause, left))
            pause = min(2 * pause, _LOOK_S)

    def approvals(self, user: str | None = None) -> Requests:
        """What was approved, and nothing left by it yet: it can be revoked."""
        return self._requests("/data-centric/requests?state=approved", "approvals", user)

    def my_requests(self, user: str | None = None) -> Requests:
        """What the caller asked for."""
        return self._requests("/data-centric/my-requests", "requests of yours", user)

    def request(self, number: int, user: str | None = None) -> Request:
        """One request by its number, for who asked and for who decides. Raises ObjectNotFoundError."""
        if number < 1:
            raise BadRequest("a request has a number from 1 on; node.my_requests() lists yours")
        where = f"/data-centric/requests/{number}"
        return Request(self, call(self.address, "GET", where, token=self._token_of(user), kind=RequestInfo), user)

    def asked(self, number: int, state: str, pointer: Any, user: str | None) -> Request:
        """The request that a pointer made; number 0 where its value may be read without."""
        if number:
            return self.request(number, user)
        granted = RequestInfo(
            id=0, kind="value", asker="", reason="", state=state, review=False, created=0.0, expires=0.0, data=(),
            decisions=(), dialogue=(),
        )  # fmt: skip
        return Request(self, granted, user, pointer)

    def audit(self, limit: int = 1000, user: str | None = None) -> Any:
        """The newest rows of the Node's audit log as a DataFrame, oldest first, for who may triage requests."""
        import pandas

        token = self._token_of(user)
        rows: list[AuditEvent] = []
        while len(rows) < limit:
            before = f"&before={rows[-1].number}" if rows else ""
            path = f"/data-centric/audit?limit={min(_ROWS, limit - len(rows))}{before}"
            found: list[AuditEvent] = call(self.address, "GET", path, token=token, kind=list[AuditEvent])
            if not found:
                break
            rows += found
        rows.reverse()
        return pandas.DataFrame(
            {
                "at": pandas.to_datetime([row.at for row in rows], unit="s", utc=True).round("ms"),
                "event": [row.event for row in rows],
                "actor": [row.actor for row in rows],
                "details": [row.details for row in rows],
                "hash": [row.hash for row in rows],
            },
            index=pandas.Index([row.number for row in rows], name="number"),
        )

    def verify_audit(self, user: str | None = None) -> AuditVerified:
        """Go through the chain of the audit log: `broken` is the first row that is not what was written, 0 if none."""
        return call(self.address, "GET", "/data-centric/audit/verify", token=self._token_of(user), kind=AuditVerified)

    def _requests(self, path: str, what: str, user: str | None) -> Requests:
        token = self._token_of(user)
        found: list[RequestInfo] = call(self.address, "GET", path, token=token, kind=list[RequestInfo])
        return Requests([Request(self, info, user) for info in found], what)

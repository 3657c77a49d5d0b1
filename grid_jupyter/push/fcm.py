"""Firebase Cloud Messaging, by pyfcm: HTTP v1 with a service account. Its calls block, so they run in threads.

pyfcm sleeps for as long as an answer's Retry-After says, and repeats a request whose token expired without end; here
an answer is told instead, and the outbox tries again. The account's key is read once and stays in this object alone.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import stat
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from grid_jupyter.errors import BadRequest, DependencyError
from grid_jupyter.push.notifier import SENT, Outcome, Outgoing

try:
    from google.auth.exceptions import GoogleAuthError
    from google.oauth2 import service_account
    from pyfcm import FCMNotification
    from pyfcm.errors import FCMError
    from requests import PreparedRequest, RequestException, Response
    from requests.adapters import HTTPAdapter
except ModuleNotFoundError as error:
    raise DependencyError(
        f"{error.name} is not installed, and push by Firebase needs it; pip install 'grid-jupyter[push]'"
    ) from None

SCOPE = "https://www.googleapis.com/auth/firebase.messaging"
TIMEOUT_S = 10.0
"""How long one request may wait for a connection, and for the next bytes."""
WHOLE_S = 60.0
"""How long sending one notice may take, a new access token included."""
THREADS = 8
"""Requests at once."""
BUSY_S = 60.0
"""How long Firebase is left alone after 429 without Retry-After, as it asks for."""
MAX_REST_S = 3_600.0
"""The longest that a Retry-After is obeyed: a number may have any length, and be infinite."""
MAX_FILE_BYTES = 64 << 10
_GOOD_S = 1_500.0
"""How old an access token may be that a thread begins to use: it is good for an hour, and used for half of one."""
_NEEDED = ("client_email", "private_key", "project_id", "token_uri")


class FcmNotifier:
    """A notifier: devices by the push tokens that they saved."""

    name = "fcm"

    def __init__(
        self,
        credentials_file: Path,
        *,
        endpoint: str | None = None,
        timeout_s: float = TIMEOUT_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`credentials_file` is the JSON key of a service account, which nobody but its owner may read. `endpoint` is
        where messages go in place of Firebase's own (`https://fcm.googleapis.com`).

        Raises BadRequest for a file that will not do.
        """
        logging.getLogger("google").setLevel(logging.WARNING)  # it would log requests with their credentials
        self._clock, self._timeout_s = clock, timeout_s
        self._credentials = _credentials(read_key(credentials_file), timeout_s)
        self._service = FCMNotification(credentials=self._credentials, adapter=_Adapter())
        if endpoint is not None:
            _check_url(endpoint, "--push-endpoint")
            self._service.FCM_END_POINT_BASE = f"{endpoint.rstrip('/')}/v1/projects"
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="grid-push")
        self._turn = asyncio.Semaphore(THREADS)
        self._rests_until = 0.0

    def reaches(self, outgoing: Outgoing) -> bool:
        return outgoing.token is not None

    async def send(self, outgoing: Outgoing) -> Outcome:
        async with self._turn:
            left = self._rests_until - self._clock()
            if left > 0:
                return Outcome("later", "Firebase asked to be left alone", left)
            sending = asyncio.get_running_loop().run_in_executor(self._threads, self._send, outgoing)
            try:
                outcome = await asyncio.wait_for(sending, WHOLE_S)
            except asyncio.TimeoutError:
                return Outcome("again", "Firebase did not answer in time")
        if outcome.state == "again" and outcome.after_s:
            self._rests_until = max(self._rests_until, self._clock() + outcome.after_s)
        return outcome

    def _send(self, outgoing: Outgoing) -> Outcome:
        try:
            self._service.notify(fcm_token=outgoing.token, timeout=self._timeout_s, **self._message(outgoing))
        except _Answered as answer:
            if answer.status == 401:
                self._credentials.forget()
                self._service.thread_local.token_expiry = 0  # pyfcm keeps it for half an hour, in each thread
            return answer.outcome()
        except (FCMError, GoogleAuthError) as error:  # it got no access token
            cause = error.args[0] if error.args and isinstance(error.args[0], Exception) else error
            return Outcome("again", f"no access token: {type(cause).__name__}")
        except (RequestException, ValueError) as error:  # ValueError: an answer that is no JSON
            return Outcome("again", type(error).__name__)
        return SENT

    def _message(self, outgoing: Outgoing) -> dict[str, Any]:
        notice = outgoing.notice
        lives_s = max(0, int(outgoing.expires - self._clock()))
        apns: dict[str, Any] = {"headers": {"apns-expiration": str(int(outgoing.expires))}}
        message: dict[str, Any] = {
            "data_payload": notice.texts(),
            "android_config": {"priority": "high", "ttl": f"{lives_s}s"},
            "webpush_config": {"headers": {"TTL": str(lives_s)}},
            "apns_config": apns,
        }
        if notice.title or notice.text:  # for people; all others wake an app
            return {**message, "notification_title": notice.title, "notification_body": notice.text}
        apns["headers"] |= {"apns-priority": "5", "apns-push-type": "background"}
        apns["payload"] = {"aps": {"content-available": 1}}
        return message

    def close(self) -> None:
        """Begin nothing more; what is on its way may end."""
        self._threads.shutdown(wait=False, cancel_futures=True)


# ------------------------------------------------------------------ what Firebase answers


class _Answered(Exception):
    """Anything but 200. What it says of the request is not kept: a token may be in it."""

    def __init__(self, status: int, code: str, after_s: float) -> None:
        super().__init__(status)
        self.status, self.code, self.after_s = status, code, after_s

    def outcome(self) -> Outcome:
        said = f"Firebase answered {self.status} {self.code}".rstrip()
        if self.status == 404 and self.code == "UNREGISTERED":
            return Outcome("token-gone", said)
        if self.status == 429:
            return Outcome("again", said, self.after_s or BUSY_S)
        if self.status == 401 or self.status >= 500:
            return Outcome("again", said, self.after_s)
        return Outcome("refused", said)


class _Adapter(HTTPAdapter):
    """Raises what is not 200, a redirection included: the access token goes to nobody else."""

    def send(self, request: PreparedRequest, *args: Any, **kwargs: Any) -> Response:
        response = super().send(request, *args, **kwargs)
        after_s = _after_s(response.headers.pop("Retry-After", None))
        if response.status_code == 200:
            return response
        raise _Answered(response.status_code, _code(response), after_s)


def _after_s(told: str | None) -> float:
    """Seconds that a Retry-After asks for: a number, or a date."""
    if not told:
        return 0.0
    if told.strip().isascii() and told.strip().isdigit():
        return min(MAX_REST_S, float(told))
    try:
        return min(MAX_REST_S, max(0.0, parsedate_to_datetime(told).timestamp() - time.time()))
    except (ValueError, OverflowError):
        return 0.0


def _code(response: Response) -> str:
    """Firebase's own code of an error, or Google's status."""
    try:
        said = response.json()["error"]
        codes = [one.get("errorCode") for one in said.get("details", ()) if isinstance(one, dict)]
        code = next((one for one in codes if isinstance(one, str)), said.get("status"))
    except (ValueError, KeyError, TypeError, AttributeError, RequestException):
        return ""
    return code if isinstance(code, str) and code.replace("_", "").isalnum() and len(code) < 64 else ""


# ------------------------------------------------------------------ the service account


def read_key(path: Path) -> dict[str, Any]:
    """The JSON key of a service account. Raises BadRequest where it cannot be read, others than its owner can read it,
    or it is none; the text has nothing of what it says."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise BadRequest(f"--push-credentials: {path} cannot be read ({error.strerror})") from None
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise BadRequest(f"--push-credentials: {path} is no file")
        if stat.S_IMODE(found.st_mode) & 0o077:
            raise BadRequest(f"--push-credentials: others can read {path}, which is a secret; chmod 600 it")
        raw = os.read(descriptor, MAX_FILE_BYTES + 1)
    finally:
        os.close(descriptor)
    try:
        key = json.loads(raw) if len(raw) <= MAX_FILE_BYTES else None
    except (ValueError, RecursionError):
        key = None
    if not isinstance(key, dict) or key.get("type") != "service_account":
        raise BadRequest(f"--push-credentials: {path} is no key of a service account, as Firebase's console gives one")
    missing = [name for name in _NEEDED if not isinstance(key.get(name), str) or not key[name]]
    if missing:
        raise BadRequest(f"--push-credentials: the key in {path} has no {', '.join(missing)}")
    _check_url(key["token_uri"], "--push-credentials: token_uri")
    return key


def _check_url(url: str, what: str) -> None:
    """Secrets go to https:// alone, or stay on this machine. Raises BadRequest."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        raise BadRequest(f"{what} is not an address") from None
    if not host or not (parts.scheme == "https" or (parts.scheme == "http" and _is_here(host))):
        raise BadRequest(f"{what} is an https:// address, or one of this machine")


def _is_here(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _credentials(key: dict[str, Any], timeout_s: float) -> _Credentials:
    try:
        made: _Credentials = _Credentials.from_service_account_info(key, scopes=[SCOPE])  # type: ignore[no-untyped-call]
    except (ValueError, TypeError, GoogleAuthError):
        raise BadRequest("--push-credentials: private_key is no RSA key in PEM form") from None
    made.timeout_s = timeout_s
    return made


class _Credentials(service_account.Credentials):
    """An access token for all threads, fetched when it is needed, within a bounded time."""

    timeout_s = TIMEOUT_S
    _one = threading.Lock()
    _fetched = -math.inf

    def refresh(self, request: Any) -> None:
        """Fetch one, unless there is one that is good for as long as pyfcm keeps it. Raises GoogleAuthError."""
        with self._one:
            now = time.monotonic()
            if not self.valid or now - self._fetched > _GOOD_S:
                super().refresh(partial(request, timeout=self.timeout_s))  # type: ignore[no-untyped-call]
                self._fetched = now

    def forget(self) -> None:
        """Firebase does not take the access token any more."""
        self._fetched = -math.inf

"""Push by Firebase: pyfcm against a server on this machine that checks what is signed, and answers as Google does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cycle_world import world
from fcm_server import FcmServer, fcm_server, said

from grid_jupyter.errors import BadRequest
from grid_jupyter.push.fcm import FcmNotifier, read_key
from grid_jupyter.push.notifier import SENT, Outcome, Outgoing
from grid_jupyter.wire.push import Notice, SavePushToken

PHONE = "phone-1"


@pytest.fixture
def google(monkeypatch: pytest.MonkeyPatch) -> Iterator[FcmServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with fcm_server() as made:
        yield made


def outgoing(token: str = PHONE, **facts: Any) -> Outgoing:
    told = {"type": "request_for_cycle", "cycle_id": 3, **facts}
    notice = Notice(id=7, worker_id="w", model="m", version="1.0", **told)
    return Outgoing(notice=notice, device=1, token=token, listens=False, attempts=0, expires=time.time() + 100)


def run(google: FcmServer, state: Path, work: Callable[[FcmNotifier], Awaitable[Any]], **options: Any) -> Any:
    async def whole() -> Any:
        made = FcmNotifier(google.key(state / "key.json"), endpoint=google.url, **options)
        try:
            return await work(made)
        finally:
            made.close()

    return asyncio.run(whole())


def test_a_notice_goes_as_data_by_an_access_token_for_an_assertion_that_the_account_signed(
    google: FcmServer, tmp_path: Path
):
    async def work(fcm: FcmNotifier) -> list[Outcome]:
        return [await fcm.send(outgoing()) for _ in range(3)]

    assert run(google, tmp_path, work) == [SENT] * 3
    assert google.wrong == []
    assert google.asked == 1  # the access token is used as long as it holds
    message = google.messages[0]
    assert message["token"] == "phone-1"
    assert message["data"] == {
        "id": "7", "type": "request_for_cycle", "worker_id": "w", "model": "m", "version": "1.0", "cycle_id": "3",
    }  # fmt: skip
    assert "notification" not in message
    assert message["android"]["priority"] == "high"
    assert 90 <= int(message["android"]["ttl"].removesuffix("s")) <= 100


def test_an_owners_words_are_shown_to_people(google: FcmServer, tmp_path: Path):
    async def work(fcm: FcmNotifier) -> Outcome:
        return await fcm.send(outgoing(type="message", cycle_id=None, title="Hello", text="you", data={"k": "v"}))

    assert run(google, tmp_path, work) == SENT
    assert google.messages[0]["notification"] == {"title": "Hello", "body": "you"}
    assert google.messages[0]["data"]["data.k"] == "v"


@pytest.mark.parametrize(
    ("answer", "state", "reason"),
    [
        ((404, {}, said(404, "NOT_FOUND", "UNREGISTERED")), "token-gone", "404 UNREGISTERED"),
        ((404, {}, said(404, "NOT_FOUND")), "refused", "404 NOT_FOUND"),
        ((404, {}, b"<html>"), "refused", "Firebase answered 404"),
        ((400, {}, said(400, "INVALID_ARGUMENT", "INVALID_ARGUMENT")), "refused", "400 INVALID_ARGUMENT"),
        ((403, {}, said(403, "PERMISSION_DENIED", "SENDER_ID_MISMATCH")), "refused", "403 SENDER_ID_MISMATCH"),
        ((401, {}, said(401, "UNAUTHENTICATED")), "again", "401 UNAUTHENTICATED"),
        ((500, {}, said(500, "INTERNAL", "INTERNAL")), "again", "500 INTERNAL"),
        ((307, {"Location": "http://127.0.0.1:9/elsewhere"}, b""), "refused", "Firebase answered 307"),
        ((200, {}, b"no JSON"), "again", "JSONDecodeError"),
    ],
)
def test_what_firebase_answers_is_told_and_only_an_unregistered_token_is_gone(
    google: FcmServer, tmp_path: Path, answer: Any, state: str, reason: str
):
    google.answers["phone-1"] = [answer]

    async def work(fcm: FcmNotifier) -> Outcome:
        return await fcm.send(outgoing())

    outcome = run(google, tmp_path, work)
    assert outcome.state == state
    assert reason in outcome.reason
    assert "may be named" not in outcome.reason


@pytest.mark.parametrize(
    ("status", "header", "least", "most"),
    [(429, "7", 7, 7), (503, "120", 120, 120), (503, "date", 25, 30), (429, None, 60, 60), (503, None, 0, 0),
     (503, "soon", 0, 0)],
)  # fmt: skip
def test_retry_after_is_obeyed_for_all_notices_and_no_thread_sleeps_over_it(
    google: FcmServer, tmp_path: Path, status: int, header: str | None, least: float, most: float
):
    told = formatdate(time.time() + 30, usegmt=True) if header == "date" else header
    google.answers["phone-1"] = [(status, {} if told is None else {"Retry-After": told}, said(status, "BUSY"))]

    async def work(fcm: FcmNotifier) -> tuple[Outcome, Outcome]:
        began = time.monotonic()
        first, second = await fcm.send(outgoing()), await fcm.send(outgoing("phone-2"))
        assert time.monotonic() - began < 5
        return first, second

    first, second = run(google, tmp_path, work)
    assert first.state == "again"
    assert least - 1 <= first.after_s <= most
    assert second.state == ("later" if least else "sent")
    assert len(google.messages) == (0 if least else 1)


def test_an_access_token_that_firebase_takes_no_more_is_fetched_anew(google: FcmServer, tmp_path: Path):
    google.answers["phone-1"] = [(401, {}, said(401, "UNAUTHENTICATED"))]

    async def work(fcm: FcmNotifier) -> list[str]:
        return [(await fcm.send(outgoing())).state for _ in range(3)]

    assert run(google, tmp_path, work) == ["again", "sent", "sent"]
    assert google.asked == 2


def test_an_answer_that_does_not_come_blocks_neither_the_loop_nor_the_notifier(google: FcmServer, tmp_path: Path):
    async def work(fcm: FcmNotifier) -> Outcome:
        google.slow.set()
        sending = asyncio.create_task(fcm.send(outgoing()))
        longest, last = 0.0, time.monotonic()
        while not sending.done():
            await asyncio.sleep(0.005)
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
        google.slow.clear()
        assert longest < 0.5
        return await sending

    outcome = run(google, tmp_path, work, timeout_s=0.3)
    assert outcome.state == "again"


def test_a_key_of_another_account_gets_no_access_token_and_the_text_has_nothing_of_it(
    google: FcmServer, tmp_path: Path
):
    async def work(fcm: FcmNotifier) -> Outcome:
        google.private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        return await fcm.send(outgoing())

    outcome = run(google, tmp_path, work)
    assert (outcome.state, outcome.reason) == ("again", "no access token: RefreshError")
    assert len(google.wrong) == 1


def test_a_file_that_is_no_key_or_that_others_can_read_is_refused_without_its_content(
    google: FcmServer, tmp_path: Path
):
    path = google.key(tmp_path / "key.json")
    read_key(path)
    for mode in (0o640, 0o604, 0o660):
        path.chmod(mode)
        with pytest.raises(BadRequest, match="others can read"):
            read_key(path)
    path.chmod(0o600)
    for changes, said_ in (
        ({"type": "authorized_user"}, "no key of a service account"),
        ({"private_key": None}, "has no private_key"),
        ({"project_id": ""}, "has no project_id"),
        ({"token_uri": "http://example.org/token"}, "https:// address"),
        ({"token_uri": "https://[/token"}, "not an address"),
    ):
        with pytest.raises(BadRequest, match=said_) as caught:
            read_key(google.key(path, **changes))
        assert "BEGIN" not in str(caught.value)
    for raw in (b"", b"[]", b"{", b"\xff", b" " * (65 << 10), b"[" * 10_000):
        path.write_bytes(raw)
        with pytest.raises(BadRequest, match="no key of a service account"):
            read_key(path)
    with pytest.raises(BadRequest, match="cannot be read"):
        read_key(tmp_path / "nowhere")
    with pytest.raises(BadRequest, match="is no file"):
        read_key(tmp_path)

    async def make(**changes: Any) -> None:
        key = google.key(path, **{name: value for name, value in changes.items() if name != "endpoint"})
        FcmNotifier(key, endpoint=changes.get("endpoint"))

    with pytest.raises(BadRequest, match="no RSA key"):
        asyncio.run(make(private_key="-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----"))
    with pytest.raises(BadRequest, match="--push-endpoint is an https"):
        asyncio.run(make(endpoint="http://example.org"))


def test_a_node_pushes_by_firebase_forgets_tokens_that_are_gone_and_keeps_no_secret(
    google: FcmServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    google.answers["gone-token"] = [(404, {}, said(404, "NOT_FOUND", "UNREGISTERED"))]
    google.answers["busy-token"] = [(503, {"Retry-After": "1"}, said(503, "UNAVAILABLE"))]
    state = tmp_path / "state"
    state.mkdir()

    async def work() -> None:
        fcm = FcmNotifier(google.key(tmp_path / "key.json"), endpoint=google.url)
        async with world(state, push=fcm) as here:
            await here.host(min_workers=3)
            for token in ("good-token", "gone-token", "busy-token"):
                told = SavePushToken(worker_id=await here.device(), fcm_device_token=token)
                await here.cycles.push.save_token(told)
            deadline = time.monotonic() + 15
            while (stands := await here.cycles.push.told())["sent"] < 2 or stands["given_up"] < 1:
                assert time.monotonic() < deadline, stands
                await asyncio.sleep(0.02)
            assert stands["push"] == "fcm"
            assert {one["reason"] for one in stands["newest_given_up"]} == {"Firebase answered 404 UNREGISTERED"}
            assert "token" not in str([one["reason"] for one in stands["newest_given_up"]])

    with caplog.at_level("DEBUG"):
        asyncio.run(work())
    assert sorted(message["token"] for message in google.messages) == ["busy-token", "good-token"]
    key = (tmp_path / "key.json").read_text()
    for secret in ("good-token", "gone-token", "busy-token", "access-1", "PRIVATE KEY", "assertion"):
        assert secret not in caplog.text
    stored = b"".join(path.read_bytes() for path in state.rglob("*") if path.is_file())
    assert b"PRIVATE KEY" not in stored
    assert b"access-1" not in stored
    assert b"gone-token" not in stored  # deleted values are overwritten
    assert "PRIVATE KEY" in key

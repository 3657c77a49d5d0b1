"""Requests over a real database: who decides, what holds for how long, what nobody gets."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from grid_jupyter.errors import (
    BadRequest,
    Conflict,
    Forbidden,
    GetNotPermittedError,
    LimitExceededError,
    ObjectNotFoundError,
)
from grid_jupyter.identity.accounts import Account
from grid_jupyter.node.audit import Audit
from grid_jupyter.node.policy import Rules
from grid_jupyter.node.requests import MAX_OPEN, Requests
from grid_jupyter.node.verdicts import JOB, VALUE, Asked, Verdict
from grid_jupyter.store.audit import AuditTable
from grid_jupyter.store.blobs import BlobStore
from grid_jupyter.store.database import Database, sqlite_url
from grid_jupyter.store.requests import RequestTable
from grid_jupyter.wire.messages import JobPolicy

run = asyncio.run
DAY_S = 86_400.0


def account(name: str, *flags: str) -> Account:
    return Account(1, name, "User", frozenset(flags), ())


ANA, EVE, BOB, BILL = account("Ana"), account("Eve"), account("Bob", "can_upload_data"), account("Bill")
OFFICER = account("Olga", "can_triage_requests")
BOBS, BILLS = Rules(1, "Bob", (), None), Rules(2, "Bill", (), None)


def value(*sources: Rules, **changes: Any) -> Asked:
    made = Asked(kind=VALUE, key="k", asker="Ana", binding="a" * 64, sources=sources or (BOBS,), reason="for a figure")
    return dataclasses.replace(made, **changes)


class World:
    def __init__(self, path: Path) -> None:
        self.path, self.now = path, 1000.0
        self.told: list[tuple[str, str, Verdict]] = []
        self.open()

    def open(self) -> None:
        self.database = Database(sqlite_url(self.path / "grid.db"))
        self.blobs = BlobStore(self.path / "blobs")
        self.audit = Audit(AuditTable(self.database), lambda: self.now)
        self.requests = Requests(RequestTable(self.database), self.audit, self.blobs, lambda: self.now)
        self.requests.on_decided(lambda *what: self.told.append(what))

    def restart(self) -> None:
        self.database.close()
        self.open()

    def decide(self, asked: Asked, **held: Any) -> Verdict:
        async def story() -> Verdict:
            verdict = await self.requests.decide(asked, **held)
            await self.audit.close()
            return verdict

        return run(story())

    def asks(self, asked: Asked) -> int:
        verdict = self.decide(asked)
        assert verdict.state == "waiting"
        return verdict.request

    def blob(self, data: bytes = b"1234") -> str:
        with self.blobs.begin("held") as upload:
            upload.write(data)
            return upload.commit().name

    def events(self) -> list[str]:
        run(self.audit.flush())
        return [row.event for row in reversed(run(self.audit.table.listed()))]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.database.close()


# ------------------------------------------------------------------ asking and deciding


def test_a_value_waits_until_its_owner_approves_and_is_good_once(world: World):
    asked = value()
    number = world.asks(asked)
    assert world.asks(asked) == number
    with pytest.raises(GetNotPermittedError, match="have not decided"):
        run(world.requests.use(number, "Ana"))
    run(world.requests.approve(BOB, number))
    assert world.decide(asked) == Verdict("granted", number)
    assert run(world.requests.use(number, "Ana")).binding == asked.binding
    with pytest.raises(GetNotPermittedError, match="is used"):
        run(world.requests.use(number, "Ana"))
    assert world.decide(asked).state == "used"
    assert world.events() == ["requested", "approved", "released-by-approval"]


def test_whoever_waits_is_told(world: World):
    number = world.asks(value())
    world.told.clear()
    run(world.requests.deny(BOB, number, "not this one"))
    assert world.told == [(VALUE, "k", Verdict("denied", number, "not this one"))]


def test_an_automatic_job_needs_nobody_and_is_in_the_log(world: World):
    said = dataclasses.replace(BOBS, jobs=JobPolicy(automatic=("Ana",), epoch_metrics=True))
    assert world.decide(value(said, kind=JOB, rows=1, steps=1)) == Verdict("granted", epoch_metrics=True)
    assert world.events() == ["granted-by-policy"]


def test_what_rests_on_data_of_two_owners_needs_both(world: World):
    number = world.asks(value(BOBS, BILLS))
    run(world.requests.approve(BOB, number))
    assert world.decide(value(BOBS, BILLS)).state == "waiting"
    run(world.requests.approve(BILL, number))
    assert world.decide(value(BOBS, BILLS)).granted


def test_one_owner_of_two_is_enough_to_deny(world: World):
    number = world.asks(value(BOBS, BILLS))
    run(world.requests.approve(BOB, number))
    run(world.requests.deny(BILL, number, "no"))
    assert world.decide(value(BOBS, BILLS)).state == "denied"


def test_an_officer_decides_in_place_of_all_owners(world: World):
    number = world.asks(value(BOBS, BILLS))
    run(world.requests.approve(OFFICER, number))
    assert world.decide(value(BOBS, BILLS)).granted


def test_a_question_is_asked_back_and_answered(world: World):
    number = world.asks(value())
    with pytest.raises(Conflict, match="nothing was asked"):
        run(world.requests.answer(ANA, number, "what?"))
    run(world.requests.ask(BOB, number, "which figure?"))
    assert world.decide(value()) == Verdict("question", number, "which figure?")
    with pytest.raises(ObjectNotFoundError):
        run(world.requests.answer(EVE, number, "mine"))
    run(world.requests.answer(ANA, number, "figure 3"))
    assert world.decide(value()).state == "waiting"
    found = run(world.requests.visible(BOB, number))
    assert [remark["text"] for remark in found.dialogue] == ["which figure?", "figure 3"]
    run(world.requests.approve(BOB, number))
    assert world.decide(value()).granted


def test_the_result_of_a_job_can_be_looked_at_first_and_a_value_cannot(world: World):
    number = world.asks(value(kind=JOB))
    run(world.requests.approve(BOB, number, review=True))
    assert world.decide(value(kind=JOB)).review
    other = world.asks(value(key="other"))
    with pytest.raises(BadRequest, match="only the result of a job"):
        run(world.requests.approve(BOB, other, review=True))


# ------------------------------------------------------------------ attacks


def test_a_changed_byte_asks_again_and_the_approval_of_before_is_void(world: World):
    first = world.asks(value())
    run(world.requests.approve(BOB, first))
    second = world.decide(value(binding="b" * 64))
    assert (second.state, second.request != first) == ("waiting", True)
    with pytest.raises(GetNotPermittedError, match="is revoked"):
        run(world.requests.use(first, "Ana"))
    assert world.decide(value()).state == "waiting"  # back again: it is asked anew, too


def test_a_further_owner_is_asked_although_the_others_approved(world: World):
    run(world.requests.approve(BOB, world.asks(value())))
    assert world.decide(value(BOBS, BILLS)).state == "waiting"


def test_nobody_approves_their_own_request_whatever_their_rights(world: World):
    number = world.asks(value(BOBS, BILLS, asker="Olga"))
    with pytest.raises(Forbidden, match="of their own"):
        run(world.requests.approve(OFFICER, number))
    number = world.asks(value(BOBS, BILLS, asker="Bob", key="bob's"))
    with pytest.raises(Forbidden, match="of their own"):
        run(world.requests.approve(BOB, number))


def test_a_stranger_can_neither_see_nor_decide_nor_take_up_a_request(world: World):
    number = world.asks(value())
    told = set()
    for attempt in (
        world.requests.approve(EVE, number),
        world.requests.approve(BILL, number),
        world.requests.deny(EVE, number, "no"),
        world.requests.ask(EVE, number, "why?"),
        world.requests.revoke(EVE, number),
        world.requests.withdraw(EVE, number),
        world.requests.visible(EVE, number),
        world.requests.approve(BOB, 10**30),
    ):
        with pytest.raises(ObjectNotFoundError) as refused:
            run(attempt)
        told.add(str(refused.value))
    assert len(told) == 1  # nor learn that it is there
    assert run(world.requests.to_decide(EVE)) == run(world.requests.mine(EVE)) == ()
    run(world.requests.approve(BOB, number))
    for thief in ("Eve", "Bob", ""):
        with pytest.raises(ObjectNotFoundError):
            run(world.requests.use(number, thief))
    with pytest.raises(Conflict, match="somebody else"):
        world.decide(value(asker="Eve"))


def test_an_approval_ends_with_its_time_and_what_was_held_goes(world: World):
    blob = world.blob()
    number = world.decide(value(), blob=blob, held={"nbytes": 4}).request
    run(world.requests.approve(BOB, number, expires_s=60))
    world.now += 61
    assert run(world.requests.visible(ANA, number)).state == "expired"  # whether or not a sweep came by
    with pytest.raises(GetNotPermittedError, match="is expired"):
        run(world.requests.use(number, "Ana"))
    assert world.decide(value()).state == "expired"
    assert not world.blobs.path(blob).exists()
    with pytest.raises(Conflict, match="is expired"):
        run(world.requests.approve(BOB, number))


def test_an_owner_who_never_answers_lets_a_request_expire(world: World):
    number = world.asks(value())
    world.told.clear()
    world.now += 31 * DAY_S
    run(world.requests.sweep())
    assert world.told == [(VALUE, "k", Verdict("expired", number))]


def test_a_revoked_approval_releases_nothing_and_a_used_one_cannot_be_revoked(world: World):
    blob = world.blob()
    number = world.decide(value(), blob=blob, held={"nbytes": 4}).request
    run(world.requests.approve(BOB, number))
    run(world.requests.revoke(BOB, number))
    with pytest.raises(GetNotPermittedError, match="is revoked"):
        run(world.requests.use(number, "Ana"))
    assert not world.blobs.path(blob).exists()
    with pytest.raises(Conflict):
        run(world.requests.approve(BOB, number))
    number = world.asks(value(key="second"))
    run(world.requests.approve(BOB, number))
    run(world.requests.use(number, "Ana"))
    with pytest.raises(Conflict, match="is used"):
        run(world.requests.revoke(BOB, number))


def test_of_two_who_take_up_an_approval_at_once_one_gets_it(world: World):
    number = world.asks(value())
    run(world.requests.approve(BOB, number))

    async def race() -> list[Any]:
        return await asyncio.gather(*(world.requests.use(number, "Ana") for _ in range(5)), return_exceptions=True)

    assert [type(one) for one in run(race())].count(GetNotPermittedError) == 4


def test_requests_of_one_user_are_limited_and_withdrawing_makes_room(world: World):
    numbers = [world.asks(value(key=f"{n}")) for n in range(MAX_OPEN)]
    with pytest.raises(LimitExceededError, match="withdraw some"):
        world.decide(value(key="one more"))
    world.asks(value(key="another's", asker="Eve"))
    run(world.requests.withdraw(ANA, numbers[0]))
    world.asks(value(key="one more"))


def test_a_job_that_is_over_closes_what_was_asked_for_it_and_the_log_says_so(world: World):
    waits, other = world.asks(value(kind=JOB, key="job")), world.asks(value(kind=JOB, key="another"))
    assert run(world.requests.open_keys(JOB)) == {"job", "another"}
    run(world.requests.close("job", "withdrawn", "Ana", "the job is cancelled"))
    assert [one.id for one in run(world.requests.to_decide(BOB))] == [other]
    assert run(world.requests.visible(BOB, waits)).dialogue[-1]["text"] == "the job is cancelled"
    assert world.told[-1] == (JOB, "job", Verdict("withdrawn", waits, "the job is cancelled"))
    with pytest.raises(Conflict, match="is withdrawn"):
        run(world.requests.approve(BOB, waits))
    with pytest.raises(GetNotPermittedError, match="is withdrawn"):
        run(world.requests.use(waits, "Ana"))
    assert world.events() == ["requested", "requested", "withdrawn"]


def test_what_is_too_large_to_be_shown_is_refused(world: World):
    with pytest.raises(LimitExceededError, match="1024 KiB"):
        world.decide(value(shown={"plan": "x" * (1 << 20)}))
    with pytest.raises(LimitExceededError, match="characters"):
        world.decide(value(reason="x" * 1001))


@pytest.mark.parametrize("text", ["", "   ", "\ud800", "x" * 1001])
def test_a_reason_or_question_is_a_text(world: World, text: str):
    number = world.asks(value())
    with pytest.raises(BadRequest):
        run(world.requests.deny(BOB, number, text))
    with pytest.raises(BadRequest):
        run(world.requests.ask(BOB, number, text))


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf"), 1e12])
def test_an_approval_has_an_end(world: World, seconds: float):
    number = world.asks(value())
    with pytest.raises(BadRequest, match="366 days"):
        run(world.requests.approve(BOB, number, expires_s=seconds))


def test_an_approval_survives_the_node(world: World):
    number = world.asks(value())
    run(world.requests.approve(BOB, number))
    world.restart()
    assert run(world.requests.use(number, "Ana")).id == number
    world.restart()
    with pytest.raises(GetNotPermittedError, match="is used"):
        run(world.requests.use(number, "Ana"))


def test_a_data_set_that_ends_takes_its_requests_along(world: World):
    approved, other = world.asks(value(BOBS, BILLS)), world.asks(value(BILLS, key="bill's"))
    run(world.requests.approve(OFFICER, approved))
    run(world.requests.end_with(1))
    with pytest.raises(GetNotPermittedError, match="unpublished"):
        run(world.requests.use(approved, "Ana"))
    assert run(world.requests.standing(other, "Ana")).state == "waiting"


def test_a_full_disk_changes_nothing_and_loses_nothing_of_the_log(world: World):
    number = world.asks(value())
    world.database.call(lambda session: session.connection().exec_driver_sql("PRAGMA max_page_count=1").close())
    long = "x" * 1000

    async def story() -> None:
        world.audit.note("before", "Ana")
        for _ in range(200):  # until the file's free pages are used up
            await world.requests.ask(BOB, number, long)

    from grid_jupyter.errors import StorageFullError

    with pytest.raises(StorageFullError):
        run(story())
    world.database.call(lambda session: session.connection().exec_driver_sql("PRAGMA max_page_count=100000").close())
    assert "before" in world.events()
    assert not run(world.audit.table.verify()).broken

"""Push: each behaviour of the federated fork's table by its number, on a real database, with real notices."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cycle_world import World, diff, world
from sqlalchemy import select

from grid_jupyter.cycles.announcing import announcements, events
from grid_jupyter.cycles.machine import Pooled, Tick, begin, on
from grid_jupyter.cycles.terms import read_terms
from grid_jupyter.errors import BadRequest, Conflict, LimitExceededError, NotFound
from grid_jupyter.push.bus import Bus, Event
from grid_jupyter.push.notifier import SENT, Outcome, Outgoing
from grid_jupyter.push.retrying import next_try
from grid_jupyter.store.records import DeviceRow, Participation, PushAddress, PushNotice
from grid_jupyter.wire.push import SavePushToken, SendPush, WorkerStatus

GATHERS = {"goal_count": 2, "min_workers": 2, "cycle_length": 100, "min_diffs": 1, "max_diffs": 2}
"""A training that invites two devices as soon as there are two."""


class Clock:
    """The time that a test says."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Phone:
    """A notifier for tests: what each token was sent, and what becomes of it."""

    name = "phone"

    def __init__(self) -> None:
        self.got: list[tuple[str, str]] = []
        self.notices: list[Any] = []
        self.outcomes: dict[str, list[Outcome]] = {}

    def reaches(self, outgoing: Outgoing) -> bool:
        return outgoing.token is not None

    async def send(self, outgoing: Outgoing) -> Outcome:
        token = outgoing.token or ""
        left = self.outcomes.get(token)
        outcome = left.pop(0) if left else SENT
        if outcome is SENT:
            self.got.append((token, outgoing.notice.type))
            self.notices.append(outgoing.notice)
        return outcome

    def close(self) -> None:
        pass

    def of(self, token: str) -> list[str]:
        return [kind for name, kind in self.got if name == token]


class Pushes:
    """A world with a phone, and what tests ask of it."""

    def __init__(self, here: World, phone: Phone, clock: Clock) -> None:
        self.here, self.phone, self.clock = here, phone, clock
        self.events: list[Event] = []
        here.cycles.push.bus.subscribe(self.events.append)

    async def token(self, token: str, **facts: Any) -> str:
        """A new device with this token: its id."""
        worker = await self.here.device()
        await self.save(worker, token, **facts)
        return worker

    async def save(self, worker: str, token: str, **facts: Any) -> None:
        told = {"worker_id": worker, "fcm_device_token": token, **facts}
        await self.here.cycles.push.save_token(msgspec.convert(told, SavePushToken))

    async def online(self, worker: str, **facts: Any) -> None:
        await self.here.cycles.push.status(WorkerStatus(worker_id=worker, **facts))

    async def idle(self) -> None:
        """Wait until every notice that can go has gone."""

        async def left() -> int:
            waits = ("waiting", "spreading")
            query = select(PushNotice).where(PushNotice.state.in_(waits), PushNotice.due <= self.clock.now)
            return len(await self.rows(query))

        self.here.cycles.push._dispatcher.wake()
        await until(lambda: left(), 0)

    async def rows(self, query: Any) -> list[Any]:
        return list(await self.here.cycles._table._run(lambda session: session.scalars(query).all()))

    async def tick(self, seconds: float) -> None:
        self.clock.now += seconds
        for live in self.here.cycles._live.values():
            await live.tick()
        await self.idle()

    async def place(self, worker: str, **facts: Any) -> tuple[str, str]:
        answer = await self.here.ask(worker, **facts)
        assert answer["status"] == "accepted", answer
        return worker, answer["request_key"]


async def until(ask: Callable[[], Awaitable[Any]], wanted: Any) -> None:
    deadline = time.monotonic() + 10
    while (found := await ask()) != wanted:
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.01)


def run(state: Path, work: Callable[[Pushes], Awaitable[None]]) -> None:
    async def whole() -> None:
        phone, clock = Phone(), Clock()
        async with world(state, clock, push=phone) as here:
            await work(Pushes(here, phone, clock))

    asyncio.run(whole())


# ------------------------------------------------------------------ the numbers of the table


def test_1_a_worker_saves_its_push_token_and_with_less_than_2_gb_it_counts_as_slow(tmp_path: Path):
    async def work(grid: Pushes) -> None:
        await grid.here.host()
        await grid.token("quick", model="m", version="1.0", ram_size=2.0, cpu_cores=4)
        await grid.token("slow", ram_size=1.5)
        devices = {one.token: one.device for one in await grid.rows(select(PushAddress))}
        slow = {one.number: one.slow for one in await grid.rows(select(DeviceRow))}
        assert {token: slow[device] for token, device in devices.items()} == {"quick": False, "slow": True}
        with pytest.raises(NotFound, match="Worker ID not found!"):
            await grid.save("nobody", "t")
        with pytest.raises(Conflict, match="another model"):
            await grid.save(await grid.here.device(), "t", model="other")
        for wrong in ("", "with spaces", "x" * 4097):
            with pytest.raises(msgspec.ValidationError):
                await grid.save(await grid.here.device(), wrong)

    run(tmp_path, work)


def test_2_and_4_invitations_go_out_when_the_pool_is_large_enough_and_one_token_is_one_worker(tmp_path: Path):
    async def work(grid: Pushes) -> None:
        await grid.here.host(**GATHERS | {"min_workers": 3, "goal_count": 3})
        await grid.token("a")
        older = await grid.token("b")
        await grid.here.device(fcm_device_token="b")  # the same phone, which came again
        await grid.idle()
        assert grid.phone.got == []
        assert (await grid.here.stands())["phase"] == "gathering"
        await grid.token("c")
        await grid.idle()
        assert sorted(grid.phone.got) == [(token, "request_for_cycle") for token in "abc"]
        assert (await grid.here.ask(older))["status"] == "rejected"

    run(tmp_path, work)


def test_3_a_notice_finds_its_device_by_worker_place_and_address_together(tmp_path: Path):
    async def work(grid: Pushes) -> None:
        await grid.here.host("other", **GATHERS)
        await grid.here.host(**GATHERS)
        stranger = await grid.here.device("other")
        await grid.save(stranger, "a")  # the same token for another model is another address
        first, second = await grid.token("a"), await grid.token("b")
        await grid.idle()
        assert {notice.worker_id for notice in grid.phone.notices} == {first, second}
        (notice, _) = grid.phone.notices
        assert (notice.model, notice.version, notice.cycle_id) == ("m", "1.0", 1)
        assert stranger not in str(grid.phone.notices)

    run(tmp_path, work)


def test_5_an_owner_pushes_to_all_or_to_some_within_a_quota_and_the_same_push_once(tmp_path: Path):
    async def work(grid: Pushes) -> None:
        await grid.here.host()
        worker, _ = await grid.token("a"), await grid.token("b")
        await grid.idle()
        grid.phone.got.clear()
        push = grid.here.cycles.push
        for _ in range(2):
            assert await push.send(SendPush(model="m", title="Hello", data={"when": "now"}, key="k")) == 2
        assert await push.send(SendPush(model="m", text="to you", workers=[worker, "nobody"])) == 1
        await grid.idle()
        assert sorted(grid.phone.got) == [("a", "message"), ("a", "message"), ("b", "message")]
        said = [notice for notice in grid.phone.notices if notice.type == "message"]
        assert {one.title for one in said} == {"Hello", ""}
        assert all(one.texts()["data.when"] == "now" for one in said if one.title)
        with pytest.raises(NotFound, match="none of these workers"):
            await push.send(SendPush(model="m", text="?", workers=["nobody"]))
        with pytest.raises(NotFound, match="Check name and version"):
            await push.send(SendPush(model="nobody's", text="?"))
        with pytest.raises(BadRequest, match="says nothing"):
            await push.send(SendPush(model="m"))
        with pytest.raises(LimitExceededError, match="2048 bytes"):
            await push.send(SendPush(model="m", data={str(k): "x" * 900 for k in range(3)}))
        for number in range(58):  # whatever a sender calls them
            await push.send(SendPush(model="m", text="again", key=f"{number}/device-{number}"))
        with pytest.raises(LimitExceededError, match="60 pushes"):
            await push.send(SendPush(model="m", text="once too often"))
        await push.send(SendPush(model="m", title="Hello", data={"when": "now"}, key="k"))  # it went before
        grid.clock.now += 3601
        await push.send(SendPush(model="m", text="an hour later"))

    run(tmp_path, work)


def test_6_workers_with_a_place_in_a_cycle_that_is_not_complete_are_not_in_the_pool(tmp_path: Path):
    async def work(grid: Pushes) -> None:
        await grid.here.host(**GATHERS | {"goal_count": 1, "min_workers": 1, "min_diffs": 1, "max_diffs": 1})
        busy = await grid.token("a")
        await grid.idle()
        await grid.place(busy)
        await grid.tick(101)  # it did not report: its cycle begins again, and it is asked whether it is there
        assert grid.phone.of("a") == ["request_for_cycle", "cycle reset", "worker_online_status"]
        await grid.online(busy)
        await grid.idle()
        assert grid.phone.of("a")[-1] == "request_for_cycle"
        await grid.online(busy)  # it has its place by now, and is not invited to another one
        await grid.idle()
        assert grid.phone.of("a").count("request_for_cycle") == 2

    run(tmp_path, work)


def test_7_where_there_is_no_push_service_the_log_says_what_would_be_pushed_and_no_token(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    async def work() -> None:
        async with world(tmp_path) as here:
            grid = Pushes(here, Phone(), Clock())
            grid.clock.now = time.time() + 60
            await here.host()
            await grid.token("secret-token")
            await grid.idle()
            assert (await here.cycles.push.told())["push"] == "log"

    with caplog.at_level("DEBUG", "grid_jupyter"):
        asyncio.run(work())
    assert "push request_for_cycle, m 1.0, notice" in caplog.text
    assert "secret-token" not in caplog.text


def test_8_and_9_whenever_a_worker_comes_an_event_says_so_to_whoever_subscribed(tmp_path: Path):
    async def work(grid: Pushes) -> None:
        await grid.here.host()
        worker = await grid.token("a")
        await grid.online(worker)
        came = [event.facts["how"] for event in grid.events if event.name == "device-connected"]
        assert came == ["authenticate", "save-fcm-token", "update-worker-status"]
        assert not any(worker in str(event) or "'a'" in str(event) for event in grid.events)

    run(tmp_path, work)


def test_10_when_a_cycle_is_complete_its_workers_are_told_and_the_next_one_is_offered(tmp_path: Path):
    async def work(grid: Pushes) -> None:
        await grid.here.host(max_diffs=1, cycle_length=100)
        one, other = await grid.token("a"), await grid.token("b")
        await grid.idle()
        grid.phone.got.clear()
        place = await grid.place(one)
        await grid.place(other)
        await grid.here.report(place, diff(1, 1, 1))
        await grid.here.stands(after=0)
        await grid.idle()
        assert grid.phone.of("a") == ["cycle_completed", "request_for_cycle"]
        assert grid.phone.of("b") == ["interrupt_cycle_completed", "request_for_cycle"]
        assert [notice.cycle_id for notice in grid.phone.notices if notice.type == "cycle_completed"] == [1]

    run(tmp_path, work)


@pytest.mark.parametrize(("mode", "answer"), [(1, "accepted"), (0, "rejected")])
def test_11_by_its_participation_mode_a_worker_that_comes_late_joins_or_waits(tmp_path: Path, mode: int, answer: str):
    async def work(grid: Pushes) -> None:
        await grid.here.host(max_workers=3, cycle_length=100, max_diffs=2, worker_participation_mode=mode)
        await grid.place(await grid.token("a"))
        grid.clock.now += 1
        late = await grid.token("late")
        await grid.idle()
        assert grid.phone.of("late") == []
        assert (await grid.here.ask(late))["status"] == answer

    run(tmp_path, work)


def test_12_workers_are_asked_whether_they_are_there_after_a_cycle_and_when_another_one_registers(tmp_path: Path):
    async def work(grid: Pushes) -> None:
        await grid.here.host(**GATHERS)
        first, second = await grid.token("a"), await grid.token("b")
        await grid.idle()
        for worker in (first, second):
            place = await grid.place(worker)
            grid.clock.now += 1
            await grid.here.report(place, diff(1, 1, 1))
        await grid.here.stands(after=0)
        await grid.idle()
        assert grid.phone.of("a") == ["request_for_cycle", "cycle_completed", "worker_online_status"]
        assert (await grid.here.stands())["phase"] == "gathering"  # all of them count as away
        await grid.online(first)
        await grid.idle()
        assert (await grid.here.stands())["phase"] == "gathering"
        grid.phone.got.clear()
        grid.clock.now += 200  # and the first one is not heard of for longer than a cycle
        await grid.here.device()
        await grid.idle()
        assert sorted(grid.phone.got) == [("a", "worker_online_status"), ("b", "worker_online_status")]
        await grid.here.device()  # another one, a moment later: nobody is asked twice
        await grid.idle()
        assert len(grid.phone.got) == 2

    run(tmp_path, work)


def test_13_invitations_carry_a_key_of_their_cycle_which_says_that_training_was_started(tmp_path: Path):
    async def work(grid: Pushes) -> None:
        await grid.here.host(**GATHERS)
        assert (await grid.here.stands())["started"] is False
        worker, _ = await grid.token("a"), await grid.token("b")
        await grid.idle()
        assert (await grid.here.stands())["started"] is True
        assert [event.name for event in grid.events if event.name == "training-started"] == ["training-started"]
        keys = {notice.cycle_start_request_key for notice in grid.phone.notices}
        (key,) = keys
        assert len(key) == 64
        answer = await grid.here.ask(worker, cycle_start_request_key="0" * 64)
        assert (answer["status"], answer["reason"]) == ("rejected", "this invitation was to another cycle")
        assert answer["timeout"] > 0
        assert (await grid.here.ask(worker, cycle_start_request_key=key))["status"] == "accepted"

    run(tmp_path, work)


def test_14_while_training_runs_nobody_who_comes_is_pushed_to(tmp_path: Path):
    async def work(grid: Pushes) -> None:
        await grid.here.host(**GATHERS)
        await grid.token("a"), await grid.token("b")
        await grid.idle()
        grid.phone.got.clear()
        for k in range(5):
            await grid.online(await grid.token(f"late-{k}"))
        await grid.idle()
        assert grid.phone.got == []

    run(tmp_path, work)


def test_15_a_cycle_that_expires_is_reset_and_its_workers_are_told_and_asked_anew(tmp_path: Path):
    async def work(grid: Pushes) -> None:
        await grid.here.host(**GATHERS | {"min_diffs": 2})
        reports, leaves = await grid.token("a"), await grid.token("b")
        third = await grid.token("c")
        await grid.idle()
        await grid.here.report(await grid.place(reports), diff(1, 1, 1))
        await grid.place(leaves)
        grid.phone.got.clear()
        await grid.tick(101)
        assert grid.phone.of("a") == ["worker_online_status"]  # what it reported counts
        assert grid.phone.of("b") == ["cycle reset", "worker_online_status"]
        places = {one.state for one in await grid.rows(select(Participation))}
        assert places == {"reported", "none"}
        await grid.online(third)
        await grid.idle()
        assert grid.phone.of("c")[-1] == "request_for_cycle"
        assert "cycle-reset" in [event.name for event in grid.events]

    run(tmp_path, work)


def test_16_workers_are_drawn_without_replacement_and_the_same_for_the_same_seed(tmp_path: Path):
    drawn: list[list[str]] = []

    async def work(grid: Pushes) -> None:
        await grid.here.host(
            goal_count=4, min_workers=12, cycle_length=100, pool_selection="random", drop_rate=0.25, seed=7
        )
        for k in range(12):
            await grid.token(f"{'slow' if k % 6 == 0 else 'fast'}-{k}", ram_size=1 if k % 6 == 0 else 8)
        await grid.idle()
        drawn.append([token for token, _ in grid.phone.got])

    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        run(tmp_path / name, work)
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == len(drawn[0]) == 4
    assert sum(token.startswith("slow") for token in drawn[0]) >= 1


def test_19_when_training_is_over_everybody_who_can_be_reached_is_told(tmp_path: Path):
    async def work(grid: Pushes) -> None:
        await grid.here.host(max_diffs=1, num_cycles=1)
        worker = await grid.token("a")
        await grid.token("b")
        await grid.here.report(await grid.place(worker), diff(1, 1, 1))
        await grid.here.stands(after=0)
        await grid.idle()
        assert grid.phone.of("a")[-2:] == ["cycle_completed", "fl_completed"]
        assert grid.phone.of("b")[-1] == "fl_completed"
        assert grid.events[-1].name == "notice-sent"
        assert "training-over" in [event.name for event in grid.events]

    run(tmp_path, work)


def test_22_a_report_keeps_its_number_of_samples(tmp_path: Path):
    async def work(grid: Pushes) -> None:
        await grid.here.host(max_diffs=2)
        await grid.here.report(await grid.here.accepted(), diff(1, 1, 1), 37)
        assert [one.samples for one in await grid.rows(select(Participation))] == [37]

    run(tmp_path, work)


# ------------------------------------------------------------------ what is not in the table


def test_a_cycle_without_invitations_is_offered_once_and_not_before_enough_workers_can_be_reached(tmp_path: Path):
    async def work(grid: Pushes) -> None:
        await grid.here.host(max_diffs=1, min_workers=2)
        await grid.token("a")
        await grid.idle()
        assert grid.phone.got == []
        await grid.token("b")
        await grid.idle()
        assert sorted(grid.phone.got) == [("a", "request_for_cycle"), ("b", "request_for_cycle")]
        await grid.token("c")
        await grid.idle()
        assert len(grid.phone.got) == 2

    run(tmp_path, work)


def test_what_is_not_true_any_more_is_not_sent(tmp_path: Path):
    async def work(grid: Pushes) -> None:
        await grid.here.host(**GATHERS)
        grid.phone.outcomes["a"] = [Outcome("again", "busy", 500.0)]
        await grid.token("a"), await grid.token("b")
        await grid.idle()
        await grid.tick(101)
        await grid.tick(500)
        assert "request_for_cycle" not in grid.phone.of("a")
        states = [one.state for one in await grid.rows(select(PushNotice)) if one.type == "request_for_cycle"]
        assert sorted(states) == ["given-up", "sent"] or sorted(states) == ["done", "given-up", "sent"]

    run(tmp_path, work)


def test_a_notice_is_tried_again_with_pauses_and_that_it_was_given_up_is_told(tmp_path: Path):
    async def work(grid: Pushes) -> None:
        await grid.here.host()
        grid.phone.outcomes["a"] = [Outcome("again", "busy")] * 3
        grid.phone.outcomes["b"] = [Outcome("again", "busy")] * 99
        await grid.token("a")
        await grid.idle()
        await grid.token("b")
        await grid.here.cycles.push.send(SendPush(model="m", text="hello"))
        for _ in range(20):
            grid.clock.now += 700
            await grid.idle()
        assert grid.phone.of("a").count("request_for_cycle") == 1
        assert grid.phone.of("b") == []
        told = await grid.here.cycles.push.told()
        assert (told["waiting"], told["given_up"]) == (0, 1)
        (lost,) = told["newest_given_up"]
        assert (lost["type"], lost["reason"], lost["attempts"], lost["by"]) == ("message", "busy", 10, "phone")
        assert "notice-given-up" in [event.name for event in grid.events]

    run(tmp_path, work)


def test_a_token_by_which_nobody_is_reached_any_more_is_forgotten(tmp_path: Path):
    async def work(grid: Pushes) -> None:
        await grid.here.host()
        grid.phone.outcomes["a"] = [Outcome("token-gone", "not registered")]
        worker = await grid.token("a")
        await grid.idle()
        assert await grid.rows(select(PushAddress)) == []
        assert "push-token-forgotten" in [event.name for event in grid.events]
        await grid.online(worker, fcm_push_token="newer")
        assert [one.token for one in await grid.rows(select(PushAddress))] == ["newer"]

    run(tmp_path, work)


def test_a_notifier_that_fails_loses_nothing(tmp_path: Path):
    async def work(grid: Pushes) -> None:
        await grid.here.host()
        send, failures = grid.phone.send, [ZeroDivisionError("oops")]

        async def fails(outgoing: Outgoing) -> Outcome:
            if failures:
                raise failures.pop()
            return await send(outgoing)

        grid.phone.send = fails  # type: ignore[method-assign]
        await grid.token("a")
        await grid.idle()
        assert grid.phone.got == []
        await grid.tick(2)
        assert grid.phone.of("a") == ["request_for_cycle"]

    run(tmp_path, work)


def test_a_push_to_many_goes_to_each_once(tmp_path: Path):
    async def work(grid: Pushes) -> None:
        await grid.here.host()

        def fill(session: Any) -> None:
            for number in range(1, 521):
                session.add(DeviceRow(number=number, id=f"w{number}", training_id=1, rank=number, registered=1.0,
                                      seen=1.0, slow=False, last=None, asked=0))  # fmt: skip
                session.add(PushAddress(device=number, training_id=1, token=f"t{number}", digest=f"d{number}",
                                        listens=False))  # fmt: skip

        await grid.here.cycles._table._run(fill)
        assert await grid.here.cycles.push.send(SendPush(model="m", text="to all")) == 520
        await grid.idle()
        assert len(grid.phone.got) == len(set(grid.phone.got)) == 520

    run(tmp_path, work)


def test_the_first_notice_of_each_kind_follows_from_the_states_alone():
    terms = read_terms(GATHERS | {"num_cycles": 1})
    state = begin(terms, 0.0)
    opened, _ = on(terms, state, Pooled(2), 1.0)
    assert [one.type for one in announcements(terms, state, opened)] == ["request_for_cycle"]
    assert announcements(terms, opened, opened) == ()
    reset, _ = on(terms, opened, Tick(), 200.0)
    assert [one.type for one in announcements(terms, opened, reset)] == ["cycle reset", "worker_online_status"]
    assert [name for name, _ in events(opened, reset)] == ["cycle-reset", "cycle-opened"]


# ------------------------------------------------------------------ the bus


def test_events_come_to_all_in_order_and_a_subscriber_that_fails_is_heard_of_and_hides_nothing(
    caplog: pytest.LogCaptureFixture,
):
    bus, seen = Bus(), list[Any]()

    def first(event: Event) -> None:
        seen.append(("first", event.facts["cycle"]))
        if event.facts["cycle"] == 1:
            bus.publish("cycle-opened", cycle=2)
            raise ZeroDivisionError("a subscriber's own")

    bus.subscribe(first)
    end = bus.subscribe(lambda event: seen.append(("second", event.facts["cycle"])), ["cycle-opened"])
    bus.publish("cycle-opened", cycle=1)
    bus.publish("cycle-reset", cycle=3)
    end()
    bus.publish("cycle-opened", cycle=4)
    assert seen == [("first", 1), ("second", 1), ("first", 2), ("second", 2), ("first", 3), ("first", 4)]
    assert bus.failed == 1
    assert "a subscriber's own" in caplog.text
    with pytest.raises(KeyError):
        bus.publish("cycle-opend")
    with pytest.raises(KeyError):
        bus.subscribe(first, ["nothing"])


def test_events_of_other_threads_come_in_the_thread_of_the_bus():
    async def work() -> None:
        bus, seen = Bus(), list[str]()
        here = threading.get_ident()
        bus.subscribe(lambda event: seen.append("here" if threading.get_ident() == here else "elsewhere"))
        await asyncio.to_thread(bus.publish, "cycle-opened", cycle=1)

        async def count() -> int:
            return len(seen)

        await until(count, 1)
        assert seen == ["here"]

    asyncio.run(work())


# ------------------------------------------------------------------ retrying


def test_pauses_double_up_to_ten_minutes_retry_after_is_obeyed_and_ten_failures_are_enough():
    pauses = [(next_try(attempts, 100.0) or 0.0) - 100.0 for attempts in range(1, 10)]
    assert pauses == [1, 2, 4, 8, 16, 32, 64, 128, 256]
    assert next_try(3, 100.0, 77.0) == 177.0
    assert next_try(3, 100.0, 1.0) == 104.0
    assert next_try(10, 100.0) is None


# ------------------------------------------------------------------ killed


def test_a_node_killed_at_any_point_sends_every_notice_at_least_once_and_none_that_has_no_cause(tmp_path: Path):
    program = Path(__file__).parent / "killed_pushes.py"
    answer = subprocess.run(
        [sys.executable, str(program), str(tmp_path)], capture_output=True, text=True, cwd=program.parent, timeout=300
    )
    assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout)
    whole = found.pop("")
    said = {tuple(letter[1:]) for letter in whole["letters"]}
    assert {("cycle_completed", 1, "a"), ("fl_completed", 1, "a"), ("fl_completed", 1, "b")} <= said
    points = {line.partition(" ")[0] for line in found}
    assert points == {"notices-written", "notice-taken", "notice-gone", "notices-settled"}
    assert sum(one["killed"] for one in found.values()) >= 6
    for line, came_to in found.items():
        assert came_to["again"] == 0, line
        got = {tuple(letter[1:]) for letter in came_to["letters"]}
        asked = {letter for letter in got if letter[0] == "request_for_cycle"}  # whoever came by itself is not asked
        assert got - asked == {letter for letter in said if letter[0] != "request_for_cycle"}, line
        assert asked <= {("request_for_cycle", 1, name) for name in "ab"}, line
        ids = {(letter[0], letter[1], letter[3]) for letter in came_to["letters"]}
        assert len({one[0] for one in ids}) == len(ids), line  # what came again came under its id

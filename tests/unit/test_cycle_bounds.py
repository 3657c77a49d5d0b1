"""What bounds a training: samples, devices, tokens, checkpoints, the disk; and its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from cycle_world import MODEL, World, diff, world
from plan_documents import linear
from safetensors.numpy import save

from grid_jupyter.cycles.live import IDLE_S
from grid_jupyter.cycles.machine import Accept, Asked, Begin, End, Reject, begin, on
from grid_jupyter.cycles.onnx_plans import OnnxPlans
from grid_jupyter.cycles.terms import read_terms
from grid_jupyter.errors import (
    BadRequest,
    Conflict,
    Forbidden,
    NodeUnavailableError,
    NotFound,
    PlanInvalidError,
    StorageFullError,
)
from grid_jupyter.identity.accounts import Account
from grid_jupyter.identity.roles import FLAGS
from grid_jupyter.plans.document import canonical
from grid_jupyter.server.node_streams import TRANSFER_S, time_for

SECRET = "a secret of more than thirty-two bytes"
ANN = Account(1, "Ann", "Publisher", frozenset(), ())
BOB = Account(2, "Bob", "Administrator", frozenset(FLAGS) - {"can_manage_infrastructure"}, ())
OWNER = Account(3, "Olga", "Owner", frozenset(FLAGS), ())


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def run(state: Path, work: Callable[[World], Awaitable[Any]], **options: Any) -> Any:
    async def whole() -> Any:
        async with world(state, **options) as here:
            return await work(here)

    return asyncio.run(whole())


# ------------------------------------------------------------------ devices


def test_a_report_of_more_samples_than_the_host_lets_count_is_refused(tmp_path: Path):
    async def work(here: World) -> None:
        await here.host(max_diffs=1, max_samples=500)
        place = await here.accepted()
        with pytest.raises(BadRequest, match="more than the 500 of max_samples"):
            await here.report(place, diff(1, 1, 1), 501)
        assert (await here.stands())["reports"] == 0
        await here.report(place, diff(1, 1, 1), 500)
        assert (await here.stands(after=0))["completed"] == 1

    run(tmp_path, work)


def test_one_token_gets_no_more_places_of_a_cycle_than_the_host_says(tmp_path: Path):
    def token(**claims: Any) -> str:
        return jwt.encode({"exp": int(time.time()) + 3600, **claims}, SECRET, "HS256")

    async def work(here: World) -> None:
        known = {"type": "jwt", "secret": SECRET}
        await here.host(max_diffs=5, authentication=known, max_devices_per_token=2)
        devices = [await here.device(auth_token=token(sub="ann", jti=str(k))) for k in range(3)]
        answers = [await here.ask(device) for device in devices]
        assert [one["status"] for one in answers] == ["accepted", "accepted", "rejected"]
        assert "one token gets" in answers[2]["reason"]
        assert answers[2]["timeout"] >= 1
        await here.report((devices[0], answers[0]["request_key"]), diff(1, 1, 1))
        assert (await here.ask(devices[2]))["status"] == "rejected"  # a place that was used is a place
        assert (await here.ask(await here.device(auth_token=token(sub="bob"))))["status"] == "accepted"
        nameless = token()
        told = [await here.ask(await here.device(auth_token=nameless)) for _ in range(3)]
        assert [one["status"] for one in told] == ["accepted", "accepted", "rejected"]

    run(tmp_path, work)


def test_a_bound_on_tokens_without_tokens_is_refused():
    with pytest.raises(BadRequest, match="max_devices_per_token needs authentication"):
        read_terms({"max_devices_per_token": 1})
    with pytest.raises(BadRequest, match="max_devices is fewer than a cycle needs"):
        read_terms({"max_devices": 2, "min_diffs": 3})


def test_where_as_many_devices_are_registered_as_may_be_idle_ones_make_room_and_nobody_else(tmp_path: Path):
    clock = Clock()

    async def work(here: World) -> None:
        await here.host(max_devices=3, max_diffs=9)
        idle, (trains, _) = await here.device(), await here.accepted()
        clock.now += IDLE_S + 1
        awake = await here.device()
        assert (await here.ask(awake))["status"] == "accepted"
        late = await here.device()  # in the place of the idle one
        with pytest.raises(NotFound, match="Worker ID not found!"):
            await here.ask(idle)
        with pytest.raises(NodeUnavailableError, match="3 devices are registered"):
            await here.device()
        for worker in (trains, awake, late):
            await here.ask(worker)

    run(tmp_path, work, clock=clock)


# ------------------------------------------------------------------ the disk


def test_as_many_checkpoints_are_kept_as_the_host_says_and_the_first_one(tmp_path: Path):
    async def work(here: World) -> None:
        await here.host(max_diffs=1, keep_checkpoints=2, strategy="FedAvgM")
        for cycle in range(4):
            await here.report(await here.accepted(), diff(1, 1, 1))
            await here.stands(after=cycle)
        for number in ("1", "4", "5"):
            await here.checkpoint(number)
        for number in ("2", "3"):
            with pytest.raises(NotFound, match="Checkpoint not found!"):
                await here.checkpoint(number)

    run(tmp_path, work)
    run(tmp_path, World.stands)
    assert len(list((tmp_path / "training").iterdir())) == 5  # the plan, three checkpoints, the last one's momentum


def test_reports_and_models_are_refused_when_trainings_have_used_their_room_and_taken_when_there_is_some(
    tmp_path: Path,
):
    async def work(here: World) -> None:
        await here.host("a", max_diffs=1)
        places = [await here.accepted("a") for _ in range(2)]
        first = await here.cycles.begin_report(*places[0])
        with pytest.raises(StorageFullError, match="--training-storage"):
            await here.cycles.begin_report(*places[1])
        assert (await here.stands(name="a"))["reports"] == 0
        here.cycles.end_report(first)
        here.cycles.end_report(first)  # twice is once
        here.cycles.room._all.looked = float("-inf")
        await here.report(places[1], diff(1, 1, 1))
        assert (await here.stands(after=0, name="a"))["completed"] == 1

    run(tmp_path, work, storage_bytes=(1 << 20) + 10_000)


def test_one_host_fills_its_own_share_and_leaves_the_rest_to_others(tmp_path: Path):
    async def work(here: World) -> None:
        room = here.cycles.room
        await here.host("a", owner="Ann", max_diffs=2, num_cycles=1)
        await room.take("Ann", 1 << 20)  # another model of hers is on its way
        for _ in range(2):
            with pytest.raises(StorageFullError, match=r"(?s)one account.*--host-storage"):
                await here.cycles.begin_report(*await here.accepted("a"))
        await room.take("Bob", 1 << 10)
        await here.host("b", owner="Bob", max_diffs=1, num_cycles=1)
        await here.report(await here.accepted("b"), diff(1, 1, 1))
        assert (await here.stands(after=0, name="b"))["completed"] == 1
        room.give_back("Ann", 1 << 20)
        place = await here.accepted("a")
        await here.report(place, diff(1, 1, 1))
        assert (await here.stands(name="a"))["reports"] == 1

    run(tmp_path, work, storage_bytes=1 << 30, host_storage_bytes=2 << 20)


def test_what_a_host_keeps_is_what_lies_on_the_disk(tmp_path: Path):
    async def work(here: World) -> None:
        async def kept(host: str) -> int:
            return await here.cycles.room._of_host(host)

        until = time.monotonic() + 10
        await here.host("a", owner="Ann", max_diffs=2, num_cycles=9, strategy="FedAdam")
        for number in range(2):
            await here.report(await here.accepted("a"), diff(number, 1, 1))
        assert (await here.stands(after=0, name="a"))["completed"] == 1
        await here.report(await here.accepted("a"), diff(2, 1, 1))  # beside a checkpoint with its moments
        while await kept("Ann") != here.cycles.blobs.used_bytes():  # files of the cycle before are being removed
            assert time.monotonic() < until
            await asyncio.sleep(0.01)
        assert await kept("Bob") == 0
        here.cycles.room.waiting = lambda host: len(host) + 4
        assert await kept("Ann") == here.cycles.blobs.used_bytes() + 7, "and what was uploaded, and not hosted yet"

    run(tmp_path, work)


def test_a_body_may_take_a_minute_and_as_long_as_a_slow_line_needs():
    assert time_for(0) == 60
    assert time_for(4096 * 100) == 160
    assert time_for(1 << 40) == TRANSFER_S


# ------------------------------------------------------------------ plans as ONNX


def test_a_plan_is_converted_once_however_many_ask_at_the_same_time(tmp_path: Path):
    paths = {str(k): tmp_path / str(k) for k in range(3)}
    for k, path in paths.items():
        tree = linear(batch={"min": 1, "max": 100 + int(k)})
        path.write_bytes(canonical(tree))

    async def whole() -> None:
        plans = OnnxPlans()
        made = await asyncio.gather(*(plans.get("0", paths["0"].read_bytes) for _ in range(20)))
        assert len(set(made)) == 1
        assert plans.converted == 1
        small = OnnxPlans(max_bytes=len(made[0]) * 2)
        for key in ("0", "1", "2", "2", "1", "0"):
            await small.get(key, paths[key].read_bytes)
        assert small.converted == 4  # the first one had to go, and was asked for again
        (tmp_path / "bad").write_bytes(b"{}")
        for _ in range(2):
            with pytest.raises(PlanInvalidError):
                await small.get("bad", (tmp_path / "bad").read_bytes)

    asyncio.run(whole())


# ------------------------------------------------------------------ its end


def test_who_hosts_a_training_ends_it_and_devices_are_told_so(tmp_path: Path):
    async def work(here: World) -> None:
        await here.host(max_diffs=3)
        reported, trains = await here.accepted(), await here.accepted()
        await here.report(reported, diff(1, 1, 1))
        ending = here.cycles.ending
        with pytest.raises(Forbidden, match="who hosts a training ends it"):
            await ending.end(BOB, "m", None)
        with pytest.raises(NotFound):
            await ending.end(ANN, "m", "2.0")
        waiting = asyncio.create_task(here.cycles.cycle("m", None, after=0, wait_s=20))
        assert (await ending.end(ANN, "m", "1.0"))["phase"] == "over"
        assert (await asyncio.wait_for(waiting, 10))["phase"] == "over"
        assert (await ending.end(OWNER, "m", None))["phase"] == "over"  # twice is once
        assert await here.ask(await here.device()) == {"status": "rejected", "reason": "training is over"}
        with pytest.raises(Conflict, match="closed"):
            await here.report(trains, diff(1, 1, 1))
        assert (await here.checkpoint())["w"].tolist() == MODEL["w"].tolist()
        assert len(list((tmp_path / "training").iterdir())) == 2

    async def later(here: World) -> None:
        assert (await here.stands())["phase"] == "over"

    run(tmp_path, work)
    run(tmp_path, later)


def test_a_training_that_is_deleted_leaves_nothing_and_its_name_is_free(tmp_path: Path):
    async def work(here: World) -> None:
        await here.host("keep")
        await here.host(max_diffs=1, strategy="FedAdam")
        place = await here.accepted()
        await here.report(place, diff(1, 1, 1))
        await here.stands(after=0)
        open_place = await here.accepted()
        with pytest.raises(Forbidden):
            await here.cycles.ending.delete(BOB, "m", "1.0")
        assert await here.cycles.ending.delete(OWNER, "m", "1.0") == {"status": "success"}
        for call in (here.stands(), here.device(), here.ask(place[0]), here.report(open_place, diff(1, 1, 1))):
            with pytest.raises(NotFound):
                await call
        assert len(list((tmp_path / "training").iterdir())) == 2
        assert [one["name"] for one in here.cycles.ending.hosted()] == ["keep"]
        await here.host(max_diffs=1)
        await here.report(await here.accepted(), diff(1, 1, 1))
        assert (await here.stands(after=0))["completed"] == 1

    run(tmp_path, work)


def test_a_checkpoint_that_is_being_made_when_the_training_is_ended_is_dropped(tmp_path: Path):
    here: World
    ended: list[asyncio.Task[Any]] = []

    def at(point: str) -> None:
        if point == "checkpoint-durable" and not ended:
            ended.append(asyncio.ensure_future(here.cycles.ending.end(ANN, "m", None)))

    async def whole() -> None:
        nonlocal here
        async with world(tmp_path, at=at) as here:
            await here.host(max_diffs=1)
            live = here.cycles._live[1]
            await here.report(await here.accepted(), diff(1, 1, 1))
            until = asyncio.get_running_loop().time() + 20
            while not ended or not ended[0].done() or live.state.phase != "over":
                assert asyncio.get_running_loop().time() < until
                await asyncio.sleep(0.01)
            # either came first: the checkpoint, or the end
            assert (await here.stands())["completed"] in (0, 1)
            await here.checkpoint()
        async with world(tmp_path) as again:
            stands = await again.stands()
            files = len(list((tmp_path / "training").iterdir()))
            assert files == 2 + stands["completed"]

    asyncio.run(whole())


def test_an_end_is_one_in_every_phase_and_later_events_change_nothing():
    terms = read_terms({"max_diffs": 1, "max_devices_per_token": 1, "authentication": {"secret": SECRET}})
    state = begin(terms, 0.0)
    assert isinstance(on(terms, state, Asked(kin=1), 0.0)[1][0], Reject)
    assert on(terms, state, Asked(kin=0), 0.0)[1] == (Accept(),)
    state, actions = on(terms, state, End(), 1.0)
    assert actions == (Begin(over=True),)
    assert on(terms, state, End(), 2.0) == (state, ())
    _, (answer,) = on(terms, state, Asked(), 2.0)
    assert isinstance(answer, Reject)
    assert answer.timeout_s is None


def test_a_model_upload_counts_towards_the_room_while_it_comes(tmp_path: Path):
    async def work(here: World) -> None:
        nbytes = len(save(MODEL))
        await here.cycles.room.take("Ann", nbytes)
        with pytest.raises(StorageFullError):
            await here.cycles.room.take("Ann", nbytes)
        here.cycles.room.give_back("Ann", nbytes)
        here.cycles.room._all.looked = float("-inf")  # nothing came of it
        await here.cycles.room.take("Ann", nbytes)

    run(tmp_path, work, storage_bytes=len(save(MODEL)) * 3 // 2)

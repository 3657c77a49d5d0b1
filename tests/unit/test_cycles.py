"""Trainings on a real database and real files: reports count once and for good, checkpoints are what LEAF says."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import jwt
import numpy
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cycle_world import MODEL, World, diff, world
from plan_documents import linear
from safetensors.numpy import save
from sqlalchemy import URL, update

from grid_jupyter.cycles import selection
from grid_jupyter.cycles.machine import Pooled, begin, on
from grid_jupyter.cycles.terms import read_terms
from grid_jupyter.errors import (
    BadRequest,
    Conflict,
    GridError,
    InvalidDataError,
    NodeUnavailableError,
    NotAuthenticatedError,
    NotFound,
    ObjectNotFoundError,
)
from grid_jupyter.store.database import Database
from grid_jupyter.store.records import DeviceRow, TrainingRow
from grid_jupyter.store.trainings import StoredCheckpoint, StoredTraining, TrainingRows


class Clock:
    """The time that a test says."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def run(state: Path, work: Callable[[World], Awaitable[Any]], **options: Any) -> Any:
    async def whole() -> Any:
        async with world(state, **options) as here:
            return await work(here)

    return asyncio.run(whole())


# ------------------------------------------------------------------ checkpoints


def test_21_and_23_a_checkpoint_is_the_model_minus_the_mean_of_the_reports_by_their_samples(tmp_path: Path):
    async def work(here: World) -> None:
        await here.host(max_diffs=2, num_cycles=2)
        first, second = await here.accepted(), await here.accepted()
        await here.report(first, diff(1, 2, 3), 1)
        await here.report(second, diff(5, -2, 7), 3)
        await here.stands(after=0)
        mean = numpy.array([[(1 + 3 * 5) / 4], [(2 - 3 * 2) / 4], [(3 + 3 * 7) / 4]])
        numpy.testing.assert_allclose((await here.checkpoint())["w"], MODEL["w"] - mean, rtol=1e-6)
        numpy.testing.assert_array_equal((await here.checkpoint("1"))["w"], MODEL["w"])

    run(tmp_path, work)


def test_reports_that_do_not_say_their_samples_count_alike(tmp_path: Path):
    async def work(here: World) -> None:
        await here.host(max_diffs=2)
        for values in ((1, 2, 3), (3, 4, 5)):
            await here.report(await here.accepted(), diff(*values))
        await here.stands(after=0)
        numpy.testing.assert_allclose((await here.checkpoint())["w"], MODEL["w"] - numpy.array([[2], [3], [4]]))

    run(tmp_path, work)


def test_after_the_last_cycle_a_request_is_rejected_without_a_timeout(tmp_path: Path):
    async def work(here: World) -> None:
        await here.host(max_diffs=1, num_cycles=1)
        await here.report(await here.accepted(), diff(1, 1, 1))
        assert (await here.stands(after=0))["phase"] == "over"
        answer = await here.ask(await here.device())
        assert answer == {"status": "rejected", "reason": "training is over"}

    run(tmp_path, work)


def test_a_request_that_may_wait_is_answered_when_the_next_cycle_begins(tmp_path: Path):
    async def work(here: World) -> None:
        await here.host(max_diffs=1, max_workers=1, cycle_length=1000)
        place = await here.accepted()
        waiting = asyncio.create_task(here.ask(await here.device(), wait_s=20))
        assert (await here.ask(await here.device()))["timeout"] > 900
        await here.report(place, diff(0, 0, 0))
        answer = await asyncio.wait_for(waiting, 10)
        assert (answer["status"], answer["cycle_id"], answer["checkpoint"]) == ("accepted", 2, 2)

    run(tmp_path, work)


# ------------------------------------------------------------------ time


def test_a_cycle_that_nobody_reports_to_is_reset_by_itself_and_places_without_a_report_are_given_up(tmp_path: Path):
    async def work(here: World) -> None:
        await here.host("other")
        await here.report(await here.accepted("other"), diff(1, 1, 1))  # the Worker that checks them is there by now
        await here.host(max_diffs=3, min_diffs=2, max_workers=3, cycle_length=1.0, num_cycles=1)
        keeps, loses = await here.accepted(), await here.accepted()
        await here.report(keeps, diff(1, 1, 1))
        deadline = time.monotonic() + 10
        while (await here.stands())["workers"] != 1:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
        with pytest.raises(Conflict, match="began again"):
            await here.report(loses, diff(9, 9, 9))
        await here.report(await here.accepted(), diff(3, 3, 3))
        await here.stands(after=0)
        numpy.testing.assert_allclose((await here.checkpoint())["w"], MODEL["w"] - 2)

    run(tmp_path, work)


def test_a_cycle_whose_time_ran_out_while_the_node_was_off_ends_at_its_start(tmp_path: Path):
    clock = Clock()

    async def before(here: World) -> None:
        await here.host(cycle_length=100, min_diffs=1, max_diffs=9)
        await here.report(await here.accepted(), diff(1, 1, 1))

    async def after(here: World) -> None:
        assert (await here.stands(after=0))["completed"] == 1

    run(tmp_path, before, clock=clock)
    clock.now += 1000
    run(tmp_path, after, clock=clock)


# ------------------------------------------------------------------ nothing lost, nothing twice


def test_a_node_killed_at_any_point_comes_to_the_same_checkpoint_bit_for_bit(tmp_path: Path):
    program = Path(__file__).parent / "killed_cycles.py"
    answer = subprocess.run(
        [sys.executable, str(program), str(tmp_path)], capture_output=True, text=True, cwd=program.parent, timeout=300
    )
    assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout)
    whole = found.pop("")
    assert whole["completed"] == 1
    points = {line.partition(" ")[0] for line in found}
    assert points == {
        "report-cut", "report-arrived", "report-durable", "report-counted", "report-folded", "closing",
        "checkpoint-durable", "cycle-opened", "report-deleted",
    }  # fmt: skip
    assert len(found) == 20
    for line, came_to in found.items():
        assert came_to == {"killed": True, "again": 0, **whole}, line
    assert whole["files"] == 3  # the plan, the model, the checkpoint


def test_a_report_in_parts_goes_on_with_one_connection_at_a_time_and_is_given_up_when_nobody_sends_the_rest(
    tmp_path: Path,
):
    data = diff(1, 1, 1)

    async def work(here: World) -> None:
        await here.host(max_diffs=2)
        place = await here.accepted()
        cycles, gone = here.cycles, []
        with pytest.raises(ObjectNotFoundError, match="from the start"):
            await cycles.report_progress(*place)
        arriving = await cycles.begin_report(*place)
        turn = arriving.begin_turn(lambda: gone.append("first"))
        arriving.upload, arriving.size = cycles.blobs.begin("a"), len(data)
        await arriving.write(turn, bytearray(data[:9]))
        assert await cycles.report_progress(*place) == (9, False)
        assert gone == ["first"]
        with pytest.raises(Conflict, match="only the newer one counts"):
            await arriving.write(turn, bytearray(data[9:]))
        with pytest.raises(Conflict, match="stands at byte 9, not 8"):
            await cycles.resume_report(*place, 8)
        with pytest.raises(InvalidDataError, match="ends early"):
            arriving.whole()
        cycles.arrivals.unfinished_s = 0.01
        cycles.arrivals.leave(arriving, arriving.turn)
        deadline = time.monotonic() + 10
        while list((tmp_path / "training").glob("*.part")):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        with pytest.raises(ObjectNotFoundError, match="from the start"):
            await cycles.resume_report(*place, 9)
        cycles.arrivals.unfinished_s = 100.0
        await here.report_in_parts(place, data, 3)
        await here.report_in_parts(place, data, 3)  # it is told that it counts
        assert (await here.stands())["reports"] == 1
        arriving = await cycles.begin_report(*await here.accepted())
        arriving.upload = cycles.blobs.begin("b")
        assert list((tmp_path / "training").glob("*.part"))

    run(tmp_path, work)
    assert not list((tmp_path / "training").glob("*.part"))


@pytest.mark.parametrize("is_large", [False, True])
def test_a_report_sent_again_counts_once_and_another_one_for_its_place_is_refused(
    tmp_path: Path, is_large: bool, monkeypatch: pytest.MonkeyPatch
):
    if is_large:
        monkeypatch.setattr("grid_jupyter.cycles.live.LARGE", 1)

    async def work(here: World) -> None:
        await here.host(max_diffs=2)
        place = await here.accepted()
        for _ in range(3):
            await here.report(place, diff(1, 1, 1))
        assert (await here.stands())["reports"] == 1
        with pytest.raises(Conflict, match="counts once"):
            await here.report(place, diff(2, 2, 2))
        await here.report(await here.accepted(), diff(3, 3, 3))
        await here.stands(after=0)
        await here.report(place, diff(1, 1, 1))  # its cycle is over by now, and it counted
        assert (await here.stands())["reports"] == 0

    run(tmp_path, work)


def test_a_report_whose_row_is_written_while_the_node_stops_keeps_its_file_and_is_folded_after_the_restart(
    tmp_path: Path,
):
    here: World

    def stop_folding(point: str) -> None:
        if point == "report-durable":
            for live in here.cycles._live.values():
                live.folding.close()

    async def before() -> tuple[str, str]:
        nonlocal here
        async with world(tmp_path, at=stop_folding) as here:
            await here.host(max_diffs=1)
            place = await here.accepted()
            await here.report(place, diff(1, 1, 1))
            return place

    async def after(here: World) -> None:
        await here.report(place, diff(1, 1, 1))
        assert (await here.stands(after=0))["completed"] == 1
        numpy.testing.assert_allclose((await here.checkpoint())["w"], MODEL["w"] - 1)

    place = asyncio.run(before())
    run(tmp_path, after)


def test_a_node_that_stops_takes_no_more_reports_and_leaves_nothing_of_them(tmp_path: Path):
    async def work(here: World) -> None:
        await here.host(max_diffs=1)
        place = await here.accepted()
        arriving = await here.cycles.begin_report(*place)
        upload = here.cycles.blobs.begin("a")
        upload.write(diff(1, 1, 1))
        await here.cycles.stop()
        with pytest.raises(NodeUnavailableError, match="send the report again"):
            await here.cycles.finish_report(arriving, upload, None)
        with pytest.raises(NodeUnavailableError, match="send the report again"):
            await here.cycles.begin_report(*place)
        assert len(list((tmp_path / "training").iterdir())) == 2

    run(tmp_path, work)


def test_a_report_whose_file_was_lost_is_healed_by_sending_it_again(tmp_path: Path):
    async def before(here: World) -> tuple[str, str]:
        await here.host(max_diffs=2)
        place = await here.accepted()
        known = set((tmp_path / "training").iterdir())
        await here.report(place, diff(1, 1, 1), 3)
        (lost,) = set((tmp_path / "training").iterdir()) - known
        lost.unlink()
        return place

    async def after(here: World) -> None:
        await here.report(await here.accepted(), diff(5, 5, 5))
        assert (await here.stands())["phase"] == "closing"
        await here.report(place, diff(1, 1, 1), 3)
        assert (await here.stands(after=0))["completed"] == 1
        numpy.testing.assert_allclose((await here.checkpoint())["w"], MODEL["w"] - 2)

    place = run(tmp_path, before)
    run(tmp_path, after)


def test_whatever_goes_wrong_within_a_cycle_it_goes_on_and_no_report_is_added_twice(tmp_path: Path):
    left = {"report-folded": 1, "checkpoint-durable": 1}

    def fail(point: str) -> None:
        if left.get(point):
            left[point] -= 1
            raise ZeroDivisionError(point)

    async def work(here: World) -> None:
        await here.host(max_diffs=2)
        for value, samples in ((1, 3), (5, 1)):
            await here.report(await here.accepted(), diff(value, value, value), samples)
        assert (await here.stands(after=0))["completed"] == 1
        numpy.testing.assert_allclose((await here.checkpoint())["w"], MODEL["w"] - 2)

    run(tmp_path, work, at=fail)
    assert not any(left.values())


def test_one_report_of_a_place_comes_at_a_time_and_a_place_that_was_given_up_takes_none(tmp_path: Path):
    clock = Clock()

    async def work(here: World) -> None:
        await here.host(max_diffs=9, min_diffs=2, cycle_length=100)
        place = await here.accepted()
        gone: list[int] = []
        for k in range(3):
            arriving = await here.cycles.begin_report(*place)
            arriving.give_way = lambda k=k: gone.append(k)  # type: ignore[misc]
        assert gone == [0, 1]
        await here.report(await here.accepted(), diff(1, 1, 1))
        here.cycles.end_report(arriving)
        await here.cycles.begin_report(*place)
        assert gone == [0, 1]
        clock.now += 101
        for live in here.cycles._live.values():
            await live.tick()
        with pytest.raises(Conflict, match="was given up"):
            await here.cycles.begin_report(*place)

    run(tmp_path, work, clock=clock)


def test_a_report_that_would_overflow_the_sum_is_refused_with_the_reason(tmp_path: Path):
    async def work(here: World) -> None:
        await here.host(max_diffs=1)
        place = await here.accepted()
        for value, samples in ((3e38, 2), (-3e38, 2), (-3e38, 1), (1e30, 1000)):
            with pytest.raises(InvalidDataError, match="would overflow its sum"):
                await here.report(place, diff(1, value, 1), samples)
        await here.report(place, diff(1, 1e30, 1), 100)
        await here.stands(after=0)
        assert numpy.isfinite((await here.checkpoint())["w"]).all()

    run(tmp_path, work)


def test_a_request_that_is_sent_again_with_its_nonce_gets_the_same_place(tmp_path: Path):
    async def work(here: World) -> None:
        await here.host(max_workers=2, cycle_length=100, max_diffs=1)
        worker, other = await here.device(), await here.device()
        first, second = await here.ask(worker, nonce="a"), await here.ask(worker, nonce="a")
        assert (first["status"], first["request_key"]) == ("accepted", second["request_key"])
        assert (await here.ask(worker, nonce="b"))["status"] == "rejected"
        assert (await here.ask(other, nonce="a"))["request_key"] != first["request_key"]
        assert (await here.stands())["workers"] == 2
        await here.report((worker, first["request_key"]), diff(1, 1, 1))
        await here.stands(after=0)
        assert (await here.ask(worker, nonce="a"))["request_key"] != first["request_key"]

    run(tmp_path, work)


def test_a_late_report_is_refused_before_and_after_its_bytes_come(tmp_path: Path):
    async def work(here: World) -> None:
        await here.host(max_diffs=1)
        late, place, cut = await here.accepted(), await here.accepted(), await here.accepted()
        arriving = await here.cycles.begin_report(*cut)
        await here.report(place, diff(1, 1, 1))
        await here.stands(after=0)
        with pytest.raises(Conflict, match="closed"):
            await here.report(late, diff(2, 2, 2))
        upload = here.cycles.blobs.begin("b")
        upload.write(diff(2, 2, 2))
        with pytest.raises(Conflict, match="closed"):
            await here.cycles.finish_report(arriving, upload, None)
        numpy.testing.assert_allclose((await here.checkpoint())["w"], MODEL["w"] - 1)

    run(tmp_path, work)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (save({"v": numpy.zeros((3, 1), numpy.float32)}), "no tensor 'w'"),
        (save({"w": numpy.zeros((3,), numpy.float32)}), "of shape"),
        (save({"w": numpy.zeros((3, 1), numpy.float64)}), "of float64"),
        (
            save({"w": numpy.zeros((3, 1), numpy.float32), "v": numpy.zeros(1, numpy.float32)}),
            "which the model has not",
        ),
        (diff(1, float("nan"), 1), "NaN or infinite"),
        (diff(1, float("inf"), 1), "NaN or infinite"),
        (diff(30, 40, 1), "bound 10 on its norm"),
        (diff(1, 1, 1)[:-1], "safetensors file"),
        (b"", "safetensors file"),
        (b"PK\x03\x04 not a model", "safetensors file"),
    ],
)
def test_a_report_that_is_not_what_it_should_be_is_refused_with_the_reason_and_does_not_count(
    tmp_path: Path, data: bytes, said: str
):
    async def work(here: World) -> None:
        await here.host(max_diffs=1, max_norm=10)
        place = await here.accepted()
        with pytest.raises(GridError, match=said):
            await here.report(place, data)
        stands = await here.stands()
        assert (stands["reports"], stands["completed"]) == (0, 0)
        assert len(list((tmp_path / "training").iterdir())) == 2
        await here.report(place, diff(1, 1, 1))  # and a good one may follow

    run(tmp_path, work)


def test_keys_of_other_workers_and_cycles_and_made_up_ones_open_nothing(tmp_path: Path):
    async def work(here: World) -> None:
        await here.host(max_diffs=1)
        (ann, key), (bob, other) = await here.accepted(), await here.accepted()
        for worker, wrong in ((ann, other), (bob, key), (ann, "0" * 64), (ann, "")):
            for call in (
                here.cycles.begin_report(worker, wrong),
                here.cycles.model(worker, wrong, 1),
                here.cycles.plan(worker, wrong, 1),
            ):
                with pytest.raises(NotAuthenticatedError, match="Invalid request key!"):
                    await call
        with pytest.raises(NotFound, match="Worker ID not found!"):
            await here.cycles.begin_report("nobody", key)
        with pytest.raises(NotFound, match="Model not found!"):
            await here.cycles.model(ann, key, 7)
        with pytest.raises(NotFound, match="Plan not found!"):
            await here.cycles.plan(ann, key, 7)
        await here.report((ann, key), diff(1, 1, 1))
        await here.stands(after=0)
        with pytest.raises(Conflict, match="Cycle not found!"):
            await here.cycles.model(bob, other, 1)

    run(tmp_path, work)


def test_unknown_models_versions_and_workers_are_not_found(tmp_path: Path):
    async def work(here: World) -> None:
        await here.host()
        for facts in ({"model_name": "n"}, {"model_name": "m", "model_version": "2.0"}):
            with pytest.raises(NotFound, match="Federated Learning Process not found!"):
                await here.device(
                    **{"name": facts["model_name"], **{k: v for k, v in facts.items() if k != "model_name"}}
                )
        with pytest.raises(NotFound, match="Worker ID not found!"):
            await here.ask("nobody")
        await here.host("n")
        with pytest.raises(Conflict, match="another model"):
            await here.ask(await here.device("n"), "m")
        with pytest.raises(NotFound, match="Checkpoint not found!"):
            await here.checkpoint("9")
        with pytest.raises(BadRequest, match="'latest'"):
            await here.checkpoint("newest")
        with pytest.raises(BadRequest, match="'latest'"):
            await here.checkpoint("²")

    run(tmp_path, work)


# ------------------------------------------------------------------ hosting


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"server_config": {"rounds": 3}}, "has no key rounds"),
        ({"client_config": {"name": "m"}}, "needs 'version'"),
        ({"client_config": {"name": "", "version": "1"}}, "needs 'name'"),
        ({"protocols": {"p": "00"}}, "hosts no protocols"),
        ({"averaging_plan": "00"}, "a plan is a JSON object|no plan|canonical"),
        ({"server_config": {"iterative_plan": True}}, "there is none: leave it out"),
        ({"plans": {}}, "1 to 16 plans"),
        ({"plans": {"p": linear(version=2)}}, "another version"),
        ({"plans": {"p": "0a0b"}}, "no plan|not in the canonical form"),
    ],
)
def test_what_cannot_be_hosted_is_refused_with_the_reason(tmp_path: Path, changes: dict[str, Any], said: str):
    import msgspec

    from grid_jupyter.wire.training import HostTraining

    async def work(here: World) -> None:
        whole = {
            "model": "0" * 32, "plans": {"p": linear()}, "client_config": {"name": "m", "version": "1"},
            "server_config": {}, **changes,
        }  # fmt: skip
        body = msgspec.json.decode(json.dumps(whole).encode(), type=HostTraining)
        with here.cycles.blobs.begin("a") as upload:
            upload.write(save(MODEL))
            blob = upload.commit()
        with pytest.raises(BadRequest, match=said):
            await here.cycles.host("Ann", body, blob)
        with pytest.raises(NotFound):
            await here.device()

    run(tmp_path, work)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"v": MODEL["w"]}, "takes param 'w', which the model has not"),
        ({"w": MODEL["w"].T}, "another dtype or shape"),
        ({"w": MODEL["w"].astype(numpy.float64)}, "another dtype or shape"),
        ({"w": MODEL["w"], "n": numpy.zeros(3, numpy.uint8)}, "of uint8"),
        ({"w": MODEL["w"] * numpy.float32("nan")}, "NaN or infinite"),
    ],
)
def test_a_model_that_does_not_fit_its_plan_or_cannot_be_trained_is_refused(tmp_path: Path, model: Any, said: str):
    async def work(here: World) -> None:
        with pytest.raises(BadRequest, match=said):
            await here.host(model=model)

    run(tmp_path, work)


def test_a_name_and_version_are_hosted_once(tmp_path: Path):
    async def work(here: World) -> None:
        await here.host()
        with pytest.raises(Conflict, match="FL Process already exists"):
            await here.host()

    run(tmp_path, work)


# ------------------------------------------------------------------ tokens

SECRET = "a secret of more than thirty-two bytes"


@pytest.fixture(scope="module")
def keys() -> tuple[str, str]:
    """A private and its public RSA key, as PEM."""
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = serialization.Encoding.PEM
    return (
        private.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode(),
        private.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo).decode(),
    )


def forged(header: dict[str, str], key: bytes) -> str:
    """A token signed by HMAC with any key at all, which libraries refuse to make."""
    import hashlib
    import hmac

    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (header, {"sub": "x"})]
    signed = b".".join(parts)
    mac = b"" if header["alg"] == "none" else hmac.new(key, signed, hashlib.sha256).digest()
    return (signed + b"." + base64.urlsafe_b64encode(mac).rstrip(b"=")).decode()


def test_only_tokens_that_are_signed_as_the_host_asked_let_a_device_in(tmp_path: Path, keys: tuple[str, str]):
    private, public = keys
    hour = {"exp": int(time.time()) + 3600}

    async def work(here: World) -> None:
        await here.host("hs", authentication={"type": "jwt", "secret": SECRET})
        await here.host("rs", authentication={"type": "jwt", "pub_key": public})
        good = {"hs": jwt.encode(hour, SECRET, "HS256"), "rs": jwt.encode(hour, private, "RS256")}
        for name, token in good.items():
            assert await here.device(name, auth_token=token)
        expired = {"exp": int(time.time()) - 60}
        bad = {
            "hs": [
                good["rs"], forged({"alg": "none", "typ": "JWT"}, b""), forged({"alg": "HS256"}, b"another"),
                jwt.encode(expired, SECRET, "HS256"), jwt.encode(hour, SECRET * 2, "HS512"), good["hs"][:-4],
            ],
            "rs": [
                good["hs"], forged({"alg": "none", "typ": "JWT"}, b""), forged({"alg": "HS256"}, public.encode()),
                jwt.encode(expired, private, "RS256"), "a.b.c", "x" * 20_000, "\ud800",
            ],
        }  # fmt: skip
        for name, tokens in bad.items():
            for token in tokens:
                with pytest.raises(NotAuthenticatedError, match="The 'auth_token' you sent is invalid"):
                    await here.device(name, auth_token=token)
            with pytest.raises(NotAuthenticatedError, match="Authentication is required, please pass an 'auth_token'"):
                await here.device(name)

    run(tmp_path, work)


@pytest.mark.parametrize("key", ["", "no key", SECRET])
def test_a_public_key_that_is_none_is_refused_at_hosting(tmp_path: Path, key: str):
    async def work(here: World) -> None:
        with pytest.raises(BadRequest, match="no public RSA key"):
            await here.host(authentication={"pub_key": key})

    run(tmp_path, work)


def test_a_private_key_where_the_public_one_belongs_is_refused(tmp_path: Path, keys: tuple[str, str]):
    async def work(here: World) -> None:
        with pytest.raises(BadRequest, match="no public RSA key"):
            await here.host(authentication={"pub_key": keys[0]})

    run(tmp_path, work)


# ------------------------------------------------------------------ pools


def test_a_pool_is_invited_when_it_is_large_enough_and_nobody_else_gets_in(tmp_path: Path):
    async def work(here: World) -> None:
        await here.host(goal_count=2, min_workers=3, cycle_length=100, worker_participation_mode=0, max_diffs=2)
        early = [await here.device(), await here.device()]
        for worker in early:
            assert (await here.ask(worker))["reason"] == "the cycle waits for more workers"
        everybody = [*early, await here.device(), await here.device()]
        answers = [(await here.ask(worker))["status"] for worker in everybody]
        assert answers.count("accepted") == 2
        assert answers[3] == "rejected", "the fourth came after invitations went out"

    run(tmp_path, work)


def test_the_same_seed_invites_the_same_devices_and_turns_go_round(tmp_path: Path):
    def drawn(name: str, **config: Any) -> list[set[int]]:
        chosen: list[set[int]] = []

        async def work(here: World) -> None:
            await here.host(name, goal_count=4, min_workers=12, cycle_length=1000, max_diffs=4, **config)
            workers = [await here.device(name, ram_size=1.0 if rank % 3 == 0 else 4.0) for rank in range(12)]
            for cycle in range(3):
                answers = [await here.ask(worker, name) for worker in workers]
                places = {k: one["request_key"] for k, one in enumerate(answers) if one["status"] == "accepted"}
                chosen.append(set(places))
                for k, key in places.items():
                    await here.report((workers[k], key), diff(0, 0, 0))
                await here.stands(after=cycle, name=name)

        run(tmp_path, work)
        return chosen

    turns = drawn("turns")
    assert turns == [{0, 1, 2, 3}, {4, 5, 6, 7}, {8, 9, 10, 11}]
    seeded = [drawn(f"seeded {k}", pool_selection="random", seed=5) for k in range(2)]
    assert seeded[0] == seeded[1]
    assert seeded[0][0] != seeded[0][1]
    slow = drawn("slow", pool_selection="random", seed=5, drop_rate=0.5)
    assert [len([rank for rank in one if rank % 3 == 0]) for one in slow] == [2, 2, 2]


def test_a_thousand_of_a_million_devices_are_invited_in_a_second_and_little_memory(address: URL):
    terms = read_terms({"goal_count": 1000, "cycle_length": 1e6, "pool_selection": "random", "seed": 1})

    training = StoredTraining(
        id=0, name="m", version="1", owner="Ann", created=0.0, client_config={}, server_config={}, seed="1", secret="s"
    )
    model = StoredCheckpoint(id=0, number=1, blob="0" * 32, nbytes=1, sha256="0" * 64)
    database = Database(address)
    database.call(lambda session: TrainingRows(session).add(training, {}, [], model))
    count, now = 1_000_000, time.time()
    devices = (
        {"number": k, "id": f"{k:036}", "training_id": 1, "rank": k, "registered": 0.0, "seen": now, "slow": False,
         "subject": None, "last": None, "asked": 0}
        for k in range(1, count + 1)
    )  # fmt: skip

    def register(session: Any) -> None:
        # a million objects would be more than all else here
        cursor, names = session.connection().connection.cursor(), [one.name for one in DeviceRow.__table__.columns]
        into = f"training_device ({', '.join(names)})"
        rows = ([device[name] for name in names] for device in devices)
        if address.get_backend_name() == "sqlite":
            cursor.executemany(f"INSERT INTO {into} VALUES ({', '.join('?' * len(names))})", rows)  # noqa: S608
        else:
            with cursor.copy(f"COPY {into} FROM STDIN") as copy:
                for row in rows:
                    copy.write_row(row)
            cursor.execute("ANALYZE training_device")
        session.execute(update(TrainingRow).values(registered=count))

    try:
        database.call(register)

        def invite(session: Any) -> list[int]:
            rows, state = TrainingRows(session), begin(terms, now)
            pool = rows.pool(1, 1, selection.pool_of(terms, state, now), 1000)
            state, _ = on(terms, state, Pooled(pool), now)
            ranks, cursor = selection.draw(rows, 1, terms, state, "1", state.invited, now)
            rows.invite(1, 1, ranks, now, cursor)
            return ranks

        tracemalloc.start()
        began = time.process_time()
        ranks = database.call(invite)
        took, (_, peak) = time.process_time() - began, tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(set(ranks)) == 1000
        assert min(ranks) < count / 100 < count * 0.99 < max(ranks)
        assert took < 3.0, took  # a second, three of them while memory is traced
        assert peak < 200e6
    finally:
        database.close()

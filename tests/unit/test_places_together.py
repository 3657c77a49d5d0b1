"""The next place comes with the answer to a report, a small model with its place, and what comes together is one
transaction: each with the same result as one after the other."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy
import pytest
from cycle_world import MODEL, World, diff, world
from safetensors.numpy import load
from tornado.netutil import bind_sockets

from grid_jupyter.client.training_line import TrainingLine
from grid_jupyter.cycles.service import Placed
from grid_jupyter.cycles.small_models import LARGEST
from grid_jupyter.errors import InvalidMessageError, NotFound, OutcomeUnknownError
from grid_jupyter.link.http import Address
from grid_jupyter.server.door import application, http_server
from grid_jupyter.server.report_doors import REPORT_RULES
from grid_jupyter.server.training_doors import TRAINING_RULES
from grid_jupyter.store.database import DOUBT_TEXT, Database
from grid_jupyter.wire.places import parted, with_model
from grid_jupyter.wire.training import CycleRequest, NextPlace


async def report_and_ask(here: World, place: tuple[str, str], data: bytes, **wanted: Any) -> Placed | None:
    """As the door does it."""
    arriving = await here.cycles.begin_report(*place)
    upload = here.cycles.blobs.begin()
    upload.write(data)
    await here.cycles.finish_report(arriving, upload, 1)
    return await here.cycles.next_place(arriving, NextPlace(**wanted))


def test_the_next_place_comes_with_the_answer_to_a_report_and_a_small_model_with_it(tmp_path: Path):
    async def go() -> None:
        async with world(tmp_path) as here:
            await here.host(max_diffs=2, num_cycles=3)
            first, second = await here.accepted(), await here.accepted()
            asked = {"wait_s": 20, "nonce": "n", "inline_bytes": 1 << 20}
            waits = asyncio.create_task(report_and_ask(here, first, diff(1, 2, 3), **asked))
            await report_and_ask(here, second, diff(3, 2, 1))
            placed = await waits
            assert placed is not None
            assert placed.model is not None
            answer: Any = placed.answer
            assert (answer["status"], answer["cycle_id"], answer["checkpoint"]) == ("accepted", 2, 2)
            numpy.testing.assert_array_equal(load(placed.model)["w"], MODEL["w"] - numpy.float32([[2], [2], [2]]))
            # who never heard that sends all of it again, and gets the same
            again = await report_and_ask(here, first, diff(1, 2, 3), **asked)
            assert again is not None
            assert again.answer == placed.answer
            by_itself = await here.ask(first[0], nonce="n")
            assert by_itself == placed.answer
            assert (await here.stands())["workers"] == 1

    asyncio.run(go())


def test_a_report_counts_whatever_becomes_of_the_place_that_was_asked_for_with_it(tmp_path: Path):
    async def go() -> None:
        async with world(tmp_path) as here:
            await here.host(max_diffs=3, num_cycles=1)
            places = [await here.accepted() for _ in range(3)]
            waiting = await report_and_ask(here, places[0], diff(1, 1, 1))
            assert waiting is not None
            assert "timeout" in waiting.answer
            assert await report_and_ask(here, places[1], diff(1, 1, 1), ping="fast") is None
            await report_and_ask(here, places[2], diff(1, 1, 1))
            stands = await here.stands(after=0)
            assert (stands["completed"], stands["phase"]) == (1, "over")
            told = await report_and_ask(here, places[0], diff(1, 1, 1))
            assert told is not None
            assert "timeout" not in told.answer

    asyncio.run(go())


def test_a_model_goes_along_only_where_it_is_small_and_wanted(tmp_path: Path):
    async def go() -> None:
        async with world(tmp_path) as here:
            await here.host()
            for wanted, comes in ((0, False), (10, False), (1 << 40, True)):
                device = await here.device()
                placed = await here.cycles.place(CycleRequest(worker_id=device, model="m", inline_bytes=wanted))
                assert (placed.model is not None) == comes
            large = {"w": MODEL["w"], "unused": numpy.zeros(LARGEST // 4, numpy.float32)}
            await here.host("large", model=large)
            device = await here.device("large")
            placed = await here.cycles.place(CycleRequest(worker_id=device, model="large", inline_bytes=1 << 40))
            assert placed.answer["status"] == "accepted"
            assert placed.model is None

    asyncio.run(go())


def test_an_answer_with_a_model_that_ends_early_is_not_read():
    whole = with_model(b'{"status":"accepted"}', b"model")
    assert parted(whole) == (b'{"status":"accepted"}', b"model")
    for end in (0, 7, 8, 20):
        with pytest.raises(InvalidMessageError):
            parted(whole[:end])
    with pytest.raises(InvalidMessageError):
        parted(b"\xff" * 8 + b"{}")


def test_what_comes_together_is_one_transaction_and_what_fails_among_it_fails_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    transactions = 0
    transact = Database._transact

    def counted(self: Database, work: Any) -> Any:
        nonlocal transactions
        transactions += 1
        return transact(self, work)

    monkeypatch.setattr(Database, "_transact", counted)

    async def go() -> None:
        nonlocal transactions
        async with world(tmp_path) as here:
            await here.host(max_diffs=20)
            devices = [await here.device() for _ in range(20)]
            await here.ask(devices[0])  # knows the plans from here on
            transactions = 0
            answers = await asyncio.gather(*(here.ask(device) for device in devices[1:]))
            assert {answer["status"] for answer in answers} == {"accepted"}
            assert transactions <= 3
            later = [await here.device() for _ in range(3)]
            mixed = await asyncio.gather(
                here.ask(later[0]), here.ask("nobody"), here.ask(later[1]), here.ask(devices[3]), here.ask(later[2]),
                return_exceptions=True,
            )  # fmt: skip
            assert isinstance(mixed[1], NotFound)
            assert [one["status"] for one in (mixed[0], mixed[2], mixed[3], mixed[4])] == [
                "accepted", "accepted", "rejected", "accepted",
            ]  # fmt: skip
            stands = await here.stands()
            assert stands["workers"] == 23

    asyncio.run(go())


def test_reports_that_come_together_count_once_each_and_make_the_checkpoint_of_those_one_after_the_other(
    tmp_path: Path,
):
    async def go(state: Path, *, together: bool) -> Any:
        async with world(state) as here:
            await here.host(max_diffs=8)
            places = [await here.accepted() for _ in range(8)]
            files = [diff(number, -number / 7, 1e-3 * number) for number in range(8)]
            if together:
                arriving = [(await here.cycles.begin_report(*place)) for place in places]
                uploads = []
                for data in files:
                    uploads.append(here.cycles.blobs.begin())
                    uploads[-1].write(data)
                pairs = zip(arriving, uploads, strict=True)
                await asyncio.gather(*(here.cycles.finish_report(one, upload, 3) for one, upload in pairs))
            else:
                for place, data in zip(places, files, strict=True):
                    await here.report(place, data, 3)
            await here.stands(after=0)
            return (await here.checkpoint())["w"]

    numpy.testing.assert_allclose(
        asyncio.run(go(tmp_path / "a", together=True)), asyncio.run(go(tmp_path / "b", together=False)), rtol=1e-6
    )


def test_a_report_whose_transaction_was_kept_though_it_seemed_to_fail_keeps_its_file(tmp_path: Path):
    async def go() -> None:
        async with world(tmp_path) as here:
            await here.host(max_diffs=2)
            place, other = await here.accepted(), await here.accepted()
            live = (await here.cycles.begin_report(*place)).live
            with here.cycles.blobs.begin() as upload:
                upload.write(diff(1, 1, 1))
                blob = upload.commit(passing=True)
            for _ in range(2):  # as Steps does it, after an error of what came together
                assert await live.report(*place, 1, blob), "the file is not to be deleted"
            assert (await here.stands())["reports"] == 1
            await here.report(other, diff(3, 3, 3))
            await here.stands(after=0)
            numpy.testing.assert_array_equal((await here.checkpoint())["w"], MODEL["w"] - 2)

    asyncio.run(go())


def test_a_cycle_that_began_though_nobody_heard_of_it_goes_on_and_takes_those_who_reported_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    lost = 0
    transact = Database._transact

    def at(point: str) -> None:
        nonlocal lost
        lost += point == "checkpoint-durable"

    def unheard(self: Database, work: Any) -> Any:
        nonlocal lost
        result = transact(self, work)
        if lost == 1:  # as after a COMMIT whose answer was lost, and that nobody can be asked about
            lost += 1
            raise OutcomeUnknownError(DOUBT_TEXT)
        return result

    monkeypatch.setattr(Database, "_transact", unheard)

    async def go() -> None:
        async with world(tmp_path, at=at) as here:
            await here.host(max_diffs=1, num_cycles=3)
            place = await here.accepted()
            await here.report(place, diff(1, 1, 1))
            stands = await here.stands(after=0)
            assert (stands["completed"], stands["phase"]) == (1, "open")
            answer = await here.ask(place[0])
            assert (answer["status"], answer["cycle_id"]) == ("accepted", 2)
            await here.report((place[0], answer["request_key"]), diff(2, 2, 2))
            await here.stands(after=1)
            numpy.testing.assert_array_equal((await here.checkpoint())["w"], MODEL["w"] - 3)

    asyncio.run(go())
    assert lost > 1


@asynccontextmanager
async def port_of(here: World, **settings: Any) -> AsyncIterator[int]:
    """A port with the doors of training."""
    rules = [*REPORT_RULES, *TRAINING_RULES]
    server = http_server(application(rules, None, cycles=here.cycles, **settings))  # type: ignore[arg-type]
    (listening,) = bind_sockets(0, "127.0.0.1")
    server.add_sockets([listening])
    try:
        yield listening.getsockname()[1]
    finally:
        server.stop()
        await server.close_all_connections()


def test_the_rest_of_a_report_with_a_request_that_is_refused_leaves_it_to_be_forgotten(tmp_path: Path):
    data = diff(1, 2, 3)

    def patch(port: int, place: tuple[str, str], wanted: str) -> int:
        connection = HTTPConnection("127.0.0.1", port, timeout=10)
        query = urlencode({"worker_id": place[0], "request_key": place[1], "next": wanted})
        connection.request("PATCH", f"/model-centric/report?{query}", data[10:], {"Upload-Offset": "10"})
        status = connection.getresponse().status
        connection.close()
        return status

    async def go() -> None:
        async with world(tmp_path) as here, port_of(here) as port:
            await here.host(max_diffs=2)
            for refused in ("{", '{"wait_s": 9999}'):
                place = await here.accepted()
                arriving = await here.cycles.begin_report(*place)
                arriving.size, turn = len(data), arriving.begin_turn()
                arriving.upload = here.cycles.blobs.begin()
                await arriving.write(turn, bytearray(data[:10]))
                here.cycles.arrivals.leave(arriving, turn)
                assert await asyncio.to_thread(patch, port, place, refused) == 400
                assert arriving.forgetting is not None, "its time goes on"
                assert await asyncio.to_thread(patch, port, place, "{}") == 200

    asyncio.run(go())


def test_a_place_that_came_with_a_report_is_of_no_use_to_another_device_on_the_same_line(tmp_path: Path):
    async def go() -> None:
        async with world(tmp_path) as here, port_of(here) as port:
            await here.host(max_diffs=1)
            line = TrainingLine(Address(f"http://127.0.0.1:{port}"), 10)
            first, other = await here.accepted(), await here.device()
            await asyncio.to_thread(line.report, *first, diff(1, 1, 1), 1, zipped=False, then={})
            answer = await asyncio.to_thread(line.cycle_request, other, "m", None, {})
            assert answer["status"] == "accepted"
            await here.cycles.check_key(other, answer["request_key"])
            line.close()

    asyncio.run(go())


@pytest.mark.parametrize("by", ["cycle-request", "report"])
def test_a_device_that_leaves_while_it_waits_gets_no_place(tmp_path: Path, by: str):
    counted = threading.Event()

    def leave(port: int, where: str, body: bytes) -> None:
        head = f"POST /model-centric/{where} HTTP/1.1\r\nHost: h\r\nContent-Length: {len(body)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", port), 10) as line:
            line.sendall(head.encode() + body)
            assert counted.wait(10)
            line.shutdown(socket.SHUT_WR)
            assert line.recv(1) == b"", "the Node has seen that nobody waits"

    async def go() -> None:
        async with world(tmp_path) as here, port_of(here) as port:
            await here.host(max_diffs=2, max_workers=2, cycle_length=1000)
            first, second = await here.accepted(), await here.accepted()
            if by == "report":
                query = {"worker_id": second[0], "request_key": second[1], "next": '{"wait_s": 60}'}
                leaving = asyncio.create_task(
                    asyncio.to_thread(leave, port, f"report?{urlencode(query)}", diff(1, 1, 1))
                )
                deadline = time.monotonic() + 10
                while (await here.stands())["reports"] < 1:
                    assert time.monotonic() < deadline
                    await asyncio.sleep(0.01)
                counted.set()
                await leaving
            else:
                counted.set()
                for _ in range(2):
                    asked = {"worker_id": await here.device(), "model": "m", "wait_s": 60}
                    await asyncio.to_thread(leave, port, "cycle-request", json.dumps(asked).encode())
                await here.report(second, diff(1, 1, 1))
            await here.report(first, diff(1, 1, 1))
            assert (await here.stands(after=0))["completed"] == 1
            assert (await here.ask(await here.device(), wait_s=0))["status"] == "accepted"
            assert (await here.ask(await here.device(), wait_s=0))["status"] == "accepted"

    asyncio.run(go())

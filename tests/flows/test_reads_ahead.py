"""Reads that a client sends ahead of the program: they tell what a read would tell, or nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from node_world import PATIENCE_S, GridProcess
from raw_session import RawSession
from test_resumed_sessions import Cable

from grid_jupyter import GetNotPermittedError, NodeClient, TorchHook
from grid_jupyter.client.credentials import Credentials
from grid_jupyter.errors import GridError, ObjectNotFoundError, RemoteOperationError
from grid_jupyter.tensors.ahead import MOST_BYTES, Ahead
from grid_jupyter.wire import commands as c
from grid_jupyter.wire import messages

Connect = Callable[..., NodeClient]
Intrude = Callable[..., RawSession]


def ahead(client: NodeClient) -> Ahead:
    found = client.session.ahead
    assert found is not None
    return found


def train(place: Callable[[torch.Tensor], Any], optimizer: Callable[..., torch.optim.Optimizer]) -> list[list[float]]:
    """Twelve steps, reading two values in each, one of them made before the backward pass."""
    torch.manual_seed(0)
    rows, classes = place(torch.randn(16, 5)), place(torch.randint(0, 3, (16,)))
    weight = place(torch.randn(5, 3)).requires_grad_()
    updating = optimizer([weight], lr=0.05)
    told = []
    for _ in range(12):
        updating.zero_grad()
        out = rows @ weight
        loss = torch.nn.functional.cross_entropy(out, classes)
        loss.backward()
        updating.step()
        right = (out.argmax(1) == classes).sum()
        told.append([loss.detach().item(), float(right)])
    return told


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_a_loop_reads_ahead_and_gets_the_very_numbers_of_local_torch(
    bob: GridProcess, connect: Connect, optimizer: Callable[..., torch.optim.Optimizer]
):
    client = connect(bob)
    there = train(client.receive, optimizer)
    assert there == train(lambda tensor: tensor, optimizer)
    assert ahead(client).used >= 12
    assert ahead(client).unused == 0


def test_who_wants_no_reads_ahead_sends_none(bob: GridProcess):
    with NodeClient(bob.address, reads_ahead=False) as client:
        assert train(client.receive, torch.optim.SGD) == train(lambda tensor: tensor, torch.optim.SGD)
        assert client.session.ahead is None


def add_to_itself(loss: Any, x: Any) -> Any:
    loss.add_(100)
    return loss


def add_to_a_view(loss: Any, x: Any) -> Any:
    loss.view(1)[0].mul_(3)
    return loss


def add_to_what_is_detached(loss: Any, x: Any) -> Any:
    shown = loss.detach()
    shown += 7
    return loss


def copy_into(loss: Any, x: Any) -> Any:
    loss.copy_(x[0])
    return loss


def write_to_by_out(loss: Any, x: Any) -> Any:
    torch.maximum(x[0], x[1], out=loss)
    return loss


def change_with_others(loss: Any, x: Any) -> Any:
    torch._foreach_add_([x, loss], 5.0)
    return loss


def take_as_a_gradient(loss: Any, x: Any) -> Any:
    leaf = (x[0] * 1).detach().requires_grad_()
    leaf.grad = loss
    (leaf * 4).backward()
    return loss


def take_as_running_statistics(loss: Any, x: Any) -> Any:
    mean, rows = loss.view(1), x.view(-1, 1)
    torch.nn.functional.batch_norm(rows, mean, torch.ones_like(mean), training=True)
    return loss


def show_by_new_data(loss: Any, x: Any) -> Any:
    other = (x[0] * 1).detach()
    other.data = loss
    other.mul_(2)
    return loss


CHANGES = [
    add_to_itself, add_to_a_view, add_to_what_is_detached, copy_into, write_to_by_out, change_with_others,
    take_as_a_gradient, take_as_running_statistics, show_by_new_data,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_value_that_was_changed_since_it_was_read_ahead_is_read_anew(
    bob: GridProcess, connect: Connect, change: Callable[[Any, Any], Any]
):
    client = connect(bob)

    def losses(x: Any) -> list[float]:
        told = []
        for step in range(14):
            loss = (x * (step + 1)).sum()
            if step in (8, 10):
                loss = change(loss, x)
            told.append(loss.item())
        return told

    rows = torch.tensor([1.5, -2.0, 3.25])
    assert losses(client.receive(rows.clone())) == losses(rows.clone())
    assert ahead(client).used >= 6
    assert ahead(client).unused >= 1


def test_a_loop_that_changes_what_it_reads_in_each_round_stops_reading_ahead(bob: GridProcess, connect: Connect):
    client = connect(bob)
    x = client.receive(torch.ones(3))
    for step in range(40):
        loss = (x * step).sum()
        loss += 1
        assert loss.item() == 3 * step + 1
    assert ahead(client).used == ahead(client).unused == 0


def test_reads_ahead_end_where_nobody_asks_for_them(bob: GridProcess, connect: Connect):
    client = connect(bob)
    x = client.receive(torch.ones(3))
    for step in range(60):
        loss = (x * step).sum()
        other = (x * 2).prod()
        assert (loss if step < 10 else other).item() == (3 * step if step < 10 else 8)
    assert ahead(client).used >= 40
    assert ahead(client).unused <= 3


def test_large_values_are_never_read_ahead(bob: GridProcess, connect: Connect):
    client = connect(bob)
    small, large = client.receive(torch.ones(MOST_BYTES // 4)), client.receive(torch.ones(MOST_BYTES // 4 + 1))
    for _ in range(8):
        assert len((small * 2).tolist()) == MOST_BYTES // 4
    used = ahead(client).used
    assert used >= 3
    for _ in range(8):
        assert len((large * 2).tolist()) == MOST_BYTES // 4 + 1
    assert ahead(client).used == used


def test_what_may_not_be_read_is_refused_as_by_any_read_and_nobody_else_is_held_up(
    bob: GridProcess, connect: Connect, hook: TorchHook
):
    owner, client = connect(bob, "Bob"), connect(bob, "Zed")
    secret = owner.publish(torch.tensor([3.0, 5.0]), tags=["#ahead"], allowed_users=["Bob"], user="Bob")
    mine = client.receive(torch.tensor([1.0, 2.0]))
    [hidden] = client.search("#ahead")
    for step in range(30):
        x = hidden if step in (10, 20) else mine
        total = (x * 2).sum()
        if x is hidden:
            with pytest.raises(GetNotPermittedError, match="data set"):
                total.item()
        else:
            assert total.item() == 6
    assert ahead(client).used >= 10
    owner.unpublish(secret._ref.dataset, user="Bob")


def test_an_answer_from_before_a_login_does_not_count_after_it(bob: GridProcess, connect: Connect, hook: TorchHook):
    owner, client = connect(bob, "Bob"), connect(bob, "Ana")
    secret = owner.publish(torch.tensor([3.0, 5.0]), tags=["#before"], allowed_users=["Ana"], user="Bob")
    [x] = client.search("#before")
    for step in range(8):
        total = (x * step).sum()
        assert total.item() == 8 * step
    assert ahead(client).used >= 3
    total = (x * 9).sum()
    client.login("Zed")
    with pytest.raises(GetNotPermittedError):
        total.item()
    owner.unpublish(secret._ref.dataset, user="Bob")


def test_a_failure_without_a_value_is_told_by_a_read_that_somebody_waits_for(bob: GridProcess, connect: Connect):
    client = connect(bob)
    x, wrong, one = (client.receive(torch.tensor(of)) for of in ([1.0, 1.0, 1.0], [7], [1.0]))
    failed = []
    for step in range(20):
        if step == 9:
            x.index_add_(0, wrong, one)  # only the Node can know that there is no such row
        total = (x * step).sum()
        try:
            assert total.item() == 3 * step
        except RemoteOperationError as error:
            failed.append((step, "index_add_" in str(error)))
    assert failed == [(9, True)]
    assert ahead(client).used >= 8


def test_a_value_whose_computation_failed_says_so(bob: GridProcess, connect: Connect):
    client = connect(bob)
    x, rows = client.receive(torch.arange(4.0)), client.receive(torch.tensor([1]))
    wrong = client.receive(torch.tensor([9]))
    for step in range(12):
        chosen = (x[wrong if step == 8 else rows]).sum()
        if step == 8:
            with pytest.raises(RemoteOperationError, match="test_reads_ahead"):
                chosen.item()
        else:
            assert chosen.item() == 1
    assert ahead(client).used >= 3


def test_what_is_forgotten_or_fetched_is_gone_though_it_was_read_ahead(bob: GridProcess, connect: Connect):
    client = connect(bob)
    x = client.receive(torch.ones(3))
    for step in range(8):
        total = (x * step).sum()
        assert total.item() == 3 * step
    total = (x * 8).sum()
    assert total.get().item() == 24
    with pytest.raises(ObjectNotFoundError):
        total.item()
    for step in range(8):
        total = (x * step).sum()
        assert total.item() == 3 * step
    total = (x * 9).sum()
    client.clear()
    with pytest.raises(ObjectNotFoundError):
        total.item()


def test_a_client_that_was_closed_has_no_values_left(bob: GridProcess, connect: Connect):
    client = connect(bob)
    x = client.receive(torch.ones(3))
    for step in range(8):
        total = (x * step).sum()
        assert total.item() == 3 * step
    total = (x * 9).sum()
    client.close()
    with pytest.raises(GridError):
        total.item()


def test_threads_of_one_session_do_not_get_each_others_values(bob: GridProcess, connect: Connect):
    client = connect(bob)
    wrong: list[Any] = []

    def work(number: int) -> None:
        x = client.receive(torch.full((3,), float(number)))
        for step in range(60):
            total = (x * step).sum()
            kept = x + 1
            if step % 3 == 2:
                total += 1
            if total.item() != 3 * number * step + (step % 3 == 2):
                wrong.append((number, step))
            del kept

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


INTERRUPTED = """
import json, os, random, signal, sys, threading
import torch
from grid_jupyter import NodeClient

client = NodeClient(None, sys.argv[1])
chance = random.Random(3)
x, weight = client.receive(torch.tensor([1.0, 2.0])), client.receive(torch.zeros(2)).requires_grad_()
ahead = client.session.ahead
wrong = interrupted = 0


def rounds(most):
    global wrong
    for step in range(1, most):
        loss = (x * step).sum() + (weight * 0).sum()
        if step % 5 == 4:
            loss.detach().add_(1)
        loss.backward()
        weight.grad = None
        wrong += loss.detach().item() != 3 * step + (step % 5 == 4)  # a stale answer would be another one's


rounds(20)  # what this side has to find out about these operations is known from here on
for _ in range(int(sys.argv[2])):
    try:
        threading.Timer(chance.uniform(0.005, 0.03), os.kill, (os.getpid(), signal.SIGINT)).start()
        rounds(400)  # not for ever: an interrupt that comes in a destructor is lost
    except KeyboardInterrupt:
        interrupted += 1
print(json.dumps({"wrong": wrong, "interrupted": interrupted, "used": ahead.used}))
"""


def test_interrupts_at_any_moment_mix_up_no_answers(bob: GridProcess):
    ran = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, bob.address, "60"],
        capture_output=True, text=True, timeout=4 * PATIENCE_S, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    told = json.loads(ran.stdout.splitlines()[-1])
    assert told["interrupted"] >= 30
    assert told["wrong"] == 0
    assert told["used"] >= 60


def test_a_connection_that_is_lost_takes_no_answer_with_it(bob: GridProcess, tmp_path: Any):
    cable = Cable(bob)
    try:
        with NodeClient(cable.address, credentials=Credentials(tmp_path / "c.json")) as client:
            x = client.receive(torch.tensor([1.0, 2.0]))
            for step in range(80):
                if step % 3 == 2:
                    cable.cut_after(31 * step)
                total = (x * step).sum()
                for _ in range(5):
                    x = x + 0
                assert total.item() == 3 * step
            assert ahead(client).used >= 20
    finally:
        cable.close()
    assert cable.connections > 5


def test_a_node_keeps_what_failed_for_a_read_that_is_asked_for(bob: GridProcess, intrude: Intrude):
    session = intrude(bob)
    x, wrong, one = session.put(torch.ones(3)), session.put(torch.tensor([7])), session.put(torch.ones(1))
    session.operations([c.DEFINE, 0, "aten.index_add_.default", ["r", "d", "r", "r"], []], [0, -5, x, 0, wrong, one])
    for _ in range(2):
        with pytest.raises(RemoteOperationError):
            session.exchange(messages.Read(value=x, ahead=True))
    with pytest.raises(RemoteOperationError):
        session.exchange(messages.Read(value=x))
    reply, _ = session.exchange(messages.Read(value=x, ahead=True))
    assert isinstance(reply, messages.Value)

"""A plan on remote tensors runs where they are, by one message a call, and its results are what the plan gives here."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import torch
from node_world import GridProcess
from torch import nn

import grid_jupyter as sy
from grid_jupyter import NodeClient, TorchHook, VirtualWorker, send
from grid_jupyter.errors import GetNotPermittedError, PlanInvalidError, TensorsNotCollocatedException
from grid_jupyter.wire import commands

Connect = Callable[..., NodeClient]


@pytest.fixture
def worker(hook: TorchHook) -> VirtualWorker:
    return VirtualWorker(hook, id="here")


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.5), nn.Flatten(),
        nn.Linear(27, 5),
    )  # fmt: skip


def moved() -> sy.Plan:
    """A plan with state, a constant, numbers of its own, and nested results."""
    ramp = torch.tensor([1.0, 10.0, 100.0])

    @sy.func2plan(args_shape=[(-1, 3), (-1, 3)], state=(torch.tensor([0.5, -1.0, 2.0]),))
    def moved(x: Any, y: Any, state: Any) -> Any:
        (bias,) = state.read()
        return {"sum": (x * ramp + y + bias).relu(), "parts": [torch.cat([x, torch.ones_like(y) * 2], 1), bias]}

    return moved


def batch(rows: int, *shape: int) -> torch.Tensor:
    return torch.randn(rows, *shape, generator=torch.Generator().manual_seed(rows))


def sent_by(place: Any, call: Callable[[], Any]) -> tuple[list[list[list[Any]]], Any]:
    """The frames that leave while something is called, each a list of commands, and what it gave."""
    session, left = place.session, []
    session.flush()
    send_on = session.link.send

    def send_and_note(header: bytes, *args: Any, **options: Any) -> None:
        left.append(msgspec.msgpack.decode(header))
        send_on(header, *args, **options)

    session.link.send = send_and_note
    try:
        result = call()
        session.flush()
    finally:
        del session.link.send
    return left, result


# ------------------------------------------------------------------ what it gives


def test_a_function_as_a_plan_gives_what_it_gives_here(place: Any):
    plan = moved()
    for rows in (4, 1, 9, 4, 9):
        x, y = batch(rows, 3), batch(rows, 3) * 2
        here, there = plan(x, y), plan(send(x, place), send(y, place))
        torch.testing.assert_close(there["sum"].get(), here["sum"])
        torch.testing.assert_close([part.get() for part in there["parts"]], here["parts"])


def test_a_model_as_a_plan_gives_what_it_gives_here_also_its_loss(place: Any):
    model, x, y = convolutions(), batch(6, 1, 8, 8), torch.tensor([0, 1, 2, 3, 4, 0])
    infer, loss = sy.inference_plan(model, inputs=x), sy.loss_plan(model, nn.functional.cross_entropy, inputs=(x, y))
    there = send(x, place), send(y, place)
    for _ in range(3):
        torch.testing.assert_close(infer(there[0]).get(), infer(x))
        torch.testing.assert_close([value.get() for value in loss(*there)], list(loss(x, y)))  # the same noise, too


def test_gradients_go_to_the_arguments(place: Any):
    plan = sy.func2plan(args_shape=[(-1, 3), (-1, 3)])(lambda x, y: (x * y).sum())
    x, y = send(batch(4, 3), place).requires_grad_(), send(batch(4, 3) + 1, place)
    for _ in range(3):
        x.grad = None
        plan(x, y).backward()
        torch.testing.assert_close(x.grad.get(deregister_ptr=False), batch(4, 3) + 1)


def test_a_plan_within_a_recording_is_part_of_it(worker: VirtualWorker):
    plan = moved()
    step = sy.recording(lambda x: plan(x, x)["sum"] * 2)
    for rows in (4, 4, 4, 4):
        torch.testing.assert_close(
            step(send(batch(rows, 3), worker)).get(), plan(batch(rows, 3), batch(rows, 3))["sum"] * 2
        )
    assert step.recorded == 1


# ------------------------------------------------------------------ what it takes to call it


def test_after_its_first_call_a_call_is_one_message_with_one_command(place: Any):
    """For each size of a batch; and what the plan carries travels once for all of them."""
    x = batch(6, 1, 8, 8)
    plan = sy.inference_plan(convolutions(), inputs=x)
    held = [send(batch(rows, 1, 8, 8), place) for rows in (6, 2)]
    sizes = sent_by(place, lambda: plan(held[0]))[0]
    assert any(command[0] == commands.PUT for frame in sizes for command in frame)
    again = sent_by(place, lambda: plan(held[1]))[0]
    assert not any(command[0] == commands.PUT for frame in again for command in frame)
    for there in held * 2:
        left, result = sent_by(place, lambda there=there: plan(there))
        assert [[command[0] for command in frame] for frame in left if frame[0][0] != commands.FREE] == [[commands.RUN]]
        torch.testing.assert_close(result.get(), plan(batch(len(there), 1, 8, 8)))


def test_a_plan_that_no_recording_can_hold_runs_operation_by_operation(worker: VirtualWorker):
    """Here it makes a tensor of more than 64 KiB, which recordings do not send."""
    plan = sy.func2plan(args_shape=[(20_000,)])(lambda x: (x * torch.arange(20_000.0)).sum())
    for _ in range(3):
        assert plan(send(torch.ones(20_000), worker)).item() == plan(torch.ones(20_000)).item()


def test_a_call_of_local_tensors_sends_nothing(worker: VirtualWorker):
    plan = moved().send(worker).get()
    left, result = sent_by(worker, lambda: plan(batch(4, 3), batch(4, 3)))
    assert left == []
    assert type(result["sum"]) is torch.Tensor


def test_what_a_plan_carries_stays_while_the_plan_does_and_follows_its_changes(worker: VirtualWorker):
    plan, before = moved(), worker.objects_count()
    x = send(batch(4, 3), worker)
    plan(x, x)["parts"][1].get()  # a copy: this takes nothing away
    for change in (None, 7.0, None):
        if change is not None:
            plan.state.read()[0].fill_(change)
        torch.testing.assert_close(plan(x, x)["sum"].get(), plan(batch(4, 3), batch(4, 3))["sum"])
    worker.clear_objects()
    x = send(batch(4, 3), worker)
    torch.testing.assert_close(plan(x, x)["sum"].get(), plan(batch(4, 3), batch(4, 3))["sum"])
    del plan, x
    gc.collect()
    worker.session.flush()
    assert worker.objects_count() == before


def test_a_plan_goes_on_in_the_session_that_takes_the_place_of_a_lost_one(bob: GridProcess, connect: Connect):
    client, plan = connect(bob), moved()
    sent = plan.send(client)
    for _ in range(2):
        x = send(batch(4, 3), client)
        torch.testing.assert_close(sent(x, x)["sum"].get(), plan(batch(4, 3), batch(4, 3))["sum"])
        link: Any = client._link
        link.close()


# ------------------------------------------------------------------ private data


def test_the_gates_hold_for_plans(bob: GridProcess, connect: Connect):
    owner, ana = connect(bob, "Bob"), connect(bob, "Ana")
    owner.publish(batch(4, 3), tags=["#planned"], allowed_users="Bob")
    (secret,) = ana.search("#planned")
    own, plan = send(batch(4, 3), ana), moved()
    for _ in range(3):
        result = plan(secret, own)
        for private in (result["sum"], result["parts"][0]):
            with pytest.raises(GetNotPermittedError):
                private.get(deregister_ptr=False)
        torch.testing.assert_close(result["parts"][1].get(), torch.tensor([0.5, -1.0, 2.0]))  # of no data
        result = plan(own, secret)
        with pytest.raises(GetNotPermittedError):
            result["sum"].get()
    assert plan(own, own)["sum"].get().shape == (4, 3)
    for _ in range(3):
        found = plan(secret, own)["sum"].get(user="Bob").unwrap()
        torch.testing.assert_close(found, plan(batch(4, 3), batch(4, 3))["sum"])


def test_a_length_that_tells_of_private_values_is_not_told_to_a_plan(bob: GridProcess, connect: Connect):
    owner, ana = connect(bob, "Bob"), connect(bob, "Ana")
    owner.publish(batch(5, 3), tags=["#lengths"], allowed_users="Bob")
    (secret,) = ana.search("#lengths")
    plan = sy.func2plan(args_shape=[(-1, 3)])(lambda x: x.sum(0))
    with pytest.raises(GetNotPermittedError):
        plan(secret[secret[:, 0] > 0])
    own = send(batch(5, 3), ana)
    chosen = batch(5, 3)[batch(5, 3)[:, 0] > 0]
    torch.testing.assert_close(plan(own[own[:, 0] > 0]).get(), plan(chosen))


# ------------------------------------------------------------------ what is refused


def test_a_plan_that_is_not_built_is_not_sent(worker: VirtualWorker):
    plan = sy.func2plan()(lambda x: x + 1)
    with pytest.raises(RuntimeError, match=r"is not built yet.*build"):
        plan.send(worker)
    with pytest.raises(TypeError, match="needs a place"):
        plan.build(torch.ones(3)).send()
    sent = plan.send(worker)
    assert sent.location is worker
    assert sent(send(torch.ones(3), worker)).tolist() == [2, 2, 2]
    assert plan.get() is sent.get() is plan


def test_arguments_of_two_places_or_of_the_wrong_form_are_refused(place: Any, hook: TorchHook):
    plan, elsewhere = moved(), VirtualWorker(hook, id="elsewhere")
    x, y = send(batch(4, 3), place), batch(4, 3)
    with pytest.raises(TensorsNotCollocatedException, match=r"on this side.*bring them together"):
        plan(x, y)
    with pytest.raises(TensorsNotCollocatedException, match="on elsewhere"):
        plan(x, send(y, elsewhere))
    for given in (y, send(y, elsewhere)):
        with pytest.raises(TensorsNotCollocatedException, match="send the tensor to the plan"):
            plan.send(place)(x, given)
    with pytest.raises(TypeError, match=r"requires 2 arguments, received 1\."):
        plan(x)
    with pytest.raises(PlanInvalidError, match=r"arg 1 is float32\[5, 3\]; the plan takes float32\[4, 3\]"):
        plan(x, send(batch(5, 3), place))
    with pytest.raises(PlanInvalidError, match="float64"):
        plan(x, send(y.double(), place))
    torch.testing.assert_close(plan(x, send(y, place))["sum"].get(), plan(y, y)["sum"])  # nothing is left behind

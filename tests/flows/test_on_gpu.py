"""Jobs and sessions on a GPU, with the tests that run on the CPU where those allow for rounding. `make test-gpu`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from conftest import SECRETS, World
from node_world import GridProcess, until
from test_jobs import (  # noqa: F401
    data,
    node,
    plain_loop,
    pointers,
    same,
    submit,
    test_a_job_is_cancelled_within_a_second,
    test_a_job_of_many_rounds_trains_from_what_each_round_brings,
    test_a_round_with_weights_that_are_no_numbers_fails_and_says_why,
    test_an_owner_who_looks_first_sees_the_result_and_then_lets_it_go,
    test_training_that_diverges_fails_and_says_what_to_do,
    test_what_the_owner_approves_runs_and_is_released_and_what_she_denies_does_not,
)

from grid_jupyter.errors import GetNotPermittedError, GridError, LimitExceededError, OperationNotAllowedError

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.fixture(scope="module")
def backend() -> tuple[str, ...]:
    return ("--device", "cuda:0", "--device-fraction", "0.2", "--spare-workers", "0")


@pytest.fixture(scope="module")
def open_node(world: World, backend: tuple[str, ...]) -> Iterator[GridProcess]:
    made = world.start("node", "Gpu", "--allow-guests", *backend)
    made.user("Bob", "Owner")
    yield made
    made.stop()


def test_a_job_trains_what_the_plain_loop_trains_but_for_rounding(node: GridProcess, data: dict[str, int]):  # noqa: F811
    with node.client("Ann") as ann:
        before = torch.cuda.mem_get_info()[0]
        job = submit(ann, rounds=2, batch_size=64, shuffle=False, device="cuda")
        job.wait(120, until=frozenset({"running"}))
        weights, *_ = job.round(dict(plain_loop(0, 64).state_dict()))
        assert torch.cuda.mem_get_info()[0] < before, "it has a context there"
        trained = plain_loop(0, 64)
        trained.load_state_dict(weights)
        assert same(trained, plain_loop(1, 64), 1e-4)
        job.cancel()
        momentum = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
        on_gpu, on_cpu = (submit(ann, epochs=3, optimizer=momentum, device=where) for where in ("cuda", "cpu"))
        assert same(on_gpu.result(120), on_cpu.result(120), 1e-3)


def test_a_session_computes_trains_and_reads_through_the_same_gates(open_node: GridProcess):
    with open_node.client("Bob") as bob, open_node.client() as guest:
        rows = torch.linspace(-1, 1, 12).reshape(6, 2)
        weights = guest.receive(torch.ones(2, 1)).requires_grad_()
        loss = (guest.receive(rows) @ weights).pow(2).mean()
        loss.backward()
        assert weights.grad.get().allclose(2 / 6 * rows.T @ rows @ torch.ones(2, 1), atol=1e-5)
        bob.publish(SECRETS, tags=["#gated"])
        [theirs] = guest.search("#gated")
        with pytest.raises(GetNotPermittedError):
            theirs.sum().get()
        with pytest.raises(OperationNotAllowedError, match="GPU"):
            theirs[theirs > 2].sum().get()
        [own] = bob.search("#gated")
        assert own[own > 2].sum().get().unwrap().item() == pytest.approx(SECRETS[SECRETS > 2].sum().item())


def test_a_share_that_is_used_up_is_an_error_with_the_remedy_and_the_worker_goes_on(open_node: GridProcess):
    [device] = open_node.status()["devices"]
    with open_node.client() as guest:
        one = guest.receive(torch.ones(1))
        with pytest.raises(LimitExceededError, match=r"share of cuda:0, 0.2 of its memory.*node.clear"):
            one.new_full((int(device["memory_bytes"] * 0.25) // 4,), 1.0).get()
        assert (one + 1).get().item() == 2


def test_five_workers_of_a_fifth_each_and_no_sixth(open_node: GridProcess):
    clients = [open_node.client() for _ in range(6)]
    try:
        for client in clients[:5]:
            assert client.receive(torch.ones(2)).get().tolist() == [1, 1]
        until(lambda: open_node.status()["devices"][0]["shares"] == [0.2] * 5)
        with pytest.raises(GridError, match="no Worker can begin now"):
            clients[5].receive(torch.ones(2)).get()
    finally:
        for client in clients:
            client.close()

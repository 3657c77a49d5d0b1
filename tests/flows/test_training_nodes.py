"""`grid.train` over real Nodes: jobs under their owners' policies, Nodes that are killed, kernels that are killed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import training_kernel
from conftest import World
from node_world import GridProcess, until
from training_kernel import network, train

from grid_jupyter import Fit, JobPolicy, PrivateGridNetwork, VirtualWorker
from grid_jupyter.aggregation.strategies import SCAFFOLD, FedAvg, FedBuff, FedProx, Serial, Strategy
from grid_jupyter.client.jobs import Job, RoundResult
from grid_jupyter.client.node_jobs import NodeJob
from grid_jupyter.errors import Conflict, GridError

NAMES = ("Alma", "Ben", "Cleo")


def rows_of(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, 4, generator=random)
    return rows, (rows[:, 0] + rows[:, 1] > seed / 10).long()


DATA = {name: rows_of(40 + 7 * number, number) for number, name in enumerate(NAMES)}


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([one.detach().reshape(-1) for one in model.parameters()])


def publishing(node: GridProcess, name: str, policy: JobPolicy) -> None:
    """A Node's owner publishes his rows; Sam has an account."""
    node.user(name, "Owner")
    node.user("Sam")
    with node.client(name) as owner:
        for part, tag in zip(DATA[name], ("#X", "#Y"), strict=True):
            owner.publish(part, tags=["#moons", tag], jobs=policy)


@pytest.fixture(scope="module")
def nodes(world: World, backend: tuple[str, ...]) -> Iterator[dict[str, GridProcess]]:
    """Three Nodes, each with its owner's rows, on which Sam's jobs run unasked."""
    started = {name: world.start("node", name, *backend) for name in NAMES}
    for name, node in started.items():
        publishing(node, name, JobPolicy(automatic=("Sam",)))
    yield started
    for node in started.values():
        node.stop()


@pytest.fixture
def grid(nodes: dict[str, GridProcess]) -> Iterator[PrivateGridNetwork]:
    clients = [node.client("Sam") for node in nodes.values()]
    yield PrivateGridNetwork(*clients)
    for client in clients:
        client.close()


def test_full_batches_and_one_local_step_are_training_in_one_place(grid: PrivateGridNetwork):
    found = train(grid, rounds=10, batch_size=1000)
    rows, targets = (torch.cat(parts) for parts in zip(*DATA.values(), strict=True))
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    for _ in range(10):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(rows), targets).backward()
        optimizer.step()
    assert (weights(found.model) - weights(model)).abs().max() < 1e-6
    assert found.history.participants.tolist() == [3] * 10


def test_owners_see_that_a_training_came_to_its_end_and_when_it_was_cut(
    grid: PrivateGridNetwork, nodes: dict[str, GridProcess]
):
    def cut(found: Fit) -> bool:
        raise KeyboardInterrupt

    train(grid, rounds=2)
    with pytest.raises(KeyboardInterrupt):
        train(grid, rounds=2, after_round=cut)
    with nodes["Alma"].client("Alma") as alma:
        last, before = alma.jobs()[:2]
        assert "done, 100%: finished after 2 rounds" in repr(before)
        assert "cancelled" in repr(last)
        before.cancel()
        assert before.state == "done"


@pytest.mark.parametrize("strategy", [FedAvg(), FedProx(mu=0.5), SCAFFOLD(), Serial()])
def test_nodes_train_what_workers_of_this_process_train(grid: PrivateGridNetwork, strategy: Strategy):
    """The sandbox's local steps and a Node's are the same, proximal term and control variates included."""
    here = PrivateGridNetwork(*(VirtualWorker(id=name, auto_add=False) for name in NAMES))
    for name, parts in DATA.items():
        for part, tag in zip(parts, ("#X", "#Y"), strict=True):
            here.load(here.workers[name], part, "#moons", tag)
    options: dict[str, Any] = {"strategy": strategy, "local_epochs": 2, "seed": 5}
    there, local = train(grid, **options), train(here, **options)
    assert set(there.history.left_out) == {""}
    assert (weights(there.model) - weights(local.model)).abs().max() < 1e-5
    assert there.history.train_loss.tolist() == pytest.approx(local.history.train_loss.tolist(), abs=1e-4)


def test_a_node_whose_worker_ends_some_times_in_a_row_is_not_left_out_of_the_round(nodes: dict[str, GridProcess]):
    class Stumbling(Job):
        left = 3

        def round(self, *arguments: Any, **options: Any) -> RoundResult:
            self.left -= 1
            if self.left >= 0:
                raise Conflict("the job's Worker ended: it was killed. Ask for the round again")
            return super().round(*arguments, **options)

    with nodes["Alma"].client("Sam") as sam:
        (x,), (y,) = (sam.search("#moons", tag) for tag in ("#X", "#Y"))
        model = network()
        job = sam.submit(model, loss=torch.nn.functional.cross_entropy, data={"x": x, "y": y}, rounds=2)
        training = NodeJob(Stumbling(sam, job.wait(60.0, until=frozenset({"running"})).info, model), model)
        answer = training.round(model.state_dict(), 1, None)
        training.cancel()
    assert answer.rows == len(DATA["Alma"][0])


def test_fedbuff_folds_answers_of_real_nodes_as_they_come(grid: PrivateGridNetwork):
    found = train(grid, strategy=FedBuff(goal=2), rounds=5)
    assert len(found.history) == 5
    assert found.history.train_loss.iloc[-1] < found.history.train_loss.iloc[0]


def test_a_node_that_is_killed_does_not_end_the_training_and_comes_back(
    nodes: dict[str, GridProcess], grid: PrivateGridNetwork
):
    def meanwhile(found: Fit) -> bool:
        number, count = found.records[-1].round, len(found.records[-1].participants)
        if number == 2:
            nodes["Ben"].kill()
        if number == 4:
            nodes["Ben"].start()
        return number > 4 and count == 3

    found = train(grid, rounds=4000, minimum=2, after_round=meanwhile)
    counts = [len(record.participants) for record in found.records]
    assert counts[:4] == [3, 3, 2, 2]
    assert counts[-1] == 3
    assert set(found.records[2].left_out) == {"Ben"}
    assert weights(found.model).isfinite().all()


def test_a_kernel_that_is_killed_goes_on_from_its_checkpoint_with_the_same_jobs(
    nodes: dict[str, GridProcess], grid: PrivateGridNetwork, tmp_path: Path
):
    def jobs(state: str = "") -> set[str]:
        every = [job for client in grid.workers.values() for job in client.jobs()]
        return {job.id for job in every if not state or job.info.state == state}

    earlier = jobs()  # of other tests: one may take a while to end
    path = tmp_path / "fit.safetensors"
    command = [sys.executable, training_kernel.__file__, str(path), *(node.address for node in nodes.values())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as kernel:
        assert kernel.stdout is not None
        for line in kernel.stdout:
            if line.strip() == "4":
                kernel.kill()
                break

    submitted = jobs()
    assert len(jobs("running") - earlier) == 3
    again = training_kernel.train_on(grid, path)
    assert [record.round for record in again.records] == list(range(1, training_kernel.ROUNDS + 1))
    assert jobs() == submitted  # no owner is asked anew
    whole = training_kernel.train_on(grid, tmp_path / "other")
    assert weights(again.model).equal(weights(whole.model))
    assert not jobs("running") - earlier


def test_owners_are_asked_and_one_who_denies_is_left_out(nodes: dict[str, GridProcess], grid: PrivateGridNetwork):
    with nodes["Cleo"].client("Cleo") as owner:
        for part, tag in zip(DATA["Cleo"], ("#X", "#Y"), strict=True):
            owner.publish(part, tags=["#dusk", tag], jobs=JobPolicy())

        def denies() -> bool:
            asked = [one for one in owner.requests() if one.info.reason == "to tell dusk from dawn"]
            for request in asked:
                request.deny("not this one")
            return bool(asked)

        found = {**grid.search("#X", "#moons"), **grid.search("#X", "#dusk")}
        with pytest.raises(GridError, match="Cleo: its owner has not decided yet"):
            train(grid, data=found, minimum=3, sign_off_s=1.0)
        with ThreadPoolExecutor(1) as thread:
            denied = thread.submit(until, denies)
            history = train(grid, data=found, minimum=2, reason="to tell dusk from dawn", sign_off_s=60.0).history
            denied.result()
    assert history.participants.tolist() == [2, 2, 2]
    assert all("Cleo" in told and "not this one" in told for told in history.left_out)

"""Sandbox, federated data sets and optimisers: with workers of this process, and with real Nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from node_world import GridProcess
from sklearn.datasets import load_iris

from grid_jupyter import (
    BaseDataset,
    FederatedDataLoader,
    FederatedDataset,
    GetNotPermittedError,
    NodeClient,
    Optims,
    PrivateGridNetwork,
    VirtualWorker,
    accuracy,
    add_model,
    create_sandbox,
    federate,
    federated_avg,
    get_module,
    scale_model,
    send_module,
)
from grid_jupyter.errors import InvalidDataError

Connect = Callable[..., NodeClient]
ROWS, TARGETS = torch.arange(26.0).reshape(13, 2), torch.arange(13)


def workers(*names: str) -> list[VirtualWorker]:
    return [VirtualWorker(id=name) for name in names]


# ------------------------------------------------------------------ data sets


def test_a_data_set_is_spread_in_order_and_comes_back_whole():
    spread = BaseDataset(ROWS, TARGETS).federate(workers("bob", "alice", "theo"))
    assert spread.workers == ["bob", "alice", "theo"]
    assert [len(spread[name]) for name in spread.workers] == [5, 5, 3]
    assert len(spread) == 13
    assert "bob, alice, theo" in repr(spread)
    parts = [spread.get_dataset(name) for name in list(spread.workers)]
    assert torch.cat([part.data for part in parts]).equal(ROWS)
    assert torch.cat([part.targets for part in parts]).equal(TARGETS)
    assert spread.workers == []


def test_any_torch_data_set_is_federated():
    spread = federate(torch.utils.data.TensorDataset(ROWS, TARGETS), workers("bob", "alice"))
    assert spread["alice"].get().targets.tolist() == list(range(7, 13))


@pytest.mark.parametrize(("drop_last", "sizes"), [(False, [4, 3, 4, 2]), (True, [4, 4])])
def test_batches_come_worker_by_worker(drop_last: bool, sizes: list[int]):
    spread = BaseDataset(ROWS, TARGETS).federate(workers("bob", "alice"))
    loader = FederatedDataLoader(spread, batch_size=4, drop_last=drop_last)
    seen = [(data.location.id, len(data), target.get().tolist()) for data, target in loader]
    assert [size for _, size, _ in seen] == sizes
    assert len(loader) == len(seen)
    assert [name for name, _, _ in seen] == sorted([name for name, _, _ in seen], reverse=True)
    assert seen[0][2] == [0, 1, 2, 3]


def test_shuffled_batches_hold_each_row_once_with_its_own_target():
    spread = BaseDataset(ROWS, TARGETS).federate(workers("bob", "alice"))
    torch.manual_seed(1)
    first, second = (
        [(data.get(), target.get()) for data, target in FederatedDataLoader(spread, batch_size=3, shuffle=True)]
        for _ in range(2)
    )
    assert all(data[:, 0].equal(target * 2.0) for data, target in first)
    assert sorted(torch.cat([target for _, target in first]).tolist()) == TARGETS.tolist()
    assert [target.tolist() for _, target in first] != [target.tolist() for _, target in second]


def test_with_iter_per_worker_each_worker_gives_a_batch_at_a_time():
    spread = BaseDataset(ROWS, TARGETS).federate(workers("bob", "alice", "theo"))
    loader = FederatedDataLoader(spread, batch_size=3, iter_per_worker=True)
    turns = [{place.id: target.get().tolist() for place, (_, target) in batches.items()} for batches in loader]
    assert turns == [{"bob": [0, 1, 2], "alice": [5, 6, 7], "theo": [10, 11, 12]}, {"bob": [3, 4], "alice": [8, 9]}]
    assert len(loader) == 2


def test_two_iterators_take_the_next_worker_when_one_is_through():
    spread = BaseDataset(ROWS, TARGETS).federate(workers("bob", "alice", "theo"))
    loader = FederatedDataLoader(spread, batch_size=5, num_iterators=2)
    turns = [{place.id for place in batches} for batches in loader]
    assert turns == [{"bob", "alice"}, {"theo"}]
    assert len(loader) == 2


def test_a_transform_is_applied_to_the_rows_where_they_are():
    [bob] = workers("bob")
    spread = BaseDataset(ROWS, TARGETS, transform=lambda rows: rows * 10).federate([bob])
    data, _ = next(iter(FederatedDataLoader(spread, batch_size=2)))
    assert data.get().tolist() == [[0, 10], [20, 30]]


def test_what_does_not_fit_together_is_refused_with_the_reason():
    bob, alice = workers("bob", "alice")
    with pytest.raises(InvalidDataError, match="one target a row"):
        BaseDataset(ROWS, TARGETS[:3])
    with pytest.raises(InvalidDataError, match="one place"):
        BaseDataset(bob.receive(ROWS), TARGETS)
    with pytest.raises(InvalidDataError, match="send them first"):
        FederatedDataset([BaseDataset(ROWS, TARGETS)])
    with pytest.raises(InvalidDataError, match="two of the data sets are at bob"):
        FederatedDataset([BaseDataset(ROWS, TARGETS).send(bob)] * 2)
    with pytest.raises(InvalidDataError, match="at least one worker"):
        BaseDataset(ROWS, TARGETS).federate([])
    with pytest.raises(InvalidDataError, match="do not reach 2 workers"):
        BaseDataset(ROWS[:1], TARGETS[:1]).federate([bob, alice])
    with pytest.raises(InvalidDataError, match="at least 1"):
        FederatedDataLoader(FederatedDataset([]), batch_size=0)


def test_published_data_is_federated_where_it_lies(bob: GridProcess, connect: Connect):
    owner, guest = connect(bob, "Bob"), connect(bob)
    made = [owner.publish(tensor, tags=["#fed", kind]) for tensor, kind in ((ROWS, "#rows"), (TARGETS, "#targets"))]
    found = [guest.search("#fed", kind)[0] for kind in ("#rows", "#targets")]
    spread = FederatedDataset([BaseDataset(*found)])
    assert spread.workers == ["Bob"]
    total = sum(data.sum() for data, _ in FederatedDataLoader(spread, batch_size=4, shuffle=True))
    with pytest.raises(GetNotPermittedError):
        spread.get_dataset("Bob")
    assert len(spread) == 13
    assert total.get(user="Bob").unwrap().item() == ROWS.sum().item()
    for one in made:
        owner.unpublish(one)


# ------------------------------------------------------------------ training


def trained(places: list[Any], steps: int = 6) -> torch.nn.Module:
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 1)
    spread = BaseDataset(ROWS / 26, TARGETS[:, None] / 13).federate(places)
    optims = Optims(places, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9))
    for _ in range(steps):
        for data, target in FederatedDataLoader(spread, batch_size=13):
            send_module(model, data.location.session)
            optimizer = optims.get_optim(data.location.id, model.parameters())
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(model(data), target).backward()
            optimizer.step()
            get_module(model)
    return model


def test_each_worker_keeps_the_momentum_of_its_own_steps():
    torch.manual_seed(0)
    local = torch.nn.Linear(2, 1)
    halves = [(ROWS[:7] / 26, TARGETS[:7, None] / 13), (ROWS[7:] / 26, TARGETS[7:, None] / 13)]
    optimizers = [torch.optim.SGD(local.parameters(), lr=0.05, momentum=0.9) for _ in halves]
    for _ in range(6):
        for optimizer, (data, target) in zip(optimizers, halves, strict=True):
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(local(data), target).backward()
            optimizer.step()
    model = trained(workers("bob", "alice"))
    torch.testing.assert_close(model.state_dict(), local.state_dict())


def test_training_over_two_nodes_is_what_it_is_over_two_workers(bob: GridProcess, alice: GridProcess, connect: Connect):
    model = trained([connect(bob), connect(alice, "Ana")])
    torch.testing.assert_close(model.state_dict(), trained(workers("bob", "alice")).state_dict())


def test_optims_know_their_workers():
    optims = Optims(["bob", "alice"], torch.optim.Adam(torch.nn.Linear(2, 1).parameters()))
    assert (optims.workers, optims.count()) == (["bob", "alice"], 2)
    assert optims.get_optim("bob") is not optims.get_optim("alice")
    with pytest.raises(InvalidDataError, match="no optimiser for 'theo'"):
        optims.get_optim("theo")
    with pytest.raises(InvalidDataError, match="2 parameters, and here are 1"):
        optims.get_optim("bob", [torch.zeros(1)])
    with pytest.raises(TypeError, match="make one"):
        Optims(["bob"], torch.optim.Adam)  # type: ignore[arg-type]


def test_models_are_added_scaled_and_averaged():
    first, second = torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2)
    with torch.no_grad():
        second.weight.fill_(3)
        second.running_mean.fill_(4)
    mean = federated_avg({"bob": first, "alice": second})
    assert (mean.weight.tolist(), mean.running_mean.tolist()) == ([2, 2], [2, 2])
    assert first.weight.tolist() == [1, 1], "the models themselves stay as they are"
    assert scale_model(add_model(first, second), 0.5).weight.tolist() == [2, 2]
    with pytest.raises(InvalidDataError, match="no models"):
        federated_avg([])
    with pytest.raises(InvalidDataError, match="differ"):
        add_model(first, torch.nn.BatchNorm1d(3))


def test_the_mean_of_remote_models_stays_remote():
    [bob] = workers("bob")
    models = [send_module(torch.nn.Linear(2, 1), bob.session) for _ in range(2)]
    mean = federated_avg(models)
    expected = sum(model.weight.detach().get(deregister_ptr=False) for model in models) / 2
    torch.testing.assert_close(mean.weight.detach().get(), expected)


def test_accuracy_is_a_number_here_and_a_pointer_there():
    scores, classes = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.4, 0.6]]), torch.tensor([0, 1, 1, 1])
    assert accuracy(scores, classes) == 0.75
    [bob] = workers("bob")
    assert accuracy(bob.receive(scores), bob.receive(classes)).get().item() == 0.75


# ------------------------------------------------------------------ the sandbox


def test_a_sandbox_has_six_workers_and_five_data_sets_in_parts(capsys: pytest.CaptureFixture[str]):
    names: dict[str, Any] = {}
    create_sandbox(names)
    shown = capsys.readouterr().out
    assert "Setting up Sandbox" in shown
    assert "Iris" in shown
    assert {"hook", "me", "torch", "bob", "theo", "jason", "alice", "andy", "jon", "workers", "grid"} == set(names)
    grid = names["grid"]
    rows = {"#iris": 150, "#digits": 1797, "#wine": 178, "#diabetes": 442, "#breast_cancer": 569}
    for tag, count in rows.items():
        data, target = grid.search(tag, "#data"), grid.search(tag, "#target")
        assert list(data) == list(target) == ["bob", "theo", "jason", "alice", "andy", "jon"]
        assert sum(len(found[0]) for found in data.values()) == count
        assert all(len(data[name][0]) == len(target[name][0]) for name in data)
        assert all(found[0].location is names[name] for name, found in data.items())
    assert grid.search("#iris", "#nothing") == {}
    [rows_of_bob] = names["bob"].search("#iris", "#data")
    assert rows_of_bob.get(deregister_ptr=False).equal(
        grid.search("#iris", "#data")["bob"][0].get(deregister_ptr=False)
    )
    assert "Iris" in grid.search("#iris")["bob"][0].description


def test_rows_of_the_sandbox_keep_their_targets():
    names: dict[str, Any] = {}
    create_sandbox(names, verbose=False)
    iris = load_iris()
    known = {
        (*map(float, row), int(kind)) for row, kind in zip(torch.tensor(iris.data).float(), iris.target, strict=True)
    }
    for name, (data,) in names["grid"].search("#iris", "#data").items():
        [kinds] = names["grid"].search("#iris", "#target")[name]
        pairs = zip(data.get(deregister_ptr=False), kinds.get(deregister_ptr=False), strict=True)
        assert {(*map(float, row), int(kind)) for row, kind in pairs} <= known


def test_a_grid_of_ones_own_searches_workers_and_nodes_alike(bob: GridProcess, connect: Connect):
    owner, here = connect(bob, "Bob"), VirtualWorker(id="here")
    grid = PrivateGridNetwork(owner, here)
    made = owner.publish(torch.ones(4), tags=["#both"])
    grid.load(here, torch.ones(2), "#both", description="a pair")
    assert {name: len(found[0]) for name, found in grid.search("#both").items()} == {"Bob": 4, "here": 2}
    owner.unpublish(made)

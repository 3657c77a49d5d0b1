"""Federated averaging over four Nodes beside the same loop in one process: the demo's data, model and numbers."""

from __future__ import annotations

import copy

import torch

from benchmarks.grid import Grid, Server
from benchmarks.results import Result, rate
from benchmarks.scale import Scale
from benchmarks.timing import in_turns
from grid_jupyter.client.demo import (
    BATCH,
    LOCAL_EPOCHS,
    LR,
    ROUNDS,
    SCIENTIST,
    SEED,
    digits,
    evaluate,
    network,
    publish,
)
from grid_jupyter.client.fedavg import federated_rounds
from grid_jupyter.client.node import NodeClient
from grid_jupyter.tensors.remote import RemoteTensor

MEANING = """\
Each round, four Nodes train the model on rows of their own, and the weights come back to be averaged. The plain loop \
does the same sums in one process, with all rows at hand, so both must reach the same accuracy. The model is as small \
as the demo's; steps are recorded, so that the client sends a batch of row numbers and one command for each, and the \
Nodes compute at the same time as far as there are cores. What is left is waiting for the weights after each round."""

NODES = ("Bob", "Alice", "Bill", "James")
Shards = dict[str, tuple[torch.Tensor, torch.Tensor]]


def run(scale: Scale) -> list[Result]:
    """All figures of this benchmark."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with Grid() as grid:
            nodes = {name: grid.node(name) for name in scale(NODES, NODES[:2])}
            for name, node in nodes.items():
                grid.account(node, name, "Owner")
                grid.account(node, SCIENTIST, "User")
            parts = digits(list(nodes))
            publish({name: node.address for name, node in nodes.items()}, parts.shards)
            clients = [NodeClient(None, node.address, user=SCIENTIST) for node in nodes.values()]
            try:
                data = {client.id: _data(client) for client in clients}
                return _compare(scale, nodes, parts.shards, data, parts.held_out)
            finally:
                for client in clients:
                    client.close()
    finally:
        torch.set_num_threads(threads)


def _data(client: NodeClient) -> tuple[RemoteTensor, RemoteTensor]:
    (inputs,), (classes,) = (client.search("#digits", part) for part in ("#X", "#Y"))
    return inputs, classes


def _compare(
    scale: Scale,
    nodes: dict[str, Server],
    shards: Shards,
    data: dict[str, tuple[RemoteTensor, RemoteTensor]],
    held_out: tuple[torch.Tensor, torch.Tensor],
) -> list[Result]:
    rounds, epochs = scale(ROUNDS, 1), scale(LOCAL_EPOCHS, 1)
    models: dict[str, torch.nn.Module] = {}

    def federated() -> None:
        models["federated"] = network()
        training = federated_rounds(
            models["federated"], data, rounds=rounds, local_epochs=epochs, lr=LR, batch_size=BATCH, seed=SEED
        )
        for _ in training:
            pass

    def plain() -> None:
        models["plain"] = network()
        _plain_rounds(models["plain"], shards, rounds, epochs)

    took = in_turns(
        {"federated": federated, "plain": plain},
        scale(3, 1),
        {
            "nodes": lambda: sum(node.cpu_s() for node in nodes.values()),
            "workers": lambda: sum(node.below_cpu_s() for node in nodes.values()),
        },
    )
    accuracy = {name: evaluate(model, held_out)[0] for name, model in models.items()}
    cpu = {process: took["federated"].cpu_each(process) / rounds * 1e3 for process in ("here", "nodes", "workers")}
    plain_cpu = took["plain"].cpu_each("here") / rounds * 1e3
    one_process = "the plain loop in one process"
    return [
        rate(
            f"rounds over {len(nodes)} Nodes ({epochs} local epochs, batches of {BATCH})",
            rounds,
            took["federated"],
            "round/s",
            took["plain"],
            one_process,
        ),
        Result(
            what="CPU of one round: all processes",
            value=sum(cpu.values()),
            unit="ms",
            baseline=plain_cpu,
            against=one_process,
        ),
        *(
            Result(
                what=f"CPU of one round: {who}", value=cpu[process], unit="ms", baseline=plain_cpu, against=one_process
            )
            for process, who in (("here", "the client"), ("nodes", "the Nodes"), ("workers", "the Workers"))
        ),
        Result(
            what=f"held-out accuracy after {rounds} rounds",
            value=accuracy["federated"],
            unit="",
            baseline=accuracy["plain"],
            against=one_process,
        ),
    ]


def _plain_rounds(model: torch.nn.Module, shards: Shards, rounds: int, epochs: int) -> None:
    """Federated averaging (McMahan et al. 2017, algorithm 1) by SGD, as plain torch code: shard after shard."""
    shuffle = torch.Generator().manual_seed(SEED)
    total = sum(len(classes) for _, classes in shards.values())
    for _ in range(rounds):
        mean = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in model.state_dict().items()}
        for inputs, classes in shards.values():
            local = copy.deepcopy(model)
            optimizer = torch.optim.SGD(local.parameters(), lr=LR)
            for _ in range(epochs):
                for batch in torch.randperm(len(inputs), generator=shuffle).split(BATCH):
                    optimizer.zero_grad()
                    loss = torch.nn.functional.cross_entropy(local(inputs[batch]), classes[batch])
                    loss.backward()
                    optimizer.step()
            for name, value in local.state_dict().items():
                mean[name] += value.double() * (len(classes) / total)
        model.load_state_dict(mean)

"""A scientist's script, run on the notebook's host: publish as the owners, train round by round, tell each round."""

import json
import sys

import torch

from grid_jupyter import PublicGridNetwork, local
from grid_jupyter.client.demo import SCIENTIST, digits, network, publish

grid = local()
rounds = int(sys.argv[1])
parts = digits(sorted(grid.nodes))
publish(grid.nodes, parts.shards, readers=())
ana = PublicGridNetwork(None, grid.network, user=SCIENTIST)
model = network()


def tell(fit):
    done = fit.records[-1]
    told = {"round": done.round, "participants": sorted(done.participants), "left_out": done.left_out}
    print(json.dumps(told | {"accuracy": done.figures["accuracy"]}), flush=True)
    sys.stdin.readline()  # the next round begins when the one who watches says so


ana.train(
    model,
    torch.nn.functional.cross_entropy,
    data=(ana.search("#digits", "#demo", "#X"), ana.search("#digits", "#demo", "#Y")),
    rounds=rounds,
    local_epochs=2,
    batch_size=16,
    optimizer=torch.optim.SGD(model.parameters(), lr=0.3),
    held_out=parts.held_out,
    reason="four hosts",
    minimum=3,
    deadline_s=4.0,
    after_round=tell,
    live=False,
)

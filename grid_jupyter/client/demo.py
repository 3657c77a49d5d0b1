"""The main job from end to end, on a running grid: publish, find, be refused, train by jobs. `jupyter grid demo`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import torch

from grid_jupyter.client.fits import Fit
from grid_jupyter.client.grid import PublicGridNetwork
from grid_jupyter.client.local import local
from grid_jupyter.client.node import NodeClient
from grid_jupyter.errors import GetNotPermittedError, GridError
from grid_jupyter.wire.messages import JobPolicy

ROUNDS, LOCAL_EPOCHS, LR, BATCH, SEED = 10, 5, 0.3, 16, 0
SCIENTIST = "Ana"


@dataclass(frozen=True)
class Digits:
    """scikit-learn's digits: a fixed 20 % held out, the rest in non-IID shards by Node."""

    held_out: tuple[torch.Tensor, torch.Tensor]
    shards: dict[str, tuple[torch.Tensor, torch.Tensor]]


def digits(nodes: list[str], seed: int = SEED) -> Digits:
    """Split 1,797 images of 8×8 (inputs [n, 64] float32 in 0…1, classes [n] int64).

    Each class is dealt out by a Dirichlet(1) draw, so that every Node has much of some digits and little of
    others (Hsu et al. 2019, "Measuring the effects of non-identical data distribution").
    """
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    inputs = torch.tensor(found.data / 16.0, dtype=torch.float32)
    classes = torch.tensor(found.target, dtype=torch.int64)
    random = numpy.random.default_rng(seed)
    order = random.permutation(len(inputs))
    held, rest = order[: len(order) // 5], order[len(order) // 5 :]
    rows: dict[str, list[int]] = {name: [] for name in nodes}
    for digit in range(10):
        of_digit = rest[(classes[rest] == digit).numpy()]
        cuts = (numpy.cumsum(random.dirichlet([1.0] * len(nodes)))[:-1] * len(of_digit)).astype(int)
        for name, part in zip(nodes, numpy.split(of_digit, cuts), strict=True):
            rows[name] += part.tolist()
    shards = {name: (inputs[chosen], classes[chosen]) for name, chosen in rows.items()}
    return Digits((inputs[held], classes[held]), shards)


def network(seed: int = SEED) -> torch.nn.Module:
    """The small model: 64-32-10 with ReLU."""
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))


def evaluate(model: torch.nn.Module, held_out: tuple[torch.Tensor, torch.Tensor]) -> tuple[float, float]:
    """Accuracy and mean cross entropy on the held-out rows, which are the scientist's own."""
    with torch.no_grad():
        scores = model(held_out[0])
        loss = torch.nn.functional.cross_entropy(scores, held_out[1])
        return float((scores.argmax(1) == held_out[1]).float().mean()), float(loss)


def pooled(shards: dict[str, tuple[torch.Tensor, torch.Tensor]], epochs: int) -> torch.nn.Module:
    """The same model, optimiser and epochs on all shards in one place: what federation is compared with."""
    inputs, classes = (torch.cat(parts) for parts in zip(*shards.values(), strict=True))
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    shuffle = torch.Generator().manual_seed(SEED)
    for _ in range(epochs):
        for batch in torch.randperm(len(inputs), generator=shuffle).split(BATCH):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs[batch]), classes[batch]).backward()
            optimizer.step()
    return model


# ------------------------------------------------------------------ the steps


def publish(
    nodes: dict[str, str],
    shards: dict[str, tuple[torch.Tensor, torch.Tensor]],
    readers: tuple[str, ...] = (SCIENTIST,),
) -> None:
    """Each owner publishes his shard: the `readers` may read it, and the scientist's jobs run unasked, if they take
    some steps on some rows."""
    for name, (inputs, classes) in shards.items():
        with NodeClient(None, nodes[name]) as node:
            for data, part in ((inputs, "#X"), (classes, "#Y")):
                node.publish(
                    data,
                    name=f"digits {part[1:]}",
                    tags=("#digits", "#demo", part),
                    description=f"Handwritten digits of {name}.\n8x8 pixels in 0..1, or the digit.",
                    allowed_users=readers,
                    user=name,
                    jobs=JobPolicy(automatic=(SCIENTIST,), min_rows=50, min_steps=10),
                )


def refused(pointers: list[Any]) -> int:
    """Somebody computes, and tries to read in every way there is; how often it was refused.

    Raises GridError if anything was given out.
    """
    count = 0
    for pointer in pointers:
        mean = pointer.double().mean()
        attempts = [pointer.get, pointer.tolist, pointer.numpy, mean.get, mean.item]
        attempts += [partial(bool, mean > 0), partial(list, map(float, pointer[0])), partial(_size, pointer)]
        for attempt in attempts:
            try:
                attempt()
            except GetNotPermittedError:
                count += 1
            else:
                raise GridError("somebody was given a value who may not read it; this must never happen")
    return count


def _size(pointer: Any) -> Any:
    """How many pixels are not black: a size that depends on values, whose number is a value."""
    return int(pointer[pointer > 0].shape[0])


def plot(history: list[dict[str, float]], reference: float, path: Path) -> None:
    """Save accuracy against round as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    axes.plot([r["round"] for r in history], [r["accuracy"] for r in history], marker="o", label="federated, 4 Nodes")
    axes.axhline(reference, linestyle="--", color="gray", label="the same model on pooled data")
    axes.set(xlabel="round", ylabel="held-out accuracy", ylim=(0, 1), title="Digits over four Nodes")
    axes.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def run(output: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """All steps on the grid of this machine. Raises GridError when anything fails."""
    grid = local()
    names = sorted(grid.nodes)
    parts = digits(names)
    publish(grid.nodes, parts.shards, readers=())
    rows = sum(len(x) for x, _ in parts.shards.values())
    say(f"{len(names)} owners published {rows} rows that nobody may read; jobs of {SCIENTIST} may train on them")

    guest = PublicGridNetwork(None, grid.network)
    seen = guest.search("#digits", "#demo", "#X")
    if sorted(seen) != names:
        raise GridError(f"the search found data on {sorted(seen)}, not on {names}")
    refusals = refused([pointers[0] for pointers in seen.values()])
    guest.close()
    say(f"a guest found them through the Network, computed on them, and was refused {refusals} times of {refusals}")

    scientist = PublicGridNetwork(None, grid.network, user=SCIENTIST)
    inputs = scientist.search("#digits", "#demo", "#X")
    own = refused([pointers[0] for pointers in inputs.values()])
    say(f"{SCIENTIST} computed on them as well, and was refused {own} times of {own}")

    model = network()
    history: list[dict[str, float]] = []

    def after_round(fit: Fit) -> None:
        done = fit.records[-1]
        if len(done.participants) < len(names):
            raise GridError(f"round {done.round} went without {', '.join(done.left_out)}: {done.left_out}")
        history.append({"round": done.round, "accuracy": done.figures["accuracy"], "loss": done.figures["loss"]})
        if not sys.stderr.isatty():
            say(f"round {done.round:2d}  accuracy {history[-1]['accuracy']:.3f}  loss {history[-1]['loss']:.3f}")

    scientist.train(
        model,
        torch.nn.functional.cross_entropy,
        data=(inputs, scientist.search("#digits", "#demo", "#Y")),
        rounds=ROUNDS,
        local_epochs=LOCAL_EPOCHS,
        batch_size=BATCH,
        seed=SEED,
        optimizer=torch.optim.SGD(model.parameters(), lr=LR),
        held_out=parts.held_out,
        reason="the demo: digits over all Nodes",
        after_round=after_round,
    )
    scientist.close()
    reference, _ = evaluate(pooled(parts.shards, ROUNDS * LOCAL_EPOCHS), parts.held_out)
    final = history[-1]["accuracy"]
    say(f"held-out accuracy {final:.3f}; the same model on pooled data: {reference:.3f}")
    plot(history, reference, output)
    say(f"plot: {output}")
    if final < 0.90 or reference - final > 0.02:
        raise GridError(f"accuracy {final:.3f} is below 0.90, or more than 0.02 under the pooled {reference:.3f}")
    return {
        "ok": True,
        "nodes": {name: len(x) for name, (x, _) in parts.shards.items()},
        "refusals": refusals + own,
        "rounds": history,
        "accuracy": final,
        "pooled_accuracy": reference,
        "plot": str(output),
    }


def main(arguments: list[str]) -> int:
    """Run the demo; 0 if everything held."""
    parser = argparse.ArgumentParser(description="Run the demo on the grid whose state lies in --home.")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("grid-demo-accuracy.png"))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    os.environ["GRID_JUPYTER_HOME"] = str(options.home)
    torch.set_num_threads(1)

    def say(text: str) -> None:
        print(text, file=sys.stderr if options.json else sys.stdout, flush=True)

    try:
        result = run(options.output, say)
    except GridError as error:
        result = {"ok": False, "error": str(error), "code": error.code}
        say(f"the demo failed: {error}")
    if options.json:
        print(json.dumps(result), flush=True)
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

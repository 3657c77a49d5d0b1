"""What the client knows of its own stream: which values a command may have changed, beside what an executor does."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from grid_jupyter.ops.kernels import kernel
from grid_jupyter.tensors.ahead import _FRESH
from grid_jupyter.tensors.dispatch import template
from grid_jupyter.tensors.stream import TEMPLATES, Unchanged, references
from grid_jupyter.wire import commands as c
from grid_jupyter.wire import frames
from grid_jupyter.worker.executor import Executor
from grid_jupyter.worker.templates import storage_of

X, Y = torch.tensor([0.25, 0.5]), torch.tensor([0.5, 0.75])
ONE, ROWS, CLASSES = torch.tensor(0.5), torch.tensor([[0.25, 0.5]]), torch.tensor([1])
SEVERAL: dict[str, list[tuple[Any, ...]]] = {
    "aten._to_copy.default": [(X,), (ONE,)],
    "aten.argmax.default": [(X,), (ONE,), (X, 0)],
    "aten.argmin.default": [(X,), (ONE,), (X, 0)],
    "aten.linalg_vector_norm.default": [(X,), (ONE,), (X[:1], 1)],
    "aten.mean.dim": [(X, [0]), (X[:1], [0]), (ONE, [])],
    "aten.sum.dim_IntList": [(X, [0]), (X[:1], [0]), (ONE, []), (X, None)],
    "aten.nll_loss_forward.default": [(ROWS, CLASSES, None, how, -100) for how in (0, 1, 2)],
    "aten.nll_loss2d_forward.default": [(ROWS[..., None, None], CLASSES[:, None, None], None, 1, -100)],
    "aten.dot.default": [(X, Y), (X[:1], Y[:1])],
}
TWO = ("add", "sub", "mul", "div", "eq", "mse_loss", "smooth_l1_loss", "huber_loss", "soft_margin_loss")


def samples(name: str) -> list[tuple[Any, ...]]:
    if name in SEVERAL:
        return SEVERAL[name]
    if name.endswith(".Scalar"):
        return [(X, 1), (ONE, 1), (X, 0)]
    if name.split(".")[1] in TWO or "cross_entropy" in name:
        return [(X, Y), (ONE, Y[0]), (X[:1], Y[:1])]
    return [(X,), (ONE,), (X[:1],), (X.double(),)]


@pytest.mark.parametrize("name", sorted(_FRESH))
def test_what_is_read_ahead_has_memory_of_its_own(name: str):
    facts = kernel(name)
    assert (facts.views, facts.writes, facts.mutates, facts.sized) == ({}, {}, frozenset(), False)
    for given in samples(name):
        result = facts.run(*given)
        first = result[0] if isinstance(result, (tuple, list)) else result
        assert storage_of(first) not in {storage_of(one) for one in given if isinstance(one, torch.Tensor)}


MUL = template("aten.mul.Tensor", ["r", "d"])
STEPS = [
    MUL,
    template("aten.detach.default", ["r"]),
    template("aten.view.default", ["r", "d"]),
    template("aten.native_dropout.default", ["r", "d", ["c", False]]),  # which hands out its argument
    template("aten.add_.Tensor", ["r", "r"]),
    template("aten.copy_.default", ["r", "r"]),
    template("aten._foreach_add_.Scalar", [["L", ["r", "r"]], "d"]),
    template("aten.maximum.out", ["r", "r"], [["out", "r"]]),
]


def program(dice: random.Random) -> tuple[list[list[Any]], list[int]]:
    """Random commands, and the ids that they make."""
    ids, made, done = iter(range(10, 1000)), [1, 2], []
    for _ in range(dice.randrange(2, 12)):
        number, a, b, out = dice.choice([*STEPS, -1, -2]), dice.choice(made), dice.choice(made), next(ids)
        if number == -1:
            done += [[c.REQUIRE_GRAD, 3, True], [c.SET_GRAD, 3, a]]
        elif number == -2:
            done += [[MUL, out, 3, 2.0], [c.BACKWARD, out, b, False, False, -next(ids)], [c.GRAD_OF, next(ids), 3]]
            made.append(done[-1][1])
        elif number in STEPS[:4]:
            rest = {2: [[2]], 3: [0.5]}.get(STEPS.index(number), [2.0] if number == MUL else [])
            done.append([number, [out, next(ids)] if number == STEPS[3] else out, a, *rest])
            made.append(out)
        else:
            third = {6: [1.5], 7: [dice.choice(made)]}.get(STEPS.index(number), [])
            done.append([number, -out, a, b, *third])
    return done, made


@pytest.mark.parametrize("seed", range(300))
def test_a_value_that_an_executor_finds_changed_is_never_taken_for_unchanged(seed: int):
    dice = random.Random(seed)  # noqa: S311 - which programs
    done, _ = program(dice)
    executor = Executor()
    executor.feed(frames.encode([[c.DEFINE, number, *TEMPLATES[number]] for number in {*STEPS}]))
    for identity in (1, 2, 3):
        executor.put(identity, torch.tensor([1.0 + identity, 5.0 * identity]))
    begun = dice.randrange(len(done))
    executor.feed(frames.encode([*done[:begun], [MUL, 5, 1, 1.0]]))
    before, still = executor.read(5).tensor.tolist(), Unchanged(5)
    for command in [[STEPS[1], 6, 5], *[_with(command, dice) for command in done[begun:]]]:
        executor.feed(frames.encode([command]))
        still.follow(command)
        for identity in still.same if still.holds else ():
            assert executor.read(identity).tensor.tolist() == before, (command, identity)


def _with(command: list[Any], dice: random.Random) -> list[Any]:
    """The command, with the value that is followed, or what is detached of it, among its arguments at times."""
    made = list(command)
    places = references(made[0]) if made[0] >= 0 else (2,) if made[0] in (c.SET_GRAD, c.BACKWARD) else ()
    for at in places:
        if dice.random() < 0.4:
            made[at] = dice.choice([5, 6])
    return made

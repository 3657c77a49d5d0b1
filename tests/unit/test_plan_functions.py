"""Plans of functions, as in PySyft 0.2.9: func2plan, build, state, nesting, classes, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import grid_jupyter as sy
from grid_jupyter.errors import NotCapturableError, PlanInvalidError
from grid_jupyter.plans.reader import read_plan


def test_a_function_with_shapes_is_a_plan_at_once_for_every_batch_size():
    @sy.func2plan(args_shape=[(-1, 3), (3,)])
    def scaled(x: Tensor, by: Tensor) -> Tensor:
        """Twice x, scaled."""
        return 2 * x * by

    assert scaled.is_built
    assert scaled.__doc__ == "Twice x, scaled."
    for rows in (1, 4, 100):
        x, by = torch.randn(rows, 3), torch.randn(3)
        torch.testing.assert_close(scaled(x, by), 2 * x * by)
    assert "mul(%0, 2)" in scaled.code
    assert scaled.document.kind == "function"


def test_a_function_without_shapes_runs_as_itself_until_it_is_built():
    calls = []

    @sy.func2plan()
    def doubled(x: Tensor) -> Tensor:
        calls.append(1)
        return x + x

    assert doubled(torch.tensor([3.0])).item() == 6
    with pytest.raises(RuntimeError, match="doubled is not built"):
        doubled.to_bytes()
    doubled.build(torch.zeros(2))
    calls.clear()
    assert doubled(torch.tensor([1.0, 2.0])).tolist() == [2, 4]
    assert calls == []


def test_a_wrong_number_of_arguments_is_told():
    @sy.func2plan(args_shape=[(1,)])
    def same(x: Tensor) -> Tensor:
        return x * 1.5

    with pytest.raises(TypeError, match="Plan same requires 1 arguments, received 2"):
        same(torch.zeros(1), torch.zeros(1))
    with pytest.raises(TypeError, match="requires 1 arguments, received 0"):
        same()
    with pytest.raises(TypeError, match="nest as those"):
        same([torch.zeros(1)])


def test_state_travels_with_the_plan():
    @sy.func2plan(args_shape=[(2,)], state=(torch.tensor([1.0]), torch.tensor([10.0])))
    def moved(x: Tensor, state: Any) -> Tensor:
        bias, scale = state.read()
        return x * scale + bias

    assert moved(torch.tensor([1.0, 2.0])).tolist() == [11, 21]
    assert [tensor.item() for tensor in moved.state.tensors()] == [1, 10]
    assert len(moved.parameters()) == 2
    other = moved.copy()
    other.state.read()[0].add_(5)
    assert moved(torch.tensor([1.0, 2.0])).tolist() == [11, 21]
    assert other(torch.tensor([1.0, 2.0])).tolist() == [16, 26]
    assert other.sha256 == moved.sha256


def test_lists_tuples_and_dicts_go_in_and_come_out():
    @sy.func2plan()
    def mixed(pair: tuple[Tensor, Tensor], named: dict[str, Any]) -> dict[str, Any]:
        return {"sum": pair[0] + pair[1], "all": [named["a"], (named["b"][0] * 2, pair[0] - 1)]}

    arguments = (torch.ones(2), torch.ones(2) * 3), {"b": [torch.ones(1)], "a": torch.zeros(3) + 0.5}
    mixed.build(*arguments)
    result = mixed(*arguments)
    assert result["sum"].tolist() == [4, 4]
    assert result["all"][1][0].tolist() == [2]
    assert isinstance(result["all"][1], tuple)
    assert mixed((torch.ones(4), torch.ones(4)), arguments[1])["sum"].tolist() == [2, 2, 2, 2]
    dummies = mixed.create_dummy_args()
    assert list(dummies[1]) == ["a", "b"]
    assert mixed(*dummies)["sum"].tolist() == [0, 0]


def test_a_plan_within_a_plan_becomes_part_of_it():
    @sy.func2plan(args_shape=[(-1, 2)])
    def inner(x: Tensor) -> Tensor:
        return x.relu()

    @sy.func2plan(args_shape=[(-1, 2)])
    def outer(x: Tensor) -> Tensor:
        return inner(x) + 1

    assert outer(torch.tensor([[-1.0, 2.0]])).tolist() == [[1, 3]]
    assert "relu" in outer.code


def test_a_class_with_forward_is_a_plan():
    class Net(sy.Plan):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(2, 3), nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.relu(self.first(x)))

    net = Net()
    x = torch.randn(4, 2)
    before = net(x)
    net.build(torch.zeros(4, 2))
    torch.testing.assert_close(net(x), before)
    assert len(net.parameters()) == 4
    assert "state first.weight" in net.code
    assert read_plan(net.to_bytes()) == net.document


def test_a_step_that_is_written_by_hand_is_captured_with_its_gradients():
    """The training plan of PySyft's own tutorials: backward() and an update, in a function."""
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    params = [p.detach().clone().requires_grad_() for p in model.parameters()]

    def step(x: Tensor, y: Tensor, rate: Tensor, given: list[Tensor]) -> tuple[Any, ...]:
        hidden = torch.relu(x @ given[0].T + given[1])
        logits = hidden @ given[2].T + given[3]
        loss = -(y * torch.log_softmax(logits, 1)).sum() / x.shape[0]
        loss.backward()
        with torch.no_grad():
            moved = [p - rate * p.grad for p in given]
        return loss, moved

    plan = sy.func2plan()(step)
    x, y, rate = torch.randn(6, 4), torch.eye(3)[torch.randint(3, (6,))], torch.tensor(0.1)
    plan.build(x, y, rate, params, trace_autograd=True)
    assert plan.fixed is None
    x, y = torch.randn(9, 4), torch.eye(3)[torch.randint(3, (9,))]
    loss, moved = plan(x, y, rate, [p.detach() for p in params])
    expected = [p.detach().clone().requires_grad_() for p in params]
    value = -(y * torch.log_softmax(torch.relu(x @ expected[0].T + expected[1]) @ expected[2].T + expected[3], 1)).sum()
    (value / 9).backward()
    assert loss.item() == pytest.approx(value.item() / 9, rel=1e-5)
    for found, p in zip(moved, expected, strict=True):
        torch.testing.assert_close(found, p.detach() - 0.1 * p.grad, rtol=1e-5, atol=1e-7)


def test_a_plan_of_examples_takes_any_number_of_rows_where_its_function_does():
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    examples: dict[str, tuple[Any, tuple[Tensor, ...]]] = {
        "a model and its mean": (lambda x: net(x).mean() / x.shape[0], (torch.randn(4, 3),)),
        "rows first, a matrix as high as them": (lambda x, w: x @ w, (torch.randn(3, 3), torch.randn(3, 2))),
        "rows behind a matrix": (lambda w, x: (w * torch.ones(2)) @ x.T, (torch.randn(5, 2), torch.randn(4, 2))),
        "classes beside rows": (
            lambda x, y: nn.functional.cross_entropy(net(x), y), (torch.randn(6, 3), torch.randint(2, (6,)))
        ),
        "one row, and a bias of one": (lambda x, b: torch.relu(x) + b, (torch.randn(1, 3), torch.randn(1))),
        "one row twice": (lambda x, y: x * y, (torch.randn(1, 3), torch.randn(1, 3))),
        "flattened": (lambda x: x.flatten(1).sum(1), (torch.randn(4, 2, 5),)),
        "built into one size that is none": (lambda x: x.reshape(-1, 3) * 2, (torch.randn(2, 6),)),
    }  # fmt: skip
    for said, (function, arguments) in examples.items():
        plan = sy.func2plan()(function).build(*arguments)
        assert plan.fixed is None, (said, plan.fixed)
        varied = {one for one in plan.document.inputs_of("arg") if one.spec.shape[0] == "B"}
        for rows in (1, 2, 8, 90):
            given = [
                torch.cat([argument] * 90)[:rows] if one in varied else argument
                for argument, one in zip(arguments, plan.document.inputs_of("arg"), strict=True)
            ]
            torch.testing.assert_close(plan(*given), function(*given).detach(), msg=f"{said}, {rows} rows")
        assert "for batches B of 1 to 4096" in plan.code


def test_a_plan_of_examples_whose_function_is_for_their_sizes_alone_says_so():
    fixed = {
        "shape '\\[4, 3\\]' is invalid": lambda x: x.reshape(4, 3) + 1,
        "something else for a batch of 4": lambda x: x * 2 if x.shape[0] == 4 else x * 3,
        "does different things for batches": lambda x: x.sum(0) if x.shape[0] > 6 else x.mean(0),
    }
    for said, function in fixed.items():
        plan = sy.func2plan()(function).build(torch.ones(4, 3))
        assert plan(torch.ones(4, 3)).equal(function(torch.ones(4, 3)))
        with pytest.raises(PlanInvalidError, match=f"takes \\[4, 3\\] alone: its function .*{said}"):
            plan(torch.ones(5, 3))
        assert "for these sizes alone" in plan.code
    plan = sy.func2plan()(lambda x: x + 1).build(torch.ones(4, 3), batch=None)
    with pytest.raises(PlanInvalidError, match="built with batch=None"):
        plan(torch.ones(5, 3))
    with pytest.raises(PlanInvalidError, match="none of its arguments has rows"):
        sy.func2plan()(lambda x: x + 1).build(torch.tensor(1.0))(torch.ones(1))


def test_a_plan_is_not_for_one_row_where_its_function_does_something_else_for_one():
    plan = sy.func2plan()(lambda x: x[:, :2].squeeze() * 2).build(torch.randn(4, 3))
    assert plan(torch.ones(2, 3)).tolist() == [[2, 2], [2, 2]]
    with pytest.raises(PlanInvalidError, match="batches of 2 to 4096, not of 1"):
        plan(torch.ones(1, 3))
    assert sy.func2plan()(lambda x: x.squeeze(0) * 2).build(torch.ones(1, 3)).fixed


def test_shapes_that_say_which_length_is_the_batch_are_kept_to():
    @sy.func2plan(args_shape=[(4, 3), (-1, 3)], batch=(2, 10))
    def f(w: Tensor, x: Tensor) -> Tensor:
        return x @ w.T

    assert f(torch.ones(4, 3), torch.ones(7, 3)).shape == (7, 4)
    for w, x, said in ((5, 7, "takes float32"), (4, 11, "batches of 2 to 10, not of 11")):
        with pytest.raises(PlanInvalidError, match=said):
            f(torch.ones(w, 3), torch.ones(x, 3))
    with pytest.raises(NotCapturableError, match="different things"):
        sy.func2plan(args_shape=[(-1, 3)])(lambda x: x.sum(0) if x.shape[0] > 6 else x.mean(0))
    for shape in ((3, -1), (-2, 3)):
        with pytest.raises(ValueError, match="is no shape of an argument"):
            sy.func2plan(args_shape=[shape])(lambda x: x + 1)
    with pytest.raises(ValueError, match="batch=None says that there is none"):
        sy.func2plan(args_shape=[(-1, 3)], batch=None)(lambda x: x + 1)


def test_what_is_no_tensor_is_refused():
    @sy.func2plan()
    def f(x: Tensor, n: int) -> Tensor:
        return x * n

    with pytest.raises(TypeError, match="not int"):
        f.build(torch.zeros(2), 3)


def test_a_plan_shows_what_it_is():
    @sy.func2plan(args_shape=[(1,)])
    def f(x: Tensor) -> Tensor:
        return x + 1

    assert repr(f).startswith("<Plan f: function ")
    assert f.sha256[:12] in repr(f)
    assert repr(sy.func2plan()(lambda x: x)).endswith(": not built>")
    assert sy.Plan.from_bytes(f.to_bytes()).code == f.code

"""Attacks on lineage by what does not happen: failures, absences and forged results that tell of private values."""

from __future__ import annotations

import pytest
import torch
from test_executor_lineage import NONE, ON, SECRET, Session

from grid_jupyter.errors import InvalidMessageError
from grid_jupyter.wire import commands as c
from grid_jupyter.worker.executor import Broken
from grid_jupyter.worker.templates import SIZED


@pytest.fixture
def s() -> Session:
    return Session()


def fails_if_large(s: Session, value: float) -> int:
    """A private value that could not be computed if the secret is over 0.5."""
    large = s.op("gt.Scalar", ["r", "d"], s.private(torch.tensor([value])), 0.5)
    index = s.op("mul.Tensor", ["r", "r"], large, s.public([5]))
    return int(s.op("index_select.default", ["r", "d", "r"], s.public([0.0] * 3), 0, index))


def seen(s: Session, identity: int) -> object:
    """What a stranger learns from reading a value: nothing where it derives from a data set."""
    found = s.executor.read(identity)
    if found.sources:
        return "not permitted"
    return str(found.error) if isinstance(found, Broken) else found.tensor.tolist()


def both(attack: object) -> list[object]:
    """What an attack shows for a small and for a large secret."""
    return [attack(Session(), value) for value in (0.2, 0.8)]  # type: ignore[operator]


def test_one_result_does_not_become_several(s: Session):
    """Its rows may lie over each other: what is written to one would be read from the other."""
    rows = [s.new_id(), s.new_id()]
    s.op("new_empty_strided.default", ["r", "d", "d"], s.public([0.0]), [2, 3], [0, 1], out=rows)
    s.write(rows[0], s.private())
    assert s.is_safe(rows[1])


@pytest.mark.parametrize(
    ("name", "args", "operands"),
    [
        ("slice.Tensor", ["r", "d", "d", "r"], (0, 0, "secret")),
        ("select.int", ["r", "d", "r"], (0, "secret")),
        ("narrow.default", ["r", "d", "d", "r"], (0, 0, "secret")),
        ("view.default", ["r", ["L", ["r", "d"]]], ("secret", -1)),
        ("expand.default", ["r", ["L", ["r", "d"]]], ("secret", 12)),
        ("unfold.default", ["r", "d", "r", "d"], (0, "secret", 1)),
        ("split.Tensor", ["r", "r"], ("secret",)),
        ("diagonal.default", ["r", "r"], ("secret",)),
        ("transpose.int", ["r", "d", "r"], (0, "secret")),
        ("squeeze.dim", ["r", "r"], ("secret",)),
        ("new_zeros.default", ["r", ["L", ["r"]]], ("secret",)),
    ],
)
def test_a_private_number_does_not_choose_what_a_view_shows(
    s: Session, name: str, args: list[object], operands: tuple[object, ...]
):
    """torch takes a tensor of one element where it wants a number; the view has the lineage of what it shows."""
    base, secret = s.public([float(n) for n in range(12)]), s.private(torch.tensor(3))
    if name == "expand.default":
        base = s.public([[float(n) for n in range(12)]])
    outs = [s.new_id() for _ in range(4)] if name == "split.Tensor" else s.new_id()
    s.op(name, args, base, *[secret if part == "secret" else part for part in operands], out=outs)
    for identity in outs if isinstance(outs, list) else [outs]:
        found = s.executor.read(identity)
        assert found.sources or isinstance(found, Broken)


def test_an_earlier_private_failure_does_not_hide_a_public_one():
    def attack(s: Session, value: float) -> object:
        target = s.public([0.0])
        s.op("add_.Tensor", ["r", "r"], target, fails_if_large(s, value), out=0)
        s.op("add_.Tensor", ["r", "r"], s.public([0.0, 0.0]), s.public([0.0, 0.0, 0.0]), out=0)  # fails in any case
        return [str(fault.error) for fault in s.executor.earlier() if not fault.sources]

    small, large = both(attack)
    assert small == large
    assert len(small) == 1  # type: ignore[arg-type]


def test_a_gradient_that_could_not_be_assigned_does_not_show_as_the_old_one():
    def attack(s: Session, value: float) -> object:
        leaf = s.leaf([1.0])
        s.backward(s.sum(leaf))
        s.feed([c.SET_GRAD, leaf, fails_if_large(s, value)])
        return seen(s, s.grad_of(leaf))

    assert both(attack) == ["not permitted"] * 2


def test_nor_does_its_absence_show():
    def attack(s: Session, value: float) -> object:
        leaf = s.public([1.0])
        s.feed([c.SET_GRAD, leaf, fails_if_large(s, value)])
        return seen(s, s.grad_of(leaf))

    assert both(attack) == ["not permitted"] * 2


def test_whether_a_backward_pass_failed_does_not_show_in_what_it_did_not_reach():
    def attack(s: Session, value: float) -> object:
        leaf, other = s.leaf([1.0] * 3), s.leaf([1.0])
        s.backward(s.sum(s.mul(leaf, fails_if_large(s, value))))
        return seen(s, s.grad_of(other))

    assert len(set(map(str, both(attack)))) == 1


def test_a_result_that_is_missing_leaves_no_older_value_under_its_id(s: Session):
    old = s.public([1.0, 2.0, 3.0])
    x = s.private(SECRET.reshape(3, 1))
    outs = [s.new_id(), s.new_id(), s.new_id()]
    s.op("native_batch_norm.default", ["r", NONE, NONE, NONE, NONE, ON, "d", "d"], x, 0.1, 1e-5, out=outs)
    s.op("native_dropout.default", ["r", "d", NONE], x, 0.0, out=[s.new_id(), old])
    assert s.is_safe(old)


def test_gradients_for_too_few_ids_end_the_session_whether_or_not_they_could_be_computed():
    def attack(s: Session, value: float) -> object:
        leaf = s.leaf([1.0] * 3)
        loss = s.sum(s.mul(leaf, fails_if_large(s, value)))
        with pytest.raises(InvalidMessageError):
            s.feed([c.GRADIENTS, [s.new_id(), s.new_id()], [loss], [0], [leaf], False, False])
        return "ended"

    assert both(attack) == ["ended"] * 2


def test_results_that_share_a_storage_share_its_lineage(s: Session):
    """Whatever an operation hands out: no two lineages for one storage."""
    for name, args, operands, count in (
        ("split_with_sizes.default", ["r", "d"], ([1, 2],), 2),
        ("unbind.int", ["r"], (), 3),
        ("unsafe_split.Tensor", ["r", "d"], (2,), 2),
        (
            "native_batch_norm.default",
            ["r", NONE, NONE, "r", "r", ["c", False], "d", "d"],
            ("stats", "stats", 0.1, 1e-5),
            3,
        ),
        ("std_mean.correction", ["r"], (), 2),
    ):
        stats = s.public([0.5])
        given = s.public([[1.0], [2.0], [3.0]]) if "norm" in name else s.public([1.0, 2.0, 3.0])
        outs = [s.new_id() for _ in range(count)]
        s.op(name, args, given, *[stats if part == "stats" else part for part in operands], out=outs)
        made = [i for i in (given, stats, *outs) if isinstance(s.executor.values.get(i), torch.Tensor)]
        storages: dict[int, object] = {}
        for identity in made:
            value, box = s.executor.values[identity], s.executor.boxes[identity]
            if value.numel():
                assert storages.setdefault(value.untyped_storage()._cdata, box) is box, name


def test_lengths_that_are_private_make_results_of_a_hidden_size(s: Session):
    """The loss of CTC keeps a table as wide as the longest target."""
    s.executor.closed = 0b1
    lengths = s.private(torch.tensor([1, 2]))
    outs = [s.new_id(), s.new_id()]
    s.op(
        "_ctc_loss.Tensor", ["r", "r", "r", "r"], s.public([[[-1.0, -2.0, -3.0]] * 2] * 6),
        s.public([[1, 2, 1], [2, 1, 2]]), s.public([6, 6]), lengths, out=outs,
    )  # fmt: skip
    assert all(s.sources(identity) >= SIZED for identity in outs)

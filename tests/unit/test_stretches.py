"""Stretches of a compiled recording: what they put into one call comes to the same bits, and what they leave out."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from grid_jupyter.wire import commands as c
from grid_jupyter.worker import compiled, stretches
from grid_jupyter.worker.stretches import as_told, fits_in, stretch
from grid_jupyter.worker.tape import Noted, Ref
from tests.unit.test_compiled_recordings import OUT, Twins, X, Y, trained

aten = torch.ops.aten
MADE = 10


def noted(op: Any, *args: Any, outs: int | list[int] = MADE, **kwargs: Any) -> Noted:
    return Noted(op._op, list(args), kwargs, outs, True, op)


def table(*size: int) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(4))


CALLS: dict[str, tuple[Noted, list[torch.Tensor]]] = {
    "numbers with defaults": (noted(aten.add.Tensor, Ref(0), Ref(1)), [table(3, 4), table(4)]),
    "a keyword": (noted(aten.add.Tensor, Ref(0), Ref(1), alpha=-0.25), [table(3, 4), table(4)]),
    "an integer for a float": (noted(aten.leaky_relu.default, Ref(0), 2), [table(3, 4)]),
    "a list of integers": (noted(aten.sum.dim_IntList, Ref(0), [0, 2], True), [table(3, 4, 5)]),
    "an empty list": (noted(aten.view.default, Ref(0), []), [table(1)]),
    "a list of tensors": (noted(aten.cat.default, [Ref(0), Ref(1)], 1), [table(3, 4), table(3, 2)]),
    "several results": (noted(aten.max.dim, Ref(0), 1, outs=[MADE, MADE + 1]), [table(3, 4)]),
    "a list of results": (noted(aten.split.Tensor, Ref(0), 2, 1, outs=[MADE, MADE + 1]), [table(3, 4)]),
    "a text": (noted(aten.gelu.default, Ref(0), approximate="tanh"), [table(3, 4)]),
    "a dtype and a memory format": (
        noted(aten._to_copy.default, Ref(0), dtype=torch.float64, memory_format=torch.channels_last),
        [table(2, 3, 4, 5)],
    ),
    "no tensor where one may be": (
        noted(aten.convolution.default, Ref(0), Ref(1), None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1),
        [table(1, 2, 5, 5), table(3, 2, 3, 3)],
    ),
    "a list of truths, and a result that is none": (
        noted(
            aten.convolution_backward.default, Ref(0), Ref(1), Ref(2), [3], [1, 1], [0, 0], [1, 1], False, [0, 0], 1,
            [False, True, True], outs=[MADE, MADE + 1, MADE + 2],
        ),
        [table(1, 3, 3, 3), table(1, 2, 5, 5), table(3, 2, 3, 3)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_a_call_within_a_stretch_gives_what_it_gives_alone(name: str):
    call, given = CALLS[name]
    results = call.call(*[_placed(part, given) for part in call.args], **call.kwargs)
    alone = list(results) if isinstance(call.outs, list) else [results]
    made = call.outs if isinstance(call.outs, list) else [call.outs]
    wanted = [number for number, one in zip(made, alone, strict=True) if one is not None]
    run = stretch([call], wanted, (0,))
    assert run is not None
    values: list[Any] = [*given, *[None] * (20 - len(given))]
    with as_told():
        run(values)
    assert values[0] is None, "it is dead afterwards"
    for number, expected in zip(made, alone, strict=True):
        if expected is None:
            assert values[number] is None
        else:
            assert (values[number].dtype, values[number].stride()) == (expected.dtype, expected.stride())
            assert values[number].numpy().tobytes() == expected.numpy().tobytes()


def _placed(part: Any, given: list[torch.Tensor]) -> Any:
    if isinstance(part, list):
        return [_placed(one, given) for one in part]
    return given[part.number] if isinstance(part, Ref) else part


def test_no_product_is_taken_apart_and_nothing_else_is_made_of_a_stretch():
    w, x, b = table(128, 784), table(64, 784), table(128)
    run = stretch(
        [noted(aten.t.default, Ref(0), outs=5), noted(aten.addmm.default, Ref(2), Ref(1), Ref(5))], [MADE], ()
    )
    assert run is not None
    values: list[Any] = [w, x, b, *[None] * 10]
    for _ in range(4):
        with as_told():
            run(values)
        assert torch.equal(values[MADE], torch.addmm(b, x, w.t()))
        assert values[5] is None, "what only the stretch needs does not leave it"


def test_what_writes_and_what_is_more_than_an_operation_of_torchs_own_is_no_part_of_a_stretch():
    assert fits_in(noted(aten.add.Tensor, Ref(0), Ref(1)))
    assert not fits_in(noted(aten.add_.Tensor, Ref(0), Ref(1)))
    assert not fits_in(Noted(torch.clone, [Ref(0)], {}, MADE, True))


@pytest.mark.parametrize(
    "call",
    [
        noted(aten.index.Tensor, Ref(0), [Ref(1)]),
        noted(aten.sum.dim_IntList, Ref(0), 0),
        noted(aten.add.Tensor, Ref(0), Ref(1), beta=2),
        noted(aten.add.Tensor, Ref(0)),
        noted(aten.add.Tensor, Ref(0), Ref(1), alpha=[1]),
    ],
)
def test_what_is_not_understood_is_called_as_always(call: Noted):
    assert stretch([call], [MADE], ()) is None


def test_how_others_graphs_run_is_left_as_it_was():
    assert torch._C._get_graph_executor_optimize()
    elsewhere = []
    with as_told():
        assert not torch._C._get_graph_executor_optimize()
        thread = threading.Thread(target=lambda: elsewhere.append(torch._C._get_graph_executor_optimize()))
        thread.start()
        thread.join()
    assert elsewhere == [True]
    assert torch._C._get_graph_executor_optimize()


def _calls(twins: Twins) -> int:
    recordings = twins.fast.executor.verbs[c.RUN].__self__  # type: ignore[attr-defined]
    return len(recordings._held[1].course._program._calls)


def test_a_step_is_some_stretches_and_the_same_where_they_cannot_be_made(monkeypatch: pytest.MonkeyPatch):
    counts = []
    for most in (compiled.MOST_BYTES, 0):
        monkeypatch.setattr(compiled, "MOST_BYTES", most)
        twins = Twins(monkeypatch)
        trained(twins, 12)
        assert twins.fast.is_compiled
        counts.append(_calls(twins))
    assert counts[0] <= counts[1] - 10
    monkeypatch.undo()
    monkeypatch.setattr(stretches, "_function", None)
    twins = Twins(monkeypatch)
    trained(twins, 12)
    assert twins.fast.is_compiled
    assert _calls(twins) == counts[1]


def test_what_fails_within_a_stretch_says_what_it_says_alone(monkeypatch: pytest.MonkeyPatch):
    twins = Twins(monkeypatch)
    trained(twins)
    twins.put(71, torch.tensor([0, 1, 2, 7]))
    twins.run([X, 71], [OUT], 2)
    twins.run([X, Y], [OUT], 2)
    assert twins.fast.is_compiled

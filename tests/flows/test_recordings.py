"""A recorded function does bit for bit what it does unrecorded, or is refused with what to do instead."""

from __future__ import annotations

import copy
import gc
import threading
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from node_world import GridProcess
from torch import nn
from torch.nn import functional

import grid_jupyter as sy
from grid_jupyter import NodeClient, TorchHook, VirtualWorker, send, send_module
from grid_jupyter.errors import (
    GetNotPermittedError,
    NotRecordableError,
    OperationNotAllowedError,
    RemoteOperationError,
    SessionLostError,
    TensorsNotCollocatedException,
)
from grid_jupyter.tensors.recording import MOST_KEPT
from grid_jupyter.wire import commands

Connect = Callable[..., NodeClient]
CLASSES = 5


@pytest.fixture
def worker(hook: TorchHook) -> VirtualWorker:
    return VirtualWorker(hook, id="here")


# ------------------------------------------------------------------ training


class Task(NamedTuple):
    """A model, how it is trained, and the shape of one of its inputs."""

    model: Callable[[], nn.Module]
    optimizer: Callable[[Any], torch.optim.Optimizer]
    shape: tuple[int, ...]


class LastOfLSTM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 7, batch_first=True)
        self.head = nn.Linear(7, CLASSES)

    def forward(self, x: Any) -> Any:
        return self.head(self.lstm(x)[0][:, -1])


def mlp(*middle: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), *middle, nn.ReLU(), nn.Linear(16, CLASSES))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, CLASSES)
    )


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


TASKS = {
    "SGD": Task(mlp, sgd, (6,)),
    "SGD with momentum and weight decay": Task(
        mlp, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True), (6,)
    ),
    "SGD over lists": Task(mlp, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, foreach=True), (6,)),
    "fused Adam": Task(mlp, lambda p: torch.optim.Adam(p, lr=0.01, fused=True), (6,)),
    "fused AdamW": Task(mlp, lambda p: torch.optim.AdamW(p, lr=0.01, fused=True, amsgrad=True), (6,)),
    "RMSprop": Task(mlp, lambda p: torch.optim.RMSprop(p, lr=0.01), (6,)),
    "batch norm": Task(lambda: mlp(nn.BatchNorm1d(16)), sgd, (6,)),
    "dropout": Task(lambda: mlp(nn.Dropout(0.5)), sgd, (6,)),
    "convolution": Task(cnn, sgd, (1, 8, 8)),
    "LSTM": Task(LastOfLSTM, sgd, (4, 6)),
}


def batches(shape: tuple[int, ...], count: int = 7, last: int = 8) -> list[tuple[torch.Tensor, torch.Tensor]]:
    drawn = torch.Generator().manual_seed(5)
    sizes = [8] * (count - 1) + [last]
    return [(torch.randn(n, *shape, generator=drawn), torch.randint(0, CLASSES, (n,), generator=drawn)) for n in sizes]


def training(model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[Any, Any], Any]:
    def step(x: Any, y: Any) -> Any:
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def state(model: nn.Module) -> list[Any]:
    """Parameters and buffers, as Python numbers."""
    return [values.detach().get(deregister_ptr=False).tolist() for values in model.state_dict().values()]


def remote_model(task: Task, place: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(3)
    model = send_module(task.model(), place.session)
    return model, task.optimizer(model.parameters())


@pytest.mark.parametrize("name", TASKS)
def test_recorded_training_is_the_unrecorded_one_bit_for_bit(place: Any, name: str):
    """Also with randomness: seeds are drawn on this side in the same order."""
    task = TASKS[name]
    data = [(send(x, place), send(y, place)) for x, y in batches(task.shape, 9)]
    losses, states = [], []
    for record in (lambda step: step, sy.recording):
        model, optimizer = remote_model(task, place)
        step = record(training(model, optimizer))
        torch.manual_seed(11)
        losses.append([step(x, y).item() for x, y in data])
        states.append(state(model))
    assert losses[0] == losses[1]
    assert states[0] == states[1]
    assert step.recorded == 1


def test_recorded_training_is_the_local_one_bit_for_bit(place: Any):
    task, threads = TASKS["SGD with momentum and weight decay"], torch.get_num_threads()
    torch.manual_seed(3)
    local = task.model()
    model, optimizer = remote_model(task, place)
    step = sy.recording(training(model, optimizer))
    torch.set_num_threads(1)
    try:
        plain = training(local, task.optimizer(local.parameters()))
        for x, y in batches(task.shape, 10):
            assert step(send(x, place), send(y, place)).item() == plain(x, y).item()
    finally:
        torch.set_num_threads(threads)


class Words(nn.Module):
    """Embedded words, their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 8)
        self.rest = nn.Sequential(nn.LayerNorm(8), nn.GELU(), nn.Linear(8, CLASSES))

    def forward(self, x: Any) -> Any:
        return self.rest(self.embedding((x * 2).abs().clamp(max=8).long()).mean(1))


def _adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.01, fused=True)


COMPILED = {
    "SGD": TASKS["SGD"],
    "momentum": TASKS["SGD with momentum and weight decay"],
    "fused Adam": TASKS["fused Adam"],
    "layer norm": Task(lambda: mlp(nn.LayerNorm(16), nn.SiLU()), sgd, (6,)),
    "words": Task(Words, _adam, (4,)),
    "convolution": Task(
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ELU(), nn.AvgPool2d(2), nn.Conv2d(4, 4, 2), nn.Tanh(),
            nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, CLASSES), nn.Softplus(),
        ),
        _adam,
        (1, 8, 8),
    ),
    "clipped": TASKS["SGD"],
    "cleared at the end": TASKS["SGD"],
    "another loss": TASKS["SGD"],
}  # fmt: skip


@pytest.mark.parametrize("name", COMPILED)
def test_steps_that_are_compiled_are_the_local_ones_bit_for_bit(worker: VirtualWorker, name: str):
    def training_as(model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[Any, Any], Any]:
        def step(x: Any, y: Any) -> Any:
            if name != "cleared at the end":
                optimizer.zero_grad()
            found = model(x)
            if name == "another loss":
                loss = functional.mse_loss(
                    found.sigmoid(), (found.detach() > 0).float() - y[:, None].float(), reduction="sum"
                )
            else:
                loss = functional.cross_entropy(found, y)
            loss.backward()
            if name == "clipped":
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            if name == "cleared at the end":
                optimizer.zero_grad()
            return loss.detach()

        return step

    task, threads = COMPILED[name], torch.get_num_threads()
    torch.manual_seed(3)
    local = task.model()
    model, optimizer = remote_model(task, worker)
    step = sy.recording(training_as(model, optimizer))
    torch.set_num_threads(1)
    try:
        plain = training_as(local, task.optimizer(local.parameters()))
        for x, y in batches(task.shape, 10):
            assert step(send(x, worker), send(y, worker)).item() == plain(x, y).item()
    finally:
        torch.set_num_threads(threads)
    assert state(model) == [values.tolist() for values in local.state_dict().values()]
    recordings: Any = worker.shelf.executor.verbs[commands.RUN]
    assert [held.course.is_compiled for held in recordings.__self__._held.values()] == [True]


def test_dropout_differs_from_run_to_run_and_is_repeatable_by_its_seed(place: Any):
    @sy.recording
    def drop(x: Any) -> Any:
        return functional.dropout(x, 0.5)

    ones = send(torch.ones(100), place)
    torch.manual_seed(0)
    first = [drop(ones).tolist() for _ in range(5)]
    torch.manual_seed(0)
    again = [drop(ones).tolist() for _ in range(5)]
    assert first == again
    assert len({tuple(found) for found in first}) == 5
    assert drop.recorded == 1


def test_no_python_runs_and_one_command_is_sent_once_it_is_recorded(worker: VirtualWorker):
    calls = []

    @sy.recording
    def double(x: Any) -> Any:
        calls.append(1)
        return x * 2 + 1

    x = send(torch.ones(3), worker)
    for _ in range(5):
        double(x)
    worker.session.flush()
    double(x)
    assert len(calls) == 2
    assert [command[0] for command in worker.session.buffer] in ([commands.RUN], [])
    assert double(x).tolist() == [3, 3, 3]


def test_the_last_smaller_batch_of_an_epoch_is_recorded_by_itself(place: Any):
    task = TASKS["SGD with momentum and weight decay"]
    losses = []
    for record in (lambda step: step, sy.recording):
        step = record(training(*remote_model(task, place)))
        losses.append([step(send(x, place), send(y, place)).item() for x, y in batches((6,), 4, last=3) * 4])
    assert losses[0] == losses[1]
    assert step.recorded == 2


def test_only_so_many_recordings_of_a_function_are_kept(worker: VirtualWorker):
    double = sy.recording(lambda x: x * 2)
    for size in range(1, MOST_KEPT + 5):
        for _ in range(3):
            assert double(send(torch.ones(size), worker)).tolist() == [2] * size
    assert double.recorded == MOST_KEPT
    assert kept(worker) == MOST_KEPT
    assert double(send(torch.ones(1), worker)).tolist() == [2]


def kept(worker: VirtualWorker) -> int:
    """Recordings that the worker holds."""
    gc.collect()
    worker.session.flush()
    verb: Any = worker.shelf.run(lambda: worker.shelf.executor.verbs[commands.RUN])
    return len(verb.__self__._held)


def test_a_function_that_is_dropped_leaves_no_recording_behind(worker: VirtualWorker):
    double = sy.recording(lambda x: x * 2)
    x = send(torch.ones(3), worker)
    for _ in range(3):
        double(x)
    assert kept(worker) == 1
    double.forget()
    assert kept(worker) == 0
    assert [double(x).tolist() for _ in range(3)] == [[2, 2, 2]] * 3
    del double
    assert kept(worker) == 0


# ------------------------------------------------------------------ what would silently go wrong


def test_default_adam_is_refused_and_no_step_is_lost_or_done_twice(place: Any):
    task = Task(mlp, torch.optim.Adam, (6,))
    data = [(send(x, place), send(y, place)) for x, y in batches((6,))]
    model, optimizer = remote_model(task, place)
    step = sy.recording(training(model, optimizer))
    step(*data[0])
    step(*data[1])
    with pytest.raises(NotRecordableError, match=r"aten\.\w+.* takes another number .*Adam\(…, fused=True\)"):
        step(*data[2])
    with pytest.raises(NotRecordableError, match="fused=True"):
        step(*data[0])  # refused before anything is done
    plain, plain_optimizer = remote_model(task, place)
    unrecorded = training(plain, plain_optimizer)
    for x, y in data[:3]:
        unrecorded(x, y)
    assert state(model) == state(plain)


def test_a_learning_rate_that_a_scheduler_changes_counts(place: Any):
    losses = []
    for record in (lambda step: step, sy.recording):
        model, optimizer = remote_model(TASKS["SGD"], place)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 4, 0.1)
        step = record(training(model, optimizer))
        losses.append([])
        for x, y in batches((6,), 12):
            losses[-1].append(step(send(x, place), send(y, place)).item())
            scheduler.step()
    assert losses[0] == losses[1]
    assert step.recorded == 3


def test_training_and_evaluation_mode_count(place: Any):
    x = send(torch.randn(8, 6), place)
    model, _ = remote_model(TASKS["dropout"], place)
    out = sy.recording(lambda x: model(x))
    with torch.no_grad():
        for _ in range(4):
            out(x)
        model.eval()
        for _ in range(4):
            assert out(x).tolist() == model(x).tolist()
    assert out.recorded == 2


def test_whether_gradients_are_on_counts(worker: VirtualWorker):
    square = sy.recording(lambda x: x * x)
    x = send(torch.ones(2), worker).requires_grad_()
    for _ in range(3):
        assert square(x).requires_grad
        with torch.no_grad():
            assert not square(x).requires_grad
    square(x).sum().backward()
    assert x.grad.tolist() == [2, 2]


def test_numbers_among_the_arguments_are_recorded_each_by_itself(worker: VirtualWorker):
    power = sy.recording(lambda x, n, *, add=0: x**n + add)
    x = send(torch.tensor([2.0, 3.0]), worker)
    for _ in range(3):
        for n in (1, 2, 2.0, True):
            assert power(x, n, add=1).tolist() == [2**n + 1, 3**n + 1]
    assert power.recorded == 4


def test_a_number_that_changes_at_every_call_is_right_and_warned_of_once(worker: VirtualWorker):
    scaled = sy.recording(lambda x, n: x * n)
    x = send(torch.ones(2), worker)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for n in range(140):
            assert scaled(x, float(n)).tolist() == [n, n]
    assert [str(one.message).count("changes at every call") for one in warned] == [1]


def test_a_tensor_from_outside_that_is_another_one_each_time_is_refused(worker: VirtualWorker):
    held = [send(torch.ones(2), worker)]

    @sy.recording
    def accumulate(x: Any) -> Any:
        held[0] = held[0] + x
        return held[0]

    x = send(torch.ones(2), worker)
    assert accumulate(x).tolist() == [2, 2]
    assert accumulate(x).tolist() == [3, 3]
    with pytest.raises(NotRecordableError, match="pass it as an argument, and return what the next call needs"):
        accumulate(x)


def test_local_constants_are_recorded_and_refused_where_they_change(worker: VirtualWorker):
    x = send(torch.ones(3), worker)
    weighted = sy.recording(lambda x: x * torch.tensor([1.0, 2.0, 3.0]))
    assert [weighted(x).tolist() for _ in range(4)] == [[1, 2, 3]] * 4
    assert weighted.recorded == 1
    noisy = sy.recording(lambda x: x + torch.rand(3))
    noisy(x)
    noisy(x)
    with pytest.raises(NotRecordableError, match="has other values at each call: pass it as an argument"):
        noisy(x)


def test_a_constant_that_the_function_changes_is_fresh_at_each_run(worker: VirtualWorker):
    @sy.recording
    def count(x: Any) -> Any:
        total = send(torch.zeros(2), worker)
        total += x
        return total

    x = send(torch.ones(2), worker)
    assert [count(x).tolist() for _ in range(5)] == [[1, 1]] * 5


READS: dict[str, Callable[[Any], Any]] = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: x if x.sum() > 0 else -x,
    "tolist": lambda x: x.tolist(),
    "get": lambda x: (x + 1).get(),
    "a size": lambda x: len(x.nonzero()),
    "print of a value": lambda x: f"{float(x[0])}",
}


@pytest.mark.parametrize("name", READS)
def test_a_read_inside_is_refused_with_what_to_do(worker: VirtualWorker, name: str):
    with pytest.raises(NotRecordableError, match=r"inside a recording, which runs without waiting: (return|do that)"):
        sy.recording(READS[name])(send(torch.ones(3), worker))
    assert send(torch.ones(3), worker).tolist() == [1, 1, 1]  # the session is as it was


def test_sizes_that_nobody_is_told_are_recorded_where_they_stay_inside(worker: VirtualWorker):
    mean = sy.recording(lambda x: x[x > 1.5].mean())
    for number in range(5):
        values = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0 + number])
        assert mean(send(values, worker)).item() == pytest.approx(3 + number / 3)
    assert mean.recorded == 1
    with pytest.raises(NotRecordableError, match="a tensor whose size depends on values"):
        sy.recording(lambda x: x[x > 1.5])(send(torch.arange(3.0), worker))


def test_large_tensors_of_this_side_are_refused_inside(worker: VirtualWorker):
    with pytest.raises(NotRecordableError, match="send it before, or pass it in"):
        sy.recording(lambda x: x + torch.ones(100_000))(send(torch.ones(100_000), worker))


def test_what_cannot_be_returned_or_given_is_refused(worker: VirtualWorker):
    x = send(torch.ones(3), worker)
    with pytest.raises(NotRecordableError, match=r"returns a Tensor.* return remote ones"):
        sy.recording(lambda x: (x + 1, torch.ones(3)))(x)
    with pytest.raises(NotRecordableError, match="object cannot be an argument"):
        sy.recording(lambda x, o: x)(x, object())
    with pytest.raises(NotRecordableError, match="nothing to record"):
        sy.recording(lambda: 1)()
    with pytest.raises(NotRecordableError, match="changes the shape of a tensor from outside"):
        sy.recording(lambda x: x.unsqueeze_(0))(x)


# ------------------------------------------------------------------ gradients


def test_gradients_of_parameters_are_there_after_each_run(place: Any):
    data = batches((6,), 6)
    torch.manual_seed(3)
    local = mlp()
    model, _ = remote_model(TASKS["SGD"], place)

    def forward_and_backward(model: nn.Module, x: Any, y: Any) -> Any:
        loss = functional.cross_entropy(model(x), y)
        loss.backward()
        return loss.detach()

    step = sy.recording(forward_and_backward)
    for number, (x, y) in enumerate(data):
        if number == 4:  # until then they add up
            local.zero_grad()
            model.zero_grad()
            assert all(parameter.grad is None for parameter in model.parameters())
        forward_and_backward(local, x, y)
        step(model, send(x, place), send(y, place))
        for parameter, other in zip(model.parameters(), local.parameters(), strict=True):
            torch.testing.assert_close(parameter.grad.get(deregister_ptr=False), other.grad)
    assert step.recorded >= 1


def test_gradients_that_stay_and_are_zeroed_are_the_same_ones(worker: VirtualWorker):
    model, optimizer = remote_model(TASKS["SGD"], worker)
    local = torch.nn.Sequential(*mlp())
    local.load_state_dict({name: value.get(deregister_ptr=False) for name, value in model.state_dict().items()})
    plain_optimizer = sgd(local.parameters())

    def step(model: Any, optimizer: Any, x: Any, y: Any) -> Any:
        optimizer.zero_grad(set_to_none=False)
        loss = functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    recorded = sy.recording(step)
    for number, (x, y) in enumerate(batches((6,), 8)):
        if number == 5:
            optimizer.zero_grad()  # to None: the next call has others
            plain_optimizer.zero_grad()
        found = recorded(model, optimizer, send(x, worker), send(y, worker)).item()
        assert found == pytest.approx(step(local, plain_optimizer, x, y).item(), abs=1e-6)


def test_gradients_of_arguments_and_of_values_made_inside(worker: VirtualWorker):
    @sy.recording
    def attack(x: Any) -> Any:
        x = x.detach().requires_grad_()
        (x**3).sum().backward()
        return x.grad.sign(), x.grad, x

    @sy.recording
    def through(x: Any) -> Any:
        (x**2).sum().backward()
        return x

    for number in range(1, 6):
        sign, gradient, inner = attack(send(torch.full((2,), float(number)), worker))
        assert sign.tolist() == [1, 1]
        assert gradient.tolist() == [3.0 * number**2] * 2
        assert inner.grad.tolist() == gradient.tolist()
        x = send(torch.full((2,), float(number)), worker).requires_grad_()
        assert through(x) is x
        assert x.grad.tolist() == [2.0 * number] * 2


def test_a_loss_with_its_graph_can_be_differentiated_outside(place: Any):
    model, optimizer = remote_model(TASKS["SGD"], place)
    loss_of = sy.recording(lambda x, y: functional.cross_entropy(model(x), y))
    plain, plain_optimizer = remote_model(TASKS["SGD"], place)
    for x, y in batches((6,)):
        there = send(x, place), send(y, place)
        for loss, updating in (
            (loss_of(*there), optimizer),
            (functional.cross_entropy(plain(there[0]), there[1]), plain_optimizer),
        ):
            updating.zero_grad()
            loss.backward()
            updating.step()
    assert state(model) == state(plain)
    assert loss_of.recorded == 1


def test_autograd_grad_and_changes_in_place_are_recorded(worker: VirtualWorker):
    weight = send(torch.tensor([1.0, 2.0]), worker).requires_grad_()
    total = send(torch.zeros(2), worker)

    @sy.recording
    def step(x: Any) -> Any:
        (gradient,) = torch.autograd.grad((weight * x).pow(2).sum(), weight)
        with torch.no_grad():
            weight.sub_(gradient, alpha=0.1)
            total.add_(gradient)
        return gradient

    local, local_total = torch.tensor([1.0, 2.0], requires_grad=True), torch.zeros(2)
    for number in range(5):
        x = torch.tensor([0.5, 0.1 * number])
        (gradient,) = torch.autograd.grad((local * x).pow(2).sum(), local)
        with torch.no_grad():
            local.sub_(gradient, alpha=0.1)
            local_total.add_(gradient)
        torch.testing.assert_close(step(send(x, worker)).get(), gradient)
    torch.testing.assert_close(weight.detach().get(deregister_ptr=False), local.detach())
    torch.testing.assert_close(total.get(), local_total)


# ------------------------------------------------------------------ arguments and results


class Found(NamedTuple):
    mean: Any
    note: str


def test_results_come_in_the_structure_that_the_function_gives(worker: VirtualWorker):
    outside = send(torch.ones(1), worker)

    @sy.recording
    def structure(x: Any) -> Any:
        mean = x.mean()
        return {"found": Found(mean, "a"), "list": [x, outside, None, 3], "twice": (mean, mean), "row": x[1:]}

    for number in range(5):
        x = send(torch.full((3,), float(number)), worker)
        given = structure(x)
        assert isinstance(given["found"], Found)
        assert given["found"].note == "a"
        assert given["found"].mean.item() == number
        assert given["list"][0] is x
        assert given["list"][1] is outside
        assert given["list"][2:] == [None, 3]
        assert given["twice"][0] is given["twice"][1]
        assert given["row"].tolist() == [number] * 2
    assert structure.recorded == 1


def test_views_of_arguments_say_where_they_begin_and_share_their_storage(worker: VirtualWorker):
    middle = sy.recording(lambda x: x[1:3])
    data = send(torch.arange(20.0), worker)
    for begin in range(0, 15, 5):
        part = middle(data[begin : begin + 5])
        assert part.storage_offset() == begin + 1
        part.zero_()
    assert data.tolist() == [0, 0, 0, 3, 4, 5, 0, 0, 8, 9, 10, 0, 0, 13, 14, 15, 16, 17, 18, 19]


def test_one_tensor_given_twice_is_not_two(worker: VirtualWorker):
    def add(x: Any, y: Any) -> Any:
        x += y
        return x + y

    recorded = sy.recording(add)
    for _ in range(3):
        x, y = send(torch.ones(2), worker), send(torch.ones(2), worker)
        assert recorded(x, y).tolist() == [3, 3]
        x = send(torch.ones(2), worker)
        assert recorded(x, x).tolist() == [4, 4]
    assert recorded.recorded == 2


def test_local_arguments_are_sent(place: Any):
    table = send(torch.arange(12.0).reshape(4, 3), place)
    rows = sy.recording(lambda index, scale: {"rows": table[index] * scale["by"]})
    for _ in range(4):
        index = torch.randint(0, 4, (2,))
        expected = torch.arange(12.0).reshape(4, 3)[index] * 2
        assert rows(index, {"by": torch.tensor(2.0)})["rows"].tolist() == expected.tolist()
    assert rows.recorded == 1


def test_methods_are_recorded_for_each_object(worker: VirtualWorker):
    class Scale:
        def __init__(self, by: float) -> None:
            self.by = by

        @sy.recording
        def scale(self, x: Any) -> Any:
            """Multiply."""
            return x * self.by

    two, three = Scale(2), Scale(3)
    x = send(torch.ones(1), worker)
    for _ in range(3):
        assert two.scale(x).item() == 2
        assert three.scale(x).item() == 3
    assert two.scale.recorded == three.scale.recorded == 1
    assert Scale.scale.__doc__ == "Multiply."
    other = copy.deepcopy(two)
    assert other.scale(x).item() == 2


def test_a_recording_within_a_recording_is_part_of_it(worker: VirtualWorker):
    inner = sy.recording(lambda x: x + 1)
    outer = sy.recording(lambda x: inner(x) * 2)
    x = send(torch.ones(1), worker)
    assert [outer(x).item() for _ in range(4)] == [4] * 4
    assert (outer.recorded, inner.recorded) == (1, 0)


def test_each_place_has_recordings_of_its_own(worker: VirtualWorker, hook: TorchHook):
    other = VirtualWorker(hook, id="there")
    double = sy.recording(lambda x: x * 2)
    for _ in range(3):
        assert double(send(torch.ones(1), worker)).item() == 2
        assert double(send(torch.ones(1), other)).item() == 2
    assert double.recorded == 2
    add = sy.recording(lambda x, y: x + y)
    with pytest.raises(TensorsNotCollocatedException, match=r"one argument is on .*here.* and another on .*there"):
        add(send(torch.ones(1), worker), send(torch.ones(1), other))
    elsewhere = send(torch.ones(1), other)
    with pytest.raises(NotRecordableError, match="a recording belongs to one place"):
        sy.recording(lambda x: (x + 1, elsewhere + 1))(send(torch.ones(1), worker))


def test_what_other_threads_compute_meanwhile_is_not_recorded(place: Any):
    go, done, end = threading.Event(), threading.Event(), threading.Event()

    def others() -> None:
        value = send(torch.ones(2), place)
        with torch.no_grad():
            while not end.is_set():
                go.wait()
                value = value * 1.0
                torch.nn.Linear(2, 2)(torch.ones(2))
                done.set()

    thread = threading.Thread(target=others)
    thread.start()

    @sy.recording
    def slow(x: Any) -> Any:
        y = x + 1
        done.clear()
        go.set()
        done.wait()
        return y * 2

    try:
        x = send(torch.ones(2), place)
        for _ in range(4):
            assert slow(x).tolist() == [4, 4]
        (replay,) = next(iter(slow._replays.values()))
        assert len(replay.trace.script.body) == 2
        assert type(place.session.buffer) is list
    finally:
        end.set()
        go.set()
        thread.join()


def test_threads_may_call_one_recording_at_once(place: Any):
    model = sy.recording(lambda x: (x @ x.T).relu().sum())
    inputs = [torch.full((4, 3), float(number)) for number in range(8)]
    found: dict[int, list[float]] = {}

    def call(number: int) -> None:
        x = send(inputs[number], place)
        found[number] = [model(x).item() for _ in range(10)]

    threads = [threading.Thread(target=call, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: [48.0 * number**2] * 10 for number in range(8)}


# ------------------------------------------------------------------ failures, sessions, gates


def test_a_failure_in_the_middle_spoils_its_run_only_and_names_the_line(place: Any):
    model, optimizer = remote_model(TASKS["SGD"], place)
    step = sy.recording(training(model, optimizer))
    data = [(send(x, place), send(y, place)) for x, y in batches((6,))]
    for x, y in data:
        step(x, y)
    before = state(model)
    lost = step(data[0][0], send(torch.full((8,), 99), place))
    with pytest.raises(RemoteOperationError, match=r"(?s)nll_loss_forward.*cross_entropy\(model\(x\), y\)"):
        lost.item()
    assert state(model) == before
    assert step(*data[0]).item() > 0
    assert state(model) != before


def test_after_the_connection_was_lost_it_is_recorded_anew(bob: GridProcess, connect: Connect):
    owner = connect(bob, "Bob")
    owner.publish(torch.arange(4.0), tags=["#recorded"], allowed_users="Bob")
    client = connect(bob, "Bob")
    (published,) = client.search("#recorded")
    mean = sy.recording(lambda: published.mean() * 2)
    own = send(torch.ones(4), client)
    scaled = sy.recording(lambda: own * published)
    for _ in range(3):
        assert mean().item() == 3
        assert scaled().tolist() == [0, 1, 2, 3]
    link: Any = client._link
    link.close()
    assert [mean().item() for _ in range(3)] == [3, 3, 3]
    assert mean.recorded == 1
    with pytest.raises((SessionLostError, TensorsNotCollocatedException)):
        scaled().tolist()


def test_the_gates_hold_for_recordings(bob: GridProcess, connect: Connect):
    connect(bob, "Bob").publish(torch.tensor([3.25, -7.5]), tags=["#gated"], allowed_users="Alice")
    ana = connect(bob, "Ana")
    (secret,) = ana.search("#gated")
    kept = send(torch.zeros(2), ana)

    @sy.recording
    def leak(x: Any) -> Any:
        kept.copy_(secret)
        return secret * 0 + x, x + 1, kept[:1]

    for _ in range(4):
        private, own, view = leak(send(torch.ones(2), ana))
        assert own.tolist() == [2, 2]
        for one in (private, view, kept):
            with pytest.raises(GetNotPermittedError):
                one.get(deregister_ptr=False)
    overwrite = sy.recording(lambda x: secret.copy_(x))
    for _ in range(3):
        overwrite(send(torch.ones(2), ana))
    with pytest.raises(OperationNotAllowedError, match="in place"):
        (secret + 1).get()


def test_federated_averaging_by_recorded_steps_is_the_plain_one_bit_for_bit(hook: TorchHook):
    shards = {name: batches((6,), 3, last=5)[-1] for name in ("ann", "ben")}
    model, threads = mlp(), torch.get_num_threads()
    plain, shuffle = copy.deepcopy(model), torch.Generator().manual_seed(7)
    data = {}
    for name, (x, y) in shards.items():
        place = VirtualWorker(hook, id=name)
        data[name] = (send(x, place), send(y, place))
    for done in sy.federated_rounds(model, data, rounds=3, local_epochs=4, lr=0.1, batch_size=2, seed=7):
        assert done.rows == {"ann": 5, "ben": 5}
    torch.set_num_threads(1)
    try:
        for _ in range(3):
            trained = []
            for x, y in shards.values():
                trained.append(copy.deepcopy(plain))
                step = training(trained[-1], sgd(trained[-1].parameters()))
                for _ in range(4):
                    for batch in torch.randperm(5, generator=shuffle).split(2):
                        step(x[batch], y[batch])
            with torch.no_grad():
                for values, *parts in zip(plain.parameters(), *(part.parameters() for part in trained), strict=True):
                    values.copy_(sum(part.double() * 5 for part in parts) / 10)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))

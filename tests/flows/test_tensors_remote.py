"""Tensors on a real Node do what torch does here: operations, views, gradients, models, optimisers, randomness."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from node_world import GridProcess
from torch import nn
from torch.nn import functional

from grid_jupyter import NodeClient, VirtualWorker, get_module, send, send_module
from grid_jupyter.errors import ObjectNotFoundError, OperationNotAllowedError, RemoteOperationError, SessionLostError
from grid_jupyter.tensors.dispatch import draw_seed
from grid_jupyter.tensors.remote import RemoteTensor
from grid_jupyter.wire.dtypes import ITEM_BYTES
from grid_jupyter.wire.messages import SessionStatus, Status

Connect = Callable[..., NodeClient]


def same(remote: Any, local: Any) -> None:
    """Compare results, one by one."""
    if isinstance(local, (tuple, list)):
        assert len(remote) == len(local)
        for one, other in zip(remote, local, strict=True):
            same(one, other)
        return
    assert isinstance(remote, RemoteTensor)
    assert remote.shape == local.shape
    assert remote.dtype == local.dtype
    assert remote.stride() == local.stride() or local.numel() < 2
    found = remote.detach().get(deregister_ptr=False)
    torch.testing.assert_close(found, local.detach(), rtol=1e-5, atol=1e-6, equal_nan=True)


X = torch.linspace(-2.0, 2.0, 24).reshape(4, 6)
Y = torch.linspace(0.5, 3.0, 24).reshape(4, 6)

OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda x, y: x + y,
    "a number on the left": lambda x, y: 2 - x * 3 + 1 / y,
    "broadcast": lambda x, y: x + y[0],
    "floor division": lambda x, y: x // y,
    "remainder": lambda x, y: x % y,
    "power": lambda x, y: y**x,
    "matmul": lambda x, y: x @ y.T,
    "batched matmul": lambda x, y: x.reshape(2, 2, 6) @ y.reshape(2, 6, 2),
    "compare": lambda x, y: (x > y) & ~(x == y) | (y < 1),
    "clamp": lambda x, y: x.clamp(-1, 1),
    "where": lambda x, y: torch.where(x > 0, x, y),
    "sum": lambda x, y: (x.sum(), x.sum(0), x.sum((0, 1)), x.sum(1, keepdim=True)),
    "mean, std, var": lambda x, y: (x.mean(), x.std(0), x.var(1), x.mean(1)),
    "min, max": lambda x, y: (x.max(), x.max(1), x.min(0), x.amax(1), x.argmax(1)),
    "median, sort": lambda x, y: (x.median(), x.sort(1, descending=True), x.topk(2)),
    "cumsum": lambda x, y: x.cumsum(1),
    "norm": lambda x, y: (x.norm(), x.norm(dim=1), torch.linalg.vector_norm(x, ord=1)),
    "views": lambda x, y: (x.T, x.reshape(2, 12), x[1], x[:, 2], x[1:3, ::2], x.unsqueeze(0), x.flatten()),
    "expand, permute": lambda x, y: (x[:1].expand(3, 6), x.reshape(2, 2, 6).permute(2, 0, 1)),
    "split, chunk, unbind": lambda x, y: (*x.split(2), *x.chunk(3, 1), *x.unbind()),
    "cat, stack": lambda x, y: (torch.cat([x, y]), torch.stack([x, y], 1)),
    "index": lambda x, y: (x[[0, 2]], x[:, [1, 1]], x[torch.tensor([True, False, True, False])], x[-1, -1]),
    "gather, scatter": lambda x, y: (
        x.gather(1, torch.tensor([[0, 1]] * 4)),
        x.scatter(1, torch.tensor([[0], [1], [2], [3]]), 9.0),
    ),
    "functions": lambda x, y: (x.exp(), y.log(), x.sin(), x.tanh(), y.sqrt(), x.abs(), x.sigmoid(), y.rsqrt()),
    "activations": lambda x, y: (x.relu(), functional.gelu(x), x.softmax(1), x.log_softmax(1), functional.silu(x)),
    "losses": lambda x, y: (
        functional.mse_loss(x, y),
        functional.l1_loss(x, y),
        functional.cross_entropy(x, torch.tensor([0, 1, 2, 5])),
        functional.binary_cross_entropy_with_logits(x, (y > 1).float()),
    ),
    "types": lambda x, y: (x.double(), x.long(), x.bool(), x.to(torch.float16), x.int() + 1),
    "einsum": lambda x, y: torch.einsum("ij,kj->ik", x, y),
    "pad": lambda x, y: functional.pad(x, (1, 2), value=7.0),
    "made alike": lambda x, y: (torch.zeros_like(x), torch.ones_like(x), x.new_full((2,), 3.0), torch.full_like(x, 5)),
    "linear algebra": lambda x, y: (
        torch.linalg.solve(x[:, :4] + 5 * torch.eye(4), y[:, :1]),
        torch.linalg.det(x[:3, :3] + torch.eye(3)),
        torch.linalg.inv(x[:, :4] + 5 * torch.eye(4)),
        torch.linalg.cholesky(y[:, :4] @ y[:, :4].T + torch.eye(4)),
        torch.linalg.pinv(x),
        torch.linalg.svdvals(x),
    ),
    "with a local tensor": lambda x, y: x * torch.arange(6.0) + torch.ones(4, 1),
    "a large constant": lambda x, y: x @ torch.ones(6, 20_000),
    "allclose": lambda x, y: torch.isclose(x, x + 1e-9),
    "one_hot": lambda x, y: functional.one_hot(torch.arange(4) + 0 * x[:, 0].long(), 4),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_gives_what_it_gives_locally(place: Any, name: str):
    same(OPERATIONS[name](send(X, place), send(Y, place)), OPERATIONS[name](X, Y))


IN_PLACE: dict[str, Callable[[Any], Any]] = {
    "add_": lambda x: x.add_(1),
    "+=": lambda x: x.__iadd__(2),
    "mul_ a row": lambda x: x[1].mul_(3),
    "setitem": lambda x: x.__setitem__((slice(None), 2), 9.0),
    "setitem with a mask": lambda x: x.__setitem__(x > 0, 0.0),
    "copy_": lambda x: x[0].copy_(x[1]),
    "zero_ a view of a view": lambda x: x.T[1:3].zero_(),
    "index_add_": lambda x: x.index_add_(0, torch.tensor([0, 0]), torch.ones(2, 6)),
    "masked_fill_": lambda x: x.masked_fill_(x < 0, 5.0),
    "clamp_": lambda x: x.clamp_(-1, 1),
    "t_": lambda x: x.t_(),
    "unsqueeze_": lambda x: x.unsqueeze_(0),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_a_change_in_place_shows_in_every_view(place: Any, name: str):
    local, remote = X.clone(), send(X.clone(), place)
    views = [(local[1], remote[1]), (local.view(24)[::5], remote.view(24)[::5])]
    IN_PLACE[name](local)
    IN_PLACE[name](remote)
    same(remote, local)
    for here, there in views:
        same(there, here)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda x: x + torch.ones(5), "broadcast|size"),
        (lambda x: x @ x, "shape|size|dim"),
        (lambda x: x.reshape(7, 7), "shape"),
        (lambda x: x[9], "out of"),
        (lambda x: x.sum(5), "[Dd]im"),
        (lambda x: torch.cat([x, x[:, :2]]), "[Ss]izes|size"),
        (lambda x: x.long().requires_grad_(), "floating"),
        (lambda x: torch.ones(4, 6).add_(x), "local tensor"),
    ],
)
def test_what_is_wrong_fails_at_the_line_that_wrote_it(place: Any, wrong: Callable[[Any], Any], says: str):
    x = send(X, place)
    with pytest.raises((RuntimeError, IndexError), match=says):
        wrong(x)
    same(x + 1, X + 1)


@pytest.mark.parametrize(
    "refused",
    [
        lambda x: x.as_strided((2,), (1,)),
        lambda x: x.to_sparse(),
        lambda x: x.resize_(3),
        lambda x: x.set_(torch.ones(3)),
        lambda x: torch.segment_reduce(x, "sum", lengths=torch.tensor([x.shape[0]])),
    ],
)
def test_an_operation_off_the_list_is_refused_here(place: Any, refused: Callable[[Any], Any]):
    x = send(X, place)
    with pytest.raises((OperationNotAllowedError, RemoteOperationError)):
        refused(x)
    same(x, X)


def test_what_only_values_can_tell_is_asked_for(place: Any):
    x = send(X, place)
    same(x[x > 0], X[X > 0])
    same(x.nonzero(), X.nonzero())
    same(torch.unique((x * 2).long()), torch.unique((X * 2).long()))
    same(torch.bincount((x.flatten() + 2).long()), torch.bincount((X.flatten() + 2).long()))
    assert bool((x < 5).all())
    assert float(x.sum()) == pytest.approx(float(X.sum()), abs=1e-5)
    assert [round(float(v), 4) for v in x[0]] == [round(float(v), 4) for v in X[0]]
    assert 2.0 in x
    assert len(x) == 4


# ------------------------------------------------------------------ gradients


def test_gradients_agree_with_local_ones(place: Any):
    def loss(w: Any, b: Any, x: Any) -> Any:
        return (torch.tanh(x @ w + b) ** 2).mean() + w.abs().sum() * 0.01

    w, b = torch.linspace(-1, 1, 18).reshape(6, 3), torch.zeros(3)
    here = [w.clone().requires_grad_(), b.clone().requires_grad_()]
    there = [send(one, place) for one in here]
    loss(*here, X).backward()
    assert place is None or loss(*there, send(X, place)).backward() is not None, "with the hook it is a pointer"
    for local, remote in zip(here, there, strict=True):
        same(remote.grad, local.grad)
    loss(*here, X).backward()
    loss(*there, send(X, place)).backward()
    same(there[0].grad, here[0].grad)
    fetched = there[0].get()
    assert fetched.requires_grad
    torch.testing.assert_close(fetched.grad, here[0].grad)


def test_torch_autograd_grad_works_and_again_through_the_graph(place: Any):
    x = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    y = send(x, place)
    for wanted, values in ((x, None), (y, None)):
        assert values is None
        (first,) = torch.autograd.grad((wanted**3).sum(), wanted, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), wanted)
        found = second if isinstance(second, RemoteTensor) else None
        if found is not None:
            assert found.get().tolist() == [6.0, 12.0, 18.0]


def test_no_grad_detach_and_retain_grad_do_as_they_do_locally(place: Any):
    w = send(torch.ones(3, requires_grad=True), place)
    with torch.no_grad():
        assert not (w * 2).requires_grad
    assert not w.detach().requires_grad
    inner = w * 2
    inner.retain_grad()
    (inner * inner).sum().backward()
    assert inner.grad.get(deregister_ptr=False).tolist() == [4.0, 4.0, 4.0]
    assert w.grad.get(deregister_ptr=False).tolist() == [8.0, 8.0, 8.0]
    with pytest.raises(RuntimeError, match="leaf"):
        w.add_(1)
    with torch.no_grad():
        w.add_(1)
    w.grad = None
    assert w.grad is None


def test_gradients_pass_through_randomness(place: Any):
    torch.manual_seed(3)
    x = send(-torch.ones(200, requires_grad=True), place).detach().requires_grad_()
    (functional.rrelu(x, 0.1, 0.3, training=True) + functional.dropout(x)).sum().backward()
    slopes = x.grad.get(deregister_ptr=False)
    assert ((slopes >= 0.1) & (slopes <= 2.3)).all()
    assert slopes.unique().numel() > 100


def test_a_second_backward_is_told_of(place: Any):
    w = send(torch.ones(3, requires_grad=True), place)
    loss = (w * w).sum()
    loss.backward()
    loss.backward()
    with pytest.raises(RemoteOperationError, match="second time"):
        w.detach().get(deregister_ptr=False)
    assert w.detach().get(deregister_ptr=False).tolist() == [1, 1, 1], "it is told once"


# ------------------------------------------------------------------ models


def _models() -> dict[str, tuple[nn.Module, torch.Tensor, torch.Tensor]]:
    torch.manual_seed(0)
    x, y = torch.randn(16, 6), torch.randn(16, 2)
    images, classes = torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 1])
    words = torch.randint(0, 20, (5, 7))
    return {
        "linear": (nn.Linear(6, 2), x, y),
        "a perceptron": (nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.LayerNorm(8), nn.Linear(8, 2)), x, y),
        "with batch norm": (
            # no bias before it: its gradient is nothing but rounding, which Adam would make large
            nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 2)), x, y,
        ),
        "convolutions": (
            nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)),
            images, classes,
        ),
        "an embedding": (
            nn.Sequential(nn.Embedding(20, 4), nn.Flatten(), nn.Linear(28, 3)), words, classes[[0, 1, 2, 1, 0]],
        ),
    }  # fmt: skip


OPTIMISERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.05),
    "AdamW, fused": lambda p: torch.optim.AdamW(p, lr=0.05, fused=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
}


def _train(model: nn.Module, x: Any, y: Any, optimiser: str, steps: int = 4) -> list[Any]:
    optimizer = OPTIMISERS[optimiser](model.parameters())
    loss_of = functional.mse_loss if y.dtype.is_floating_point else functional.cross_entropy
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model(x), y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0) if optimiser == "SGD" else None
        optimizer.step()
        losses.append(loss.detach())
    return losses


@pytest.mark.parametrize("name", list(_models()))
@pytest.mark.parametrize("optimiser", ["SGD", "Adam"])
def test_a_model_trains_as_it_does_locally(place: Any, name: str, optimiser: str):
    _compare_training(place, name, optimiser)


@pytest.mark.parametrize("optimiser", ["AdamW, fused", "RMSprop", "Adagrad"])
def test_optimisers_step_as_they_do_locally(client: NodeClient, optimiser: str):
    _compare_training(client, "a perceptron", optimiser)


def _compare_training(place: Any, name: str, optimiser: str) -> None:
    model, x, y = _models()[name]
    twin = send_module(copy.deepcopy(model), place.session)
    expected = _train(model, x, y, optimiser)
    found = _train(twin, send(x, place), send(y, place), optimiser)
    same(found, expected)
    get_module(twin)
    for (key, here), there in zip(model.state_dict().items(), twin.state_dict().values(), strict=True):
        assert type(there) is torch.Tensor, key
        torch.testing.assert_close(there, here, rtol=1e-4, atol=1e-5, msg=key)


def test_a_model_in_evaluation_mode_answers_as_it_does_locally(place: Any):
    model, x, _ = _models()["with batch norm"]
    model.eval()
    twin = send_module(copy.deepcopy(model), place.session)
    with torch.no_grad():
        same(twin(send(x, place)), model(x))


def test_recurrent_and_attention_layers_agree(client: NodeClient):
    torch.manual_seed(1)
    x = torch.randn(3, 5, 8)
    for layer in (
        nn.LSTM(8, 4, batch_first=True),
        nn.GRU(8, 4, batch_first=True),
        nn.MultiheadAttention(8, 2, batch_first=True),
    ):
        twin = send_module(copy.deepcopy(layer), client.session)
        arguments = (x, x, x) if isinstance(layer, nn.MultiheadAttention) else (x,)
        there = tuple(send(one, client) for one in arguments)
        same(twin(*there)[0], layer(*arguments)[0])


# ------------------------------------------------------------------ randomness


def test_randomness_follows_the_local_seed(place: Any):
    x = send(torch.zeros(1000), place)

    def draw() -> list[Any]:
        torch.manual_seed(42)
        drawn = [torch.rand_like(x), torch.randn_like(x), functional.dropout(x + 1), torch.bernoulli(x + 0.5)]
        return [one.get().tolist() for one in drawn]

    first, second = draw(), draw()
    assert first == second
    assert len({str(one[:5]) for one in first}) == 4
    torch.manual_seed(43)
    assert torch.rand_like(x).get().tolist() != first[0]


def test_a_worker_of_this_process_takes_nothing_but_seeds_from_the_local_generator():
    x = VirtualWorker(id="generator").receive(torch.zeros(1000))
    torch.manual_seed(42)
    torch.randn_like(x).get()
    found = torch.rand(3)
    torch.manual_seed(42)
    draw_seed()
    assert torch.equal(found, torch.rand(3))


# ------------------------------------------------------------------ transfers, lifetimes, threads


@pytest.mark.parametrize("count", [0, 1, 16_000, 16_384, 16_385, 2_000_000])
def test_values_of_every_size_go_and_come_unchanged(place: Any, count: int):
    values = torch.arange(count, dtype=torch.float32)
    assert torch.equal(send(values, place).get(), values)


@pytest.mark.parametrize("dtype", ITEM_BYTES)
def test_values_of_every_dtype_go_and_come_unchanged(place: Any, dtype: str):
    values = torch.tensor([0, 1, 1]).to(getattr(torch, dtype))
    found = send(values, place).get()
    assert found.dtype == values.dtype
    assert torch.equal(found, values)


@pytest.mark.parametrize(
    "tensor",
    [
        X.T,
        X[::2, 1::2],
        X[:0],
        torch.tensor(5.0),
        X.expand(3, 4, 6),
        torch.view_as_complex(X.reshape(4, 3, 2).contiguous()).conj(),
    ],
)
def test_tensors_of_every_layout_go_and_come_unchanged(place: Any, tensor: torch.Tensor):
    assert torch.equal(send(tensor, place).get(), tensor)


def test_what_cannot_travel_is_refused_here(place: Any):
    for tensor in (torch.ones(2).to_sparse(), torch.zeros(2, dtype=torch.uint16)):
        with pytest.raises((TypeError, RuntimeError)):
            send(tensor, place)


def test_a_value_that_was_fetched_is_gone_and_one_that_is_kept_is_not(place: Any):
    x = send(X, place)
    assert torch.equal(x.get(deregister_ptr=False), X)
    assert torch.equal(x.get(), X)
    with pytest.raises(ObjectNotFoundError):
        x.get()


def test_values_die_with_their_pointers(connect: Connect, bob: GridProcess):
    client = connect(bob)

    def live() -> int:
        client.session.flush()
        reply, _ = client.session.link.request(Status())
        assert isinstance(reply, SessionStatus)
        return reply.values

    x = client.receive(torch.ones(3))
    for _ in range(500):
        x = x + 1
    assert x.get(deregister_ptr=False).tolist() == [501.0] * 3
    assert live() <= 3
    del x
    assert live() <= 1


def test_threads_share_a_client(client: NodeClient):
    results: dict[int, list[float]] = {}

    def work(number: int) -> None:
        x = client.receive(torch.full((3,), float(number)))
        for _ in range(200):
            x = x + 1
        results[number] = x.get().tolist()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == {number: [number + 200.0] * 3 for number in range(6)}


def test_a_tensor_on_several_nodes_computes_on_each(bob: GridProcess, alice: GridProcess, connect: Connect):
    here, there = connect(bob, "Ana"), connect(alice, "Ana")
    both = torch.tensor([1.0, 2.0]).send(here, there)  # type: ignore[attr-defined]
    assert [part.tolist() for part in (both * 2 + both).get()] == [[3, 6], [3, 6]]
    assert both.get(sum_results=True).tolist() == [2, 4]


def test_too_many_values_end_the_session_with_the_limit(connect: Connect, bob: GridProcess):
    client = connect(bob)
    x = client.receive(torch.ones(1))
    kept = [x + 1 for _ in range(200_001)]
    with pytest.raises(SessionLostError, match="200000 values"):
        x.get()
    assert len(kept) == 200_001


def test_a_matrix_that_cannot_be_inverted_is_told_of(place: Any):
    inverse = torch.linalg.inv(send(torch.zeros(3, 3), place))
    with pytest.raises(RemoteOperationError, match="singular"):
        inverse.get()

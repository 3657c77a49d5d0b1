"""Lengths that depend on private values: computed with by a guest who never learns them, read by who may read."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from node_world import GridProcess

from grid_jupyter import NodeClient, TorchHook, VirtualWorker
from grid_jupyter.errors import GetNotPermittedError, RemoteOperationError
from grid_jupyter.tensors.remote import RemoteTensor
from grid_jupyter.tensors.session import Session
from grid_jupyter.wire.messages import DatasetInfo

Connect = Callable[..., NodeClient]
PEOPLE = torch.cat([torch.randn(40, 3, generator=torch.Generator().manual_seed(3)), torch.full((2, 3), 0.5)])

HIDDEN: dict[str, Callable[[Any, Any], Any]] = {
    "mean": lambda x, m: x[m].mean(),
    "std": lambda x, m: x[m].std(),
    "sum by column": lambda x, m: x[m].sum(0),
    "max": lambda x, m: x[m].max(),
    "median": lambda x, m: x[m].median(),
    "masked_select": lambda x, m: torch.masked_select(x, x > 0.2),
    "two masks": lambda x, m: x[m & (x[:, 1] < 1)],
    "a mask of what a mask chose": lambda x, m: x[m][x[m][:, 1] > 0],
    "sort": lambda x, m: torch.sort(x[m], 0).values,
    "cat": lambda x, m: torch.cat([x[m], x, x[~m]]),
    "matmul": lambda x, m: x[m].t() @ x[m],
    "normalise": lambda x, m: (x[m] - x[m].mean(0)) / x[m].std(0),
    "flatten": lambda x, m: x[m].flatten().abs(),
    "nonzero": lambda x, m: m.nonzero(),
    "unique": lambda x, m: torch.unique(x[m]),
    "bincount": lambda x, m: torch.bincount(x[m][:, 0].abs().long()),
    "softmax": lambda x, m: x[m].softmax(1),
    "cumsum": lambda x, m: x[m].cumsum(0),
    "linear": lambda x, m: torch.nn.functional.linear(x[m], torch.ones(4, 3)),
    "mse_loss of two columns": lambda x, m: torch.nn.functional.mse_loss(x[m][:, 0], x[m][:, 1]),
    "the largest two": lambda x, m: x[m].topk(2, 0).values,
    "in place": lambda x, m: x[m].add_(1).mul_(2),
    "one row of it": lambda x, m: x[m][-1],
    "the first of them": lambda x, m: x[m][:5],
    "norm": lambda x, m: torch.linalg.norm(x[m]),
    "histogram": lambda x, m: x[m].histc(5, -2, 2),
}
"""What needs no length: everybody who may compute can do these."""
ASKED: dict[str, Callable[[Any, Any], Any]] = {
    "len": lambda x, m: len(x[m]),
    "shape as a number": lambda x, m: torch.zeros(int(x[m].shape[0])),
    "an equal shape": lambda x, m: x[m].shape == (3, 3),
    "numel": lambda x, m: int(x[m].numel()),
    "range": lambda x, m: list(range(x[m].shape[0])),
    "rows one by one": lambda x, m: [row.sum() for row in x[m]],
    "quantile": lambda x, m: x[m].quantile(0.5),
    "corrcoef": lambda x, m: torch.corrcoef(x[m].t()),
    "two masks made apart, combined": lambda x, m: x[m] + x[x[:, 1] > -9],
    "with a tensor of known length": lambda x, m: x[m] + x,
    "sum divided by the length": lambda x, m: x[m].sum() / x[m].shape[0],
}
"""What cannot be done without the length: it is a read."""


@pytest.fixture(scope="module")
def people(bob: GridProcess, hook: TorchHook) -> Iterator[DatasetInfo]:
    """Published by Bob, who alone reads it."""
    with bob.client() as client:
        made = client.publish(PEOPLE, tags=["#people"], user="Bob")._ref.dataset
        yield made
        client.unpublish(made, user="Bob")


@pytest.fixture
def questions(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Every question for sizes that this side asks."""
    asked: list[tuple[int, ...]] = []
    sizes = Session.sizes

    def counted(self: Session, identities: Any) -> Any:
        asked.append(tuple(identities))
        return sizes(self, identities)

    monkeypatch.setattr(Session, "sizes", counted)
    return asked


def secret_of(client: NodeClient, dataset: DatasetInfo) -> Any:
    [found] = [one for one in client.search("#people") if one.id_at_location == dataset.id]
    return found


@pytest.mark.parametrize("how", HIDDEN)
def test_a_guest_computes_with_a_length_that_nobody_tells(
    bob: GridProcess, connect: Connect, people: DatasetInfo, questions: list[tuple[int, ...]], how: str
):
    client = connect(bob)
    x = secret_of(client, people)
    result = HIDDEN[how](x, x[:, 0] > 0)
    with pytest.raises(GetNotPermittedError):
        result.get(deregister_ptr=False)
    assert questions == []
    found = result.get(user="Bob").unwrap()
    expected = HIDDEN[how](PEOPLE.clone(), PEOPLE[:, 0] > 0)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected)
    assert client.receive(torch.ones(2)).get().tolist() == [1, 1], "the session goes on"


@pytest.mark.parametrize("how", ASKED)
def test_a_step_that_needs_the_length_is_refused_to_a_guest_and_says_which_it_was(
    bob: GridProcess, connect: Connect, people: DatasetInfo, how: str
):
    client = connect(bob)
    x = secret_of(client, people)
    with pytest.raises(GetNotPermittedError) as refused:
        ASKED[how](x, x[:, 0] > 0)
    text = str(refused.value)
    assert "needs the length of what aten.index.Tensor gave" in text
    assert str(people.id) in text
    assert "mean, sum, sort and cat" in text


@pytest.mark.parametrize("how", [how for how in ASKED if how != "with a tensor of known length"])
def test_who_may_read_gets_the_length_where_it_is_needed(
    bob: GridProcess, connect: Connect, people: DatasetInfo, questions: list[tuple[int, ...]], how: str
):
    def done(x: Any) -> Any:
        try:
            return ASKED[how](x, x[:, 0] > 0)
        except RuntimeError as error:
            return type(error)

    found, expected = done(secret_of(connect(bob, "Bob"), people)), done(PEOPLE)
    assert questions
    assert type(found) is type(expected) or isinstance(found, torch.Tensor)
    if isinstance(found, torch.Tensor):
        torch.testing.assert_close(found.get().unwrap() if isinstance(found, RemoteTensor) else found, expected)
    elif isinstance(found, list) and isinstance(found[0], torch.Tensor):
        torch.testing.assert_close(torch.tensor([float(row) for row in found]), torch.stack(expected))
    else:
        assert found == expected


def test_gradients_go_back_through_a_hidden_length(bob: GridProcess, connect: Connect, people: DatasetInfo):
    x = secret_of(connect(bob), people).clone().requires_grad_()
    local = PEOPLE.clone().requires_grad_()
    for here in (x, local):
        chosen = here[here[:, 0] > 0]
        ((chosen - chosen.mean(0)) * chosen).exp().mean().backward()
    with pytest.raises(GetNotPermittedError):
        x.grad.get(deregister_ptr=False)
    torch.testing.assert_close(x.grad.get(user="Bob").unwrap(), local.grad)


def test_a_model_is_trained_on_rows_of_which_nobody_knows_how_many_there_are(
    bob: GridProcess, connect: Connect, people: DatasetInfo, questions: list[tuple[int, ...]]
):
    def trained(x: Any, weight: Any) -> Any:
        mask = x[:, 0] > 0
        for _ in range(5):
            loss = torch.nn.functional.mse_loss(x[mask] @ weight, x[mask][:, 2])
            loss.backward()
            with torch.no_grad():
                weight -= 0.1 * weight.grad
            weight.grad = None
        return weight

    client = connect(bob)
    remote = trained(secret_of(client, people), client.receive(torch.zeros(3)).requires_grad_())
    assert questions == []
    torch.testing.assert_close(
        remote.detach().get(user="Bob").unwrap(), trained(PEOPLE, torch.zeros(3, requires_grad=True)).detach()
    )


def test_once_a_length_was_read_its_pointers_are_ordinary_ones(questions: list[tuple[int, ...]]):
    x = PEOPLE.send(VirtualWorker(id="sizes"))
    chosen = x[x[:, 0] > 0]
    twice = chosen * 2
    count = len(chosen)
    assert count == int((PEOPLE[:, 0] > 0).sum())
    assert (chosen + 1).shape == (count, 3)
    assert type((twice + 1).shape[0]) is int
    assert twice.shape == (count, 3)
    assert len(questions) == 1


def test_a_mask_that_was_changed_chooses_anew():
    x = PEOPLE.send(VirtualWorker(id="sizes"))
    mask = x[:, 0] > 0
    before = x[mask]
    mask.logical_not_()
    after = x[mask]
    assert len(before) + len(after) == len(PEOPLE)


def test_a_single_row_is_broadcast_as_torch_does_it():
    x = torch.arange(6.0).reshape(3, 2).send(VirtualWorker(id="sizes"))
    one = x[x[:, 0] == 2]
    assert (x + one).get().tolist() == [[2, 4], [4, 6], [6, 8]]
    assert (one + one).get().tolist() == [[4, 6]]


def test_none_chosen_is_a_length_as_well():
    x = torch.arange(6.0).reshape(3, 2).send(VirtualWorker(id="sizes"))
    none = x[x[:, 0] > 99]
    assert none.sum().item() == 0
    assert (none * 2).get().shape == (0, 2)
    with pytest.raises(RemoteOperationError):
        none.max().get()


def test_the_length_of_a_value_that_was_dropped_cannot_be_asked_for():
    x = torch.arange(6.0).send(VirtualWorker(id="sizes"))
    doubled = 2 * x[x > 2].shape[0]
    gc.collect()
    with pytest.raises(RemoteOperationError, match="keep its pointer"):
        int(doubled)


def test_many_lengths_leave_nothing_behind():
    from grid_jupyter.tensors import sizes

    x = torch.arange(6.0).send(VirtualWorker(id="sizes"))
    x[x > 1].sum()
    gc.collect()
    before = len(sizes._books[0].births)
    for threshold in range(30):
        x[x > threshold].sum()
    gc.collect()
    assert len(sizes._books[0].births) <= before + 1


def _said_and_true(pointer: Any) -> tuple[Any, Any]:
    """Shape, strides and offset as the pointer has them once they were read, and as the Worker has them."""
    said = [int(n) for n in (*pointer.shape, *pointer.stride(), pointer.storage_offset())]
    ((of, offset),) = pointer._ref.session.sizes([pointer._ref.id])
    return said, [*of.shape, *of.stride, offset]


TURNED = torch.arange(120.0).reshape(6, 4, 5).remainder(7).transpose(1, 2)
LAID_OUT: dict[str, Callable[[Any], Any]] = {
    "rows of what is transposed": lambda x: x[x[:, 0, 0] > 1],
    "computed from them": lambda x: x[x[:, 0, 0] > 1] * 2,
    "the last of them": lambda x: x[x[:, 0, 0] > 1][-1],
    "all but the first": lambda x: x[x[:, 0, 0] > 1][1:],
    "unique rows": lambda x: torch.unique(x, dim=1),
    "unique in the last dim": lambda x: torch.unique_consecutive(x, dim=-1),
    "where there are ones": lambda x: (x > 1).nonzero(as_tuple=True)[1],
    "a mask of bytes": lambda x: x[(x > 1).to(torch.uint8)],
}


@pytest.mark.filterwarnings("ignore:indexing with dtype torch.uint8")
@pytest.mark.parametrize("how", LAID_OUT)
def test_shape_strides_and_offset_are_those_of_the_value(how: str):
    remote = LAID_OUT[how](TURNED.clone().send(VirtualWorker(id="sizes")))
    said, true = _said_and_true(remote)
    assert said == true
    torch.testing.assert_close(remote.get(), LAID_OUT[how](TURNED))


@pytest.mark.parametrize("inference", [False, True])
def test_what_was_changed_in_place_has_another_number_of_ones(inference: bool):
    def counted(x: Any) -> list[int]:
        found = []
        chosen = x[x > 0]
        mask = chosen > 2
        part = mask[:2]
        for change in (lambda: None, lambda: part.zero_(), mask.zero_, lambda: mask.fill_(True), chosen.zero_):
            change()
            found += [len(mask.nonzero()), len(chosen[mask]), len(torch.unique(chosen))]
        return found

    numbers = torch.tensor([4.0, 3.0, 0.0, 1.0, 5.0])
    with torch.inference_mode(inference):
        assert counted(numbers.clone().send(VirtualWorker(id="sizes"))) == counted(numbers.clone())


def test_a_gradient_of_the_right_length_fits_what_a_mask_of_more_dims_chose():
    x = torch.randn(4, generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[True, False, True, True], [True, True, True, True]])
    seed = torch.arange(7.0)
    local = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(torch.masked_select(local, mask), local, seed)
    worker = VirtualWorker(id="sizes")
    remote, there = x.send(worker).requires_grad_(), mask.send(worker)
    (found,) = torch.autograd.grad(torch.masked_select(remote, there), remote, seed)
    assert found.get().equal(expected)
    torch.masked_select(remote, there).backward(seed.send(worker))
    assert remote.grad.get().equal(expected)
    with pytest.raises(RuntimeError, match="Mismatch in shape"):
        torch.masked_select(remote, there).backward(torch.ones(6).send(worker))


def test_places_to_split_at_are_read_where_they_are_remote():
    worker = VirtualWorker(id="sizes")
    parts = torch.tensor_split(torch.arange(6.0).send(worker), torch.tensor([1, 4]).send(worker))
    assert [part.get().tolist() for part in parts] == [[0], [1, 2, 3], [4, 5]]
    assert [part.tolist() for part in torch.tensor_split(torch.arange(3), torch.tensor([1]))] == [[0], [1, 2]]

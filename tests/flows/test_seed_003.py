"""Seed 003 cell by cell: tensors on VirtualWorkers, remote arithmetic, gradients."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch as th

import grid_jupyter as sy
from grid_jupyter import TorchHook, VirtualWorker
from grid_jupyter.errors import (
    NotAuthenticatedError,
    ObjectNotFoundError,
    RemoteOperationError,
    TensorsNotCollocatedException,
)


@pytest.fixture
def bob(hook: TorchHook) -> VirtualWorker:
    return sy.VirtualWorker(hook, id="bob")


@pytest.fixture
def alice(hook: TorchHook) -> VirtualWorker:
    return sy.VirtualWorker(hook, id="alice")


POINTER = r"\(Wrapper\)>\[PointerTensor \| me:\d+ -> bob:\d+\]"


def test_a_tensor_goes_to_a_worker_and_comes_back(hook: TorchHook, bob: VirtualWorker):
    assert bob._objects == {}
    x = th.tensor([1, 2, 3, 4, 5])
    x = x.send(bob)
    [(number, value)] = bob._objects.items()
    assert value.tolist() == [1, 2, 3, 4, 5]
    assert x.location is bob
    assert repr(x.location) == "<VirtualWorker id:bob #objects:1>"
    assert x.id_at_location == number
    assert isinstance(x.id, int)
    assert x.id != number
    assert repr(x.owner) == "<VirtualWorker id:me #objects:0>"
    assert hook.local_worker is x.owner
    assert re.fullmatch(POINTER, repr(x))
    x = x.get()
    assert x.tolist() == [1, 2, 3, 4, 5]
    assert bob._objects == {}


def test_a_tensor_goes_to_two_workers_at_once(bob: VirtualWorker, alice: VirtualWorker):
    x = th.tensor([1, 2, 3, 4, 5]).send(bob, alice)
    first, second, third = repr(x).split("\n")
    assert first == "(Wrapper)>[MultiPointerTensor]"
    assert re.fullmatch(r"\t-> " + POINTER, second)
    assert re.fullmatch(r"\t-> \(Wrapper\)>\[PointerTensor \| me:\d+ -> alice:\d+\]", third)
    assert [len(place._objects) for place in (bob, alice)] == [1, 1]
    assert [part.tolist() for part in x.get()] == [[1, 2, 3, 4, 5], [1, 2, 3, 4, 5]]
    assert [place._objects for place in (bob, alice)] == [{}, {}]
    z = th.tensor([1, 2, 3, 4, 5]).send(bob, alice).get(sum_results=True)
    assert z.tolist() == [2, 4, 6, 8, 10]


def test_arithmetic_is_done_where_the_tensors_are(bob: VirtualWorker):
    x, y = th.tensor([1, 2, 3, 4, 5]).send(bob), th.tensor([1, 1, 1, 1, 1]).send(bob)
    z = x + y
    assert re.fullmatch(POINTER, repr(z))
    assert z.get().tolist() == [2, 3, 4, 5, 6]
    assert th.add(x, y).get().tolist() == [2, 3, 4, 5, 6]


def test_gradients_are_computed_where_the_tensors_are_and_come_along(bob: VirtualWorker):
    x = th.tensor([1.0, 2, 3, 4, 5], requires_grad=True).send(bob)
    y = th.tensor([1.0, 1, 1, 1, 1], requires_grad=True).send(bob)
    z = (x + y).sum()
    assert re.fullmatch(POINTER, repr(z.backward())), "0.2.9 gave back a pointer"
    x = x.get()
    assert x.tolist() == [1, 2, 3, 4, 5]
    assert x.requires_grad
    assert x.grad.tolist() == [1, 1, 1, 1, 1]


def test_the_remote_value_dies_with_its_pointer(bob: VirtualWorker):
    x = th.ones(3).send(bob)
    kept = x * 2
    assert len(bob._objects) == 2
    del x
    assert len(bob._objects) == 1
    assert kept.get().tolist() == [2, 2, 2]


def test_tensors_in_two_places_are_not_mixed(bob: VirtualWorker, alice: VirtualWorker):
    with pytest.raises(TensorsNotCollocatedException, match="bob") as mixed:
        th.ones(3).send(bob) + th.ones(3).send(alice)
    assert "alice" in str(mixed.value)


def test_a_wrong_shape_fails_at_the_line_that_wrote_it(bob: VirtualWorker):
    with pytest.raises(RuntimeError, match=r"broadcast|size"):
        th.ones(3).send(bob) + th.ones(4).send(bob)


def test_a_worker_of_this_process_knows_no_accounts(bob: VirtualWorker):
    with pytest.raises(NotAuthenticatedError):
        th.ones(3).send(bob).get(user="Bob")


def test_a_value_that_was_fetched_is_gone(bob: VirtualWorker):
    x = th.ones(3).send(bob)
    x.get()
    with pytest.raises(ObjectNotFoundError):
        x.get()
    with pytest.raises(ObjectNotFoundError):
        (x + 1).get()


def test_what_fails_at_the_worker_is_raised_at_the_next_read(bob: VirtualWorker):
    table = th.arange(3.0).send(bob)
    wrong = table[th.tensor([7]).send(bob)]
    with pytest.raises(RemoteOperationError, match="out of"):
        (wrong + 1).get()
    assert table.get().tolist() == [0, 1, 2]


def test_backward_twice_fails_as_it_does_locally(bob: VirtualWorker):
    x = th.ones(3, requires_grad=True).send(bob)
    z = (x * x).sum()
    z.backward()
    z.backward()
    with pytest.raises(RemoteOperationError, match="second time"):
        z.get()


def test_without_the_hook_torch_is_as_it_was():
    program = (
        "import torch, grid_jupyter as sy\n"
        "bob = sy.VirtualWorker(id='bob')\n"
        "assert not hasattr(torch.Tensor, 'send') and not hasattr(torch.Tensor, 'private_tensor')\n"
        "x = sy.send(torch.ones(3, requires_grad=True), bob)\n"
        "assert (x * 2).sum().backward() is None\n"
        "print(x.grad.get().tolist())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "[2.0, 2.0, 2.0]\n"


def test_allclose_answers_as_it_does_locally(bob: VirtualWorker):
    nan, inf = float("nan"), float("inf")
    here = [th.tensor(values) for values in ([1.0, 2.0], [1.0, 2.00001], [1.0, nan], [1.0, inf], [1.0, -inf])]
    there = [tensor.send(bob) for tensor in here]
    for i, a in enumerate(here):
        for j, b in enumerate(here):
            for options in ({}, {"equal_nan": True}, {"rtol": 1e-9, "atol": 0.0}):
                assert th.allclose(there[i], there[j], **options) == th.allclose(a, b, **options)

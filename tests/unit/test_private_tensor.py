"""PrivateTensor: who may read it goes along with it, and it turns into plain numbers only through unwrap()."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from grid_jupyter import PrivateTensor, VirtualWorker, private_tensor
from grid_jupyter.errors import SendNotPermittedError


@pytest.fixture
def p() -> PrivateTensor:
    return private_tensor(torch.tensor([47.3, 48.1, 50.0]), ("Bob", "Ana"))


def test_a_plain_string_is_one_user_and_not_its_letters():
    assert private_tensor(torch.zeros(1), "Alice").allowed_users == ("Alice",)
    assert private_tensor(torch.zeros(1), ("Alice")).allow("Alice")
    assert not private_tensor(torch.zeros(1), ("Alice")).allow("A")


@pytest.mark.parametrize("users", [("",), ("Bob", " "), (1,), ("Bob", None), "", " "])
def test_a_user_without_a_name_is_refused(users: Any):
    with pytest.raises(ValueError, match="allowed_users"):
        private_tensor(torch.zeros(1), users)


def test_users_are_kept_in_their_order_each_once():
    assert private_tensor(torch.zeros(1), ["Bob", "Ana", "Bob"]).allowed_users == ("Bob", "Ana")


@pytest.mark.parametrize(
    "combine",
    [
        lambda p, q: p + q,
        lambda p, q: q - p,
        lambda p, q: p @ q,
        lambda p, q: torch.add(p, q),
        lambda p, q: torch.stack([p, q]),
        lambda p, q: torch.where(p > 48, p, q),
        lambda p, q: torch.einsum("i,i->", p, q),
        lambda p, q: p.dot(q),
        lambda p, q: torch.nn.functional.mse_loss(p, q),
        lambda p, q: torch.max(p, q),
    ],
)
def test_arithmetic_keeps_the_users_whom_all_operands_allow(p: PrivateTensor, combine: Callable[..., Any]):
    q = private_tensor(torch.ones(3), ("Ana", "Zed"))
    found = combine(p, q)
    assert isinstance(found, PrivateTensor)
    assert found.allowed_users == ("Ana",)


def test_operands_without_a_common_user_give_a_value_that_nobody_is_allowed():
    assert (private_tensor(torch.ones(1), "Bob") * private_tensor(torch.ones(1), "Ana")).allowed_users == ()


@pytest.mark.parametrize(
    "derive",
    [
        lambda p: p / 5,
        lambda p: 5 / p,
        lambda p: -p,
        lambda p: p[0],
        lambda p: p[p > 48],
        lambda p: p.sum(),
        lambda p: p.double().mean(),
        lambda p: p.reshape(1, 3).T,
        lambda p: p.reshape(3, 1),
        lambda p: torch.sqrt(p),
        lambda p: next(iter(p)),
        lambda p: torch.split(p, 2)[0],
        lambda p: torch.max(p, 0)[0],
        lambda p: p.max(0).values,
        lambda p: p.detach(),
        lambda p: p.clone(),
        lambda p: p.cpu(),
        lambda p: p.to(torch.float64),
        lambda p: torch.tensor([1.0, 2.0, 3.0]) + p,
    ],
)
def test_what_is_derived_stays_private(p: PrivateTensor, derive: Callable[[PrivateTensor], Any]):
    found = derive(p)
    assert isinstance(found, PrivateTensor)
    assert found.allowed_users == ("Bob", "Ana")


def test_it_prints_as_in_the_tutorial(p: PrivateTensor):
    assert repr(private_tensor(torch.tensor(19.3), "Bob") / 5) == "(Wrapper)>PrivateTensor>tensor(3.8600)"
    assert str(p) == repr(p)


@pytest.mark.parametrize(
    "read",
    [
        lambda p: p[0].item(),
        lambda p: p.tolist(),
        lambda p: p.numpy(),
        lambda p: bool(p[0] > 1),
        lambda p: float(p[0]),
        lambda p: int(p[0]),
        lambda p: complex(p[0]),
        lambda p: [0] * p[0].long().sum(),
        lambda p: range(3)[p.argmax()],
        lambda p: list(map(float, p)),
        lambda p: np.array(p),
        lambda p: np.asarray(p),
        lambda p: np.from_dlpack(p),
        lambda p: torch.tensor(p),
        lambda p: torch.as_tensor(p),
        lambda p: torch.from_dlpack(p),
        lambda p: torch.Tensor.tolist(p),
        lambda p: torch.Tensor.item(p[0]),
        lambda p: torch.equal(p, p),
        lambda p: torch.allclose(p, p),
        lambda p: p.equal(p),
        lambda p: p[0].is_nonzero(),
        lambda p: p.data,
        lambda p: p.data_ptr(),
        lambda p: p.storage(),
        lambda p: p.untyped_storage(),
        lambda p: p._typed_storage(),
        lambda p: p.apply_(print),
        lambda p: p.map_(p, print),
        lambda p: memoryview(p),
        lambda p: bytes(p),
        lambda p: pickle.dumps(p),
        lambda p: torch.save(p, io.BytesIO()),
        lambda p: copy.copy(p),
        lambda p: copy.deepcopy(p),
        lambda p: f"{p:.2f}",
        lambda p: sum(1 for one in p if one > 48),
        lambda p: 48.1 in p,
    ],
)
def test_it_turns_into_plain_values_by_no_protocol_of_python(p: PrivateTensor, read: Callable[[PrivateTensor], Any]):
    with pytest.raises((TypeError, AttributeError, RuntimeError)) as refused:
        read(p)
    assert "47.3" not in str(refused.value)


@pytest.mark.parametrize(
    "write",
    [
        lambda t, p: t.add_(p),
        lambda t, p: t.copy_(p),
        lambda t, p: t.__setitem__(0, p[0]),
        lambda t, p: torch.add(t, p, out=t),
        lambda t, p: torch.Tensor.set_(t, p),
        lambda t, p: t.masked_fill_(t > 0, p[0]),
        lambda t, p: t.index_put_((torch.tensor([0]),), p[:1]),
        lambda t, p: t.set_(p),
        lambda t, p: setattr(t, "data", p),
    ],
)
def test_it_is_not_poured_into_a_plain_tensor(p: PrivateTensor, write: Callable[[torch.Tensor, PrivateTensor], Any]):
    target = torch.ones(3)
    with pytest.raises((TypeError, RuntimeError)):
        write(target, p)
    assert target.tolist() == [1.0, 1.0, 1.0]


def test_adding_it_onto_a_plain_tensor_makes_a_private_one_and_leaves_the_plain_one(p: PrivateTensor):
    plain = total = torch.ones(3)
    total += p
    assert isinstance(total, PrivateTensor)
    assert plain.tolist() == [1.0, 1.0, 1.0]


def test_it_is_not_changed_in_place_either(p: PrivateTensor):
    for change in (lambda: p.zero_(), lambda: p.add_(1), lambda: p.__setitem__(0, 1.0)):
        with pytest.raises((TypeError, AttributeError)):
            change()
    p += 1
    assert isinstance(p, PrivateTensor)


def test_its_owner_takes_the_tensor_out_with_one_call(p: PrivateTensor):
    assert type(p.unwrap()) is torch.Tensor
    assert p.unwrap().tolist() == pytest.approx([47.3, 48.1, 50.0])


def test_facts_about_its_form_are_plain(p: PrivateTensor):
    assert (p.shape, p.dtype, p.ndim, len(p)) == (torch.Size([3]), torch.float32, 1, 3)
    assert p.size() == torch.Size([3])
    assert (p.size(0), p.numel(), p.dim(), p.stride()) == (3, 3, 1, (1,))
    assert type(p.numel()) is int
    assert p.is_floating_point()


def test_a_virtual_worker_takes_none_because_it_cannot_protect_it(p: PrivateTensor):
    with pytest.raises(SendNotPermittedError):
        p.send(VirtualWorker(id="bob"))

"""The tables of 0.2.9's vocabulary, line by line: each name is there, or says why it is not and what to do instead."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

import grid_jupyter as sy
from grid_jupyter.errors import BadRequest, PureFrameworkTensorFoundError

VERBS = [
    "send", "send_", "get", "get_", "move", "move_", "copy", "tag", "describe", "private_tensor", "combine",
    "remote_send", "remote_get", "mid_get", "attr", "id", "owner", "location", "tags", "description",
    "garbage_collection", "allow",
]  # fmt: skip
SHARES = [
    "share", "share_", "fix_prec", "fix_prec_", "fix_precision", "fix_precision_", "float_prec",
    "float_prec_", "float_precision", "encrypt", "decrypt", "refresh",
]  # fmt: skip


@pytest.fixture(scope="module")
def alice() -> sy.VirtualWorker:
    return sy.VirtualWorker(sy.TorchHook(torch, verbose=False), id="alice")


@pytest.fixture(scope="module")
def bob(alice: sy.VirtualWorker) -> sy.VirtualWorker:
    return sy.VirtualWorker(None, id="bob")


def x() -> torch.Tensor:
    return torch.tensor([1.0, 2.0], requires_grad=True)


@pytest.mark.parametrize("name", VERBS)
def test_torchhook_adds_to_tensors(alice: Any, name: str):
    assert hasattr(x(), name)
    assert hasattr(x().send(alice), name)


@pytest.mark.parametrize("name", SHARES)
def test_torchhook_adds_to_tensors_what_is_for_secret_shares(alice: Any, name: str):
    for one in (x(), x().send(alice)):
        with pytest.raises(BadRequest, match=rf"{name}\(\) of 0.2.9 is not here: nothing here computes on secret sh"):
            getattr(one, name)()


def test_a_layer_of_a_refused_name_is_the_layer_and_modules_without_it_refuse(alice: Any):
    class Coder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encrypt, self.share = torch.nn.Linear(2, 1), torch.nn.Linear(1, 2)

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            return self.share(self.encrypt(rows))

    coder = Coder()
    assert coder(x()).shape == (2,)
    assert set(coder.state_dict()) == {"encrypt.weight", "encrypt.bias", "share.weight", "share.bias"}
    for refused in (coder.decrypt, coder.share.share):
        with pytest.raises(BadRequest, match="nothing here computes on secret shares"):
            refused(1)


def test_torchhook_adds_to_tensors_numpy_tensor(alice: Any):
    with pytest.raises(BadRequest, match=r"x\.numpy\(\) is the array"):
        x().numpy_tensor()


def test_torchhook_adds_to_tensors_attr(alice: Any):
    here, there = x(), x().send(alice)
    here.sum().backward()
    there.sum().backward()
    assert here.attr("grad").tolist() == (there.attr("grad") * 1).get().tolist() == [1, 1]
    assert here.attr("data").tolist() == [1, 2]
    with pytest.raises(AttributeError, match="'grad' and 'data', not 'child'"):
        here.attr("child")


def test_torchhook_adds_to_tensors_garbage_collection(alice: Any):
    here = x()
    assert here.garbage_collection
    here.garbage_collection = True
    with pytest.raises(BadRequest, match="lives as long as you hold it"):
        here.garbage_collection = False
    there = x().send(alice)
    there.garbage_collection = False
    assert not there.garbage_collection


def test_torchhook_adds_to_tensors_combine(alice: Any, bob: Any):
    both = x().send(alice).combine((x() * 10).detach().send(bob))
    assert isinstance(both, sy.MultiPointerTensor)
    assert both.location == [alice, bob]
    assert both.get(sum_results=True).tolist() == [11, 22]
    with pytest.raises(PureFrameworkTensorFoundError):
        x().send(alice).combine(x())


@pytest.mark.parametrize("name", ["send", "get", "move", "copy", "location", "owner"])
def test_torchhook_adds_to_modules(alice: Any, name: str):
    assert hasattr(torch.nn.Linear(1, 1), name)


@pytest.mark.parametrize("name", ["share", "fix_precision", "float_precision", "encrypt", "decrypt"])
def test_torchhook_adds_to_modules_what_is_for_secret_shares(alice: Any, name: str):
    with pytest.raises(BadRequest, match="secret shares"):
        getattr(torch.nn.Linear(1, 1), name)()


def test_torchhook_adds_to_optim_fix_precision(alice: Any):
    optimizer: Any = torch.optim.SGD([x()], lr=0.1)
    with pytest.raises(BadRequest, match="secret shares"):
        optimizer.fix_precision()


def test_clip_grad(alice: Any):
    here, there = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
    there.load_state_dict(here.state_dict())
    (here(x()) * 100).sum().backward()
    there.send(alice)
    (there(x().send(alice)) * 100).sum().backward()
    norms = [torch.nn.utils.clip_grad_norm_(one.parameters(), 1.0) for one in (here, there)]
    assert norms[1].get().item() == norms[0].item()
    assert there.weight.grad.get().equal(here.weight.grad)


@pytest.mark.parametrize("name", ["fetch_plan", "fetch_protocol"])
def test_virtualworker_fetch_plan_protocol(alice: Any, name: str):
    for place in (alice, sy.NodeClient, sy.WebsocketClientWorker):
        assert callable(getattr(place, name))
    with pytest.raises(BadRequest, match=r"plan\.send\(place\)|no protocols"):
        getattr(alice, name)("plan-1", location="bob")


@pytest.mark.parametrize("name", ["fit", "async_fit", "evaluate"])
def test_websocketclientworker_fit_evaluate(name: str):
    with pytest.raises(BadRequest, match=r"grid\.train"):
        getattr(sy.WebsocketClientWorker, name)(object(), "model", "digits")


def test_pointer_repr(alice: Any):
    number = r"\d+"
    one = x().send(alice)
    assert re.fullmatch(rf"\(Wrapper\)>\[PointerTensor \| me:{number} -> alice:{number}\]", repr(one))
    assert re.fullmatch(
        rf"\(Wrapper\)>\[PointerTensor \| me:{number} -> alice:{number}::grad\]", repr(one.attr("grad"))
    )
    told = repr(torch.ones(5, 3).send(alice).tag("#a", "#b").describe("first line\nsecond"))
    assert "\n\tTags: #a #b \n\tShape: torch.Size([5, 3])" in told
    assert "\n\tDescription: first line..." in told


def test_multi_pointer_repr(alice: Any, bob: Any):
    lines = repr(x().send(alice, bob)).split("\n")
    assert lines[0] == "(Wrapper)>[MultiPointerTensor]"
    assert all(line.startswith("\t-> (Wrapper)>[PointerTensor | me:") for line in lines[1:])
    assert len(lines) == 3


def test_private_repr(alice: Any):
    made = torch.tensor(19.3).private_tensor(allowed_users=("Bob",))
    assert repr(made / 5) == "(Wrapper)>PrivateTensor>tensor(3.8600)"


def test_private_tensor_allowed_users_that_is_one_name(alice: Any):
    made = torch.ones(1).private_tensor(allowed_users="Alice")
    assert made.allow("Alice")
    assert not made.allow("A")

"""A Node's own device: `grid:0` and so on in torch's factories, `.to()`, modules and optimisers."""

from __future__ import annotations

import copy
import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from node_world import GridProcess
from torch import nn, optim
from torch.nn import functional

from grid_jupyter import NodeClient, PrivateTensor, VirtualWorker, send
from grid_jupyter.errors import GetNotPermittedError, SessionLostError
from grid_jupyter.tensors.remote import RemoteTensor

X = torch.linspace(-2, 2, 24).reshape(4, 6)


@pytest.fixture(scope="module")
def client(bob: GridProcess) -> Iterator[NodeClient]:
    with bob.client() as made:
        yield made


@pytest.fixture(scope="module", autouse=True)
def as_many_threads_as_a_worker() -> Iterator[None]:
    """Sums are added up in another order by another number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def device(client: NodeClient) -> torch.device:
    return client.device


def fetched(tensor: Any) -> torch.Tensor:
    assert isinstance(tensor, RemoteTensor)
    found = tensor.cpu()
    assert type(found) is torch.Tensor
    return found


def test_a_pointer_says_where_it_is_once_the_device_was_asked_for(client: NodeClient):
    place = VirtualWorker(id="nobody asks")
    before = send(X, place)
    assert (before.device, before.is_cpu, before.get_device()) == (torch.device("cpu"), True, -1)
    assert before.to("cpu") is before, "libraries that ask for the device they found must not read"
    device = place.device
    assert device.type == "grid"
    assert (before.device, before.is_cpu, before.is_grid, before.get_device()) == (device, False, True, device.index)
    assert place.device == device != client.device
    assert send(X, client).device == client.device


FACTORIES: dict[str, Callable[[Any], Any]] = {
    "zeros": lambda d: torch.zeros(3, 2, device=d),
    "zeros of integers": lambda d: torch.zeros((2,), dtype=torch.int64, device=d),
    "ones": lambda d: torch.ones(3, device=d),
    "full": lambda d: torch.full((2, 2), 7, device=d),
    "full with a float": lambda d: torch.full((2, 2), 0.5, dtype=torch.float64, device=d),
    "arange": lambda d: torch.arange(5, device=d),
    "arange by steps": lambda d: torch.arange(1.0, 3.0, 0.5, device=d),
    "linspace": lambda d: torch.linspace(0, 1, 5, device=d),
    "eye": lambda d: torch.eye(3, device=d),
    "rand": lambda d: torch.rand(4, device=d),
    "randn": lambda d: torch.randn(4, 2, device=d),
    "randint": lambda d: torch.randint(0, 9, (5,), device=d),
    "randperm": lambda d: torch.randperm(6, device=d),
    "tril_indices": lambda d: torch.tril_indices(3, 3, device=d),
    "a mask": lambda d: torch.tril(torch.ones(4, 4, device=d)).bool(),
    "one_hot": lambda d: functional.one_hot(torch.arange(3, device=d), 4),
    "to": lambda d: X.to(d),
    "to another dtype": lambda d: X.T.to(d, torch.float64),
    "to the device of a pointer": lambda d: X.to(torch.ones(1, device=d).device),
    "from the device's own context": lambda d: _in_context(d),
}


def _in_context(device: Any) -> Any:
    with torch.device(device):
        return torch.ones(3) + torch.zeros(3)


@pytest.mark.parametrize("name", FACTORIES)
def test_a_factory_makes_there_what_it_makes_here(device: torch.device, name: str):
    torch.manual_seed(3)
    expected = FACTORIES[name]("cpu")
    torch.manual_seed(3)
    found = FACTORIES[name](device)
    assert found.device == device
    assert found.dtype == expected.dtype
    assert fetched(found).equal(expected)


def test_memory_that_nobody_wrote_to_is_zero(device: torch.device):
    assert fetched(torch.empty(1000, device=device)).eq(0).all()


def test_a_leaf_of_a_factory_gets_its_gradient(device: torch.device):
    w = torch.randn(6, 2, device=device, requires_grad=True)
    (X.to(device) @ w).sum().backward()
    torch.testing.assert_close(fetched(w.grad), X.sum(0)[:, None].expand(6, 2))


def test_to_converts_moves_and_reads(client: NodeClient, device: torch.device):
    x = send(X, client)
    assert x.to(device) is x
    assert fetched(x.to(torch.float64)).equal(X.double())
    assert fetched(x.to(device, torch.int64)).equal(X.long())
    assert fetched(x.to(x.double())).equal(X.double())
    assert x.to("cpu").equal(X)
    assert x.to("cpu", torch.float64).equal(X.double())
    copied = x.to(device, copy=True)
    x.zero_()
    assert fetched(copied).equal(X)
    assert not (x.requires_grad_() * 2).cpu().requires_grad


def test_from_device_to_device_values_go_and_the_source_stays():
    here, there = VirtualWorker(id="here"), VirtualWorker(id="there")
    x = send(X, here)
    assert here.device == x.device
    device = there.device
    moved = x.to(device)
    assert (moved.location, moved.device, x.location) == (there, device, here)
    assert fetched(moved).equal(fetched(x))
    model = nn.Linear(6, 2).to(here.device)
    optimizer, before = optim.SGD(model.parameters(), lr=0.1), fetched(model.weight.detach())
    model.to(device)
    model(moved).sum().backward()
    optimizer.step()
    assert model.weight.location is there
    assert not fetched(model.weight.detach()).equal(before)


def test_what_would_go_elsewhere_is_refused(client: NodeClient, device: torch.device):
    x = send(X, client)
    for lines in (x.cuda, lambda: x.to("cuda"), lambda: x.to("meta")):
        with pytest.raises(TypeError, match="cpu"):
            lines()
    with pytest.raises(TypeError, match=r"\.to\(device\)"):
        torch.tensor([1.0, 2.0], device=device)
    with pytest.raises(TypeError, match=r"\.to\(device\)"):
        torch.as_tensor(3, device=device)
    assert fetched(x + 1).equal(X + 1)


def test_private_values_come_as_private_tensors_or_not_at_all(bob: GridProcess):
    with bob.client("Bob") as owner, bob.client("Ana") as ana, bob.client("Zed") as zed:
        owner.publish(X, tags=("device",), allowed_users=("Ana",))
        readable, closed = (client.search("device")[0] for client in (ana, zed))
        assert readable.to(ana.device) is readable
        assert readable.device == ana.device != zed.device == closed.device
        found = readable.cpu()
        assert isinstance(found, PrivateTensor)
        assert found.allow("Ana")
        for read in (closed.cpu, lambda: closed.to("cpu"), lambda: (closed + torch.ones(6, device=zed.device)).cpu()):
            with pytest.raises(GetNotPermittedError):
                read()


def test_a_closed_client_and_one_that_is_gone_say_so(bob: GridProcess):
    client = bob.client()
    device = client.device
    client.close()
    with pytest.raises(SessionLostError, match="closed"):
        torch.zeros(3, device=device)
    del client
    gc.collect()
    with pytest.raises(SessionLostError, match="gone"):
        torch.zeros(3, device=device)
    with pytest.raises(SessionLostError, match="gone"):
        X.to("grid:999")


# ------------------------------------------------------------------ modules and optimisers


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.out = nn.Embedding(6, 6), nn.Linear(6, 6)
        self.out.weight = self.words.weight
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x: Any) -> Any:
        return self.out(self.norm(self.words(x)))


def test_a_module_goes_and_comes_back_whole(device: torch.device):
    torch.manual_seed(0)
    model, words = Tied(), torch.arange(6)
    expected = copy.deepcopy(model)
    out = model.to(device)(words.to(device))
    assert model.out.weight is model.words.weight
    assert {tensor.device for tensor in (*model.parameters(), *model.buffers())} == {device}
    assert fetched(out.detach()).equal(expected(words).detach())
    model.cpu()
    assert model.out.weight is model.words.weight
    for (name, here), there in zip(expected.state_dict().items(), model.state_dict().values(), strict=True):
        assert type(there) is torch.Tensor, name
        assert there.equal(here), name
    assert model.to(device, torch.float64).norm.running_mean.dtype == torch.float64
    assert model.to("cpu").words.weight.dtype == torch.float64


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (optim.AdamW, {}), (optim.AdamW, {"fused": True}), (optim.AdamW, {"foreach": True}),
        (optim.AdamW, {"capturable": True}), (optim.Adagrad, {"fused": True}), (optim.SGD, {"fused": True}),
    ],
)  # fmt: skip
def test_an_optimiser_finds_a_device_that_it_knows(device: torch.device, kind: Any, options: dict[str, bool]):
    torch.manual_seed(0)
    here = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1))
    there = copy.deepcopy(here).to(device)
    plain = {name: on for name, on in options.items() if name != "capturable"}  # which the CPU has not
    losses = []
    for model, x, given in ((here, X, plain), (there, X.to(device), options)):
        optimizer = kind(model.parameters(), lr=0.05, **given)
        losses.append([])
        for _ in range(4):
            optimizer.zero_grad()
            loss = model(x).pow(2).mean()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses[-1].append(loss.item())
    exact = "capturable" not in options  # it computes its bias corrections as tensors
    assert losses[0] == (losses[1] if exact else pytest.approx(losses[1], rel=1e-3))
    for state in optimizer.state.values() if kind is not optim.SGD else ():
        assert type(state["step"]) is (RemoteTensor if options.keys() & {"fused", "capturable"} else torch.Tensor)


def test_a_recurrent_and_an_attention_layer_choose_the_kernels_of_the_cpu(device: torch.device):
    torch.manual_seed(1)
    x = torch.randn(2, 5, 8)
    for layer in (nn.LSTM(8, 4, batch_first=True), nn.TransformerEncoderLayer(8, 2, 16, 0.0)):
        twin = copy.deepcopy(layer).to(device)
        found, expected = twin(x.to(device)), layer(x)
        if isinstance(expected, tuple):
            found, expected = found[0], expected[0]
        assert fetched(found.detach()).equal(expected.detach())


# ------------------------------------------------------------------ everybody else in the process


def test_others_in_the_process_find_no_accelerator(device: torch.device):
    assert not torch.accelerator.is_available()
    assert torch.accelerator.current_accelerator() is None
    with torch.random.fork_rng():
        torch.manual_seed(1)
    local = nn.Linear(3, 1)
    torch.utils.checkpoint.checkpoint(local, torch.ones(1, 3), use_reentrant=False).sum().backward()
    assert local.weight.grad is not None
    assert local.to("cpu", torch.float64).weight.dtype == torch.float64
    assert local.cpu() is local


def test_nothing_is_set_up_until_a_device_is_asked_for():
    lines = """
import torch
from grid_jupyter import VirtualWorker, send
x = send(torch.ones(3), VirtualWorker(id="bob"))
assert (x + 1).get().tolist() == [2, 2, 2]
assert torch._C._get_privateuse1_backend_name() == "privateuseone"
to = torch.nn.Module.to
x.location.device
assert torch._C._get_privateuse1_backend_name() == "grid"
assert torch.nn.Module.to is not to
"""
    subprocess.run([sys.executable, "-c", lines], check=True, timeout=120)


def test_another_backend_in_the_one_place_is_told_of():
    lines = """
import torch
from grid_jupyter import VirtualWorker
from grid_jupyter.errors import BadRequest
torch.utils.rename_privateuse1_backend("npu")
try:
    VirtualWorker(id="bob").device
except BadRequest as error:
    assert "send(node)" in str(error)
else:
    raise SystemExit("nobody complained")
"""
    subprocess.run([sys.executable, "-c", lines], check=True, timeout=120)


def test_a_scaler_of_losses_keeps_its_scale_on_the_device(device: torch.device):
    def trained(where: Any) -> list[Any]:
        torch.manual_seed(0)
        model, x = nn.Linear(3, 2).to(where), torch.ones(4, 3).to(where)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler(torch.device(where).type, init_scale=1024.0, growth_interval=2)
        scales = []
        for factor in (1.0, 1.0, float("inf"), 1.0):
            optimizer.zero_grad()
            scaler.scale(model(x).pow(2).mean() * factor).backward()
            scaler.step(optimizer)
            scaler.update()
            scales.append(scaler.get_scale())
        return [scales, *[one.detach().cpu().tolist() for one in model.parameters()]]

    found = trained(device)
    assert found[0] == [1024, 2048, 1024, 1024]
    assert found == trained("cpu")

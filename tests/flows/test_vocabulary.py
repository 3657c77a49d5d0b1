"""The verbs of 0.2.9 on a VirtualWorker and on a real Node: fetching, sending on, moving, naming, in place."""

from __future__ import annotations

import copy
import gc
import logging
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from node_world import GridProcess, until

import grid_jupyter as sy
from grid_jupyter import NodeClient, TorchHook, VirtualWorker
from grid_jupyter.errors import BadRequest
from grid_jupyter.tensors.remote import RemoteTensor

Connect = Callable[..., NodeClient]
LINE = r"\(Wrapper\)>\[PointerTensor \| me:\d+ -> {}:\d+\]"


@pytest.fixture(scope="module")
def client(bob: GridProcess, hook: TorchHook) -> Iterator[NodeClient]:
    with bob.client("Zed") as made:
        yield made


@pytest.fixture(params=["Node", "VirtualWorker"])
def place(request: pytest.FixtureRequest, client: NodeClient, hook: TorchHook) -> Any:
    return client if request.param == "Node" else VirtualWorker(hook, id="bob")


@pytest.fixture
def alice(hook: TorchHook) -> VirtualWorker:
    return VirtualWorker(hook, id="alice")


def x() -> Any:
    return torch.tensor([1.0, 2.0, 3.0])


def count(place: Any) -> int:
    gc.collect()
    place.session.flush()
    return place.count() if isinstance(place, NodeClient) else len(place._tensors)


# ------------------------------------------------------------------ fetching


def test_get_takes_the_value_and_the_place_keeps_nothing(place: Any):
    before = count(place)
    pointer = x().send(place)
    assert count(place) == before + 1
    assert pointer.get(reason="an audit").tolist() == [1, 2, 3]
    assert count(place) == before


def test_get_can_leave_the_value_where_it_is(place: Any):
    pointer = x().send(place)
    assert pointer.get(deregister_ptr=False).tolist() == pointer.get().tolist() == [1, 2, 3]


def test_a_pointer_becomes_the_tensor_in_place(place: Any):
    pointer = x().requires_grad_().send(place)
    same = pointer
    (pointer * pointer).sum().backward()
    assert pointer.get_() is same
    assert repr(same) == "tensor([1., 2., 3.], requires_grad=True)"
    assert same.grad.tolist() == [2, 4, 6]
    assert type(same + 1) is torch.Tensor
    assert copy.deepcopy(same).tolist() == [1, 2, 3]
    (same * 2).sum().backward()
    assert same.grad.tolist() == [4, 6, 8]


def test_a_tensor_becomes_the_pointer_in_place_and_comes_back(place: Any):
    tensor = x()
    same = tensor
    assert tensor.send_(place) is same
    assert re.fullmatch(LINE.format(place.id), repr(same))
    assert same.location is place
    assert same.shape == (3,)
    assert (same + 1).get().tolist() == [2, 3, 4]
    assert torch.mul(same, same).get().tolist() == [1, 4, 9]
    same.add_(1)
    assert same.sum().item() == 9
    same.get_()
    assert same.tolist() == [2, 3, 4]
    assert repr(same) == "tensor([2., 3., 4.])"
    assert x().send(place, inplace=True).get().tolist() == [1, 2, 3]


def test_a_reason_has_a_bound(place: Any):
    with pytest.raises(BadRequest, match="1000 characters"):
        x().send(place).get(reason="x" * 1001)


def test_a_reason_is_in_the_log_of_the_node_and_cannot_forge_lines(bob: GridProcess, connect: Connect):
    pointer = x().send(connect(bob, "Ana"))  # type: ignore[attr-defined]
    pointer.get(reason="for the\nannual report")
    assert until(lambda: "saying 'for the\\nannual report'" in bob.log.read_text())


# ------------------------------------------------------------------ sending


@pytest.mark.parametrize("option", ["local_autograd", "requires_grad", "preinitialize_grad", "no_wrap"])
def test_an_option_without_a_meaning_is_refused_with_the_reason(place: Any, option: str):
    with pytest.raises(BadRequest, match=f"{option}=True.*no meaning"):
        x().send(place, **{option: True})
    x().send(place, **{option: False})


def test_a_value_can_outlive_its_pointer(place: Any):
    before = count(place)
    kept, dropped = x().send(place, garbage_collect_data=False), x().send(place)
    assert [kept.garbage_collection, dropped.garbage_collection] == [False, True]
    del kept, dropped
    gc.collect()
    assert count(place) == before + 1
    third = x().send(place)
    assert third.disable_gc is third
    del third
    gc.collect()
    assert count(place) == before + 2


def test_a_worker_is_found_by_its_id_and_one_that_is_not_known_is_named(alice: VirtualWorker, hook: TorchHook):
    assert x().send("alice").location is alice
    with pytest.raises(sy.WorkerNotFoundException, match="no worker 'carol'"):
        x().send("carol")
    with pytest.raises(sy.WorkerNotFoundException, match="alice knows no worker 'carol'"):
        alice.get_worker("carol")
    carol = VirtualWorker(hook, id="carol", auto_add=False)
    assert alice.add_workers([carol]).get_worker("carol") is carol


def test_verbs_that_need_a_pointer_say_that_the_tensor_is_here(hook: TorchHook):
    for verb in ("get", "get_", "move", "remote_send"):
        with pytest.raises(sy.PureFrameworkTensorFoundError, match="here already"):
            getattr(x(), verb)()
    for verb in ("remote_get", "mid_get"):
        with pytest.raises(sy.InvalidTensorForRemoteGet):
            getattr(x(), verb)()
    assert x().location is x().owner is hook.local_worker
    assert x().allow("anybody")
    assert not x().is_none()
    assert x().tags == ()


def test_the_functions_need_no_hook(place: Any):
    tensor = sy.describe(sy.tag(x(), "#kept"), "three numbers")
    if isinstance(place, VirtualWorker):
        assert sy.send(tensor, place).tags == ("#kept",)
    plain = x()
    assert sy.send_(plain, place) is plain
    assert plain.get().tolist() == [1, 2, 3]


# ------------------------------------------------------------------ chains


def test_a_pointer_to_a_pointer_comes_back_in_two_steps(place: Any, alice: VirtualWorker):
    before = count(place)
    chain = x().send(place).send(alice)
    assert re.fullmatch(LINE.format("alice"), repr(chain))
    assert chain.location is alice
    assert list(alice._objects) == [chain.id_at_location]
    assert re.fullmatch(
        rf"\(Wrapper\)>\[PointerTensor \| alice:{chain.id_at_location} -> {place.id}:\d+\]",
        repr(alice._objects[chain.id_at_location]),
    )
    assert alice._tensors == {}, "no value is with alice"
    inner = chain.get()
    assert re.fullmatch(LINE.format(place.id), repr(inner))
    assert alice._objects == {}
    assert inner.get().tolist() == [1, 2, 3]
    assert count(place) == before
    with pytest.raises(sy.ObjectNotFoundError, match="no longer holds this pointer"):
        chain.get()
    with pytest.raises(sy.ObjectNotFoundError):
        chain + 1


def test_what_is_computed_through_a_chain_is_held_by_a_chain(place: Any, alice: VirtualWorker):
    chain, other = x().send(place).send(alice), x().send(place).send(alice)
    found = (chain * other + 1).sum()
    assert found.location is alice
    assert found.get().location is place
    chain.add_(10)
    assert chain.copy().get().get().tolist() == [11, 12, 13]
    assert chain[1:].get().get().tolist() == [12, 13]
    chain += 1
    assert chain.get().get().tolist() == [12, 13, 14]


def test_gradients_come_back_through_a_chain(place: Any, alice: VirtualWorker):
    chain = x().requires_grad_().send(place).send(alice)
    (chain * chain).sum().backward()
    assert chain.grad.location is alice
    assert chain.grad.get().get().tolist() == [2, 4, 6]
    back = chain.get().get()
    assert back.tolist() == [1, 2, 3]
    assert back.grad.tolist() == [2, 4, 6]


def test_a_chain_has_as_many_steps_as_it_has_places(place: Any, alice: VirtualWorker, hook: TorchHook):
    carol = VirtualWorker(hook, id="carol")
    chain = x().send(place).send(alice).send(carol)
    chain.mul_(2)
    assert [chain.location, chain.get().location] == [carol, alice]
    chain = x().send(place).send(alice).send(carol)
    middle = chain.get()
    assert [middle.location, middle.get().location] == [alice, place]
    chain = x().send(place).send(alice).send(carol)
    assert chain.remote_get() is chain, "carol fetches what alice holds"
    assert chain.location is carol
    assert chain.get().location is place


def test_a_value_lives_as_long_as_pointer_or_chain(place: Any, alice: VirtualWorker):
    before = count(place)
    inner = x().send(place)
    chain = inner.send(alice)
    assert [inner.garbage_collection, chain.garbage_collection] == [False, True]
    del inner
    gc.collect()
    assert chain.copy().get().get().tolist() == [1, 2, 3]
    del chain
    gc.collect()
    assert count(place) == before
    assert alice._objects == {}


def test_a_chain_in_place(place: Any, alice: VirtualWorker):
    pointer = x().send(place)
    assert pointer.send_(alice) is pointer
    assert pointer.location is alice
    pointer.mid_get()
    assert pointer.location is place
    pointer.get_()
    assert pointer.tolist() == [1, 2, 3]


def test_a_chain_and_a_pointer_are_in_different_places(place: Any, alice: VirtualWorker):
    inner = x().send(place)
    with pytest.raises(sy.TensorsNotCollocatedException, match="alice"):
        inner.send(alice) + inner


def test_a_cleared_place_holds_no_pointers(place: Any, alice: VirtualWorker):
    chain = x().send(place).send(alice)
    alice.clear_objects()
    assert alice._objects == {}
    with pytest.raises(sy.ObjectNotFoundError, match="its objects were cleared"):
        chain + 1
    with pytest.raises(sy.ObjectNotFoundError):
        chain.get()
    assert x().send(place).send(alice).get().get().tolist() == [1, 2, 3]


def test_sending_a_pointer_takes_no_credential(place: Any, alice: VirtualWorker):
    with pytest.raises(BadRequest, match="sends no values"):
        x().send(place).send(alice, user="Bob")
    with pytest.raises(BadRequest, match="fetches a pointer"):
        x().send(place).send(alice).get(user="Bob")


def test_nothing_of_a_chain_reaches_the_place_that_holds_it(bob: GridProcess, connect: Connect, hook: TorchHook):
    node = connect(bob, "Ana")
    before = node.count()
    worker = VirtualWorker(hook, id="far")
    chain = x().send(worker).send(node)  # a Node holds a pointer to a worker of ours
    assert re.fullmatch(LINE.format("Bob"), repr(chain))
    assert (chain + 1).get().get().tolist() == [2, 3, 4]
    assert node.count() == before
    assert chain.get().get().tolist() == [1, 2, 3]


def test_a_chain_does_not_pass_the_release_gate(bob: GridProcess, connect: Connect, alice: VirtualWorker):
    owner = connect(bob, "Bob")
    owner.publish(x() * 1234.5, tags=["#chained"], allowed_users="Ana")
    stranger = connect(bob, "Zed")
    chain = stranger.search("#chained")[0].send(alice)
    assert alice._tensors == {}
    for attempt in (
        lambda: chain.get().get(),
        lambda: (stranger.search("#chained")[0].send(alice) + 1).get().get(),
        lambda: stranger.search("#chained")[0].send(alice).tolist(),
        lambda: stranger.search("#chained")[0].send(alice).remote_get(),
        lambda: (stranger.search("#chained")[0] + 1).move(alice),
        lambda: (stranger.search("#chained")[0] + 1).remote_send(alice),
    ):
        with pytest.raises((sy.GetNotPermittedError, BadRequest)) as refused:
            attempt()
        assert "1234.5" not in str(refused.value)
    assert alice._tensors == {}


# ------------------------------------------------------------------ moving


def test_move_takes_the_source_away(place: Any, alice: VirtualWorker):
    before = count(place)
    pointer = x().requires_grad_().send(place)
    assert pointer.move(alice) is pointer
    assert pointer.location is alice
    assert count(place) == before
    (pointer * 2).sum().backward()
    assert pointer.get().grad.tolist() == [2, 2, 2]
    assert alice._objects == {}


def test_move_home_is_get(place: Any, hook: TorchHook):
    assert x().send(place).move(hook.local_worker).tolist() == [1, 2, 3]
    pointer = x().send(place)
    assert pointer.move(place) is pointer


def test_a_view_is_moved_as_it_looks(place: Any, alice: VirtualWorker):
    table = torch.arange(6.0).reshape(2, 3).send(place)  # type: ignore[attr-defined]
    turned = table.t()
    turned.move_(alice)
    assert turned.shape == (3, 2)
    assert turned.get().tolist() == [[0, 3], [1, 4], [2, 5]]


def test_a_chain_is_moved_by_another_place_holding_it(place: Any, alice: VirtualWorker, hook: TorchHook):
    carol = VirtualWorker(hook, id="carol")
    chain = x().send(place).send(alice)
    chain.move(carol)
    assert chain.location is carol
    assert alice._objects == {}
    assert chain.get().location is place


def test_remote_send_leaves_a_chain_and_remote_get_takes_it_back(alice: VirtualWorker, hook: TorchHook):
    bob = VirtualWorker(hook, id="bob")
    pointer = x().send(bob)
    assert pointer.remote_send(alice) is pointer
    assert pointer.location is bob
    assert [len(place._tensors) for place in (bob, alice)] == [0, 1]
    assert (pointer + 1).get().location is alice
    assert pointer.remote_get() is pointer
    assert pointer.location is bob
    assert [len(place._tensors) for place in (bob, alice)] == [1, 0]
    with pytest.raises(sy.InvalidTensorForRemoteGet, match="not to a pointer"):
        pointer.remote_get()
    assert pointer.get().tolist() == [1, 2, 3]


def test_published_data_is_not_moved(bob: GridProcess, connect: Connect, alice: VirtualWorker):
    owner = connect(bob, "Bob")
    pointer = owner.publish(x(), tags=["#stays"])
    with pytest.raises(BadRequest, match="stays where it is"):
        pointer.move(alice)
    with pytest.raises(sy.SendNotPermittedError, match="cannot protect"):
        (pointer + 1).move(alice)


def test_a_module_moves_with_its_parameters(place: Any, alice: VirtualWorker):
    model = torch.nn.Linear(3, 2)
    weight = model.weight.detach().clone()
    there: Any = model
    there.send(place)
    assert there.location is place
    there.move(alice)
    assert there.location is alice
    model(x().send(alice)).sum().backward()
    there.get()
    assert torch.equal(model.weight, weight)
    assert there.location is there.owner


# ------------------------------------------------------------------ what a pointer is


def test_an_attribute_pointer_computes_and_is_not_fetched(place: Any):
    pointer = x().requires_grad_().send(place)
    grad = pointer.attr("grad")
    assert re.fullmatch(LINE.format(place.id)[:-2] + r"::grad\]", repr(grad))
    assert grad.is_none()
    (pointer * 3).sum().backward()
    assert not grad.is_none()
    assert not pointer.is_none()
    for fetch in (grad.get, grad.get_, pointer.attr("data").get):
        with pytest.raises(sy.CannotRequestObjectAttribute, match=r"\.clone\(\)\.get\(\)"):
            fetch()
    assert (grad + 1).get().tolist() == [4, 4, 4]
    assert grad.clone().get().tolist() == [3, 3, 3]
    with pytest.raises(AttributeError, match="'grad' and 'data'"):
        pointer.attr("child")


def test_there_is_no_child(place: Any):
    pointer = x().send(place)
    for holder in (pointer, pointer.grad_fn, sy.private_tensor(x(), ("Ana",)), place):
        assert not hasattr(holder, "child")


def test_printing_tells_what_this_side_knows_and_costs_no_traffic(bob: GridProcess, connect: Connect):
    owner = connect(bob, "Bob")
    owner.publish(x(), tags=["#printed", "#<b>"], description="<script>alert(1)</script>", allowed_users=("Ana",))
    ana, zed = connect(bob, "Ana"), connect(bob, "Zed")
    mine, found, hers = (one.search("#printed")[0] for one in (owner, zed, ana))
    asked = ana._live()._number, zed._live()._number
    assert str(hers).splitlines()[1:4] == ["\tShape: (3,)", "\tDtype: torch.float32", "\tWhere: Bob"]
    assert "May be read by: Bob, Ana" in str(mine)
    assert "May be read by: its owner, and whom the owner named" in str(found)
    assert re.search(r"Source data: data set \d+, version 1, of Bob", str(found))
    shown = found._repr_html_()
    assert "<script>" not in shown
    assert "<b>" not in shown
    assert "&lt;script&gt;alert(1)" in shown
    assert (ana._live()._number, zed._live()._number) == asked, "no question was asked"
    derived = found.mean()
    assert re.search(r"Source data: at most data sets \d+, which", str(derived))
    assert repr(derived).count("\n") == 0
    assert found.allow("Ana") is None
    assert [mine.allow(name) for name in ("Ana", "Bob", "Zed")] == [True, True, False]


# ------------------------------------------------------------------ several places


def test_arithmetic_of_multi_pointers(place: Any, alice: VirtualWorker):
    both, other = x().send(place, alice), x().send(place, alice)
    assert [one.tolist() for one in (both * other - 1).get()] == [[0, 3, 8]] * 2
    assert [one.tolist() for one in (2**both // other).get()] == [[2, 2, 2]] * 2
    both += other
    assert [one.tolist() for one in both.copy().get()] == [[2, 4, 6]] * 2
    both[0] = 7.0
    assert both.shape == (3,)
    assert len(both) == 3
    assert both.location == [place, alice]
    assert [one.tolist() for one in torch.add(both, 1).get()] == [[8, 5, 7]] * 2
    values, indices = both.max(dim=0)
    assert values.get(sum_results=True).item() == 14
    assert [one.item() for one in indices.get()] == [0, 0]
    assert [one.tolist() for one in (both == other).get()] == [[False, False, False]] * 2
    assert both.sum().item() == [17, 17]


def test_gradients_of_multi_pointers(place: Any, alice: VirtualWorker):
    both = x().requires_grad_().send(place, alice)
    assert both.requires_grad
    assert both.grad is None
    (both * both).sum().backward()
    assert [one.tolist() for one in both.grad.get()] == [[2, 4, 6]] * 2
    assert [one.grad.tolist() for one in both.get()] == [[2, 4, 6]] * 2, "they come along as well"


# ------------------------------------------------------------------ VirtualWorker and TorchHook


def test_a_worker_holds_data_from_the_start_and_finds_it(hook: TorchHook):
    births = torch.tensor([3.5, 3.7]).tag("#births", "#2024").describe("weights in kg")  # type: ignore[attr-defined]
    bob = VirtualWorker(hook, id="bob", data=[births, torch.ones(2)])
    gc.collect()
    assert repr(bob) == "<VirtualWorker id:bob #objects:2>"
    (found,) = bob.search("#births", "weights")
    assert found.tags == ("#births", "#2024")
    assert bob.search(["#births", "#nothing"]) == []
    assert found.location is bob
    assert (found * 2).get().tolist() == [7.0, pytest.approx(7.4)]
    (again,) = bob.search(found.id_at_location)
    del found, again
    gc.collect()
    assert len(bob._objects) == 2
    bob.load_data([torch.zeros(1)])
    assert len(bob._tensors) == 3
    assert bob.clear_objects() is bob
    assert bob._objects == {}
    assert bob.search() == []


def test_a_process_with_work_for_its_worker_ends_without_a_word():
    script = """
import torch
import grid_jupyter as sy
bob = sy.VirtualWorker(sy.TorchHook(torch), id="bob")
x = torch.ones(3).send(bob)
for _ in range(200):
    x + 1
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_worker_can_log_and_delay_its_messages(hook: TorchHook, caplog: pytest.LogCaptureFixture):
    bob = VirtualWorker(hook, id="bob", log_msgs=True, verbose=True, message_pending_time=0.001)
    with caplog.at_level(logging.INFO, "grid_jupyter"):
        x().send(bob).get()
    assert list(bob.msg_history or ()) == ["operations", "read"]
    assert "worker bob received: read" in caplog.text
    with pytest.raises(BadRequest, match="is_client_worker"):
        VirtualWorker(hook, id="bob", is_client_worker=True)


def test_torch_by_the_name_of_a_worker(alice: VirtualWorker):
    torch.manual_seed(3)
    made = alice.remote.torch.rand(2, 3)
    assert made.location is alice
    assert alice.remote.torch.matmul(made, made.t()).shape == (2, 2)
    torch.manual_seed(3)
    assert torch.equal(made.get(), torch.rand(2, 3))
    with pytest.raises(AttributeError, match="no function 'nothing'"):
        _ = alice.remote.torch.nothing
    with pytest.raises(BadRequest, match="no tensor"):
        alice.remote.torch.is_tensor(3)


def test_the_arguments_of_the_hook(hook: TorchHook, caplog: pytest.LogCaptureFixture):
    TorchHook(torch, verbose=False)
    assert "already hooked" not in caplog.text
    TorchHook(torch)
    assert "Torch was already hooked... skipping hooking process" in caplog.text
    numbers = []
    for _ in range(2):
        TorchHook(torch, seed=7, verbose=False)
        numbers.append(x().send(VirtualWorker(id="repeats")).id)
    assert numbers[0] == numbers[1]
    with pytest.raises(BadRequest, match="is_client"):
        TorchHook(torch, is_client=False)
    me = VirtualWorker(id="somebody")
    try:
        assert TorchHook(torch, me, verbose=False).local_worker is me
        assert x().send(VirtualWorker(id="bob")).owner is me
    finally:
        TorchHook(torch, hook.local_worker, verbose=False)


def test_every_exception_of_0_2_9_has_its_name_here():
    names = """
        ObjectNotFoundError GetNotPermittedError SendNotPermittedError TensorsNotCollocatedException
        CannotRequestObjectAttribute InvalidTensorForRemoteGet WorkerNotFoundException ResponseSignatureError
        EmptyCryptoPrimitiveStoreError PlanCommandUnknownError IdNotUniqueError TranslationUnavailableError
        DependencyError PureFrameworkTensorFoundError RemoteObjectFoundError CompressionNotFoundException
        InvalidProtocolFileError
    """
    for name in names.split():
        assert issubclass(getattr(sy, name), sy.GridError)


def test_a_pointer_is_not_received_as_values(client: NodeClient, hook: TorchHook):
    pointer: RemoteTensor = x().send(VirtualWorker(hook, id="bob"))
    with pytest.raises(sy.RemoteObjectFoundError, match="send on the pointer"):
        client.receive(pointer)

"""What a long notebook does to a session: thousands of pointers, outputs that are kept, threads, asyncio."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import textwrap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from node_world import GridProcess, until

from grid_jupyter import GetNotPermittedError, NodeClient, ObjectNotFoundError, send_module
from grid_jupyter.errors import RemoteOperationError

Connect = Callable[..., NodeClient]


def in_a_notebook(cells: list[str], *, may_fail: bool = False) -> str:
    """Run cells as a notebook does, in a process of their own; returns what they show."""
    program = f"""
        from IPython.core.interactiveshell import InteractiveShell
        shell = InteractiveShell.instance()
        for cell in {cells!r}:
            ran = shell.run_cell(cell, store_history=True)
            {may_fail} or ran.raise_error()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_ten_thousand_pointers_made_and_dropped_leave_nothing(bob: GridProcess, connect: Connect):
    client = connect(bob)
    x = client.receive(torch.ones(5))
    before = client.count()
    for _ in range(10_000):
        y = x + 1
        y.mul_(2).sum()
    del y
    assert client.count() == before
    assert len(client.values()) == 1


def test_values_names_what_holds_them(bob: GridProcess, connect: Connect):
    client, other = connect(bob), connect(bob)
    main: Any = sys.modules["__main__"]
    model = torch.nn.Linear(3, 2)
    main.grid_model, main.grid_list = model, [client.receive(torch.ones(7, 3))]
    stranger = other.receive(torch.ones(1))
    try:
        send_module(model, client.session)
        found = client.values()
        assert [one.names for one in found] == [("grid_list[0]",), ("grid_model.weight",), ("grid_model.bias",)]
        assert found[0][1:4] == ((7, 3), "float32", 84)
        assert "grid_model.weight" in repr(found)
        assert "<" not in found._repr_html_()[5:-6]
        assert [one.pointer is stranger for one in other.values()] == [True]
    finally:
        del main.grid_model, main.grid_list


def test_clear_forgets_all_values_and_published_data_stays(bob: GridProcess, connect: Connect):
    owner = connect(bob, "Bob")
    data = owner.publish(torch.arange(6.0), tags=["#cleared"], allowed_users="Bob")
    computed, mine = data.sum(), owner.receive(torch.ones(3))
    assert owner.count() == 3
    owner.clear()
    assert owner.count() == 0
    for gone in (computed, mine):
        with pytest.raises(ObjectNotFoundError):
            gone.get()
    assert data.sum().get().unwrap().item() == 15
    assert (owner.receive(torch.ones(3)) * 2).get().tolist() == [2, 2, 2]
    owner.unpublish(data)


def test_outputs_of_cells_are_let_go_by_clear(bob: GridProcess):
    cells = [
        "import torch, grid_jupyter as sy",
        f"node = sy.NodeClient({bob.address!r}); x = node.receive(torch.ones(3))",
        "x + 1",
        "_ * 2",
        "print(*[name for one in node.values() for name in one.names])",
        "del x; node.clear()",
        "print(node.count(), len(node.values()), sorted(Out))",
    ]
    shown = in_a_notebook(cells)
    lines = shown.strip().splitlines()
    assert {"x", "_3", "_4", "_"} <= set(lines[-2].split()), lines
    assert lines[-1] == "0 0 []"


def test_an_error_names_the_line_that_issued_the_operation(bob: GridProcess, connect: Connect):
    client = connect(bob)
    x, outside = client.receive(torch.arange(4.0)), client.receive(torch.tensor([7]))
    model = torch.nn.Embedding(3, 2)
    send_module(model, client.session)

    def read_of(issue: Callable[[], Any]) -> str:
        with pytest.raises(RemoteOperationError) as caught:
            issue().sum().get()
        return str(caught.value)

    def in_place() -> Any:
        x[outside] = 0.0  # line of the write
        return x

    def backward() -> Any:
        leaf = client.receive(torch.ones(2, requires_grad=True))
        (leaf * leaf).sum().backward(retain_graph=False)
        loss = (leaf * leaf).sum()
        loss.backward()
        loss.backward()  # line of the second pass
        return leaf

    here = __file__.rpartition("/")[2]
    assert f"{here}, line" in read_of(lambda: x[outside] * 2)
    assert "x[outside] * 2 + 1  # this line" in read_of(lambda: x[outside] * 2 + 1)  # this line
    assert "model(outside)" in read_of(lambda: model(outside)), "an operation deep inside torch.nn"
    assert "x[outside] = 0.0  # line of the write" in read_of(in_place)
    assert "loss.backward()  # line of the second pass" in read_of(backward)


def test_an_error_names_the_cell_and_its_line(bob: GridProcess):
    cells = [
        f"import torch, grid_jupyter as sy; node = sy.NodeClient({bob.address!r})",
        "x = node.receive(torch.ones(3))\nindex = node.receive(torch.tensor([9]))\ny = x[index]  # here",
        "z = (y * 2).sum()",
        "try:\n    z.get()\nexcept sy.GridError as error:\n    print(error)",
    ]
    shown = in_a_notebook(cells)
    assert shown.strip().splitlines()[-1] == "  issued at In[2], line 3: y = x[index]  # here"


def test_a_notebook_shows_an_error_by_its_own_lines(bob: GridProcess):
    cells = [
        f"import torch, grid_jupyter as sy; node = sy.NodeClient({bob.address!r})",
        "def offer(x):\n    return node.publish(x)",
        "offer(torch.ones(3))",
    ]
    shown = in_a_notebook(cells, may_fail=True)
    assert "line 1:\n    offer(torch.ones(3))\n" in shown
    assert "line 2:\n    return node.publish(x)\n\nNotAuthenticatedError: " in shown, "nothing in between"


def test_the_line_of_a_failure_in_private_data_is_told_to_readers_only(bob: GridProcess, connect: Connect):
    owner, guest = connect(bob, "Bob"), connect(bob)
    owner.publish(torch.tensor([9]), tags=["#far-away"], allowed_users="Bob", public_tags=True)
    for client in (owner, guest):
        [index] = client.search("#far-away")
        found = client.receive(torch.ones(3))[index].sum()  # the failing line
        with pytest.raises(RemoteOperationError if client is owner else GetNotPermittedError) as caught:
            found.get()
        assert ("the failing line" in str(caught.value)) is (client is owner)
    owner.unpublish(index.id_at_location)


def test_many_threads_compute_in_one_session(bob: GridProcess, connect: Connect):
    client = connect(bob)

    def work(seed: int) -> list[float]:
        x = client.receive(torch.full((4,), float(seed)))
        for _ in range(200):
            x = x + 1
        return list((x * 2).get().tolist())

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(work, range(8)))
    assert found == [[2.0 * (seed + 200)] * 4 for seed in range(8)]
    gc.collect()
    until(lambda: client.count() == 0)


def test_asyncio_tasks_wait_for_several_nodes_beside_one_another(
    bob: GridProcess, alice: GridProcess, connect: Connect
):
    places = [connect(bob), connect(alice, "Ana")]

    async def total(place: NodeClient, n: int) -> float:
        x = place.receive(torch.arange(float(n)))
        return float(await asyncio.to_thread(x.sum().item))

    async def all_of_them() -> list[float]:
        return await asyncio.gather(*(total(place, n) for n in (3, 5, 9) for place in places))

    assert asyncio.run(all_of_them()) == [3, 3, 10, 10, 36, 36]

"""Mock rows from the owner to the scientist: given, made, fetched, replaced, refused, gone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import World
from node_world import GridProcess
from safetensors.torch import save

from grid_jupyter import NodeClient
from grid_jupyter.errors import (
    BadRequest,
    ComputeNotPermittedError,
    Forbidden,
    GetNotPermittedError,
    InvalidDataError,
    NotAuthenticatedError,
    ObjectNotFoundError,
)

Connect = Callable[..., NodeClient]
AGES = pd.DataFrame({"ward": pd.array(["north", "south"], "string"), "age": pd.array([31, None], "Int64")})


@pytest.fixture
def owner(bob: GridProcess, connect: Connect) -> NodeClient:
    return connect(bob, "Bob")


def blobs(node: GridProcess) -> set[str]:
    return {one.name for one in (node.state / "blobs").iterdir()}


def test_a_scientist_fetches_random_rows_of_the_form_and_computes_on_both_alike(
    bob: GridProcess, owner: NodeClient, connect: Connect
):
    before = blobs(bob)
    data = torch.full((7, 3), 4711.0)
    made = owner.publish(data, tags=["#mocked"], mock=5)
    again = owner.publish(data, tags=["#mocked"], mock=5)
    assert again.id_at_location == made.id_at_location, "a cell that is run twice is one data set"
    [found] = connect(bob, "Zed").search("#mocked")
    rows = found.mock()
    assert (type(rows), rows.shape, rows.dtype) == (torch.Tensor, (5, 3), torch.float32)
    assert not (rows == 4711.0).any()
    assert (rows @ torch.ones(3)).shape == (5,)
    with pytest.raises(GetNotPermittedError):
        (found @ torch.ones(3)).get()
    with pytest.raises(BadRequest, match="published"):
        (found + 1).mock()
    [guests] = connect(bob).search("#mocked")
    assert guests.mock().equal(rows)
    owner.unpublish(made)
    assert blobs(bob) == before
    with pytest.raises(ObjectNotFoundError):
        found.mock()


def test_a_table_s_mock_rows_come_as_a_frame_with_their_own_words_and_search_tells_of_them(
    bob: GridProcess, owner: NodeClient, connect: Connect
):
    before = blobs(bob)
    made = owner.publish(AGES, tags=["#mock-table"])
    plain = owner.publish(AGES, name="none", tags=["#mock-table"])
    invented = pd.DataFrame({"ward": pd.array(["x", "y", None], "string"), "age": pd.array([1, 2, 3], "Int64")})
    with pytest.raises(ObjectNotFoundError, match="no mock rows"):
        made.mock()
    assert owner.edit(made, mock=invented).mock
    zed = connect(bob, "Zed")
    assert {one.id_at_location: one.dataset.mock for one in zed.search("#mock-table")} == {
        made.id_at_location: True,
        plain.id_at_location: False,
    }
    [found] = [one for one in zed.search("#mock-table") if one.dataset.mock]
    assert "Mock rows: .mock()" in repr(found)
    pd.testing.assert_frame_equal(found.mock(), invented)
    with pytest.raises(ComputeNotPermittedError):
        found.categories("ward")
    held = blobs(bob)
    owner.edit(made, mock=4)
    assert (len(found.mock()), dict(found.mock().dtypes)) == (4, dict(AGES.dtypes))
    assert len(blobs(bob)) == len(held), "the rows that were replaced are gone"
    second = owner.publish(AGES[:1], tags=["#mock-table"], replaces=made, mock=invented)
    assert (len(found.mock()), len(second.mock())) == (4, 3), "mock rows belong to a version"
    assert not owner.edit(made, mock=None).mock
    with pytest.raises(ObjectNotFoundError):
        second.mock()
    with pytest.raises(Forbidden):
        zed.edit(found, tags=["#mine"])
    owner.unpublish(made)
    owner.unpublish(plain)
    assert blobs(bob) == before


def test_only_who_may_compute_fetches_mock_rows(alice: GridProcess, connect: Connect):
    owner = connect(alice, "Alice")
    made = owner.publish(torch.zeros(3, 2), tags=["#mock-gate"], compute_users="Ana", mock=np.ones((2, 2), "float32"))
    where = f"/data-centric/datasets/{made.id_at_location}/1/mock"
    assert connect(alice, "Ana").search("#mock-gate")[0].mock().tolist() == [[1, 1], [1, 1]]
    assert alice.call("GET", where)[0] == 401, "no guests here"
    assert alice.call("GET", where, token=alice.user("Bob", "Publisher"))[0] == 404, "as if it were not there"
    for path in (where.replace("/1/", "/2/"), where.replace("/1/", "/999999999999999999/")):
        assert alice.call("GET", path, token=alice.user("Ana", "User"))[0] == 404
    owner.edit(made, compute_users="Bob")
    with pytest.raises(ObjectNotFoundError):
        made.mock(user="Ana")
    owner.unpublish(made)


@pytest.mark.parametrize(
    "mock", [torch.ones(2, 3), torch.ones(2, dtype=torch.float64), np.ones((2, 2)), {"X": torch.ones(2, 2)}, AGES]
)
def test_mock_rows_of_another_form_are_refused_and_nothing_is_kept(bob: GridProcess, owner: NodeClient, mock: object):
    before = blobs(bob)
    with pytest.raises(InvalidDataError, match="mock rows"):
        owner.publish(torch.zeros(5, 2), tags=["#mock-wrong"], mock=mock)
    made = owner.publish(torch.zeros(5, 2), tags=["#mock-wrong"])
    with pytest.raises(InvalidDataError, match="mock rows"):
        owner.edit(made, mock=mock, tags=["#changed"])
    assert owner.search("#changed") == [], "an edit is whole or not at all"
    owner.unpublish(made)
    assert blobs(bob) == before


def test_a_node_believes_no_client_about_mock_rows(bob: GridProcess, owner: NodeClient):
    before, token = blobs(bob), bob.user("Bob", "Owner")
    data, other = save({"data": torch.ones(3, 2)}), save({"data": torch.ones(3, 4)})

    def publish(mock: bytes | None, named: str) -> int:
        assert bob.call("PUT", f"/data-centric/uploads/{'a' * 32}", data, token=token)[0] == 200
        if mock is not None:
            assert bob.call("PUT", f"/data-centric/uploads/{'b' * 32}", mock, token=token)[0] == 200
        body = {"upload": "a" * 32, "kind": "tensor", "mock": {"upload": named}}
        return int(bob.call("POST", "/data-centric/datasets", body, token=token)[0])

    assert publish(other, "b" * 32) == 400
    assert publish(None, "a" * 32) == 400, (
        "the data are not their own mock rows: they would be shared, and lost, as one"
    )
    assert publish(None, "c" * 32) == 404
    assert bob.call("PUT", f"/data-centric/uploads/{'b' * 32}", b"\xff" * 40, token=token)[0] in (400, 413)
    assert blobs(bob) == before
    assert publish(data, "b" * 32) == 200
    [number] = [one.id for one in owner.datasets() if one.mock]
    [made] = [one for one in owner.search() if one.id_at_location == number]
    assert made.mock().equal(torch.ones(3, 2))
    body = {"mock": {"upload": "b" * 32}}
    where = f"/data-centric/datasets/{made.id_at_location}"
    assert bob.call("PATCH", where, body, token=token)[0] == 404, "an upload is used once"
    assert made.mock().equal(torch.ones(3, 2))
    owner.unpublish(made)
    assert blobs(bob) == before


def test_mock_rows_outlive_a_restart_of_the_node(small_world: World, tmp_path: Path):
    node = small_world.start("node", "Mocked")
    node.user("Bob", "Owner")
    np.savez(tmp_path / "two.npz", X=np.zeros((4, 2)), y=np.zeros(4, "int64"))
    with node.client("Bob") as client:
        client.publish(tmp_path / "two.npz", tags=["#two"], mock=3)
        rows = client.search("#two")[0].mock()
    node.stop()
    node.start()
    with node.client("Bob") as client:
        [found] = client.search("#two")
        assert {name: one.tolist() for name, one in found.mock().items()} == {n: o.tolist() for n, o in rows.items()}
        assert found["X"].mock().shape == (3, 2)
    with pytest.raises(NotAuthenticatedError), node.client() as guest:
        guest.search()

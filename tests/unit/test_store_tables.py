"""Data sets, served models and members of a Network, as rows."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import URL

from grid_jupyter.errors import Conflict, IdNotUniqueError, NotFound, ObjectNotFoundError, SendNotPermittedError
from grid_jupyter.identity import roles
from grid_jupyter.network.registry import Registry
from grid_jupyter.store.accounts import AccountTable
from grid_jupyter.store.database import Database
from grid_jupyter.store.datasets import DatasetTable, NewDataset, StoredBlob, StoredColumn, StoredMock, StoredTensor
from grid_jupyter.store.models import ModelTable, StoredModel
from grid_jupyter.store.records import FLAG_COLUMNS

run = asyncio.run


@pytest.fixture
def database(address: URL) -> Iterator[Database]:
    database = Database(address)
    yield database
    database.close()


@pytest.fixture
def datasets(database: Database) -> DatasetTable:
    return DatasetTable(database, clock=lambda: 1000.0)


HEIGHTS = NewDataset(
    name="heights",
    owner="Bob",
    kind="table",
    tags=("#b", "#a", "<script>"),
    description="Heights, \N{LATIN SMALL LETTER U WITH DIAERESIS}ber Nacht gemessen",
    allowed_users=("Bob", "Ana"),
    tensors=(StoredTensor("h", "float32", (3, 2), 0, 24), StoredTensor("n", "int64", (), 24, 32)),
    columns=(StoredColumn("h", "Float32"),),
    blob="0" * 32,
    nbytes=32,
    sha256="f" * 64,
)


def like(blob: str, **changes: Any) -> NewDataset:
    return dataclasses.replace(HEIGHTS, blob=blob, **changes)


# ------------------------------------------------------------------ data sets


def test_a_published_data_set_is_read_back_as_it_was(datasets: DatasetTable) -> None:
    id_, version = run(datasets.publish(HEIGHTS, "upload"))
    found = run(datasets.get(id_))
    assert (found.id, found.version, found.created) == (id_, 1, 1000.0)
    assert version == 1
    for field in dataclasses.fields(HEIGHTS):
        assert getattr(found, field.name) == getattr(HEIGHTS, field.name)
    assert run(datasets.get(id_, 1)) == found
    assert run(datasets.list()) == (found,)


def test_the_ids_of_data_sets_are_random_numbers_of_eleven_digits(datasets: DatasetTable) -> None:
    ids = [run(datasets.publish(like(str(n)), str(n)))[0] for n in range(10)]
    assert len(set(ids)) == 10
    assert {len(str(id_)) for id_ in ids} == {11}
    assert ids != sorted(ids)


def test_publishing_twice_under_one_upload_id_stores_once(datasets: DatasetTable) -> None:
    first = run(datasets.publish(HEIGHTS, "upload"))
    assert run(datasets.publish(like("1" * 32), "upload")) == first
    assert [found.blob for found in run(datasets.list())] == ["0" * 32]
    assert run(datasets.blobs()) == {"0" * 32}


def test_an_upload_id_of_somebody_else_tells_nothing(datasets: DatasetTable) -> None:
    run(datasets.publish(HEIGHTS, "upload"))
    with pytest.raises(Conflict):
        run(datasets.publish(like("1", owner="Eve"), "upload"))


def test_a_second_version_stands_beside_the_first(datasets: DatasetTable) -> None:
    id_, _ = run(datasets.publish(HEIGHTS, "u1"))
    assert run(datasets.publish(like("1", tags=("#new",)), "u2", id_)) == (id_, 2)
    assert run(datasets.publish(like("1", tags=("#new",)), "u2", id_)) == (id_, 2)
    assert run(datasets.get(id_)).tags == ("#new",)
    assert run(datasets.get(id_, 1)).tags == HEIGHTS.tags
    assert [found.version for found in run(datasets.list())] == [2]
    assert run(datasets.blobs()) == {"0" * 32, "1"}


def test_only_the_owner_publishes_a_new_version(datasets: DatasetTable) -> None:
    id_, _ = run(datasets.publish(HEIGHTS, "u1"))
    with pytest.raises(SendNotPermittedError):
        run(datasets.publish(like("1", owner="Eve"), "u2", id_))
    assert run(datasets.get(id_)).version == 1


@pytest.mark.parametrize("id_", [0, -1, 12345678901, 2**63, 10**30])
def test_a_data_set_that_does_not_exist_is_not_found(datasets: DatasetTable, id_: int) -> None:
    attempts: list[Callable[[], object]] = [
        lambda: run(datasets.get(id_)),
        lambda: run(datasets.publish(HEIGHTS, "u", id_)),
        lambda: run(datasets.edit(id_, description="")),
        lambda: run(datasets.unpublish(id_)),
    ]
    for attempt in attempts:
        with pytest.raises(ObjectNotFoundError):
            attempt()


@pytest.mark.parametrize("version", [0, 2, -1, 10**30])
def test_a_version_that_does_not_exist_is_not_found(datasets: DatasetTable, version: int) -> None:
    id_, _ = run(datasets.publish(HEIGHTS, "u1"))
    with pytest.raises(ObjectNotFoundError):
        run(datasets.get(id_, version))


def test_a_search_finds_what_carries_every_tag_newest_first(datasets: DatasetTable) -> None:
    run(datasets.publish(like("1", name="both", tags=("#x", "#y")), "1"))
    run(datasets.publish(like("2", name="x", tags=("#x",)), "2"))
    run(datasets.publish(like("3", name="both again", tags=("#y", "#x", "#z")), "3"))

    def names(*tags: str) -> list[str]:
        return [found.name for found in run(datasets.search(tags))]

    assert names("#x") == ["both again", "x", "both"]
    assert names("#x", "#y") == ["both again", "both"]
    assert names("#nope", "#x") == names("#x", "#nope") == []
    assert names("#") == names("x") == names("%") == []
    assert names() == ["both again", "x", "both"]


def test_a_search_sees_the_tags_of_the_current_version_only(datasets: DatasetTable) -> None:
    id_, _ = run(datasets.publish(like("1", tags=("#old",)), "1"))
    run(datasets.publish(like("2", tags=("#new",)), "2", id_))
    assert run(datasets.search(("#old",))) == ()
    assert [found.version for found in run(datasets.search(("#new",)))] == [2]


def test_a_new_version_makes_its_data_set_the_newest(datasets: DatasetTable) -> None:
    first, _ = run(datasets.publish(like("1"), "1"))
    second, _ = run(datasets.publish(like("2"), "2"))
    run(datasets.publish(like("3"), "3", first))
    assert [found.id for found in run(datasets.list())] == [first, second]


def test_an_edit_changes_what_is_given_and_nothing_else(datasets: DatasetTable) -> None:
    id_, _ = run(datasets.publish(HEIGHTS, "u"))
    before = run(datasets.get(id_))
    assert run(datasets.edit(id_)) == before
    edited = run(datasets.edit(id_, tags=("#c",), description="", compute_users=(), public_tags=True))
    assert edited == dataclasses.replace(before, tags=("#c",), description="", compute_users=(), public_tags=True)
    assert run(datasets.get(id_)) == edited
    assert run(datasets.edit(id_, compute_users=None)).compute_users is None


def test_taking_away_a_reader_goes_for_old_versions_too(datasets: DatasetTable) -> None:
    id_, _ = run(datasets.publish(HEIGHTS, "u1"))
    run(datasets.publish(like("1"), "u2", id_))
    run(datasets.edit(id_, allowed_users=("Bob",), tags=("#now",)))
    assert run(datasets.get(id_, 1)).allowed_users == run(datasets.get(id_, 2)).allowed_users == ("Bob",)
    assert run(datasets.get(id_, 1)).tags == HEIGHTS.tags


def test_mock_rows_are_a_version_s_and_their_blobs_are_named_until_they_are_replaced(datasets: DatasetTable) -> None:
    first, second = StoredMock("a", 7, "1" * 64), StoredMock("b", 9, "2" * 64)
    id_, _ = run(datasets.publish(like("0", mock=first), "one"))
    run(datasets.publish(like("1"), "two", id_))
    assert (run(datasets.get(id_, 1)).mock, run(datasets.get(id_)).mock) == (first, None)
    assert run(datasets.edit(id_, mock=second)).mock == second
    assert run(datasets.edit(id_, tags=("#x",))).mock == second
    assert run(datasets.blobs()) == {"0", "1", "a", "b"}
    assert run(datasets.edit(id_, mock=None)).mock is None
    assert run(datasets.blobs()) == {"0", "1", "a"}
    assert [(blob.name, blob.nbytes, blob.mock) for blob in run(datasets.unpublish(id_))] == [
        ("0", 32, False),
        ("1", 32, False),
        ("a", 7, True),
    ]
    assert run(datasets.blobs()) == frozenset()


def test_unpublishing_forgets_every_version_and_names_the_blobs(datasets: DatasetTable) -> None:
    id_, _ = run(datasets.publish(HEIGHTS, "u1"))
    run(datasets.publish(like("1", nbytes=5), "u2", id_))
    other, _ = run(datasets.publish(like("2"), "u3"))
    assert run(datasets.unpublish(id_)) == (StoredBlob("0" * 32, 32), StoredBlob("1", 5))
    for version in (None, 1, 2):
        with pytest.raises(ObjectNotFoundError):
            run(datasets.get(id_, version))
    assert [found.id for found in run(datasets.list())] == [other]
    assert run(datasets.blobs()) == {"2"}


# ------------------------------------------------------------------ models

MODEL = StoredModel("mnist", "a" * 32, 10, True, False, False, "Bob", 5.0)


def test_a_served_model_is_listed_until_it_is_deleted(database: Database) -> None:
    models = ModelTable(database)
    run(models.add(MODEL))
    later = dataclasses.replace(MODEL, id="later", blob="b", created=6.0)
    run(models.add(later))
    assert run(models.list()) == (MODEL, later)
    assert run(models.get("mnist")) == MODEL
    assert run(models.blobs()) == {"a" * 32, "b"}
    assert run(models.delete("mnist")) == MODEL
    assert run(models.list()) == (later,)
    for attempt in (models.get, models.delete):
        with pytest.raises(NotFound, match="Model ID not found!"):
            run(attempt("mnist"))


def test_the_id_of_a_served_model_is_taken(database: Database) -> None:
    models = ModelTable(database)
    run(models.add(MODEL))
    with pytest.raises(IdNotUniqueError, match=r"Model id already exists\."):
        run(models.add(dataclasses.replace(MODEL, blob="b")))


# ------------------------------------------------------------------ members of a Network


@pytest.fixture
def members(database: Database) -> Registry:
    return Registry(database)


@pytest.fixture
def account_id(database: Database) -> int:
    accounts = AccountTable(database)
    run(accounts.seed_roles({"Node": frozenset()}))
    return run(accounts.add_account("Alice", None, "Node", 1.0)).id


def test_a_member_is_remembered_with_its_last_address(members: Registry, account_id: int) -> None:
    added = run(members.add("Alice", "http://127.0.0.1:3001", account_id, 1.0, node_id="id-of-alice"))
    assert run(members.all()) == (run(members.find(name="Alice")),) == (added,)
    run(members.seen("Alice", 7.0, address="http://10.0.0.1:3001"))
    run(members.seen("Alice", 9.0))
    run(members.seen("gone", 9.0))
    moved = dataclasses.replace(added, address="http://10.0.0.1:3001", last_seen=9.0)
    assert run(members.find(account_id=account_id)) == moved
    assert run(members.remove(moved)) == "Alice"
    assert run(members.all()) == ()
    assert run(members.find(name="Alice")) is None


@pytest.mark.parametrize(("name", "node_id"), [("Alice", "other"), ("Other", "id-of-alice")])
def test_a_members_name_and_id_are_taken(members: Registry, account_id: int, name: str, node_id: str) -> None:
    run(members.add("Alice", "http://127.0.0.1:3001", account_id, 1.0, node_id="id-of-alice"))
    with pytest.raises(Conflict, match="This ID has already been registered"):
        run(members.add(name, "http://127.0.0.1:3002", account_id, 1.0, node_id=node_id))


# ------------------------------------------------------------------ accounts, where identity does not reach


def test_the_rights_in_the_database_are_the_rights_of_identity() -> None:
    assert FLAG_COLUMNS == roles.FLAGS


def test_a_password_hash_is_not_in_the_repr_of_an_account(database: Database) -> None:
    accounts = AccountTable(database)
    run(accounts.seed_roles({"User": frozenset()}))
    assert "hash-of-it" not in repr(run(accounts.add_account("Ana", "hash-of-it", "User", 1.0)))

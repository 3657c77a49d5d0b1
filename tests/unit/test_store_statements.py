"""Statements that SQLite's driver gets as they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import pytest
from sqlalchemy import Table, bindparam, insert, select, update

from grid_jupyter.errors import Conflict
from grid_jupyter.store.database import Database
from grid_jupyter.store.records import Checkpoint, TrainingRow
from grid_jupyter.store.statements import Statement

_T = cast(Table, TrainingRow.__table__)
_C = cast(Table, Checkpoint.__table__)
_TRAINING = {
    "name": "digits", "version": "1", "owner": "olga", "created": 1.5, "client_config": {"lr": 0.5},
    "server_config": {}, "seed": "", "secret": "x", "buffers": ["mean"], "averaging": None, "state": {"phase": "öpen"},
    "registered": 0, "forgotten": 0, "cursor": 0,
}  # fmt: skip
_ADD = Statement(insert(_T))
_SAVE = Statement(update(_T).where(_T.c.id == bindparam("which")).values(state=bindparam("new"), owner="ann"))
_FIND = Statement(select(_T.c.id, _T.c.created, _T.c.state, _T.c.averaging).where(_T.c.name == bindparam("named")))
_COUNT = Statement(update(_T).values(registered=_T.c.registered + bindparam("more")).returning(_T.c.registered))
_CHECKPOINT = Statement(insert(_C))


@pytest.fixture
def database() -> Iterator[Database]:
    made = Database("sqlite://")
    yield made
    made.close()


def test_a_statement_writes_and_reads_what_sqlalchemy_would(database: Database):
    database.call(lambda session: _ADD.run(session.connection(), _TRAINING))
    [(number, created, state, averaging)] = database.call(
        lambda session: _FIND.run(session.connection(), {"named": "digits"})
    )
    assert (created, state, averaging) == (1.5, {"phase": "öpen"}, None)
    database.call(lambda session: _SAVE.run(session.connection(), {"which": number, "new": {"phase": "over"}}))
    row = database.call(lambda session: session.get_one(TrainingRow, number))
    assert (row.state, row.owner, row.client_config, row.buffers) == ({"phase": "over"}, "ann", {"lr": 0.5}, ["mean"])


def test_a_statement_that_finds_nothing_has_no_rows_and_one_that_returns_has_them(database: Database):
    assert database.call(lambda session: _FIND.run(session.connection(), {"named": "nobody"})) == []
    database.call(lambda session: _ADD.run(session.connection(), _TRAINING))
    for expected in (2, 4):
        assert database.call(lambda session: _COUNT.run(session.connection(), {"more": 2})) == [(expected,)]


def test_what_breaks_a_reference_is_a_conflict_and_rolls_the_transaction_back(database: Database):
    orphan = {"training_id": 7, "number": 1, "blob": "b", "nbytes": 1, "sha256": "s", "created": 1.0, "state": {}}

    with pytest.raises(Conflict):
        database.call(
            lambda session: (_ADD.run(session.connection(), _TRAINING), _CHECKPOINT.run(session.connection(), orphan))
        )
    assert database.call(lambda session: _FIND.run(session.connection(), {"named": "digits"})) == []

"""The database: transactions, the thread, migration, and what its errors mean."""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import event, select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from grid_jupyter.errors import Conflict, GridError, NotFound, StorageFullError
from grid_jupyter.store.database import Database, sqlite_url
from grid_jupyter.store.migrations import HEAD
from grid_jupyter.store.records import Base, Group, Setting
from grid_jupyter.store.settings import SettingTable


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state of Bob" / "100%?.db"


@pytest.fixture
def database(file: Path) -> Iterator[Database]:
    database = Database(sqlite_url(file))
    yield database
    database.close()


def keys(database: Database) -> list[str]:
    return database.call(lambda session: list(session.scalars(select(Setting.key).order_by(Setting.key))))


def test_the_database_and_its_directory_are_readable_by_their_owner_alone(file: Path, database: Database) -> None:
    database.call(lambda session: session.add(Setting(key="a", value="1")))
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert len(list(file.parent.iterdir())) == 3  # the file, its -wal and its -shm
    assert {stat.S_IMODE(path.stat().st_mode) for path in file.parent.iterdir()} == {0o600}


def test_a_database_whose_file_was_readable_by_others_is_closed_to_them(file: Path) -> None:
    file.parent.mkdir()
    file.touch(mode=0o644)
    Database(sqlite_url(file)).close()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_an_error_in_the_middle_leaves_nothing_of_the_transaction(database: Database) -> None:
    def work(session: Session) -> None:
        session.add(Setting(key="half", value=""))
        session.flush()
        raise NotFound("the other half")

    with pytest.raises(NotFound, match="the other half"):
        database.call(work)
    assert keys(database) == []


def test_a_taken_name_is_a_conflict_whose_text_holds_no_values(database: Database) -> None:
    database.call(lambda session: session.add(Group(name="the secret group")))
    with pytest.raises(Conflict) as caught:
        database.call(lambda session: session.add(Group(name="the secret group")))
    assert "secret" not in str(caught.value)


def test_a_reference_to_a_row_that_is_not_there_is_a_conflict(database: Database) -> None:
    with pytest.raises(Conflict):
        database.call(lambda session: session.execute(text("INSERT INTO membership VALUES (7, 7)")) and None)


def test_a_full_disk_is_told_as_such_and_the_database_goes_on(database: Database) -> None:
    database.call(lambda session: session.execute(text("PRAGMA max_page_count=1")).close())  # no further page
    with pytest.raises(StorageFullError, match="free space"):
        database.call(lambda session: session.add(Setting(key="big", value="x" * 200_000)))
    database.call(lambda session: session.execute(text("PRAGMA max_page_count=100000")).close())
    database.call(lambda session: session.add(Setting(key="small", value="x")))
    assert keys(database) == ["small"]


def test_a_long_transaction_does_not_block_the_event_loop(database: Database) -> None:
    async def story() -> str:
        release = threading.Event()
        waiting = asyncio.ensure_future(database.run(lambda session: str(release.wait(20))))
        await asyncio.sleep(0)
        release.set()  # only a free loop comes here
        return await waiting

    assert asyncio.run(story()) == "True"


def test_transactions_of_many_threads_follow_one_another(database: Database) -> None:
    database.call(lambda session: session.add(Setting(key="count", value="0")))

    def add_one(session: Session) -> None:
        row = session.get_one(Setting, "count")
        row.value = str(int(row.value) + 1)

    threads = [threading.Thread(target=lambda: [database.call(add_one) for _ in range(10)]) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert database.call(lambda session: session.get_one(Setting, "count").value) == "50"


def held(database: Database) -> threading.Event:
    """Keeps the database's thread busy until it is set: what is asked for meanwhile waits."""
    begun, goes_on = threading.Event(), threading.Event()

    def work(_: Session) -> None:
        begun.set()
        goes_on.wait(30)

    threading.Thread(target=database.call, args=(work,)).start()
    assert begun.wait(30)
    return goes_on


def commits(database: Database, works: list[Callable[[Session], object]]) -> tuple[list[object], int]:
    """What works that wait at the same time come to, or raise, and how many commits that takes."""
    counted = []
    listener = lambda _connection: counted.append(1)  # noqa: E731
    goes_on = held(database)

    async def all_of_them() -> list[object]:
        waiting = asyncio.gather(*(database.run(work) for work in works), return_exceptions=True)
        await asyncio.sleep(0)  # now each has handed its work in
        event.listen(database._engine, "commit", listener)
        goes_on.set()
        return list(await waiting)

    found = asyncio.run(all_of_them())
    event.remove(database._engine, "commit", listener)
    return found, len(counted)


def test_transactions_that_wait_at_the_same_time_are_committed_together_and_fail_by_themselves(
    database: Database,
) -> None:
    def half(session: Session) -> None:
        session.add(Setting(key="half", value=""))
        session.flush()
        raise NotFound("the other half")

    database.call(lambda session: session.add(Group(name="taken")))
    works: list[Callable[[Session], object]] = [
        lambda session: session.add(Setting(key="a", value="")),
        half,
        lambda session: session.add(Group(name="taken")),
        lambda session: session.add(Setting(key="b", value="")),
        lambda session: sorted(session.scalars(select(Setting.key))),
    ]
    found, count = commits(database, works)
    assert [type(one) for one in found] == [type(None), NotFound, Conflict, type(None), list]
    assert found[-1] == keys(database) == ["a", "b"]
    assert count == 1


def test_an_error_of_the_database_itself_is_told_to_the_one_who_made_it_and_to_nobody_beside(
    database: Database,
) -> None:
    works: list[Callable[[Session], object]] = [
        lambda session: session.add(Setting(key="a", value="")),
        lambda session: session.execute(text("SELECT * FROM no_such_table")),
        lambda session: session.add(Setting(key="b", value="")),
    ]
    found, _ = commits(database, works)
    assert isinstance(found[1], OperationalError)
    assert (found[0], found[2]) == (None, None)
    assert keys(database) == ["a", "b"]


def test_a_commit_that_is_refused_is_told_to_the_one_who_made_it_so(database: Database) -> None:
    def unkept(session: Session) -> None:
        session.execute(text("PRAGMA defer_foreign_keys=ON"))
        columns = "training_id, name, sha256, blob, nbytes"
        session.execute(text(f"INSERT INTO training_plan ({columns}) VALUES (7, 'p', '', '', 0)"))  # noqa: S608

    works: list[Callable[[Session], object]] = [lambda session: session.add(Setting(key="a", value="")), unkept]
    found, _ = commits(database, works)
    assert [type(one) for one in found] == [type(None), Conflict]
    assert keys(database) == ["a"]


def test_what_is_cancelled_before_its_turn_does_not_happen_beside_what_waits_too(database: Database) -> None:
    async def work() -> None:
        goes_on = held(database)
        first, second = (
            asyncio.ensure_future(database.run(lambda session, key=key: session.add(Setting(key=key, value=""))))
            for key in "ab"
        )
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first])
        goes_on.set()
        await second

    asyncio.run(work())
    assert keys(database) == ["b"]


def test_a_transaction_within_a_transaction_is_refused_instead_of_waiting_for_itself(database: Database) -> None:
    with pytest.raises(RuntimeError, match="pass the Session on"):
        database.call(lambda session: keys(database))


def test_every_commit_is_on_the_disk_before_it_is_answered(database: Database) -> None:
    def pragmas(session: Session) -> dict[str, object]:
        names = ("journal_mode", "synchronous", "foreign_keys")
        return {name: session.execute(text(f"PRAGMA {name}")).scalar() for name in names}

    assert database.call(pragmas) == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


def test_what_was_answered_survives_a_kill(file: Path) -> None:
    script = """
import pathlib, sys, time
from grid_jupyter.store.database import Database, sqlite_url
from grid_jupyter.store.records import Setting
database = Database(sqlite_url(pathlib.Path(sys.argv[1])))
database.call(lambda session: session.add(Setting(key="kept", value="yes")))
print("committed", flush=True)
time.sleep(60)
"""
    child = subprocess.Popen([sys.executable, "-c", script, str(file)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "committed\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    database = Database(sqlite_url(file))
    assert keys(database) == ["kept"]
    database.close()


def test_two_processes_can_have_the_same_database_open(file: Path, database: Database) -> None:
    second = Database(sqlite_url(file))
    database.call(lambda session: session.add(Setting(key="one", value="")))
    second.call(lambda session: session.add(Setting(key="two", value="")))
    assert keys(database) == keys(second) == ["one", "two"]
    second.close()


def test_closing_twice_is_closing_once_and_no_wal_is_left(file: Path) -> None:
    database = Database(sqlite_url(file))
    database.close()
    database.close()
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_the_baseline_makes_exactly_the_tables_of_the_records(file: Path, database: Database) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext
    from sqlalchemy import create_engine

    with create_engine(sqlite_url(file)).connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


def test_the_head_that_skips_alembic_is_alembics_head(database: Database) -> None:
    from alembic.script import ScriptDirectory

    import grid_jupyter.store.migrations as migrations

    directory = ScriptDirectory(str(Path(str(migrations.__file__)).parent))
    assert directory.get_current_head() == HEAD
    stored = database.call(lambda session: session.execute(text("SELECT version_num FROM alembic_version")).scalar())
    assert stored == HEAD


def test_opening_a_database_that_is_there_does_not_import_alembic(file: Path) -> None:
    Database(sqlite_url(file)).close()
    script = """
import pathlib, sys
from grid_jupyter.store.database import Database, sqlite_url
Database(sqlite_url(pathlib.Path(sys.argv[1]))).close()
print(sorted({"alembic", "torch", "tornado"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script, str(file)], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_database_of_a_newer_version_is_refused_and_left_as_it_is(file: Path) -> None:
    Database(sqlite_url(file)).close()
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(GridError, match="newer version"):
        Database(sqlite_url(file))
    with sqlite3.connect(file) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [("9999",)]


def test_every_revision_can_be_taken_back(file: Path, database: Database) -> None:
    from alembic.migration import MigrationContext
    from alembic.operations import Operations
    from alembic.script import ScriptDirectory

    import grid_jupyter.store.migrations as migrations

    scripts = list(ScriptDirectory(str(Path(str(migrations.__file__)).parent)).walk_revisions())  # the newest first

    def take_back(session: Session) -> list[str]:
        with Operations.context(MigrationContext.configure(session.connection())):
            for script in scripts:
                script.module.downgrade()
        found = session.execute(text("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'"))
        return list(found.scalars())

    assert database.call(take_back) == ["alembic_version"]


def test_data_sets_of_the_first_schema_are_kept_by_the_next_ones(file: Path) -> None:
    from alembic.migration import MigrationContext
    from alembic.operations import Operations
    from alembic.script import ScriptDirectory
    from sqlalchemy import create_engine

    import grid_jupyter.store.migrations as migrations
    from grid_jupyter.store.datasets import DatasetTable

    file.parent.mkdir()
    script = ScriptDirectory(str(Path(str(migrations.__file__)).parent)).get_revision("0001")
    assert script is not None
    with create_engine(sqlite_url(file)).begin() as connection:
        with Operations.context(MigrationContext.configure(connection)):
            script.module.upgrade()
        for statement in (
            "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)",
            "INSERT INTO alembic_version VALUES ('0001')",
            "INSERT INTO dataset VALUES (12345678901, 'ages', 'Bob', 'tensor', 1.0, 0, NULL, 1)",
            "INSERT INTO dataset_version "
            "VALUES (1, 12345678901, 1, 'b', 4, 's', '[\"#a\"]', '', '[]', '[]', '[]', 1.0, 'u')",
        ):
            connection.exec_driver_sql(statement)
    database = Database(sqlite_url(file))
    (found,) = asyncio.run(DatasetTable(database).list())
    assert (found.name, found.tags, found.jobs.jobs, found.jobs.automatic) == ("ages", ("#a",), True, ())
    database.close()


def test_settings_are_remembered_and_the_first_one_kept(database: Database) -> None:
    settings = SettingTable(database)
    assert asyncio.run(settings.get("guests", "no")) == "no"
    asyncio.run(settings.set("guests", "yes"))
    asyncio.run(settings.set("guests", "maybe"))
    assert asyncio.run(settings.get("guests", "no")) == "maybe"
    assert asyncio.run(settings.keep("id", "first")) == "first"
    assert asyncio.run(settings.keep("id", "second")) == "first"


def test_trainings_of_before_checkpoints_were_bounded_keep_all_of_theirs(file: Path) -> None:
    from alembic.migration import MigrationContext
    from alembic.operations import Operations
    from alembic.script import ScriptDirectory
    from sqlalchemy import create_engine

    import grid_jupyter.store.migrations as migrations

    file.parent.mkdir()
    scripts = list(ScriptDirectory(str(Path(str(migrations.__file__)).parent)).walk_revisions())[::-1]
    columns = (
        "id, name, version, owner, created, client_config, server_config, seed, secret, buffers, state, registered"
    )
    with create_engine(sqlite_url(file)).begin() as connection:
        with Operations.context(MigrationContext.configure(connection)):
            for script in scripts[: [one.revision for one in scripts].index("0010")]:
                script.module.upgrade()
        connection.exec_driver_sql("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
        connection.exec_driver_sql("INSERT INTO alembic_version VALUES ('0009')")
        for number, config in ((1, "{}"), (2, '{"max_diffs": 3}')):
            values = f"{number}, 'm{number}', '1', 'Bob', 1.0, '{{}}', '{config}', '', '', '[]', '{{}}', 0"
            connection.exec_driver_sql(f"INSERT INTO training ({columns}, cursor) VALUES ({values}, 0)")  # noqa: S608
    database = Database(sqlite_url(file))
    found = database.call(lambda session: list(session.execute(text("SELECT server_config FROM training")).scalars()))
    database.close()
    assert [json.loads(config) for config in found] == [
        {"keep_checkpoints": 1_000_000_000},
        {"keep_checkpoints": 1_000_000_000, "max_diffs": 3},
    ]

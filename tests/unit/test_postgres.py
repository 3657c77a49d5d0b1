"""A Node on PostgreSQL: whose database it is, where its password may stand, and what is said when it is away."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest
from cycle_world import MODEL, World, diff
from postgres import PASSWORD, Postgres
from sqlalchemy import URL, inspect, make_url, select
from sqlalchemy.orm import Session

from grid_jupyter.cycles.service import Cycles
from grid_jupyter.errors import BadRequest, Conflict, NodeUnavailableError, OutcomeUnknownError
from grid_jupyter.store.blobs import BlobStore
from grid_jupyter.store.database import Database
from grid_jupyter.store.migrations import HEAD
from grid_jupyter.store.postgres import VARIABLE, check_state, read_address, settle_whose
from grid_jupyter.store.records import Base, Group, Participation, Setting

PLAIN = "postgresql+psycopg://ann@db.example.org/grid"
SECRET = "postgresql://ann:hunter2@db.example.org/grid"

FILE = Participation.blob


def test_migrations_make_the_tables_that_the_code_has(server: Postgres):
    address = server.empty()
    database = Database(address)

    def look(session: Session) -> tuple[set[str], dict[str, set[str]]]:
        found = inspect(session.connection())
        tables = set(found.get_table_names())
        return tables, {name: {column["name"] for column in found.get_columns(name)} for name in tables}

    tables, columns = database.call(look)
    database.close()
    assert tables - {"alembic_version"} == set(Base.metadata.tables)
    for name, table in Base.metadata.tables.items():
        assert columns[name] == {column.name for column in table.columns}
    again = Database(address)
    assert again.call(lambda session: session.connection().exec_driver_sql("SELECT * FROM alembic_version").scalar())
    again.close()
    assert HEAD


def test_a_training_runs_on_postgresql_and_goes_on_after_a_restart(server: Postgres, tmp_path: Path):
    address = server.fresh()

    async def story() -> None:
        for cycle in range(2):
            database = Database(address)
            cycles = Cycles(database, BlobStore(tmp_path))
            try:
                await cycles.start()
                here = World(cycles)
                if not cycle:
                    await here.host(max_diffs=2, goal_count=2, cycle_length=1000, min_workers=2)
                    devices = [await here.device() for _ in range(2)]
                for worker in devices:
                    answer = await here.ask(worker, wait_s=5)
                    assert answer["status"] == "accepted", answer
                    await here.report((worker, answer["request_key"]), diff(1, 2, 3), loss=0.5)
                assert (await here.stands(after=cycle))["completed"] == cycle + 1
            finally:
                await cycles.stop()
                database.close()

    asyncio.run(story())


def test_a_database_has_one_node_at_a_time(server: Postgres, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("grid_jupyter.store.postgres.HELD_S", 0.2)
    address = server.fresh()
    first = Database(address)
    with pytest.raises(Conflict, match="another Node uses this database"):
        Database(address)
    first.close()
    Database(address).close()


def test_a_lock_that_a_lost_connection_still_holds_is_no_conflict_of_who_asks(
    server: Postgres, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("grid_jupyter.store.postgres.HELD_S", 0.2)
    address = server.fresh()
    database = Database(address)
    server.execute(
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{address.database}'"  # noqa: S608
    )
    still = Database(address)  # as the server sees a connection that was cut on the way
    with pytest.raises(NodeUnavailableError, match="does not answer; try again"):
        database.call(lambda session: session.get(Setting, "a"))
    still.close()
    assert database.call(lambda session: session.get(Setting, "a")) is None
    database.close()


class Line:
    """A way to a server, which breaks at the next COMMIT when it is told to: once the server has it, or before; or once
    the server has it, and then nothing goes through as long as it is `away`."""

    def __init__(self, server: Postgres, directory: Path) -> None:
        self.breaks = ""
        self.away = False
        self._to = str(server.directory / ".s.PGSQL.5432")
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(directory / ".s.PGSQL.5432"))
        self.listener.listen()

    def accept(self) -> None:
        serving = []
        with contextlib.suppress(OSError):
            while True:
                serving.append(threading.Thread(target=self._serve, args=(self.listener.accept()[0],)))
                serving[-1].start()
        for one in serving:
            one.join()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as server:
            if self.away:
                return
            server.connect(self._to)
            silent = threading.Event()
            back = threading.Thread(target=self._pour, args=(server, client, False, silent))
            back.start()
            self._pour(client, server, True, silent)
            back.join()

    def _pour(self, source: socket.socket, drain: socket.socket, asks: bool, silent: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if asks and self.breaks and b"COMMIT" in data:
                    breaks, self.breaks = self.breaks, ""
                    if breaks == "before":
                        break
                    self.away = breaks == "for long"
                    silent.set()
                elif silent.is_set():
                    break
                drain.sendall(data)
        for end in (source, drain):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def line(server: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Line, URL]]:
    directory = tmp_path_factory.mktemp("l")
    made = Line(server, directory)
    accepting = threading.Thread(target=made.accept)
    accepting.start()
    yield made, server.fresh().set(query={"host": str(directory)})
    made.listener.shutdown(socket.SHUT_RDWR)
    made.listener.close()
    accepting.join()


@pytest.mark.parametrize("together", [False, True])
def test_what_was_committed_is_acknowledged_though_the_answer_to_the_commit_was_lost(
    line: tuple[Line, URL], together: bool
):
    way, address = line
    database = Database(address)
    way.breaks = "after"
    if together:

        async def both() -> list[None]:
            database._thread.submit(threading.Event().wait, 0.2)  # both wait for the thread
            return await asyncio.gather(*(database.run(lambda s, k=k: s.add(Setting(key=k, value="1"))) for k in "ab"))

        assert asyncio.run(both()) == [None, None]
    else:
        assert database.call(lambda session: session.add(Setting(key="a", value="1")) or "done") == "done"
    assert not way.breaks
    assert database.call(lambda session: session.get_one(Setting, "a").value) == "1"
    database.close()


def test_what_was_not_committed_is_not_acknowledged(line: tuple[Line, URL]):
    way, address = line
    database = Database(address)
    way.breaks = "before"
    with pytest.raises(NodeUnavailableError, match="does not answer; try again"):
        database.call(lambda session: session.add(Setting(key="a", value="1")))
    assert database.call(lambda session: session.get(Setting, "a")) is None
    database.close()


def test_a_report_of_which_nobody_knows_whether_it_was_kept_keeps_its_file_and_counts_once(
    line: tuple[Line, URL], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("grid_jupyter.store.database.DOUBT_S", 0.3)
    way, address = line

    async def story() -> None:
        database = Database(address)
        cycles = Cycles(database, BlobStore(tmp_path))
        try:
            await cycles.start()
            here = World(cycles)
            await here.host(max_diffs=2)
            places = [await here.accepted() for _ in range(2)]
            way.breaks = "for long"
            with pytest.raises(OutcomeUnknownError, match="nobody knows whether it was: look"):
                await here.report(places[0], diff(1, 1, 1))
            with pytest.raises(NodeUnavailableError, match="does not answer; try again"):
                await here.device()
            way.away = False
            (kept,) = database.call(lambda session: session.scalars(select(FILE).where(FILE.is_not(None))))
            assert (tmp_path / kept).exists(), "a row names it"
            await here.report(places[0], diff(1, 1, 1))  # as a device does that was told to send it again
            assert (await here.stands())["reports"] == 1
            await here.report(places[1], diff(3, 3, 3))
            await here.stands(after=0)
            numpy.testing.assert_array_equal((await here.checkpoint())["w"], MODEL["w"] - 2)
        finally:
            await cycles.stop()
            database.close()

    asyncio.run(story())


def test_a_taken_name_is_a_conflict_and_what_cannot_be_kept_is_said(server: Postgres):
    database = Database(server.fresh())
    with pytest.raises(BadRequest, match="NUL"):
        database.call(lambda session: session.add(Setting(key="a", value="secret\0")))
    database.call(lambda session: session.add(Group(name="the secret group")))
    with pytest.raises(Conflict) as caught:
        database.call(lambda session: session.add(Group(name="the secret group")))
    assert "secret" not in f"{caught.value} {caught.value.__cause__}".replace("the secret group) already exists", "")
    database.close()


def test_a_connection_that_breaks_is_told_and_the_next_transaction_has_a_new_one(server: Postgres):
    address = server.fresh()
    database = Database(address)
    ended = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{address.database}'"  # noqa: S608

    def broken(session: Session) -> None:
        session.connection().exec_driver_sql("SELECT 1")
        server.execute(ended)
        session.connection().exec_driver_sql("SELECT 1")

    with pytest.raises(NodeUnavailableError, match="does not answer; try again"):
        database.call(broken)
    server.execute(ended)
    database.call(lambda session: session.add(Setting(key="a", value="1")))
    database.close()


@pytest.mark.parametrize("changed", [{"password": "wrong"}, {"query": {"host": "/nowhere"}}, {"database": "none"}])
def test_who_is_not_let_in_hears_it_without_user_and_password(server: Postgres, changed: dict[str, str]):
    with pytest.raises(NodeUnavailableError, match="cannot be used") as refused:
        Database(server.fresh().set(**changed))  # type: ignore[arg-type]
    told = f"{refused.value} {refused.value.__cause__}"
    assert not [word for word in (PASSWORD, "wrong", "grid@") if word in told]


def test_a_password_stands_in_a_file_or_in_the_environment_and_nowhere_else(tmp_path: Path):
    assert read_address(None, {}) is None
    assert read_address(PLAIN, {VARIABLE: SECRET}) == make_url(PLAIN)
    found = read_address(None, {VARIABLE: f"{SECRET}\n"})
    assert found is not None
    assert (found.drivername, found.password) == ("postgresql+psycopg", "hunter2")
    assert "hunter2" not in f"{found!r} {found}"
    for told in (SECRET, f"{PLAIN}?password=hunter2", f"{PLAIN}?sslmode=verify-full&sslpassword=hunter2"):
        with pytest.raises(BadRequest, match="a password on the command line") as refused:
            read_address(told, {})
        assert "hunter2" not in str(refused.value)
    file = tmp_path / "address"
    file.write_text(SECRET)
    file.chmod(0o640)
    with pytest.raises(BadRequest, match="chmod 600"):
        read_address(f"@{file}", {})
    file.chmod(0o600)
    assert read_address(f"@{file}", {}) == found
    with pytest.raises(BadRequest, match="cannot be read"):
        read_address(f"@{tmp_path / 'none'}", {})
    for wrong in ("mysql://h/n", "sqlite:///x", "postgresql://h", "x", "postgresql+psycopg://h:port/n", "postgresql:/"):
        with pytest.raises(BadRequest, match="a database is postgresql"):
            read_address(wrong, {})


def test_a_directory_and_a_database_of_different_nodes_are_never_put_together(tmp_path: Path):
    address = URL.create("postgresql+psycopg", database="grid")
    check_state(tmp_path, None)
    check_state(tmp_path, address)
    assert settle_whose(tmp_path, "", "one") == "one"
    assert settle_whose(tmp_path, "", "two") == "one"  # it was killed before the database knew
    assert settle_whose(tmp_path, "one", "three") == "one"
    with pytest.raises(BadRequest, match="another state directory"):
        settle_whose(tmp_path, "other", "three")
    with pytest.raises(BadRequest, match="are in PostgreSQL: say where"):
        check_state(tmp_path, None)
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(BadRequest, match="another state directory"):
        settle_whose(other, "one", "three")
    (other / "grid.db").touch()
    with pytest.raises(BadRequest, match="in its SQLite file"):
        check_state(other, address)

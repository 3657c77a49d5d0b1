"""Backups: whole or not there, of one moment, checked before anything changes, and read as hostile."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy
import pytest
from cycle_world import diff, world
from schemas import make_schema

from grid_jupyter.cli.main import main
from grid_jupyter.errors import Conflict, GridError, InvalidDataError, NotFound
from grid_jupyter.server import backups
from grid_jupyter.server.backups import backup, restore
from grid_jupyter.server.running import StateDir
from grid_jupyter.store.blobs import BlobStore
from grid_jupyter.store.database import Database, sqlite_url
from grid_jupyter.store.migrations import HEAD
from grid_jupyter.store.records import Setting

Entry = tuple[str, bytes]


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """What a Node keeps: a row, and two blobs."""
    made = tmp_path / "state"
    database = Database(sqlite_url(made / "grid.db"))
    database.call(lambda session: session.add(Setting(key="kept", value="yes")))
    database.close()
    for number, folder in enumerate(("blobs", "training")):
        with BlobStore(made / folder).begin("u") as upload:
            upload.write(bytes([number]) * 3000)
            upload.commit()
    return made


@pytest.fixture
def whole(state: Path, tmp_path: Path) -> Path:
    """A backup of it."""
    backup(state, tmp_path / "whole.tar", role="node", name="ward7")
    return tmp_path / "whole.tar"


def kept(path: Path) -> dict[str, bytes]:
    """The files of a state directory but the database, and what one row of that says."""
    database = Database(sqlite_url(path / "grid.db"))
    value = database.call(lambda session: session.get_one(Setting, "kept").value)
    database.close()
    files = [file for folder in ("blobs", "training") for file in (path / folder).iterdir()]
    return {"kept": value.encode(), **{str(file.relative_to(path)): file.read_bytes() for file in files}}


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def entries(file: Path) -> list[Entry]:
    with tarfile.open(file) as archive:
        return [(one.name, archive.extractfile(one).read()) for one in archive]  # type: ignore[union-attr]


def packed(found: list[Entry], *, sums: bool = True, change: Callable[[tarfile.TarInfo], None] | None = None) -> bytes:
    """An archive of these entries, with sums that fit; `change` is done to the header of grid.db."""
    out = io.BytesIO()
    found = [one for one in found if one[0] != "SHA256SUMS"]
    lines = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in found)
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, data in [*found, *([("SHA256SUMS", lines.encode())] if sums else [])]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if change is not None and name == "grid.db":
                change(info)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def manifest(found: list[Entry], **changes: Any) -> list[Entry]:
    head = {**json.loads(found[0][1]), **changes}
    return [(found[0][0], json.dumps(head).encode()), *found[1:]]


# ------------------------------------------------------------------ there and back


def test_a_restored_state_is_what_was_there_and_private(state: Path, whole: Path, tmp_path: Path):
    made = restore(whole, tmp_path / "elsewhere" / "ward7")
    assert (made.role, made.name, made.files) == ("node", "ward7", 3)
    assert kept(tmp_path / "elsewhere" / "ward7") == kept(state)
    for path in [tmp_path / "elsewhere" / "ward7", *(tmp_path / "elsewhere" / "ward7").rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_a_directory_that_others_use_as_well_stays_as_it_is(whole: Path, tmp_path: Path):
    shared = tmp_path / "lib"  # /var/lib, for one
    shared.mkdir()
    shared.chmod(0o755)
    restore(whole, shared / "ward7")
    assert [stat.S_IMODE(path.stat().st_mode) for path in (shared, shared / "ward7")] == [0o755, 0o700]


def test_the_file_is_for_its_owner_alone_and_ordinary_tools_read_it(whole: Path, tmp_path: Path):
    assert stat.S_IMODE(whole.stat().st_mode) == 0o600
    (tmp_path / "x").mkdir()
    subprocess.run(["tar", "xf", whole], cwd=tmp_path / "x", check=True)
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=tmp_path / "x", check=True)


def test_locks_links_and_unfinished_uploads_are_no_part_of_it(state: Path, tmp_path: Path):
    (state / "node.lock").touch()
    (state / "running.json").write_text("{}")
    (state / "blobs" / f"{'0' * 16}-{'1' * 16}.part").write_bytes(b"half")
    (state / "blobs" / ("f" * 32)).symlink_to("/etc/passwd")
    backup(state, tmp_path / "b.tar", role="node", name="ward7")
    assert [name.partition("/")[0] for name, _ in entries(tmp_path / "b.tar")] == [
        "grid-backup.json", "grid.db", "blobs", "training", "SHA256SUMS"
    ]  # fmt: skip


def test_rows_and_the_bytes_that_they_name_are_of_one_moment_whatever_is_written_meanwhile(tmp_path: Path):
    state, ended, done = tmp_path / "state", threading.Event(), threading.Event()
    blobs = BlobStore(state / "blobs")

    def write() -> None:
        """A blob, then a row that names it, then the next; the row goes before the blob."""
        database = Database(sqlite_url(state / "grid.db"))
        last = ""
        while not ended.is_set():
            with blobs.begin("u") as upload:
                upload.write(os.urandom(100))
                new = upload.commit().name
            database.call(lambda session, new=new: session.merge(Setting(key="blob", value=new)) and None)
            done.set()
            if last:
                blobs.delete(last)
            last = new
        database.close()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert done.wait(20)
        for number in range(8):
            backup(state, tmp_path / f"{number}.tar", role="node", name="ward7")
    finally:
        ended.set()
        writer.join()
    seen = set()
    for number in range(8):
        restore(tmp_path / f"{number}.tar", tmp_path / str(number))
        database = Database(sqlite_url(tmp_path / str(number) / "grid.db"))
        named = database.call(lambda session: session.get_one(Setting, "blob").value)
        database.close()
        assert (tmp_path / str(number) / "blobs" / named).stat().st_size == 100
        seen.add(named)
    assert len(seen) > 1, "nothing was written meanwhile"


def test_a_training_goes_on_after_a_restore_as_it_would_have(tmp_path: Path):
    async def story() -> tuple[Any, Any]:
        async with world(tmp_path / "old") as here:
            await here.host(max_diffs=2, num_cycles=2)
            first, second = await here.accepted(), await here.accepted()
            await here.report(first, diff(1, 2, 3), 1)
            await asyncio.to_thread(backup, tmp_path / "old", tmp_path / "b.tar", role="node", name="ward7")
            await here.report(second, diff(5, -2, 7), 3)
            await here.stands(after=0)
            expected = await here.checkpoint()
        restore(tmp_path / "b.tar", tmp_path / "new")
        async with world(tmp_path / "new") as here:
            assert (await here.stands())["completed"] == 0
            await here.report(second, diff(5, -2, 7), 3)  # by the place that it had before
            await here.stands(after=0)
            got = await here.checkpoint()
            await here.report(await here.accepted(), diff(1, 1, 1))
        return expected, got

    expected, got = asyncio.run(story())
    numpy.testing.assert_array_equal(got["w"], expected["w"])


def test_an_older_schema_is_restored_and_migrated_at_the_next_start_and_a_newer_one_refused(tmp_path: Path):
    with closing(make_schema(tmp_path / "state" / "grid.db", "0001")) as connection:
        connection.execute("INSERT INTO setting VALUES ('kept', 'yes')")
    backup(tmp_path / "state", tmp_path / "older.tar", role="node", name="ward7")
    restore(tmp_path / "older.tar", tmp_path / "new")
    assert kept(tmp_path / "new") == {"kept": b"yes"}
    with closing(sqlite3.connect(tmp_path / "new" / "grid.db", isolation_level=None)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    backup(tmp_path / "new", tmp_path / "newer.tar", role="node", name="ward7")
    with pytest.raises(GridError, match="newer version"):
        restore(tmp_path / "newer.tar", tmp_path / "another")


# ------------------------------------------------------------------ what is refused


def test_nothing_is_written_over(state: Path, whole: Path, tmp_path: Path):
    before = whole.read_bytes()
    with pytest.raises(Conflict, match="there already"):
        backup(state, whole, role="node", name="ward7")
    assert whole.read_bytes() == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("dear")
    with pytest.raises(Conflict, match="not empty"):
        restore(whole, tmp_path / "mine")
    with pytest.raises(Conflict, match="not the state of"):
        restore(whole, tmp_path / "mine", replace=True)
    assert names(tmp_path / "mine") == ["thesis.txt"]
    (tmp_path / "link").symlink_to(state)
    with pytest.raises(Conflict, match="no directory of its own"):
        restore(whole, tmp_path / "link", replace=True)
    with pytest.raises(Conflict, match="not empty"):
        restore(whole, state)
    restore(whole, state, replace=True)
    assert names(state) == ["blobs", "grid.db", "training"]
    assert names(tmp_path) == ["link", "mine", "state", "whole.tar"]


def test_the_state_of_a_node_that_runs_is_not_replaced(state: Path, whole: Path):
    before = kept(state)
    with StateDir(state, "node"), pytest.raises(Conflict, match="end it first"):
        restore(whole, state, replace=True)
    assert kept(state) == before


def test_a_place_that_the_system_refuses_is_told(
    state: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["backup", "--state", str(state), "/proc/b.tar"]) == 1  # nobody, root included, makes a file there
    (tmp_path / "file").touch()
    assert main(["restore", str(whole), "--state", str(tmp_path / "file" / "ward7")]) == 1
    assert capsys.readouterr().err.count("cannot be used: ") == 2


def test_a_restore_takes_nothing_of_another_one_that_is_nearly_done_for_left_over(
    state: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    put_in_place = backups._put_in_place

    def meanwhile(draft: Path, target: Path) -> None:
        monkeypatch.undo()
        restore(whole, target, replace=True)
        put_in_place(draft, target)

    monkeypatch.setattr(backups, "_put_in_place", meanwhile)
    restore(whole, tmp_path / "t", replace=True)
    assert kept(tmp_path / "t") == kept(state)
    assert "restore.lock" not in names(tmp_path / "t")
    assert not [name for name in names(tmp_path) if name.startswith(".")]


def test_what_is_no_state_and_what_is_no_backup_is_told(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFound, match=r"grid\.db"):
        backup(tmp_path / "empty", tmp_path / "b.tar", role="node", name="ward7")
    (tmp_path / "empty" / "database").write_text("0" * 32)
    with pytest.raises(Conflict, match=r"in PostgreSQL.*pg_dump.*copy the state directory"):
        backup(tmp_path / "empty", tmp_path / "b.tar", role="node", name="ward7")
    with pytest.raises(NotFound, match="no directory"):
        backup(tmp_path / "empty", tmp_path / "no" / "b.tar", role="node", name="ward7")
    (tmp_path / "text").write_text("hello " * 400)
    with pytest.raises(InvalidDataError, match="not a backup"):
        restore(tmp_path / "text", tmp_path / "new")
    for odd in (tmp_path / "nothing", tmp_path / "empty"):
        with pytest.raises(NotFound):
            restore(odd, tmp_path / "new")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "grid.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(InvalidDataError, match="cannot be read"):
        backup(tmp_path / "broken", tmp_path / "b.tar", role="node", name="ward7")
    assert names(tmp_path) == ["broken", "empty", "text"]


def link(info: tarfile.TarInfo) -> None:
    info.type, info.linkname, info.size = tarfile.SYMTYPE, "/etc/passwd", 0


def of_type(kind: bytes) -> Callable[[tarfile.TarInfo], None]:
    return lambda info: setattr(info, "type", kind)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda found: packed([*found, ("../evil", b"x")]), "nothing that a backup has"),
        (lambda found: packed([*found, ("/etc/cron.d/evil", b"x")]), "nothing that a backup has"),
        (lambda found: packed([*found, ("blobs/../../evil", b"x")]), "nothing that a backup has"),
        (lambda found: packed([*found, (f"blobs/{'A' * 32}", b"x")]), "nothing that a backup has"),
        (lambda found: packed([*found, ("blobs/" + "a" * 200, b"x")]), "nothing that a backup has"),
        (lambda found: packed(found, change=link), "nothing that a backup has"),
        (lambda found: packed(found, change=of_type(tarfile.CHRTYPE)), "nothing that a backup has"),
        (lambda found: packed(found, change=of_type(tarfile.LNKTYPE)), "nothing that a backup has"),
        (lambda found: packed(found, change=of_type(tarfile.GNUTYPE_SPARSE)), "nothing that a backup has"),
        (lambda found: packed([*found, found[1]]), "twice"),
        (lambda found: packed(found[:2] + found[3:]), "does not have the 3 files"),
        (lambda found: packed([found[0], *found[2:]]), "does not have the 3 files"),
        (lambda found: packed(found, sums=False), "cut short"),
        (lambda found: packed(found[1:]), "not a backup"),
        (lambda found: packed(manifest(found, role="pirate")), "of a 'pirate'"),
        (lambda found: packed(manifest(found, role="network")), "no Network has"),
        (lambda found: packed(manifest(found, format=2)), "format 2"),
        (lambda found: packed(manifest(found, more=1)), "cannot be read"),
        (lambda found: packed([found[0], ("grid.db", b"SQLite format 3\0" * 99), *found[2:]]), "database"),
        (lambda found: packed(found)[:5000], "cut short"),
        (lambda found: packed(found).replace(b"\1" * 3000, b"\1" * 2999 + b"\2"), "is not as it was"),
    ],
)  # fmt: skip
def test_hostile_and_damaged_backups_leave_nothing(
    spoil: Callable[[list[Entry]], bytes], reason: str, whole: Path, tmp_path: Path
):
    (tmp_path / "bad.tar").write_bytes(spoil(entries(whole)))
    before = names(tmp_path)
    with pytest.raises(GridError, match=reason):
        restore(tmp_path / "bad.tar", tmp_path / "new")
    assert names(tmp_path) == before


def test_a_header_that_claims_more_than_the_file_has_takes_no_memory_and_no_room(whole: Path, tmp_path: Path):
    head = tarfile.TarInfo("grid.db")
    head.size = 1 << 50
    data = packed(entries(whole)[:1], sums=False)[:1024] + head.tobuf(tarfile.GNU_FORMAT) + bytes(1024)
    (tmp_path / "bomb.tar").write_bytes(data)
    with pytest.raises(InvalidDataError, match="not there"):
        restore(tmp_path / "bomb.tar", tmp_path / "new")


# ------------------------------------------------------------------ killed

KILLED = """
import os, pathlib, signal, sys
import grid_jupyter.server.backups as backups
import grid_jupyter.store.archive as archive
state, file, what = map(str, sys.argv[1:])
def die(*args, **more):
    os.kill(os.getpid(), signal.SIGKILL)
if what == "backup":
    archive._put = lambda out, name, *rest: die() if name == "SHA256SUMS" else out.write(b"x")
    backups.backup(pathlib.Path(state), pathlib.Path(file), role="node", name="ward7")
elif what == "unpacked":
    backups._check_database = die
    backups.restore(pathlib.Path(file), pathlib.Path(state), replace=True)
else:
    backups._remove_left_overs = lambda target, kind: die() if kind == "replaced" else None
    backups.restore(pathlib.Path(file), pathlib.Path(state), replace=True)
"""


def killed(state: Path, file: Path, what: str) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, state, file, what], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_a_backup_that_is_killed_leaves_no_file(state: Path, tmp_path: Path):
    killed(state, tmp_path / "b.tar", "backup")
    assert names(tmp_path) == ["state"]
    backup(state, tmp_path / "b.tar", role="node", name="ward7")


def test_a_restore_that_is_killed_leaves_the_old_state_or_the_new_one(state: Path, whole: Path, tmp_path: Path):
    before = kept(state)
    shutil.copytree(state, tmp_path / "there")
    (tmp_path / "there" / "mark").touch()
    killed(tmp_path / "there", whole, "unpacked")
    assert (tmp_path / "there" / "mark").exists()
    killed(tmp_path / "there", whole, "replaced")
    assert not (tmp_path / "there" / "mark").exists()
    assert kept(tmp_path / "there") == before
    restore(whole, tmp_path / "there", replace=True)
    assert names(tmp_path) == ["state", "there", "whole.tar"]  # what the killed ones left is gone


# ------------------------------------------------------------------ the command line


def test_the_command_line_finds_the_state_and_restores_it_under_its_name(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    home = tmp_path / "home"
    monkeypatch.setenv("GRID_JUPYTER_HOME", str(home))
    (home / "nodes").mkdir(parents=True)
    state.rename(home / "nodes" / "ward7")
    file = tmp_path / "b.tar"
    assert main(["backup", str(file)]) == 0
    said = capsys.readouterr().out
    assert "0600" in said
    assert "accounts" in said
    assert main(["restore", str(file)]) == 1
    assert "not empty" in capsys.readouterr().err
    assert main(["restore", str(file), "--name", "copy", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["name"], told["schema"], told["state_dir"]) == ("ward7", HEAD, str(home / "nodes" / "copy"))
    assert kept(home / "nodes" / "copy") == kept(home / "nodes" / "ward7")
    assert main(["restore", str(file), "--name", "another"]) == 0
    assert "had: jupyter grid node --name another\n" in capsys.readouterr().out
    assert main(["backup", str(tmp_path / "c.tar")]) == 1
    assert "--node" in capsys.readouterr().err
    evil = packed(manifest(entries(file), name="../../evil\x1b[2J"))
    (tmp_path / "evil.tar").write_bytes(evil)
    assert main(["restore", str(tmp_path / "evil.tar")]) == 1
    assert "\x1b" not in (error := capsys.readouterr().err)
    assert "--name" in error

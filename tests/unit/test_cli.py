"""The command line: its help, its options, and what it asks of processes that run."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from grid_jupyter.cli import values
from grid_jupyter.cli.main import build_parser, main
from grid_jupyter.client.credentials import Credentials

COMMANDS = ("up", "demo", "node", "network", "invite", "token", "server", "status", "reset")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRID_JUPYTER_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def network(home: Path) -> Iterator[dict[str, str]]:
    """A Network that runs; what it wrote into running.json."""
    process = subprocess.Popen(
        [sys.executable, "-m", "grid_jupyter.cli.main", "network", "--port", "0", "--json", "--supervised"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())
    finally:
        process.communicate(timeout=30)


# ------------------------------------------------------------------ help and options


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(command: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert f"jupyter grid {command}" in text
    assert "examples:" in text


def test_every_option_says_what_it_is():
    def check(parser: argparse.ArgumentParser) -> None:
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for below in action.choices.values():
                    check(below)
            elif action.option_strings:
                assert action.help, (parser.prog, action.option_strings)

    check(build_parser())


def test_the_examples_of_the_help_can_be_parsed():
    parser = build_parser()
    commands = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    for below in commands.choices.values():
        text = str(below.epilog).replace("\\\n", " ")
        for line in re.findall(r"^  jupyter grid ([^\n]*)", text, re.MULTILINE):
            assert parser.parse_args(shlex.split(line, comments=True)).run


@pytest.mark.parametrize(
    ("text", "seconds"), [("30", 30.0), ("45s", 45.0), ("1.5m", 90.0), ("12h", 43_200.0), ("7d", 604_800.0)]
)
def test_times(text: str, seconds: float):
    assert values.duration(text) == seconds


@pytest.mark.parametrize(("text", "size"), [("1", 1), ("512M", 512 << 20), ("2G", 2 << 30), ("1TB", 1 << 40)])
def test_sizes(text: str, size: int):
    assert values.size(text) == size


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["node"],
        ["node", "--name", "../etc"],
        ["node", "--name", ""],
        ["node", "--name", "Bob", "--port", "70000"],
        ["node", "--name", "Bob", "--session-memory", "0"],
        ["network", "--heartbeat", "-1"],
        ["network", "--replicas", "0"],
        ["invite", "--node", "Bob", "--network"],
        ["token", "make", "Bob"],
        ["up", "--nodes", "Bob,Carl"],
        ["up", "--nodes", "Bob,Bob"],
        ["up", "--nodes", ""],
        ["nothing"],
    ],
)
def test_what_does_not_fit_is_refused_with_the_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["node", "--name", "Bob", "--invite", "hello"], "not an invite"),
        (["node", "--name", "Bob", "--invite", "gji1_" + "x" * 43], "--network"),
        (["node", "--name", "Bob", "--address", "ward7:3000"], "http://"),
        (["network", "--keyfile", "key.pem"], "--certfile"),
        (["network", "--certfile", "nowhere.pem"], "nowhere.pem"),
    ],
)
def test_options_that_do_not_belong_together_are_told_with_the_reason(
    arguments: list[str], reason: str, home: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(arguments) == 1
    assert reason in capsys.readouterr().err


def test_the_command_line_starts_without_torch_tornado_or_a_database():
    script = (
        "import sys; import grid_jupyter.cli.main as m; m.build_parser()\n"
        "heavy = {'torch', 'tornado', 'sqlalchemy', 'numpy', 'jupyter_server', 'asyncio'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=30)


def test_no_command_loads_torch():
    script = (
        "import sys\n"
        "from grid_jupyter.cli import demo, lab, local_grid, owner, reset, serve, up\n"
        "from grid_jupyter.server import network_process, node_process\n"
        "heavy = {'torch', 'numpy', 'pandas'} & set(sys.modules)\n"
        "assert 'torch' not in heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


# ------------------------------------------------------------------ what the owner asks


def test_where_nothing_was_started_the_commands_say_so(home: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["status"]) == 0
    assert "no grid here yet" in capsys.readouterr().out
    assert main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"processes": []}
    for command in (["invite"], ["invite", "--network"], ["token", "issue", "Bob", "--node", "Bob"]):
        assert main(command) == 1
        assert "runs here" in capsys.readouterr().err
    assert main(["reset", "--yes"]) == 0
    assert "nothing to forget" in capsys.readouterr().out
    assert not home.exists()


@pytest.mark.parametrize("command", ["up", "demo"])
def test_several_nodes_never_get_the_one_database_of_the_environment(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
):
    monkeypatch.setenv("GRID_JUPYTER_DATABASE", "postgresql+psycopg://ward7:secret@localhost/ward7")
    assert main([command]) == 1
    said = capsys.readouterr().err
    assert "unset GRID_JUPYTER_DATABASE" in said
    assert "secret" not in said


def test_an_owner_makes_and_ends_credentials_of_what_runs(
    network: dict[str, str], home: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["token", "issue", "Ana", "--network"]) == 1
    assert "there is no account" in capsys.readouterr().err
    assert main(["token", "issue", "Ana", "--network", "--role", "User"]) == 0
    assert capsys.readouterr().out.startswith(f"gjt1_{network['id']}_")
    assert main(["token", "issue", "Ana", "--network", "--store"]) == 0
    told = capsys.readouterr().out
    stored = Credentials().get(network["address"], "Ana")
    assert stored.startswith("gjt1_")
    assert stored not in told
    assert main(["token", "revoke", "Ana", "--network", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"revoked": 2}


def test_an_owner_makes_invites(network: dict[str, str], capsys: pytest.CaptureFixture[str]):
    assert main(["invite", "--network"]) == 0
    told = capsys.readouterr().out
    assert told.startswith(f"{network['address']}/#gji1_")
    assert "jupyter grid node" in told
    assert main(["invite", "--network", "--role", "User", "--for", "Ana", "--expires", "1h", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["role"] == "User"
    assert main(["invite", "--network", "--role", "King"]) == 1
    assert "no such role" in capsys.readouterr().err


def test_status_shows_what_runs_and_what_does_not(
    network: dict[str, str], home: Path, capsys: pytest.CaptureFixture[str]
):
    (home / "nodes" / "Bob").mkdir(parents=True)
    assert main(["status"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.search(rf"network +Network +{network['address']} +running +no Node", lines[1])
    assert re.search(r"node +Bob +- +stopped", lines[2])
    assert main(["status", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["processes"]
    assert [(one["name"], one["status"]) for one in found] == [("Network", "running"), ("Bob", "stopped")]
    assert found[0]["address"] == network["address"]


# ------------------------------------------------------------------ reset


def state_of_a_grid(home: Path) -> None:
    for place in ("network", "nodes/Bob", "nodes/mine"):
        (home / place).mkdir(parents=True)
        (home / place / "grid.db").write_bytes(b"x" * 1500)
    (home / "local.json").write_text('{"network": "http://127.0.0.1:5000", "nodes": {"Bob": "http://127.0.0.1:3000"}}')
    Credentials().store("http://127.0.0.1:3000", "Bob", "gone")
    Credentials().store("http://ward7.example.org:3000", "Ana", "kept")


@pytest.mark.parametrize("more", [["--lab"], ["--elsewhere", "Bob"]])
def test_what_starts_elsewhere_has_to_be_one_of_the_grids_nodes(more: list[str], home: Path, capsys):
    assert main(["up", "--nodes", "Alice,Bill", *more]) == 1
    assert "Bob would be started elsewhere but is none of this grid" in capsys.readouterr().err


def test_reset_forgets_the_local_grid_and_says_what_it_removes(home: Path, capsys: pytest.CaptureFixture[str]):
    state_of_a_grid(home)
    assert main(["reset"]) == 1  # nobody is there to be asked
    assert (home / "nodes" / "Bob").exists()
    assert "Nothing was removed" in capsys.readouterr().out
    assert main(["reset", "--yes"]) == 0
    told = capsys.readouterr().out
    assert "node Bob" in told
    assert "mine" not in told
    assert {path.name for path in (home / "nodes").iterdir()} == {"mine"}  # a Node of one's own is not the grid's
    assert not (home / "network").exists()
    assert not (home / "local.json").exists()
    assert Credentials().users("http://127.0.0.1:3000") == []
    assert Credentials().users("http://ward7.example.org:3000") == ["Ana"]
    assert main(["reset", "--yes", "--all"]) == 0
    assert list((home / "nodes").iterdir()) == []


def test_reset_refuses_while_something_runs(network: dict[str, str], home: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["reset", "--yes"]) == 1
    assert "Network" in capsys.readouterr().err
    assert (home / "network" / "grid.db").exists()


def test_a_program_on_a_leash_ends_with_its_parent(tmp_path: Path):
    mark = tmp_path / "pid"
    script = (
        f"import os, time; open({str(mark)!r}, 'w').write(str(os.getpid())); print('on', flush=True); time.sleep(60)"
    )
    leash = subprocess.Popen(
        [sys.executable, "-m", "grid_jupyter.cli.leash", sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert leash.stdout is not None
    leash.stdout.readline()
    leash.communicate(timeout=30)
    assert leash.returncode == 128 + 15
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)

"""The grid of docker/compose.yaml on six hosts, one address each: they join, they train, a cable is pulled."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from compose_world import REPOSITORY, ComposeWorld, Host

CA = "/run/grid/ca.pem"
BACK_S = 60.0
"""Time in which a Node whose cable is plugged in again must take part."""


@pytest.fixture(scope="module")
def grid() -> Iterator[ComposeWorld]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        if os.environ.get("CI") == "true" and os.geteuid() == 0:
            pytest.fail("no iproute2; on Debian: apt-get install iproute2")
        pytest.skip("network namespaces need root and iproute2")
    with (
        tempfile.TemporaryDirectory() as folder,
        ComposeWorld(Path(folder), REPOSITORY / "docker/compose.yaml") as grid,
    ):
        grid.up()
        yield grid


def asked(host: Host, code: str) -> str:
    """What a script of the notebook's user prints."""
    done = host.inside("python", "-c", code, SSL_CERT_FILE=CA)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_notebook_of_the_first_start_knows_its_grid_and_its_people(grid: ComposeWorld):
    said = asked(
        grid["notebook"],
        "import grid_jupyter as sy, json\n"
        "grid = sy.local()\n"
        "nodes = sy.PublicGridNetwork(None, grid.network, user='Ana').nodes()\n"
        "own = {name: sy.NodeClient(None, at, user=name).caller.roles for name, at in grid.nodes.items()}\n"
        "print(json.dumps([grid.network, grid.nodes, sorted(nodes), own]))",
    )
    network, nodes, joined, owners = json.loads(said)
    names = ["Alice", "Bill", "Bob", "James"]
    assert network == "https://network:5000"
    assert nodes == {name: f"https://{name.lower()}:3000" for name in names}
    assert joined == names
    assert owners == {name: ["Owner"] for name in names}


def test_who_does_not_trust_the_grid_s_own_authority_is_told_so(grid: ComposeWorld):
    done = grid["notebook"].inside("python", "-c", "import grid_jupyter as sy; sy.NodeClient(None, 'https://bob:3000')")
    assert done.returncode != 0
    assert "certificate" in done.stderr


def test_the_demo_comes_to_its_accuracy_over_the_hosts(grid: ComposeWorld):
    home = grid["notebook"].environment()["GRID_JUPYTER_HOME"]
    command = ["python", "-m", "grid_jupyter.client.demo", "--home", home, "--output", "demo.png", "--json"]
    done = grid["notebook"].inside(*command, SSL_CERT_FILE=CA)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["ok"]
    assert sorted(told["nodes"]) == ["Alice", "Bill", "Bob", "James"]
    assert told["refusals"] == 4 * 2 * 8
    assert told["accuracy"] > 0.9


def test_hosts_train_on_without_one_whose_cable_is_pulled_and_with_it_when_it_is_back(grid: ComposeWorld):
    host = grid["notebook"]
    script = str(REPOSITORY / "tests" / "containers" / "train_on.py")
    with host.open("python", script, "200", SSL_CERT_FILE=CA) as training:
        assert training.stdin is not None
        assert training.stdout is not None

        def next_round() -> dict[str, Any]:
            training.stdin.write("\n")
            training.stdin.flush()
            told: dict[str, Any] = json.loads(training.stdout.readline())
            return told

        rounds = [json.loads(training.stdout.readline()), next_round()]
        assert all(told["participants"] == ["Alice", "Bill", "Bob", "James"] for told in rounds)

        grid["bob"].cable("down")
        without = [next_round(), next_round()]
        assert all(told["participants"] == ["Alice", "Bill", "James"] for told in without)
        assert "did not answer" in without[0]["left_out"]["Bob"]

        grid["bob"].cable("up")
        deadline = time.monotonic() + BACK_S
        while "Bob" not in (told := next_round())["participants"]:
            assert time.monotonic() < deadline, told
            time.sleep(0.5)
        assert told["accuracy"] > 0.8
        training.kill()


def test_jupyterlab_has_a_token_that_the_first_start_says_once_or_that_of_a_secret(grid: ComposeWorld):
    host = grid["notebook"]
    (made,) = re.findall(r"^JupyterLab: http://localhost:8888/lab\?token=(\w{48})$", host.log.read_text(), re.MULTILINE)
    kept = Path(host.environment()["GRID_JUPYTER_HOME"]) / "jupyter-token"
    assert (kept.read_text().strip(), kept.stat().st_mode & 0o777) == (made, 0o600)
    assert [opens(host, made), opens(host, "another")] == [200, 403]

    secret = grid.folder / "jupyter-token"
    secret.write_text("of-a-file-of-theirs\n")
    host.service["environment"]["JUPYTER_TOKEN_FILE"] = str(secret)  # as compose.secrets.yaml says it
    host.stop()
    host.start()
    host.wait_healthy()
    assert [opens(host, "of-a-file-of-theirs"), opens(host, made)] == [200, 403]
    log = host.log.read_text()
    assert [log.count("said once"), log.count(made), log.count("of-a-file-of-theirs")] == [1, 1, 0]


def opens(host: Host, token: str) -> int:
    """What JupyterLab's server answers to who has this token."""
    code = (
        "import urllib.error, urllib.request\n"
        f"asked = urllib.request.Request('http://127.0.0.1:8888/api/status?token={token}')\n"
        "try:\n    print(urllib.request.urlopen(asked).status)\n"
        "except urllib.error.HTTPError as error:\n    print(error.code)\n"
    )
    return int(asked(host, code))


def test_a_stopped_service_ends_at_once_and_comes_back_with_its_state(grid: ComposeWorld):
    bob = grid["bob"]
    assert bob.stop() in (0, 143)
    bob.start()
    bob.wait_healthy()
    said = asked(
        grid["notebook"],
        "import grid_jupyter as sy\n"
        "print(sy.NodeClient(None, sy.local().nodes['Bob'], user='Ana').search('#digits', '#X')[0].description)",
    )
    assert said.startswith("Handwritten digits of Bob")

"""What an operator sees of a Node while people use it: status, metrics, a log; and what is in none of these."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import World
from job_world import rows, submit
from node_world import GridProcess, OwnerConnection, until
from prometheus_client.parser import text_string_to_metric_families

from grid_jupyter import JobPolicy, send
from grid_jupyter.errors import GetNotPermittedError, GridError

VALUE = 987654321
"""In Bob's data; torch puts it into the text of an error."""
PHRASE = "the-patients-of-ward-seven"
"""Of a file's path, a description, a query: a stranger's or an owner's own words."""


def grid(node: GridProcess, *arguments: str) -> str:
    command = [sys.executable, "-m", "grid_jupyter.cli.main", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def metrics(text: str) -> dict[tuple[str, tuple[str, ...]], float]:
    """Samples by name and the values of their labels. Raises ValueError for what Prometheus could not read."""
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture(scope="module")
def lived(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[GridProcess, list[str]]]:
    """A Node on which a good deal happened, and the secrets that were used."""
    node = world.start("node", "ward7", "--log-format", "json")
    secrets = [node.user("Bob", "Owner"), node.user("Ana"), node.user("Zed")]
    invite = node.owner("POST", "/owner/invites", {"role": "User", "expires_s": 60.0})["invite"]
    secrets.append(invite.rpartition("#")[2])
    path = tmp_path_factory.mktemp("private") / f"{PHRASE}.csv"
    pd.DataFrame({"age": [47.3125, 52.6875]}).to_csv(path, index=False)
    with node.client("Bob") as bob, node.client("Ana") as ana:
        bob.publish(path, tags=["#ages"], description=PHRASE)
        bob.publish(torch.tensor([VALUE]), tags=["#index"])
        x, y = rows()
        for tag, tensor in (("#x", x), ("#y", y)):
            bob.publish(tensor, tags=[tag], jobs=JobPolicy(automatic=("Ana",)))
        for client in (ana, bob):  # to one of them the text of the error is told
            failed = send(torch.arange(3), client).index_select(0, client.search("#index")[0])
            with pytest.raises(GridError):
                failed.get()
        with pytest.raises(GetNotPermittedError):
            ana.search("#index")[0].get()
        send(torch.zeros(300_000), ana).add(1).get()  # by a ticket
        submit(ana, epochs=1).wait(60)
        submit(ana, epochs=1000, batch_size=1).cancel()
        node.call("GET", f"/data-centric/models/{PHRASE}?token={secrets[0]}", token=secrets[1])
        node.call("GET", f"/{PHRASE}/{secrets[0]}")
        node.call("POST", "/data-centric/search", {"query": [PHRASE]}, token=secrets[0][:-1] + "?")
        node.call("POST", "/users/login", {"username": "Bob", "password": PHRASE})
        node.call("GET", "/data-centric/status", headers={"X-Request-Id": PHRASE})
        yield node, secrets
    node.stop()


def test_the_log_is_json_with_an_id_for_each_request_and_has_no_secret_and_no_value(lived: Any, world: World):
    node, secrets = lived
    text = until(lambda: (found := node.log.read_text()).count("/data-centric/released/*") and found)
    lines = [json.loads(line) for line in text.splitlines()]
    assert len(lines) > 30
    for line in lines:
        assert {"time", "level", "logger", "message"} <= line.keys()
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
    requests = [line for line in lines if re.match(r"\d{3} [A-Z]+ ", line["message"])]
    assert len({line["request"] for line in requests}) == len(requests) > 20
    for secret in (*secrets, str(VALUE), "47.3125", "52.6875", PHRASE):
        assert secret not in text, secret
    assert "(no such route)" in text
    assert "gji1_" not in text
    assert not re.search(r"[0-9a-f]{32}", text), "an id of an upload or a ticket"


def test_an_answer_names_the_request_as_the_log_does(lived: Any):
    node, _ = lived
    connection = http.client.HTTPConnection("127.0.0.1", node.port, timeout=30)
    connection.request("GET", "/data-centric/status")
    told = connection.getresponse().headers["X-Request-Id"]
    connection.close()
    until(lambda: f'"request": "{told}"' in node.log.read_text())


def test_status_shows_versions_disk_sessions_jobs_and_workers_and_who_does_not_run(
    lived: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    node, _ = lived
    home = tmp_path / "home"
    monkeypatch.setenv("GRID_JUPYTER_HOME", str(home))
    (home / "nodes" / "away").mkdir(parents=True)
    (home / "nodes" / "ward7").symlink_to(node.state)
    text = grid(node, "status")
    assert f"torch {torch.__version__.partition('+')[0]}" in text
    assert "schema 00" in text
    assert re.search(r"sessions +2 connected, 2 computing, at most 16", text)
    assert re.search(r"jobs +1 cancelled, 1 done", text)
    assert "node away does not run" in text
    assert "jupyter grid node --name away" in text
    away, ward7 = json.loads(grid(node, "status", "--json"))["processes"]
    assert (away["status"], away["overview"]) == ("stopped", None)
    overview = ward7["overview"]
    assert overview["datasets"] == 4
    assert overview["quotas"]["jobs_of_one_user"] == 16 << 30
    assert overview["quotas"]["trainings_of_one_host"] == 32 << 30
    assert "68.7 GB trainings, 34.4 GB those of one account" in text
    assert overview["disk"]["used"]["blobs"] == sum(file.stat().st_size for file in (node.state / "blobs").iterdir())
    assert overview["workers"]["used"] >= 2


def test_metrics_are_what_happened_and_their_labels_are_our_own_words(lived: Any):
    node, secrets = lived
    connection = OwnerConnection(node.running["socket"])
    connection.request("GET", "/owner/metrics")
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    found = metrics(text)
    assert found["grid_sessions", ("computing",)] == 2
    assert found["grid_jobs", ("done",)] == 1
    assert found["grid_datasets", ()] == 4
    assert found["grid_event_loop_lag_seconds_count", ()] > 0
    assert found["grid_disk_free_bytes", ()] > 0
    name = "grid_http_request_duration_seconds_count"
    assert found[name, ("public", "NothingHere", "GET", "4xx")] == 1
    assert found[name, ("public", "ValueOut", "GET", "2xx")] >= 1
    for word in (*secrets, PHRASE, "Bob", "Ana", "#ages", str(VALUE)):
        assert word not in text
    before = len(found)
    for number in range(20):
        node.call(f"EVIL{number}", f"/{PHRASE}{number}", token=secrets[0])
    connection = OwnerConnection(node.running["socket"])
    connection.request("GET", "/owner/metrics")
    again = metrics(connection.getresponse().read().decode())
    connection.close()
    assert len(again) - before < 50, "what strangers send makes no new series without end"
    assert not any("EVIL" in label for _, labels in again for label in labels)


def test_only_the_owner_and_a_scraper_with_the_owners_token_read_metrics(lived: Any):
    node, secrets = lived
    state = ("--state", str(node.state))
    for credential in ("", *secrets[:2]):
        assert node.call("GET", "/metrics", token=credential)[0] == 404, "there is none before a token is made"
    made = json.loads(grid(node, "metrics", *state, "--token", "make", "--json"))
    assert made["url"] == f"{node.address}/metrics"
    status, text = node.call("GET", "/metrics", token=made["token"])
    assert status == 200
    assert metrics(text)["grid_datasets", ()] == 4
    for credential in ("", *secrets[:2], made["token"] + "x", "é"):
        assert node.call("GET", "/metrics", token=credential.encode().decode("latin-1"))[0] == 401
    assert node.call("GET", "/data-centric/models", token=made["token"])[0] == 401, "it reads nothing else"
    newer = json.loads(grid(node, "metrics", *state, "--token", "make", "--json"))["token"]
    assert node.call("GET", "/metrics", token=made["token"])[0] == 401
    assert node.call("GET", "/metrics", token=newer)[0] == 200
    assert "no token" in grid(node, "metrics", *state, "--token", "end")
    assert node.call("GET", "/metrics", token=newer)[0] == 404
    assert "grid_datasets 4.0" in grid(node, "metrics", *state)
    assert newer not in node.log.read_text()

"""What devices measure, end to end: devices as processes, the table, the CSV, the plot as it grows, and strangers."""

from __future__ import annotations

import base64
import csv
import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy
import pytest
import torch
from conftest import World
from node_world import GridProcess, until
from safetensors.numpy import save
from sklearn.datasets import load_digits
from websockets.sync.client import connect

from grid_jupyter import Device, FLClient, ModelCentricFLClient, Plan, plot_accuracy, training_plan
from grid_jupyter.cycles.metrics import PAGE_ROWS
from grid_jupyter.errors import Forbidden, NotAuthenticatedError, NotFound

PIXELS, CLASSES = 64, 10


def network() -> torch.nn.Sequential:
    torch.manual_seed(7)
    return torch.nn.Sequential(torch.nn.Linear(PIXELS, CLASSES))


@pytest.fixture(scope="module")
def plan() -> Plan:
    example = torch.zeros(4, PIXELS), torch.zeros(4, dtype=torch.int64)
    return training_plan(network(), torch.nn.functional.cross_entropy, torch.optim.SGD(network().parameters(), 0.1),
                         inputs=example)  # fmt: skip


@pytest.fixture(scope="module")
def node(world: World) -> GridProcess:
    """A Node on which Pat may host and Ann has an account."""
    made = world.start("node", "Meter")
    made.user("Pat", "Publisher")
    made.user("Ann", "User")
    return made


@pytest.fixture(scope="module")
def pat(node: GridProcess) -> ModelCentricFLClient:
    return ModelCentricFLClient("pat", node.address, user="Pat").connect()


def host(pat: ModelCentricFLClient, plan: Plan, name: str, **server_config: Any) -> None:
    config = {"name": name, "version": "1.0", "batch_size": 32, "lr": 0.2}
    pat.host(network(), {"training_plan": plan}, client_config=config, server_config=server_config)


def place_in(node: GridProcess, name: str) -> dict[str, str]:
    worker = node.call("POST", "/model-centric/authenticate", {"model_name": name})[1]["worker_id"]
    told = node.call("POST", "/model-centric/cycle-request", {"worker_id": worker, "model": name})[1]
    return {"worker_id": worker, "request_key": told["request_key"]}


def digits() -> tuple[Any, Any]:
    images, labels = load_digits(return_X_y=True)
    return (images / 16.0).astype(numpy.float32), labels.astype(numpy.int64)


def loss_of(tensors: dict[str, Any], x: Any, y: Any) -> float:
    """Cross entropy of the network, by numpy alone: the reference."""
    scores = (x @ tensors["0.weight"].T + tensors["0.bias"]).astype(numpy.float64)
    scores -= scores.max(axis=1, keepdims=True)
    return float((numpy.log(numpy.exp(scores).sum(axis=1)) - scores[numpy.arange(len(y)), y]).mean())


def test_17_what_devices_measure_becomes_a_table_a_csv_and_a_plot(
    node: GridProcess, pat: ModelCentricFLClient, plan: Plan, tmp_path: Path
):
    host(pat, plan, "digits", num_cycles=3, min_diffs=2, max_diffs=2)
    x, y = digits()
    parts = {0: slice(0, 300), 1: slice(300, 1200)}
    devices = []
    for k, part in parts.items():
        numpy.savez(tmp_path / f"{k}.npz", x=x[part], y=y[part])
        numpy.savez(tmp_path / f"held-out-{k}.npz", x=x[1200:], y=y[1200:])
        command = [sys.executable, "-m", "grid_jupyter.cli.main", "device", node.address, "--model", "digits"]
        command += ["--data", str(tmp_path / f"{k}.npz")]
        how = ["--held-out", str(tmp_path / "held-out-1.npz")] if k == 1 else []
        devices.append(subprocess.Popen([*command, *how], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    followed = list(pat.follow("digits"))
    frame = pat.watch_training("digits", timeout_s=30)
    for device in devices:
        out, err = device.communicate(timeout=60)
        assert device.returncode == 0, err
        assert "; loss 2." in out.splitlines()[0]
        assert " → " in out
    names = ["accuracy_after", "accuracy_before", "loss_after", "loss_before"]
    assert sorted(frame["metric"].unique()) == names
    assert frame.groupby(["cycle", "worker"]).size().tolist() == [4] * 6
    assert sorted(frame["samples"].unique()) == [300, 597]
    model = {number: pat.retrieve("digits", checkpoint=number) for number in (1, 3)}
    for cycle, tensors in model.items():
        held = frame.query(f"cycle == {cycle} and metric == 'loss_before' and samples == 597")["value"].item()
        assert held == pytest.approx(loss_of(tensors, x[1200:], y[1200:]), rel=1e-4)
        own = frame.query(f"cycle == {cycle} and metric == 'loss_before' and samples == 300")["value"].item()
        assert own == pytest.approx(loss_of(tensors, x[:300], y[:300]), rel=1e-4)
        mean = (300 * own + 597 * held) / 897
        told = next(one["metrics"] for one in followed if one["completed"] == cycle)
        assert told["loss_before"] == pytest.approx(mean, rel=1e-6)
    means = frame[frame["metric"] == "accuracy_before"].groupby("cycle")["value"].mean()
    assert means[1] < 0.3 < means[3]
    with pat.export_metrics(tmp_path / "metrics.csv", "digits", "1.0").open(newline="") as file:
        lines = list(csv.reader(file))
    assert lines[0] == list(frame.columns)
    assert sorted(float(line[3]) for line in lines[1:]) == sorted(frame["value"])
    figure = plot_accuracy(pat.metrics("digits"))
    assert [axis.get_ylabel() for axis in figure.axes] == ["accuracy", "loss", "devices"]
    text = frame.to_csv()
    assert not any(device in text for device in _worker_ids(node, "digits"))


def _worker_ids(node: GridProcess, name: str) -> list[str]:
    with sqlite3.connect(f"file:{node.state / 'grid.db'}?mode=ro", uri=True) as rows:
        query = "SELECT d.id FROM training_device d JOIN training t ON t.id = d.training_id WHERE t.name = ?"
        found = [row[0] for row in rows.execute(query, (name,))]
    assert len(found) == 2
    return found


def test_a_device_that_measures_nothing_tells_nothing(node: GridProcess, pat: ModelCentricFLClient, plan: Plan):
    host(pat, plan, "silent", max_diffs=1, num_cycles=1)
    x, y = digits()
    with Device(node.address) as device:
        (trained,) = device.participate("silent", data=(x[:64], y[:64]), metrics=False)
    assert trained.metrics == {}
    assert len(pat.metrics("silent")) == 0


def test_18_metrics_by_plain_http_by_the_names_of_the_fork_and_by_its_websocket(
    node: GridProcess, pat: ModelCentricFLClient, plan: Plan
):
    host(pat, plan, "plain", max_diffs=9)
    one, two, three = (place_in(node, "plain") for _ in range(3))
    tell = {**one, "metrics": {"F1 (macro)": 0.5}, "num_samples": 40}
    for _ in range(2):
        assert node.call("POST", "/model-centric/metrics", tell) == (200, {"status": "success"})
    stats = {"stats": [{**two, "cycle_id": 1, "accuracy": 0.75, "num_samples": 8, "model_size": 3}]}
    status, told = node.call("POST", "/model-centric/upload_stats", stats)
    assert (status, told["message"]) == (200, "Stats have been uploaded.")
    with connect(node.address.replace("http", "ws") + "/") as socket:
        for kind, data in (
            ("upload_stats", {"stats": [{**three, "cycle_id": 1, "accuracy": 1}]}),
            ("model-centric/metrics", {**three, "metrics": {"accuracy": 1}}),
        ):
            socket.send(json.dumps({"type": kind, "data": data}))
            assert json.loads(socket.recv())["data"]["status"] == "success"
    token = node.user("Pat", "Publisher")
    status, told = node.call("GET", "/model-centric/training-metrics?name=plain", token=token)
    assert (status, told["status"], told["more"]) == (200, "success", False)
    assert [(one["cycle_id"], one["worker_id"], one["num_samples"]) for one in told["stats"]] == [
        (1, 1, 40), (1, 2, 8), (1, 3, 1)
    ]  # fmt: skip
    assert told["stats"][1]["accuracy"] == 0.75
    behind = node.call("GET", f"/model-centric/metrics?name=plain&after={told['next']}", token=token)[1]
    assert (behind["metrics"], behind["next"]) == ([], told["next"])
    assert pat.metrics("plain")["metric"].tolist() == ["F1 (macro)", "accuracy", "model_size", "accuracy"]


def test_metrics_come_along_with_reports_in_both_forms_and_with_the_listeners_of_0_2_9(
    node: GridProcess, pat: ModelCentricFLClient, plan: Plan
):
    host(pat, plan, "along", max_diffs=3)
    one, two = place_in(node, "along"), place_in(node, "along")
    diff = save({name: numpy.zeros_like(tensor.numpy()) for name, tensor in network().state_dict().items()})
    query = urlencode({**one, "num_samples": 5, "metrics": json.dumps({"accuracy": 0.25})})
    for wrong in ("{", "[]", '{"a":"b"}', '{"a":1e999}', '{"<":1}'):
        told = urlencode({**one, "metrics": wrong})
        assert node.call("POST", f"/model-centric/report?{told}", diff)[0] == 400
    assert node.call("POST", f"/model-centric/report?{query}", diff)[0] == 200
    body = {**two, "diff": base64.b64encode(diff).decode(), "metrics": {"accuracy": 0.5}, "metrics_samples": 6}
    headers = {"Content-Type": "application/json"}
    assert node.call("POST", "/model-centric/report", {**body, "metrics": {"a": "b"}}, headers=headers)[0] == 400
    assert node.call("POST", "/model-centric/report", body, headers=headers)[0] == 200
    job = FLClient(node.address).new_job("along")
    job.add_listener(job.EVENT_ACCEPTED, lambda job: job.report(job.model.tensors(), 7, metrics={"accuracy": 1.0}))
    job.start()
    until(lambda: pat.status("along")["completed"] == 1)
    assert pat.metrics("along")[["value", "samples"]].to_numpy().tolist() == [[0.25, 5], [0.5, 6], [1.0, 7]]


def test_a_long_training_is_one_csv_file_and_one_table(
    node: GridProcess, pat: ModelCentricFLClient, plan: Plan, tmp_path: Path
):
    host(pat, plan, "long", max_diffs=9)
    place = place_in(node, "long")
    assert node.call("POST", "/model-centric/metrics", {**place, "metrics": {"loss": 0.5}})[0] == 200
    with sqlite3.connect(node.state / "grid.db", timeout=30) as rows:
        ((place_id, training, device),) = rows.execute("SELECT id, training_id, device FROM training_place "
                                                       "ORDER BY id DESC LIMIT 1").fetchall()  # fmt: skip
        for k in range(1, PAGE_ROWS + 5):
            rows.execute("INSERT INTO training_place (id, training_id, sequence, device, state, at) "
                         "VALUES (?, ?, ?, ?, 'none', 0)", (place_id + k, training, k + 1, device))  # fmt: skip
            rows.execute("INSERT INTO training_metrics (training_id, sequence, place, worker, figures, samples, at) "
                         "VALUES (?, ?, ?, 1, '{\"loss\": 1.0}', 1, 0)", (training, k + 1, place_id + k))  # fmt: skip
    lines = pat.export_metrics(tmp_path / "long.csv", "long").read_text().splitlines()
    assert len(lines) == 1 + PAGE_ROWS + 5
    assert lines[1].startswith("1,1,loss,0.5,1,2")
    assert pat.metrics("long")["cycle"].tolist() == list(range(1, PAGE_ROWS + 6))


def test_strangers_neither_tell_nor_read_and_accounts_read_what_they_host(
    node: GridProcess, pat: ModelCentricFLClient, plan: Plan, tmp_path: Path
):
    host(pat, plan, "mine", max_diffs=9)
    place, other = place_in(node, "mine"), place_in(node, "mine")
    good = {**place, "metrics": {"accuracy": 0.5}}
    for wrong, status, said in (
        ({**good, "worker_id": other["worker_id"]}, 401, "Invalid request key"),
        ({**good, "request_key": ""}, 401, "Invalid request key"),
        ({**good, "worker_id": "x"}, 404, "Worker ID not found"),
        ({**good, "metrics": {"=cmd()": 1}}, 400, "names of metrics"),
        ({**good, "metrics": {f"m{k}": k for k in range(17)}}, 400, "1 to 16 metrics"),
        ({**good, "num_samples": 0}, 400, "num_samples"),
        ({**good, "num_samples": 2**41}, 400, "num_samples"),
        ({**good, "metrics": []}, 400, "metrics"),
    ):
        found, told = node.call("POST", "/model-centric/metrics", wrong)
        assert (found, said in told["error"]) == (status, True), told
    assert node.call("POST", "/model-centric/metrics", b'{"metrics":{"a":NaN}}')[0] == 400
    many = {"stats": [{**place, "cycle_id": 1, "accuracy": 1}] * 65}
    assert node.call("POST", "/model-centric/upload_stats", many)[0] == 400
    assert len(pat.metrics("mine")) == 0
    ann, nobody = ModelCentricFLClient("ann", node.address, user="Ann"), ModelCentricFLClient("x", node.address)
    for path in ("metrics", "training-metrics"):
        for form in ("json", "csv"):
            where = f"/model-centric/{path}?name=mine&format={form}"
            assert node.call("GET", where)[0] == 401
            assert node.call("GET", where, token=node.user("Ann"))[0] == 403
    with pytest.raises(Forbidden, match="hosts the model"):
        ann.metrics("mine")
    with pytest.raises(Forbidden):
        ann.export_metrics(tmp_path / "no.csv", "mine")
    assert not (tmp_path / "no.csv").exists()
    with pytest.raises(NotAuthenticatedError):
        nobody.metrics("mine")
    with pytest.raises(NotFound):
        pat.metrics("other")
    assert "metrics" not in next(ann.follow("mine"))
    assert next(pat.follow("mine"))["metrics"] == {}
    with node.client(user="Pat") as client:
        assert list(client.metrics("mine").columns) == list(pat.metrics("mine").columns)
    token = node.user("Pat", "Publisher")
    assert node.call("GET", "/model-centric/metrics?name=mine&format=xml", token=token)[0] == 400
    assert node.call("GET", "/model-centric/metrics?name=mine&after=-1", token=token)[0] == 400

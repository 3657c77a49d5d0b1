"""The whole image on arm64, by emulation: `make arm64`. Prints what it did and how long each step took.

    python tests/containers/arm64.py [TORCH]      as packages.sh takes it; without it the last one for processors alone

Every step of the Dockerfile is run in an unpacked arm64 Debian, with torch and JupyterLab; the panel and the extension
are listed, a Node starts as the image's user, a client of this machine computes on it, a device there takes part in
the training of a model that it hosts.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy
import torch
from roots import Root, build_wheel, missing
from sklearn.datasets import load_digits

from grid_jupyter import ModelCentricFLClient, NodeClient, training_plan

PORT = 3971
SEEN = {"GRID_ROLE": "node", "GRID_NAME": "Jetson", "GRID_JUPYTER_HOME": "/var/lib/grid"}
PATIENCE_S = 600.0
TORCH = "torch==2.9.1"
"""The last release in the package index that comes without CUDA for this processor: gigabytes less to unpack."""


def main(torch_of: str = TORCH) -> int:
    """Run it all. Raises AssertionError at the first thing that is not as it should be."""
    if reason := missing("arm64"):
        print(reason, file=sys.stderr)
        return 1
    os.environ["GRID_JUPYTER_HOME"] = str(Path(tempfile.mkdtemp()))
    folder = Path(tempfile.mkdtemp(prefix="arm64-"))
    folder.chmod(0o755)
    began = last = time.monotonic()

    def done(what: str) -> None:
        nonlocal last
        now = time.monotonic()
        print(f"{now - began:7.0f} s  +{now - last:5.0f} s  {what}", flush=True)
        last = now

    try:
        root = Root(folder / "arm64", "arm64").make("ca-certificates")
        done("an arm64 Debian is unpacked and set up")
        root.run("/opt/grid/system.sh", "10001")
        done("system.sh")
        wheel = build_wheel(folder)
        root.take(wheel, f"/opt/grid/wheels/{wheel.name}")
        root.run("/opt/grid/packages.sh", "/opt/grid/wheels", torch_of, PIP_NO_COMPILE="1")
        done("packages.sh: the wheel with JupyterLab and torch")
        said = root.run("/opt/grid/check.sh", torch_of)
        done("check.sh: " + "; ".join(" ".join(line.split()) for line in said.splitlines() if "cpuinfo" not in line))
        with subprocess.Popen(root.command("/opt/grid/start.sh", "node", "--port", str(PORT), "--operation-time", "10m",
                                           user="grid", **SEEN), stdout=sys.stderr, stderr=sys.stderr,
                              start_new_session=True) as node:  # fmt: skip
            try:
                use(root, node, done)
            finally:
                os.killpg(node.pid, signal.SIGTERM)
                node.wait(60)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print("everything was as it should be", flush=True)
    return 0


def use(root: Root, node: subprocess.Popen[bytes], done: object) -> None:
    """What people do with the Node there."""
    assert callable(done)
    address = f"http://127.0.0.1:{PORT}"
    until = time.monotonic() + PATIENCE_S
    ask = root.command("python", "-c", f"import urllib.request as u; u.urlopen('{address}/data-centric/status')")
    while subprocess.run(ask, capture_output=True, check=False).returncode != 0:
        assert node.poll() is None, "the Node ended"
        assert time.monotonic() < until, "the Node does not answer"
        time.sleep(1)
    done("a Node answers")
    issued = root.run("jupyter-grid", "token", "issue", "Pat", "--role", "Owner", "--json", user="grid", **SEEN)
    token = json.loads(issued.splitlines()[-1])["token"]
    with NodeClient(None, address) as client:
        client.login(token=token, store=True)
    with NodeClient(None, address, user="Pat") as pat:
        values = torch.arange(12.0).reshape(3, 4)
        there = pat.receive(values)
        product = (there @ there.T).get()
        assert torch.equal(product, values @ values.T), f"a product came out as {product}"
    done("a client computed there")
    torch.manual_seed(7)
    model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    example = torch.zeros(4, 64), torch.zeros(4, dtype=torch.int64)
    sgd = torch.optim.SGD(model.parameters(), 0.1)
    plan = training_plan(model, torch.nn.functional.cross_entropy, sgd, inputs=example)
    config = {"name": "digits", "version": "1.0", "batch_size": 32, "lr": 0.2, "max_updates": 100}
    host = ModelCentricFLClient("pat", address, user="Pat")
    host.host(model, {"training_plan": plan}, client_config=config, server_config={"num_cycles": 3, "max_diffs": 1})
    images, labels = load_digits(return_X_y=True)
    data = root.folder / "opt/digits.npz"
    numpy.savez(data, x=(images / 16.0).astype(numpy.float32), y=labels.astype(numpy.int64))
    told = root.run("jupyter-grid", "device", address, "--model", "digits", "--data", "/opt/digits.npz", "--json")
    losses = [json.loads(line)["loss"] for line in told.splitlines() if line.startswith("{")]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    assert host.status("digits")["phase"] == "over"
    done(f"a device there trained three cycles: loss {losses[0]:.2f} to {losses[-1]:.2f}")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

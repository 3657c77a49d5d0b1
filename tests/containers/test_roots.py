"""The steps that make the image, run for real in unpacked Debian systems: of this processor, and of arm64 emulated."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from flows.node_world import GridProcess
from roots import BARE, REPOSITORY, Root, build_wheel, missing, own_architecture
from safetensors.numpy import load_file
from sklearn.datasets import load_digits

from grid_jupyter import ModelCentricFLClient, training_plan

CYCLES = 3
EQUAL = 2e-6
"""How far float32 results may be from those of another processor, whose sums have another order."""


def needs(architecture: str) -> None:
    """Skip where this machine cannot; in CI, which installs what it takes, that is a failure."""
    reason = missing(architecture)
    if reason and os.environ.get("CI") == "true" and os.geteuid() == 0:
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("root")
    for parent in (made, made.parent):
        parent.chmod(0o755)  # the image's user goes through them
    return made


def device(root: Root, wheel: Path) -> None:
    """Make a root a headless training device: the bare package."""
    root.take(wheel, f"/opt/grid/wheels/{wheel.name}")
    root.run("/opt/grid/packages.sh", "/opt/grid/wheels", "none")
    assert "grid_jupyter" in root.run("/opt/grid/check.sh", "none")


def trained(
    pat: ModelCentricFLClient, node: GridProcess, name: str, data: str, command: Callable[..., list[str]]
) -> dict[str, Any]:
    """The last checkpoint of a training with one device; `command` makes its command line of arguments."""
    torch.manual_seed(7)
    model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    example = torch.zeros(4, 64), torch.zeros(4, dtype=torch.int64)
    sgd = torch.optim.SGD(model.parameters(), 0.1)
    plan = training_plan(model, torch.nn.functional.cross_entropy, sgd, inputs=example)
    config = {"name": name, "version": "1.0", "batch_size": 32, "lr": 0.2, "max_updates": 100}
    pat.host(model, {"training_plan": plan}, client_config=config, server_config={"num_cycles": CYCLES, "max_diffs": 1})
    arguments = ["device", node.address, "--model", name, "--data", data, "--json", "--seed", "3"]
    done = subprocess.run(command(*arguments), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["counted"] for line in done.stdout.splitlines()] == [True] * CYCLES
    assert pat.status(name)["phase"] == "over"
    return dict(pat.retrieve(name))


def test_an_arm64_device_without_torch_computes_and_trains_as_this_machine_does(wheel: Path, folder: Path):
    needs("arm64")
    root = Root(folder / "arm64", "arm64").make(*BARE, variant="extract")
    device(root, wheel)
    assert root.run("python", "-c", "import platform; print(platform.machine())").strip() == "aarch64"

    root.take(REPOSITORY / "tests" / "conformance", "/opt/conformance")
    root.take(REPOSITORY / "tests" / "containers" / "vectors.py", "/opt/vectors.py")
    root.run("python", "/opt/vectors.py", "/opt/conformance", "/opt/found.safetensors")
    script = Path(__file__).parent / "vectors.py"
    own = folder / "own.safetensors"
    subprocess.run([sys.executable, script, REPOSITORY / "tests" / "conformance", own], check=True)
    same_values(load_file(root.folder / "opt/found.safetensors"), load_file(own))

    images, labels = load_digits(return_X_y=True)
    data = root.folder / "opt/digits.npz"
    numpy.savez(data, x=(images[:400] / 16.0).astype(numpy.float32), y=labels[:400].astype(numpy.int64))
    node = GridProcess("node", "Trainer", folder / "home").start()
    try:
        node.user("Pat", "Publisher")
        pat = ModelCentricFLClient("pat", node.address, user="Pat")
        there = trained(pat, node, "there", "/opt/digits.npz", partial(root.command, "jupyter-grid"))
        here = trained(
            pat, node, "here", str(data), lambda *told: [sys.executable, "-m", "grid_jupyter.cli.main", *told]
        )
        start = pat.retrieve("here", checkpoint=1)
    finally:
        node.stop()
    same_values(there, here)
    assert max(numpy.abs(here[name] - start[name]).max() for name in start) > 0.05


def same_values(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        numpy.testing.assert_allclose(found[name], value, rtol=0, atol=EQUAL, err_msg=name)


def test_the_image_of_this_processor_has_jupyterlab_with_the_panel_and_its_node_starts(wheel: Path, folder: Path):
    own = own_architecture()
    needs(own)
    root = Root(folder / "own", own).make("ca-certificates")
    root.run("/opt/grid/system.sh", "10001")
    root.take(wheel, f"/opt/grid/wheels/{wheel.name}")
    (root.folder / "opt/constraints.txt").write_text(f"torch=={torch.__version__.partition('+')[0]}\n")
    thrifty = {"PIP_CONSTRAINT": "/opt/constraints.txt", "PIP_NO_COMPILE": "1"}
    root.run("/opt/grid/packages.sh", "/opt/grid/wheels", "pypi", **thrifty)
    said = root.run("/opt/grid/check.sh", "pypi")
    assert "grid-jupyter" in said
    assert "grid_jupyter" in said

    seen = {"GRID_ROLE": "node", "GRID_NAME": "Ward", "GRID_JUPYTER_HOME": "/var/lib/grid"}
    command = root.command("/opt/grid/start.sh", "node", "--warm", user="grid", **seen)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as node:
        try:
            deadline = time.monotonic() + 60
            health = root.command("/opt/grid/health.sh", user="grid", **seen)
            while subprocess.run(health, capture_output=True, check=False).returncode != 0:
                assert node.poll() is None, node.stdout and node.stdout.read()
                assert time.monotonic() < deadline
                time.sleep(0.3)
            told = json.loads(root.run("jupyter-grid", "status", "--json", **seen))["processes"]
            assert [(one["role"], one["name"], one["status"]) for one in told] == [("node", "Ward", "running")]
        finally:
            os.killpg(node.pid, signal.SIGTERM)
            assert node.wait(20) in (0, 143)
    a_base_image_keeps_its_torch(root)


def a_base_image_keeps_its_torch(root: Root) -> None:
    """The same root once more, as if all had come with the base image: its maker's torch, NumPy, and a JupyterLab."""
    packages = next((root.folder / "opt/grid/env/lib").glob("python3*/site-packages"))
    of_base = root.folder / "usr/local/lib" / packages.parent.name / "dist-packages"
    shutil.rmtree(of_base)
    packages.rename(of_base)
    (told,) = of_base.glob("torch-*.dist-info")
    version = "2.13.0a0+5228986c39.nv25.6"  # as NVIDIA numbers its builds: before the release, and not in an index
    metadata = (told / "METADATA").read_text()
    (told / "METADATA").write_text(
        re.sub(r"^Version: .*$", f"Version: {version}", metadata, count=1, flags=re.MULTILINE)
    )
    told.rename(of_base / f"torch-{version}.dist-info")
    for ours in (*of_base.glob("grid_jupyter*"), root.folder / "opt/grid/env"):
        shutil.rmtree(ours)

    (root.folder / "opt/pins.txt").write_text("jupyterlab==4.0.0\n")
    as_nvidia = {"PIP_CONSTRAINT": "/opt/pins.txt", "PIP_NO_COMPILE": "1"}
    root.run("/opt/grid/packages.sh", "/opt/grid/wheels", "base", **as_nvidia)
    assert "grid_jupyter" in root.run("/opt/grid/check.sh", "base")
    found = "import importlib.metadata as m, numpy, torch; print(m.version('torch'), torch.__file__, numpy.__file__)"
    assert root.run("/opt/grid/env/bin/python", "-c", found).split() == [
        version, *(f"/{of_base.relative_to(root.folder)}/{name}/__init__.py" for name in ("torch", "numpy")),
    ]  # fmt: skip
    for one in of_base.glob("torch-*"):
        shutil.rmtree(one)
    with pytest.raises(AssertionError, match="the base image has no torch"):
        root.run("/opt/grid/packages.sh", "/opt/grid/wheels", "base")

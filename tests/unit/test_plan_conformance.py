"""Both engines give what the conformance vectors say, and a device gets there with the bare package, without torch."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement
from safetensors.numpy import load_file

from grid_jupyter.plans.document import Document
from grid_jupyter.plans.engine import Engine, Training
from grid_jupyter.plans.onnx_engine import OnnxEngine
from grid_jupyter.plans.reader import read_plan
from grid_jupyter.plans.torch_engine import TorchEngine

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
VECTORS = ROOT / "tests" / "conformance"
NAMES = sorted(path.stem for path in VECTORS.glob("*.json"))
STEPS = [name for name in NAMES if not name.startswith("forward-")]
ENGINES: dict[str, Engine[Any]] = {"torch": TorchEngine(), "onnx": OnnxEngine(threads=1)}
Tensors = dict[str, np.ndarray[Any, Any]]


def plan(name: str) -> Document:
    return read_plan((VECTORS / f"{name}.json").read_bytes())


def batches(tensors: Tensors) -> list[str]:
    return sorted({key.partition(":")[0] for key in tensors if key.startswith("B")})


def given(tensors: Tensors, batch: str, role: str, name: str) -> np.ndarray[Any, Any]:
    key = f"in:{role}:{name}"
    return tensors[key] if key in tensors else tensors[f"{batch}:{key}"]


def test_there_are_vectors_for_each_kind_of_model_at_two_batch_sizes_in_less_than_a_megabyte():
    assert {"batch-norm-cnn", "cnn", "gru", "logistic-regression", "lstm", "transformer"} < set(NAMES)
    assert {name for name in NAMES if name.startswith("mlp-")} == {"mlp-adam", "mlp-momentum", "mlp-sgd"}
    assert sum(path.stat().st_size for path in VECTORS.iterdir() if path.suffix != ".py") < 1 << 20
    assert all(len(batches(load_file(VECTORS / f"{name}.safetensors"))) == 2 for name in NAMES)
    assert any(one.role == "noise" for one in plan("transformer").inputs)
    whole = {"lstm", "gru", "rnn", "mse_loss", "nll_loss", "binary_cross_entropy", "binary_cross_entropy_with_logits"}
    assert whole <= {node.operation for name in set(NAMES) - set(STEPS) for node in plan(name).nodes}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_gives_what_the_vectors_say(engine: str, name: str):
    document, tensors = plan(name), load_file(VECTORS / f"{name}.safetensors")
    program = ENGINES[engine].load(document)
    for batch in batches(tensors):
        values = [program.native(given(tensors, batch, one.role, one.name)) for one in program.inputs]
        for output, value in zip(document.outputs, program.run(values), strict=True):
            expected, found = tensors[f"{batch}:out:{output.role}:{output.name}"], np.asarray(value)
            assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
            np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6, err_msg=f"{batch} {output.name}")


def training(document: Document, tensors: Tensors, where: Engine[Any]) -> Training[Any]:
    program = where.load(document)
    start: dict[str, dict[str, Any]] = {role: {} for role in ("param", "buffer", "state", "hyper")}
    for one in program.inputs:
        if one.role in start:
            start[one.role][one.name] = program.native(tensors[f"in:{one.role}:{one.name}"])
    return Training(program, *start.values(), seed=7)


@pytest.mark.parametrize("name", [name for name in STEPS if name != "mlp-adam"])
def test_twenty_steps_are_the_same_in_both_engines_noise_and_changing_batch_sizes_included(name: str):
    document, tensors = plan(name), load_file(VECTORS / f"{name}.safetensors")
    torch_one, onnx_one = (training(document, tensors, ENGINES[engine]) for engine in ("torch", "onnx"))
    rows = [(given(tensors, batch, "x", "x"), given(tensors, batch, "y", "y")) for batch in batches(tensors)]
    for step in range(20):
        x, y = rows[step % 2]
        with torch.no_grad():
            expected = torch_one.step({"x": torch.from_numpy(x)}, {"y": torch.from_numpy(y)}, len(x))
        found = onnx_one.step({"x": x}, {"y": y}, len(x))
        for key, value in expected.items():
            assert float(found[key]) == pytest.approx(float(value), abs=5e-6), (key, step)
    for kind in ("params", "buffers", "state"):
        for key, tensor in getattr(torch_one, kind).items():
            np.testing.assert_allclose(getattr(onnx_one, kind)[key], tensor.numpy(), rtol=0, atol=5e-6, err_msg=key)


# ------------------------------------------------------------------ a device

DEVICE = """
import importlib.util, json, sys
from pathlib import Path
import numpy as np
from safetensors.numpy import load_file
from grid_jupyter.errors import DependencyError
from grid_jupyter.plans.engine import Training
from grid_jupyter.plans.installed import engine
from grid_jupyter.plans.reader import read_plan

assert importlib.util.find_spec("torch") is None and importlib.util.find_spec("onnx") is None
try:
    engine("torch")
except DependencyError as error:
    refused = str(error)
where = Path(sys.argv[1])
document = read_plan((where / "mlp-momentum.json").read_bytes())
tensors = load_file(where / "mlp-momentum.safetensors")
roles = ("param", "buffer", "state", "hyper")
start = [{k.split(":", 2)[2]: v for k, v in tensors.items() if k.startswith(f"in:{role}:")} for role in roles]
training = Training(engine().load(document), *start)
x, y = tensors["B8:in:x:x"], tensors["B8:in:y:y"]
losses = [float(training.step({"x": x}, {"y": y}, 8)["loss"]) for _ in range(30)]
first = abs(losses[0] - float(tensors["B8:out:loss:loss"]))
loaded = sorted(name for name in ("pandas", "sqlalchemy", "torch", "tornado") if name in sys.modules)
print(json.dumps({"engine": engine().name, "first": first, "losses": losses, "refused": refused, "loaded": loaded}))
"""


def distributions(requirements: list[str]) -> set[str]:
    """What these need, and what that needs."""
    found: set[str] = set()
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        one = waiting.pop()
        if one.name not in found and (one.marker is None or one.marker.evaluate({"extra": ""})):
            found.add(one.name)
            waiting += [Requirement(text) for text in importlib.metadata.distribution(one.name).requires or ()]
    return found


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment with what `pip install grid-jupyter` brings, and nothing else."""
    home = tmp_path_factory.mktemp("device")
    venv.create(home, with_pip=False, symlinks=True)
    packages = next(home.glob("lib/python*/site-packages"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (packages / "grid_jupyter").symlink_to(ROOT / "grid_jupyter")
    for name in distributions(project["dependencies"]):
        installed = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in installed.files or () if file.parts[0] not in ("..", "__pycache__")}:
            if not (packages / top).exists():
                (packages / top).symlink_to(Path(str(installed.locate_file(top))))
    return home / "bin" / "python"


def test_a_device_with_the_bare_package_loads_a_plan_and_trains_with_it_without_torch(device: Path):
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    ended = subprocess.run(
        [device, "-c", DEVICE, VECTORS], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    assert told["engine"] == "onnx"
    assert told["first"] < 2e-6
    assert told["losses"][-1] < told["losses"][0] / 2
    assert "pip install torch" in told["refused"]
    assert told["loaded"] == []

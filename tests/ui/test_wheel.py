"""What users install: the wheel by itself has the panel, is enabled as it is installed, and leaves nothing behind."""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from jupyter_process import Jupyter
from playwright.sync_api import Page, expect
from test_panel import PATIENCE_MS, TAB, settled

ROOT = Path(__file__).parents[2]
LARGEST_BUNDLE = 400_000
"""Bytes of the panel's JavaScript after gzip."""
BUILD = [sys.executable, "-m", "build", "--no-isolation", "--skip-dependency-check"]


@dataclass
class Built:
    sdist: Path
    wheel: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """What `make dist` makes, from a checkout in which the panel is built."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([*BUILD, "--outdir", folder, ROOT], check=True, capture_output=True)
    return Built(next(folder.glob("*.tar.gz")), next(folder.glob("*.whl")))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment of a process without Node.js, without a network for pip or npm, and without this checkout."""
    nothing = str(tmp_path_factory.mktemp("nothing"))
    ours = ("PYTHONPATH", "JUPYTER_PATH", "VIRTUAL_ENV")
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    pip = {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    return {**kept, **proxies, **pip, "PATH": nothing, "JUPYTER_CONFIG_DIR": nothing}


def environment(folder: Path) -> Path:
    """The Python of an environment that has what grid_jupyter needs, and not grid_jupyter."""
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    # A path of another environment: what is installed there for editing is not found by it.
    (site / "needs.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin/python"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, built: Built, alone: dict[str, str]) -> Path:
    """The Python of an environment into which the wheel was installed."""
    python = environment(tmp_path_factory.mktemp("venv"))
    install(python, built, alone)
    return python


def install(python: Path, built: Built, alone: dict[str, str]) -> None:
    tell(alone, python, "-m", "pip", "install", "--no-deps", "--ignore-installed", str(built.wheel))


def tell(env: dict[str, str], python: Path, *command: str) -> str:
    """What a command prints, without colours, run outside of the checkout."""
    told = subprocess.run(
        [python, *command], cwd=python.parent, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert told.returncode == 0, told.stdout
    return re.sub(r"\x1b\[\d+m", "", told.stdout)


def contents(wheel: Path) -> dict[str, str]:
    """The digest of each file in a wheel."""
    with zipfile.ZipFile(wheel) as opened:
        return {name: hashlib.sha256(opened.read(name)).hexdigest() for name in opened.namelist()}


def test_the_wheel_has_the_panel_and_nothing_of_its_making(built):
    names = list(contents(built.wheel))
    panel = [name for name in names if "/share/jupyter/labextensions/grid-jupyter/" in name]
    assert {Path(name).name for name in panel} >= {"package.json", "install.json", "plugin.json"}
    assert any("/static/remoteEntry." in name for name in panel)
    folders = {"tests", "node_modules", "benchmarks", "notebooks", "docker", "src"}
    endings = {".map", ".ts", ".tsx", ".tsbuildinfo", ".pyc"}
    strange = [name for name in names if folders & set(Path(name).parts) or Path(name).suffix in endings]
    assert strange == []
    assert not any(Path(name).name.startswith(("test_", "package-lock")) for name in names)
    with zipfile.ZipFile(built.wheel) as opened:
        scripts = [opened.read(name) for name in panel if name.endswith(".js")]
    assert 10_000 < sum(len(gzip.compress(script)) for script in scripts) < LARGEST_BUNDLE


def test_the_source_distribution_makes_the_same_wheel_without_node_js_and_network(built, alone, tmp_path):
    shutil.unpack_archive(built.sdist, tmp_path / "source")
    (source,) = (tmp_path / "source").iterdir()
    assert not (source / "labextension/node_modules").exists()
    command = [*BUILD, "--wheel", "--outdir", tmp_path, source]
    subprocess.run(command, check=True, capture_output=True, env=alone, cwd=tmp_path)
    (again,) = tmp_path.glob("*.whl")
    assert contents(again) == contents(built.wheel)


def test_both_extensions_are_enabled_by_being_installed(installed, alone):
    panel = tell(alone, installed, "-m", "jupyterlab.labextensions", "list")
    assert re.search(rf"{re.escape(str(installed.parents[1]))}.*\n\s+grid-jupyter v\S+ enabled +OK", panel), panel
    server = tell(alone, installed, "-m", "jupyter_server", "extension", "list")
    assert re.search(r"grid_jupyter enabled\s+- Validating grid_jupyter\.\.\.\s+grid_jupyter \S+ OK", server), server


def test_the_panel_opens_from_the_wheel_alone(
    page: Page, installed: Path, alone: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", alone["PATH"])
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.delenv("JUPYTER_PATH", raising=False)
    node = [str(installed), "-m", "grid_jupyter.cli.main", "node"]
    jupyter = Jupyter(tmp_path, node, "jupyterlab", python=installed)
    try:
        page.goto(f"{jupyter.url}lab?token={jupyter.token}&reset")
        settled(page)
        page.click(TAB)
        expect(page.get_by_test_id("grid-node-name")).to_have_text("Bob", timeout=PATIENCE_MS)
    finally:
        jupyter.close()


def test_uninstalling_leaves_nothing_behind(built, alone, tmp_path):
    def left() -> set[Path]:
        return {path for path in tmp_path.rglob("*") if path.is_file() or "grid" in path.name}

    python = environment(tmp_path / "venv")
    before = left()
    install(python, built, alone)
    assert (tmp_path / "venv/bin/jupyter-grid").exists()
    tell(alone, python, "-m", "pip", "uninstall", "--yes", "grid-jupyter")
    assert left() == before

"""A Jupyter server with the extension: inside of the test's process (pytest-jupyter), or as its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_process import FAKE_NODE, Jupyter

pytest_plugins = ["pytest_jupyter.jupyter_server"]


@pytest.fixture
def start_jupyter(tmp_path: Path) -> Iterator[Callable[..., Jupyter]]:
    started = []

    def start(node_command: list[str], **settings: object) -> Jupyter:
        started.append(Jupyter(tmp_path, node_command, **settings))
        return started[-1]

    yield start
    for jupyter in started:
        jupyter.close()


@pytest.fixture
def jp_server_config(tmp_path: Path) -> dict[str, Any]:
    return {
        "ServerApp": {"jpserver_extensions": {"grid_jupyter": True}},
        "GridExtension": {
            "node_command": FAKE_NODE,
            "node_name": "Bob",
            "node_port": 0,
            "state_dir": str(tmp_path / "grid" / "Bob"),
        },
    }

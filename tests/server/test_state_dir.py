"""A Node's state never lies where Jupyter serves files."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from grid_jupyter.server.extension import node_name_for, served_by_jupyter


def server(root: Path, *, allow_hidden: bool = False) -> Any:
    contents = SimpleNamespace(root_dir=str(root), allow_hidden=allow_hidden)
    return SimpleNamespace(root_dir=str(root), contents_manager=contents)


def test_a_directory_outside_of_the_root_is_fine(tmp_path):
    assert served_by_jupyter(tmp_path / "state", server(tmp_path / "notebooks")) == ""


def test_a_neighbour_whose_name_begins_like_the_roots_is_fine(tmp_path):
    assert served_by_jupyter(tmp_path / "notebooks-state", server(tmp_path / "notebooks")) == ""


def test_a_directory_below_the_root_is_refused_with_the_setting_to_change(tmp_path):
    reason = served_by_jupyter(tmp_path / "state" / "Bob", server(tmp_path))
    assert str(tmp_path) in reason
    assert "GridExtension.state_dir" in reason


def test_the_root_itself_is_refused(tmp_path):
    assert served_by_jupyter(tmp_path, server(tmp_path))


def test_a_hidden_directory_below_the_root_is_fine(tmp_path):
    assert served_by_jupyter(tmp_path / ".local" / "share" / "grid_jupyter", server(tmp_path)) == ""


def test_a_hidden_directory_is_refused_where_hidden_files_are_served(tmp_path):
    reason = served_by_jupyter(tmp_path / ".local" / "grid", server(tmp_path, allow_hidden=True))
    assert "allow_hidden" in reason


def test_a_root_below_a_hidden_directory_does_not_hide_what_it_serves(tmp_path):
    root = tmp_path / ".work" / "notebooks"
    assert served_by_jupyter(root / "state", server(root))


def test_a_root_inside_of_the_state_is_refused(tmp_path):
    assert served_by_jupyter(tmp_path / "Bob", server(tmp_path / "Bob" / "blobs"))


def test_a_link_does_not_lead_around_the_rule(tmp_path):
    root = tmp_path / "notebooks"
    (root / "state").mkdir(parents=True)
    (tmp_path / "elsewhere").symlink_to(root / "state")
    assert served_by_jupyter(tmp_path / "elsewhere" / "Bob", server(root))


def test_a_contents_manager_that_keeps_its_files_elsewhere_is_no_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    app = server(tmp_path / "notebooks")
    app.contents_manager.root_dir = "bucket"
    assert served_by_jupyter(tmp_path / "bucket" / "Bob", app) == ""


@pytest.mark.parametrize(
    ("user", "name"),
    [
        ("ana", "ana"),
        ("ana@example.org", "ana-example.org"),
        ("../../etc", "etc"),
        ("-rf", "rf"),
        ("Jürgen Groß", "J-rgen-Gro"),
        ("", "node"),
        ("***", "node"),
        ("x" * 200, "x" * 64),
    ],
)
def test_a_users_name_becomes_a_nodes_name(user, name):
    assert node_name_for(user) == name
    assert node_name_for(name) == name


class TestInsideTheRoot:
    @pytest.fixture
    def jp_server_config(self, jp_server_config: dict[str, Any], jp_root_dir: Path) -> dict[str, Any]:
        jp_server_config["GridExtension"]["state_dir"] = str(jp_root_dir / "state")
        return jp_server_config

    async def test_no_node_is_started_and_the_status_says_why(self, jp_serverapp, jp_fetch, jp_root_dir):
        (extension,) = jp_serverapp.extension_manager.extension_apps["grid_jupyter"]
        await extension._start_jupyter_server_extension(jp_serverapp)
        status = json.loads((await jp_fetch("grid", "api", "status")).body)
        assert status["state"] == "failed"
        assert "GridExtension.state_dir" in status["detail"]
        assert not (jp_root_dir / "state").exists()

"""What can be known of the containers without an engine: their files are well formed and fit together."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
DOCKER = REPOSITORY / "docker"
SCRIPTS = sorted((DOCKER / "hivecell-notebook").glob("*.sh"))
FILES = sorted(DOCKER.glob("compose*.yaml"))


def tool(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a tool of this environment."""
    command = [str(Path(sys.executable).parent / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def services(name: str = "compose.yaml") -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DOCKER / name).read_text())["services"]
    return found


def test_hadolint_has_nothing_to_say_about_the_dockerfile():
    said = tool("hadolint", "--failure-threshold", "info", DOCKER / "hivecell-notebook" / "Dockerfile")
    assert said.returncode == 0, said.stdout


def test_shellcheck_has_nothing_to_say_about_the_scripts():
    said = tool("shellcheck", *SCRIPTS)
    assert said.returncode == 0, said.stdout


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_compose_files_follow_the_published_schema(path: Path):
    said = tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", path)
    assert said.returncode == 0, said.stdout


def test_the_schema_would_notice(tmp_path: Path):
    (tmp_path / "wrong.yaml").write_text("services:\n  a:\n    imaje: x\n")
    assert tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", tmp_path / "wrong.yaml").returncode != 0


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_overrides_name_services_of_the_grid(path: Path):
    assert set(services(path.name)) <= set(services())


def test_volumes_are_declared_and_used_by_those_who_share_them():
    declared = set(yaml.safe_load((DOCKER / "compose.yaml").read_text())["volumes"])
    used = {volume.split(":")[0] for service in services().values() for volume in service["volumes"]}
    assert used == declared


def test_secrets_of_a_node_are_seen_by_it_and_the_network_alone():
    for name in ("alice", "bob", "bill", "james"):
        seen_by = {
            service: volume.split(":")[1:]
            for service, told in services().items()
            for volume in told["volumes"]
            if volume.startswith(f"{name}-secrets:")
        }
        assert seen_by == {"network": [f"/run/members/{name.title()}"], name: ["/run/grid", "ro"]}


def test_no_port_is_open_beyond_this_machine():
    ports = [port for service in services().values() for port in service.get("ports", ())]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_secrets_of_who_builds_go_neither_to_the_build_nor_into_the_repository():
    kept_out = (REPOSITORY / ".dockerignore").read_text().splitlines()
    assert {".git", "docker/.env", "docker/secrets"} <= set(kept_out)
    declared = yaml.safe_load((DOCKER / "compose.secrets.yaml").read_text())["secrets"]
    assert [secret["file"] for secret in declared.values()] == ["${GRID_SECRETS_DIR:-./secrets}/jupyter-token"]
    assert {"/docker/.env", "/docker/secrets/"} <= set((REPOSITORY / ".gitignore").read_text().splitlines())


def test_every_script_of_the_image_is_copied_and_every_step_is_a_script():
    lines = (DOCKER / "hivecell-notebook" / "Dockerfile").read_text().splitlines()
    steps = [line.split()[1] for line in lines if line.startswith("RUN ")]
    assert [Path(step).name for step in steps] == ["wheel.sh", "system.sh", "packages.sh", "check.sh"]
    assert {Path(step).name for step in steps} <= {script.name for script in SCRIPTS}

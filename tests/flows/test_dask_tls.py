"""Workers on a Dask cluster that speaks TLS alone: with certificates of one authority, and with those of another."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from certificates import Authority
from conftest import World
from dask_world import DaskCluster


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"), "ours")


@pytest.fixture(scope="module")
def secure(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskCluster]:
    """A scheduler and one worker."""
    files = ("--tls-ca-file", str(authority.ca), "--tls-cert", str(authority.cert), "--tls-key", str(authority.key))
    made = DaskCluster(tmp_path_factory.mktemp("dask") / "tls", "--protocol", "tls", options=files)
    try:
        made.worker()
        yield made
    finally:
        made.end()


def test_sessions_compute_on_a_cluster_that_speaks_tls(world: World, secure: DaskCluster, authority: Authority):
    assert secure.address.startswith("tls://")
    files = map(str, (authority.ca, authority.cert, authority.key))
    node = world.start(
        "node", "Secure", "--allow-guests", "--workers", secure.address, "--spare-workers", "0", "--workers-tls", *files
    )
    with node.client() as client:
        assert (client.receive(torch.arange(4.0)) * 2).sum().get().item() == 12.0
        assert any(secure.grid_workers().values())
    node.stop()


def started(tmp_path: Path, workers: str, *arguments: object) -> str:
    """What a Node says that does not start."""
    command = [sys.executable, "-m", "grid_jupyter.cli.main", "node", "--name", "Lost", "--state", str(tmp_path / "s")]
    done = subprocess.run(
        [*command, "--port", "0", "--workers", workers, *map(str, arguments)],
        capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_certificate_of_another_authority_is_refused_on_either_side(
    secure: DaskCluster, authority: Authority, tmp_path: Path
):
    other = Authority(tmp_path / "other", "theirs")
    said = started(tmp_path, secure.address, "--workers-tls", other.ca, authority.cert, authority.key)
    assert f"this Node does not trust the certificate of the Dask scheduler at {secure.address}: give all" in said
    said = started(tmp_path, secure.address, "--workers-tls", authority.ca, other.cert, other.key)
    assert (
        f"{secure.address} ended the connection, as where it does not trust the certificate of this Node: give" in said
    )
    assert "--workers-tls CA CERT KEY" in said


def test_certificates_that_are_missing_or_no_use_are_named(secure: DaskCluster, authority: Authority, tmp_path: Path):
    assert "a tls:// scheduler needs certificates: --workers-tls CA CERT KEY" in started(tmp_path, secure.address)
    said = started(tmp_path, secure.address, "--workers-tls", tmp_path / "none", authority.cert, authority.key)
    assert "are no use (No such file or directory)" in said
    said = started(tmp_path, secure.address, "--workers-tls", authority.ca, authority.cert, authority.cert)
    assert "are no use" in said
    plain = secure.address.replace("tls://", "dask://")
    assert "tls://, if it uses TLS?" in started(tmp_path, plain)
    said = started(tmp_path, plain, "--workers-tls", authority.ca, authority.cert, authority.key)
    assert "say --workers tls://HOST:PORT" in said

"""The services of docker/compose.yaml without Docker: a host of its own for each, in Linux namespaces on one bridge.

Each service has its network namespace with one address, its own host name and its own /run with the volumes that the
file gives it, and runs what the image's entry point runs, docker/hivecell-notebook/start.sh. It needs root and
iproute2. What it does not try is the image itself: tests/containers/test_roots.py runs the steps that make it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).parents[2]
IMAGE = REPOSITORY / "docker" / "hivecell-notebook"
START_S = 120.0
"""Time for a service to be healthy."""


class Host:
    """One service: what runs, and where."""

    def __init__(self, grid: ComposeWorld, name: str, service: dict[str, Any], number: int) -> None:
        self.name = name
        self.service = service
        self.address = f"{grid.subnet}.{number}"
        self._grid = grid
        self._space = f"{grid.label}-{name}"
        self._cable = f"{grid.label}{number}"  # the end at the bridge
        self._process: subprocess.Popen[bytes] | None = None
        self._volumes = [volume.split(":")[:2] for volume in service.get("volumes", ())]
        self.log = grid.folder / f"{name}.log"

    def plug_in(self) -> None:
        """Make the host: a namespace, a cable to the bridge, an address, and the names of all."""
        inside = f"{self._cable}i"
        _run("ip", "netns", "add", self._space)
        _run("ip", "link", "add", self._cable, "type", "veth", "peer", "name", inside, "netns", self._space)
        _run("ip", "link", "set", self._cable, "master", self._grid.label, "up")
        _run("ip", "-n", self._space, "addr", "add", f"{self.address}/24", "dev", inside)
        _run("ip", "-n", self._space, "link", "set", inside, "up")
        _run("ip", "-n", self._space, "link", "set", "lo", "up")
        hosts = Path("/etc/netns") / self._space / "hosts"  # ip netns exec puts it in the place of /etc/hosts
        hosts.parent.mkdir(parents=True)
        hosts.write_text(self._grid.hosts())

    def start(self) -> None:
        """Run the service's command as the image would."""
        mounts = ["mount -t tmpfs tmpfs /run", f"hostname {shlex.quote(self.service['hostname'])}"]
        for volume, target in self._volumes:
            folder = self._grid.volume(volume)
            if target.startswith("/run/"):
                mounts += [f"mkdir -p {target}", f"mount --bind {shlex.quote(str(folder))} {target}"]
        command = shlex.join([str(IMAGE / "start.sh"), *self.service["command"]])
        work = self._grid.volume(f"{self.name}-work")
        script = " && ".join([*mounts, f"cd {shlex.quote(str(work))}", f"exec {command}"])
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                ["ip", "netns", "exec", self._space, "unshare", "--mount", "--uts", "bash", "-c", script],
                env=self.environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def environment(self) -> dict[str, str]:
        """What its processes see: as in the image, with this test's Python."""
        kept = {name: os.environ[name] for name in ("LANG", "HOME") if name in os.environ}
        state = next(str(self._grid.volume(volume)) for volume, target in self._volumes if target == "/var/lib/grid")
        own = {name: str(value) for name, value in self.service.get("environment", {}).items()}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        as_root = {"JUPYTER_CONFIG_PATH": str(self._grid.as_root)}
        return {**kept, **as_root, "PATH": path, "PYTHONPATH": str(REPOSITORY), "GRID_JUPYTER_HOME": state, **own}

    def inside(self, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a command on this host, beside its service."""
        with self.open(*command, **more) as process:
            out, err = process.communicate(timeout=START_S)
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def open(self, *command: str, **more: str) -> subprocess.Popen[str]:
        """Begin a command on this host, beside its service."""
        assert self._process is not None
        return subprocess.Popen(
            ["nsenter", "--target", str(self._process.pid), "--net", "--mount", "--uts", *command],
            env={**self.environment(), **more}, cwd=self._grid.folder, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def wait_healthy(self) -> None:
        """Until the image's health check passes."""
        deadline = time.monotonic() + START_S
        while self.inside(str(IMAGE / "health.sh")).returncode != 0:
            assert self._process is not None
            assert self._process.poll() is None, f"{self.name} ended:\n{self.log.read_text()}"
            assert time.monotonic() < deadline, f"{self.name} is not healthy:\n{self.log.read_text()}"
            time.sleep(0.3)

    def cable(self, state: str) -> None:
        """Pull its cable ("down") or plug it in again ("up")."""
        _run("ip", "link", "set", self._cable, state)

    def stop(self) -> int:
        """As `docker stop` does; returns what the service exits with."""
        if self._process is None:
            return 0
        process, self._process = self._process, None
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)  # the image's tini signals the whole group, too
        return process.wait(30)

    def unplug(self) -> None:
        """Take the host away."""
        subprocess.run(["ip", "netns", "delete", self._space], check=False, capture_output=True)
        hosts = Path("/etc/netns") / self._space / "hosts"
        hosts.unlink(missing_ok=True)
        if hosts.parent.exists():
            hosts.parent.rmdir()


class ComposeWorld:
    """All hosts of a Compose file, on one bridge."""

    def __init__(self, folder: Path, compose: Path, subnet: str = "10.77.0") -> None:
        self.folder = folder
        self.subnet = subnet
        self.label = f"g{os.getpid() % 100_000}"
        self.as_root = folder / "jupyter"  # the image's user is another; whoever makes namespaces is root
        self.as_root.mkdir()
        (self.as_root / "jupyter_server_config.json").write_text(json.dumps({"ServerApp": {"allow_root": True}}))
        text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", compose.read_text())  # as where no variable is set
        services = yaml.safe_load(text)["services"]
        self.hosts_by_name = {
            name: Host(self, name, service, number) for number, (name, service) in enumerate(services.items(), 2)
        }

    def __getitem__(self, name: str) -> Host:
        return self.hosts_by_name[name]

    def __enter__(self) -> ComposeWorld:
        _run("ip", "link", "add", self.label, "type", "bridge")
        _run("ip", "link", "set", self.label, "up")
        for host in self.hosts_by_name.values():
            host.plug_in()
        return self

    def __exit__(self, *_: object) -> None:
        for host in reversed(list(self.hosts_by_name.values())):
            host.stop()
        for host in self.hosts_by_name.values():
            host.unplug()
        subprocess.run(["ip", "link", "delete", self.label], check=False)

    def up(self) -> None:
        """Start every service when those that it waits for are healthy."""
        healthy: set[str] = set()
        waiting = dict(self.hosts_by_name)
        while waiting:
            ready = [name for name, host in waiting.items() if set(host.service.get("depends_on", ())) <= healthy]
            assert ready, f"{sorted(waiting)} wait for one another"
            for name in ready:
                waiting[name].start()
            for name in ready:
                waiting.pop(name).wait_healthy()
                healthy.add(name)

    def hosts(self) -> str:
        """/etc/hosts of every host."""
        lines = [f"{host.address} {host.service['hostname']}" for host in self.hosts_by_name.values()]
        return "\n".join(["127.0.0.1 localhost", *lines, ""])

    def volume(self, name: str) -> Path:
        """The folder that stands for a volume."""
        folder = self.folder / "volumes" / name
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return folder


def _run(*command: str) -> None:
    subprocess.run(command, check=True)

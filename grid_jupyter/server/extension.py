"""The Jupyter server's extension: starts this notebook server's Node, keeps it running, tells its owner how it is.

It is thin on purpose: whatever strangers may ask for is answered by the Node, a process with a port of its own.
"""

from __future__ import annotations

import asyncio
import getpass
import importlib.util
import os
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jupyter_core.paths import is_hidden
from jupyter_server.extension.application import ExtensionApp
from traitlets import Bool, Float, Int, List, TraitError, Unicode, default, validate

from grid_jupyter.errors import BadRequest, GridError
from grid_jupyter.server.file_reader import FileReader
from grid_jupyter.server.owner_client import OwnerClient
from grid_jupyter.server.panel_api import GRID_API_RULES
from grid_jupyter.server.panel_doors import supervised
from grid_jupyter.server.public_door import PUBLIC_PATH, PUBLIC_RULES
from grid_jupyter.server.supervisor import GRACE_S, ChildProcess
from grid_jupyter.wire.home import data_home
from grid_jupyter.wire.panel import Reached

NODE_NEEDS = ("alembic", "argon2", "pandas", "prometheus_client", "psutil", "pyarrow", "sqlalchemy", "torch", "tqdm")
"""Modules that `grid-jupyter[node]` brings. They are looked for, not imported."""
STATUS_S = 2.0
"""Time that the Node has to say how it is, in seconds."""
NODE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""What a Node may be called; also the name of its state directory."""


class GridExtension(ExtensionApp):
    """This notebook server is a Node of the grid."""

    name = "grid_jupyter"
    extension_url = "/lab"
    load_other_extensions = True

    enabled = Bool(True, help="Start a Node together with the Jupyter server.").tag(config=True)
    supervise = Bool(True, help="Start the Node again when it dies, with growing pauses.").tag(config=True)
    node_name = Unicode(
        help="Name of the Node in the grid: letters, digits, '.', '_' and '-', at most 64 characters. "
        "By default the user's name."
    ).tag(config=True)
    node_host = Unicode(
        "127.0.0.1",
        help="Address that the Node listens on. Beyond this machine it needs a certificate: see node_arguments.",
    ).tag(config=True)
    node_port = Int(
        3000, min=0, max=65535, help="Port that the Node listens on. If it is taken, the next free one is used."
    ).tag(config=True)
    state_dir = Unicode(
        help="Directory of the Node's database, data and keys; must not be served by Jupyter. "
        "By default nodes/<node_name> in $GRID_JUPYTER_HOME or in the user's data directory."
    ).tag(config=True)
    network_url = Unicode(
        "",
        help="Address of the Network that the Node joins. Empty: none, unless an invite names one. The first time "
        "it needs an invite: an environment variable GRID_JUPYTER_INVITE of the Jupyter server is passed on to it.",
    ).tag(config=True)
    node_arguments = List(
        Unicode(),
        help="Further options of 'jupyter grid node', such as --certfile and --keyfile.",
    ).tag(config=True)
    node_command = List(
        Unicode(),
        help="Command that starts a Node, before its options: for a Node under another interpreter.",
    ).tag(config=True)
    single_port = Bool(
        help="Let others reach the Node through this Jupyter server as well, at <base_url>/grid/public: where only one "
        "port is open. They need credentials of the Node, none of Jupyter's. The environment variable "
        "GRID_JUPYTER_SINGLE_PORT=1 says the same.",
    ).tag(config=True)
    public_url = Unicode(
        help="With single_port: the address at which others reach this Jupyter server, base_url included, such as "
        "https://hub.example.org/user/ana/. The Node tells it to its Network, with grid/public behind it. By default "
        "GRID_JUPYTER_PUBLIC_URL, or what JupyterHub says (JUPYTERHUB_PUBLIC_URL); empty: the Node tells its own port.",
    ).tag(config=True)
    public_connections = Int(
        200, min=1, help="With single_port: connections that strangers may have to this Jupyter server at once."
    ).tag(config=True)
    public_connections_of_one = Int(
        0,
        min=0,
        help="With single_port: how many of these one address may have; 0: half of them. Behind a proxy whose headers "
        "are not trusted (ServerApp.trust_xheaders) all strangers have one address.",
    ).tag(config=True)
    stop_grace_s = Float(GRACE_S, min=0.0, help="Time that the Node has to end before it is killed, in seconds.").tag(
        config=True
    )

    @default("node_name")
    def _node_name_of_user(self) -> str:
        try:
            user = os.environ.get("JUPYTERHUB_USER") or getpass.getuser()
        except (KeyError, OSError):  # a container whose user has no name
            user = ""
        return node_name_for(user)

    @validate("node_name")
    def _valid_node_name(self, proposal: dict[str, Any]) -> str:
        name = str(proposal["value"])
        if not NODE_NAME.fullmatch(name):
            raise TraitError(
                f"{name!r} is not a name for a Node: it has letters, digits, '.', '_' and '-', "
                "a letter or digit first, and at most 64 characters"
            )
        return name

    @default("state_dir")
    def _state_dir_of_node(self) -> str:
        return str(data_home() / "nodes" / self.node_name)

    @default("node_command")
    def _own_node_command(self) -> list[str]:
        return [sys.executable, "-m", "grid_jupyter.cli.main", "node"]

    @default("single_port")
    def _single_port_of_environment(self) -> bool:
        return os.environ.get("GRID_JUPYTER_SINGLE_PORT", "").lower() in ("1", "true", "yes")

    @default("public_url")
    def _public_url_of_environment(self) -> str:
        return os.environ.get("GRID_JUPYTER_PUBLIC_URL") or os.environ.get("JUPYTERHUB_PUBLIC_URL", "")

    @validate("public_url")
    def _valid_public_url(self, proposal: dict[str, Any]) -> str:
        url = str(proposal["value"])
        parts = urlsplit(url)
        if url and (parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment):
            raise TraitError(f"{url!r} is not the address of a Jupyter server, such as https://example.org/user/ana/")
        return url

    def initialize_settings(self) -> None:
        self.passing = 0  # connections through the public door
        self.passing_from = Counter[str]()  # by address
        self.node = ChildProcess(
            Path(self.state_dir).expanduser(), restart=self.supervise, on_line=lambda line: self.log.info("%s", line)
        )
        self.reader = FileReader(node_environment())
        self.refused = ""
        self.switched_off = False
        self._turning = asyncio.Lock()  # held while the Node starts or stops: one after the other

    def initialize_handlers(self) -> None:
        self.handlers.extend(GRID_API_RULES)
        if self.single_port:
            self.handlers.extend(PUBLIC_RULES)

    @property
    def public(self) -> Reached | None:
        """Where others reach the Node through this server: the path, and the whole address if it is known. None where
        they do not."""
        if not self.single_port or self.serverapp is None:
            return None
        address = f"{self.public_url.rstrip('/')}/{PUBLIC_PATH}" if self.public_url else ""
        return {"path": f"{self.serverapp.base_url.rstrip('/')}/{PUBLIC_PATH}", "address": address}

    def current_activity(self) -> int | None:
        """Whoever computes through this server keeps it from ending for want of activity."""
        return self.passing or None

    async def _start_jupyter_server_extension(self, serverapp: Any) -> None:
        """Called by Jupyter inside its running event loop; must not keep it waiting."""
        self.refused = missing_packages() or served_by_jupyter(self.node.state_dir, serverapp)
        if not self.enabled:
            return
        if self.refused:
            self.log.error("No Node is started: %s", self.refused)
            return
        await self.begin()

    async def begin(self) -> None:
        """Start the Node. Raises Conflict if it runs, BadRequest where it must not."""
        if self.refused:
            raise BadRequest(self.refused)
        async with self._turning:
            await self.node.start(self._command(), node_environment())
            self.switched_off = False

    async def end(self) -> None:
        """Stop the Node until it is started again."""
        async with self._turning:
            await self.node.stop(self.stop_grace_s)
            self.switched_off = True

    async def stop_extension(self) -> None:
        self.reader.close()
        async with self._turning:
            await self.node.stop(self.stop_grace_s)

    async def status(self) -> dict[str, Any]:
        """How the Node is: the supervisor's view, and the Node's own while it answers."""
        node = self.node
        answer = supervised(node, self.public, None)
        if node.running is not None:
            try:
                answer["node"] = await OwnerClient(node.running.socket, STATUS_S).status()
            except GridError as error:
                answer["detail"] = str(error)
        elif self.refused:
            answer.update(state="failed", detail=self.refused)
        elif self.switched_off:
            answer.update(detail="It was stopped here, and is closed to everybody until it is started again.")
        elif not self.enabled and node.state == "stopped":
            answer.update(detail="Switched off by GridExtension.enabled; set it to True and restart Jupyter.")
        return answer

    def _command(self) -> list[str]:
        options = {"--name": self.node_name, "--host": self.node_host, "--port": str(self.node_port)}
        options["--state"] = str(self.node.state_dir)
        if self.network_url:
            options["--network"] = self.network_url
        public = self.public
        if public is not None and public["address"]:
            options["--address"] = public["address"]
        pairs = [part for option in options.items() for part in option]
        return [*self.node_command, *pairs, *self.node_arguments, "--supervised"]


def node_name_for(user: str) -> str:
    """The user's name as a Node may bear it: `ana@example.org` becomes `ana-example.org`."""
    found = NODE_NAME.search(re.sub(r"[^A-Za-z0-9._-]+", "-", user))
    return found[0].rstrip("-") if found else "node"


def missing_packages() -> str:
    """What to install before a Node can run here; empty if nothing is missing."""
    missing = [name for name in NODE_NEEDS if importlib.util.find_spec(name) is None]
    return f"{', '.join(missing)} not installed: pip install 'grid-jupyter[node]'" if missing else ""


def node_environment() -> dict[str, str]:
    """This process's environment without Jupyter's tokens: a Node serves strangers, and needs none of them."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "JPY_"))}


def served_by_jupyter(state_dir: Path, serverapp: Any) -> str:
    """Why this directory must not hold a Node's state: Jupyter would serve its files. Empty if it would not.

    A directory that is hidden below Jupyter's root is not served, unless the contents manager allows hidden files.
    """
    contents = serverapp.contents_manager
    place = state_dir.resolve()
    for found in (serverapp.root_dir, getattr(contents, "root_dir", "")):
        if not found or not Path(found).is_absolute():  # a contents manager that keeps its files elsewhere
            continue
        root = Path(found).resolve()
        if root != place and root.is_relative_to(place):
            return f"Jupyter serves {root}, a part of the Node's state directory; start Jupyter in another directory"
        if not place.is_relative_to(root):
            continue
        hidden = is_hidden(str(place), str(root))
        if not hidden or contents.allow_hidden:
            because = "with its hidden files (allow_hidden)" if hidden else "with all that is in it"
            return (
                f"the Node's state directory {place} lies in {root}, which Jupyter serves {because}; "
                "set GridExtension.state_dir to a directory elsewhere"
            )
    return ""

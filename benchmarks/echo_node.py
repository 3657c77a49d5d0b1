"""A Node that also echoes: what a read is compared with is served by the very same process. Used by `remote_ops`.

Run as `python -m benchmarks.echo_node node …`, with the options of `jupyter grid node`.

    GET  /echo   upgraded: every binary message comes back
"""

from __future__ import annotations

import sys

from tornado.websocket import WebSocketHandler

from grid_jupyter.cli.main import main
from grid_jupyter.server.node_door import NODE_RULES
from grid_jupyter.server.node_streams import NodeDoor


class Echo(NodeDoor, WebSocketHandler):
    """GET, upgraded."""

    open_to_all = frozenset({"GET"})

    def open(self, *_args: str, **_kwargs: str) -> None:
        self.set_nodelay(True)

    async def on_message(self, message: str | bytes) -> None:
        await self.write_message(message, binary=True)


if __name__ == "__main__":
    NODE_RULES.append((r"/echo", Echo))
    sys.exit(main())

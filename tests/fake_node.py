"""A process that keeps a Node's contract (lock, running.json, owner door, --supervised) and does nothing else.

The environment says how it misbehaves: FAKE_NODE=fails (says why and ends), stubborn (ignores SIGTERM and the end of
stdin) or silent (never becomes ready).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import threading
from pathlib import Path

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_unix_socket
from tornado.web import Application, HTTPError, RequestHandler

from grid_jupyter.server.running import Running, StateDir, address_of, listen, told_to_end


class Status(RequestHandler):
    def get(self) -> None:
        self.finish(self.settings["status"])


class Events(RequestHandler):
    """One line now, and then nothing until either side ends."""

    async def get(self) -> None:
        self.write(json.dumps({"changed": [], "status": self.settings["status"]}) + "\n")
        await self.flush()
        await asyncio.Event().wait()


class Tokens(RequestHandler):
    def post(self) -> None:
        if json.loads(self.request.body)["username"] == "Nobody":
            self.set_status(404)
            self.finish({"error": "there is no account named 'Nobody'", "code": "not-found"})
        else:
            self.finish({"username": "Bob", "token": "gjt1_a_b"})

    def delete(self) -> None:
        if not self.request.body:
            raise HTTPError(400)
        self.finish({"revoked": 3})


async def main() -> None:
    parser = argparse.ArgumentParser()
    for option in ("--name", "--host", "--port", "--state", "--network", "--invite"):
        parser.add_argument(option, default="")
    parser.add_argument("--supervised", action="store_true")
    options = parser.parse_args()
    behaviour = os.environ.get("FAKE_NODE", "")
    if behaviour == "fails":
        sys.exit("the database is damaged; restore it from a copy")
    if behaviour == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with StateDir(Path(options.state), "node") as state:
        sockets = listen(options.host, int(options.port))
        running = Running(
            role="node",
            name=options.name,
            id="fake",
            address=address_of(sockets, options.host, tls=False),
            socket=str(state.socket_path()),
            pid=os.getpid(),
        )
        status = {
            "role": "node",
            "name": running.name,
            "id": running.id,
            "address": running.address,
            "status": "running",
            "version": running.version,
            "network": {
                "address": options.network or None,
                "state": "joined" if options.network else "none",
                "detail": "",
            },
            "isolation": "<b>bubblewrap</b>, no network",
            "sessions": 2,
            "datasets": 3,
            "storage_bytes": 1_234_567,
            "guests": False,
            "uptime_s": 1.0,
            "environment": sorted(os.environ),
        }
        rules = [("/owner/status", Status), ("/owner/events", Events), ("/owner/tokens", Tokens)]
        server = HTTPServer(Application(rules, status=status, log_function=lambda handler: None))
        server.add_socket(bind_unix_socket(running.socket, mode=0o600))
        if behaviour != "silent":
            state.announce(running)
            print(f"{running.name} is ready", flush=True)
        if behaviour == "stubborn":
            threading.Event().wait()
        async with told_to_end(supervised=options.supervised) as end:
            await end.wait()
        server.stop()


if __name__ == "__main__":
    asyncio.run(main())

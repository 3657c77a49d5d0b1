"""`jupyter grid push`: an owner's words to the devices of a training, and how notices stand."""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from typing import Any

from grid_jupyter.cli.owner import target
from grid_jupyter.errors import BadRequest
from grid_jupyter.server.owner_client import OwnerClient


def push(options: argparse.Namespace) -> int:
    """Push, or say how notices stand. Raises GridError."""
    owner = OwnerClient(target(options).socket)
    if options.model is None:
        if options.title or options.text or options.data or options.worker:
            raise BadRequest("say with --model whose devices are meant")
        told = asyncio.run(owner.forward("GET", "/owner/push"))
        print(json.dumps(told) if options.json else _stands(told), flush=True)
        return 0
    body: dict[str, Any] = {
        "model": options.model, "title": options.title, "text": options.text, "data": dict(options.data),
        "workers": options.worker or None, "version": options.version,
    }  # fmt: skip
    told = asyncio.run(owner.forward("POST", "/owner/push", body))
    print(json.dumps(told) if options.json else f"on its way to {told['devices']} devices", flush=True)
    return 0


def _stands(told: dict[str, Any]) -> str:
    lines = [
        f"tokens: by {told['push']}; listening: {told['listening']}",
        f"notices: {told['waiting']} wait, {told['sent']} sent, {told['given_up']} given up",
    ]
    for one in told["newest_given_up"]:
        at = time.strftime("%Y-%m-%d %H:%M", time.localtime(one["at"]))
        lines.append(f"  {at}  {one['type']}, {one['model']} {one['version']}: {one['reason']}")
    return "\n".join(lines)

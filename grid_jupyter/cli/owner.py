"""`jupyter grid token`, `invite` and `metrics`: what an owner asks of processes that run on this machine."""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from typing import Any

from grid_jupyter.cli.places import places
from grid_jupyter.errors import BadRequest, NotFound
from grid_jupyter.server.owner_client import OwnerClient
from grid_jupyter.server.running import Running, read_running


def token(options: argparse.Namespace) -> int:
    """Issue a token, or revoke all of a user. Raises GridError."""
    running = target(options)
    owner = OwnerClient(running.socket)
    if options.action == "revoke":
        revoked = asyncio.run(owner.revoke(options.username))
        _answer(options, {"revoked": revoked}, f"{revoked} tokens of {options.username} on {running.name} ended")
        return 0
    issued = asyncio.run(_issue(owner, options))
    if options.store:
        from grid_jupyter.client.credentials import Credentials

        Credentials().store(running.address, options.username, issued)
        text = f"stored: {options.username} on {running.name} ({running.address})"
        _answer(options, {"username": options.username, "address": running.address, "stored": True}, text)
    else:
        _answer(options, {"username": options.username, "address": running.address, "token": issued}, issued)
    return 0


async def _issue(owner: OwnerClient, options: argparse.Namespace) -> str:
    if options.role is not None:
        await owner.account(options.username, options.role)
    return await owner.token(options.username, options.expires)


def invite(options: argparse.Namespace) -> int:
    """Make a one-time invite. Raises GridError."""
    running = target(options)
    role = options.role or ("Node" if running.role == "network" else "User")
    link, expires = asyncio.run(OwnerClient(running.socket).invite(role, options.expires, options.username))
    until = time.strftime("%Y-%m-%d %H:%M", time.localtime(expires))
    if role == "Node":
        how = f"Works once, until {until}. On the Node's machine:\n  jupyter grid node --name NAME --invite '{link}'"
    else:
        name = options.username or "NAME"
        client = "PublicGridNetwork" if running.role == "network" else "DataCentricFLClient"
        how = (
            f"Works once, until {until}. In a notebook:\n"
            f"  import grid_jupyter as sy\n"
            f'  sy.{client}("{running.address}").accept_invite("{link}", "{name}")'
        )
    _answer(options, {"invite": link, "expires": expires, "role": role}, f"{link}\n{how}")
    return 0


def metrics(options: argparse.Namespace) -> int:
    """Print the metrics of a process, or change who may scrape them. Raises GridError."""
    running = target(options)
    owner = OwnerClient(running.socket)
    if options.token is None:
        print(asyncio.run(owner.text("/owner/metrics")).decode(), end="", flush=True)
        return 0
    if options.token == "end":  # noqa: S105 - a word of the command line
        ended = asyncio.run(owner.forward("DELETE", "/owner/metrics/token"))["ended"]
        _answer(options, {"ended": ended}, "no token reads them any more" if ended else "there was no token for them")
        return 0
    made = str(asyncio.run(owner.forward("POST", "/owner/metrics/token"))["token"])
    url = f"{running.address}/metrics"
    text = f"{made}\nGET {url} with 'Authorization: Bearer' and this token, which reads nothing else."
    _answer(options, {"token": made, "url": url}, text)
    return 0


def _answer(options: argparse.Namespace, answer: dict[str, Any], text: str) -> None:
    print(json.dumps(answer) if options.json else text, flush=True)


def target(options: argparse.Namespace) -> Running:
    """The process that --node, --network or --state means, or the only one that runs. Raises NotFound, BadRequest."""
    if options.state is not None:
        return read_running(options.state, "node" if (options.state / "node.lock").exists() else "network")
    found = places()
    if options.network:
        wanted = [place for place in found if place.role == "network"]
    elif options.node is not None:
        wanted = [place for place in found if place.role == "node" and place.state_dir.name == options.node]
    else:
        wanted = [place for place in found if place.role == "node"]
    running = [place.running for place in wanted if place.running is not None]
    if len(running) == 1:
        return running[0]
    if running:
        names = ", ".join(one.name for one in running)
        raise BadRequest(f"several Nodes run here ({names}); say which one with --node NAME")
    meant = "Network" if options.network else f"Node {options.node}" if options.node else "Node"
    raise NotFound(f"no {meant} runs here; 'jupyter grid status' shows what does")

"""`jupyter grid token`, `invite` and `status`: what an owner asks of processes that run on this machine."""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from typing import Any, NamedTuple

from grid_jupyter.cli.places import Place, places
from grid_jupyter.errors import BadRequest, GridError, NotFound
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


# ------------------------------------------------------------------ status


class _Row(NamedTuple):
    place: Place
    told: dict[str, Any]  # what the process says of itself; empty if it does not run


def status(options: argparse.Namespace) -> int:
    """Show every Node and Network of the data directory."""
    rows = asyncio.run(_ask_all(places()))
    if options.json:
        shown = [
            {"state_dir": str(row.place.state_dir), "pid": row.place.running.pid if row.place.running else None}
            | (row.told or {"role": row.place.role, "name": row.place.name, "status": row.place.state})
            for row in rows
        ]
        print(json.dumps({"processes": shown}), flush=True)
        return 0
    if not rows:
        print("There is no grid here yet. Start one with 'jupyter grid up', or a Node with 'jupyter grid node'.")
        return 0
    print(_table([_HEADER, *(_line(row) for row in rows)]))
    return 0


async def _ask_all(found: list[Place]) -> list[_Row]:
    async def ask(place: Place) -> _Row:
        if place.running is None:
            return _Row(place, {})
        try:
            return _Row(place, await OwnerClient(place.running.socket).status())
        except GridError as error:
            return _Row(place, {"role": place.role, "name": place.name, "status": "silent", "detail": str(error)})

    return list(await asyncio.gather(*(ask(place) for place in found)))


_HEADER = ("", "NAME", "ADDRESS", "STATE", "NETWORK", "ISOLATION", "DEVICE", "SESSIONS", "DATA SETS")


def _line(row: _Row) -> tuple[str, ...]:
    told, place = row.told, row.place
    if "address" not in told:
        return (place.role, place.name, "-", told.get("status", place.state), "-", "-", "-", "-", "-")
    if place.role == "network":
        nodes = ", ".join(told.get("nodes", ())) or "no Node"
        return (place.role, place.name, told["address"], told["status"], nodes, "-", "-", "-", "-")
    network = told["network"]
    joined = f"{network['state']} {network['address'] or ''}".strip()
    counts = (str(told["sessions"]), str(told["datasets"]))
    return (
        place.role,
        place.name,
        told["address"],
        told["status"],
        joined,
        _isolation(told),
        told["device"],
        *counts,
    )


def _isolation(told: dict[str, Any]) -> str:
    found = str(told["isolation"]).partition(":")[0] or "-"
    if not told.get("isolation_required"):
        return found
    return f"{found}, required" + (": computes nothing" if found.startswith("reduced") else "")


def _table(lines: list[tuple[str, ...]]) -> str:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )

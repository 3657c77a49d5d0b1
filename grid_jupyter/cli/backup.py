"""`jupyter grid backup` and `restore`: one file with all that a Node or Network of this machine keeps, and back."""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from argparse import ArgumentTypeError
from collections.abc import Iterator
from pathlib import Path

import msgspec

from grid_jupyter.cli.places import NETWORK, NODE, places
from grid_jupyter.cli.values import node_name
from grid_jupyter.errors import BadRequest, GridError, NotFound
from grid_jupyter.server import backups
from grid_jupyter.server.running import read_running
from grid_jupyter.store.archive import Manifest
from grid_jupyter.tensors.text import plain
from grid_jupyter.wire.home import data_home


def backup(options: argparse.Namespace) -> int:
    """Write the file. Raises GridError."""
    role, name, state_dir = _kept(options)
    with _system_told():
        made = backups.backup(state_dir, options.file, role=role, name=name)
    told = f"{_what(made)}, {made.nbytes} bytes in {made.files} files, is in {options.file}"
    warning = (
        "It holds what the Node holds: published data, accounts, keys of trainings. Only you can read it (mode 0600); "
        "keep it, and copies of it, as closely as the Node itself."
    )
    print(json.dumps(_told(options, made)) if options.json else f"{told}.\n{warning}", flush=True)
    return 0


def restore(options: argparse.Namespace) -> int:
    """Make a state directory of the file. Raises GridError."""
    state_dir = options.state or _home_of(options)
    with _system_told():
        made = backups.restore(options.file, state_dir, replace=options.replace)
    if options.json:
        print(json.dumps({**_told(options, made), "state_dir": str(state_dir)}), flush=True)
        return 0
    state = f" --state {state_dir}" if options.state else ""
    name = options.name or plain(made.name)
    start = "jupyter grid network" if made.role == NETWORK else f"jupyter grid node --name {name}"
    print(
        f"{_what(made)} is in {state_dir}.\nStart it with the options that it had: {start}{state}\n"
        f"Let not two of them run: the one that this is a copy of must stay away.",
        flush=True,
    )
    return 0


@contextlib.contextmanager
def _system_told() -> Iterator[None]:
    """Raises GridError where the system refuses: a directory of somebody else's, a file system that cannot do it."""
    try:
        yield
    except OSError as error:
        where = f"{error.filename} " if isinstance(error.filename, str | Path) else ""
        raise GridError(f"{where}cannot be used: {error.strerror or type(error).__name__}") from None


def _kept(options: argparse.Namespace) -> tuple[str, str, Path]:
    """Role, name and directory of what is meant, running or not. Raises NotFound, BadRequest."""
    if options.state is not None:
        state_dir = options.state.absolute()
        role = NETWORK if (state_dir / "network.lock").exists() else NODE
        try:
            return role, read_running(state_dir, role).name, state_dir
        except NotFound:
            return role, state_dir.name, state_dir
    found = places()
    if options.network:
        found = [place for place in found if place.role == NETWORK]
    else:
        found = [place for place in found if place.role == NODE and options.node in (None, place.state_dir.name)]
    if len(found) == 1:
        return found[0].role, found[0].name, found[0].state_dir
    if found:
        raise BadRequest(f"several Nodes are here ({', '.join(p.name for p in found)}); say which one with --node NAME")
    raise NotFound("there is nothing of that name here; 'jupyter grid status' shows what there is")


def _home_of(options: argparse.Namespace) -> Path:
    """Where a Node or Network has its state by itself. Raises GridError."""
    manifest = backups.look(options.file)
    if manifest.role == NETWORK:
        return data_home() / "network"
    try:
        return data_home() / "nodes" / node_name(options.name or manifest.name)
    except ArgumentTypeError as error:
        raise GridError(f"the backup is of a Node {plain(manifest.name)}: {error}; say --name NAME") from None


def _what(made: Manifest) -> str:
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(made.created))
    return f"The {made.role.capitalize()} {plain(made.name)} as it was at {at} UTC"


def _told(options: argparse.Namespace, made: Manifest) -> dict[str, object]:
    return {"file": str(options.file), **msgspec.to_builtins(made)}

"""`jupyter grid reset`: forget the local grid."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from grid_jupyter.cli.places import NODE, Place, grid_lock, lab_log, local_file, log_file, places
from grid_jupyter.cli.values import GRID_NODES
from grid_jupyter.errors import Conflict
from grid_jupyter.server.running import is_held
from grid_jupyter.store.object_address import remembered
from grid_jupyter.wire.home import data_home


def reset(options: argparse.Namespace) -> int:
    """Remove the local grid's state. Raises Conflict while any of it runs."""
    home = data_home()
    doomed = [
        place for place in places(home) if options.all or place.role != NODE or place.state_dir.name in GRID_NODES
    ]
    _refuse_if_running(home, doomed)
    addresses = _addresses(home)
    if not doomed and not addresses:
        print("There is nothing to forget.")
        return 0
    print("This removes, for good:")
    for place in doomed:
        kept = size(_bytes(place.state_dir))
        print(f"  {place.role} {place.name}: accounts, data sets and keys ({kept}) in {place.state_dir}")
    if addresses:
        print(f"  your stored credentials for {', '.join(addresses)}")
    if not options.yes and not _agreed():
        print("Nothing was removed.")
        return 1
    elsewhere = [known.url for place in doomed if (known := remembered(place.state_dir)) is not None]
    for place in doomed:
        shutil.rmtree(place.state_dir)
    for url in elsewhere:
        print(f"What is in {url} stays: delete it there.")
    _forget_credentials(home, addresses)
    for file in (local_file(home), log_file(home), lab_log(home)):
        file.unlink(missing_ok=True)
    print("Done.")
    return 0


def _refuse_if_running(home: Path, doomed: list[Place]) -> None:
    running = [place.name for place in doomed if place.state != "stopped"]
    if running or is_held(grid_lock(home)):
        names = f": {', '.join(running)}" if running else ""
        raise Conflict(f"the grid runs{names}; end it first (Ctrl-C where it was started), then reset")


def _agreed() -> bool:
    if not sys.stdin.isatty():
        print("Say --yes to go ahead without being asked.")
        return False
    try:
        return input("Go ahead? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _addresses(home: Path) -> list[str]:
    """The addresses of the last local grid; none where it never ran."""
    try:
        local = json.loads(local_file(home).read_text())
        return [local["network"], *local["nodes"].values()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _forget_credentials(home: Path, addresses: list[str]) -> None:
    from grid_jupyter.client.credentials import Credentials

    credentials = Credentials(home / "credentials.json")
    for address in addresses:
        credentials.forget(address)


def _bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def size(nbytes: float) -> str:
    """A number of bytes for people."""
    for unit in ("B", "kB", "MB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.1f} GB"

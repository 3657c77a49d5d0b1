"""`jupyter grid up`: a whole grid on this machine, with or without JupyterLab, until it is told to end."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from collections.abc import Awaitable, Collection
from typing import TypeVar

from grid_jupyter.cli.lab import LAB_NODE, Lab
from grid_jupyter.cli.local_grid import LocalGrid, to_log, to_stderr
from grid_jupyter.cli.places import grid_lock
from grid_jupyter.errors import BadRequest, Conflict
from grid_jupyter.server.running import told_to_end, try_lock
from grid_jupyter.wire.home import data_home, private_directory

T = TypeVar("T")


class Ended(Exception):
    """The user ended it while it was still starting."""


def up(options: argparse.Namespace) -> int:
    """Run the grid. Raises GridError, BadRequest where its Nodes do not fit together."""
    elsewhere = {*options.elsewhere, *((LAB_NODE,) if options.lab else ())}
    if not elsewhere <= set(options.nodes):
        missing = " and ".join(sorted(elsewhere - set(options.nodes)))
        raise BadRequest(f"{missing} would be started elsewhere but is none of this grid: name it in --nodes, too")
    lock = try_lock(grid_lock(private_directory(data_home())))
    if lock is None:
        raise Conflict("the grid runs already; 'jupyter grid status' shows it, Ctrl-C where it was started ends it")
    try:
        return asyncio.run(_up(options, elsewhere))
    finally:
        os.close(lock)


async def _up(options: argparse.Namespace, elsewhere: Collection[str]) -> int:
    grid = LocalGrid(
        data_home(),
        network_port=options.network_port,
        node_port=options.node_port,
        nodes=options.nodes,
        elsewhere=elsewhere,
        verbose=options.verbose,
        on_line=to_log(data_home()) if options.lab and not options.verbose else to_stderr,
    )
    lab = Lab(grid, port=options.lab_port, verbose=options.verbose)
    async with told_to_end(supervised=False) as end:
        try:
            await unless(end, grid.start_network())
            if options.lab:
                await unless(end, lab.start())
            await unless(end, grid.start_nodes())
            if options.lab:
                await unless(end, lab.ready())
            _say(options, grid, lab)
            return await _watch(end, grid, lab if options.lab else None)
        except Ended:
            return 0
        finally:
            await lab.stop()
            await grid.stop()


async def _watch(end: asyncio.Event, grid: LocalGrid, lab: Lab | None) -> int:
    """Wait for the end, or for JupyterLab's, which its user can shut down in the browser."""
    watching = asyncio.create_task(grid.watch())
    waiting: list[asyncio.Task[object]] = [asyncio.create_task(end.wait()), watching]
    if lab is not None:
        waiting.append(asyncio.create_task(lab.ended()))
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if watching.done():
            watching.result()
        return 0
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def unless(end: asyncio.Event, work: Awaitable[T]) -> T:
    """The result of the work; raises Ended if the process is told to end before there is one."""
    working = asyncio.ensure_future(work)
    ending = asyncio.create_task(end.wait())
    try:
        await asyncio.wait([working, ending], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Ended
        return working.result()
    finally:
        for task in (working, ending):
            task.cancel()
        await asyncio.gather(working, ending, return_exceptions=True)


def _say(options: argparse.Namespace, grid: LocalGrid, lab: Lab) -> None:
    if options.json:
        print(json.dumps({**grid.addresses(), **({"lab": lab.url} if options.lab else {})}), flush=True)
        return
    places = {"Network": grid.network_address, **grid.node_addresses}
    if options.lab:
        ports = ", ".join(f"{name} {address.rpartition(':')[2]}" for name, address in places.items())
        print(f"The grid runs (ports: {ports}). Open JupyterLab:\n\n  {lab.url}\n\nCtrl-C ends all of it.", flush=True)
        return
    width = max(map(len, places))
    first = next(iter(grid.node_addresses))
    listed = "\n".join(f"  {name.ljust(width)}  {address}" for name, address in places.items())
    print(
        f"The grid runs:\n{listed}\n\n"
        f"Each Node is owned by a user of its name, and knows Bob, Ana and Alice; you hold their credentials.\n"
        f"In a notebook:\n\n"
        f"  import grid_jupyter as sy\n"
        f'  {first.lower()} = sy.DataCentricFLClient(sy.local().nodes["{first}"])\n\n'
        f"Ctrl-C ends all of it.",
        flush=True,
    )

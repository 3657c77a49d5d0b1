"""`jupyter grid demo`: a grid that is forgotten afterwards, and the main job done on it by a process of its own."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from pathlib import Path

from grid_jupyter.cli.leash import GRACE_S
from grid_jupyter.cli.local_grid import LocalGrid, to_log, to_stderr
from grid_jupyter.cli.places import log_file
from grid_jupyter.cli.up import Ended, unless
from grid_jupyter.server.running import told_to_end


def demo(options: argparse.Namespace) -> int:
    """Run the demo; returns its exit code. Raises GridError if the grid does not start."""
    with tempfile.TemporaryDirectory(prefix="grid-demo-") as home:  # made with mode 0700
        return asyncio.run(_demo(options, Path(home)))


async def _demo(options: argparse.Namespace, home: Path) -> int:
    on_line = to_stderr if options.verbose else to_log(home)
    grid = LocalGrid(home, network_port=0, node_port=0, verbose=options.verbose, on_line=on_line)
    async with told_to_end(supervised=False) as end:
        try:
            print("Starting a Network and four Nodes …", file=sys.stderr, flush=True)
            await unless(end, grid.start_network())
            await unless(end, grid.start_nodes())
            code = await unless(end, _run(options, home))
            if code and not options.verbose:
                print(log_file(home).read_text(errors="replace"), file=sys.stderr, end="", flush=True)
            return code
        except Ended:
            return 130
        finally:
            await grid.stop()


async def _run(options: argparse.Namespace, home: Path) -> int:
    command = [sys.executable, "-m", "grid_jupyter.client.demo", "--home", str(home)]
    command += ["--json"] if options.json else []
    command += ["--output", str(options.output)] if options.output is not None else []
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "grid_jupyter.cli.leash"),
        *command,
        stdin=asyncio.subprocess.PIPE,
        env={**os.environ, "GRID_JUPYTER_HOME": str(home)},
        start_new_session=True,
    )
    try:
        return await process.wait()
    finally:
        if process.stdin is not None:
            process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), GRACE_S + 5.0)
        except asyncio.TimeoutError:
            process.kill()
            await process.wait()

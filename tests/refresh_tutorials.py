"""Run the tutorials on a grid of their own and store what they show: `make tutorials`.

What differs from run to run for no reason of ours (times, widget state, paths in tracebacks) is left out.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbclient
import nbformat
from notebook_pairs import other_side

WIDGET = "application/vnd.jupyter.widget-view+json"
NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


def cleaned(notebook: Any) -> Any:
    """The notebook without what is only true of this run on this machine."""
    notebook.metadata.pop("widgets", None)
    notebook.metadata.language_info = {"name": "python"}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [one for one in cell.outputs if WIDGET not in one.get("data", {})]
        for output in cell.get("outputs", ()):
            if output.output_type == "error":
                output.traceback = [f"{output.ename}: {output.evalue}"]
    return notebook


async def refresh(path: Path) -> None:
    """Run one notebook and write it with what it shows."""
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3")
    await client.async_execute(cwd=str(path.parent))
    nbformat.write(cleaned(notebook), path)
    print(path.name, flush=True)


async def refresh_all(chosen: list[str]) -> None:
    """Those whose names begin with one of `chosen`, or all; the two sides of a pair at the same time."""
    found = sorted(NOTEBOOKS.glob("*/*.ipynb"))
    paths = [path for path in found if not chosen or path.name.startswith(tuple(chosen))]
    while paths:
        sides = {paths[0], other_side(paths[0]) or paths[0]}
        await asyncio.gather(*map(refresh, sorted(sides)))
        paths = [path for path in paths if path not in sides]


def main(chosen: list[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="grid-tutorials-") as home:
        os.environ["GRID_JUPYTER_HOME"] = home
        command = [sys.executable, "-m", "grid_jupyter.cli.main", "up", "--json"]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as grid:
            try:
                json.loads(grid.stdout.readline() if grid.stdout else "")
                asyncio.run(refresh_all(chosen))
            finally:
                grid.terminate()


if __name__ == "__main__":
    main(sys.argv[1:])

"""Figures of trainings: a notebook shows them, and a thread that makes one leaves those of others alone."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from matplotlib import pyplot

from grid_jupyter.client.watching import curves

POINTS = [(1, {"accuracy": 0.5}), (2, {"accuracy": 0.75})]
KERNEL = """
import nbclient, nbformat
cell = "from grid_jupyter.client.watching import curves; curves('round', [(1, {'loss': 1.0})])"
notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)])
nbclient.NotebookClient(notebook, kernel_name="python3").execute()
print(sorted(notebook.cells[0].outputs[0].data))
"""


def test_a_notebook_shows_a_figure_once_and_as_a_picture() -> None:
    ran = subprocess.run([sys.executable, "-c", KERNEL], capture_output=True, text=True, timeout=120)
    assert ran.stdout.strip() == "['image/png', 'text/plain']", ran.stderr


def test_a_figure_that_a_thread_makes_never_was_pyplots_current_one() -> None:
    with ThreadPoolExecutor(1) as pool:
        theirs = pool.submit(curves, "round", POINTS).result()
    ours = curves("round", POINTS)
    assert (getattr(theirs, "number", None), getattr(ours, "number", None) is None) == (None, False)
    assert pyplot.get_fignums() == []

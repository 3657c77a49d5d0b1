"""Figures of trainings: a notebook shows them, and a thread that makes one leaves those of others alone."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

from matplotlib import pyplot

from grid_jupyter.client.texts import number
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


def test_names_of_metrics_that_others_chose_are_no_formulas_and_all_in_the_legend() -> None:
    names = [r"$\bad$", "_hidden", "a$b$c"]
    figure = curves("epoch", [(1, dict.fromkeys(names, 1.0))], {"$x^": [(1, {r"$\no$": 0.5})]})
    figure.savefig(BytesIO(), format="png")
    told = {text.get_text() for axis in figure.axes for text in axis.get_legend().get_texts()}
    assert told == {r"\$\bad\$", "hidden", r"a\$b\$c", r"\$x^ · \$\no\$"}


def test_a_number_that_no_float_has_is_none_in_a_view() -> None:
    assert [number(one) for one in (10**400, -(10**400), float("nan"), 10**18, 0.5)] == [None, None, None, 10**18, 0.5]

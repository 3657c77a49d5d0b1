"""Publishing from JupyterLab: a file by right-click, a variable of a notebook; what the owner sees and what happens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pandas
import pytest
from jupyter_process import Jupyter
from playwright.sync_api import Locator, Page, expect
from test_panel import PATIENCE_MS, TAB
from test_sections import HOSTILE, Place, panel, place

__all__ = ["panel", "place"]

NOTEBOOK = {
    "cells": [{"cell_type": "code", "source": "import pandas\nages = pandas.DataFrame({'age': [1.0, 2.0, 3.0]})"}],
    "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3"}, "language_info": {"name": "python"}},
    "nbformat": 4,
    "nbformat_minor": 5,
}


KERNEL = "[...window.jupyterapp.shell.widgets('main')].find(one => one.sessionContext).sessionContext.session.kernel"
RESTART = f"async () => {{ await {KERNEL}.restart(); }}"
RUN = f"async code => {{ await {KERNEL}.requestExecute({{code}}).done; }}"
"""In the kernel of the notebook that is open."""


def notebook(cells: list[str]) -> str:
    """A notebook of these cells of code, as its file has it."""
    made = [
        {"id": str(number), "cell_type": "code", "source": cell, "metadata": {}, "outputs": [], "execution_count": None}
        for number, cell in enumerate(cells)
    ]
    return json.dumps({**NOTEBOOK, "cells": made})


def root(jupyter: Jupyter) -> Path:
    """Where the file browser's files lie."""
    return jupyter.home / "root"


def open_notebook(page: Page, path: str) -> Locator:
    """Open a notebook, and wait for its kernel."""
    page.evaluate("path => { window.jupyterapp.commands.execute('docmanager:open', {path}); }", path)
    expect(page.locator("#jp-main-statusbar")).to_contain_text("| Idle", timeout=PATIENCE_MS)
    return page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)")


@pytest.fixture
def table(place: Place) -> Iterator[str]:
    """A CSV file of which every text is hostile."""
    rows = {HOSTILE: [HOSTILE, "x" * 10_000], "age": [31.0, None]}
    pandas.DataFrame(rows).to_csv(root(place.jupyter) / "people.csv", index=False)
    yield "people.csv"
    for info in place.owner.datasets():
        place.owner.unpublish(info)


def test_an_owner_publishes_a_file_by_right_click(panel, page, place, table, artefacts):
    page.evaluate("window.jupyterapp.commands.execute('filebrowser:activate')")
    page.evaluate("window.jupyterapp.commands.execute('filebrowser:refresh')")
    page.locator(".jp-DirListing-item", has_text="people.csv").click(button="right", timeout=PATIENCE_MS)
    page.locator(".lm-Menu-item", has_text="Publish to Grid").click()
    tab = page.get_by_role("region", name="Publish to Grid")
    expect(tab.get_by_test_id("grid-preview-form")).to_contain_text("2 rows, 2 columns", timeout=PATIENCE_MS)
    expect(tab.locator("th").first).to_contain_text(HOSTILE)
    expect(tab.locator("td").first).to_have_text(HOSTILE[:60] + "…")
    expect(tab.locator("td").nth(3)).to_have_text("missing")
    expect(tab.locator("img")).to_have_count(0)
    tab.get_by_label("Name").fill("People")
    tab.get_by_label("Tags", exact=True).fill("#people #ward7")
    tab.get_by_label("Description").fill(HOSTILE)
    tab.get_by_label("Everybody whom this Node lets in").uncheck()
    tab.get_by_label("Who may compute").fill("Ana")
    tab.get_by_label("Random mock rows").fill("5")
    tab.get_by_text("The same in Python").click()
    expect(tab.get_by_test_id("grid-python")).to_contain_text('compute_users=["Ana"]')
    page.screenshot(path=artefacts / "publish-file.png")
    tab.get_by_role("button", name="Publish").click()
    expect(tab).to_contain_text("is on your Node now", timeout=PATIENCE_MS)
    page.screenshot(path=artefacts / "publish-done.png")
    (info,) = place.owner.datasets()
    assert (info.name, info.tags, info.description) == ("People", ("#people", "#ward7"), HOSTILE)
    assert info.mock
    assert [found.shape for found in place.ana.search("#people")] == [(2, 2)]
    page.click(TAB)
    expect(panel.get_by_test_id("grid-dataset")).to_contain_text("People", timeout=PATIENCE_MS)
    expect(panel.get_by_test_id("grid-dataset")).to_contain_text("Bob, Ana")


def test_a_file_that_is_none_says_so_before_anything_is_published(panel, page, place, artefacts):
    (root(place.jupyter) / "torn.npz").write_bytes(b"no archive")
    page.evaluate("window.jupyterapp.commands.execute('filebrowser:activate')")
    page.evaluate("window.jupyterapp.commands.execute('filebrowser:refresh')")
    page.locator(".jp-DirListing-item", has_text="torn.npz").click(button="right", timeout=PATIENCE_MS)
    page.locator(".lm-Menu-item", has_text="Publish to Grid").click()
    tab = page.get_by_role("region", name="Publish to Grid")
    expect(tab.get_by_role("alert")).to_contain_text("damaged", timeout=PATIENCE_MS)
    expect(tab.get_by_role("button", name="Publish")).to_be_disabled()
    page.screenshot(path=artefacts / "publish-torn.png")


def test_an_owner_publishes_a_variable_of_the_kernel_and_the_tab_outlives_its_restart(panel, page, place, artefacts):
    cell = "import pandas\nages = pandas.DataFrame({'age': [1.0, 2.0, 3.0]})\nnote = 'no data'"
    (root(place.jupyter) / "ages.ipynb").write_text(notebook([cell]))
    open_notebook(page, "ages.ipynb")
    page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
    expect(page.locator(".jp-InputPrompt").first).to_have_text("[1]:", timeout=PATIENCE_MS)
    page.evaluate("window.jupyterapp.commands.execute('grid-jupyter:publish-variable')")
    tab = page.get_by_role("region", name="Publish to Grid")
    expect(tab.get_by_label("Variable")).to_have_value("ages", timeout=PATIENCE_MS)
    expect(tab.locator("option")).to_have_count(1)
    expect(tab.get_by_test_id("grid-preview-form")).to_contain_text("3 rows, 1 column")
    injection = '"); import os; os.system("x")#\u202e\n'
    tab.get_by_label("Name").fill(injection)
    tab.get_by_label("Tags", exact=True).fill("#ages")
    expect(tab.get_by_test_id("grid-python")).to_contain_text('name="\\"); import os; os.system(\\"x\\")#\\u202e"')
    page.screenshot(path=artefacts / "publish-variable.png")
    page.evaluate(RESTART)
    tab.get_by_role("button", name="Publish").click()
    expect(tab.get_by_role("alert")).to_contain_text("name 'ages' is not defined", timeout=PATIENCE_MS)
    page.evaluate(RUN, cell)
    tab.get_by_role("button", name="Publish").click()
    expect(tab).to_contain_text("is on your Node now", timeout=PATIENCE_MS)
    (info,) = place.owner.datasets()
    assert (info.name, info.tags) == (injection.strip("\n"), ("#ages",))
    place.owner.unpublish(info)

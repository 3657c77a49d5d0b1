"""The widgets in notebooks, in JupyterLab and in Notebook 7: cells are run, buttons pressed, a real Node asked."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest
import torch
from jupyter_process import REAL_NODE, Jupyter, eventually
from playwright.sync_api import Locator, Page, expect
from test_panel import PATIENCE_MS

import grid_jupyter
from grid_jupyter.client.node import NodeClient

HOSTILE = "<img src=x onerror='window.stolen=1'></script><b data-commandlinker-command='x'>\u202eevil"
IDLE = """() => {
    const shown = [...window.jupyterapp.shell.widgets('main')].find(one => one.sessionContext);
    return shown?.sessionContext.session?.kernel?.status === 'idle';
}"""
NOTEBOOK = "[...window.jupyterapp.shell.widgets('main')].find(one => one.sessionContext)"

PUBLISHING = """
import pandas
import torch
import grid_jupyter as sy
from grid_jupyter import widgets

ward = pandas.DataFrame({"<b>ward": ["north", None] * 5, "age": [31.0, 45.5] * 5})
publishing = widgets.publish()
publishing
"""
TRAINING = """
node = sy.owner()
node.publish(torch.randn(64, 4), name="X", tags=["#curve", "#X"])
node.publish(torch.randint(0, 2, (64,)), name="Y", tags=["#curve", "#Y"])
grid = sy.PrivateGridNetwork(node)
fit = grid.train(
    torch.nn.Linear(4, 2), torch.nn.CrossEntropyLoss(), data=grid.search("#curve", "#X"), rounds=30,
    optimizer=sy.SGD(lr=0.1), live=False, after_round=curves.show,
)
"""

SEVERAL = """
from pathlib import Path
import torch
import grid_jupyter as sy

names = ["ward 7", NAME]
grid = sy.PrivateGridNetwork(*(sy.VirtualWorker(id=name, auto_add=False) for name in names))
for name in names:
    grid.load(grid.workers[name], torch.randn(32, 4), "#moons", "#X")
    grid.load(grid.workers[name], torch.randint(0, 2, (32,)), "#moons", "#Y")
fit = grid.train(
    torch.nn.Linear(4, 2), torch.nn.CrossEntropyLoss(), data=grid.search("#moons", "#X"), rounds=1_000_000,
    optimizer=sy.SGD(lr=0.1), reason="for ward 7", live=False, after_round=lambda fit: Path("enough").exists(),
)
"""

WATCHED = """
import threading, time
from pathlib import Path

def note():
    while True:
        Path("looks").write_text(str(box._thread is not None))
        time.sleep(0.1)

threading.Thread(target=note, daemon=True).start()
"""


@dataclass
class Place:
    """A Jupyter server with its Node, the owner of the Node, and somebody else who may compute there."""

    jupyter: Jupyter
    owner: NodeClient
    ana: NodeClient

    def write(self, name: str, *cells: str) -> None:
        """A notebook of these cells."""
        made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
        nbformat.write(made, Path(self.jupyter.home) / "root" / f"{name}.ipynb")


@pytest.fixture(scope="module")
def place(browser: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    home = tmp_path_factory.mktemp("widgets")
    jupyter = Jupyter(home, REAL_NODE, "jupyterlab")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRID_JUPYTER_HOME", str(home / "grid"))
        try:
            node = eventually(lambda: jupyter.status().get("node"), "the start of the Node")
            command = [
                sys.executable,
                "-m",
                "grid_jupyter.cli.main",
                "token",
                "issue",
                "Ana",
                "--role",
                "User",
                "--store",
            ]
            subprocess.run(command, check=True, capture_output=True)
            owner = grid_jupyter.owner()
            ana = NodeClient(None, node["address"], user="Ana")
            yield Place(jupyter, owner, ana)
            ana.close()
            owner.close()
        finally:
            jupyter.close()


@pytest.fixture
def faults(page: Page) -> Iterator[list[str]]:
    """Nothing of what others wrote may have run, nothing of ours may have failed: views are blobs of JavaScript. What
    the front ends say of themselves, as of a kernel that is restarted, is theirs."""
    found: list[str] = []
    page.on("pageerror", lambda error: found.append(f"{error} {error.stack}"))
    yield found
    assert page.evaluate("window.stolen") is None
    assert [fault for fault in found if "blob:" in fault or "grid-jupyter" in fault] == []


def run(page: Page, place: Place, where: str) -> None:
    """Open a notebook and run its cells, once its kernel is there."""
    page.goto(f"{place.jupyter.url}{where}.ipynb?token={place.jupyter.token}&reset")
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=PATIENCE_MS)
    page.wait_for_function("window.jupyterapp", timeout=PATIENCE_MS)
    page.wait_for_function(IDLE, timeout=PATIENCE_MS)
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); }")  # cells may run long


def end(page: Page) -> None:
    """Shut the notebook's kernel down."""
    page.evaluate(f"{NOTEBOOK}.sessionContext.shutdown()")


def view(page: Page, name: str) -> Locator:
    """The view of this name, once it is live."""
    found = page.get_by_role("region", name=name, exact=True)
    expect(found).to_contain_text("Live", timeout=PATIENCE_MS)
    return found


def test_requests_and_jobs_are_decided_in_a_notebook(page, place, faults, artefacts):
    place.owner.publish(torch.arange(8.0), name="ages of ward 7", tags=["#ages"])
    place.owner.publish(torch.randn(40, 6), name="features", tags=["#features"])
    place.owner.publish(torch.randint(0, 3, (40,)), name="labels", tags=["#labels"])
    data = {"x": place.ana.search("#features")[0], "y": place.ana.search("#labels")[0]}
    place.write("inbox", "from grid_jupyter import widgets\nwidgets.inbox()", "widgets.jobs()")
    run(page, place, "lab/tree/inbox")
    box, jobs = view(page, "Inbox"), view(page, "Jobs")
    expect(box).to_contain_text("Nothing to decide.")
    expect(jobs).to_contain_text("No job yet.")
    page.screenshot(path=artefacts / "widgets-empty.png")
    value = place.ana.search("#ages")[0].mean()
    asked = value.request(HOSTILE)
    job = place.ana.submit(torch.nn.Linear(6, 3), loss=torch.nn.CrossEntropyLoss(), data=data, reason="a first model")
    card = box.locator("[data-request]").filter(has_text="asks for a value")
    expect(card).to_contain_text(HOSTILE.replace("\u202e", "\\u202e"), timeout=PATIENCE_MS)
    expect(card.locator("img, b, script")).to_have_count(0)  # the job beside it has a picture of its plan
    card.get_by_role("button", name="Ask…").focus()
    page.keyboard.press("Enter")
    page.keyboard.type("What is ")
    expect(box.locator("[data-request]").filter(has_text="a first model")).to_be_visible(timeout=PATIENCE_MS)
    page.keyboard.type("it for?")
    card.get_by_role("button", name="Ask", exact=True).click()
    expect(card).to_contain_text("Waits for an answer", timeout=PATIENCE_MS)
    expect(box.get_by_role("status")).to_contain_text(f"node.request({asked.id}).ask('What is it for?')")
    asked.answer("for figure 3")
    expect(card).to_contain_text("for figure 3", timeout=PATIENCE_MS)
    plan = box.locator("[data-request]").filter(has_text="a first model")
    plan.get_by_text("The plan:").click()
    plan.get_by_role("button", name="What is new in it").click()
    expect(plan).to_contain_text("all of it is new", timeout=PATIENCE_MS)
    page.screenshot(path=artefacts / "widgets-inbox.png")
    plan.get_by_role("button", name="Approve").click()
    expect(jobs.locator("[data-job]")).to_contain_text("Done", timeout=PATIENCE_MS)
    assert job.state == "done"
    card.get_by_role("button", name="Approve").click()
    expect(card).to_be_hidden(timeout=PATIENCE_MS)
    assert str(value.get()).endswith("tensor(3.5000)")
    page.evaluate(f"{NOTEBOOK}.sessionContext.restartKernel()")
    expect(box.get_by_role("alert")).to_contain_text("run the cell again", timeout=PATIENCE_MS)
    page.screenshot(path=artefacts / "widgets-restarted.png")
    end(page)


def test_data_is_published_and_found_and_a_training_drawn_in_notebook_7(page, place, faults, artefacts):
    searching = "searching = widgets.browse(sy.owner())\nsearching"
    place.write("data", PUBLISHING, searching, "curves = widgets.rounds()\ncurves", TRAINING)
    run(page, place, "notebooks/data")
    form, found, rounds = view(page, "Publish"), view(page, "Browse"), view(page, "Rounds")
    expect(rounds.locator("figure").first).to_contain_text("round 30", timeout=PATIENCE_MS)
    expect(form.get_by_role("table")).to_contain_text("<b>ward", timeout=PATIENCE_MS)
    form.get_by_label("Tags", exact=True).fill("#ward, #seven")
    form.get_by_label("Who may compute").select_option("some")
    form.get_by_label("Users who may compute").fill("Ana")
    form.get_by_label("Description").fill(HOSTILE)
    form.get_by_role("button", name="Publish").click()
    expect(form.get_by_role("status")).to_contain_text("node.publish(ward, name='ward'", timeout=PATIENCE_MS)
    (info,) = place.owner.search("#ward")
    assert (info.shape, place.ana.search("#ward")[0].columns) == ((10, 2), ["<b>ward", "age"])
    form.scroll_into_view_if_needed()
    page.screenshot(path=artefacts / "widgets-publish.png")
    found.get_by_label("Tags").fill("#ward")
    found.get_by_label("Tags").press("Enter")
    card = found.locator("[data-dataset]").filter(has_text="ward")
    expect(card).to_contain_text(HOSTILE.replace("\u202e", "\\u202e"), timeout=PATIENCE_MS)
    expect(found.locator("img, b, script")).to_have_count(0)
    card.get_by_role("button", name="Take").click()
    expect(found.get_by_role("status")).to_contain_text(f"node.pointer({info.id_at_location})", timeout=PATIENCE_MS)
    rounds.scroll_into_view_if_needed()
    expect(rounds.locator(".u-legend .u-value").first).to_have_text("30")
    page.screenshot(path=artefacts / "widgets-rounds.png")
    with page.expect_download() as saved:
        rounds.get_by_role("button", name="CSV").click()
    header, first, *_ = saved.value.path().read_text().splitlines()
    assert (header, first[:2]) == ('"round","train_loss"', "1,")
    with page.expect_download() as saved:
        rounds.get_by_role("button", name="PNG").click()
    assert saved.value.path().read_bytes().startswith(b"\x89PNG")
    page.get_by_text("A picture, for this file").click(timeout=PATIENCE_MS)
    picture = page.get_by_alt_text("round by round")
    assert eventually(lambda: picture.evaluate("image => image.naturalHeight"), "the picture") > 100
    page.evaluate("window.jupyterapp.commands.execute('grid-jupyter:open')")
    expect(page.get_by_test_id("grid-node-name")).to_have_text("Bob", timeout=PATIENCE_MS)
    page.screenshot(path=artefacts / "widgets-notebook-panel.png")
    end(page)


def test_the_panel_draws_a_training_of_a_notebook_with_each_participant_also_after_a_reload(
    page, place, faults, artefacts
):
    place.write("several", SEVERAL.replace("NAME", repr(HOSTILE)))
    run(page, place, "lab/tree/several")
    page.evaluate("window.jupyterapp.commands.execute('grid-jupyter:open')")
    card = page.get_by_test_id("grid-fit")
    expect(card).to_contain_text("for ward 7", timeout=PATIENCE_MS)
    card.get_by_role("button", name="Curves").click()
    chart = page.get_by_test_id("grid-chart")
    expect(chart).not_to_contain_text("ward 7")
    page.get_by_label("Each participant").check()
    expect(chart).to_contain_text("loss · ward 7")
    expect(chart).to_contain_text("loss · " + HOSTILE.replace("\u202e", "\\u202e"))
    expect(chart.locator("img, b, script")).to_have_count(0)
    seen = chart.text_content()
    expect(chart).not_to_have_text(seen, timeout=PATIENCE_MS)
    page.screenshot(path=artefacts / "curves-participants.png")
    with page.expect_download() as saved:
        page.get_by_role("button", name="CSV").click()
    header, first, *_ = saved.value.path().read_text().splitlines()
    assert header.startswith('"round","train_loss","loss · <img')
    assert header.endswith('"loss · ward 7"')
    assert first.count(",") == 3
    page.goto(f"{place.jupyter.url}lab/tree/several.ipynb?token={place.jupyter.token}&reset")  # while the cell runs
    expect(card).to_contain_text("Running", timeout=PATIENCE_MS)
    (Path(place.jupyter.home) / "root" / "enough").touch()
    expect(card).to_contain_text("Done", timeout=PATIENCE_MS)
    page.reload()
    expect(card).to_contain_text("Done", timeout=PATIENCE_MS)
    page.wait_for_function(IDLE, timeout=PATIENCE_MS)
    page.evaluate(f"{NOTEBOOK}.sessionContext.restartKernel()")
    expect(card).to_contain_text("Done")
    end(page)


def test_a_view_looks_no_more_when_its_page_is_closed_and_goes_on_when_there_is_one_again(page, place, faults):
    place.write("closed", "from grid_jupyter import widgets\nbox = widgets.inbox()\nbox", WATCHED)
    looks = Path(place.jupyter.home) / "root" / "looks"

    def says(text: str) -> bool:
        return looks.exists() and looks.read_text() == text

    run(page, place, "lab/tree/closed")
    view(page, "Inbox")
    eventually(lambda: says("True"), "looking")
    page.evaluate("window.jupyterapp.commands.execute('docmanager:save')")
    page.goto("about:blank")
    eventually(lambda: says("False"), "the end of looking", 45)  # sooner than by its silence alone
    page.goto(f"{place.jupyter.url}lab/tree/closed.ipynb?token={place.jupyter.token}&reset")
    view(page, "Inbox")
    eventually(lambda: says("True"), "looking again")
    end(page)

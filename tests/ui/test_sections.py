"""The panel over a real Node: what an owner sees of data, requests and jobs, and does with them."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pandas
import pytest
import torch
from jupyter_process import REAL_NODE, Jupyter, eventually
from playwright.sync_api import Locator, Page, expect
from test_panel import PATIENCE_MS, TAB, settled

import grid_jupyter
from grid_jupyter.client.node import NodeClient
from grid_jupyter.errors import GetNotPermittedError

HOSTILE = "<img src=x onerror='window.stolen=1'></script><b data-commandlinker-command='x'>\u202eevil"
AXE = Path(__file__).parents[2] / "labextension/node_modules/axe-core/axe.min.js"
"""Looks for what people who see little, or use no mouse, could not use."""
THEME = "theme => { window.jupyterapp.commands.execute('apputils:change-theme', {theme}); }"
SOON_MS = 2_000
"""What the panel promises for a request that came."""


@dataclass
class Place:
    """A Jupyter server with its Node, the owner of the Node, and somebody else who may compute there."""

    jupyter: Jupyter
    owner: NodeClient
    ana: NodeClient


@pytest.fixture(scope="module")
def place(browser: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    home = tmp_path_factory.mktemp("sections")
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
def panel(page: Page, place: Place) -> Iterator[Locator]:
    """The open panel; nothing of what others wrote may have run, nothing may be wrong in the console."""
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(f"{place.jupyter.url}lab?token={place.jupyter.token}&reset")
    settled(page)
    page.click(TAB)
    found = page.get_by_role("region", name="Grid", exact=True)
    expect(page.get_by_test_id("grid-node-name")).to_have_text("Bob", timeout=PATIENCE_MS)
    yield found
    assert page.evaluate("window.stolen") is None
    assert faults == []


def test_an_owner_sees_and_changes_data_sets_and_takes_one_back(panel, page, place, artefacts):
    section = panel.get_by_role("region", name="Datasets")
    expect(section).to_contain_text("publish your first data set")
    page.screenshot(path=artefacts / "panel-empty.png")
    ages = pandas.DataFrame({"ward": ["north", "south"] * 5, "age": [31.0, 45.0] * 5})
    table = place.owner.publish(ages, name=HOSTILE, tags=["#ages", HOSTILE.replace(" ", "")], description=HOSTILE)
    card = section.get_by_test_id("grid-dataset")
    expect(card).to_contain_text(HOSTILE, timeout=SOON_MS)
    expect(card).to_contain_text("10 × 2")
    expect(card).to_contain_text("Only Bob")
    expect(card.locator("img")).to_have_count(0)
    card.get_by_role("button", name="Edit…").click()
    card.get_by_label("Tags", exact=True).fill("#ages, #ward7")
    card.get_by_label("Who may read values").fill("Ana, Bob")
    card.get_by_label("Others may submit jobs").uncheck()
    page.screenshot(path=artefacts / "panel-edit.png")
    card.get_by_role("button", name="Save").click()
    expect(card).to_contain_text("#ward7", timeout=PATIENCE_MS)
    expect(card).to_contain_text("Bob, Ana")
    expect(card).to_contain_text("None of others")
    (info,) = place.owner.datasets()
    assert (info.tags, info.allowed_users, info.jobs.jobs) == (("#ages", "#ward7"), ("Ana", "Bob"), False)
    assert place.ana.search("#ward7")[0].shape == table.shape
    card.get_by_role("button", name="Unpublish…").click()
    dialog = page.locator(".jp-Dialog")
    expect(dialog).to_contain_text(HOSTILE)
    dialog.get_by_role("button", name="Unpublish").click()
    expect(card).to_have_count(0, timeout=PATIENCE_MS)
    assert place.owner.datasets() == []


def test_a_refused_edit_says_why_and_changes_nothing(panel, place):
    place.owner.publish(torch.zeros(3), name="zeros", tags=["#zeros"])
    card = panel.get_by_test_id("grid-dataset").filter(has_text="zeros")
    card.get_by_role("button", name="Edit…").click(timeout=PATIENCE_MS)
    card.get_by_label("Tags", exact=True).fill("#" + "x" * 10_000)
    card.get_by_role("button", name="Save").click()
    expect(card.get_by_role("alert")).to_contain_text("characters", timeout=PATIENCE_MS)
    assert [info.tags for info in place.owner.datasets()] == [("#zeros",)]
    place.owner.unpublish(place.owner.search("#zeros")[0])


def test_a_request_is_announced_and_approved_and_its_value_fetched(panel, page, place, artefacts):
    place.owner.publish(torch.arange(8.0), name="ages", tags=["#ages"])
    value = place.ana.search("#ages")[0].mean()
    with pytest.raises(GetNotPermittedError):
        value.get()
    request = value.request(HOSTILE)
    expect(page.locator(TAB)).to_have_attribute("data-grid-waiting", "1", timeout=SOON_MS)
    expect(page.locator(".jp-toastContainer")).to_contain_text("waits for your decision")
    card = panel.get_by_test_id("grid-request")
    expect(card).to_contain_text(HOSTILE)
    expect(card).to_contain_text("at most 8 of 8 rows")
    card.get_by_text("How it was computed").click()
    expect(card).to_contain_text("mean")
    page.screenshot(path=artefacts / "panel-inbox.png")
    card.get_by_role("button", name="Ask…").click()
    card.get_by_role("textbox").fill("What is it for?")
    card.get_by_role("button", name="Ask", exact=True).click()
    expect(card).to_contain_text("Waits for an answer", timeout=PATIENCE_MS)
    request.answer("for figure 3")
    expect(card).to_contain_text("for figure 3", timeout=SOON_MS)
    card.get_by_role("button", name="Approve").click()
    expect(card).to_have_count(0, timeout=PATIENCE_MS)
    assert str(value.get()).endswith("tensor(3.5000)")
    expect(page.locator(TAB)).not_to_have_attribute("data-grid-waiting", "1")


def test_all_can_be_read_and_named_in_both_themes(panel, page, place, artefacts):
    if not AXE.exists():
        pytest.skip("axe-core is not there: npm ci in labextension, or make panel")
    place.owner.publish(torch.arange(8.0), name="ages", tags=["#ages"], description="of ward 7", allowed_users="Ana")
    place.owner.publish(torch.arange(8.0), name="weights", tags=["#weights"])
    place.ana.search("#weights")[0].mean().request("for figure 3")
    expect(panel.get_by_test_id("grid-request")).to_be_visible(timeout=PATIENCE_MS)
    panel.get_by_text("How it was computed").click()
    panel.get_by_test_id("grid-dataset").filter(has_text="of ward 7").get_by_role("button", name="Edit…").click()
    page.evaluate(AXE.read_text())
    try:
        for theme, light in (("Dark", "false"), ("Light", "true")):
            page.evaluate(
                f"window.jupyterapp.commands.execute('apputils:change-theme', {{theme: 'JupyterLab {theme}'}})"
            )
            expect(page.locator("body")).to_have_attribute("data-jp-theme-light", light, timeout=PATIENCE_MS)
            expect(page.locator("#jupyterlab-splash")).to_have_count(0, timeout=PATIENCE_MS)
            found = page.evaluate("axe.run('.jp-GridPanel')")
            assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in found["violations"]] == []
            assert {"button-name", "color-contrast", "label"} <= {one["id"] for one in found["passes"]}
            page.screenshot(path=artefacts / f"panel-edit-{theme.lower()}.png")
    finally:
        page.evaluate(THEME, "JupyterLab Light")
        for request in place.owner.requests():
            request.deny("no")
        for info in place.owner.datasets():
            place.owner.unpublish(info)


def test_a_job_is_read_denied_and_listed_with_the_reason(panel, page, place, artefacts):
    place.owner.publish(torch.randn(40, 6), name="features", tags=["#features"])
    place.owner.publish(torch.randint(0, 3, (40,)), name="labels", tags=["#labels"])
    data = {"x": place.ana.search("#features")[0], "y": place.ana.search("#labels")[0]}
    model, deeper = torch.nn.Linear(6, 3), torch.nn.Sequential(torch.nn.Linear(6, 3), torch.nn.Tanh())
    before = place.ana.submit(model, loss=torch.nn.CrossEntropyLoss(), data=data, reason="before")
    place.owner.requests(wait_s=5.0)[0].approve()
    assert before.wait(60.0).state == "done"
    job = place.ana.submit(deeper, loss=torch.nn.CrossEntropyLoss(), data=data, epochs=2, reason="a first model")
    card = panel.get_by_test_id("grid-request").filter(has_text="a first model")
    expect(card).to_contain_text("wants to run a job", timeout=SOON_MS)
    card.get_by_text("The plan:").click()
    expect(card).to_contain_text("addmm")
    card.scroll_into_view_if_needed()
    page.screenshot(path=artefacts / "panel-job-request.png")
    expect(page.locator(".jp-GridStatus")).to_contain_text("Bob, 1 request")
    card.get_by_role("tab", name="Graph").click()
    picture = card.get_by_alt_text("The graph of the plan")
    expect(picture).to_be_visible()
    assert picture.evaluate("image => image.naturalHeight") > 100
    picture.scroll_into_view_if_needed()
    page.screenshot(path=artefacts / "panel-job-graph.png")
    card.get_by_role("tab", name="Difference").click()
    expect(card.locator(".jp-mod-new", has_text="tanh")).to_have_count(1, timeout=PATIENCE_MS)
    expect(card).to_contain_text("which was approved")
    page.screenshot(path=artefacts / "panel-job-difference.png")
    card.get_by_role("button", name="Deny…").click()
    card.get_by_role("textbox").fill("not before the board met")
    card.get_by_role("button", name="Deny", exact=True).click()
    expect(card).to_have_count(0, timeout=PATIENCE_MS)
    listed = panel.get_by_test_id("grid-job").filter(has_text="a first model")
    expect(listed).to_contain_text("Denied", timeout=PATIENCE_MS)
    expect(listed).to_contain_text("not before the board met")
    assert job.state == "denied"


DRAWN = """() => [...document.querySelectorAll('.jp-Grid-chart canvas')].reduce((sum, canvas) => {
    const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
    for (let at = 0; at < data.length; at += 4) sum += data[at + 3] > 128 && data[at + 2] - data[at] > 60 ? 1 : 0;
    return sum;
}, 0)"""
"""How many pixels of the charts have the colour of the first line."""


def round_of(chart: Locator) -> int:
    """The last round that a chart tells."""
    found = re.search(r"(?:round|cycle) (\d+):", chart.text_content() or "")
    return int(found[1]) if found else 0


def test_the_curve_of_a_federated_training_grows_while_it_runs(panel, page, place, artefacts):
    place.owner.publish(torch.randn(64, 4), name="X", tags=["#curve", "#X"])
    place.owner.publish(torch.randint(0, 2, (64,)), name="Y", tags=["#curve", "#Y"])
    grid, enough = grid_jupyter.PrivateGridNetwork(place.owner), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        fit = pool.submit(
            grid.train, torch.nn.Linear(4, 2), torch.nn.CrossEntropyLoss(), data=grid.search("#curve", "#X"),
            rounds=100_000, optimizer=grid_jupyter.SGD(lr=0.1), reason="a curve", live=False,
            after_round=lambda fit: enough.is_set(),
        )  # fmt: skip
        try:
            card = panel.get_by_test_id("grid-job").filter(has_text="a curve")
            card.get_by_role("button", name="Curves").click(timeout=PATIENCE_MS)
            chart = page.get_by_test_id("grid-chart").first
            seen = eventually(lambda: round_of(chart), "the first point")
            eventually(lambda: round_of(chart) > seen, "another point")
            eventually(lambda: page.evaluate(DRAWN) > 100, "the line")
            told = chart.locator(".u-value").first
            eventually(
                lambda: int((told.text_content() or "0").replace(",", "")) > seen, "the last round in the legend"
            )
            page.screenshot(path=artefacts / "curves.png")
            with page.expect_download() as saved:
                page.get_by_role("button", name="CSV").click()
            header, first, *_ = saved.value.path().read_text().splitlines()
            assert header.startswith('"round",')
            assert first.startswith("1,")
            with page.expect_download() as saved:
                page.get_by_role("button", name="PNG").click()
            assert saved.value.path().read_bytes().startswith(b"\x89PNG")
        finally:
            enough.set()
        assert fit.result(60).records
    page.evaluate("window.jupyterapp.commands.execute('application:close-all')")


def test_a_training_of_devices_shows_its_cycles_and_what_they_measured(panel, page, place, artefacts):
    model = torch.nn.Linear(4, 2)
    plan = grid_jupyter.training_plan(
        model, torch.nn.functional.cross_entropy, torch.optim.SGD(model.parameters(), 0.1),
        inputs=(torch.zeros(4, 4), torch.zeros(4, dtype=torch.int64)),
    )  # fmt: skip
    host = grid_jupyter.ModelCentricFLClient("bob", place.owner.address.url, user="Bob").connect()
    config = {"name": "ward 7", "version": "1.0", "batch_size": 32, "lr": 0.2}
    host.host(model, {"training_plan": plan}, client_config=config, server_config={"num_cycles": 3, "min_diffs": 1})
    card = panel.get_by_test_id("grid-training")
    expect(card).to_contain_text("ward 7", timeout=SOON_MS)
    expect(card).to_contain_text("1 of 3")
    card.get_by_role("button", name="Curves").click()
    expect(page.get_by_role("region", name="Curves")).to_contain_text("Nothing was measured yet")
    data = {"x": torch.randn(32, 4).numpy(), "y": torch.randint(0, 2, (32,)).numpy()}
    with grid_jupyter.Device(place.owner.address.url) as device:
        device.participate("ward 7", "1.0", data=data)
    charts = page.get_by_test_id("grid-chart")
    eventually(lambda: round_of(charts.first) == 3, "the last cycle")
    expect(card).to_contain_text("Over", timeout=PATIENCE_MS)
    page.get_by_label("Each participant").check()
    expect(charts.last).to_contain_text("device 1")
    expect(charts.last.locator(".u-legend .u-value").first).to_have_text("3")
    assert float(charts.last.locator(".u-legend .u-value").nth(1).text_content()) > 0.0
    page.screenshot(path=artefacts / "curves-cycles.png")


def test_the_node_is_stopped_and_started_from_the_panel(panel, page, place, artefacts):
    place.owner.publish(torch.zeros(3), name="kept", tags=["#kept"])
    expect(panel.get_by_test_id("grid-dataset").filter(has_text="kept")).to_be_visible(timeout=PATIENCE_MS)
    panel.get_by_role("button", name="Stop…").click()
    page.locator(".jp-Dialog").get_by_role("button", name="Stop").click()
    expect(page.get_by_test_id("grid-node-status")).to_have_text("Stopped", timeout=PATIENCE_MS)
    assert place.jupyter.status()["node"] is None
    for name in ("Inbox", "Datasets", "Jobs & cycles"):
        expect(panel.get_by_role("region", name=name)).to_contain_text("The Node does not run.")
    page.screenshot(path=artefacts / "panel-stopped.png")
    page.reload()
    settled(page)
    section = panel.get_by_role("region", name="Datasets")
    expect(section).to_contain_text("The Node does not run.", timeout=PATIENCE_MS)
    section.get_by_role("button", name="Start").click()
    expect(page.get_by_test_id("grid-node-status")).to_have_text("Running", timeout=PATIENCE_MS)
    expect(panel.get_by_test_id("grid-dataset").filter(has_text="kept")).to_be_visible(timeout=PATIENCE_MS)

"""An owner and a scientist, each with a JupyterLab of their own: publish, find, be refused, ask, approve, get."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from jupyter_process import REAL_NODE, Jupyter, eventually
from playwright.sync_api import Browser, Locator, Page, Route, expect
from test_panel import PATIENCE_MS, TAB, settled
from test_publishing import notebook, open_notebook, root
from test_sections import HOSTILE, SOON_MS

CLI = [sys.executable, "-m", "grid_jupyter.cli.main"]
INJECTION = '"); import os; os.system("x")#'


@dataclass
class World:
    """A Network, a Jupyter server whose Node has joined it, and one of a scientist, who has accounts at both."""

    owner: Jupyter
    scientist: Jupyter


def told(command: list[str], home: Path) -> str:
    """What a command prints, for a user whose data lies there."""
    env = {**os.environ, "GRID_JUPYTER_HOME": str(home)}
    return subprocess.run([*CLI, *command], check=True, capture_output=True, text=True, env=env).stdout


@pytest.fixture(scope="module")
def world(browser: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    home = tmp_path_factory.mktemp("two")
    state = home / "network"
    network = subprocess.Popen(
        [*CLI, "network", "--state", str(state), "--port", "0", "--heartbeat", "0.2s", "--json", "--supervised"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert network.stdin is not None
    assert network.stdout is not None
    servers: list[Jupyter] = []
    try:
        address = json.loads(network.stdout.readline())["address"]
        invite = json.loads(told(["invite", "--role", "Node", "--state", str(state), "--json"], home))["invite"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("GRID_JUPYTER_INVITE", invite)
            servers.append(Jupyter(home / "owner", REAL_NODE, "jupyterlab", network_url=address))
        servers.append(Jupyter(home / "scientist", REAL_NODE, "jupyterlab", network_url=address, enabled=False))
        owner, scientist = servers
        eventually(lambda: joined(owner), "joining the Network")
        for place in (state, owner.home / "grid/nodes/Bob"):
            command = ["token", "issue", "Ana", "--role", "User", "--store", "--state", str(place)]
            told(command, scientist.home / "grid")
        yield World(owner, scientist)
    finally:
        for server in servers:
            server.close()
        network.stdin.close()
        network.wait(30)
        network.stdout.close()


def joined(jupyter: Jupyter) -> bool:
    node = jupyter.status().get("node")
    return node is not None and node["network"]["state"] == "joined"


@dataclass
class Seat:
    """Somebody in front of a JupyterLab with its panel open."""

    page: Page
    panel: Locator

    def section(self, name: str) -> Locator:
        return self.panel.get_by_role("region", name=name)


def sit(browser: Browser, jupyter: Jupyter) -> Seat:
    page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
    page.goto(f"{jupyter.url}lab?token={jupyter.token}&reset")
    settled(page)
    page.click(TAB)
    return Seat(page, page.get_by_role("region", name="Grid", exact=True))


@pytest.fixture
def owner(browser: Browser, world: World) -> Iterator[Seat]:
    seat = sit(browser, world.owner)
    yield seat
    seat.page.context.close()


@pytest.fixture
def scientist(browser: Browser, world: World) -> Iterator[Seat]:
    """Nothing of what others wrote may have run."""
    seat = sit(browser, world.scientist)
    yield seat
    assert seat.page.evaluate("window.stolen") is None
    seat.page.context.close()


def run_cell(page: Page) -> None:
    """Run the cell in front, and wait until the kernel has nothing to do."""
    page.evaluate("window.jupyterapp.commands.execute('notebook:run-cell-and-select-next')")
    expect(page.locator("#jp-main-statusbar")).to_contain_text("| Idle", timeout=PATIENCE_MS)
    expect(page.locator(".jp-InputPrompt", has_text="*")).to_have_count(0, timeout=PATIENCE_MS)


def test_from_a_file_of_the_owner_to_a_value_of_the_scientist(owner, scientist, world, artefacts):
    (root(world.owner) / "ages.csv").write_text("age\n31\n45\n50\n")
    owner.page.evaluate("window.jupyterapp.commands.execute('filebrowser:activate')")
    owner.page.evaluate("window.jupyterapp.commands.execute('filebrowser:refresh')")
    owner.page.locator(".jp-DirListing-item", has_text="ages.csv").click(button="right", timeout=PATIENCE_MS)
    owner.page.locator(".lm-Menu-item", has_text="Publish to Grid").click()
    tab = owner.page.get_by_role("region", name="Publish to Grid")
    tab.get_by_label("Tags", exact=True).fill("#ages #ward7")
    tab.get_by_label("Show the tags to everybody").check()
    tab.get_by_label("Everybody whom this Node lets in").uncheck()
    tab.get_by_label("Who may compute").fill("Ana")
    expect(tab.get_by_role("button", name="Publish")).to_be_enabled(timeout=PATIENCE_MS)
    tab.get_by_role("button", name="Publish").click()
    expect(tab).to_contain_text("is on your Node now", timeout=PATIENCE_MS)

    steps = ["", "value = ages['age'].double().mean()\nvalue.get()", "value.request('for figure 3')", "value.get()"]
    (root(world.scientist) / "study.ipynb").write_text(notebook(steps))
    page, section = scientist.page, scientist.section("Network")
    opened = open_notebook(page, "study.ipynb")
    expect(section).to_contain_text("1 Node at", timeout=PATIENCE_MS)
    section.get_by_role("button", name="Search").click()
    expect(section.get_by_test_id("grid-offer")).to_contain_text("3 × 1", timeout=PATIENCE_MS)
    section.scroll_into_view_if_needed()
    page.screenshot(path=artefacts / "network-found.png")
    section.get_by_role("button", name="Insert code").click()
    expect(opened.locator(".jp-Cell").first).to_contain_text("ages = node.pointer(", timeout=PATIENCE_MS)
    run_cell(page)
    run_cell(page)
    expect(opened).to_contain_text("GetNotPermittedError", timeout=PATIENCE_MS)
    run_cell(page)
    expect(owner.page.locator(TAB)).to_have_attribute("data-grid-waiting", "1", timeout=SOON_MS)
    page.screenshot(path=artefacts / "network-refused.png")
    owner.page.click(TAB)
    card = owner.panel.get_by_test_id("grid-request")
    expect(card).to_contain_text("for figure 3")
    card.get_by_role("button", name="Approve").click()
    expect(card).to_have_count(0, timeout=PATIENCE_MS)
    run_cell(page)
    expect(opened.locator(".jp-OutputArea-output").last).to_contain_text("42.", timeout=PATIENCE_MS)
    page.screenshot(path=artefacts / "network-value.png")


def offers(count: int) -> list[dict[str, Any]]:
    """Data sets whose every text is hostile."""
    return [
        {
            "id": number,
            "kind": "table",
            "name": f"{number} {INJECTION}{HOSTILE}",
            "tags": ["#X", INJECTION, HOSTILE, *(["x" * 10_000] if number == 1 else [])],
            "description": HOSTILE * 3,
            "owner": HOSTILE,
            "count": 2,
            "parts": [[HOSTILE, "float32", [100]], ["age", "int64", [100]]],
            "mock": False,
            "jobs": True,
        }
        for number in range(1, count + 1)
    ]


def test_ten_thousand_hostile_results_are_text_and_scroll_smoothly(scientist, world, artefacts):
    def answer(route: Route) -> None:
        node = {
            "name": HOSTILE,
            "address": "http://127.0.0.1:9",
            "user": INJECTION,
            "offers": offers(10_000),
            "error": "",
        }
        gone = {"name": "Gone", "address": "http://127.0.0.1:8", "user": "", "offers": [], "error": "does not answer"}
        route.fulfill(json={"nodes": [gone, node]})

    def view(route: Route) -> None:
        tags = ["#ages", HOSTILE.replace(" ", ""), "x" * 10_000]
        at = "http://127.0.0.1:9"
        route.fulfill(json={"address": at, "users": [INJECTION], "nodes": [HOSTILE], "tags": tags, "error": ""})

    page, section = scientist.page, scientist.section("Network")
    page.route("**/grid/api/network?**", view)
    page.route("**/grid/api/network/search**", answer)
    page.reload()
    settled(page)
    page.click(TAB)
    expect(section).to_contain_text("1 Node at", timeout=PATIENCE_MS)
    field = section.get_by_role("combobox", name="Search by tags")
    field.click()
    expect(section.locator("li[role=option]")).to_have_count(3)
    expect(section.locator("li[role=option]").nth(1)).to_have_text(HOSTILE.replace(" ", ""))
    field.fill("#ag")
    expect(section.get_by_role("option", name="#ages")).to_be_visible()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(field).to_have_value("#ages ")
    page.keyboard.press("Enter")
    expect(section).to_contain_text("10,000 data sets", timeout=PATIENCE_MS)
    found = section.get_by_test_id("grid-offer")
    expect(found.first).to_contain_text(f"1 {INJECTION}{HOSTILE}")
    expect(section).to_contain_text("does not answer")
    assert found.count() < 30
    expect(section.locator("img, script, b")).to_have_count(0)
    page.screenshot(path=artefacts / "network-hostile.png")
    frames = """async step => {
        const list = document.querySelector('.jp-Grid-window');
        const times = [];
        for (let at = 0; at < 60; at += 1) {
            list.scrollTop += step;
            const before = performance.now();
            await new Promise(done => requestAnimationFrame(() => setTimeout(done)));
            times.push(performance.now() - before);
        }
        return times.sort((a, b) => a - b)[30];
    }"""
    still, scrolled = page.evaluate(frames, 0), page.evaluate(frames, 400)
    assert scrolled < 4 * still + 50.0, "median frames in milliseconds: ten thousand rows are not drawn"
    page.locator(".jp-Grid-window").evaluate("list => { list.scrollTop = list.scrollHeight; }")
    expect(found.last).to_contain_text("10000 ")

    (root(world.scientist) / "hostile.ipynb").write_text(notebook([""]))
    opened = open_notebook(page, "hostile.ipynb")
    found.last.get_by_role("button", name="Launch job…").click()
    dialog = page.locator(".jp-Dialog")
    dialog.get_by_label("Reason").fill(INJECTION)
    page.screenshot(path=artefacts / "network-launch.png")
    dialog.get_by_role("button", name="Insert the cell").click()
    expect(opened.locator(".jp-Cell").first).to_contain_text("node.submit(", timeout=PATIENCE_MS)
    code = page.evaluate(
        "window.jupyterapp.shell.currentWidget.content.activeCell.model.sharedModel.source",
    )
    compiled = compile(code, "cell", "exec")
    assert "system" not in compiled.co_names
    assert INJECTION in compiled.co_consts
    found.last.get_by_role("button", name="Launch job…").click()
    dialog.get_by_label("Where").select_option("all")
    dialog.get_by_role("button", name="Insert the cell").click()
    expect(opened.locator(".jp-Cell").nth(1)).to_contain_text("grid.train(", timeout=PATIENCE_MS)
    code = page.evaluate("window.jupyterapp.shell.currentWidget.content.activeCell.model.sharedModel.source")
    compiled = compile(code, "cell", "exec")
    assert {"system", "os"}.isdisjoint(compiled.co_names)
    assert {"#X", "#Y", INJECTION, HOSTILE} <= set(compiled.co_consts)

"""Views in a notebook over a real Node: what they show, what they do, and what a hostile page cannot do."""

from __future__ import annotations

import json
import re
import secrets
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
from conftest import World
from node_world import GridProcess, until

import grid_jupyter
from grid_jupyter import Fit, NodeClient, widgets
from grid_jupyter.client.checkpoints import Record
from grid_jupyter.client.lines import of_measured, of_points
from grid_jupyter.client.metrics import Measured
from grid_jupyter.errors import BadRequest, GetNotPermittedError
from grid_jupyter.widgets import hearing
from grid_jupyter.widgets.view import GRACE_S, MAX_PAGES, View

HOSTILE = "<img src=x onerror='window.stolen=1'></script><b data-commandlinker-command='x'>\u202eevil" + "x" * 10_000


KERNEL = """
import sys, threading
from IPython.core.interactiveshell import InteractiveShell
from grid_jupyter.widgets import hearing

seen = []
shell = InteractiveShell.instance(user_ns={"hearing": hearing, "seen": seen})
for cell in ("hearing.begin(); seen.append(hearing.waits())", "seen.append(hearing.waits())"):
    shell.run_cell(cell)
    seen.append(hearing.waits())
print(*seen)
"""


@pytest.fixture(scope="module")
def node(world: World) -> Iterator[GridProcess]:
    """Flo's Node, on which Gus may compute."""
    made = world.start("node", "Flo")
    made.user("Flo", "Owner")
    made.user("Gus")
    yield made
    made.stop()


@pytest.fixture
def flo(node: GridProcess) -> Iterator[NodeClient]:
    with node.client("Flo") as made:
        yield made


@pytest.fixture
def gus(node: GridProcess) -> Iterator[NodeClient]:
    with node.client("Gus") as made:
        yield made


@pytest.fixture
def views() -> Iterator[list[View]]:
    """Views that are closed afterwards."""
    made: list[View] = []
    yield made
    for view in made:
        view.close()
        assert view.join(10)


def shown(view: View) -> Any:
    """The view as a page has it, once that has been asked."""
    view._repr_mimebundle_()
    return until(lambda: view.state["ready"] and view.state)


def asked(view: View, action: str, **what: Any) -> Any:
    """What a page is told when it asked for something."""
    call = secrets.token_hex(8)
    view._handle_custom_msg({"action": action, "call": call, **what}, [])
    return until(lambda: view.state["done"].get("call") == call and view.state["done"])


def one_request(flo: NodeClient, gus: NodeClient, reason: str) -> int:
    flo.publish(torch.arange(8.0), name=HOSTILE[:100], tags=["#flo"])
    return int(gus.search("#flo")[0].mean().request(reason).id)


def test_the_inbox_shows_a_request_as_text_and_approves_it(flo: NodeClient, gus: NodeClient, views: list[View]) -> None:
    number = one_request(flo, gus, HOSTILE[:1_000])
    box = widgets.inbox(flo)
    views.append(box)
    (card,) = shown(box)["requests"]
    assert card["id"] == number
    assert card["reason"].startswith("<img src=x onerror")  # a text, which the page shows as one
    assert "\u202e" not in json.dumps(card, ensure_ascii=False)
    assert ["Rests on", card["facts"][2][1]] == list(card["facts"][2])
    assert "mean" in card["computed"]
    said = asked(box, "ask", request=number, text="what for?")
    assert said == {**said, "failed": "", "python": f"node.request({number}).ask('what for?')"}
    assert gus.request(number).state == "question"
    gus.request(number).answer("for a figure")
    until(lambda: [one["text"] for one in box.state["requests"][0]["dialogue"]] == ["what for?", "for a figure"])
    asked(box, "approve", request=number)
    assert gus.request(number).state == "approved"
    assert (box.state["requests"], [one["id"] for one in box.state["approved"]]) == ([], [number])
    asked(box, "revoke", request=number)
    assert gus.request(number).state == "revoked"


def test_the_inbox_denies_with_a_reason_and_says_what_the_node_refused(
    flo: NodeClient, gus: NodeClient, views: list[View]
) -> None:
    number = one_request(flo, gus, "a mean")
    box = widgets.inbox(flo)
    views.append(box)
    shown(box)
    assert asked(box, "deny", request=number, text="not before the board met")["failed"] == ""
    assert gus.request(number).state == "denied"
    assert "denied" in asked(box, "approve", request=number)["failed"]
    assert asked(box, "approve", request=10_000)["failed"]
    with pytest.raises(GetNotPermittedError):
        gus.request(number).get()


@pytest.mark.parametrize(
    "message",
    [
        {"action": "close"},
        {"action": "_approve", "request": 1},
        {"action": "approve", "request": "1"},
        {"action": "approve", "request": 1, "user": "Flo"},
        {"action": "approve", "request": 1, "review": 1},
        {"action": "deny", "request": 1, "text": "x" * 10_001},
        {"action": "shown", "page": "x" * 65},
        {"action": ["approve"]},
        {"request": 1},
        "approve",
        None,
        [1],
    ],
)
def test_a_page_can_name_known_actions_alone(
    flo: NodeClient, gus: NodeClient, views: list[View], message: Any, caplog: pytest.LogCaptureFixture
) -> None:
    box = widgets.inbox(flo)
    views.append(box)
    box._handle_custom_msg(message, [])
    assert "does not do" in caplog.text
    assert (box._asked.qsize(), box._pages, box._thread) == (0, {}, None)


def test_a_page_sets_nothing(flo: NodeClient, views: list[View]) -> None:
    box = widgets.inbox(flo)
    views.append(box)
    before = box._esm
    state = {"state": {"requests": []}, "_esm": "export default {render() { alert() }}", "_css": "*{}"}
    box._handle_msg({"content": {"data": {"method": "update", "state": state}}, "buffers": []})
    assert (box._esm, box.state["ready"]) == (before, False)


def test_pages_that_are_never_closed_are_counted_to_a_bound(flo: NodeClient, views: list[View]) -> None:
    box = widgets.inbox(flo)
    views.append(box)
    for number in range(2 * MAX_PAGES):
        box._handle_custom_msg({"action": "shown", "page": str(number)}, [])
    assert len(box._pages) == MAX_PAGES


def test_nobody_looks_when_no_page_is_left_and_somebody_does_when_one_comes_back(
    flo: NodeClient, views: list[View]
) -> None:
    box = widgets.inbox(flo)
    views.append(box)
    assert box._thread is None
    box._handle_custom_msg({"action": "shown", "page": "one"}, [])
    shown(box)
    thread = box._thread
    box._handle_custom_msg({"action": "gone", "page": "one"}, [])
    assert thread is not None
    thread.join(2 * GRACE_S + 10)
    assert not thread.is_alive()
    assert box._thread is None
    box._handle_custom_msg({"action": "shown", "page": "two"}, [])
    until(lambda: box._thread is not None and box._thread.is_alive())


def test_a_page_that_says_nothing_any_more_is_gone_and_one_that_says_that_it_is_there_is_not(
    flo: NodeClient, views: list[View], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(View, "page_s", 2.0)
    box = widgets.inbox(flo)
    views.append(box)
    box._handle_custom_msg({"action": "shown", "page": "silent"}, [])

    def beat() -> bool:
        box._handle_custom_msg({"action": "shown", "page": "looked at"}, [])
        return "silent" not in box._pages

    until(beat)
    assert set(box._pages) == {"looked at"}
    until(lambda: not box._pages)


def test_what_a_page_says_while_a_cell_runs_is_waited_for(
    flo: NodeClient, views: list[View], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = subprocess.run([sys.executable, "-c", KERNEL], capture_output=True, text=True, check=True).stdout
    assert told.split() == ["True", "False", "True", "False"]
    box = widgets.inbox(flo)
    views.append(box)
    monkeypatch.setattr(hearing, "_waits", True)
    box._handle_custom_msg({"action": "shown", "page": "one"}, [])
    box._miss(View.page_s + 1.0)
    assert set(box._pages) == {"one"}
    monkeypatch.setattr(hearing, "_waits", False)
    box._miss(View.page_s + 1.0)
    assert not box._pages


def test_a_view_of_a_node_that_stopped_says_what_to_do_and_goes_on_when_it_is_back(
    small_world: World, views: list[View]
) -> None:
    node = small_world.start("node", "Hal")
    node.user("Hal", "Owner")
    with node.client("Hal") as hal:
        hal.publish(torch.zeros(3), tags=["#hal"])
        box = widgets.inbox(hal)
        views.append(box)
        assert shown(box)["trouble"] == ""
        node.kill()
        until(lambda: "does not answer" in box.state["trouble"])
        assert "goes on by itself" in box.state["remedy"]
        assert "does not answer" in asked(box, "approve", request=1)["failed"]
        node.start()
        until(lambda: not box.state["trouble"])


def test_jobs_are_shown_with_their_figures_and_cancelled(flo: NodeClient, gus: NodeClient, views: list[View]) -> None:
    flo.publish(torch.randn(40, 6), name="features", tags=["#features"])
    flo.publish(torch.randint(0, 3, (40,)), name="labels", tags=["#labels"])
    data = {"x": gus.search("#features")[0], "y": gus.search("#labels")[0]}
    job = gus.submit(torch.nn.Linear(6, 3), loss=torch.nn.CrossEntropyLoss(), data=data, epochs=2, reason=HOSTILE[:900])
    view, mine = widgets.jobs(flo), widgets.jobs(job)
    views += [view, mine]
    (card,) = shown(view)["jobs"]
    assert (card["id"], card["state"], card["over"], card["rows"]) == (job.id, "waiting", False, 40)
    assert card["reason"].startswith("<img src=x onerror")
    assert shown(mine)["jobs"][0]["python"] == "job"
    box = widgets.inbox(flo)
    views.append(box)
    (asks,) = [one for one in shown(box)["requests"] if one["kind"] == "job"]
    assert "addmm" in asks["plan"]
    assert asks["graph"].startswith("<svg")
    asked(box, "compare", request=asks["id"])
    assert "all of it is new" in box.state["requests"][0]["compared"]["text"]
    asked(box, "approve", request=asks["id"])
    until(lambda: mine.state["jobs"][0]["state"] == "done")
    assert {metric for metric, _ in mine.state["jobs"][0]["newest"]} == {"loss", "accuracy"}
    second = gus.submit(torch.nn.Linear(6, 3), loss=torch.nn.CrossEntropyLoss(), data=data, reason="2nd")
    until(lambda: len(view.state["jobs"]) == 2)
    assert asked(view, "cancel", job="0" * 16)["failed"]
    assert asked(view, "cancel", job=second.id)["python"] == f"node.job('{second.id}').cancel()"
    assert second.state == "cancelled"


def test_rounds_of_a_fit_are_drawn_as_they_come_and_numbers_that_are_none_are_left_out(views: list[View]) -> None:
    view = widgets.rounds()
    views.append(view)
    assert shown(view)["rounds"] == []
    fit = Fit(torch.nn.Linear(2, 1))
    for number, loss in enumerate([0.5, float("nan"), float("inf"), 0.25], 1):
        fit.records.append(Record(number, ("Flo",), 0.1, {"<b>loss": loss}, {}, {"Flo": {"loss": 0.5}}))
        view.show(fit)
    until(lambda: view.state["rounds"] == [1, 2, 3, 4])
    assert view.state["lines"] == [
        {"metric": "<b>loss", "by": "", "values": [0.5, None, None, 0.25]},
        {"metric": "loss", "by": "Flo", "values": [0.5, 0.5, 0.5, 0.5]},
    ]
    assert json.loads(json.dumps(view.state, allow_nan=False)) == view.state
    assert view.figure().axes
    with pytest.raises(BadRequest, match="takes the name of a model-centric training"):
        widgets.rounds([fit])


def test_very_many_rounds_are_thinned_out_and_the_last_one_stays() -> None:
    points = [(number, {"loss": 1.0 / number}) for number in range(1, 10_001)]
    found = of_points("round", points)
    assert (len(found["rounds"]) <= 2_001, found["rounds"][-1]) == (True, 10_000)
    rows = [Measured(cycle=1, worker=worker, samples=worker, time=0.0, values={"loss": 1.0}) for worker in range(1, 61)]
    lines = of_measured([*rows, Measured(cycle=2, worker=1, samples=3, time=0.0, values={"loss": 0.5})])["lines"]
    assert [line["values"] for line in lines[:2]] == [[1.0, 0.5], [1.0, 0.5]]
    assert [line["by"] for line in lines[-1:]] == ["device 50"]


def test_rounds_of_a_training_of_devices_are_read_as_its_host_reads_them(
    node: GridProcess, flo: NodeClient, views: list[View]
) -> None:
    model = torch.nn.Linear(4, 2)
    plan = grid_jupyter.training_plan(
        model, torch.nn.functional.cross_entropy, torch.optim.SGD(model.parameters(), 0.1),
        inputs=(torch.zeros(4, 4), torch.zeros(4, dtype=torch.int64)),
    )  # fmt: skip
    host = grid_jupyter.ModelCentricFLClient("flo", node.address, user="Flo").connect()
    config = {"name": "ward 7", "version": "1.0", "batch_size": 32, "lr": 0.2}
    host.host(model, {"training_plan": plan}, client_config=config, server_config={"num_cycles": 2, "min_diffs": 1})
    view, other = widgets.rounds("ward 7", "1.0", host), widgets.rounds("ward 7", client=flo)
    views += [view, other]
    assert (shown(view)["rounds"], shown(view)["over"]) == ([], False)
    data = {"x": torch.randn(32, 4).numpy(), "y": torch.randint(0, 2, (32,)).numpy()}
    with grid_jupyter.Device(node.address) as device:
        device.participate("ward 7", "1.0", data=data)
    until(lambda: view.state["over"])
    assert (view.state["unit"], view.state["rounds"]) == ("cycle", [1, 2])
    assert {line["by"] for line in view.state["lines"]} == {"", "device 1"}
    assert shown(other)["lines"] == view.state["lines"]
    host.host(
        model, {"training_plan": plan}, client_config={**config, "version": "2.0"}, server_config={"min_diffs": 1}
    )
    node.kill()
    with closing(sqlite3.connect(node.state / "grid.db")) as rows, rows:  # as an earlier version might have stored it
        rows.execute("UPDATE training SET server_config = '{\"no_such_key\": 1}' WHERE version = '2.0'")
    node.start()
    stale = widgets.rounds("ward 7", "2.0", host)
    views.append(stale)
    assert shown(stale)["over"]
    assert re.match("failed: .*no_such_key", stale.state["stands"])


def form(**more: Any) -> dict[str, Any]:
    """What a page sends to publish."""
    empty: dict[str, Any] = {"computing": None, "reading": [], "public_tags": False, "jobs": "ask", "automatic": []}
    return {"variable": "", "name": "", "tags": [], "description": "", "mock": 0, **empty, **more}


def test_a_form_publishes_what_the_cell_gave_by_its_rules(
    flo: NodeClient, gus: NodeClient, views: list[View], monkeypatch: pytest.MonkeyPatch
) -> None:
    ages = pandas.DataFrame({"<b>ward": ["north", None], "age": [31.0, 45.0]})
    view = widgets.publish(ages, flo)
    views.append(view)
    assert shown(view)["given"] == "data"
    told: list[Any] = []
    monkeypatch.setattr(view, "send", told.append)
    asked(view, "look", variable="")
    assert told[0]["preview"]["first"] == [["north", "31.0"], [None, "45.0"]]
    assert "31.0" not in json.dumps(view.state)  # the rows are not kept, so they are not saved either
    who = {"computing": ["Gus"], "reading": ["Gus"], "jobs": "automatic", "automatic": ["Gus"]}
    said = asked(view, "publish", **form(name="ages", tags=["#wages"], mock=4, **who))
    assert said["failed"] == ""
    assert said["python"] == (
        "node.publish(data, name='ages', tags=['#wages'], allowed_users=['Gus'], mock=4, compute_users=['Gus'], "
        "jobs=sy.JobPolicy(automatic=['Gus']))"
    )
    (info,) = [one for one in flo.datasets() if one.id == view.pointer.dataset.id]
    assert (info.tags, info.allowed_users, info.jobs.automatic, info.mock) == (("#wages",), ("Gus",), ("Gus",), True)
    assert next(one["id"] for one in view.state["published"]) == info.id
    assert len(gus.search("#wages")[0].get()) == 2
    assert "characters" in asked(view, "publish", **form(tags=["#" + "x" * 9_000]))["failed"]
    assert "name whose jobs" in asked(view, "publish", **form(jobs="automatic"))["failed"]


def test_a_page_publishes_no_file_and_no_variable_that_it_was_not_offered(
    flo: NodeClient, views: list[View], tmp_path: Path
) -> None:
    (tmp_path / "secret.csv").write_text("a\n1\n")
    view = widgets.publish(node=flo)
    views.append(view)
    assert shown(view)["variables"] == []
    before = len(flo.datasets())
    for variable in (str(tmp_path / "secret.csv"), "__builtins__", "view", "os.environ"):
        assert "no such variable" in asked(view, "look", variable=variable)["failed"]
        assert "no such variable" in asked(view, "publish", **form(variable=variable))["failed"]
    assert len(flo.datasets()) == before
    missing = widgets.publish(tmp_path / "none.csv", flo)
    views.append(missing)
    shown(missing)
    assert "cannot be read" in asked(missing, "look", variable="")["failed"]


def test_browsing_finds_by_tags_and_takes_a_pointer(flo: NodeClient, gus: NodeClient, views: list[View]) -> None:
    flo.publish(torch.zeros(3, 4), name=HOSTILE[:100], tags=["#browse", "#<b>"], description=HOSTILE[:3_000])
    view = widgets.browse(gus)
    views.append(view)
    assert "#browse" in shown(view)["tags"]
    assert asked(view, "search", tags=["#browse"])["python"] == "node.search('#browse')"
    (found,) = view.state["found"]
    assert (found["node"], found["shape"], found["tags"]) == ("Flo", "3 × 4", ["#browse", "#<b>"])
    assert (len(found["description"]) < 2_100, "\u202e" in found["name"]) == (True, False)
    assert "user='Gus'" in found["code"]
    assert asked(view, "take", node="Flo", dataset=found["id"])["python"] == f"node.pointer({found['id']})"
    assert view.pointer.shape == (3, 4)
    assert "not among" in asked(view, "take", node="Flo", dataset=1)["failed"]
    asked(view, "search", tags=["#browse", "#nothing"])
    assert view.state["found"] == []


def test_jobs_of_something_else_are_refused() -> None:
    with pytest.raises(BadRequest, match="a Job, or the GridJobs"):
        widgets.jobs("Flo")
    with pytest.raises(BadRequest, match="a PublicGridNetwork"):
        widgets.browse("Flo")


def test_importing_the_package_and_its_widgets_loads_neither_anywidget_nor_torch() -> None:
    code = "import sys, grid_jupyter as sy; sy.widgets.inbox; print({'anywidget', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


def test_without_anywidget_the_error_says_what_to_install() -> None:
    code = """
import sys; sys.modules["anywidget"] = None
import grid_jupyter as sy
for view in sy.widgets.__all__:
    try: getattr(sy.widgets, view)()
    except sy.DependencyError as error: print(error)
"""
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.splitlines()
    assert len(printed) == len(widgets.__all__)
    assert all("pip install 'grid-jupyter[lab]'" in one for one in printed)

"""Publishing a file from the panel: what its owner is shown, what the Node gets, and which files are none of it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy
import pandas
import pytest
from jupyter_process import REAL_NODE
from jupyter_server.serverapp import ServerApp
from test_panel_api import running
from tornado.httpclient import HTTPClientError

HOSTILE = '<img src=x onerror=alert(1)>"); import os #\u202e'


@pytest.fixture
def jp_server_config(jp_server_config: dict[str, Any]) -> dict[str, Any]:
    jp_server_config["GridExtension"]["node_command"] = REAL_NODE
    return jp_server_config


@pytest.fixture
def people(jp_root_dir: Path) -> pandas.DataFrame:
    frame = pandas.DataFrame({"name": ["Ana", HOSTILE, "x" * 500], "age": [31.0, None, 45.0]})
    frame.to_csv(jp_root_dir / "people.csv", index=False)
    frame.to_parquet(jp_root_dir / "people.parquet")
    (jp_root_dir / "sub").mkdir()
    numpy.savez(jp_root_dir / "sub" / "arrays.npz", x=numpy.zeros((3, 4), "float32"), y=numpy.arange(3))
    return frame


async def asked(jp_fetch: Any, route: str, **body: Any) -> Any:
    answer = await jp_fetch("grid", "api", route, method="POST", body=json.dumps(body), request_timeout=90)
    return json.loads(answer.body)


async def refused(jp_fetch: Any, route: str, **body: Any) -> tuple[int, str]:
    with pytest.raises(HTTPClientError) as error:
        await asked(jp_fetch, route, **body)
    return error.value.code, json.loads(error.value.response.body)["message"]


async def test_an_owner_sees_form_and_first_rows_of_a_file(people, jp_fetch):
    csv = await asked(jp_fetch, "preview", path="people.csv")
    assert (csv["kind"], csv["rows"], csv["count"]) == ("table", 3, 2)
    assert [part[0] for part in csv["parts"]] == ["name", "age"]
    assert csv["first"] == [["Ana", "31.0"], [HOSTILE, None], ["x" * 60 + "…", "45.0"]]
    parquet = await asked(jp_fetch, "preview", path="/people.parquet")
    assert parquet["first"] == csv["first"]
    arrays = await asked(jp_fetch, "preview", path="sub/arrays.npz")
    assert arrays["parts"] == [["x", "float32", "3 × 4"], ["y", "int64", "3"]]


async def test_of_a_long_file_only_the_first_rows_are_read(jp_root_dir, jp_fetch):
    pandas.DataFrame({"n": range(5_000)}).to_csv(jp_root_dir / "long.csv", index=False)
    told = await asked(jp_fetch, "preview", path="long.csv")
    assert (told["rows"], len(told["first"])) == (None, 12)


async def test_a_published_file_is_the_data_set_that_was_said(people, jp_serverapp: ServerApp, jp_fetch):
    await running(jp_serverapp)
    jobs = {"jobs": True, "values": False, "automatic": ["Ana"]}
    said = {"name": HOSTILE, "tags": ["#people", HOSTILE], "description": "rows", "allowed_users": ["Ana"]}
    more = {"compute_users": ["Ana", "Eve"], "public_tags": True, "jobs": jobs, "mock": 5}
    made = await asked(jp_fetch, "publish", path="people.csv", publish={**said, **more})
    assert made["info"]["owner"] == "Bob"
    assert {name: made["info"][name] for name in ("name", "tags", "description")} == {
        name: said[name] for name in ("name", "tags", "description")
    }
    assert (made["allowed_users"], made["compute_users"], made["public_tags"]) == (["Ana"], ["Ana", "Eve"], True)
    assert made["info"]["jobs"]["automatic"] == ["Ana"]
    assert made["info"]["mock"] is True
    (listed,) = json.loads((await jp_fetch("grid", "api", "datasets")).body)["datasets"]
    assert listed == made
    assert [column["name"] for column in listed["info"]["columns"]] == ["name", "age"]


async def test_what_lies_elsewhere_is_no_file_of_the_panel(people, jp_root_dir, tmp_path, jp_fetch):
    secret = tmp_path / "secret.csv"
    secret.write_text("a\n1\n")
    (jp_root_dir / "link.csv").symlink_to(secret)
    (jp_root_dir / "inside.csv").symlink_to(jp_root_dir / "people.csv")
    (jp_root_dir / "away").symlink_to(tmp_path)
    (jp_root_dir / ".hidden.csv").write_text("a\n1\n")
    (jp_root_dir / "loop.csv").symlink_to(jp_root_dir / "loop.csv")
    os.mkfifo(jp_root_dir / "pipe.csv")
    for path, status in [
        ("../secret.csv", 400),
        ("sub/../../secret.csv", 400),
        ("people.csv\0", 400),
        ("", 400),
        ("sub", 400),
        ("pipe.csv", 400),
        (str(secret), 404),
        ("nothing.csv", 404),
        (".hidden.csv", 404),
        ("loop.csv", 404),
        ("link.csv", 403),
        ("away/secret.csv", 403),
    ]:
        for route, more in [("preview", {}), ("publish", {"publish": {}})]:
            code, said = await refused(jp_fetch, route, path=path, **more)
            if code == 503:  # no Node runs: it did not come to that for any other
                raise AssertionError(path)
            assert (path, code) == (path, status)
            assert str(tmp_path) not in said
    assert (await asked(jp_fetch, "preview", path="inside.csv"))["rows"] == 3


async def test_what_cannot_be_published_is_refused_with_the_reason(people, jp_root_dir, jp_serverapp, jp_fetch):
    await running(jp_serverapp)
    (jp_root_dir / "note.txt").write_text("hello")
    (jp_root_dir / "torn.npz").write_bytes(b"PK not an archive")
    (jp_root_dir / "empty.csv").write_text("")
    for path, text in [("note.txt", "cannot be published"), ("torn.npz", "damaged"), ("empty.csv", "empty")]:
        for route, more in [("preview", {}), ("publish", {"publish": {}})]:
            code, said = await refused(jp_fetch, route, path=path, **more)
            assert (code, text in said, "Traceback" in said) == (400, True, False)
    code, said = await refused(jp_fetch, "publish", path="people.csv", publish={"tags": ["x" * 300]})
    assert (code, "256" in said) == (413, True)
    for body in ({"path": "people.csv", "publish": {"owner": "Eve"}}, {"publish": {}}, {"path": 1, "publish": {}}):
        assert (await refused(jp_fetch, "publish", **body))[0] == 400
    assert json.loads((await jp_fetch("grid", "api", "datasets")).body)["datasets"] == []


async def test_without_a_node_publishing_says_so(people, jp_fetch):
    code, said = await refused(jp_fetch, "publish", path="people.csv", publish={})
    assert (code, "does not run" in said) == (503, True)

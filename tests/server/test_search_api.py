"""What the panel learns of a Network: by whom it may search, and why it finds nothing."""

from __future__ import annotations

import json

import pytest
from tornado.httpclient import HTTPClientError

from grid_jupyter.client.credentials import Credentials


async def test_without_a_network_there_is_none_and_no_search(jp_fetch):
    view = json.loads((await jp_fetch("grid", "api", "network")).body)
    assert (view["address"], view["error"]) == ("", "")
    with pytest.raises(HTTPClientError) as refused:
        await jp_fetch("grid", "api", "network", "search", method="POST", body="{}")
    assert (refused.value.code, json.loads(refused.value.response.body)["code"]) == (404, "not-found")


async def test_a_network_that_does_not_answer_is_told_with_its_address(jp_fetch):
    address = "http://127.0.0.1:9"
    Credentials().store(address, "Ana", "gjt1_a_b")
    view = json.loads((await jp_fetch("grid", "api", "network", params={"network": address})).body)
    assert view["address"] == address
    assert "does not answer" in view["error"]
    body = json.dumps({"network": address, "user": "Ana", "tags": ["#x"]})
    with pytest.raises(HTTPClientError) as refused:
        await jp_fetch("grid", "api", "network", "search", method="POST", body=body)
    assert refused.value.code == 503
    assert b"gjt1" not in refused.value.response.body


async def test_a_search_takes_tags_and_nothing_else(jp_fetch):
    for body in ('{"tags": "x"}', '{"tags": [1]}', '{"hosts": []}', "[]", "{"):
        with pytest.raises(HTTPClientError) as refused:
            await jp_fetch("grid", "api", "network", "search", method="POST", body=body)
        assert refused.value.code == 400

"""Models that are fetched: who trains or reads one has the bytes that the Node told of, or an error that says so."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy
import pytest
from safetensors.numpy import save

from grid_jupyter import ModelCentricFLClient
from grid_jupyter.client.training_line import TrainingLine
from grid_jupyter.errors import ResponseSignatureError
from grid_jupyter.link.http import Address

SMALL, LARGE = (save({"w": numpy.ones(length, numpy.float32)}) for length in (3, 1 << 20))


class Changing(ThreadingHTTPServer):
    """A way to a Node on which one answer after the other is the model, or something else."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.model, self.answers = b"", list[bytes]()
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Changing

    def do_GET(self) -> None:
        data = self.server.answers.pop(0)
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("X-Grid-Sha256", hashlib.sha256(self.server.model).hexdigest())
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *told: object) -> None:
        """Nothing."""


@pytest.fixture
def way() -> Iterator[Changing]:
    made = Changing()
    serving = threading.Thread(target=made.serve_forever)
    serving.start()
    yield made
    made.shutdown()
    serving.join()
    made.server_close()


def changed(model: bytes) -> bytes:
    return model[:-1] + b"\1"


def fetched(way: Changing, by: str) -> bytes:
    if by == "client":
        arrays = ModelCentricFLClient("Ann", way.url.removeprefix("http://")).retrieve("m")
        return save(arrays)
    line = TrainingLine(Address(way.url), 10, reuses=True)
    try:
        return bytes(line.get_model("w", "k", 1, hashlib.sha256(way.model).hexdigest()))
    finally:
        line.close()


@pytest.mark.parametrize("by", ["device", "client"])
@pytest.mark.parametrize("model", [SMALL, LARGE], ids=["small", "large"])
def test_a_model_that_comes_changed_is_fetched_again(way: Changing, model: bytes, by: str):
    way.model, way.answers = model, [changed(model), model]
    assert fetched(way, by) == model
    assert not way.answers


@pytest.mark.parametrize("by", ["device", "client"])
@pytest.mark.parametrize("model", [SMALL, LARGE], ids=["small", "large"])
def test_one_that_is_another_each_time_is_an_error_that_says_so(way: Changing, model: bytes, by: str):
    way.model, way.answers = model, [changed(model)] * 9
    with pytest.raises(ResponseSignatureError, match=f"comes from {way.url} is not the one that it told of"):
        fetched(way, by)
    assert len(way.answers) == 6


def test_a_model_that_came_with_its_place_is_checked_too(way: Changing):
    way.model, way.answers = SMALL, [SMALL]
    line = TrainingLine(Address(way.url), 10)
    line._small = "k", changed(SMALL)
    assert line.get_model("w", "k", 1, hashlib.sha256(SMALL).hexdigest()) == SMALL
    line.close()

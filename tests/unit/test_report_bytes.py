"""Reports as JSON with the diff in base64: read a piece at a time, to the same bytes."""

from __future__ import annotations

import base64
import json
import random
import threading
import time
from pathlib import Path

import pytest

from grid_jupyter.errors import BadRequest, InvalidDataError
from grid_jupyter.server.report_bytes import PIECE, of_text, parted
from grid_jupyter.store.blobs import BlobStore


def body_of(text: str, **more: object) -> bytes:
    return json.dumps({"worker_id": "w", "request_key": "k", "diff": text, **more}).encode()


def read(folder: Path, body: bytes | bytearray) -> bytes:
    upload = of_text(BlobStore(folder).begin(), parted(body)[1])
    data = upload.path.read_bytes() if upload.size else b""
    upload.abort()
    return data


@pytest.mark.parametrize("count", [0, 1, 2, 3, PIECE * 3 // 4 - 1, PIECE * 3 // 4, PIECE * 3 // 4 + 1, 2 * PIECE])
def test_a_diff_comes_through_whatever_its_length_and_however_its_json_is_written(tmp_path: Path, count: int):
    data = random.Random(count).randbytes(count)  # noqa: S311
    text = base64.b64encode(data).decode()
    lines = base64.encodebytes(data).decode()
    written = body_of(text)
    for body in (
        written,
        bytearray(written),
        written.replace(b"/", b"\\/"),
        written.replace(b"=", b"\\u003d").replace(b"/", b"\\u002F"),
        body_of(lines),
        body_of(lines.replace("\n", "\r\n")),
        json.dumps({"diff": text, "worker_id": 'a "diff":"b', "request_key": "k"}).encode(),
    ):
        assert read(tmp_path, body) == data


def test_what_stands_beside_the_diff_is_read_too():
    report, text = parted(body_of("AAAA", train_num_samples=7, metrics={"diff": 0.5}))
    assert (report.worker_id, report.request_key, report.train_num_samples, report.diff) == ("w", "k", 7, "")
    assert (bytes(report.metrics), bytes(text)) == (b'{"diff": 0.5}', b"AAAA")


@pytest.mark.parametrize(
    "text",
    ["A", "AAA", "AA=", "AA==AA==", "AAAA=AAA", "A A A", "ÄAAA", "AA\\AA", 'A"', "A" * PIECE + "*", "A" * PIECE + "=",
     "AA==" * (PIECE // 4) + "AAAA"],
    ids=range(12),
)  # fmt: skip
def test_what_is_no_base64_is_refused_and_leaves_nothing(tmp_path: Path, text: str):
    with pytest.raises((InvalidDataError, BadRequest)):
        read(tmp_path, body_of(text))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"worker_id":"w","request_key":"k"}', "missing required field `diff`"),
        (b'{"worker_id":"w","request_key":"k","metrics":{"diff":"AAAA"}}', "missing required field `diff`"),
        (b'{"worker_id":"w","request_key":"k","metrics":{"diff":"AAAA"},"diff":"AAAA"}', "one 'diff'"),
        (b'{"worker_id":"w","request_key":"k","diff":"AAAA","diff":"AAAA"}', "one 'diff'"),
        (b'{"worker_id":"w","request_key":"k","diff":5}', "Expected `str`"),
        (b'{"worker_id":"w","request_key":"k","diff":"AAAA', "NaN and Infinity are no numbers"),
        (b'{"worker_id":"w","request_key":"k","num_samples":NaN,"diff":""}', "NaN and Infinity are no numbers"),
        (b'{"worker_id":"' + b"w" * (1 << 20) + b'","request_key":"k","diff":"AAAA"}', "at most 1048576 bytes"),
        (b'{"diff":"AAAA","worker_id":"' + b"w" * (1 << 20) + b'","request_key":"k"}', "at most 1048576 bytes"),
    ],
    ids=range(9),
)
def test_a_body_that_is_no_report_is_refused_with_the_reason(body: bytes, said: str):
    with pytest.raises(BadRequest, match=said):
        parted(body)


def test_a_large_report_in_base64_leaves_the_interpreter_to_others_while_it_is_read(tmp_path: Path):
    body = bytearray(body_of("/+8A" * (12 << 20)))
    read_all = threading.Thread(target=read, args=(tmp_path, body))
    longest = 0.0
    read_all.start()
    while read_all.is_alive():
        began = time.process_time()
        time.sleep(0.001)
        longest = max(longest, time.process_time() - began)
    assert longest < 0.03, longest

"""A report as JSON with its diff in base64, on its way to the disk a piece at a time.

All of it at once, in one call, would keep the interpreter and with it the event loop for a tenth of a second.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator

from grid_jupyter.errors import BadRequest, InvalidDataError
from grid_jupyter.server.door import MAX_JSON_BYTES, decode
from grid_jupyter.store.blobs import Upload
from grid_jupyter.wire.training import Report

PIECE = 1 << 20
"""Characters of base64 that are read at a time."""
_ESCAPE = 6
"""Characters of an escape in JSON, at most."""
_DIFF = re.compile(rb'"diff"\s*:\s*"')
"""Where it begins. Within a text of JSON there would be a backslash before each quote."""


def parted(body: bytes | bytearray) -> tuple[Report, memoryview]:
    """A report without its diff, and the diff's base64 as it stands in the body. Raises BadRequest."""
    found = _DIFF.search(body, 0, MAX_JSON_BYTES)
    start = len(body) if found is None else found.end()
    end = len(body) if found is None else body.find(b'"', start)
    end = len(body) if end < 0 else end
    if len(body) - (end - start) > MAX_JSON_BYTES:
        raise BadRequest(f"Invalid JSON format. Beside its 'diff' a report has at most {MAX_JSON_BYTES} bytes")
    report: Report = decode(bytes(body[:start]) + bytes(body[end:]), Report)
    if report.diff:
        raise BadRequest("Invalid JSON format. A report has one 'diff', a text in base64")
    return report, memoryview(body)[start:end]


def of_text(upload: Upload, diff: memoryview) -> Upload:
    """Write a diff in base64, whose line breaks do not count. Raises InvalidDataError, StorageFullError; nothing of it
    is left then."""
    try:
        for data in _decoded(diff):
            upload.write(data)
    except (binascii.Error, ValueError):
        upload.abort()
        raise InvalidDataError("'diff' is no base64 text of a safetensors file") from None
    return upload


def _decoded(text: memoryview) -> Iterator[bytes]:
    left, data = b"", b""
    for start in range(0, len(text), PIECE):
        piece = left + bytes(text[start : start + PIECE])
        cut = -1 if start + PIECE >= len(text) else piece.rfind(b"\\", len(piece) - _ESCAPE)
        whole, left = (piece, b"") if cut < 0 else (piece[:cut], piece[cut:])
        if b"\\" in whole:  # some writers of JSON escape / and =, some of base64 break lines
            whole = json.loads(b'"%b"' % whole).encode().translate(None, b"\r\n")
        fours = len(whole) // 4 * 4
        if fours:
            if len(data) % 3:
                raise ValueError("there is more behind its end")
            data = base64.b64decode(whole[:fours], validate=True)
            yield data
        left = whole[fours:] + left
    if left:
        raise ValueError("it was cut")

"""Frames and messages as a hostile peer may send them: refused before anything is allocated for them."""

from __future__ import annotations

import struct
import tracemalloc

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grid_jupyter import errors
from grid_jupyter.errors import GridError, InvalidMessageError, LimitExceededError, from_wire
from grid_jupyter.wire import frames, messages, worker
from grid_jupyter.wire.limits import MAX_FRAME_BYTES, MAX_HEADER_BYTES

SEARCH = messages.request_frame(7, messages.Search(query=("#tag",)))


def test_a_frame_comes_apart_as_it_was_put_together():
    frame = frames.unpack(frames.pack(frames.REPLY, b"header", b"payload"))
    assert (frame.kind, bytes(frame.header), bytes(frame.payload)) == (frames.REPLY, b"header", b"payload")


@pytest.mark.parametrize("length", range(5))
def test_a_frame_shorter_than_its_prefix_is_refused(length: int):
    with pytest.raises(InvalidMessageError):
        frames.unpack(SEARCH[:length])


@pytest.mark.parametrize("length", range(5, len(SEARCH)))
def test_a_truncated_frame_is_refused(length: int):
    with pytest.raises(InvalidMessageError, match="ends before"):
        frames.unpack(SEARCH[:length])


@pytest.mark.parametrize("kind", [0, 4, 99, 255])
def test_a_frame_of_an_unknown_kind_is_refused(kind: int):
    with pytest.raises(InvalidMessageError, match="no frame of kind"):
        frames.unpack(bytes([kind]) + SEARCH[1:])


@pytest.mark.parametrize("claimed", [MAX_HEADER_BYTES + 1, 1 << 31, (1 << 32) - 1])
def test_a_header_that_claims_too_much_is_refused(claimed: int):
    with pytest.raises(LimitExceededError):
        frames.unpack(struct.pack(">BI", frames.REQUEST, claimed) + b"x" * 100)


def test_a_frame_over_the_limit_is_refused():
    with pytest.raises(LimitExceededError):
        frames.unpack(bytes(MAX_FRAME_BYTES + 1))
    with pytest.raises(LimitExceededError, match="HTTP"):
        frames.pack(frames.REQUEST, b"", bytes(MAX_FRAME_BYTES))
    with pytest.raises(LimitExceededError):
        frames.pack(frames.REQUEST, bytes(MAX_HEADER_BYTES + 1))


def _message(**fields: object) -> bytes:
    return msgspec.msgpack.encode((1, fields))


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode(5),
        msgspec.msgpack.encode([1]),
        msgspec.msgpack.encode([1, 2, 3]),
        msgspec.msgpack.encode(["1", {"type": "search"}]),
        msgspec.msgpack.encode([1.5, {"type": "search"}]),
        msgspec.msgpack.encode([1 << 63, {"type": "read", "value": 1 << 63}])[:-1] + b"\xff\xff",
        _message(),
        _message(type=None),
        _message(type="Search"),
        _message(type="__class__"),
        _message(type="search", extra=1),
        _message(type="search", query="#tag"),
        _message(type="search", query=[1]),
        _message(type="search", query=[["#tag"]]),
        _message(type="search", query=None),
        _message(type="read"),
        _message(type="read", value="1"),
        _message(type="read", value=1.0),
        _message(type="read", value=True),
        _message(type="read", value=[1]),
        _message(type="read", value=1, credential=None),
        _message(type="read", value=1, credential=b"gjt1_"),
        _message(type="read", value=1, remove="yes"),
        _message(type="open", dataset=1, version=1, values=[["data", 1]]),
        _message(type="open", dataset=1, version=1, values={1: 1}),
        _message(type="open", dataset=1, version=None, values={}),
        _message(type="hello", protocol="1", software="x"),
        _message(type="hello", protocol=1, software="x", user="Bob"),
        _message(type="welcome", protocol=1, node="x"),  # what only a Node says
        b"\x92\x01\x82\xa4type\xa6search\xa5query\x91\xa3\xed\xa0\x80",  # a lone surrogate
        b"\x92\x01\x82\xa4type\xa6search\xa5query\x91\xa2\xff\xfe",
        b"\x92\x01\x82\xa4type\xa6search\xa5query\xdd\xff\xff\xff\xff",  # a query of 4 billion tags
        b"\x92\x01\x82\xa4type\xa6search\xa5query\x91\xdb\xff\xff\xff\xff",  # a tag of 4 GB
        b"\x92\x01\xdf\xff\xff\xff\xff\xa4type",  # a message with 4 billion fields
        b"\x91" * 100_000,
        b"\x92\x01" + b"\x81\xa1a" * 100_000,
        b"\x92\x01\x82\xa4type\xa6search\xa5query" + b"\x91" * 200_000 + b"\x01",
        b"\x92\x01\xd6\xff\x00\x00\x00\x00",  # a timestamp
        b"\x92\x01\xc7\x05\x01hello",  # an extension type
    ],
)
def test_a_message_that_does_not_fit_is_refused_without_being_quoted_or_allocated(header: bytes):
    tracemalloc.start()
    with pytest.raises(InvalidMessageError) as refused:
        frames.decode(header, messages.request_decoder)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 4 << 20
    assert "gjt1_" not in str(refused.value)
    assert len(str(refused.value)) < 300


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_but_our_errors(data: bytes):
    for decoder in (messages.request_decoder, messages.reply_decoder, worker.request_decoder, worker.reply_decoder):
        try:
            frames.decode(frames.unpack(data).header, decoder)
        except GridError:
            pass


@settings(deadline=None)
@given(st.lists(st.integers(0, 8 * len(SEARCH) - 1), min_size=1, max_size=40))
def test_no_flipped_bits_raise_anything_but_our_errors(bits: list[int]):
    data = bytearray(SEARCH)
    for bit in bits:
        data[bit // 8] ^= 1 << bit % 8
    try:
        frames.decode(frames.unpack(data).header, messages.request_decoder)
    except GridError:
        pass


# ------------------------------------------------------------------ errors on the wire


def test_every_error_comes_back_as_itself():
    for code, kind in errors.BY_CODE.items():
        back = from_wire(code, "what happened")
        assert type(back) is kind
        assert str(back) == "what happened"
        assert back.to_wire() == {"code": code, "error": "what happened"}


@pytest.mark.parametrize("code", ["", "os.system", "__class__", None, 5, ["x"], {"code": 1}, "grid-error\n"])
def test_an_unknown_code_becomes_a_plain_error(code: object):
    assert type(from_wire(code, "text")) is GridError


@pytest.mark.parametrize("text", [None, 5, b"bytes", ["x"]])
def test_an_error_without_a_text_says_so(text: object):
    assert "without a text" in str(from_wire("forbidden", text))


def test_the_tree_in_the_docstring_is_the_tree():
    assert errors.__doc__ is not None
    drawn = {
        line.split()[-3]: (line.split()[-2], int(line.split()[-1]))
        for line in errors.__doc__.splitlines()
        if line.rstrip()[-3:].isdigit()
    }
    assert drawn == {kind.__name__: (kind.code, kind.status) for kind in errors.BY_CODE.values()}

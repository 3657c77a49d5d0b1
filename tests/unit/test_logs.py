"""Lines of the log: one record each, whatever is in it, and no text of an exception that somebody else wrote."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import logging
import sys

import pytest

from grid_jupyter.errors import Conflict
from grid_jupyter.server.logs import MAX_CHARS, JsonLines, TextLines


def record(message: str, *arguments: object, error: BaseException | None = None) -> logging.LogRecord:
    found = None
    if error is not None:
        try:
            raise error
        except BaseException:
            found = sys.exc_info()
    return logging.LogRecord("grid_jupyter", logging.ERROR, __file__, 1, message, arguments, found)


@pytest.mark.parametrize("form", [TextLines(), JsonLines()])
def test_no_name_of_a_stranger_makes_a_second_line_or_speaks_to_the_terminal(form: logging.Formatter):
    line = form.format(record("the Node %s joined", "evil\n2026 ERROR forged\x1b[2J\u202e"))
    assert len(line.splitlines()) == 1
    assert "\x1b" not in line
    assert "\u202e" not in line


@pytest.mark.parametrize("form", [TextLines(), JsonLines()])
def test_of_an_exception_type_and_places_are_told_but_no_text(form: logging.Formatter):
    line = form.format(record("a cycle waits: %s", ValueError("47.3125"), error=KeyError("47.3125")))
    assert "47.3125" not in line
    assert "ValueError" in line
    assert "KeyError" in line
    assert "test_logs.py" in line
    assert __file__ not in line, "where the software lies on the disk is nobody's business"


@pytest.mark.parametrize("form", [TextLines(), JsonLines()])
def test_texts_that_were_written_for_others_are_told_and_system_errors_by_their_names(form: logging.Formatter):
    assert "end it first" in form.format(record("refused", error=Conflict("end it first")))
    line = form.format(record("refused", error=FileNotFoundError(2, "gone", "/home/ana/private.csv")))
    assert "ENOENT" in line
    assert "private" not in line


@pytest.mark.parametrize("form", [TextLines(), JsonLines()])
def test_what_libraries_show_of_tasks_callbacks_and_objects_is_not_told(form: logging.Formatter):
    told = io.StringIO()
    handler = logging.StreamHandler(told)
    handler.setFormatter(form)
    logging.getLogger().addHandler(handler)

    async def failing() -> None:
        raise ValueError("47.3125")

    def called(done: asyncio.Future[str]) -> None:
        raise KeyError(done.result())

    async def story() -> None:
        forgotten = asyncio.create_task(failing())
        await asyncio.wait([forgotten])
        del forgotten
        gc.collect()
        done = asyncio.get_running_loop().create_future()
        done.add_done_callback(called)
        done.set_result("47.3125")
        await asyncio.sleep(0)

    try:
        asyncio.run(story())
        logging.getLogger("distributed.core").error(ValueError("47.3125"))
        logging.getLogger("tornado.application").error("Exception in callback %r", [47.3125])
    finally:
        logging.getLogger().removeHandler(handler)
    text = told.getvalue()
    assert "47.3125" not in text
    for word in ("never retrieved", "Exception in callback", "called", "ValueError", "KeyError", "list"):
        assert word in text


def test_a_json_line_is_json_and_has_a_bound():
    told = json.loads(JsonLines().format(record("%s", "x" * 10_000)))
    assert len(told["message"]) == MAX_CHARS + 1
    assert told["level"] == "error"

"""How a process logs: as text or as JSON, one record a line, without what a line of somebody else's could smuggle in.

Of an exception that was not raised on purpose the type and the places are told, and never the text: a driver or a
library puts values into it. Text of strangers comes as one line without control characters.
"""

from __future__ import annotations

import contextvars
import errno
import json
import logging
import secrets
import sys
import time
import traceback
import unicodedata
from pathlib import Path

from grid_jupyter.errors import GridError

FORMATS = ("text", "json")
MAX_CHARS = 2000
"""Of one message."""
MAX_FRAMES = 30
"""Of one traceback, the innermost."""

_request: contextvars.ContextVar[str] = contextvars.ContextVar("grid-request", default="")
_UNSAFE = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
_PACKAGE = Path(__file__).parent.parent


def new_request() -> str:
    """A new id for the request that is being answered here; what is logged for it from now on has it."""
    made = secrets.token_hex(8)
    _request.set(made)
    return made


def begin_logging(form: str, *, verbose: bool) -> None:
    """Log to standard error: warnings, or with `verbose` every request. Of others' libraries warnings alone: what some
    tell about their work has credentials and values in it."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("grid_jupyter").setLevel(logging.DEBUG if verbose else logging.WARNING)


class TextLines(logging.Formatter):
    """For people."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and one for each place of an exception."""
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        request = f" [{_request.get()}]" if _request.get() else ""
        lines = [f"{at},{record.msecs:03.0f} {record.levelname} {record.name}{request}: {_message(record)}"]
        if record.exc_info and record.exc_info[1] is not None:
            lines += ["Traceback (innermost last), without texts:"]
            lines += [f"  {place}" for place in _places(record.exc_info[1])]
            lines += [_kind(record.exc_info[1])]
        return "\n".join(lines)


class JsonLines(logging.Formatter):
    """For programs: one JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """time (UTC), level, logger, message; request, error {type, places} where there are any."""
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        told: dict[str, object] = {
            "time": f"{at}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
        }
        if _request.get():
            told["request"] = _request.get()
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            told["error"] = {"type": _kind(error), "places": _places(error)}
        return json.dumps(told)


def _message(record: logging.LogRecord) -> str:
    arguments, ours = record.args, record.name.partition(".")[0] == "grid_jupyter"
    if isinstance(arguments, tuple):  # an exception as an argument has its text as any other
        arguments = tuple(_harmless(one, ours=ours) for one in arguments)
    record = logging.makeLogRecord({**record.__dict__, "msg": _harmless(record.msg, ours=ours), "args": arguments})
    try:
        text = record.getMessage()
    except (TypeError, ValueError):
        text = str(record.msg)
    if record.name == "asyncio":  # behind this it shows what a task or a callback was given, and came to
        text = text.partition("\n")[0]
        text = text.partition("(")[0] if text.startswith("Exception in callback") else text
    shown = "".join(
        c if unicodedata.category(c) not in _UNSAFE else c.encode("unicode_escape").decode("ascii")
        for c in text[: MAX_CHARS + 1]
    )
    return shown if len(text) <= MAX_CHARS else f"{shown[:MAX_CHARS]}…"


def _harmless(argument: object, *, ours: bool) -> object:
    if isinstance(argument, BaseException):
        return _kind(argument)
    # a library shows whole objects: requests with their query, futures with their results
    return argument if ours or isinstance(argument, str | int | float | None) else type(argument).__name__


def _kind(error: BaseException) -> str:
    """What an exception is called; with its text where that was written for others."""
    if isinstance(error, GridError):
        return f"{type(error).__name__}: {error}"
    if isinstance(error, OSError) and error.errno is not None:
        return f"{type(error).__name__} ({errno.errorcode.get(error.errno, error.errno)})"
    return type(error).__name__


def _places(error: BaseException) -> list[str]:
    """`file:line function` of the innermost frames, without the lines themselves."""
    found = traceback.extract_tb(error.__traceback__)[-MAX_FRAMES:]
    return [f"{_short(frame.filename)}:{frame.lineno} {frame.name}" for frame in found]


def _short(filename: str) -> str:
    path = Path(filename)
    if path.is_relative_to(_PACKAGE.parent):
        return str(path.relative_to(_PACKAGE.parent))
    return "/".join(path.parts[-2:])

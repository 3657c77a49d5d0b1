"""How the values of options are written on the command line: names, ports, times, sizes."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError

GRID_NODES = ("Bob", "Alice", "Bill", "James")
"""The Nodes of the local grid, in the order of their ports."""
_NODE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_BYTES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def node_name(text: str) -> str:
    """A name that is fit for a directory too. Raises ArgumentTypeError, as all of these do."""
    if not _NODE_NAME.fullmatch(text):
        raise ArgumentTypeError(
            "a name has letters, digits, '.', '_' and '-', a letter or digit first, at most 64 characters"
        )
    return text


def grid_nodes(text: str) -> tuple[str, ...]:
    """Some of the local grid's Nodes, with commas between."""
    names = tuple(text.split(","))
    if not set(names) <= set(GRID_NODES) or len(set(names)) < len(names):
        raise ArgumentTypeError(f"these are some of {','.join(GRID_NODES)}, each once")
    return names


def port(text: str) -> int:
    """A TCP port; 0 for any."""
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise ArgumentTypeError("a port is a number from 0 to 65535")
    return int(text)


def whole(text: str) -> int:
    """A whole number from 0 up."""
    if not text.isascii() or not text.isdigit():
        raise ArgumentTypeError("this is a number from 0 up")
    return int(text)


def positive(text: str) -> int:
    """A whole number from 1 up."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise ArgumentTypeError("this is a number from 1 up")
    return int(text)


def workers(text: str) -> str:
    """Where Workers run: `local`, `shared`, or a Dask scheduler's address."""
    if text in ("local", "shared") or re.fullmatch(r"(dask|tcp|tls)://[^/@\s]+:[0-9]{1,5}", text):
        return text
    raise ArgumentTypeError(
        "this is local, shared, or the address of a Dask scheduler like dask://10.0.0.5:8786 or tls://…"
    )


def device(text: str) -> tuple[str, ...]:
    """What Workers compute on: `cpu`, `cuda`, `auto`, or GPUs by their numbers."""
    from grid_jupyter.worker.devices import device_names

    try:
        return device_names(text)
    except ValueError:
        raise ArgumentTypeError("this is cpu, cuda, auto, or GPUs like cuda:0,cuda:1") from None


def parts(text: str) -> int:
    """A fraction of a device, in thousandths."""
    if not re.fullmatch(r"0?\.[0-9]{1,3}|1(\.0*)?", text) or not float(text):
        raise ArgumentTypeError("this is a fraction from 0.001 to 1, with up to three decimals")
    return round(float(text) * 1000)


def link(text: str) -> tuple[str, int]:
    """A host, and a port or 0 for any."""
    found = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^\s:/@]+)(?::([0-9]{1,5}))?", text)
    if not found or int(found[2] or 0) > 65535:
        raise ArgumentTypeError("this is a host or HOST:PORT")
    return found[1].strip("[]"), int(found[2] or 0)


def resources(text: str) -> tuple[tuple[str, float], ...]:
    """Names of resources and how much of each."""
    taken = []
    for one in text.split(","):
        found = re.fullmatch(r"([A-Za-z_][A-Za-z0-9_-]*)=([0-9]+(?:\.[0-9]+)?)([KMGT]?)", one.strip())
        if not found or float(found[2]) <= 0:
            raise ArgumentTypeError("resources are written like GPU=1,MEMORY=2G")
        taken.append((found[1], float(found[2]) * _BYTES[found[3]]))
    return tuple(taken)


def duration(text: str) -> float:
    """A time, in seconds."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhd]?)", text)
    if not found or float(found[1]) <= 0:
        raise ArgumentTypeError("a time is a number of seconds, or like 45s, 30m, 12h, 7d")
    return float(found[1]) * _SECONDS[found[2] or "s"]


def size(text: str) -> int:
    """A size, in bytes."""
    found = re.fullmatch(r"([0-9]+)([KMGT]?)(?:i?B)?", text)
    if not found or int(found[1]) < 1:
        raise ArgumentTypeError("a size is a number of bytes, or like 512M, 2G, 1T")
    return int(found[1]) * _BYTES[found[2]]


def pair(text: str) -> tuple[str, str]:
    """NAME=TEXT."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ArgumentTypeError(f"{text!r} is not like NAME=TEXT")
    return name, value

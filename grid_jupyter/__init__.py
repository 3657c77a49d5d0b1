"""grid_jupyter: private data science and federated learning where its users already work.

Importing the package loads neither torch nor Jupyter: each public name is imported at first use (PEP 562).
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC: dict[str, str] = {}


def __getattr__(name: str) -> Any:
    module = _PUBLIC.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])


def _jupyter_labextension_paths() -> list[dict[str, str]]:
    return [{"src": "labextension", "dest": "grid-jupyter"}]


def _jupyter_server_extension_points() -> list[dict[str, Any]]:
    from grid_jupyter.server.extension import GridExtension

    return [{"module": "grid_jupyter", "app": GridExtension}]

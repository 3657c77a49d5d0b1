"""The client of a Node that hosts models: `ModelCentricFLClient`, which connects and says who the Node is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from grid_jupyter.errors import NodeUnavailableError
from grid_jupyter.link.http import Address, call
from grid_jupyter.tensors.text import plain


class ModelCentricFLClient:
    """A connection to a Node: `ModelCentricFLClient("me", "alice:5000")`, the address without a scheme as in 0.2.9."""

    def __init__(self, id: str, address: str, secure: bool = False, *, ca_file: str | Path | None = None) -> None:  # noqa: A002
        self.id = id
        self.address = Address(address if "//" in address else f"{'https' if secure else 'http'}://{address}", ca_file)
        self.node: str | None = None

    def connect(self) -> ModelCentricFLClient:
        """Find the Node and learn its name. Raises NodeUnavailableError."""
        answer: Any = call(self.address, "GET", "/data-centric/identity/")
        name = answer.get("identity") if isinstance(answer, dict) else None
        if not isinstance(name, str):
            raise NodeUnavailableError(f"{self.address.url} answers, but is no Node of a grid")
        self.node = name
        return self

    @property
    def connected(self) -> bool:
        """Whether the Node answered."""
        return self.node is not None

    def close(self) -> None:
        """Forget the Node."""
        self.node = None

    def __repr__(self) -> str:
        where = f"{plain(self.node)} at {self.address.url}" if self.node else f"not connected to {self.address.url}"
        return f"<ModelCentricFLClient id:{plain(self.id)} {where}>"

"""Plans written by hand, for tests of what reads, checks and shows them."""

from __future__ import annotations

import json
from typing import Any


def linear(**changes: Any) -> dict[str, Any]:
    """One step of linear regression by gradient descent, as JSON."""
    tree: dict[str, Any] = {
        "format": "grid.plan",
        "version": 1,
        "kind": "step",
        "batch": {"min": 1, "max": 4096},
        "inputs": [
            {"name": "w", "role": "param", "dtype": "float32", "shape": [3, 1]},
            {"name": "x", "role": "x", "dtype": "float32", "shape": ["B", 3]},
            {"name": "y", "role": "y", "dtype": "float32", "shape": ["B", 1]},
            {"name": "lr", "role": "hyper", "dtype": "float32", "shape": []},
        ],
        "nodes": [
            ["mm", ["%1", "%0"], [["float32", ["B", 1]]]],
            ["sub", ["%4", "%2"], [["float32", ["B", 1]]]],
            ["mul", ["%5", "%5"], [["float32", ["B", 1]]]],
            ["mean", ["%6", [0, 1], False], [["float32", []]]],
            ["permute", ["%1", [1, 0]], [["float32", [3, "B"]]]],
            ["mm", ["%8", "%5"], [["float32", [3, 1]]]],
            ["mul", ["%9", ["/", 2.0, "B"]], [["float32", [3, 1]]]],
            ["mul", ["%10", "%3"], [["float32", [3, 1]]]],
            ["sub", ["%0", "%11"], [["float32", [3, 1]]]],
        ],
        "outputs": [
            {"name": "w", "role": "param", "value": "%12"},
            {"name": "loss", "role": "loss", "value": "%7"},
        ],
    }
    return {**tree, **changes}


def pooling() -> dict[str, Any]:
    """Max pooling and its gradient, a constant and noise."""
    window = [[2, 2], [2, 2], [0, 0], [1, 1], False]
    return linear(
        kind="function",
        takes={"tuple": ["*"]},
        gives={"dict": {"a": "*", "b": {"list": ["*"]}}},
        inputs=[
            {"name": "0", "role": "arg", "dtype": "float32", "shape": ["B", 1, 4, 4]},
            {"name": "k", "role": "const", "dtype": "int64", "shape": [1], "data": "AAAAAAAAAAA="},
            {"name": "n", "role": "noise", "dtype": "float32", "shape": ["B"], "distribution": "uniform"},
        ],
        nodes=[
            ["max_pool2d", ["%0", *window], [["float32", ["B", 1, 2, 2]], ["int64", ["B", 1, 2, 2]]]],
            ["max_pool2d_backward", ["%3", "%0", *window, "%4"], [["float32", ["B", 1, 4, 4]]]],
        ],
        outputs=[{"name": "a", "role": "result", "value": "%5"}, {"name": "b.0", "role": "result", "value": "%1"}],
    )


def as_bytes(tree: dict[str, Any]) -> bytes:
    return json.dumps(tree, sort_keys=True, separators=(",", ":")).encode()

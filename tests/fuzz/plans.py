"""Bytes for the reader and the check of plans, guided by coverage: `python -m tests.fuzz.plans [libFuzzer's options]`.

Needs atheris, which `make fuzz-plans` installs. Whatever the bytes are, they are a plan or PlanInvalidError; anything
else, or more than 10 s or 1 GiB for one input, ends the run with the input in a file.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["grid_jupyter.plans"]):
    from grid_jupyter.errors import PlanInvalidError
    from grid_jupyter.plans.check import check
    from grid_jupyter.plans.drawing import graph, svg
    from grid_jupyter.plans.listing import code
    from grid_jupyter.plans.reader import read_plan

from unit.plan_documents import as_bytes, linear, pooling

VECTORS = Path(__file__).parents[1] / "conformance"


def one_input(raw: bytes) -> None:
    """The bytes as they are, and in the canonical spelling, without which few would come past the reader."""
    for spelled in {raw, _respelled(raw)}:
        try:
            document = read_plan(spelled)
            check(document)
        except PlanInvalidError:
            continue
        code(document)
        svg(graph(document))


def _respelled(raw: bytes) -> bytes:
    try:
        return json.dumps(json.loads(raw), sort_keys=True, separators=(",", ":")).encode()
    except (ValueError, RecursionError):
        return raw


def main() -> None:
    """Fuzzes from the plans of the tests until it is stopped, or as libFuzzer's options say."""
    with tempfile.TemporaryDirectory() as corpus:
        seeds = [as_bytes(linear()), as_bytes(pooling()), *(path.read_bytes() for path in VECTORS.glob("*.json"))]
        for number, raw in enumerate(seeds):
            (Path(corpus) / str(number)).write_bytes(raw)
        atheris.Setup([*sys.argv, "-timeout=10", "-rss_limit_mb=1024", "-max_len=65536", corpus], one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main()

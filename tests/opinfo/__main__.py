"""`python -m tests.opinfo`: prints how each operator of torch's database does on a Node, and the sums."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence

import torch

from benchmarks.grid import Grid
from grid_jupyter import NodeClient

from .samples import OPERATORS
from .table import AGREES, FAULTS, OUTCOMES, table


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 1 if a result differs, or a Worker crashes or hangs."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.opinfo",
        description="Run the operators of torch's own database on a Node, started for it, and compare outputs, "
        "gradients and strides with local torch.",
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these operators, such as matmul or linalg.inv")
    parser.add_argument("--samples", type=int, default=12, metavar="N", help="at most N samples of each (12)")
    parser.add_argument("--dtype", metavar="DTYPE", help="float32 where an operator has it, or else: this dtype")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    options = parser.parse_args(arguments)
    unknown = set(options.only or ()) - set(OPERATORS)
    if unknown:
        parser.error(f"the database has no {', '.join(sorted(unknown))}")
    dtype = None if options.dtype is None else getattr(torch, options.dtype, None)
    if options.dtype is not None and not isinstance(dtype, torch.dtype):
        parser.error(f"torch has no dtype {options.dtype}")
    torch.set_num_threads(1)  # as a Worker has: the order of additions is then the same
    names = options.only or sorted(OPERATORS)
    verdicts = []
    with Grid() as grid:
        node = grid.node("opinfo")
        grid.account(node, "Ana", "User")
        for verdict in table(
            names,
            lambda: NodeClient(None, node.address, user="Ana", credentials=grid.credentials),
            options.samples,
            dtype,
        ):
            verdicts.append(verdict)
            if not options.json:
                print(f"{verdict.operator:<50}{verdict.outcome:<9}{verdict.reason}", flush=True)
    made_here = sum(verdict.outcome == AGREES and not verdict.tensors for verdict in verdicts)
    counts = Counter(verdict.outcome for verdict in verdicts)
    if options.json:
        print(json.dumps({"counts": counts, "verdicts": [verdict._asdict() for verdict in verdicts]}))
    else:
        shown = ", ".join(f"{counts[outcome]} {outcome}" for outcome in OUTCOMES)
        print(f"\n{len(verdicts)} operators: {shown}. {made_here} of those that agree take no tensor.")
    return int(any(counts[outcome] for outcome in FAULTS))


if __name__ == "__main__":
    sys.exit(main())

"""`python -m benchmarks`: lists the benchmarks, runs one, or runs all and writes the page."""

from __future__ import annotations

import argparse
import importlib
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.page import Run, page
from benchmarks.results import Neighbours, machine, table, text_table
from benchmarks.scale import Scale

BENCHMARKS = {
    "remote_ops": "operations on remote tensors: small additions, reads, ten sessions at once",
    "training_step": "training steps of small networks: the unchanged loop and its recording, beside local torch",
    "transfer": "a large tensor to a session and back, and publishing a large data set",
    "startup": "imports, the start of Node, Network and Workers, what the extension adds to Jupyter, memory at rest",
    "plan_engines": "training steps by plan in both engines, beside the ordinary training loop",
    "job_epochs": "epochs as a job's Worker trains them, beside the ordinary training loop",
    "fold": "folding reports into their weighted mean, beside reading their bytes once",
    "diff_forms": "bytes of a device's report in each form that a Node takes, and the accuracy reached with it",
    "model_centric": "a model that devices train, each a process, beside the same loop in one process",
    "load": "2,000 devices at once against one Node, a quarter of which leaves in the middle",
    "federated_jobs": "federated training by jobs that stay warm on ten Nodes, beside the same loop in one process",
    "fl_rounds": "rounds of federated averaging over four Nodes, beside the same loop in one process",
}
"""What each one measures; `benchmarks/<name>.py` has its `run` and its `MEANING`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.all and options.name is not None:
        parser.error("give a NAME or --all, not both")
    if options.write is not None and not options.all:
        parser.error("--write goes with --all: the page has all benchmarks")
    if options.all and options.json:
        parser.error("--json goes with a NAME")
    # end what was started also where somebody else ends us
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(128 + signal.SIGTERM))
    if options.all:
        return _all(options.write, options.quick)
    if options.name is not None:
        return _one(options.name, options.json, options.quick)
    print("python -m benchmarks NAME [--json]     runs one of these:\n")
    for name, line in BENCHMARKS.items():
        print(f"  {name:<16}{line}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure the grid. Each figure stands beside its baseline, measured in the same run: local "
        "torch, raw sockets, plain files. Without arguments: list the benchmarks.",
    )
    parser.add_argument("name", nargs="?", choices=BENCHMARKS, metavar="NAME", help="run this benchmark")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line of stdout")
    parser.add_argument("--all", action="store_true", help="run all of them, one after the other")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="with --all: write the results to this page")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="run as little as possible: shows that everything works, the figures mean nothing",
    )
    return parser


def _one(name: str, as_json: bool, quick: bool) -> int:
    here, neighbours = machine(), Neighbours()
    from benchmarks.grid import Server

    module = importlib.import_module(f"benchmarks.{name}")
    results = [result.as_json() for result in module.run(Scale(quick))]
    print(f"{name}: {BENCHMARKS[name]}\n")
    print(text_table(table(results)))
    print(f"\n{module.MEANING}")
    if as_json:
        print(
            json.dumps(
                {
                    "name": name,
                    "results": results,
                    "machine": {**here, "others": neighbours.share(Server.sandboxed_cpu_s)},
                }
            ),
            flush=True,
        )
    return 0


def _all(write: Path | None, quick: bool) -> int:
    """Each in a process of its own, as somebody would run it by hand."""
    runs = []
    for name in BENCHMARKS:
        print(f"{name} …", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "benchmarks", name, "--json", *(["--quick"] if quick else [])]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                shown, _ = process.communicate()
            finally:
                process.terminate()  # it ends what it started; does nothing to one that has ended
        if process.returncode:
            print(f"{name} failed", file=sys.stderr)
            return 1
        text, _, last = shown.rstrip().rpartition("\n")
        print(f"{text}\n", flush=True)
        meaning = importlib.import_module(f"benchmarks.{name}").MEANING
        runs.append(Run(name, BENCHMARKS[name], meaning, json.loads(last)))
    if write is not None:
        write.write_text(page(runs, quick))
    return 0


if __name__ == "__main__":
    sys.exit(main())

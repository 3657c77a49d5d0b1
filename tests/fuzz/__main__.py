"""The command line: `python -m tests.fuzz --calls 20000 [--state FILE] [--only OPERATION] [--jobs N] [--seed S]`."""

from __future__ import annotations

import argparse
import fnmatch
import os
import signal
import sys
import time
from pathlib import Path

from grid_jupyter.ops.allowed import ALLOWED

from . import corpus
from .arguments import Calls
from .calls import Call, describe
from .memory import Arena, Contents
from .processes import Settings, Tally, confine, fuzz
from .trial import Bench, Trial

# small blocks that are handed out again without being marked would hide what was not written; and no words of torch's
_MALLOC = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0", "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}


def main() -> int:
    """Fuzz, print what was found, and return 1 if anything was."""
    if os.environ.get("GLIBC_TUNABLES") != _MALLOC["GLIBC_TUNABLES"]:
        os.execve(sys.executable, [sys.executable, "-m", "tests.fuzz", *sys.argv[1:]], {**os.environ, **_MALLOC})  # noqa: S606
    options = _options()
    names = sorted(ALLOWED)
    if options.only:
        names = [name for name in names if any(fnmatch.fnmatch(name, _pattern(p)) for p in options.only)]
    if not names:
        print("no operation of the allow-list has such a name")
        return 2
    settings = Settings(
        options.seed, options.calls, options.first, options.memory << 20, options.operation_time, options.crashes
    )
    recorded = corpus.load()
    if options.call is not None:
        return _one(names[0], options.call, settings, recorded)
    print(
        f"{len(names)} operations, {options.calls} calls each, --seed {options.seed}, {options.jobs} at once",
        flush=True,
    )
    started = time.monotonic()
    tally = Tally(names, options.state)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        fuzz(names, recorded, settings, options.jobs, tally)
    except KeyboardInterrupt:
        print("stopped")
    return report(tally, time.monotonic() - started, options)


def _pattern(given: str) -> str:
    return given if given.startswith("aten.") else f"aten.{given}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--calls", type=int, default=40, help="calls that each operation is to survive")
    parser.add_argument(
        "--state", type=Path, metavar="FILE", help="what was survived: a run goes on where others ended"
    )
    parser.add_argument("--only", action="append", metavar="OPERATION", help="a full name or pattern; may be repeated")
    parser.add_argument("--jobs", type=int, default=2, help="processes at once")
    parser.add_argument("--seed", type=int, default=1, help="the same seed makes the same calls")
    parser.add_argument("--first", type=int, default=0, help="number of the first call")
    parser.add_argument("--call", type=int, help="make this one call, in this process, and print what happens")
    parser.add_argument("--memory", type=int, default=256, help="MB that a child may take")
    parser.add_argument(
        "--operation-time", type=float, default=5.0, help="seconds of processor time that a call may take"
    )
    parser.add_argument("--crashes", type=int, default=40, help="give an operation up after so many")
    parser.add_argument("--table", action="store_true", help="print the calls of each operation")
    return parser.parse_args()


def _one(name: str, index: int, settings: Settings, recorded: dict[str, list[Call]]) -> int:
    confine(settings)
    calls = Calls(name, settings.seed, recorded.get(name, ()))
    trial = Trial(calls, Bench(Arena(), Contents(settings.seed), settings.memory_bytes))
    print(describe(calls.make(index)), flush=True)
    outcome = trial.run(index, lambda phase: print(("", "forward", "backward", "again")[phase], flush=True))
    print("a result" if outcome.ran else "no result")
    for finding in outcome.findings:
        print(f"{finding.kind}: {finding.text}")
    return 1 if outcome.findings else 0


def report(tally: Tally, seconds: float, options: argparse.Namespace) -> int:
    """Print the tally; 1 if there is a finding that is not only slow."""
    entries = tally.survived.entries
    if options.table:
        print(f"{'operation':60} {'survived':>8} {'results':>8} {'too long':>8} {'crashes':>7}")
        for name, entry in entries.items():
            print(f"{name:60} {entry.survived:8} {entry.results:8} {entry.cut:8} {entry.crashes:7}")
    bad = [found for found in tally.found if found.kind != "slow"]
    never = [name for name, entry in entries.items() if not entry.results]
    print(f"{tally.calls} calls, {tally.results} of them with a result, {tally.cut} too long, in {seconds:.0f} s")
    fewest = min(entry.survived for entry in entries.values())
    everything = sum(entry.survived for entry in entries.values())
    print(f"survived by now: {everything} calls, at least {fewest} of each operation")
    if never:
        print(f"no call had a result: {', '.join(never)}")
    if tally.given_up:
        print(f"given up: {', '.join(sorted(tally.given_up))}")
    kinds = {(found.name, found.kind) for found in bad}
    print(f"{len(kinds)} findings" + "".join(f"\n    {name}: {kind}" for name, kind in sorted(kinds)))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

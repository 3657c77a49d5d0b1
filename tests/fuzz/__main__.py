"""The command line: `python -m tests.fuzz --calls 20000 [--only OPERATION] [--jobs N] [--seed S]`."""

from __future__ import annotations

import argparse
import fnmatch
import os
import sys
import time

from grid_jupyter.ops.allowed import ALLOWED

from . import corpus
from .calls import describe
from .memory import Arena
from .processes import Settings, Tally, confine, fuzz
from .trial import Trial

_MALLOC = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0", "OMP_NUM_THREADS": "1"}


def main() -> int:
    """Fuzz, print what was found, and return 1 if anything was."""
    if os.environ.get("GLIBC_TUNABLES") != _MALLOC["GLIBC_TUNABLES"]:
        # small blocks that are handed out again without being marked would hide what was not written
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
    tally = Tally(names)
    fuzz(names, recorded, settings, options.jobs, tally)
    return report(tally, time.monotonic() - started, options)


def _pattern(given: str) -> str:
    return given if given.startswith("aten.") else f"aten.{given}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--calls", type=int, default=40, help="calls of each operation")
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


def _one(name: str, index: int, settings: Settings, recorded: dict[str, list[object]]) -> int:
    confine(settings)
    trial = Trial(name, settings.seed, recorded.get(name, ()), Arena(), settings.memory_bytes)  # type: ignore[arg-type]
    print(describe(trial.call(index)), flush=True)
    outcome = trial.run(index, lambda phase: print(("", "forward", "backward", "again")[phase], flush=True))
    print("a result" if outcome.ran else "no result")
    for finding in outcome.findings:
        print(f"{finding.kind}: {finding.text}")
    return 1 if outcome.findings else 0


def report(tally: Tally, seconds: float, options: argparse.Namespace) -> int:
    """Print the tally; 1 if there is a finding that is not only slow."""
    counts = {name: tally.count(name) for name in tally.names}
    if options.table:
        for name, (calls, results, slow) in counts.items():
            print(f"{name:60} {calls:8} {results:8} {slow:4}")
    bad = [found for found in tally.found if found.kind != "slow"]
    for found in bad:
        if found.kind != "crash":
            print(f"{found.kind}: {found.text}\n    {found.name} --call {found.index}: {found.call}"[:1000])
    never = [name for name, (_, results, _) in counts.items() if not results]
    total, ran = sum(c[0] for c in counts.values()), sum(c[1] for c in counts.values())
    print(f"{total} calls, {ran} of them with a result, {sum(c[2] for c in counts.values())} slow, in {seconds:.0f} s")
    if never:
        print(f"no call had a result: {', '.join(never)}")
    if tally.given_up:
        print(f"given up: {', '.join(sorted(tally.given_up))}")
    kinds = {(found.name, found.kind) for found in bad}
    print(f"{len(kinds)} findings" + "".join(f"\n    {name}: {kind}" for name, kind in sorted(kinds)))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

"""The benchmarks run, say what they measured in the agreed shape, and leave nothing behind. How fast is not tested."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
NAMES = (
    "remote_ops",
    "training_step",
    "transfer",
    "startup",
    "plan_engines",
    "job_epochs",
    "fold",
    "diff_forms",
    "model_centric",
    "load",
    "federated_jobs",
    "fl_rounds",
)
DEADLINE_S = 300.0


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A directory for temporary files, with a short name: Unix sockets lie in it."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        yield Path(folder)


def start(scratch: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(scratch)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(scratch: Path, *arguments: str) -> str:
    """What a run prints."""
    with start(scratch, *arguments) as process:
        shown, errors = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, errors
    return shown


def servers_below(process: psutil.Process) -> list[psutil.Process]:
    try:
        return [child for child in process.children(recursive=True) if "--supervised" in child.cmdline()]
    except psutil.NoSuchProcess:
        return []


def test_without_arguments_the_benchmarks_are_listed_with_one_line_each(scratch: Path) -> None:
    lines = [line.split(maxsplit=1) for line in run(scratch).splitlines() if line.startswith("  ")]
    assert tuple(words[0] for words in lines) == NAMES
    assert all(len(words) == 2 for words in lines)


def test_an_unknown_name_is_refused_with_the_names_that_there_are(scratch: Path) -> None:
    with start(scratch, "nonsense") as process:
        _, errors = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 2
    assert all(name in errors for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_each_benchmark_runs_and_its_last_line_is_json_of_the_agreed_shape(name: str, scratch: Path) -> None:
    told = json.loads(run(scratch, name, "--json", "--quick").splitlines()[-1])
    assert told["name"] == name
    assert {"cpus", "python", "torch", "load_average", "others"} <= told["machine"].keys()
    whats = [result["what"] for result in told["results"]]
    assert len(set(whats)) == len(whats) > 3
    for result in told["results"]:
        assert {"what", "value", "unit", "baseline", "ratio"} <= result.keys()
        assert all(isinstance(result[key], (int, float)) for key in ("value", "baseline"))
        assert ("target" in result) == ("ok" in result)
        assert result["ratio"] is None or result["ratio"] == pytest.approx(result["value"] / result["baseline"])
        if name == "load":  # no matter of speed: cycles are completed, nothing that was acknowledged is lost
            assert result.get("ok", True), result
    assert [left.name for left in scratch.glob("grid*")] == []


def test_a_benchmark_that_is_killed_leaves_no_process_behind(scratch: Path) -> None:
    with start(scratch, "remote_ops") as process:
        seen = psutil.Process(process.pid)
        end = time.monotonic() + DEADLINE_S
        while not (servers := servers_below(seen)) or not servers[0].children():
            assert process.poll() is None
            assert time.monotonic() < end, "the Node and its Workers did not start"
            time.sleep(0.02)
        family = seen.children(recursive=True)
        process.kill()
        _, alive = psutil.wait_procs(family, timeout=60)
        assert alive == []


def test_the_page_has_a_table_the_command_and_the_meaning_of_each_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.page import Run, page
    from benchmarks.results import Result, machine

    results = [
        Result(what="one thing", value=1234.5, unit="op/s", baseline=617.25, against="another"),
        Result(what="slow", value=2.0, unit="s", baseline=4.0, against="slower", at_most=1.0),
    ]
    told = {"results": [result.as_json() for result in results], "machine": {**machine(), "others": 0.5}}
    written = page([Run("some_name", "what it measures", "What it means.", told)], quick=False)
    assert "python -m benchmarks some_name" in written
    assert "| one thing | 1,234 op/s |  | 617 | 2.00 | another |  |" in written
    assert "| slow | 2.00 s |  | 4.00 | 0.500 | slower | value ≤ 1.00 (missed) |" in written
    assert "What it means." in written
    assert "not idle" in written

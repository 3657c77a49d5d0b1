"""The allow-list under random and hostile arguments, in short; `make fuzz` does it at length."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from grid_jupyter.ops.allowed import ALLOWED
from grid_jupyter.ops.kernels import kernel

_ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="marks fresh memory through glibc")


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=_ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def test_no_operation_crashes_leaks_memory_or_loses_lineage():
    done = _run("-m", "tests.fuzz", "--calls", "20", "--seed", "1", "--table")
    print(done.stdout)  # has the seed, and each finding with the command that repeats it
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    rows = dict(re.findall(r"^(aten\S+) +(\d+) ", done.stdout, re.MULTILINE))
    assert set(rows) == ALLOWED
    assert set(rows.values()) == {"20"}


_WITHOUT_A_GUARD = """
import sys
from grid_jupyter.ops import guards
name, calls = sys.argv[1], int(sys.argv[2])
del guards.GUARDS[name]
from tests.fuzz import corpus
from tests.fuzz.processes import Settings, Tally, fuzz
tally = Tally([name])
fuzz([name], corpus.load(), Settings(1, calls, 0, 256 << 20, 5.0, 40), 1, tally)
print("found:", sorted({found.kind for found in tally.found}))
"""


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten._scaled_dot_product_flash_attention_for_cpu.default", "crash"),
        ("aten.nanmedian.dim", "uninitialised memory"),
        ("aten._native_batch_norm_legit.default", "crash"),
    ],
)
def test_the_fuzzer_finds_what_a_guard_keeps_out(name: str, kind: str):
    done = _run("-c", _WITHOUT_A_GUARD, name, "400")
    assert f"'{kind}'" in done.stdout.rpartition("found:")[2], done.stdout + done.stderr[-2000:]


def test_calls_that_kill_a_process_are_refused():
    """The calls that ended processes of torch's in earlier trials, through the Worker's executor."""
    done = _run("-m", "tests.fuzz.killers")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) > 40, done.stderr[-2000:]
    for name, status, code in rows:
        assert status == 0, name
        if name not in ALLOWED:
            assert code == "operation-not-allowed", name
        else:
            assert code in ("remote-operation", "operation-not-allowed"), name


_POLYNOMIALS = [
    *(f"{shifted}chebyshev_polynomial_{letter}" for shifted in ("", "shifted_") for letter in "tuvw"),
    "laguerre_polynomial_l",
    "legendre_polynomial_p",
]


@pytest.mark.parametrize("name", _POLYNOMIALS)
def test_a_polynomial_of_nan_is_nan_and_not_what_memory_held(name: str):
    run = kernel(f"aten.special_{name}.default").run
    x = torch.tensor([float("nan"), 0.5, float("nan"), 2.0])
    degrees = torch.tensor([5.0, 5.0, 0.0, 3.0])
    found, of_numbers = run(x, degrees), run(x.nan_to_num(), degrees)
    assert found.isnan().tolist() == [True, False, False, False]
    assert found[1:].tolist() == of_numbers[1:].tolist()


def test_runs_of_the_fuzzer_add_up_and_a_new_guard_starts_anew(tmp_path: Path):
    state = tmp_path / "fuzz.json"
    command = ("-m", "tests.fuzz", "--only", "add.Tensor", "--only", "median.dim", "--state", str(state))

    first = _run(*command, "--calls", "30", "--jobs", "1")
    more = _run(*command, "--calls", "50", "--jobs", "1")
    assert "60 calls," in first.stdout, first.stdout + first.stderr
    assert "40 calls," in more.stdout, more.stdout + more.stderr
    kept = json.loads(state.read_text())["operations"]
    assert kept["aten.add.Tensor"]["spans"] == kept["aten.median.dim"]["spans"] == {"1": [[0, 50]]}

    kept["aten.median.dim"]["mark"] = "of another guard"
    state.write_text(json.dumps({"operations": kept}))
    assert "50 calls," in _run(*command, "--calls", "50", "--jobs", "1").stdout


def test_what_was_survived_is_known_by_the_guard_that_stood_before_it():
    from grid_jupyter.ops import guards
    from tests.fuzz.survived import mark_of

    names = sorted(guards.GUARDS)
    before = {name: mark_of(name) for name in names}
    assert len(set(before.values())) == len(names)
    guarded = guards.GUARDS.pop("aten.median.dim")
    kernel.cache_clear()
    try:
        assert [name for name in names if mark_of(name) != before[name]] == ["aten.median.dim"]
    finally:
        guards.GUARDS["aten.median.dim"] = guarded
        kernel.cache_clear()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("aten.split.Tensor", (1,)),
        ("aten.split_with_sizes.default", ([1] * 100_001,)),
        ("aten.split_with_sizes_copy.default", ([1] * 100_001,)),
        ("aten.unbind.int", ()),
        ("aten.unbind_copy.int", ()),
        ("aten.unsafe_split.Tensor", (1,)),
        ("aten.unsafe_split_with_sizes.default", ([1] * 100_001,)),
    ],
)
def test_a_tensor_comes_apart_into_so_many_pieces_as_memory_has_room_for(name, arguments):
    with pytest.raises(ValueError, match="100,000 pieces at most"):
        kernel(name).run(torch.zeros(100_001), *arguments)
    fewer = [argument[:3] if isinstance(argument, list) else argument for argument in arguments]
    assert len(kernel(name).run(torch.zeros(3), *fewer)) == 3

"""A hosted averaging plan: what it must look like, and its run in a process of its own, within limits.

As in 0.2.9 it sees the diffs of a cycle, each a list of tensors in the model's order, and gives the average diff:

    iterative    avg = diff_0; for i = 1, 2, …: avg = plan(avg, diff_i, [i])
    plain        avg = plan([diff_0, diff_1, …])          of as many diffs as the plan takes
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from itertools import cycle
from pathlib import Path
from typing import IO, TYPE_CHECKING

import msgspec

from grid_jupyter.cycles.strategy import MAX_KEPT
from grid_jupyter.errors import BadRequest, GridError, InvalidDataError, PlanInvalidError
from grid_jupyter.plans.check import Limits, check
from grid_jupyter.plans.document import Document, Spec
from grid_jupyter.plans.expressions import BATCH, size_of

if TYPE_CHECKING:
    from grid_jupyter.aggregation.form import Form
    from grid_jupyter.cycles.terms import Terms
    from grid_jupyter.store.blobs import Blob, BlobStore

PATIENCE_S = 600
"""Seconds of processor time that a plan may take for one cycle, and half of the time by the clock."""
MEMORY_BYTES = 2 << 30
"""What a run may take beside the diffs that it is given."""
MAX_DIFFS_BYTES = 4 << 30
"""What all diffs of a cycle may come to in memory where a plan is given them at once."""
_CHUNK = 1 << 20
_RUNNING: set[subprocess.Popen[bytes]] = set()


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """What the process is to do: `grid_jupyter.cycles.averaging_run` reads it as JSON."""

    plan: int
    """A descriptor, as those of the others: it opens no file."""
    model: int
    """Any checkpoint: its form is what counts."""
    reports: list[int]
    iterative: bool
    memory_bytes: int
    seconds: int


def check_averaging(plan: Document, iterative: bool, form: Form, terms: Terms) -> None:
    """Refuse a plan that could not average diffs of this model under these terms.

    Raises BadRequest with the reason, PlanInvalidError.
    """
    if terms.strategy is not None:
        raise BadRequest("a training has an averaging plan or a strategy, not both: leave one of them out")
    if plan.kind not in ("average", "function") or any(one.role not in ("arg", "const") for one in plan.inputs):
        raise BadRequest("an averaging plan is a function of diffs alone, without state or noise")
    size, given = len(form.parts), [one.spec for one in plan.inputs_of("arg")]
    wanted = [Spec(dtype.name, shape) for _, dtype, shape in form.parts]
    batch = next(
        (
            fits.shape[0]
            for one, fits in zip(given, cycle(wanted), strict=False)
            if one.shape[:1] == (BATCH,) and fits.shape
        ),
        plan.batch[0],
    )
    if not isinstance(batch, int) or not plan.batch[0] <= batch <= plan.batch[1]:
        raise BadRequest("the averaging plan is for tensors of other lengths than the model's")
    found = [Spec(one.dtype, tuple(size_of(length, batch) for length in one.shape)) for one in given]
    if iterative:
        if found[: 2 * size] != wanted * 2 or len(found) != 2 * size + 1 or found[-1].shape not in ((), (1,)):
            raise BadRequest(
                "with iterative_plan an averaging plan takes (average, diff, number): two lists of tensors like the "
                "model's, in its order, and a tensor of one number"
            )
    else:
        count = len(found) // size
        if not count or found != wanted * count:
            raise BadRequest("an averaging plan takes a list of diffs, each a list of tensors like the model's")
        if terms.max_diffs != count or terms.min_diffs != count or count > MAX_KEPT:
            raise BadRequest(
                f"the averaging plan is of {count} diffs: min_diffs={count} and max_diffs={count} let each cycle have "
                f"so many ({MAX_KEPT} at most); with iterative_plan it may be any number"
            )
        if 2 * count * form.nbytes > MAX_DIFFS_BYTES:
            raise BadRequest(
                f"the averaging plan is given {count} diffs of {form.nbytes} bytes at once, which takes twice that in "
                f"memory: over the {MAX_DIFFS_BYTES} bytes that there are for it. Average fewer, or one after the "
                "other with iterative_plan"
            )
    values = check(plan, batch, Limits(memory_bytes=MEMORY_BYTES + len(found) * form.nbytes)).values
    given_back = [values[one.value] for one in plan.outputs if one.role == "result"]
    if [(one.dtype, tuple(one.shape)) for one in given_back] != [(one.dtype, one.shape) for one in wanted]:
        raise BadRequest("an averaging plan gives a list of tensors like the model's: the average diff")


def average(
    plan: Path,
    model: Path,
    reports: Sequence[Path],
    blobs: BlobStore,
    name: str,
    *,
    iterative: bool,
    nbytes: int,
    behind: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Blob:
    """The average diff of these reports, as a blob, whose values are not checked. Blocks. The process is started
    `behind` a sandbox's command, in `environment`.

    Raises PlanInvalidError where the plan fails or takes too long, and InvalidDataError.
    """
    held = 4 if iterative else 2 * len(reports)
    command = [*behind, sys.executable, "-m", "grid_jupyter.cycles.averaging_run"]
    with ExitStack() as opened:
        files = [opened.enter_context(path.open("rb")).fileno() for path in (plan, model, *reports)]
        task = Task(
            plan=files[0],
            model=files[1],
            reports=files[2:],
            iterative=iterative,
            memory_bytes=MEMORY_BYTES + held * nbytes,
            seconds=PATIENCE_S,
        )
        return _run(command, task, blobs, name, files, environment, nbytes)


def _run(
    command: Sequence[str],
    task: Task,
    blobs: BlobStore,
    name: str,
    files: Sequence[int],
    environment: Mapping[str, str] | None,
    nbytes: int,
) -> Blob:
    pipe = subprocess.PIPE
    with (
        blobs.begin(name) as upload,
        subprocess.Popen(  # noqa: S603 - our own
            command, stdin=pipe, stdout=pipe, pass_fds=files, env=environment, start_new_session=True
        ) as process,
    ):
        late = threading.Timer(2 * PATIENCE_S, process.kill)
        late.start()
        _RUNNING.add(process)
        try:
            stdin, stdout = process.stdin, process.stdout
            if stdin is None or stdout is None:
                raise GridError("the process of an averaging plan has no pipes")
            _tell(stdin, msgspec.json.encode(task))
            while data := stdout.read(_CHUNK):
                if upload.size + len(data) > nbytes + _CHUNK:
                    raise InvalidDataError("the averaging plan gave more than the model has")
                upload.write(data)
            if process.wait():
                raise PlanInvalidError("the averaging plan failed, or took more memory or time than it may")
        finally:
            late.cancel()
            process.kill()
            _RUNNING.discard(process)
        return upload.commit(passing=True)  # until the checkpoint is there


def end_all() -> None:
    """The Node ends, and waits for no plan; reports stay, and are averaged after its next start."""
    for process in list(_RUNNING):
        process.kill()


def _tell(stdin: IO[bytes], data: bytes) -> None:
    with suppress(BrokenPipeError):  # its exit status tells
        stdin.write(data)
        stdin.close()

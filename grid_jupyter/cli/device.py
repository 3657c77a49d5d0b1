"""`jupyter grid device`: this machine takes part in training, with data from a file that stays here."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy

from grid_jupyter.client.device import Device, Trained
from grid_jupyter.client.measuring import AFTER, BEFORE
from grid_jupyter.client.tensor_files import read_arrays
from grid_jupyter.errors import BadRequest


def device(options: argparse.Namespace) -> int:
    """Take part until training is over. Raises GridError."""
    token = None if options.auth_token_file is None else _text(options.auth_token_file).strip()

    def each(trained: Trained) -> None:
        if options.json:
            print(json.dumps({"cycle": trained.cycle, "samples": trained.samples, "steps": trained.steps,
                              "counted": trained.counted, **trained.told, **trained.metrics}), flush=True)  # fmt: skip
            return
        told = ", ".join(_shown(trained, name) for name in trained.told)
        late = "" if trained.counted else " (too late, it did not count)"
        print(f"cycle {trained.cycle}: {trained.samples} rows, {trained.steps} steps; {told}{late}", flush=True)

    push_token = None if options.push_token_file is None else _text(options.push_token_file).strip()
    with Device(
        options.address,
        auth_token=token,
        push_token=push_token,
        listen=options.listen,
        ca_file=options.ca_file,
        patience_s=options.patience,
        threads=options.threads,
    ) as made:
        made.participate(
            options.model,
            options.version,
            _data(options.data),
            plan=options.plan,
            epochs=options.epochs,
            cycles=options.cycles,
            seed=options.seed,
            zipped=options.gzip,
            diff=options.diff,
            keep=options.keep,
            residual=options.residual,
            metrics=options.metrics,
            held_out=None if options.held_out is None else _data(options.held_out),
            each=each,
        )
    return 0


def _shown(trained: Trained, name: str) -> str:
    before, after = (trained.metrics.get(name + end) for end in (BEFORE, AFTER))
    if before is None or after is None:
        return f"{name} {trained.told[name]:.4g}"
    return f"{name} {before:.4g} → {after:.4g}"


def _data(path: Path) -> dict[str, Any]:
    """The arrays of a .npz or .safetensors file by name. Raises BadRequest, InvalidDataError."""
    try:
        if path.suffix == ".safetensors":
            return dict(read_arrays(path.read_bytes()))
        with numpy.load(path, allow_pickle=False) as arrays:
            if isinstance(arrays, numpy.ndarray):
                raise BadRequest(f"{path} has one array; give a .npz or .safetensors file with x and y")
            return dict(arrays.items())
    except (OSError, ValueError, EOFError) as error:
        raise BadRequest(f"{path} cannot be read as .npz or .safetensors: {type(error).__name__}") from None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeError) as error:
        raise BadRequest(f"{path} cannot be read: {type(error).__name__}") from None

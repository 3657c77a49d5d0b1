"""What a device has not sent yet of what it trained, in a file that survives it: error feedback of top-k diffs.

    sent = topk(diff + residual)        residual' = diff + residual - sent

(Stich et al. 2018, algorithm 1). The residual changes when the report was acknowledged, and no earlier: before a
report is sent, it is written beside the file together with what the residual is to become. After a restart the same
bytes are sent again; the Node counts them once, or says that they never will.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from grid_jupyter.client.tensor_files import Array
from grid_jupyter.errors import BadRequest, InvalidDataError, StorageFullError
from grid_jupyter.wire.files import put_whole

try:
    import fcntl
except ImportError:  # Windows: nothing keeps two devices from one file there
    fcntl = None  # type: ignore[assignment]

_REPORT, _RESIDUAL = "report", "residual/"


@dataclass(frozen=True)
class Pending:
    """A report that may have counted, or not."""

    worker_id: str
    request_key: str
    samples: int
    data: bytes | bytearray


class Residual:
    """The file of one device and one training; one device at a time has it."""

    def __init__(self, path: Path) -> None:
        """Raises BadRequest where another device has it, or there is no folder for it; InvalidDataError for a file
        that is something else."""
        self.path = path
        self.values: dict[str, Array] = {}
        """What was not sent yet, by tensor; empty: nothing."""
        self.pending: Pending | None = None
        self._beside = path.with_name(path.name + ".pending")
        self._of: dict[str, str] = {}
        self._after: dict[str, Array] = {}
        self._lock = _locked(path)
        try:
            if path.exists():
                self._of, self.values = _read(path)
            if self._beside.exists():
                told, tensors = _read(self._beside)
                self.pending = Pending(
                    told["worker_id"], told["request_key"], int(told["samples"]), tensors.pop(_REPORT).tobytes()
                )
                self._of = {key: told[key] for key in ("model", "version")}
                self._after = {name.removeprefix(_RESIDUAL): array for name, array in tensors.items()}
        except (KeyError, ValueError):
            self.close()
            raise InvalidDataError(f"{path} is no file of a device's residual; give another one") from None
        except BaseException:
            self.close()
            raise

    def check(self, model: str, version: str, tensors: Mapping[str, Array]) -> None:
        """Whether it is of this training. Raises BadRequest."""
        of = {"model": model, "version": version}
        fits = all(
            name in tensors and array.shape == tensors[name].shape and array.dtype == tensors[name].dtype
            for name, array in self.values.items()
        )
        if self._of not in ({}, of) or not fits:
            raise BadRequest(f"{self.path} holds what is left of another training: give another file for this one")
        self._of = of

    def added(self, diff: Mapping[str, Array]) -> dict[str, Array]:
        """A diff, and what was not sent before."""
        return {name: array + self.values[name] if name in self.values else array for name, array in diff.items()}

    def begin(self, pending: Pending, after: dict[str, Array]) -> None:
        """A report is about to be sent; if it counts, `after` is what is left. Durable when this returns.

        Raises StorageFullError.
        """
        told = {
            **self._of,
            "worker_id": pending.worker_id,
            "request_key": pending.request_key,
            "samples": str(pending.samples),
        }
        tensors = {_RESIDUAL + name: array for name, array in after.items()}
        _write(self._beside, {**tensors, _REPORT: numpy.frombuffer(pending.data, numpy.uint8)}, told)
        self.pending, self._after = pending, after

    def counted(self) -> None:
        """The report was acknowledged. Raises StorageFullError."""
        _write(self.path, self._after, self._of)
        self.values, self.pending, self._after = self._after, None, {}
        self._beside.unlink(missing_ok=True)

    def dropped(self) -> None:
        """The report will never count."""
        self.pending, self._after = None, {}
        self._beside.unlink(missing_ok=True)

    def close(self) -> None:
        """Let another device have the file."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Residual:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _locked(path: Path) -> int:
    try:
        lock = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise BadRequest(f"there can be no file {path}: {error.strerror}") from None
    if fcntl is not None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise BadRequest(f"another device uses {path} just now: each needs a file of its own") from None
    return lock


def _read(path: Path) -> tuple[dict[str, str], dict[str, Array]]:
    try:
        with safe_open(path, framework="numpy") as file:
            return dict(file.metadata() or {}), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InvalidDataError(f"{path} cannot be read: {type(error).__name__}") from None


def _write(path: Path, tensors: Mapping[str, Array], told: dict[str, str]) -> None:
    whole: dict[str, Any] = {name: numpy.ascontiguousarray(array) for name, array in tensors.items()}
    try:
        put_whole(path, save(whole, told))
    except OSError as error:
        raise StorageFullError(f"{path} could not be written: {error.strerror}") from None

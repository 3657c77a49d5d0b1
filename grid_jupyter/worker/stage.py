"""What recordings see of the executor that runs them: its values and their lineage, and the verbs of the stream."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Protocol

import torch

from grid_jupyter.worker.gradients import Gradients
from grid_jupyter.worker.halves import Halves
from grid_jupyter.worker.templates import Box, Template

Step = tuple[Callable[..., None], tuple[Any, ...], tuple[int, ...]]
"""What to call, with what, and the slots that nothing needs afterwards."""


class Stage(Protocol):
    """The executor, as recordings need it."""

    values: dict[int, Any]
    boxes: dict[int, Box]
    grad_mode: bool
    templates: dict[int, Any]
    verbs: dict[int, Callable[..., None]]
    memory: Halves
    gradients: Gradients
    faults: int
    around_backward: contextlib.AbstractContextManager[Any]

    def perform(self, template: Template, command: list[Any]) -> None:
        """Run one operation; if it fails, its results are poisoned."""

    def fail(self, template: Template, command: list[Any], error: BaseException) -> None:
        """That operation failed: its results are poisoned."""

    def mark(self, out: Any, poison: Any, sources: int) -> None:
        """Poison results."""

    def put(self, identity: int, tensor: torch.Tensor) -> None:
        """Take in a tensor."""

    def keep(self, identity: int, value: Any, box: Box) -> None:
        """Let an id stand for a value."""

    def free(self, *identities: int) -> None:
        """Forget values; unknown ids are fine."""

    def seed(self, seed: int) -> None:
        """Seed the generator."""

    def set_grad_mode(self, on: bool) -> None:
        """Whether operations are recorded for gradients."""

    def settle(self, sources: int) -> None:
        """A backward pass of that lineage went well, and its gradients are there."""

"""A plan that was sent: the plan, and the places whose tensors it is called on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from grid_jupyter.errors import TensorsNotCollocatedException

if TYPE_CHECKING:
    from grid_jupyter.plans.plan import Plan


class SentPlan:
    """What `plan.send(worker)` gives: called on tensors that are there, it runs there; `get()` is the plan again."""

    def __init__(self, plan: Plan, places: tuple[Any, ...]) -> None:
        self._plan = plan
        self.locations = places

    @property
    def location(self) -> Any:
        """Where it was sent first."""
        return self.locations[0]

    def __call__(self, *arguments: Any) -> Any:
        """As the plan, of tensors at one of its places. Raises TensorsNotCollocatedException for others."""
        for leaf in _leaves(arguments):
            location = getattr(leaf, "location", None)
            if all(location is not place for place in self.locations):
                where = "this side" if location is None else str(location.id)
                raise TensorsNotCollocatedException(
                    f"{self!r} was given a tensor of {where}: send the tensor to the plan, or the plan to the tensor"
                )
        return self._plan(*arguments)

    def get(self) -> Plan:
        """The plan."""
        return self._plan

    def __repr__(self) -> str:
        return f"<Plan {self._plan.name} at {', '.join(str(place.id) for place in self.locations)}>"


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for part in value:
            yield from _leaves(part)
    else:
        yield value

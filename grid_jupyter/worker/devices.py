"""Which devices Workers compute on, and how many of them share one: who is let in is a pure function of what is taken.

Shares are counted in thousandths of a device's memory, so that they add up exactly. Knows no torch: what devices a
machine has is asked of a process of its own (worker/probing.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from grid_jupyter.errors import BadRequest, LimitExceededError, NodeUnavailableError
from grid_jupyter.wire.worker import WorkerLimits

WHOLE: Final = 1000
"""Parts of a device."""
CONTEXT_BYTES: Final = 512 << 20
"""What a process takes of a GPU beside its tensors: CUDA's context, and the libraries' kernels. Part of its share."""
FILES: Final = (
    "nvidiactl", "nvidia[0-9]*", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-caps", "dxg",
    "nvmap", "nvhost-*", "nvgpu", "nvsciipc",
)  # fmt: skip
"""The files in /dev by which a process reaches NVIDIA's GPUs: a card's, WSL's, a Jetson's."""
SHOWN: Final = ("/sys/bus/pci", "/sys/devices", "/sys/module/nvidia", "/etc/nv_tegra_release")
"""What CUDA reads to find them, besides."""


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """A device that Workers share. `cpu` stands for a part of this machine's memory that its owner declared."""

    name: str
    label: str
    memory_bytes: int


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """The GPUs of a machine; `why_none` says why there are none."""

    devices: tuple[Device, ...]
    why_none: str = ""


@dataclass(frozen=True)
class Wish:
    """What a Node is told to compute on: `cpu`, `cuda` (all that there are), `auto`, or GPUs by their numbers.
    `declared_bytes` of memory are shared by all Workers on `cpu`; 0: each has its own limit, and nothing is shared."""

    names: tuple[str, ...] = ("cpu",)
    declared_bytes: int = 0
    parts: int = WHOLE // 4  # that one Worker gets, unless a job asks for others

    @property
    def of_gpu(self) -> bool:
        """Whether the machine's devices have to be looked at."""
        return self.names != ("cpu",)


ON_CPU: Final = Wish()


@dataclass(frozen=True)
class Asked:
    """What a Worker is asked for: on that device (empty: one of the Node's), with so many parts of it (0: the
    Node's)."""

    device: str = ""
    parts: int = 0


NODES: Final = Asked()


@dataclass(frozen=True)
class Granted:
    """A share of a device."""

    device: Device
    parts: int


@dataclass(frozen=True)
class Wait:
    """There is room for it later: when one of these devices has some."""

    devices: tuple[str, ...]
    text: str


def chosen(wish: Wish, machine: Found) -> tuple[tuple[Device, ...], str]:
    """The devices that a Node has, and in words what it computes on.

    Raises NodeUnavailableError for one that is not there.
    """
    found = machine.devices
    if not wish.of_gpu:
        if not wish.declared_bytes:
            return (), "cpu"
        return (Device(name="cpu", label="memory for Workers", memory_bytes=wish.declared_bytes),), "cpu"
    reason = machine.why_none
    if wish.names == ("auto",) and not found:
        return (), f"cpu (auto: no CUDA device: {reason})"
    every = wish.names in (("auto",), ("cuda",))
    wanted = tuple(one for one in found if every or one.name in wish.names)
    if not wanted or (not every and len(wanted) < len(wish.names)):
        there = f"there are {', '.join(names(found))}" if found else f"no CUDA device: {reason}"
        raise NodeUnavailableError(
            f"this machine has not the device {', '.join(wish.names)}: {there}. Start the Node with --device cpu, or "
            f"--device auto for what there is"
        )
    for one in wanted:
        if room(Granted(one, wish.parts)) <= 0:
            raise NodeUnavailableError(
                f"{fraction(wish.parts)} of {one.name} ({one.label}, {one.memory_bytes >> 20} MB) leaves nothing "
                f"beside the {CONTEXT_BYTES >> 20} MB that CUDA itself takes for each Worker: raise --device-fraction"
            )
    return wanted, ", ".join(names(wanted))


def names(devices: Sequence[Device]) -> tuple[str, ...]:
    """Their names."""
    return tuple(one.name for one in devices)


def fraction(parts: int) -> str:
    """Parts as people write them."""
    return f"{parts / WHOLE:g}"


def admit(devices: Sequence[Device], taken: Mapping[str, int], asked: Asked, usual: int) -> Granted | Wait:
    """Whether a Worker may begin now, and where: on the device with the most room. `taken` are the parts that Workers
    have, by device; `usual` is what each gets that asks for none.

    Never are more than all parts of a device granted. Raises BadRequest for a device that is not the Node's,
    LimitExceededError for a share that can never be granted.
    """
    parts = asked.parts or usual
    fitting = [one for one in devices if asked.device in ("", one.name, one.name.partition(":")[0])]
    if not fitting:
        there = ", ".join(names(devices)) or "cpu, with a limit for each Worker and no shares"
        raise BadRequest(f"this Node does not compute on {asked.device or 'shares'}: it has {there}. Leave device out")
    if not 0 < parts <= WHOLE:
        raise LimitExceededError(
            f"{fraction(parts)} of a device can never be given: ask for a device_fraction up to 1, or leave it out"
        )
    enough = [one for one in fitting if room(Granted(one, parts)) > 0]
    if not enough:
        raise LimitExceededError(
            f"{fraction(parts)} of {fitting[0].name} can never be enough: CUDA itself takes {CONTEXT_BYTES >> 20} MB "
            f"of its {fitting[0].memory_bytes >> 20} MB. Ask for a larger device_fraction"
        )
    free = {one.name: WHOLE - taken.get(one.name, 0) for one in enough}
    best = max(enough, key=lambda one: free[one.name])
    if free[best.name] >= parts:
        return Granted(best, parts)
    where = " or ".join(names(enough))
    return Wait(names(enough), f"it waits for {fraction(parts)} of {where}, which other sessions and jobs have")


def room(granted: Granted) -> int:
    """Bytes for tensors that a share is; of a GPU, what CUDA itself takes is not among them."""
    share = granted.device.memory_bytes * granted.parts // WHOLE
    return share if granted.device.name == "cpu" else share - CONTEXT_BYTES


def limited(limits: WorkerLimits, granted: Granted) -> WorkerLimits:
    """The limits of a Worker that has this share."""
    if granted.device.name == "cpu":
        return msgspec.structs.replace(limits, memory_bytes=room(granted))
    return msgspec.structs.replace(limits, device=granted.device.name, device_parts=granted.parts)


def device_names(text: str) -> tuple[str, ...]:
    """The names in what `--device` says: one of cpu, cuda, auto; or cuda:0 and the like. Raises ValueError."""
    if text in ("auto", "cuda", "cpu"):
        return (text,)
    wanted = tuple(dict.fromkeys(text.split(",")))
    if not all(re.fullmatch(r"cuda:[0-9]{1,2}", one) for one in wanted):
        raise ValueError(text)
    return wanted


def device_files() -> list[str]:
    """Those of `FILES` that are here."""
    return sorted(str(found) for pattern in FILES for found in Path("/dev").glob(pattern))

"""A device of its own: `node.device` is `grid:0`, `grid:1`, …, and torch's factories and `.to()` take it.

Set up when it is first asked for, since it takes torch's one place for a device of somebody else's
(docs/decisions/0011). To torch's C++ a pointer stays a CPU tensor, so that composite operations choose the
kernels that local tensors choose; only the attribute `device` tells of the place.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable
from typing import Any, NoReturn

import torch

from grid_jupyter.errors import BadRequest, SessionLostError
from grid_jupyter.tensors.dispatch import Fresh

_CPU = torch.device("cpu")
_Tensor: Any = torch.Tensor
_local_to: Callable[..., Any] = torch.Tensor.to
_MAX_PLACES = 128  # torch keeps the index in one signed byte
_places: list[weakref.ref[Any]] = []


def device_of(place: Any) -> torch.device:
    """The device of a place, for `x.to(device)` and `torch.zeros(3, device=device)`.

    Raises BadRequest where another accelerator, or another backend, has torch's place for it.
    """
    index = _index(place)
    if index is None:
        _prepare()
        index = len(_places)
        if index < _MAX_PLACES:
            _places.append(weakref.ref(place))
        else:
            index = next((n for n, known in enumerate(_places) if known() is None), -1)
            if index < 0:
                raise BadRequest(f"torch counts {_MAX_PLACES} devices at most; close clients that you do not need")
            _places[index] = weakref.ref(place)
    return torch.device("grid", index)


def place_of(device: torch.device) -> Any:
    """The place that a device stands for. Raises SessionLostError if its client is gone."""
    index = device.index or 0
    place = _places[index]() if 0 <= index < len(_places) else None
    if place is None:
        raise SessionLostError(f"there is no {device}: its client is gone. Connect again, and use node.device")
    return place


def _index(place: Any) -> int | None:
    return next((index for index, known in enumerate(_places) if known() is place), None)


class OnDevice:
    """What RemoteTensor answers about devices. Until somebody asked for the place's device, it is the CPU."""

    dtype: torch.dtype
    requires_grad: bool
    detach: Callable[[], Any]
    _ref: Any

    @property
    def device(self) -> torch.device:
        """`grid:0` and so on, once `node.device` was asked for; else `cpu`."""
        index = _index(self._ref.place) if _places else None
        return _CPU if index is None else torch.device("grid", index)

    @property
    def is_grid(self) -> bool:
        """Whether the values are elsewhere."""
        return True

    @property
    def is_cpu(self) -> bool:
        """Whether `device` says that this is a CPU tensor."""
        return self.device.type == "cpu"

    def get_device(self) -> int:
        """The index of the device; -1 for the CPU."""
        return -1 if self.device.index is None else self.device.index

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """As torch's. To the CPU is a read, which passes the release gate; to another place, a move."""
        if not _places or self.is_cpu:
            return _local_to(self, *args, **kwargs)
        if args and isinstance(args[0], torch.Tensor):
            args = (args[0].device, args[0].dtype, *args[1:])
        copy = kwargs.pop("copy", False)
        device, dtype, _, memory_format = torch._C._nn._parse_to(*args, **kwargs)
        source: Any = self
        if device is not None and device.type == "cpu":
            source = self.cpu()
        elif device is not None and device.type != "grid":
            raise TypeError(f"a remote tensor goes to the CPU with .cpu(), where it can go to {device}")
        elif device is not None and place_of(device) is not self._ref.place:
            source = source.detach().clone().move(place_of(device))
        options = {} if memory_format is None else {"memory_format": memory_format}
        plain = source.to if device is not None and device.type == "cpu" else functools.partial(_local_to, source)
        return plain(dtype=dtype or self.dtype, copy=copy and source is self, **options)

    def cpu(self, *args: Any, **kwargs: Any) -> Any:
        """The values: a read, which passes the release gate. The remote ones stay. Outside of the graph."""
        fetched: Any = self.detach()
        return fetched.get(deregister_ptr=False)

    def cuda(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: the values are elsewhere."""
        raise TypeError("a remote tensor goes to the CPU with .cpu(), where it can go to another device")


# ------------------------------------------------------------------ what torch calls for the device


class _Backend:
    """What torch looks for under `torch.grid`: nothing that would make it an accelerator of this process."""

    def is_available(self) -> bool:
        return False

    def is_initialized(self) -> bool:
        return True

    def device_count(self) -> int:
        return len(_places)

    def current_device(self) -> int:
        return 0

    def device(self, index: Any) -> Any:
        return contextlib.nullcontext()

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        """Random operations are seeded from the local generator."""

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None:
        """The local generator's state is kept with the CPU's."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


@functools.cache
def _prepare() -> None:
    accelerator = torch._C._accelerator_getAccelerator() if hasattr(torch._C, "_accelerator_getAccelerator") else None
    if accelerator is not None or torch.cuda.is_available():
        raise BadRequest(
            f"this process has {accelerator or 'cuda'}, whose place in torch a device for Nodes would take: "
            f"use x.send(node) and x.get() instead of x.to(node.device)"
        )
    if torch._C._get_privateuse1_backend_name() not in ("privateuseone", "grid"):
        raise BadRequest("another package has registered torch's one device of somebody else's; use x.send(node)")
    acc: Any = torch._C._acc

    class Hooks(acc.PrivateUse1Hooks):  # type: ignore[misc]  # made by C++
        def is_available(self) -> bool:
            return False

        def has_primary_context(self, index: int) -> bool:
            return False

        def is_built(self) -> bool:
            return True

    class Guard(acc.DeviceGuard):  # type: ignore[misc]
        def type_(self) -> Any:
            return torch._C._autograd.DeviceType.PrivateUse1

    kept = Hooks(), Guard()
    utils: Any = torch.utils
    utils.rename_privateuse1_backend("grid")
    torch._register_device_module("grid", _Backend())
    acc.register_python_privateuseone_hook(kept[0])
    acc.register_python_privateuseone_device_guard(kept[1])
    # nobody else may find an accelerator in it
    core: Any = torch._C
    core._accelerator_getAccelerator = lambda: None
    library = torch.library.Library("aten", "IMPL")
    for name, make in _factories().items():
        library.impl(name, make, "PrivateUse1")
    _kept.extend((*kept, library))
    _prepare_modules()


_kept: list[Any] = []


def _filled(value: Any) -> Callable[..., Any]:
    def make(size: Any, *given: Any, **options: Any) -> Any:
        return _full(size, value, options)

    return make


def _full(size: Any, value: Any, options: dict[str, Any]) -> Any:
    from grid_jupyter.tensors.remote import send  # it is above this module

    if torch._C._dispatch_tls_is_dispatch_key_excluded(torch._C.DispatchKey.Python):
        raise TypeError("torch.tensor and torch.as_tensor make their values here: use torch.tensor(…).to(device)")
    session = place_of(options["device"]).session
    dtype = options.get("dtype") or torch.get_default_dtype()
    return send(torch.zeros((), dtype=dtype), session).new_full(list(size), value)


def _sent(name: str) -> Callable[..., Any]:
    """A factory whose values are made here, from the local generator, and sent."""
    base, variant = name.split(".")
    overload: Any = getattr(getattr(torch.ops.aten, base), variant)

    def make(*args: Any, **options: Any) -> Any:
        from grid_jupyter.tensors.remote import send  # it is above this module

        session = place_of(options["device"]).session
        made = send(overload(*args, **{**options, "device": _CPU, "pin_memory": False}), session)
        made._layout = Fresh.of(made._layout)
        return made

    return make


def _factories() -> dict[str, Callable[..., Any]]:
    sent = """
    arange arange.start arange.start_step eye eye.m linspace logspace rand randn randint randint.low randperm
    tril_indices triu_indices scalar_tensor hann_window hamming_window
    """
    return {
        "empty.memory_format": _filled(0),  # memory that was not written to holds what was computed before
        "empty_strided": _filled(0),
        "zeros": _filled(0),
        "ones": _filled(1),
        "full": lambda size, value, **options: _full(
            size, value, {**options, "dtype": options.get("dtype") or torch.tensor(value).dtype}
        ),
        **{name: _sent(name if "." in name else f"{name}.default") for name in sent.split()},
    }


def _prepare_modules() -> None:
    """`module.to(node.device)` sends a module as a whole: shared parameters stay shared; `.cpu()` gets it."""
    from grid_jupyter.tensors.modules import get_module, is_remote, move_module, send_module  # they are above

    module: Any = torch.nn.Module
    local_to, local_cpu = module.to, module.cpu

    @functools.wraps(local_to)
    def to(self: Any, *args: Any, **kwargs: Any) -> Any:
        tensor = kwargs.get("tensor", args[0] if args else None)
        if isinstance(tensor, torch.Tensor):
            args, kwargs = (tensor.device, tensor.dtype), {}
        device, dtype, _, memory_format = torch._C._nn._parse_to(*args, **kwargs)
        remote = is_remote(self)
        if device is None or (device.type != "grid" and not remote):
            return local_to(self, *args, **kwargs)
        if device.type == "grid":
            place = place_of(device)
            move_module(self, place) if remote else send_module(self, place.session)
        else:
            cpu(self)
        options = {} if memory_format is None else {"memory_format": memory_format}
        return local_to(self, dtype=dtype, **options) if dtype is not None or options else self

    @functools.wraps(local_cpu)
    def cpu(self: Any) -> Any:
        return get_module(self) if is_remote(self) else local_cpu(self)

    module.to, module.cpu = to, cpu

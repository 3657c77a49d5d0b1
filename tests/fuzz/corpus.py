"""Calls that torch itself makes, recorded from its own operator database: what the fuzzer bends.

`python -m tests.fuzz.corpus` records them anew into corpus.json, which takes a minute; it needs the package expecttest.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from grid_jupyter.ops.allowed import ALLOWED, STRINGS
from grid_jupyter.ops.raw import NAMES

from .calls import Call, Complex, Constant, Items, Named, Number, Tensor, tensors

_FILE = Path(__file__).with_name("corpus.json")
_FORMATS = {
    torch.contiguous_format: "contiguous_format",
    torch.preserve_format: "preserve_format",
    torch.channels_last: "channels_last",
    torch.channels_last_3d: "channels_last_3d",
}
_MOST = 8  # calls kept of one operation
_ELEMENTS = 4096


def load() -> dict[str, list[Call]]:
    """Recorded calls by operation."""
    found: dict[str, list[Call]] = {}
    for call in msgspec.json.decode(_FILE.read_bytes(), type=list[Call]):
        for holder in (call.args, [item for _, item in call.kwargs]):
            holder[:] = [_item(part) for part in holder]
        call.kwargs = [(name, _item(item)) for name, item in call.kwargs]
        found.setdefault(call.name, []).append(call)
    return found


_KINDS = {"tensor": Tensor, "number": Number, "complex": Complex, "constant": Constant, "named": Named, "items": Items}


def _item(raw: Any) -> Any:
    made = msgspec.convert(raw, _KINDS[raw["type"]])
    if isinstance(made, Items):
        made.parts = [_item(part) for part in made.parts]
    return made


class _Recorder(TorchDispatchMode):
    """Keeps the shapes of calls, a few different ones of each operation."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, dict[bytes, Call]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if name in ALLOWED:
            try:
                call = Call(name, [_describe(a) for a in args], [(k, _describe(v)) for k, v in (kwargs or {}).items()])
                self._keep(call)
            except (TypeError, ValueError, KeyError):
                pass  # an argument that no client can send
        return func(*args, **(kwargs or {}))

    def _keep(self, call: Call) -> None:
        kept = self.calls.setdefault(call.name, {})
        structure = copy.deepcopy(call)
        for operand in tensors(structure):
            operand.shape, operand.stride, operand.values = (len(operand.shape),), None, ()
            operand.low = operand.high = operand.offset = 0
        key = msgspec.json.encode([type(a).__name__ if isinstance(a, Number) else a for a in structure.args])
        if len(kept) < _MOST and key not in kept:
            kept[key] = call


def _describe(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        if value.numel() > _ELEMENTS:
            raise ValueError("a large operand")
        made = Tensor(NAMES[value.dtype], tuple(value.shape))
        if not value.is_contiguous():
            made.stride = value.stride()
        plain = value.detach().reshape(-1)
        if plain.numel() and not value.is_complex():
            numbers = plain.double()
            if torch.isfinite(numbers).all():
                made.fill, made.low, made.high = "range", float(numbers.min()), float(numbers.max())
                if not value.is_floating_point() and plain.numel() <= 16:
                    made.values = tuple(plain.tolist())
        return made
    if value is None or isinstance(value, bool):
        return Constant(value)
    if isinstance(value, (int, float)):
        if isinstance(value, float) and not abs(value) < 1e300:
            raise ValueError("JSON has no such number")
        return Number(value)
    if isinstance(value, complex):
        return Complex(value.real, value.imag)
    if isinstance(value, str):
        if value not in STRINGS:
            raise ValueError("a text that is refused")
        return Constant(value)
    if isinstance(value, torch.dtype):
        return Named("t", NAMES[value])
    if isinstance(value, torch.memory_format):
        return Named("m", _FORMATS[value])
    if isinstance(value, (torch.device, torch.layout)):
        return Constant(None)
    if isinstance(value, (list, tuple)):
        if value and all(type(part) in (int, float) for part in value):
            return Number(list(value))
        return Items([_describe(part) for part in value])
    raise TypeError(type(value).__name__)


def record() -> None:
    """Run torch's samples and write what was called."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    recorder = _Recorder()
    for run in _samples():
        try:
            with recorder:
                run()
        except Exception:  # noqa: S112 - a sample of torch's that does not run here shows nothing
            continue
    calls = [call for _, kept in sorted(recorder.calls.items()) for call in kept.values()]
    lines = b",\n".join(msgspec.json.encode(call) for call in calls)
    _FILE.write_bytes(b"[\n" + lines + b"\n]\n")
    missing = sorted(ALLOWED - set(recorder.calls))
    print(f"{len(calls)} calls of {len(recorder.calls)} operations; none of {', '.join(missing) or 'no other'}")


def _samples() -> Iterator[Callable[[], Any]]:
    from torch.testing._internal import common_methods_invocations as methods

    for op in methods.op_db:
        dtypes = [d for d in (torch.float32, torch.int64, torch.bool, torch.complex64) if d in op.dtypes]
        for dtype in dtypes[:1]:
            for sample in op.sample_inputs("cpu", dtype, requires_grad=False):
                yield lambda op=op, s=sample: op(s.input, *s.args, **s.kwargs)
                if op.inplace_variant is not None:
                    yield lambda op=op, s=sample: op.inplace_variant(s.input.clone(), *s.args, **s.kwargs)
    yield from _foreach_samples()
    yield from _model_samples()


def _foreach_samples() -> Iterator[Callable[[], Any]]:
    for base in sorted({name.split(".")[1] for name in ALLOWED if "_foreach" in name}):
        function = getattr(torch, base, None)
        lists = [[torch.rand(3, 2), torch.rand(4)] for _ in range(4)]
        for extra in (
            (),
            (lists[1],),
            (0.5,),
            ([0.5, 2.0],),
            (torch.tensor(0.5),),
            (lists[1], lists[2]),
            (lists[1], lists[2], 0.5),
            (lists[1], lists[2], [0.5, 1.0]),
            (lists[1], lists[2], torch.tensor([0.5, 1.0])),
            (lists[1], 0.5),
            (lists[1], [0.5, 1.0]),
        ):
            if function is not None:
                yield lambda f=function, e=extra: f([torch.rand(3, 2), torch.rand(4)], *e)
    yield lambda: torch._foreach_pow(torch.tensor(2.0), [torch.rand(3)])


def _model_samples() -> Iterator[Callable[[], Any]]:
    nn = torch.nn

    def train(model: nn.Module, x: torch.Tensor, optimiser: Any = None, **options: Any) -> Callable[[], Any]:
        def run() -> None:
            out = model(x)
            loss = (out[0] if isinstance(out, tuple) else out).square().mean()
            loss.backward()
            if optimiser is not None:
                made = optimiser(model.parameters(), **options)
                for _ in range(2):
                    made.step()
                made.zero_grad(set_to_none=False)

        return run

    x = torch.rand(4, 3)
    optimisers = [
        getattr(torch.optim, name)
        for name in (
            "SGD",
            "Adam",
            "AdamW",
            "Adamax",
            "NAdam",
            "RAdam",
            "RMSprop",
            "Rprop",
            "ASGD",
            "Adagrad",
            "Adadelta",
        )
    ]
    for optimiser in optimisers:
        for options in ({}, {"foreach": True}, {"fused": True}, {"weight_decay": 0.1, "foreach": True}):
            yield train(nn.Linear(3, 2), x, optimiser, **options)
    for options in ({"momentum": 0.9}, {"momentum": 0.9, "foreach": True}, {"momentum": 0.9, "fused": True}):
        yield train(nn.Linear(3, 2), x, torch.optim.SGD, lr=0.1, **options)
    yield train(nn.Linear(3, 2), x, torch.optim.Adam, amsgrad=True, fused=True)
    yield train(nn.LSTM(3, 4), torch.rand(5, 2, 3))
    yield train(nn.GRU(3, 4), torch.rand(5, 2, 3))
    yield train(nn.Dropout(), x)
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    yield train(encoder, torch.rand(2, 5, 8))
    yield lambda: encoder.eval()(torch.rand(2, 5, 8))
    yield lambda: nn.EmbeddingBag(6, 3)(torch.tensor([1, 2, 4, 5]), torch.tensor([0, 2]))
    yield lambda: nn.utils.rnn.pack_padded_sequence(torch.rand(5, 3, 2), torch.tensor([5, 3, 1]))
    yield lambda: nn.functional.affine_grid(torch.rand(2, 2, 3), [2, 1, 4, 4])
    yield lambda: nn.functional.fold(torch.rand(1, 12, 6), (3, 4), (2, 2))
    yield lambda: torch.ops.aten.lift_fresh_copy(torch.rand(3))
    yield lambda: torch.ops.aten.mkldnn_rnn_layer(
        torch.rand(5, 2, 3), torch.rand(16, 3), torch.rand(16, 4), torch.rand(16), torch.rand(16), torch.rand(1, 2, 4),
        torch.rand(1, 2, 4), False, [], 2, 4, 1, True, False, False, True,
    )  # fmt: skip
    aten, p, q, n = torch.ops.aten, [torch.rand(3, 2)], [torch.rand(3, 2)], torch.arange(4)
    yield from (
        lambda: aten._ctc_loss.Tensor(
            torch.rand(6, 2, 5).log_softmax(2), torch.tensor([[1, 2, 3], [2, 2, 4]]), n[2:] + 3, n[1:3]
        ),
        lambda: aten._ctc_loss.Tensor(
            torch.rand(6, 2, 5).log_softmax(2), torch.tensor([1, 2, 4]), n[2:] + 3, n[1:3], 0, True
        ),
        lambda: aten._neg_view(torch.rand(3, 2)),
        lambda: aten.bitwise_and.Scalar(n, 3),
        lambda: aten.bitwise_or.Scalar(n, 3),
        lambda: aten.bitwise_xor.Scalar(n, 3),
        lambda: aten.clamp_max(torch.rand(3), 0.5),
        lambda: aten.fmod.Scalar(n, 3),
        lambda: aten.clamp_max_(torch.rand(3), 0.5),
        lambda: aten.div.Scalar_mode(n, 3, rounding_mode="floor"),
        lambda: aten.div_.Scalar_mode(torch.rand(3), 3, rounding_mode="trunc"),
        lambda: aten.floor_divide.Scalar(n, 3),
        lambda: aten.fill_.Tensor(torch.rand(3), torch.tensor(2.0)),
        lambda: aten.native_dropout(torch.rand(9), 0.5, True),
        lambda: aten.pow.Scalar(2, torch.rand(3)),
        lambda: aten.rand_like(torch.rand(3)),
        lambda: aten.random_(torch.rand(9), 3, 7),
        lambda: getattr(aten.random_, "from")(torch.rand(9), 3, 7),
        lambda: aten.relu_(torch.rand(3)),
        lambda: aten.remainder.Scalar_Tensor(5, n + 1),
        lambda: aten.sub_.Scalar(torch.rand(3), 2),
        lambda: aten.view.dtype(torch.rand(3, 2), torch.int32),
        lambda: aten.view.dtype(torch.rand(3, 2), torch.float64),
    )
    yield lambda: encoder.eval().requires_grad_(False)(torch.rand(2, 5, 8))
    adam = {
        "lr": 0.1,
        "beta1": 0.9,
        "beta2": 0.99,
        "weight_decay": 0.0,
        "eps": 1e-8,
        "amsgrad": True,
        "maximize": False,
    }
    for kernel in (aten._fused_adam_, aten._fused_adamw_):
        yield lambda k=kernel: k(p, q, q, q, q, [torch.tensor(1.0)], **adam)
    yield lambda: aten._fused_sgd_(
        p, q, [torch.rand(3, 2)], weight_decay=0.0, momentum=0.9, lr=0.1, dampening=0.0, nesterov=False, maximize=False,
        is_first_step=False,
    )  # fmt: skip


if __name__ == "__main__":
    record()

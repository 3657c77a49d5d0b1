"""Calls that end a process with a signal, or read past its tensors, when ATen gets them as they are.

`python -m tests.fuzz.killers` makes each in a child of its own, through the Worker's executor, and prints what came
of it, one JSON list a line: name, number of the signal that ended the child, code of the error (or "").
"""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import Any

import torch

from grid_jupyter.wire import commands, frames
from grid_jupyter.worker.executor import Broken, Executor

from .calls import Call, Constant, Items, Named, Number, Tensor, encode, tensors
from .dice import Dice
from .memory import Contents

_BIG = 1 << 33
_YES, _NO, _NONE = Constant(True), Constant(False), Constant(None)


def _t(*shape: int, value: float = 1.0) -> Tensor:
    return Tensor("float32", shape, values=(value,))


def _i(*shape: int, values: tuple[int, ...] = (_BIG,), dtype: str = "int64") -> Tensor:
    return Tensor(dtype, shape, values=values)


def _n(*numbers: Any) -> Number:
    return Number(list(numbers))


def _call(name: str, *args: Any, **kwargs: Any) -> Call:
    return Call(f"aten.{name}", list(args), list(kwargs.items()))


_ADAM = {"lr": 0.1, "beta1": 0.9, "beta2": 0.9, "weight_decay": 0.0, "eps": 1e-8}
_SGD = {"weight_decay": 0.0, "momentum": 0.0, "lr": 0.1, "dampening": 0.0}


def _fused(**options: Any) -> dict[str, Any]:
    return {name: Constant(v) if isinstance(v, bool) else Number(v) for name, v in options.items()}


def _list(*parts: Any) -> Items:
    return Items(list(parts))


_HUGE = 1 << 18
CALLS: tuple[Call, ...] = (
    # backward kernels: none of them is on the list
    _call(
        "max_pool2d_with_indices_backward.default",
        _t(1, 1, 2, 2),
        _t(1, 1, 4, 4),
        _n(2, 2),
        _n(2, 2),
        _n(0, 0),
        _n(1, 1),
        _NO,
        _i(1, 1, 2, 2),
    ),
    _call(
        "max_pool3d_with_indices_backward.default",
        _t(1, 1, 2, 2, 2),
        _t(1, 1, 4, 4, 4),
        _n(2, 2, 2),
        _n(2, 2, 2),
        _n(0, 0, 0),
        _n(1, 1, 1),
        _NO,
        _i(1, 1, 2, 2, 2),
    ),
    _call("adaptive_max_pool2d_backward.default", _t(1, 1, 2, 2), _t(1, 1, 4, 4), _i(1, 1, 2, 2)),
    _call("adaptive_max_pool3d_backward.default", _t(1, 1, 2, 2, 2), _t(1, 1, 4, 4, 4), _i(1, 1, 2, 2, 2)),
    _call("nll_loss_backward.default", _t(2), _t(2, 3), _i(2), _NONE, Number(0), Number(-100), _t(value=0.0)),
    _call(
        "nll_loss2d_backward.default",
        _t(1, 2, 2),
        _t(1, 3, 2, 2),
        _i(1, 2, 2),
        _NONE,
        Number(0),
        Number(-100),
        _t(value=0.0),
    ),
    _call(
        "_embedding_bag_dense_backward.default",
        _t(1, 4),
        _i(2),
        _i(2),
        _i(1, values=(2,)),
        _i(1, values=(-1,)),
        Number(4),
        _NO,
        Number(0),
        _NONE,
    ),
    _call(
        "_embedding_bag_per_sample_weights_backward.default",
        _t(1, 4),
        _t(4, 4),
        _i(2),
        _i(1, values=(0,)),
        _i(2, values=(0,)),
        Number(0),
    ),
    _call("_segment_reduce_backward.default", _t(1), _t(1), _t(4), Constant("sum"), lengths=_i(1)),
    _call("_ctc_loss_backward.default", _t(1), _t(4, 1, 3), _i(1, 2), _n(4), _n(2), _t(1), _t(1, 4, 5), Number(0)),
    _call("cdist_backward.default", _t(1, 1), _t(2, 4), _t(2, 4), Number(1.0), _t(1, 1)),
    _call("embedding_dense_backward.default", _t(2, 4), _i(2), Number(4), Number(-1), _NO),
    _call("_log_softmax_backward_data.default", _t(1), _t(4000, 1), Number(1), Named("t", "float32")),
    _call(
        "native_batch_norm_backward.default",
        _t(2, 9, 2),
        _t(2, 9, 2),
        _NONE,
        _NONE,
        _NONE,
        _t(1),
        _t(1),
        _YES,
        Number(1e-5),
        _list(_YES, _YES, _YES),
    ),
    # forward kernels
    _call("_reshape_alias.default", _t(4), _n(_BIG), _n(1)),
    _call("as_strided.default", _t(4), _n(8), _n(1), Number(0)),
    _call("_embedding_bag.default", _t(4, 4), _i(2), _i(1, values=(0,))),
    _call("_embedding_bag.default", _t(4, 4), _i(2, values=(0,)), _i(2, values=(0, _BIG))),
    _call("_embedding_bag.default", _t(4, 4), _i(2, values=(0,)), _i(1, values=(0,)), _NO, Number(0), _NO, _t(1)),
    _call("_embedding_bag_forward_only.default", _t(4, 4), _i(2, values=(0,)), _i(1, values=(-_BIG,))),
    _call("segment_reduce.default", _t(4), Constant("sum"), lengths=_i(2), unsafe=_YES),
    _call("segment_reduce.default", _t(4), Constant("sum"), offsets=_i(2, values=(0, _BIG)), unsafe=_YES),
    _call("_ctc_loss.default", _t(4, 1, 3), _i(1, 2), _n(4), _n(2)),
    _call("_ctc_loss.Tensor", _t(4, 1, 3), _i(1, 2), _i(1, values=(4,)), _i(1, values=(2,))),
    _call("_ctc_loss.Tensor", _t(4, 1, 3), _i(1, 2, values=(1,)), _i(1, values=(1 << 30,)), _i(1, values=(1 << 30,))),
    _call(
        "mkldnn_rnn_layer.default",
        _t(50, 60, 4),
        _t(1, 1),
        _t(1, 1),
        _t(1),
        _t(1),
        _t(1, 1),
        _t(1, 1),
        _NO,
        _n(),
        Number(2),
        Number(800),
        Number(1),
        _YES,
        _NO,
        _NO,
        _YES,
    ),
    _call(
        "_fused_adam_.default",
        _list(_t(_HUGE)),
        _list(_t(1)),
        _list(_t(1)),
        _list(_t(1)),
        _list(),
        _list(_t()),
        **_fused(**_ADAM, amsgrad=False, maximize=False),
    ),
    _call(
        "_fused_adamw_.default",
        _list(_t(_HUGE)),
        _list(_t(1)),
        _list(_t(1)),
        _list(_t(1)),
        _list(),
        _list(_t()),
        **_fused(**_ADAM, amsgrad=True, maximize=False),
    ),
    _call(
        "_fused_sgd_.default",
        _list(_t(_HUGE)),
        _list(_t(1)),
        _list(),
        **_fused(**_SGD, nesterov=False, maximize=False, is_first_step=False),
    ),
    _call(
        "_fused_adagrad_.default",
        _list(_t(_HUGE)),
        _list(_t(1)),
        _list(_t(1)),
        _list(_t()),
        **_fused(lr=0.1, lr_decay=0.0, weight_decay=0.0, eps=1e-8, maximize=False),
    ),
    _call("native_batch_norm.default", _t(2, 3, 2), _NONE, _NONE, _NONE, _NONE, _NO, Number(0.1), Number(1e-5)),
    _call("native_batch_norm.default", _t(2, 20_000, 2), _t(1), _t(1), _NONE, _NONE, _YES, Number(0.1), Number(1e-5)),
    _call("_fft_r2c.default", _t(4), _n(7), Number(0), _YES),
    _call("_fft_r2c.default", _t(4, 4), _n(0), Number(99), _YES),
    _call("_fft_c2r.default", Tensor("complex64", (4,)), _n(0), Number(0), Number(_HUGE)),
    _call("_sparse_coo_tensor_unsafe.default", _i(1, 1), _t(1), _n(4)),
    _call("_sparse_csr_tensor_unsafe.default", _i(2, values=(0, _BIG)), _i(1), _t(1), _n(1, 4)),
    _call("_nested_view_from_buffer.default", _t(4), _i(1, 1), _i(1, 1, values=(1,)), _i(1)),
    # found by this project's own fuzzer
    _call("_scaled_dot_product_flash_attention_for_cpu.default", _t(4, 4, 6, 8), _t(4, 4, 3, 8), _t(4, 4, 6, 8)),
    _call("_scaled_dot_product_flash_attention_for_cpu.default", _t(4, 4, 3, 8), _t(4, 0, 6, 8), _t(4, 4, 6, 8)),
    _call("_to_copy.default", _i(3, values=(1,)), dtype=Number(1000)),
    _call("_foreach_addcmul_.ScalarList", _list(_t(2), _t(3)), _list(_t(2), _t(3)), _list(_t(2), _t(3)), _n()),
    _call("_foreach_lerp_.ScalarList", _list(_t(2), _t(3)), _list(_t(2), _t(3)), _n()),
    _call("lcm.default", _i(1, values=(-(1 << 63),)), _i(1, values=(5,))),
    _call("div.Tensor_mode", _i(1, values=(-(1 << 63),)), _i(1, values=(-1,)), rounding_mode=Constant("trunc")),
    _call("div_.Scalar_mode", _i(1, values=(-(1 << 63),)), Number(-1), rounding_mode=Constant("trunc")),
    _call("clone.default", _t(2, 4), memory_format=Number(4)),
    _call("cumprod.default", _t(5), Number(0), dtype=Number(-2)),
    _call("linalg_lstsq.default", _t(2, 3), _t(2, 0), driver=Constant("gelss")),
    # ends the process in its backward pass, were it not refused before
    _call("grid_sampler_2d.default", _t(1, 1, 3, 3), _t(1, 2, 2, 2, value=float("nan")), Number(0), Number(2), _YES),
    _call(
        "convolution.default",
        _t(1, 1, 4, 3, 4),
        _t(1, 2, 3, 4, 5),
        _NONE,
        _n(2, 2, 1 << 15),
        _n(1, 1, 1),
        _n(1, 1, 1),
        _YES,
        _n(1, 1, 1),
        Number(1),
    ),
)


def make(call: Call) -> str:
    """Make a call in this process; the code of its error, or an empty text."""
    executor = Executor(1 << 30)
    contents, dice = Contents(0), Dice(call.name)
    operands = tensors(call)
    for number, operand in enumerate(operands):
        data = bytearray(contents.of(operand, dice))
        flat = torch.frombuffer(data, dtype=getattr(torch, operand.dtype)) if data else torch.zeros(0)
        executor.put(number + 1, flat.reshape(operand.shape))
    args, kwargs, slots = encode(call, [number + 1 for number in range(len(operands))])
    in_place = call.name.split(".")[1].endswith("_")
    executor.feed(frames.encode([[commands.DEFINE, 0, call.name, args, kwargs], [0, 0 if in_place else 900, *slots]]))
    if in_place:
        return "".join(fault.error.code for fault in executor.earlier())
    found = executor.read(900)
    return found.error.code if isinstance(found, Broken) else ""


def main() -> None:
    """Each call in a child."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for call in CALLS:
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            torch.set_num_threads(1)
            os.write(writing, make(call).encode())
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as answer:
            code = answer.read()
        _, status = os.waitpid(pid, 0)
        print(json.dumps([call.name, status, code]))
    sys.stdout.flush()


if __name__ == "__main__":
    main()

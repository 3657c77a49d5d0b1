"""Sequences of several lengths, padded or packed: this side knows where the rows are, not what is in them.

torch's own functions for these read the number of rows at each step from memory, which a remote tensor has not, or
write into a tensor that they make on this side. Here rows are taken and put by their numbers, which stay on this side.
"""

from __future__ import annotations

from typing import Any

import torch

from grid_jupyter.errors import RemoteOperationError
from grid_jupyter.tensors.autograd import Autograd

aten = torch.ops.aten
_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd


def pack(args: Any, kwargs: Any) -> Any:
    """`_pack_padded_sequence` of a remote tensor: its rows, steps first, and a local tensor of rows at each step."""
    x, lengths, batch_first = args
    if isinstance(lengths, Autograd):
        raise RemoteOperationError(
            "the lengths of a packed sequence belong to this side, as torch has them on the CPU: .get() them"
        )
    steps = aten.transpose.int(x, 0, 1) if batch_first else x
    count, batch = steps.shape[:2]
    numbers = torch.arange(count * batch).view(count, batch, 1)
    order, sizes = aten._pack_padded_sequence.default(numbers, lengths, False)
    flat = aten.clone.default(steps, memory_format=torch.contiguous_format)
    flat = aten.view.default(flat, [count * batch, *steps.shape[2:]])
    return aten.index_select.default(flat, 0, order[:, 0]), sizes


def pad(data: Any, sizes: torch.Tensor, batch_first: bool, padding: float, total: int) -> Any:
    """`_pad_packed_sequence`, for remote rows; local ones go torch's way."""
    if not isinstance(data, Autograd) or isinstance(sizes, Autograd):
        composite: Any = torch.ops.aten._pad_packed_sequence.default
        return composite._op_dk(_COMPOSITE, data, sizes, batch_first, padding, total)
    rows: Any = data
    count, batch = len(sizes), int(sizes[0])
    if 0 < total < count:
        raise RuntimeError(f"total_length is {total}, and the longest sequence has {count} steps")
    there = torch.arange(batch) < sizes[:, None]
    places = torch.arange(count * batch).view(count, batch)[there]
    steps = max(count, total)
    padded = rows.new_full([steps * batch, *rows.shape[1:]], padding).index_copy(0, places, rows)
    padded = padded.view(steps, batch, *rows.shape[1:])
    return padded.transpose(0, 1) if batch_first else padded, there.sum(0)


def pad_each(rows: Any, batch_first: bool = False, padding: float = 0.0, side: str = "right") -> Any:
    """`pad_sequence`, where one of the sequences is remote; local ones go torch's way."""
    if not any(isinstance(one, Autograd) for one in rows) or side not in ("left", "right"):
        composite: Any = torch.ops.aten.pad_sequence.default
        return composite._op_dk(_COMPOSITE, rows, batch_first, padding, side)
    longest = max(len(one) for one in rows)
    padded = []
    for row in rows:
        one = row.to(rows[0].dtype)  # as torch copies them
        missing = longest - len(one)
        ends = [missing, 0] if side == "left" else [0, missing]
        padded.append(torch.nn.functional.pad(one, [0, 0] * (one.dim() - 1) + ends, value=padding))
    return torch.stack(padded, 0 if batch_first else 1)

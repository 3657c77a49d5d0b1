"""Reading a remote tensor: each of these waits for the value, and passes the release gate of its Node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from grid_jupyter.ops.shapes import Layout


class Reading:
    """What of torch.Tensor's methods needs the values."""

    numel: Callable[[], int]
    _ref: Any
    _layout: Layout

    def _read(self) -> torch.Tensor:
        identity = self._ref.id
        tensor: torch.Tensor = self._ref.session.read(identity)[0]
        return tensor

    def item(self) -> Any:
        """The one element, as a Python number: a read."""
        if self.numel() != 1:
            raise RuntimeError("a Tensor with more than one element cannot be converted to Scalar")
        return self._read().item()

    def tolist(self) -> Any:
        """The values as nested lists: a read."""
        return self._read().tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        """The values as an array: a read."""
        return self._read().numpy(*args, **kwargs)

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        array = self._read().numpy()
        return array if dtype is None else array.astype(dtype)

    def __bool__(self) -> bool:
        return bool(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __complex__(self) -> complex:
        return complex(self.item())

    def __index__(self) -> int:
        return self._read().__index__()

    def __contains__(self, value: Any) -> bool:
        return bool((self == value).any())

    def __len__(self) -> int:
        if not self._layout.shape:
            raise TypeError("len() of a 0-d tensor")
        return int(self._layout.shape[0])  # a read, where only the values tell it

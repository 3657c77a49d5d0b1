"""sums += scale * values in one pass over memory, by the BLAS that NumPy computes with; without one, in two passes.

NumPy has no operation that multiplies and adds, and its BLAS (which `numpy.dot` calls) has: `axpy`. It is looked up
where NumPy has loaded it, so nothing new is loaded, and which way it goes is the same as long as a process lives.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable, Mapping
from importlib.machinery import EXTENSION_SUFFIXES
from typing import Any

import numpy
from numpy.typing import NDArray

Array = NDArray[Any]
Axpy = Callable[[int, float, int, int, int, int], None]
"""n, scale, address of values, their stride, address of sums, their stride."""

_KINDS = {"float32": ("cblas_saxpy", ctypes.c_float), "float64": ("cblas_daxpy", ctypes.c_double)}
_SPELLINGS = ("scipy_{}64_", "{}64_", "scipy_{}", "{}")  # NumPy's wheels, other 64-bit builds, the plain ones
_NUMPYS = ("numpy._core._multiarray_umath", "numpy.core._multiarray_umath")  # 2, 1


LONGEST = 1 << 24
"""Elements that are added at a time where nothing is kept between two passes: within 32 bits."""


def add_scaled(sums: Array, scale: Any, values: Array, scratch: Array) -> None:
    """sums += scale * values, all flat and of one length, scale a number of sums' dtype.

    Values that cannot be added as they are pass through `scratch`, which is as `sums` then; it may be `values`.
    """
    axpy = kernels().get(sums.dtype)
    if axpy is None:
        numpy.multiply(values, scale, scratch)
        numpy.add(sums, scratch, sums)
        return
    if not as_it_is(values, sums.dtype):
        numpy.copyto(scratch, values)
        values = scratch
    axpy(sums.size, float(scale), values.ctypes.data, 1, sums.ctypes.data, 1)


def as_it_is(values: object, dtype: numpy.dtype[Any]) -> bool:
    """Whether values can be added to sums of a dtype in one pass: they are of it, aligned, and one behind the other."""
    if not isinstance(values, numpy.ndarray) or values.dtype != dtype or dtype not in kernels():
        return False
    return values.flags.c_contiguous and values.flags.aligned


@functools.cache
def kernels() -> Mapping[numpy.dtype[Any], Axpy]:
    """The BLAS's axpy by dtype; none where NumPy has no BLAS, or none is known. To be called once before a fork, or
    where files can be opened."""
    file = next((_file(name) for name in _NUMPYS if _file(name)), None)
    if file is None:
        return {}
    try:
        library = ctypes.CDLL(file)  # it is loaded already; its symbols, and those of what it is linked with
    except OSError:
        return {}
    found: dict[numpy.dtype[Any], Axpy] = {}
    for name, (function, number) in _KINDS.items():
        for spelling in _SPELLINGS:
            axpy = getattr(library, spelling.format(function), None)
            if axpy is not None:
                # lengths fill their registers whether the build takes 32 or 64 bits of them
                size, pointer = ctypes.c_int64, ctypes.c_void_p
                axpy.argtypes, axpy.restype = (size, number, pointer, size, pointer, size), None
                found[numpy.dtype(name)] = axpy
                break
    return {dtype: axpy for dtype, axpy in found.items() if _is_right(dtype, axpy)}


def _file(name: str) -> str | None:
    """Where a module of NumPy's that is loaded lies, if that is a shared library."""
    file = getattr(sys.modules.get(name), "__file__", None)
    return file if isinstance(file, str) and file.endswith(tuple(EXTENSION_SUFFIXES)) else None


def _is_right(dtype: numpy.dtype[Any], axpy: Axpy) -> bool:
    """Whether it does what its name says: 3 * [0, 1, 2, …] + 1, and nothing beyond."""
    values, sums = numpy.arange(40, dtype=dtype), numpy.ones(41, dtype)
    axpy(values.size, 3.0, values.ctypes.data, 1, sums.ctypes.data, 1)
    return bool((sums[:-1] == 3 * values + 1).all() and sums[-1] == 1)

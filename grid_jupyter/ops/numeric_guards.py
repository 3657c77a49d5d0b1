"""Checks around kernels of linear algebra, Fourier transforms, distances and resampling that trust their caller.

They are called by way of ops/guards.py, which says more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

aten = torch.ops.aten
_MAX_DEGREE = 1 << 16
_MAX_STRIDE = 1024


def need(condition: bool, what: str) -> None:
    """Raises ValueError unless an argument is as a kernel takes for granted."""
    if not condition:
        raise ValueError(f"bad argument: {what}")


def _transform(x: torch.Tensor, dim: list[int], normalization: int) -> None:
    need(bool(dim) and len(set(dim)) == len(dim), "each dim once")
    need(all(0 <= d < x.dim() for d in dim), "dims of the input")
    need(normalization in (0, 1, 2) and x.numel() > 0, "a known normalization and a non-empty input")


def _fft_r2c(x: torch.Tensor, dim: list[int], normalization: int, onesided: bool) -> Any:
    _transform(x, dim, normalization)
    return aten._fft_r2c.default(x, dim, normalization, onesided)


def _fft_c2c(x: torch.Tensor, dim: list[int], normalization: int, forward: bool) -> Any:
    _transform(x, dim, normalization)
    return aten._fft_c2c.default(x, dim, normalization, forward)


def _fft_c2r(x: torch.Tensor, dim: list[int], normalization: int, last: int) -> Any:
    _transform(x, dim, normalization)
    need(last > 0 and x.shape[dim[-1]] == last // 2 + 1, "as many frequencies as the last dim has")
    return aten._fft_c2r.default(x, dim, normalization, last)


def _pdist(x: torch.Tensor, p: float = 2.0) -> Any:
    need(x.dim() == 2 and x.is_floating_point() and p >= 0, "distances are of the rows of a float matrix")
    if not x.numel():  # its backward divides by the number of rows
        rows = x.shape[0]
        return x.new_zeros(rows * max(rows - 1, 0) // 2) + x.sum() * 0
    return aten._pdist_forward.default(x.contiguous(), p)


def _pivots(pivots: torch.Tensor, rows: int) -> None:
    need(not pivots.numel() or (int(pivots.min()) >= 1 and int(pivots.max()) <= rows), "pivots are rows")


def _lu_unpack(lu: torch.Tensor, pivots: torch.Tensor, data: bool = True, unpack: bool = True) -> Any:
    need(lu.dim() >= 2, "matrices")
    rows, columns = lu.shape[-2:]
    need(pivots.dtype == torch.int32 and pivots.shape == (*lu.shape[:-2], min(rows, columns)), "pivots of the matrices")
    _pivots(pivots, rows)
    return aten.lu_unpack.default(lu, pivots.contiguous(), data, unpack)


def _paired(pivots: list[int]) -> bool:
    """Whether each block of two rows has its two equal, negative pivots: the kernel takes the second for granted."""
    at = 0
    while at < len(pivots):
        if pivots[at] < 0:
            at += 1
            if at == len(pivots) or pivots[at] != pivots[at - 1]:
                return False
        at += 1
    return True


def _ldl_solve(ld: torch.Tensor, pivots: torch.Tensor, b: torch.Tensor, *, hermitian: bool = False) -> Any:
    need(ld.dim() >= 2 and b.dim() >= 2, "matrices")
    size = ld.shape[-1]
    need(ld.shape[-2] == size == b.shape[-2] and ld.dtype == b.dtype, "square matrices and sides that fit")
    need(pivots.dtype == torch.int32 and pivots.shape == ld.shape[:-1], "pivots of the matrices")
    _pivots(pivots.abs(), size)
    need(not pivots.numel() or all(map(_paired, pivots.reshape(-1, size).tolist())), "negative pivots come in pairs")
    # the kernel goes through the pivots as if they were as many as the sides
    batch = torch.broadcast_shapes(ld.shape[:-2], b.shape[:-2])
    ld, b = ld.expand(*batch, size, size), b.expand(*batch, *b.shape[-2:])
    return aten.linalg_ldl_solve.default(ld, pivots.expand(*batch, size).contiguous(), b, hermitian=hermitian)


def _grid_sampler_3d(x: torch.Tensor, grid: torch.Tensor, mode: int, padding: int, align: bool) -> Any:
    need(mode in (0, 1) and padding in (0, 1, 2), "a known interpolation and padding")  # else nothing is written
    return aten.grid_sampler_3d.default(x, grid, mode, padding, align)


def _chunk_cat(tensors: list[torch.Tensor], dim: int, chunks: int) -> Any:
    need(bool(tensors) and chunks > 0 and all(-t.dim() <= dim < t.dim() for t in tensors), "a dim that all have")
    return aten._chunk_cat.default(tensors, dim, chunks)


def _adaptive_avg_pool3d(x: torch.Tensor, size: list[int]) -> Any:
    need(min(size, default=-1) >= 0, "sizes")
    return aten._adaptive_avg_pool3d.default(x, size)


def _multilabel_margin(x: torch.Tensor, target: torch.Tensor, reduction: int) -> Any:
    need(x.numel() > 0 and reduction in (0, 1, 2), "a non-empty input and a known reduction")  # else nothing is written
    return aten.multilabel_margin_loss_forward.default(x, target, reduction)


def _resampled(kernel: Any) -> Callable[..., Any]:
    """A scale that does not lead from the size of the input to that of the output leads out of the input."""
    names = [argument.name for argument in kernel._schema.arguments]
    first = next(position for position, name in enumerate(names) if name.startswith("scales"))

    def guarded(x: torch.Tensor, size: list[int], *args: Any, **kwargs: Any) -> Any:
        options = dict(zip(names[2:], args, strict=False)) | kwargs
        need(x.dim() == len(size) + 2 and x.numel() > 0 and min(size) > 0, "sizes for all dims but the first two")
        for length, wanted, name in zip(x.shape[2:], size, names[first:], strict=True):
            scale = options.get(name)
            need(scale is None or (scale > 0 and length * scale >= wanted - 1), "scales that stay within the input")
        return kernel(x, size, **options)

    return guarded


def _convolution(x: torch.Tensor, weight: torch.Tensor, bias: Any, stride: list[int], *options: Any) -> Any:
    need(max(stride, default=0) <= _MAX_STRIDE, f"strides up to {_MAX_STRIDE}")  # oneDNN leaves its memory with some
    return aten.convolution.default(x, weight, bias, stride, *options)


def _polynomial(kernel: Any) -> Callable[..., Any]:
    """The kernel stops at NaN before it wrote a result, and returns what its memory held."""

    def guarded(x: torch.Tensor, n: torch.Tensor) -> Any:
        return kernel(x, n).masked_fill_(x.isnan() & (n >= 2), float("nan"))

    return guarded


def _recurrence(kernel: Any) -> Callable[..., Any]:
    """Such a kernel that counts up to the degree besides, however large that is."""
    polynomial = _polynomial(kernel)

    def guarded(x: torch.Tensor, n: torch.Tensor) -> Any:
        need(not bool((n > _MAX_DEGREE).any()), f"degrees up to {_MAX_DEGREE}")
        return polynomial(x, n)

    return guarded


def _lstsq(a: torch.Tensor, b: torch.Tensor, rcond: float | None = None, *, driver: str | None = None) -> Any:
    need(b.numel() > 0, "right-hand sides")  # LAPACK's gelss leaves its memory where there are none
    return aten.linalg_lstsq.default(a, b, rcond, driver=driver)


_POLYNOMIALS = (
    aten.special_chebyshev_polynomial_t.default, aten.special_chebyshev_polynomial_u.default,
    aten.special_chebyshev_polynomial_v.default, aten.special_chebyshev_polynomial_w.default,
    aten.special_shifted_chebyshev_polynomial_t.default, aten.special_shifted_chebyshev_polynomial_u.default,
    aten.special_shifted_chebyshev_polynomial_v.default, aten.special_shifted_chebyshev_polynomial_w.default,
)  # fmt: skip

_RESAMPLING = (
    aten.upsample_nearest1d.default, aten.upsample_nearest2d.default, aten.upsample_nearest3d.default,
    aten._upsample_nearest_exact1d.default, aten._upsample_nearest_exact2d.default,
    aten._upsample_nearest_exact3d.default, aten.upsample_linear1d.default, aten.upsample_bilinear2d.default,
    aten.upsample_trilinear3d.default, aten.upsample_bicubic2d.default, aten._upsample_bilinear2d_aa.default,
    aten._upsample_bicubic2d_aa.default,
)  # fmt: skip

NUMERIC_GUARDS: dict[str, Callable[..., Any]] = {
    "aten._fft_r2c.default": _fft_r2c,
    "aten._fft_c2c.default": _fft_c2c,
    "aten._fft_c2r.default": _fft_c2r,
    "aten._pdist_forward.default": _pdist,
    "aten.lu_unpack.default": _lu_unpack,
    "aten.linalg_ldl_solve.default": _ldl_solve,
    "aten._adaptive_avg_pool3d.default": _adaptive_avg_pool3d,
    "aten.convolution.default": _convolution,
    "aten._chunk_cat.default": _chunk_cat,
    "aten.grid_sampler_3d.default": _grid_sampler_3d,
    "aten.multilabel_margin_loss_forward.default": _multilabel_margin,
    "aten.special_laguerre_polynomial_l.default": _recurrence(aten.special_laguerre_polynomial_l.default),
    "aten.special_legendre_polynomial_p.default": _recurrence(aten.special_legendre_polynomial_p.default),
    "aten.linalg_lstsq.default": _lstsq,
    **{str(kernel): _polynomial(kernel) for kernel in _POLYNOMIALS},
    **{str(kernel): _resampled(kernel) for kernel in _RESAMPLING},
}
"""Full name of an operation → the callable that checks its arguments and then runs it."""

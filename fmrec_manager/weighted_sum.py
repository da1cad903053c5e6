"""The weighted sum of rows in float64, each row read once.

    total_j <- fl(total_j + fl(s_i x_ij)),  i = 1 ... n, in this order

torch has no operation that reads float32 and adds in float64, on either kind of device: there each row is widened first, and read again.
So there are two kernels of our own, in weighted_sum.c for the CPU, compiled when FMRec is installed, and here for CUDA, compiled by
NVRTC, which comes with torch. Where one is not to be had (no C compiler, another torch), torch's operations do the same more slowly.
Product and sum are rounded one by one in all of them, so the bits are the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

try:
    from fmrec_manager import _weighted_sum as compiled
except ImportError:
    compiled = None  # type: ignore[assignment]

THREADS = 256
SOURCE = """
extern "C" __global__ void add(double *total, const REAL *const *rows, const double *shares, int count, int size)
{
    const int column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= size)
        return;
    double sum = total[column];
    #pragma unroll 16
    for (int i = 0; i < count; i++)
        sum = __dadd_rn(sum, __dmul_rn(shares[i], (double)rows[i][column]));
    total[column] = sum;
}
"""
REALS = {torch.float32: "float", torch.float64: "double"}

Kernel = Callable[..., None]


def add_weighted(total: torch.Tensor, rows: Sequence[torch.Tensor], shares: Sequence[float]) -> None:
    """The sum above, in place. total: float64 of size columns. rows: one at least, float32 or float64 of as many columns, on total's
    device. shares: one a row."""
    if total.device.type == "cpu" and compiled is not None:
        compiled.add(total.numpy(), [row.numpy() for row in rows], list(shares))
    elif total.device.type == "cuda" and (kernel := cuda_kernel(rows[0].dtype, total.device)) is not None:
        addresses = torch.tensor([row.data_ptr() for row in rows], dtype=torch.int64, device=total.device)
        weights = torch.tensor(shares, dtype=torch.float64, device=total.device)
        blocks = -(-total.numel() // THREADS)
        kernel(grid=(blocks, 1, 1), block=(THREADS, 1, 1), args=[total, addresses, weights, len(rows), total.numel()])
    else:
        add_by_torch(total, rows, shares)


def add_by_torch(total: torch.Tensor, rows: Sequence[torch.Tensor], shares: Sequence[float]) -> None:
    """The same by torch's operations. Of float32 rows and shares of 24 bits the products are exact, so that it does not show whether a
    device fuses the two; of float64 rows they are two operations, which cannot be fused."""
    wide = torch.empty_like(total)
    for row, share in zip(rows, shares, strict=True):
        wide.copy_(row)
        if row.dtype == torch.float32:
            total.add_(wide, alpha=share)
        else:
            total.add_(wide.mul_(share))


@functools.cache
def cuda_kernel(dtype: torch.dtype, device: torch.device) -> Kernel | None:
    """The kernel for rows of this dtype; None where this torch cannot compile one."""
    compile_kernel: Any = getattr(torch.cuda, "_compile_kernel", None)
    if compile_kernel is None:
        return None
    try:
        with torch.cuda.device(device):
            kernel: Kernel = compile_kernel(SOURCE.replace("REAL", REALS[dtype]), "add")
    except (ImportError, OSError, RuntimeError):
        return None
    return kernel

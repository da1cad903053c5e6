"""The weighted sum of rows in float64, each row read once.

    total_j <- fl(total_j + fl(s_i x_ij)),  i = 1 ... n, in this order

torch has no operation that reads float32 and adds in float64, on either kind of device: there each row is widened first, and read again.
So there are two kernels of our own, in weighted_sum.c for the CPU, compiled when FMRec is installed, and here for CUDA, compiled by
NVRTC, which comes with torch. Where one is not to be had (no C compiler, another torch), torch's operations do the same more slowly.
Product and sum are rounded one by one in all of them, so the bits are the same.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

try:
    from fmrec_manager import _weighted_sum as compiled
except ImportError:
    compiled = None  # type: ignore[assignment]

TILE = 1 << 13
"""Columns; a multiple of weighted_sum.c's, whose tiles stay in a core's cache."""
TILES_BY_TORCH = 16
SHARES_A_THREAD = 2
"""Parts of the columns for each thread of the CPU, so that none waits long for the slowest."""
BLOCK = 256
SOURCE = """
extern "C" __global__ void add(double *total, const void *table, int count, int size)
{
    const REAL *const *rows = (const REAL *const *)table;
    const double *shares = (const double *)table + count;
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
COLUMNS_MAX = 1 << 30
"""Of one call, on CUDA."""

Array = np.ndarray[Any, Any]
Kernel = Callable[..., None]


def add_weighted(total: torch.Tensor, rows: Sequence[torch.Tensor], shares: Array) -> None:
    """The sum above, in place. total: float64 of size columns. rows: one at least, float32 or float64 of as many columns, on total's
    device. shares: float64, one a row."""
    kernel = cuda_kernel(rows[0].dtype, total.device) if total.device.type == "cuda" else None
    if kernel is not None:
        addresses = np.fromiter(map(torch.Tensor.data_ptr, rows), np.int64, len(rows))
        table = np.concatenate([addresses, shares.view(np.int64)])  # together, for one way to the device
        arguments = [total, torch.from_numpy(table).to(total.device, non_blocking=True), len(rows), total.numel()]
        kernel(grid=(-(-total.numel() // BLOCK), 1, 1), block=(BLOCK, 1, 1), args=arguments)
    elif total.device.type == "cpu" and compiled is not None:
        arrays, listed = [row.numpy() for row in rows], shares.tolist()
        by_part(total, 1, lambda start, end: compiled.add(total.numpy(), arrays, listed, start, end))
    else:
        add_by_torch(total, rows, shares)


def add_by_torch(total: torch.Tensor, rows: Sequence[torch.Tensor], shares: Array) -> None:
    """The same by torch's operations. Of float32 rows and shares of 24 bits the products are exact, so that it does not show whether a
    device fuses the two; of float64 rows they are two operations, which cannot be fused."""

    def add(start: int, end: int) -> None:
        part = total[start:end]
        wide = torch.empty_like(part)
        for row, share in zip(rows, shares.tolist(), strict=True):
            wide.copy_(row[start:end])
            if row.dtype == torch.float32:
                part.add_(wide, alpha=share)
            else:
                part.add_(wide.mul_(share))

    by_part(total, TILES_BY_TORCH, add)


def by_part(total: torch.Tensor, tiles: int, work: Callable[[int, int], None]) -> None:
    """All columns, by parts of so many tiles or more. On the CPU a thread works on a whole part: threads that share each operation meet
    after each, and wait there for the slowest on a machine that does other things too."""
    threads = torch.get_num_threads() if total.device.type == "cpu" else 1
    size = total.numel()
    part = max(tiles, math.ceil(size / (SHARES_A_THREAD * threads * TILE))) * TILE
    parts = [(start, min(size, start + part)) for start in range(0, size, part)]
    if threads == 1 or len(parts) == 1:
        for start, end in parts:
            work(start, end)
        return
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(work, *zip(*parts, strict=True)):
            pass


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

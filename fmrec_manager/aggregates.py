"""The aggregates of n contributions: weighted mean, coordinate median, trimmed mean, Krum's scores (which is which: aggregation_rule.py).

Equal contributions in an equal order give equal bits, on the CPU with any number of threads and on CUDA, and memory is bounded: what
needs room of its own is done in pieces of the P coordinates, each as n rows by its columns.

1. Mean: sum_i s_i x_i / sum_i s_i in float64, in the order of the rows (weighted_sum.py). A share s_i has the 24 bits of a float32 (an
   integer below 2^24 is not rounded), so for float32 rows s_i x_i is exact in float64.
2. Median, trimmed mean: each column sorted, which has one result whatever the algorithm (but for the sign of zeros: + 0.0 makes them
   equal). The middle ones are added in float64 as a binary tree, each of whose levels is one elementwise addition.
3. Krum: |x_i - x_j|^2 = G_ii + G_jj - 2 G_ij. A matrix product adds in an order of its own, so its terms are made such that no order
   shows: in each block of 2^9 columns a row is rounded to integers of at most 22 bits times a power of two, and 2^9 products of 2^44
   add up below 2^53, exactly. Each value is thus off by at most 2^-22 of its row's greatest in the block. Blocks are added in order.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from fmrec_manager.weighted_sum import COLUMNS_MAX, add_weighted

Array = np.ndarray[Any, Any]
BITS, BLOCK = 22, 1 << 9
ROWS_AT_ONCE, MOVED_COLUMNS = 64, 1 << 20
"""Of rows that are not on the device yet so much is brought there together; of those that are, so many are added first."""
SORT_COLUMNS = {"cpu": 1 << 11, "cuda": 1 << 17}
GRAM_COLUMNS = {"cpu": 1 << 13, "cuda": 1 << 17}

Rows = list[torch.Tensor]


class Stack:
    """n contributions of equal names, shapes and dtypes, as n rows; nothing is copied. device: where pieces of it are worked on."""

    def __init__(self, contributions: Sequence[Mapping[str, Array | torch.Tensor]], names: Sequence[str], device: torch.device) -> None:
        """names: in the order in which the tensors are laid end to end."""
        self.device = device
        self._tensors = [[_flat(given[name]) for given in contributions] for name in names]
        self.rows = len(contributions)
        self.size = sum(rows[0].numel() for rows in self._tensors)
        """P, the number of coordinates."""
        self.is_there = all(row.device.type == device.type for rows in self._tensors for row in rows)
        """Are all rows on the device already?"""

    def only(self, chosen: Sequence[int]) -> Stack:
        """These rows of it."""
        part = object.__new__(Stack)
        part.device, part.rows, part.size, part.is_there = self.device, len(chosen), self.size, self.is_there
        part._tensors = [[rows[index] for index in chosen] for rows in self._tensors]
        return part

    def pieces(self, columns: int) -> Iterator[tuple[slice, Rows]]:
        """Where, and the n rows there, on their own device; at most so many columns, all of one tensor."""
        offset = 0
        for rows in self._tensors:
            size = rows[0].numel()
            for start in range(0, size, columns):
                end = min(size, start + columns)
                yield slice(offset + start, offset + end), rows if size <= columns else [row[start:end] for row in rows]
            offset += size


def weighted_mean(stack: Stack, shares: Sequence[float]) -> torch.Tensor:
    """Rule 1, float64 of P. shares: one a row, at least 0 and not all 0; rounded to float32.

    First they are divided by a power of two, the greatest to [0.5, 1): the mean is the same, and none is beyond a float32.
    """
    exponent = math.frexp(max(shares))[1]
    rounded = np.ldexp(np.asarray(shares, np.float64), -exponent).astype(np.float32).astype(np.float64)
    result = torch.zeros(stack.size, dtype=torch.float64, device=stack.device)
    for where, rows in stack.pieces(COLUMNS_MAX if stack.is_there else MOVED_COLUMNS):
        for some in _turns(stack):
            given = rows[some] if stack.is_there else [row.to(stack.device) for row in rows[some]]
            add_weighted(result[where], given, rounded[some])
    # By a tensor, for torch divides by a plain number exactly on the CPU but by its reciprocal on CUDA.
    return result.div_(torch.full((1,), math.fsum(rounded), dtype=torch.float64, device=stack.device))


def _turns(stack: Stack) -> list[slice]:
    """Which rows are added together. CUDA adds the first few while Python gathers the addresses of all the others."""
    if stack.is_there and stack.device.type == "cpu":
        return [slice(0, stack.rows)]
    ends = [*range(0, stack.rows, ROWS_AT_ONCE), stack.rows]
    if stack.is_there:
        ends = sorted({0, min(ROWS_AT_ONCE, stack.rows), stack.rows})
    return [slice(start, end) for start, end in pairwise(ends)]


def median(stack: Stack) -> torch.Tensor:
    """Rule 2, float64 of P: of an even n, the mean of the middle two."""
    low, high = (stack.rows - 1) // 2, stack.rows // 2

    def middle(rows: Rows, result: torch.Tensor) -> None:
        ordered = _ascending(rows, stack.device)
        torch.add(ordered[low].double(), ordered[high].double(), out=result).mul_(0.5).add_(0.0)

    return _piecewise(stack, SORT_COLUMNS, middle)


def trimmed_mean(stack: Stack, trim: float) -> torch.Tensor:
    """Rule 2, float64 of P. trim: in [0, 0.5), the share of n left out at either end; as the decimal that it was written as, for
    0.29 x 100 is less than 29 in binary."""
    cut = math.floor(Fraction(str(trim)) * stack.rows)
    kept = stack.rows - 2 * cut
    divisor = torch.full((1,), kept, dtype=torch.float64, device=stack.device)

    def inner_mean(rows: Rows, result: torch.Tensor) -> None:
        terms = _ascending(rows, stack.device)[cut : cut + kept].to(torch.float64, memory_format=torch.contiguous_format)
        while len(terms) > 1:
            half = len(terms) // 2
            terms = torch.cat([terms[:half] + terms[half : 2 * half], terms[2 * half :]])
        torch.div(terms[0], divisor, out=result).add_(0.0)

    return _piecewise(stack, SORT_COLUMNS, inner_mean)


def _piecewise(stack: Stack, columns: Mapping[str, int], aggregate: Callable[[Rows, torch.Tensor], None]) -> torch.Tensor:
    """float64 of P: the aggregate of each piece by itself, written to its part of the result; on the CPU by a thread, as by_part says."""
    result = torch.empty(stack.size, dtype=torch.float64, device=stack.device)

    def work(piece: tuple[slice, Rows]) -> None:
        where, rows = piece
        aggregate(rows, result[where])

    threads = torch.get_num_threads() if stack.device.type == "cpu" else 1
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(work, stack.pieces(columns[stack.device.type])):
            pass
    return result


def _ascending(rows: Rows, device: torch.device) -> torch.Tensor:
    """Each column sorted, n by columns. On the CPU a column's values lie side by side: numpy sorts such several times as fast as torch."""
    stacked = torch.stack([row.to(device) for row in rows])
    if device.type == "cuda":
        return stacked.sort(dim=0).values
    columns = stacked.T.contiguous()
    columns.numpy().sort(axis=1)
    return columns.T


def squared_distances(stack: Stack) -> torch.Tensor:
    """Rule 3: float64 of (n, n), on the CPU; 0 between equal rows."""
    gram = torch.zeros(stack.rows, stack.rows, dtype=torch.float64, device=stack.device)
    for _, rows in stack.pieces(GRAM_COLUMNS[stack.device.type]):
        size = rows[0].numel()
        wide = torch.zeros(stack.rows, math.ceil(size / BLOCK) * BLOCK, dtype=torch.float64, device=stack.device)
        for row, given in zip(wide, rows, strict=True):
            row[:size] = given
        blocks = wide.view(stack.rows, -1, BLOCK).transpose(0, 1)
        exponent = torch.frexp(blocks.abs().amax(dim=2, keepdim=True)).exponent.clamp(min=-900).long()
        blocks.mul_(_power_of_two(BITS - exponent)).round_()
        unit = _power_of_two(exponent - BITS)
        for product in (blocks @ blocks.mT).mul_(unit).mul_(unit.mT):
            gram += product
    gram = gram.cpu()
    own = gram.diagonal()
    return torch.nan_to_num(own[:, None] + own[None, :] - 2 * gram, nan=math.inf).clamp(min=0.0)


def _power_of_two(exponent: torch.Tensor) -> torch.Tensor:
    """2^exponent as a float64, by its bits: pow() may be off by one of them, and not the same on each device."""
    return ((exponent + 1023) << 52).view(torch.float64)


def krum(stack: Stack, byzantine: int, selected: int) -> list[int]:
    """The rows that Krum selects, ascending: those with the least sum of squared distances to their n - f - 2 nearest; of equal ones
    the first."""
    nearest = stack.rows - byzantine - 2
    distances = squared_distances(stack).tolist()
    scores = [math.fsum(sorted(row[:index] + row[index + 1 :])[:nearest]) for index, row in enumerate(distances)]
    return sorted(sorted(range(stack.rows), key=lambda index: (scores[index], index))[:selected])


def _flat(given: Array | torch.Tensor) -> torch.Tensor:
    if isinstance(given, torch.Tensor):
        return given.reshape(-1)
    with warnings.catch_warnings():
        # What came from the wire is read-only; nothing here writes to it.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.ascontiguousarray(given).reshape(-1))

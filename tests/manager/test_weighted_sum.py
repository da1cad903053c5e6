"""The compiled weighted sum against torch's operations: equal bits, and no vector is read that does not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fmrec_manager import weighted_sum
from fmrec_manager.weighted_sum import add_by_torch, add_weighted, compiled, cuda_kernel

needs_compiler = pytest.mark.skipif(compiled is None, reason="FMRec was installed without a C compiler: torch's operations serve alone")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here: its kernel stays unchecked")
DTYPES = {"float32": torch.float32, "float64": torch.float64}
SIZES = (1, 15, 16, 8192, 8193, 100_001)
"""Around a line and a tile of weighted_sum.c."""


def rows(count: int, size: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Values of many magnitudes, so that another order or another rounding would show."""
    generator = np.random.default_rng(size)
    return [torch.tensor(generator.normal(size=size) * 10.0 ** generator.integers(-9, 9, size=size), dtype=dtype) for _ in range(count)]


def shares(count: int) -> np.ndarray:
    return (0.1 * np.arange(1, count + 1) ** 3).astype(np.float32).astype(np.float64)


def both(device: str, size: int, dtype: torch.dtype) -> tuple[bytes, bytes]:
    """The sums' bits, by the compiled kernel and by torch, each on top of what was there."""
    given = [row.to(device) for row in rows(13, size, dtype)]
    totals = [torch.full((size,), 0.7, dtype=torch.float64, device=device) for _ in range(2)]
    for total, add in zip(totals, (add_weighted, add_by_torch), strict=True):
        add(total, given, shares(13))
    mine, torchs = (total.cpu().numpy().tobytes() for total in totals)
    return mine, torchs


@needs_compiler
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_the_compiled_sum_has_torchs_bits(dtype: torch.dtype, size: int) -> None:
    mine, torchs = both("cpu", size, dtype)
    assert mine == torchs


@needs_compiler
def test_a_share_and_a_row_of_odd_places_in_memory_are_read_as_they_are() -> None:
    """Contributions lie in the buffers that came from the wire, which are read-only and begin anywhere."""
    whole = rows(1, 100, torch.float32)[0].numpy()
    whole.flags.writeable = False
    total = np.zeros(97)
    compiled.add(total, [whole[3:]], [2.0], 0, 97)
    assert (total == 2.0 * whole[3:].astype(np.float64)).all()


@needs_compiler
@pytest.mark.parametrize(
    ("total", "given", "weights", "columns", "words"),
    [
        (np.zeros(3), [np.zeros(4)], [1.0], (0, 3), "expected 3 values of d"),
        (np.zeros(3), [np.zeros(3, np.float32), np.zeros(3)], [1.0, 1.0], (0, 3), "expected 3 values of f"),
        (np.zeros(3), [np.zeros(3, np.int64)], [1.0], (0, 3), "expected 3 values of d"),
        (np.zeros(3, np.float32), [np.zeros(3, np.float32)], [1.0], (0, 3), "expected 3 values of d"),
        (np.zeros(3), [np.zeros(3)], [1.0, 2.0], (0, 3), "a share for each row"),
        (np.zeros(3), [], [], (0, 3), "one row at least"),
        (np.zeros(3), [np.zeros(3)], [1.0], (0, 4), "columns 0 to 4 are not those of 3 values"),
    ],
)
def test_vectors_that_do_not_fit_are_refused(
    total: np.ndarray, given: list[np.ndarray], weights: list[float], columns: tuple[int, int], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        compiled.add(total, given, weights, *columns)
    assert not total.any()


@needs_cuda
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_cudas_kernel_has_torchs_bits(dtype: torch.dtype, size: int) -> None:
    assert cuda_kernel(dtype, torch.device("cuda")) is not None
    mine, torchs = both("cuda", size, dtype)
    assert mine == torchs
    assert mine == both("cpu", size, dtype)[0]


def test_the_source_is_where_the_install_looks_for_it() -> None:
    """setup.py names it; an install that does not find it goes on without, for it is optional."""
    source = Path(weighted_sum.__file__).with_name("weighted_sum.c")
    assert source.exists()
    assert f'"{source.parent.name}/{source.name}"' in (source.parents[1] / "setup.py").read_text()

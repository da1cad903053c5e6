"""The aggregates against their definitions, and the contract: equal contributions give equal bits, whatever the cuts and threads."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from fractions import Fraction

import numpy as np
import pytest
import torch

from fmrec_manager import aggregates, weighted_sum
from fmrec_manager.aggregates import Stack, krum, median, squared_distances, trimmed_mean, weighted_mean

CPU = torch.device("cpu")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here: the same bits on CPU and CUDA stay unchecked")
SHARES = [float(share) for share in (3, 141, 59, 2653, 5, 897, 9323)]
RULES: dict[str, Callable[[Stack], torch.Tensor]] = {
    "weighted_mean": lambda stack: weighted_mean(stack, SHARES),
    "median": median,
    "trimmed_mean": lambda stack: trimmed_mean(stack, 0.2),
    "squared_distances": squared_distances,
}


def rows(n: int = 7, size: int = 6001, dtype: type = np.float32, seed: int = 0) -> list[np.ndarray]:
    """Values of many magnitudes, so that an order of summation would show."""
    generator = np.random.default_rng(seed)
    return [(generator.normal(size=size) * 10.0 ** generator.integers(-6, 6, size=size)).astype(dtype) for _ in range(n)]


def stack(given: list[np.ndarray], device: torch.device = CPU) -> Stack:
    return Stack([{"w": row} for row in given], ["w"], device)


def bits(result: torch.Tensor) -> bytes:
    return result.cpu().numpy().tobytes()


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_mean_is_that_of_exact_arithmetic(dtype: type) -> None:
    given = rows(size=40, dtype=dtype)
    mean = weighted_mean(stack(given), SHARES).numpy()
    for column, value in enumerate(mean):
        exact = math.fsum(float(row[column]) * share for row, share in zip(given, SHARES, strict=True)) / math.fsum(SHARES)
        scale = max(abs(float(row[column])) for row in given)
        assert abs(value - exact) <= 1e-14 * scale


@pytest.mark.parametrize("unit", [1e-300, 1e-46, 1e-39, 1e39, 1e300])
def test_no_unit_of_the_shares_shows(unit: float) -> None:
    """Shares are numbers of samples times a factor of the round: a small factor for all, or very many samples, are still a mean."""
    mean = weighted_mean(stack(rows(size=40)), [share * unit for share in SHARES])
    np.testing.assert_allclose(mean.numpy(), weighted_mean(stack(rows(size=40)), SHARES).numpy(), rtol=1e-6)


def test_a_power_of_two_in_the_shares_leaves_no_bit_behind() -> None:
    assert bits(weighted_mean(stack(rows()), [share * 2.0**-200 for share in SHARES])) == bits(weighted_mean(stack(rows()), SHARES))


CUTS = [(7, 0.2, 1), (8, 0.25, 2), (9, 0.49, 4), (6, 0.1, 0), (1, 0.4, 0), (100, 0.29, 29)]


@pytest.mark.parametrize(("n", "trim", "cut"), CUTS)
def test_median_and_trimmed_mean_are_those_of_numpy(n: int, trim: float, cut: int) -> None:
    given = rows(n, 300)
    table = np.sort(np.stack(given).astype(np.float64), axis=0)
    np.testing.assert_array_equal(median(stack(given)).numpy(), np.median(table, axis=0))
    np.testing.assert_allclose(trimmed_mean(stack(given), trim).numpy(), table[cut : n - cut].mean(axis=0), rtol=1e-12, atol=1e-14 * 1e6)


def test_distances_are_those_between_the_rows() -> None:
    """Within what rounding each row to 22 bits of its greatest value costs."""
    given = [row.astype(np.float64) for row in rows(size=1500)]
    found = squared_distances(stack(given)).numpy()
    expected = np.array([[((one - other) ** 2).sum() for other in given] for one in given])
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert (found == found.T).all()
    assert (np.diagonal(found) == 0).all()


def test_equal_rows_are_at_no_distance_and_zeros_do_no_harm() -> None:
    twin, zero = rows(1)[0], np.zeros(6001, np.float32)
    found = squared_distances(stack([twin, zero, twin.copy(), zero.copy()]))
    assert found[0, 2] == found[1, 3] == 0
    assert found[0, 1].item() == pytest.approx(float((twin.astype(np.float64) ** 2).sum()), rel=1e-6)


def test_krum_takes_who_stands_among_most_and_of_equals_the_first() -> None:
    """f = 2 of n = 7: five near 0, one far away, one just outside; by hand on a line. Scores: the 3 nearest others."""
    points = [np.array([x], np.float32) for x in (100.0, 0.0, 1.0, 2.0, 3.0, 4.0, 9.0)]
    assert krum(stack(points), byzantine=2, selected=1) == [2], "1 and 2 and 3 have scores 6, 6, 6 to a side: 1+1+4, of equals the first"
    assert krum(stack(points), byzantine=2, selected=3) == [2, 3, 4]
    assert krum(stack([points[0]] + [points[1]] * 4), byzantine=1, selected=1) == [1]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_neither_threads_nor_cuts_show_in_the_bits(
    rule: str, dtype: type, threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Krum's blocks are part of its definition; where a piece ends is not, as long as it holds whole blocks."""
    found = set()
    for number, columns in ((1, 512), (2, 1024), (2, 1 << 13), (3, 4096)):
        threads(number)
        monkeypatch.setattr(weighted_sum, "TILE", columns)
        for name in ("SORT_COLUMNS", "GRAM_COLUMNS"):
            monkeypatch.setattr(aggregates, name, {"cpu": columns})
        found.add(bits(RULES[rule](stack(rows(dtype=dtype)))))
    assert len(found) == 1


def test_the_sign_of_a_zero_does_not_show() -> None:
    """-0.0 and 0.0 are equal to a sort: which of them is in the middle is its own affair."""
    for given in ([0.0, -0.0, -0.0], [-0.0, 0.0, -0.0], [-0.0, -0.0, -0.0]):
        points = [np.array([x], np.float32) for x in given]
        assert bits(median(stack(points))) == bits(trimmed_mean(stack(points), 0.0)) == bytes(8)


def test_float32_rows_are_multiplied_exactly() -> None:
    """Why fusing multiply and add does not show: a float32 times a share of 24 bits has at most 48 bits."""
    for share in (16777213.0, float(np.float32(1234567 * 0.9**3))):
        for x in map(float, rows(1, 500)[0]):
            assert Fraction(x * share) == Fraction(x) * Fraction(share)


def test_tensors_are_laid_end_to_end_in_the_order_of_the_names_given() -> None:
    given = [
        {"b": np.array([[1.0, 2.0]], np.float32), "a": np.array(5.0, np.float32)},
        {"b": np.zeros((1, 2), np.float32), "a": np.array(1.0, np.float32)},
    ]
    assert weighted_mean(Stack(given, ["a", "b"], CPU), [1, 1]).tolist() == [3.0, 0.5, 1.0]


@needs_cuda
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cuda_gives_the_bits_of_the_cpu(rule: str, dtype: type) -> None:
    assert bits(RULES[rule](stack(rows(dtype=dtype)))) == bits(RULES[rule](stack(rows(dtype=dtype), torch.device("cuda"))))


@needs_cuda
@pytest.mark.parametrize("there", [False, True], ids=["brought there", "there already"])
@pytest.mark.parametrize("at_once", [1, 3, 7, 8])
def test_how_many_rows_are_added_together_does_not_show(at_once: int, there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aggregates, "ROWS_AT_ONCE", at_once)
    given = [{"w": torch.from_numpy(row).to("cuda" if there else "cpu")} for row in rows()]
    assert bits(weighted_mean(Stack(given, ["w"], torch.device("cuda")), SHARES)) == bits(weighted_mean(stack(rows()), SHARES))

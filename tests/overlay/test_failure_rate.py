"""How often to probe a table (MSPastry 4.1): the formula against closed forms, its direction, its limits."""

from __future__ import annotations

from math import exp, inf, log

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.overlay.failure_rate import DEATHS_KEPT, FailureRate, probe_period_s, unnoticed
from protocol.parameters import PRESETS, OverlayParameters, lan
from tests.overlay.scene import P

RATES = st.floats(1e-9, 1.0)
NODES = st.floats(2, 1e7)


# --- P_f --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "chance"),
    [
        (1.0, 1 / 2.718281828459045),
        (log(2), 1 - 1 / (2 * log(2))),
        (2.0, 0.5 * (1 + exp(-2))),
        (40.0, 0.975),
        (1e-3, 1e-3 / 2 - 1e-6 / 6 + 1e-9 / 24),
        (1e-9, 5e-10),
        (0.0, 0.0),
    ],
)
def test_unnoticed_against_closed_forms(x: float, chance: float) -> None:
    """1 - (1 - 1/e) = 1/e at 1; 1 - 1/x where the exponential has vanished; x/2 - x²/6 + x³/24 where x is small."""
    assert unnoticed(x, 1.0) == pytest.approx(chance, rel=1e-9, abs=1e-15)
    assert unnoticed(1.0, x) == pytest.approx(chance, rel=1e-9, abs=1e-15)


def test_unnoticed_is_the_mean_over_the_time_of_death() -> None:
    """Where the formula comes from: asked at a moment of chance between two probes, it has died since the last one."""
    period_s, rate, parts = 7.0, 0.2, 20_000
    mean = sum(1 - exp(-rate * period_s * (part + 0.5) / parts) for part in range(parts)) / parts
    assert unnoticed(period_s, rate) == pytest.approx(mean, rel=1e-7)


@given(st.floats(1e-8, 1e3), st.floats(1e-8, 1e3), st.floats(1e-9, 10))
@settings(deadline=None)
def test_unnoticed_grows_with_the_period_and_is_a_chance(one_s: float, other_s: float, rate: float) -> None:
    shorter_s, longer_s = sorted((one_s, other_s))
    assert 0 <= unnoticed(shorter_s, rate) <= unnoticed(longer_s, rate) * (1 + 1e-9) <= 1 + 1e-9


# --- T_rt -------------------------------------------------------------------------------------------------------------


def raw_loss(period_s: float, rate: float, nodes: float, p: OverlayParameters) -> float:
    """L_r as the module's docstring has it."""
    hops = 15 / 16 * log(nodes, 16)
    last = 1 - unnoticed(p.silence_max_s + p.trial_max_s, rate)
    return 1 - last * (1 - unnoticed(period_s + p.trial_max_s, rate)) ** (hops - 1)


def test_two_hops_against_a_closed_form() -> None:
    """h = 2, one hop of it by table. Deaths so seldom that P_f(T) is T mu / 2: then (1 - L_r) = (1 - a)(1 - b) gives T."""
    p, nodes, rate = lan(), 16.0 ** (2 * 16 / 15), 1e-3
    last_hop = 1 - (1 - exp(-(x := rate * (p.silence_max_s + p.trial_max_s)))) / x
    chance = 1 - (1 - p.raw_loss_target) / (1 - last_hop)
    # P_f(y) = y/2 - y²/6 + O(y³) = chance, solved for y.
    y = (0.5 - (0.25 - 4 * chance / 6) ** 0.5) / (2 / 6)
    assert probe_period_s(rate, nodes, p) == pytest.approx(y / rate - p.trial_max_s, rel=0.005)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("nodes", [100, 1000, 10_000])
@pytest.mark.parametrize("session_s", [300, 900, 3600, 8280])
def test_where_it_is_not_at_a_limit_the_loss_is_the_target(preset: str, nodes: int, session_s: float) -> None:
    """Mean sessions of 5, 15, 60 and 138 minutes: put back into the formula, the period gives L_r."""
    p = PRESETS[preset]()
    period_s = probe_period_s(1 / session_s, nodes, p)
    if p.silence_max_s < period_s < p.table_probe_max_s:
        assert raw_loss(period_s, 1 / session_s, nodes, p) == pytest.approx(p.raw_loss_target, rel=1e-6)
    elif period_s == p.silence_max_s:
        assert raw_loss(period_s, 1 / session_s, nodes, p) >= p.raw_loss_target * (1 - 1e-6), "oftener is not possible"
    else:
        assert raw_loss(period_s, 1 / session_s, nodes, p) <= p.raw_loss_target * (1 + 1e-6), "seldomer is not wanted"


@given(RATES, RATES, NODES, st.sampled_from(sorted(PRESETS)))
@settings(deadline=None)
def test_the_more_die_the_oftener_it_probes(one: float, other: float, nodes: float, preset: str) -> None:
    p, (seldom, often) = PRESETS[preset](), sorted((one, other))
    assert probe_period_s(often, nodes, p) <= probe_period_s(seldom, nodes, p) * (1 + 1e-6)


@given(RATES, NODES, NODES)
@settings(deadline=None)
def test_the_larger_the_ring_the_oftener_it_probes(rate: float, one: float, other: float) -> None:
    """More hops, each of which may be dead."""
    smaller, larger = sorted((one, other))
    assert probe_period_s(rate, larger, P) <= probe_period_s(rate, smaller, P) * (1 + 1e-6)


@given(st.one_of(st.floats(0, 1e9), st.just(inf)), st.floats(0, 1e30), st.sampled_from(sorted(PRESETS)))
@settings(deadline=None)
def test_it_never_leaves_its_limits(rate: float, nodes: float, preset: str) -> None:
    p = PRESETS[preset]()
    assert p.silence_max_s <= probe_period_s(rate, nodes, p) <= p.table_probe_max_s


def test_the_ends_of_the_scale() -> None:
    assert probe_period_s(0.0, 1000, P) == P.table_probe_max_s, "nobody dies"
    assert probe_period_s(inf, 1000, P) == P.silence_max_s, "we have seen nothing yet, and expect the worst"
    assert probe_period_s(10.0, 1000, P) == P.silence_max_s, "the last hop alone breaks the target"
    assert probe_period_s(1.0, 2, P) == P.table_probe_max_s, "no hop goes by table"


# --- mu ---------------------------------------------------------------------------------------------------------------


def test_the_rate_is_the_last_deaths_over_their_time_and_the_peers_known() -> None:
    """MSPastry 4.1: the k-th last failure, M known: mu = k / (M T_kf)."""
    rate = FailureRate(0.0)
    for death in range(100):
        rate.died(10.0 * death)
    first_kept = 10.0 * (100 - DEATHS_KEPT)
    assert rate.per_peer(50, 1000.0) == pytest.approx(DEATHS_KEPT / (50 * (1000.0 - first_kept)))


def test_before_there_were_enough_it_counts_from_the_beginning_as_if_one_died_now() -> None:
    rate = FailureRate(100.0)
    assert rate.per_peer(20, 150.0) == pytest.approx(1 / (20 * 50))
    rate.died(110.0)
    rate.died(120.0)
    assert rate.per_peer(20, 150.0) == pytest.approx(3 / (20 * 50))
    assert rate.per_peer(0, 150.0) == pytest.approx(3 / 50), "nobody known is no division by zero"
    assert rate.per_peer(20, 100.0) == inf


def test_a_quiet_ring_is_probed_ever_seldomer() -> None:
    rate = FailureRate(0.0)
    periods = [probe_period_s(rate.per_peer(60, now), 10_000, P) for now in (0.0, 10.0, 60.0, 600.0, 3600.0, 1e6)]
    assert periods == sorted(periods)
    assert (periods[0], periods[-1]) == (P.silence_max_s, P.table_probe_max_s)


def test_a_storm_of_deaths_passes() -> None:
    """Ten percent die at once: the period falls to its shortest, and comes back as the storm becomes old."""
    rate = FailureRate(0.0)
    for _ in range(DEATHS_KEPT):
        rate.died(3600.0)
    assert probe_period_s(rate.per_peer(60, 3600.0), 10_000, P) == P.silence_max_s
    assert probe_period_s(rate.per_peer(60, 3600.0 + 1e6), 10_000, P) == P.table_probe_max_s

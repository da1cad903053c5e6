"""Round trips and the timeouts made of them, rule by rule (numbers as in proximity.py; RFC 6298)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.overlay.proximity import Proximity
from tests.overlay.scene import P, peer

A, B = peer(0x90).id, peer(0x70).id
ROUND_TRIPS = st.lists(st.floats(0, 100), min_size=1, max_size=40)


def measured(*samples_s: float) -> Proximity:
    found = Proximity(P)
    for sample_s in samples_s:
        found.sample(A, sample_s)
    return found


def test_rule_1_a_sample_moves_the_round_trip_by_an_eighth_and_the_deviation_by_a_quarter() -> None:
    """RFC 6298, 2.2 and 2.3, by hand: R = 80 ms: srtt 80, var 40. R = 160: var 40 + (80 - 40)/4 = 50, srtt 80 + 80/8 = 90."""
    assert measured(0.080).rtt_s(A) == pytest.approx(0.080)
    assert measured(0.080).ack_timeout_s(A) == pytest.approx(0.080 + 4 * 0.040)
    assert measured(0.080, 0.160).rtt_s(A) == pytest.approx(0.090)
    assert measured(0.080, 0.160).ack_timeout_s(A) == pytest.approx(0.090 + 4 * 0.050)


def test_rule_1_the_deviation_is_taken_before_the_round_trip_moves() -> None:
    """RFC 6298: RTTVAR is updated with the old SRTT. 80, 160, 90: var 50 + (0 - 50)/4 = 37.5, srtt 90."""
    assert measured(0.080, 0.160, 0.090).ack_timeout_s(A) == pytest.approx(0.090 + 4 * 0.0375)


def test_rule_1_what_the_peer_has_measured_is_as_good_until_we_have() -> None:
    """Distance is symmetric (MSPastry 4.2): half of the pings of a ring are saved."""
    found = Proximity(P)
    assert found.rtt_s(A) is None
    found.told(A, 0.030)
    assert found.rtt_s(A) == pytest.approx(0.030)
    found.told(A, 0.020)
    assert found.rtt_s(A) == pytest.approx(0.020), "its later word replaces its earlier"
    found.sample(A, 0.010)
    assert found.rtt_s(A) == pytest.approx(0.010), "our own is no eighth of a step from hearsay"
    found.told(A, 5.0)
    assert found.rtt_s(A) == pytest.approx(0.010), "and stands above it (P7)"


def test_rule_2_nobody_measured_has_the_longest_delay_of_a_healthy_peer() -> None:
    assert Proximity(P).ack_timeout_s(A) == P.delay_max_s


def test_rule_2_however_near_a_hop_has_its_least_time_and_however_far_a_probes() -> None:
    """A garbage collection on loopback is longer than forty round trips."""
    assert measured(0.00001).ack_timeout_s(A) == P.ack_timeout_min_s
    assert measured(30.0).ack_timeout_s(A) == P.probe_timeout_s


def test_rule_2_each_miss_doubles_the_timeout_until_an_acknowledgement_comes() -> None:
    found, timeouts = measured(0.010), []
    for _ in range(12):
        timeouts.append(found.ack_timeout_s(A))
        found.missed(A)
    assert timeouts[:4] == pytest.approx([P.ack_timeout_min_s * 2**step for step in range(4)])
    assert timeouts[-1] == P.probe_timeout_s
    found.sample(A, 0.010)
    assert found.ack_timeout_s(A) == P.ack_timeout_min_s


def test_rule_2_misses_of_one_that_nobody_measured_change_nothing() -> None:
    found = Proximity(P)
    found.missed(A)
    assert found.ack_timeout_s(A) == P.delay_max_s
    assert found.rtt_s(A) is None


@given(ROUND_TRIPS, st.integers(0, 10))
@settings(deadline=None)
def test_rule_2_every_timeout_is_within_its_limits_and_the_round_trip_within_what_was_measured(samples: list[float], missed: int) -> None:
    found = measured(*samples)
    for _ in range(missed):
        found.missed(A)
    assert P.ack_timeout_min_s <= found.ack_timeout_s(A) <= P.probe_timeout_s
    assert min(samples) - 1e-9 <= (found.rtt_s(A) or 0.0) <= max(samples) + 1e-9


def test_a_steady_round_trip_is_trusted_ever_more() -> None:
    """The deviation fades: forty samples of 30 ms leave the timeout near 30 ms, above its least."""
    assert measured(*[0.060] * 40).ack_timeout_s(A) == pytest.approx(0.060, rel=0.01)


def test_the_forgotten_are_as_never_measured_and_no_more_are_kept_than_the_limit() -> None:
    found = Proximity(replace(P, remembered_lives_max=3))
    for leading in range(1, 6):
        found.sample(peer(leading).id, 0.01)
    assert [found.rtt_s(peer(leading).id) is not None for leading in range(1, 6)] == [False, False, True, True, True]
    found.forget(peer(5).id)
    assert found.rtt_s(peer(5).id) is None
    found.forget(B)

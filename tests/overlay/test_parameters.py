"""Periods and limits nest, in each preset and in whatever passes validate() (P8)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from protocol.parameters import PRESETS, OverlayParameters


@pytest.mark.parametrize("name", PRESETS)
def test_deadlines_nest(name: str) -> None:
    p = PRESETS[name]()
    p.validate()
    assert p.heartbeat_misses * p.heartbeat_interval_s < p.silence_max_s
    assert p.probe_timeout_s <= p.silence_max_s, "a trial ends before silence would begin another"
    assert p.probe_timeout_s < p.trial_max_s, "a trial outlasts our own dial"
    assert p.delay_max_s + p.probe_timeout_s < p.trial_max_s, "and those of the helpers, who are asked after delay_max_s"
    assert p.trial_max_s < p.hold_max_s, "what waits for a verdict is there when it comes"
    assert p.hold_max_s <= p.silence_max_s + 2 * p.trial_max_s, "and not for ever"
    assert p.silence_max_s < p.table_probe_max_s, "T_rt has a range to tune itself in"
    assert p.heartbeat_interval_s < p.exchange_interval_s < p.row_interval_s <= p.table_probe_max_s
    assert p.trial_max_s + p.gather_timeout_s < p.look_up_timeout_s, "a look-up may be held for one trial"
    assert p.silence_max_s + p.trial_max_s < p.orphan_max_s, "an orphan notices its parent's death in time"
    assert p.silence_max_s + p.trial_max_s < p.hold_max_s, "what is held for a hung neighbour outlasts its trial"
    assert p.ack_timeout_min_s < p.delay_max_s < p.probe_timeout_s, "the timeout of a hop has a range, too"
    assert p.transfer_timeout_s(0) >= p.probe_timeout_s
    assert p.transfer_timeout_s(p.record_bytes_max) > p.transfer_timeout_s(1)


def test_a_hang_is_noticed_within_what_the_presets_say() -> None:
    """Suspicion and its trial: under two seconds on one machine, about five at one site."""
    assert PRESETS["loopback"]().silence_max_s + PRESETS["loopback"]().trial_max_s < 2
    assert PRESETS["lan"]().silence_max_s + PRESETS["lan"]().trial_max_s < 5


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"leaf_set_size": 7}, "leaf_set_size must be even"),
        ({"write_quorum": 4}, r"write_quorum \(4\) cannot exceed replicas"),
        ({"replicas": 13, "write_quorum": 2}, "cannot exceed leaf_set_size"),
        ({"retry_min_s": 3.0}, "retry_min_s"),
        ({"heartbeat_interval_s": 0.0}, "heartbeat_interval_s must be above 0"),
        ({"delay_max_s": float("nan")}, "delay_max_s must be above 0 and finite"),
        ({"retry_max_s": float("inf")}, "retry_max_s must be above 0 and finite"),
        ({"held_messages_max": -1}, "held_messages_max must be above 0"),
        ({"raw_loss_target": 1.5}, "raw_loss_target is a share"),
        ({"fan_out_max": 1}, "is a chain"),
        ({"delay_max_s": 2.0}, "a probe .* must end within the silence"),
        ({"forget_after_s": 9.0}, r"forget_after_s \(9\) must be at least 9.6"),
    ],
)
def test_a_set_of_values_that_cannot_work_is_named(wrong: dict[str, float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        replace(OverlayParameters(), **wrong).validate()

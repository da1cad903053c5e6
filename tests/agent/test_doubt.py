"""Doubt (doubt.py): when a life looks once more for its newest record, and for how long. How a worker looks: test_worker_looks_on.py."""

from __future__ import annotations

import math
from typing import Literal

import pytest

from fmrec_agent.doubt import CUT_VERDICTS, Doubt, Known
from protocol.identifiers import NodeId, Peer
from protocol.parameters import OverlayParameters
from protocol.wire.messages import Phase, RoundOpen

P = OverlayParameters()
VERDICT_S = P.verdict_max_s
BEGAN = 100.0
SOON, LATE = BEGAN + VERDICT_S, BEGAN + VERDICT_S + 0.001
ROOT = Peer(NodeId(1), "127.0.0.1", 20001, 1)
NOTHING, ROUND_3, HALF_OF_3 = Known(-1, True, 0, 0), Known(3, True, 7, 0), Known(3, False, 6, 0)


def order(
    round_number: int, mode: Literal["exact", "substitute", "drop"] = "exact", phase: Phase = "train", chosen: tuple[NodeId, ...] = ()
) -> RoundOpen:
    return RoundOpen(phase=phase, round=round_number, seed=1, mode=mode, holder=ROOT, chosen=chosen)


def doubt() -> Doubt:
    found = Doubt(P)
    found.began = BEGAN
    return found


@pytest.mark.parametrize(
    ("known", "number", "now", "looks"),
    [
        (NOTHING, 0, SOON, False),  # a new agent
        (NOTHING, 0, LATE, True),  # who is cut off gets no orders
        (NOTHING, 1, SOON, True),  # it may have been in round 0
        (ROUND_3, 3, SOON, False),
        (ROUND_3, 4, SOON, False),
        (ROUND_3, 4, LATE, True),
        (HALF_OF_3, 3, SOON, False),
    ],
)
def test_rule_1_it_looks_once_more_where_the_order_is_late_or_for_a_later_round(known: Known, number: int, now: float, looks: bool) -> None:
    found = doubt()
    assert found.must_look(order(number), known, now) is looks
    assert found.sure is not looks
    if looks:
        found.looked(0.0)
        assert not found.must_look(order(number), known, math.inf), "once"
        assert found.sure


def test_rule_1_not_before_those_who_hold_its_record_have_had_time_to_tell() -> None:
    found = doubt()
    assert found.early_s(BEGAN + 0.25) == P.settle_s - 0.25
    assert found.early_s(BEGAN + P.settle_s) == 0.0
    assert found.early_s(math.inf) == 0.0


def test_rule_1_half_of_a_round_is_not_the_newest_where_the_next_is_asked_for() -> None:
    """The round was closed with the whole of it, or with this half; in mode substitute both are right."""
    found = doubt()
    assert found.must_look(order(4, "substitute"), HALF_OF_3, SOON)
    found.looked(0.0)
    assert not found.must_look(order(4, "substitute"), HALF_OF_3, SOON), "once"


@pytest.mark.parametrize(
    ("known", "asked", "lacks"),
    [
        (HALF_OF_3, order(4), "round 4 is asked for, and half of round 3 was found"),
        (HALF_OF_3, order(3), ""),
        (ROUND_3, order(5), "round 5 is asked for, and no record after round 3 was found"),
        (ROUND_3, order(4), ""),
        (ROUND_3, order(5, "substitute"), ""),  # its part in round 4 was done by its replica
        (ROUND_3, order(5, phase="adapt"), ""),
        (ROUND_3, order(5, chosen=(NodeId(9),)), ""),  # it may not have been chosen for round 4
        (NOTHING, order(5), ""),  # it may be new
        (Known(3, True, 7, 9), order(4), "version 9 was durable, and version 7 was found"),
        (Known(-1, True, 0, 9), order(0, "substitute"), "version 9 was durable, and version none was found"),
    ],
)
def test_rule_2_what_there_must_be_is_looked_for_again_and_again(known: Known, asked: RoundOpen, lacks: str) -> None:
    found = doubt()
    assert found.lacks(asked, known) == lacks
    found.must_look(asked, known, SOON)
    found.looked(0.1)
    assert found.must_look(asked, known, SOON) is bool(lacks)
    assert not found.must_look(asked, Known(asked.round, True, 10, 0), SOON), "it is here"
    assert found.sure


def test_rule_2_the_last_look_comes_after_the_time_for_it() -> None:
    found, lacking = doubt(), Known(3, True, 7, 9)
    found.looked(CUT_VERDICTS * VERDICT_S - 0.1)
    assert not found.is_last
    found.looked(0.2)
    assert found.is_last
    assert found.must_look(order(4), lacking, SOON), "it is given up by whoever has looked, not before"
    found.give_up()
    assert not found.must_look(order(4), lacking, SOON)


def test_who_is_sure_stays_so() -> None:
    """Orders that come late, or skip rounds, in the middle of a life are no reason to look."""
    found = doubt()
    assert not found.must_look(order(0), NOTHING, SOON)
    assert not found.must_look(order(9), ROUND_3, math.inf)

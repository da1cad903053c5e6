"""One round: the table of verdicts by mode and situation, and that a slot is filled once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmrec_manager.round import Round, Slot, Standing, Terms, judge, next_deadline
from protocol.identifiers import NodeId, agent_id, tree_id
from protocol.wire.messages import RecoveryMode
from protocol.wire.values import RecordSummary

MODES: tuple[RecoveryMode, ...] = ("exact", "substitute", "drop")
A, B, C = AGENTS = tuple(sorted(agent_id("c", name) for name in "abc"))
TERMS = Terms("exact", deadline_s=30.0, exact_wait_s=600.0, quorum=1.0, staleness_max=2, staleness_discount=0.5)
EARLY, LATE, TOO_LATE = 1.0, 30.0, 600.0
"""Seconds after the opening."""


def terms(mode: RecoveryMode, **changes: Any) -> Terms:
    return replace(TERMS, mode=mode, **changes)


def record(owner: NodeId = A, number: int = 3, version: int = 7, complete: bool = True) -> RecordSummary:
    return RecordSummary(owner, tree_id("main", "t"), version, 1, number, 100, complete, 1000, bytes(32))


def slot(way: Literal["upload", "replica", "substitute"] = "upload", owner: NodeId = A) -> Slot:
    return Slot(record(owner), 0.5 if way == "substitute" else 1.0, way)


def under_way(phase: Literal["train", "adapt"] = "train", **facts: Any) -> Round:
    """Round 3, opened at 0 s. facts: agents by name of the field; `slots` as agents."""
    facts["slots"] = {agent: slot(owner=agent) for agent in facts.get("slots", ())}
    facts["missing"] = dict.fromkeys(facts.get("missing", ()), "lost")
    return Round(3, phase, 0.0, AGENTS, **facts)


ALIVE: dict[NodeId, Standing] = {A: "alive", B: "alive", C: "alive"}
C_DEAD: dict[NodeId, Standing] = {**ALIVE, C: "dead"}
C_SUSPECT: dict[NodeId, Standing] = {**ALIVE, C: "suspect"}
C_LEFT: dict[NodeId, Standing] = {**ALIVE, C: "left"}
AB = {"slots": (A, B)}
LOOKED_FOR = {**AB, "recovering": {C}}
NOT_FOUND = {**AB, "tried": {C}}
ALL_GONE: dict[NodeId, Standing] = dict.fromkeys(AGENTS, "dead")

TABLE: list[tuple[str, RecoveryMode | None, dict[str, Any], dict[NodeId, Standing], float, str, str, tuple[NodeId, ...]]] = [
    # situation, mode (None: all), facts, standing, now, verdict, what the reason says, about whom
    ("nobody yet", None, {}, ALIVE, EARLY, "wait", "3 of 3 are awaited", AGENTS),
    ("two of three", None, AB, ALIVE, EARLY, "wait", "1 of 3 are awaited", (C,)),
    ("all", None, {"slots": AGENTS}, ALIVE, EARLY, "close", "3 of 3 contributed", ()),
    ("all, one died since", None, {"slots": AGENTS}, C_DEAD, EARLY, "close", "3 of 3 contributed", ()),
    ("the last one left", None, AB, C_LEFT, EARLY, "close", "2 of 3 contributed", ()),
    ("the last one is given up", None, {**AB, "missing": (C,)}, C_DEAD, EARLY, "close", "2 of 3 contributed", ()),
    ("a suspect is waited for", None, AB, C_SUSPECT, EARLY, "wait", "1 of 3 are awaited", (C,)),
    ("all left", None, {}, dict.fromkeys(AGENTS, "left"), EARLY, "halt", "nobody is left to contribute", ()),
    ("all given up", None, {"missing": AGENTS}, ALIVE, EARLY, "halt", "nobody is left to contribute", ()),
    ("one died", "exact", AB, C_DEAD, EARLY, "recover", "died", (C,)),
    ("one died", "substitute", AB, C_DEAD, EARLY, "recover", "died", (C,)),
    ("one died", "drop", AB, C_DEAD, EARLY, "close", "1 died and are given up", ()),
    ("one died, another works", "drop", {"slots": (A,)}, C_DEAD, EARLY, "wait", "2 of 3 are awaited", (B, C)),
    ("all died at once", "drop", {}, ALL_GONE, EARLY, "wait", "3 of 3 are awaited", AGENTS),
    ("all died at once", "exact", {}, ALL_GONE, EARLY, "recover", "died", AGENTS),
    ("its record is looked for", "exact", LOOKED_FOR, C_DEAD, EARLY, "wait", "1 of 3 are awaited", (C,)),
    ("its record is looked for", "substitute", LOOKED_FOR, C_DEAD, LATE, "wait", "1 of 3 are awaited", (C,)),
    ("its record did not serve", "exact", NOT_FOUND, C_DEAD, LATE, "wait", "1 of 3 are awaited", (C,)),
    ("its record did not serve", "exact", NOT_FOUND, C_DEAD, TOO_LATE, "halt", "waited 600 s for", (C,)),
    ("a straggler", "exact", AB, ALIVE, LATE, "recover", "missed the deadline", (C,)),
    ("a straggler", "substitute", AB, ALIVE, LATE, "recover", "missed the deadline", (C,)),
    ("a straggler", "drop", AB, ALIVE, LATE, "close", "the deadline has passed with 2 of 3", ()),
    ("nobody by the deadline", "drop", {}, ALIVE, LATE, "halt", "the deadline has passed with 0 of 3 needed", ()),
    ("short of the quorum", "substitute", NOT_FOUND, ALIVE, LATE, "halt", "the deadline has passed with 2 of 3 needed", ()),
    ("looked for without end", "substitute", LOOKED_FOR, C_DEAD, TOO_LATE, "halt", "waited 600 s for", (C,)),
]


@pytest.mark.parametrize(
    ("mode", "facts", "standing", "now", "verdict", "reason", "whom"),
    [(mode, *row[2:]) for row in TABLE for mode in ([row[1]] if row[1] else MODES)],
    ids=[f"{row[0]}, {mode}" for row in TABLE for mode in ([row[1]] if row[1] else MODES)],
)
def test_the_table(
    mode: RecoveryMode, facts: dict[str, Any], standing: dict[NodeId, Standing], now: float, verdict: str, reason: str, whom: Any
) -> None:
    said = judge(now, under_way(**facts), standing, terms(mode))
    assert (said[0], said[2]) == (verdict, whom)
    assert reason in said[1]


def test_a_halt_names_whom_to_restart() -> None:
    _, reason, _ = judge(TOO_LATE, under_way(**NOT_FOUND), C_DEAD, terms("exact"))
    assert C.short in reason
    assert "restart it under its name" in reason


def test_where_nobody_is_left_it_is_said_why_and_who() -> None:
    many = {NodeId(number): "the loss is nan" for number in range(1, 8)}
    work = Round(3, "train", 0.0, (*AGENTS, *many), missing={A: "died", B: "left", **many})
    _, reason, _ = judge(EARLY, work, {C: "left"}, terms("exact"))
    named = ", ".join(NodeId(number).short for number in range(1, 5))
    assert reason == f"nobody is left to contribute; {A.short}: died; {B.short}: left; {named} and 3 others: the loss is nan"


def test_a_member_that_nobody_knows_counts_as_dead() -> None:
    assert judge(EARLY, under_way(**AB), {A: "alive", B: "alive"}, terms("exact"))[0] == "recover"


@pytest.mark.parametrize(("quorum", "verdict"), [(1.0, "halt"), (0.66, "close"), (0.1, "close")])
def test_at_the_deadline_a_quorum_is_enough(quorum: float, verdict: str) -> None:
    assert judge(LATE, under_way(**NOT_FOUND), ALIVE, terms("substitute", quorum=quorum))[0] == verdict


def test_a_quorum_is_at_least_one() -> None:
    assert judge(LATE, under_way(tried=set(AGENTS)), ALIVE, terms("substitute", quorum=0.01))[0] == "halt"


def test_in_mode_drop_a_dead_target_is_awaited_until_the_deadline() -> None:
    """Training goes on without it; but its result is why the run was made."""
    adapting = under_way("adapt", **AB)
    assert judge(EARLY, adapting, C_DEAD, terms("drop"))[0] == "wait"
    assert judge(LATE, adapting, C_DEAD, terms("drop"))[0] == "close"


# --- promise P1: one contribution ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["upload", "replica"])
@pytest.mark.parametrize("second", ["upload", "replica", "substitute"])
def test_p1_the_first_of_upload_and_replica_fills_the_slot(first: Any, second: Any) -> None:
    work = under_way()
    assert work.offer(A, slot(first)) is None
    kept = work.slots[A]
    assert work.offer(A, slot(second)) == f"round 3 has a contribution of {A.short} already, by {first}"
    assert work.slots == {A: kept}


@pytest.mark.parametrize("real", ["upload", "replica"])
def test_p1_a_substitute_yields_to_the_real_one_and_not_to_another(real: Any) -> None:
    work = under_way()
    assert work.offer(A, slot("substitute")) is None
    assert work.offer(A, slot("substitute")) == f"round 3 has a contribution of {A.short} already, by substitute"
    assert work.offer(A, slot(real)) is None
    assert work.slots[A].way == real


def test_p1_a_stranger_fills_nothing() -> None:
    work, stranger = under_way(), agent_id("c", "x")
    assert work.offer(stranger, slot(owner=stranger)) == f"agent {stranger.short} is not expected in round 3"
    assert work.slots == {}


def test_who_was_given_up_and_contributes_after_all_counts() -> None:
    work = under_way(missing=(A,))
    assert work.offer(A, slot()) is None
    assert work.missing == {}
    assert work.open_slots() == [B, C]


# --- substitutes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_record_of_this_round_is_the_contribution_itself(mode: RecoveryMode) -> None:
    """Also for targets: what a dead one has measured is measured."""
    for phase in ("train", "adapt"):
        work = under_way(phase)  # type: ignore[arg-type]
        assert work.substitute(record(), terms(mode)) is None
        assert (work.slots[A].way, work.slots[A].factor) == ("replica", 1.0)


def test_a_checkpoint_holds_no_contribution() -> None:
    work = under_way()
    assert work.substitute(record(complete=False), terms("substitute")) == (
        "its newest record (version 7) holds no finished contribution"
    )
    assert work.slots == {}


@pytest.mark.parametrize(("number", "factor"), [(2, 0.5), (1, 0.25)])
def test_an_older_record_stands_in_at_a_discount(number: int, factor: float) -> None:
    work = under_way()
    assert work.substitute(record(number=number), terms("substitute")) is None
    assert (work.slots[A].way, work.slots[A].factor) == ("substitute", factor)


@pytest.mark.parametrize(
    ("mode", "phase", "number", "said"),
    [
        ("substitute", "train", 0, "more than staleness_max (2)"),
        ("substitute", "train", 4, "-1 rounds behind"),
        ("substitute", "adapt", 2, "1 rounds behind"),
        ("exact", "train", 2, "1 rounds behind"),
        ("drop", "train", 2, "1 rounds behind"),
    ],
)
def test_where_an_older_record_does_not_stand_in(mode: RecoveryMode, phase: Any, number: int, said: str) -> None:
    work = under_way(phase)
    unfit = work.substitute(record(number=number), terms(mode))
    assert unfit is not None
    assert said in unfit
    assert work.slots == {}


# --- nothing waits for ever (promise P8) -----------------------------------------------------------------------------------

standings = st.fixed_dictionaries({agent: st.sampled_from(("alive", "suspect", "dead", "left")) for agent in AGENTS})
subsets = st.sets(st.sampled_from(AGENTS))


@given(st.sampled_from(MODES), st.sampled_from(("train", "adapt")), standings, subsets, subsets, subsets, subsets)
@settings(max_examples=200, deadline=None)
def test_p8_with_time_every_round_closes_or_halts(
    mode: RecoveryMode, phase: Any, standing: Any, filled: Any, missing: Any, recovering: Any, tried: Any
) -> None:
    """However it stands: judged at each deadline, with recoveries that never end, and with ones that find nothing."""
    for found in (False, True):
        work = under_way(phase, slots=filled, missing=missing - filled, recovering=set(recovering), tried=set(tried))
        now = 0.0
        for _ in range(20):
            verdict, reason, whom = judge(now, work, standing, terms(mode))
            assert reason
            if verdict in ("close", "halt"):
                assert work.slots or verdict == "halt", "nothing is aggregated from nothing"
                break
            if verdict == "recover":
                assert mode != "drop"
                assert whom
                (work.tried if found else work.recovering).update(whom)
                continue
            due = next_deadline(work, now, terms(mode))
            assert due is not None, f"nobody judges again: {reason}"
            now = due
        else:
            pytest.fail("it waits for ever")


@pytest.mark.parametrize("mode", MODES)
def test_fewer_than_the_aggregation_needs_never_close_a_round_of_training(mode: RecoveryMode) -> None:
    """A robust rule that is applied to too few promises nothing: better no round than that one."""
    needs_three = terms(mode, contributions_min=3, rule="aggregation krum")
    standing = {**ALIVE, C: "left"}
    said = "aggregation krum needs 3 contributions, and there are 2: start more agents"
    assert judge(EARLY, under_way(**AB), standing, needs_three) == ("halt", said, ())
    assert judge(EARLY, under_way("adapt", **AB), standing, needs_three)[0] == "close", "adaptation aggregates nothing"
    assert judge(EARLY, under_way(slots=AGENTS), ALIVE, needs_three)[0] == "close"


@pytest.mark.parametrize("mode", ["substitute", "drop"])
def test_nor_at_the_deadline(mode: RecoveryMode) -> None:
    needs_three = terms(mode, contributions_min=3, quorum=0.5)
    verdict, reason, _ = judge(LATE, under_way(**NOT_FOUND), C_DEAD, needs_three)
    assert (verdict, reason) == ("halt", "the weighted mean needs 3 contributions, and there are 2: start more agents")

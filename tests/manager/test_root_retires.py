"""One tree's root and agents whose names are never used again (rule 10 of root.py, rule 6 of liveness.py)."""

from __future__ import annotations

from itertools import count

import pytest

from fmrec_manager.ledger import Ledger, ledger_of
from fmrec_manager.liveness import GONE_KEPT
from fmrec_manager.orders import Aggregate, Ask
from fmrec_manager.selection import Seen, Selection, choose
from protocol.wire.messages import RecoveryMode
from tests.manager.stage import SOURCES, TERMS, Stage, named, record, stage

ROUNDS = 12


def round_of(play: Stage, number: int, *names: str) -> None:
    """These contribute, and it is closed, at the deadline where others are still awaited."""
    for name in names:
        assert play.uploads(name, number, version=number + 2) is None
    if play.root.stage == "train":
        play.after(TERMS.deadline_s)
    play.aggregated()
    play.is_durable()


def c_died_in_round_1(mode: RecoveryMode, quorum: float = 1.0) -> Stage:
    play = stage(mode, rounds=ROUNDS, quorum=quorum)
    play.begins(*SOURCES)
    play.closes(0, *SOURCES)
    play.goes("c")
    if mode == "substitute":
        play.retrieved(1, record("c", 0))
    return play


@pytest.mark.parametrize("mode", ["substitute", "drop"])
def test_who_is_dead_for_more_rounds_than_its_record_may_serve_is_retired(mode: RecoveryMode) -> None:
    play = c_died_in_round_1(mode)
    for number in range(1, 1 + TERMS.staleness_max):
        round_of(play, number, "a", "b")
    assert named("c") in {info.peer.id for info in play.root.liveness.staying()}
    round_of(play, 1 + TERMS.staleness_max, "a", "b")
    member = play.root.liveness.members[named("c")]
    assert (member.state, member.retired, play.said("retired")) == ("dead", True, [{"agent": named("c"), "reason": member.reason}])
    assert member.reason == "connection refused; dead for more than 2 rounds, which go on without it"
    round_of(play, 2 + TERMS.staleness_max, "a", "b")
    assert play.root.left_behind == {}
    assert named("c") not in {elector.id for elector in play.last(Ask).electors}, "one whose host is gone would withhold its vote for ever"
    assert "c" not in {member.name for member in Ledger.read(ledger_of(1, play.root).model_dump_json().encode()).members}


def test_mode_exact_keeps_everyone_however_long_it_is_not_chosen() -> None:
    """It has to come back; and it may be chosen for none of many rounds before."""
    names = tuple(sorted(map(named, SOURCES)))
    policies = (Selection("fraction", 0.5, seed, 1) for seed in count())
    policy = next(p for p in policies if not any(named("c") in choose(names, p, number, {}) for number in range(ROUNDS - 1)))
    play = stage("exact", rounds=ROUNDS, selection=policy)
    play.begins(*SOURCES)
    play.goes("c")
    for number in range(ROUNDS - 1):
        round_of(play, number, "a", "b")
    assert play.said("retired") == []
    assert play.root.liveness.members[named("c")].state == "dead"


def test_the_dead_of_many_names_do_not_count_for_the_quorum_for_ever() -> None:
    """One who is late would halt the run, with more dead on record than the quorum allows."""
    play = stage("substitute", rounds=ROUNDS, quorum=0.5)
    dead = [f"d{number}" for number in range(8)]
    play.begins(*SOURCES, *dead)
    play.closes(0, *SOURCES, *dead)
    play.goes(*dead)
    for number in range(1, len(dead) + 1):
        play.retrieved(number, record(dead[number - 1], 0, complete=False))
    for number in range(1, 2 + TERMS.staleness_max):
        round_of(play, number, *SOURCES)
    number = play.root.next_round
    for name in ("a", "b"):
        play.uploads(name, number)
    play.after(TERMS.deadline_s)
    play.retrieved(play.root.recoveries._begun, None)
    while play.root.stage == "train":
        play.until_due()
        if play.root.recoveries.running(named("c")):
            play.never_found(play.root.recoveries._begun)
    assert (play.root.stage, sorted(play.last(Aggregate).slots)) == ("aggregating", sorted([named("a"), named("b")]))


@pytest.mark.parametrize("incarnation", [1, 2], ids=["it was cut off", "another life of it"])
def test_who_is_retired_may_come_back(incarnation: int) -> None:
    play = c_died_in_round_1("substitute")
    for number in range(1, 3 + TERMS.staleness_max):
        round_of(play, number, "a", "b")
    play.joins("c", incarnation=incarnation)
    round_of(play, play.root.next_round, "a", "b")
    round_of(play, play.root.next_round, *SOURCES)
    assert named("c") in play.last(Aggregate).slots
    before = len(play.recovers())
    play.goes("c", incarnation=incarnation)
    assert play.recovers()[before:] == [named("c")], "it is looked for as at first"


def test_who_comes_back_has_said_nothing_yet_as_to_a_later_life_of_the_root() -> None:
    """Or the two would choose differently (rule 8)."""
    play = c_died_in_round_1("substitute")
    play.root.seen |= {named(name): Seen(10) for name in SOURCES}
    for number in range(1, 3 + TERMS.staleness_max):
        round_of(play, number, "a", "b")
    assert play.root.seen.keys() == {named("a"), named("b")}
    play.joins("c")
    assert set(Ledger.read(ledger_of(1, play.root).model_dump_json().encode()).seen) == {str(agent) for agent in play.root.seen}


def test_newcomers_cause_no_looks_for_who_is_retired() -> None:
    play = c_died_in_round_1("substitute")
    for number in range(1, 3 + TERMS.staleness_max):
        round_of(play, number, "a", "b")
    before = len(play.recovers())
    for number in range(3):
        play.joins(f"n{number}")
        round_of(play, play.root.next_round, "a", "b", *(f"n{earlier}" for earlier in range(number)))
    assert play.recovers()[before:] == []


def test_so_many_that_are_gone_are_kept_to_be_shown() -> None:
    play = stage("drop", rounds=ROUNDS)
    gone = [f"g{number}" for number in range(GONE_KEPT + 2)]
    play.begins(*SOURCES, *gone)
    for name in gone:
        play.now += 1.0
        play.goes(name, cause="left")
    play.closes(0, *SOURCES)
    members = play.root.liveness.members
    assert [name for name in gone if named(name) not in members] == gone[:2]
    play.goes(gone[0])
    assert named(gone[0]) not in members, "late news of it is nobody's"
    play.joins(gone[0])
    assert members[named(gone[0])].state == "alive"


def test_but_not_one_whose_record_is_being_looked_for() -> None:
    play = stage("substitute", rounds=ROUNDS)
    gone = [f"g{number}" for number in range(GONE_KEPT + 1)]
    play.begins(*SOURCES, *gone)
    play.goes(gone[0])
    for name in gone:
        play.now += 0.01
        play.goes(name, cause="left", incarnation=2)
    play.closes(0, *SOURCES)
    assert named(gone[0]) in play.root.liveness.members
    play.retrieved(1, record(gone[0], 0))

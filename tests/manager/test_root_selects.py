"""The root and who takes part: policies over rounds and restarts, and rounds with too few for their aggregation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fmrec_manager.ledger import Ledger, ledger_of
from fmrec_manager.orders import Aggregate, Announce
from fmrec_manager.selection import Policy, Seen, Selection
from protocol.wire.messages import RecoveryMode
from tests.manager.stage import Stage, info, named, stage

NAMES = tuple("abcdefgh")


def begun(policy: Policy, **facts: Any) -> Stage:
    play = stage(sources_min=len(NAMES), rounds=40, selection=Selection(policy, 0.25, seed=3), **facts)
    play.begins(*NAMES)
    return play


def names_of(announced: Announce) -> set[str]:
    return {name for name in (*NAMES, "t0") if named(name) in announced.chosen}


def closes(play: Stage) -> set[str]:
    """The round under way, with those whom it has chosen: they have 10 samples and a gradient as long as their letter is late."""
    chosen = names_of(play.last(Announce))
    for name in chosen:
        assert play.uploads(name, play.root.next_round, version=play.root.next_round + 2) is None
    seen = {named(name): Seen(10, float(ord(name))) for name in chosen}
    play.took(play.root.aggregated(0.5, play.now, seen))
    play.is_durable()
    return chosen


@pytest.mark.parametrize("policy", ["fraction", "samples", "nufm"])
def test_the_chosen_are_named_and_only_they_are_awaited(policy: Policy) -> None:
    play = begun(policy)
    for number in range(6):
        chosen = names_of(play.last(Announce))
        assert len(chosen) == 2
        idle = next(name for name in NAMES if name not in chosen)
        assert play.uploads(idle, number) == f"agent {named(idle).short} is not expected in round {number}"
        assert closes(play) == chosen
        assert set(play.last(Aggregate).slots) == {named(name) for name in chosen}


def test_without_a_policy_nobody_is_named() -> None:
    play = stage()
    play.begins("a", "b", "c")
    assert play.last(Announce).chosen == ()


def test_targets_all_adapt() -> None:
    play = stage(sources_min=2, rounds=1, selection=Selection("fraction", 0.5))
    play.begins("a", "b", "t0", "t1")
    closes(play)
    assert play.last(Announce) == Announce("adapt", 1)
    assert play.root.work is not None
    assert len(play.root.work.expected) == 2


def test_nufm_hears_everyone_once_and_then_chooses_the_largest_gradients() -> None:
    play = begun("nufm")
    first = [closes(play) for _ in range(4)]
    assert sorted(name for chosen in first for name in chosen) == list(NAMES)
    assert closes(play) == {"g", "h"}


@pytest.mark.parametrize("policy", ["fraction", "samples", "nufm"])
@pytest.mark.parametrize("rounds", [2, 5])
def test_a_later_life_of_the_root_chooses_the_same(policy: Policy, rounds: int) -> None:
    """P6: through the ledger as it is written and read, and on from there for six rounds."""
    first = begun(policy)
    for _ in range(rounds):
        closes(first)
    written = ledger_of(3, first.root).model_dump_json().encode()
    later = stage(sources_min=len(NAMES), rounds=40, selection=Selection(policy, 0.25, seed=3))
    later.took(later.root.start(0.0))
    later.located(Ledger.read(written).resumed(first.root.version, 1, rounds))
    later.joins(*NAMES)
    assert later.last(Announce) == first.last(Announce)
    assert [closes(later) for _ in range(6)] == [closes(first) for _ in range(6)]


def test_the_dead_are_chosen_like_anyone_where_the_mode_recovers() -> None:
    """Else a death would change who trains, and theta with it (P5)."""
    alone, bereft = begun("fraction"), begun("fraction")
    resting = next(name for name in NAMES if name not in names_of(bereft.last(Announce)))
    bereft.goes(resting)
    for _ in range(12):
        assert closes(alone) == closes(bereft)


@pytest.mark.parametrize("mode", ["exact", "substitute", "drop"])
def test_a_round_with_too_few_halts_in_words_and_is_opened_anew_for_whoever_comes(mode: RecoveryMode) -> None:
    play = stage(mode, contributions_min=3, rule="aggregation krum")
    play.begins("a", "b", "c")
    for name in "ab":
        play.uploads(name, 0)
    play.goes("c", cause="left")
    assert (play.root.stage, play.root.reason) == ("halted", "aggregation krum needs 3 contributions, and there are 2: start more agents")
    assert len(play.said("halted")) == 1
    play.joins("d")
    assert play.last(Announce) == Announce("train", 0)
    for name in "abd":
        assert play.uploads(name, 0) is None, "who has contributed brings it once more"
    assert set(play.last(Aggregate).slots) == {named(name) for name in "abd"}


def test_without_recovery_the_dead_are_not_waited_for_where_they_leave_too_few() -> None:
    play = stage("drop", contributions_min=3)
    play.begins("a", "b", "c")
    for name in "ab":
        play.uploads(name, 0)
    play.goes("c")
    assert play.root.stage == "halted"
    play.joins("d")
    assert play.last(Announce) == Announce("train", 0)
    assert play.root.work is not None
    assert play.root.work.expected == tuple(sorted(named(name) for name in "abd"))


def test_a_contribution_that_cannot_be_used_may_leave_too_few() -> None:
    play = stage(contributions_min=3)
    play.begins("a", "b", "c")
    for name in "abc":
        play.uploads(name, 0)
    play.took(play.root.unusable([named("b")], "tensor w is missing", play.now))
    assert play.root.stage == "halted"
    assert play.root.reason.startswith("the weighted mean needs 3 contributions, and there are 2")
    play.took(play.root.members_changed([replace(info("d"))], [], play.now))
    assert play.root.stage == "train"

"""One tree's root, as stories: what the tree hears, and which orders follow."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fmrec_manager.orders import Aggregate, Announce, Commit, LocateOwn
from protocol.wire.messages import RecoveryMode
from tests.manager.stage import FIGURES, MODES, PLAN, SOURCES, TRANSFER_S, named, record, resumed, stage

# --- from the first member to the last result ------------------------------------------------------------------------------


def test_first_start_to_done() -> None:
    play = stage()
    assert play.took(play.root.start(0.0)) == [LocateOwn()]
    assert play.located() == []
    assert play.joins("a", "b") == []
    assert play.root.reason == "2 of 3 sources and 0 of 0 targets have joined"
    assert play.joins("c", "t0") == [LocateOwn()], "before it begins anew it looks for an earlier run on those who came"
    (asked,) = play.located()
    first = min(named(name) for name in SOURCES)
    assert asked == Announce("init", 0, first)
    name = next(name for name in SOURCES if named(name) == first)
    assert play.uploads(name, 0, "init") is None
    assert (play.root.stage, play.last(Commit)) == ("committing", Commit(1, 0))
    play.is_durable()
    play.closes(0, *SOURCES)
    play.closes(1, *SOURCES)
    assert play.uploads("t0", 2, "adapt") is None
    assert play.story() == ["init 0", "train 0", "aggregate 0 of 3", "train 1", "aggregate 1 of 3", "adapt 2", "done 2"]
    assert play.root.results == {"t0": FIGURES}
    assert play.root.losses == [0.5, 0.5]
    assert play.root.next_deadline(play.now) is None, "who is done wants no timer"


def test_contributions_are_folded_in_the_order_of_ids_whoever_came_first() -> None:
    play = stage()
    play.begins(*SOURCES)
    for name in sorted(SOURCES, key=named, reverse=True):
        play.uploads(name, 0)
    assert list(play.last(Aggregate).slots) == sorted(named(name) for name in SOURCES)


@pytest.mark.parametrize("change", [{"adapt": False}, {}])
def test_without_targets_training_is_all(change: dict[str, bool]) -> None:
    play = stage(rounds=1, **change)
    play.begins(*SOURCES)
    play.closes(0, *SOURCES)
    assert play.story()[-1] == "done 1"


def test_who_joins_during_a_round_is_expected_in_the_next() -> None:
    play = stage()
    play.begins(*SOURCES)
    play.joins("d")
    assert play.uploads("d", 0) == f"agent {named('d').short} is not expected in round 0"
    play.closes(0, *SOURCES)
    assert play.root.work is not None
    assert named("d") in play.root.work.expected


# --- theta_0 ---------------------------------------------------------------------------------------------------------------


def test_who_is_asked_for_theta_0_and_dies_is_followed_by_the_next_in_turn() -> None:
    play = stage()
    play.took(play.root.start(0.0))
    play.located()
    play.joins(*SOURCES)
    play.located()
    in_turn = sorted(SOURCES, key=named)
    play.goes(in_turn[0])
    assert play.recovers() == [], "it has nothing yet that could be lost"
    for name in (in_turn[1], in_turn[2], in_turn[1]):
        assert play.until_due() == [Announce("init", 0, named(name))]
    assert play.uploads(in_turn[0], 0, "init") is None, "all would give the same: the first to answer does"


def test_when_all_die_before_theta_0_it_waits_for_members_again() -> None:
    play = stage()
    play.took(play.root.start(0.0))
    play.located()
    play.joins(*SOURCES)
    play.located()
    play.goes(*SOURCES)
    play.until_due()
    assert play.root.stage == "waiting"
    assert play.joins(*SOURCES, incarnation=2) == [LocateOwn()]
    assert isinstance(play.located()[0], Announce)


def test_theta_0_is_taken_once() -> None:
    play = stage()
    play.begins(*SOURCES)
    assert play.uploads("b", 0, "init") == "theta_0 is there already"
    assert play.story() == ["init 0", "train 0"]


# --- contributions that are refused ----------------------------------------------------------------------------------------


def test_what_is_refused_is_refused_with_words() -> None:
    play = stage()
    assert play.uploads("a", 0) == "train of round 0 is not open"
    play.begins(*SOURCES)
    assert play.uploads("a", 0) is None
    assert play.uploads("a", 0) == f"round 0 has a contribution of {named('a').short} already, by upload"
    assert play.uploads("b", 0, complete=False) == "the record holds no finished contribution"
    assert play.uploads("b", 1) == "train of round 1 is not open"
    assert play.uploads("b", 0, "adapt") == "adapt of round 0 is not open"
    assert play.uploads("x", 0) == f"agent {named('x').short} is not expected in round 0"
    play.uploads("b", 0)
    play.uploads("c", 0)
    assert play.uploads("c", 0) == "train of round 0 is not open", "it is being folded in"
    play.aggregated()
    assert play.uploads("c", 0) == "train of round 0 is not open"
    play.is_durable()
    assert play.uploads("c", 0) == "train of round 0 is not open"
    assert play.story() == ["init 0", "train 0", "aggregate 0 of 3", "train 1"]


def test_after_its_replica_an_agents_own_upload_is_a_duplicate() -> None:
    play = stage()
    play.begins(*SOURCES)
    play.goes("c")
    play.retrieved(1, record("c", 0))
    play.joins("c", incarnation=2)
    assert play.uploads("c", 0) == f"round 0 has a contribution of {named('c').short} already, by replica"


def test_a_contribution_that_is_not_finite_is_given_up_and_said() -> None:
    play = stage("exact")
    play.begins(*SOURCES)
    play.uploads("a", 0)
    play.uploads("b", 0)
    play.took(play.root.unfit(record("c", 0), "train", "the loss is nan", play.now))
    assert play.said("contribution_refused") == [{"agent": named("c"), "reason": "the loss is nan"}]
    assert play.story()[-1] == "aggregate 0 of 2"


@pytest.mark.parametrize(("name", "number", "phase"), [("a", 0, "train"), ("b", 1, "train"), ("b", 0, "adapt"), ("x", 0, "train")])
def test_an_unfit_record_costs_nobody_but_an_open_slot_of_this_round(name: str, number: int, phase: str) -> None:
    """One that comes late, or beside the good one that was taken, changes nothing."""
    play = stage("exact")
    play.begins(*SOURCES)
    play.uploads("a", 0)
    assert play.took(play.root.unfit(record(name, number), phase, "the loss is nan", play.now)) == []  # type: ignore[arg-type]
    assert play.root.work is not None
    assert (list(play.root.work.slots), play.root.work.missing) == ([named("a")], {})


def test_an_unfit_record_does_not_open_what_is_being_folded_in() -> None:
    play = stage("exact")
    play.begins(*SOURCES)
    for name in SOURCES:
        play.uploads(name, 0)
    assert play.took(play.root.unfit(record("a", 0), "train", "the loss is nan", play.now)) == []
    assert (play.root.stage, play.story()[-1]) == ("aggregating", "aggregate 0 of 3")


def test_what_aggregation_says_too_late_changes_nothing() -> None:
    play = stage("exact")
    play.begins(*SOURCES)
    play.uploads("a", 0)
    assert play.took(play.root.unusable([named("a")], "tensor w is missing", play.now)) == []
    assert play.root.work is not None
    assert list(play.root.work.slots) == [named("a")]


def test_what_aggregation_cannot_use_is_given_up_and_the_rest_folded_in() -> None:
    play = stage("exact")
    play.begins(*SOURCES)
    for name in SOURCES:
        play.uploads(name, 0)
    play.took(play.root.unusable([named("b")], "tensor w is missing", play.now))
    assert sorted(play.last(Aggregate).slots) == sorted([named("a"), named("c")])
    play.aggregated()
    play.is_durable()
    assert play.story() == ["init 0", "train 0", "aggregate 0 of 3", "aggregate 0 of 2", "train 1"]


def test_where_nothing_can_be_used_the_tree_halts_and_the_next_upload_ends_that() -> None:
    play = stage("exact", sources_min=1)
    play.begins("a")
    play.took(play.root.unfit(record("a", 0), "train", "the loss is nan", play.now))
    assert (play.root.stage, play.root.reason) == ("halted", f"nobody is left to contribute; {named('a').short}: the loss is nan")
    assert play.uploads("a", 0) is None
    assert play.root.stage == "aggregating"


def test_contributions_that_no_mean_can_be_made_of_are_given_up_together_and_named() -> None:
    """And the round is opened anew for whoever comes."""
    play = stage("exact")
    play.begins(*SOURCES)
    for name in SOURCES:
        play.uploads(name, 0)
    play.took(play.root.unusable(sorted(map(named, SOURCES)), "no weight is above 0", play.now))
    assert play.root.stage == "halted"
    who = ", ".join(agent.short for agent in sorted(map(named, SOURCES)))
    assert play.root.reason == f"nobody is left to contribute; {who}: no weight is above 0"
    assert len(play.said("contribution_refused")) == 3
    play.joins("d")
    play.closes(0, *SOURCES, "d")
    assert play.story() == ["init 0", "train 0", "aggregate 0 of 3", "train 0", "aggregate 0 of 4", "train 1"]


# --- promise P6: committed before announced ----------------------------------------------------------------------------------


def test_p6_nothing_is_announced_before_it_is_durable() -> None:
    play = stage()
    play.begins(*SOURCES)
    for name in SOURCES:
        play.uploads(name, 0)
    play.aggregated()
    assert play.took(play.root.durable(1, play.now)) == [], "an older version's news"
    assert play.story()[-1] == "aggregate 0 of 3"
    assert Announce("train", 1) in play.is_durable(2)
    assert play.took(play.root.durable(2, play.now)) == [], "told twice"


def test_p6_nothing_is_announced_before_it_is_durable_however_long_that_takes() -> None:
    """Too few neighbours hold it: that is said, again and again, until a quorum is there."""
    play = stage()
    play.begins(*SOURCES)
    for name in SOURCES:
        play.uploads(name, 0)
    play.aggregated()
    began = play.now
    play.until_due()
    assert play.now == began + 2 * TRANSFER_S + PLAN.silence_max_s
    play.after(600.0)
    assert len(play.said("not_durable")) > 10
    assert "too few neighbours" in play.root.reason
    assert not [order for order in play.orders if order == Announce("train", 1)]
    assert Announce("train", 1) in play.is_durable()


def test_a_run_is_not_begun_anew_while_somebody_who_may_know_of_one_has_not_answered() -> None:
    """P2: never a silent restart from zero."""
    play = stage()
    play.took(play.root.start(play.now))
    play.joins(*SOURCES)
    for _ in range(20):
        assert play.located(None, certain=False) == []
        assert LocateOwn() in play.until_due()
    assert Announce("train", 1) in play.located(resumed(1, *SOURCES))


def test_p6_what_is_not_sealed_yet_is_not_announced_however_long_that_takes() -> None:
    """A large theta on a busy machine: its order would name the theta of the round before."""
    play = stage()
    play.begins(*SOURCES)
    for name in SOURCES:
        play.uploads(name, 0)
    assert play.root.aggregated(0.5, play.now) == [Commit(2, 1)]
    assert play.root.next_deadline(play.now) is None
    assert play.root.tick(play.now + 1000) == []
    assert play.root.sealed(1, TRANSFER_S, play.now) == []
    assert play.root.next_deadline(play.now) is None
    play.root.sealed(2, 30.0, play.now)
    assert play.root.next_deadline(play.now) == play.now + 60 + PLAN.silence_max_s, "a large record has longer"


# --- a manager that starts again -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_it_resumes_at_the_committed_round_and_expects_who_was_there(mode: RecoveryMode) -> None:
    play = stage(mode)
    play.took(play.root.start(0.0))
    assert Announce("train", 1) in play.located(resumed(1, *SOURCES))
    assert play.root.losses == [0.9]
    play.joins("a", "b", "c")
    play.closes(1, *SOURCES)
    assert play.root.version == 6, "versions only grow, over all lives of the manager; 4 was found, 5 the same, written anew"
    assert play.story()[-1] == "done 2"


def test_who_died_with_the_manager_is_noticed_by_its_silence() -> None:
    play = stage("exact")
    play.took(play.root.start(0.0))
    play.located(resumed(1, *SOURCES))
    play.joins("a", "b")
    assert play.recovers() == []
    play.after(PLAN.orphan_max_s)
    assert play.recovers() == [named("c")]


def test_a_run_that_is_found_on_the_agents_is_resumed_too() -> None:
    """The manager's disk is gone: it looks again when enough members are there."""
    play = stage()
    play.took(play.root.start(0.0))
    play.located()
    play.joins(*SOURCES)
    assert Announce("train", 1) in play.located(resumed(1, *SOURCES))


@pytest.mark.parametrize(
    ("rounds", "names", "opens"), [(2, "abct", "adapt 2"), (2, "abc", "done 2"), (1, "abct", "adapt 2"), (3, "abct", "train 2")]
)
def test_resumed_after_training_it_adapts_ends_or_trains_on_as_the_settings_say_now(rounds: int, names: str, opens: str) -> None:
    play = stage(rounds=rounds)
    play.took(play.root.start(0.0))
    play.located(resumed(2, *names))
    assert play.story() == [opens]


def test_a_node_that_was_cut_off_for_a_while_does_not_look_for_its_run_again() -> None:
    play = stage()
    play.begins(*SOURCES)
    assert play.root.start(play.now) == []
    assert play.located(resumed(0, *SOURCES, version=1)) == []
    assert play.root.stage == "train"


def test_targets_that_have_a_result_are_not_asked_again() -> None:
    play = stage()
    play.took(play.root.start(0.0))
    found = resumed(2, *SOURCES, "t0", "t1")
    play.located(replace(found, results={"t0": FIGURES}))
    play.joins("t0", "t1")
    assert play.uploads("t1", 2, "adapt") is None
    assert (play.root.stage, set(play.root.results)) == ("done", {"t0", "t1"})


def test_a_dead_targets_result_comes_from_its_replica() -> None:
    play = stage(rounds=1)
    play.begins(*SOURCES, "t0")
    play.closes(0, *SOURCES)
    play.goes("t0")
    play.retrieved(1, record("t0", 1), {"rmse_pp": 6.5})
    assert (play.root.stage, play.root.results) == ("done", {"t0": {"rmse_pp": 6.5}})



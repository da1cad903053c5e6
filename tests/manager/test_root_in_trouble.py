"""One tree's root when agents die, come late or leave, in each mode; when it halts, and what ends that."""

from __future__ import annotations

from dataclasses import replace

from fmrec_manager.orders import Aggregate, Announce, Recover
from tests.manager.stage import PLAN, SOURCES, TERMS, Stage, info, named, record, resumed, stage

# --- a death in a round, in each mode --------------------------------------------------------------------------------------


def test_exact_takes_the_replica_that_holds_this_rounds_contribution() -> None:
    play = stage("exact")
    play.begins(*SOURCES)
    play.uploads("a", 0)
    play.uploads("b", 0)
    play.goes("c")
    assert play.recovers() == [named("c")]
    assert play.said("agent_lost")[0]["cause"] == "death"
    play.retrieved(1, record("c", 0))
    assert [slot.way for slot in play.last(Aggregate).slots.values()].count("replica") == 1
    assert play.root.stage == "aggregating"


def test_exact_waits_for_the_restart_where_the_replica_is_a_checkpoint() -> None:
    play = stage("exact")
    play.begins(*SOURCES)
    play.uploads("a", 0)
    play.uploads("b", 0)
    play.goes("c")
    play.retrieved(1, record("c", 0, complete=False))
    assert (play.root.stage, next(iter(play.root.recoveries)).outcome) == ("train", "verified")
    play.after(TERMS.deadline_s + 1)
    assert play.recovers() == [named("c")], "what it holds is known: it is not asked for again"
    play.joins("c", incarnation=2)
    assert play.uploads("c", 0) is None
    assert play.root.stage == "aggregating"


def test_exact_says_when_a_record_is_lost_and_still_waits() -> None:
    play = stage("exact")
    play.begins(*SOURCES)
    play.goes("c")
    play.never_found(1)
    assert len(play.recovers()) == 3
    assert play.said("record_lost") == [{"agent": named("c"), "reason": "no live node holds a record of it"}]
    assert play.root.stage == "train"


def test_substitute_takes_an_older_contribution_at_a_discount() -> None:
    play = stage("substitute")
    play.begins(*SOURCES)
    play.closes(0, *SOURCES)
    play.uploads("a", 1)
    play.uploads("b", 1)
    play.goes("c")
    play.retrieved(1, record("c", 0))
    folded = play.last(Aggregate).slots[named("c")]
    assert (folded.way, folded.factor) == ("substitute", 0.5)


def test_substitute_yields_to_the_one_itself_while_the_round_is_open() -> None:
    play = stage("substitute")
    play.begins(*SOURCES)
    play.closes(0, *SOURCES)
    play.goes("c")
    play.retrieved(1, record("c", 0))
    play.joins("c", incarnation=2)
    assert play.uploads("c", 1) is None
    play.uploads("a", 1)
    play.uploads("b", 1)
    assert {slot.way for slot in play.last(Aggregate).slots.values()} == {"upload"}


def test_substitute_goes_on_without_who_has_left_nothing() -> None:
    play = stage("substitute")
    play.begins(*SOURCES)
    play.uploads("a", 0)
    play.uploads("b", 0)
    play.goes("c")
    play.never_found(1)
    assert len(play.last(Aggregate).slots) == 2
    assert play.root.work is not None
    assert play.root.work.missing == {named("c"): "no live node holds a record of it"}


def test_drop_goes_on_at_once_and_looks_for_nothing() -> None:
    play = stage("drop")
    play.begins(*SOURCES)
    play.uploads("a", 0)
    play.goes("c")
    assert play.root.stage == "train"
    play.uploads("b", 0)
    assert play.story()[-1] == "aggregate 0 of 2"
    play.aggregated()
    play.is_durable()
    assert play.root.work is not None
    assert named("c") not in play.root.work.expected
    assert play.recovers() == []


def test_who_leaves_in_order_is_neither_recovered_nor_waited_for() -> None:
    play = stage("exact")
    play.begins(*SOURCES)
    play.uploads("a", 0)
    play.uploads("b", 0)
    play.goes("c", cause="left")
    assert play.recovers() == []
    assert play.root.stage == "aggregating"


def test_a_straggler_is_looked_for_at_the_deadline() -> None:
    play = stage("exact")
    play.begins(*SOURCES)
    play.uploads("a", 0)
    play.uploads("b", 0)
    play.after(TERMS.deadline_s)
    assert play.recovers() == [named("c")]
    assert next(iter(play.root.recoveries)).loss.cause == "deadline"


def test_an_agent_that_dies_twice_in_a_round_is_recovered_twice() -> None:
    """The first life left a checkpoint; the second finished, and died before it could say so."""
    play = stage("exact")
    play.begins(*SOURCES)
    play.uploads("a", 0)
    play.uploads("b", 0)
    play.goes("c")
    play.retrieved(1, record("c", 0, complete=False))
    play.joins("c", incarnation=2)
    play.goes("c", incarnation=2)
    assert play.recovers() == [named("c")] * 2
    play.retrieved(2, record("c", 0, 9))
    assert play.root.stage == "aggregating"


def test_a_restart_that_is_noticed_before_the_death_is_recovered_all_the_same() -> None:
    play = stage("exact")
    play.begins(*SOURCES)
    play.joins("c", incarnation=2)
    assert play.recovers() == [named("c")]
    assert next(iter(play.root.recoveries)).loss.cause == "restart"


def test_a_recovery_that_began_before_the_round_serves_it() -> None:
    """The agent dies while round 0 is committed; its record arrives in round 1. It is looked for once."""
    play = stage("substitute")
    play.begins(*SOURCES)
    for name in SOURCES:
        play.uploads(name, 0)
    play.aggregated()
    play.goes("c")
    play.is_durable()
    play.uploads("a", 1)
    play.uploads("b", 1)
    assert play.recovers() == [named("c")]
    play.retrieved(1, record("c", 0))
    assert play.story()[-1] == "aggregate 1 of 3"


def test_a_death_while_the_round_is_folded_in_disturbs_nothing() -> None:
    play = stage("exact")
    play.begins(*SOURCES)
    for name in SOURCES:
        play.uploads(name, 0)
    play.goes("c")
    play.retrieved(1, record("c", 0))
    assert play.root.stage == "aggregating"
    play.aggregated()
    play.is_durable()
    assert play.story() == ["init 0", "train 0", "aggregate 0 of 3", "train 1"]


def test_a_suspect_whose_time_is_up_is_lost() -> None:
    play = stage("exact")
    play.begins(*SOURCES)
    play.goes("c", cause="orphaned")
    assert play.recovers() == []
    play.after(PLAN.orphan_max_s)
    assert play.recovers() == [named("c")]


# --- halted and going on ---------------------------------------------------------------------------------------------------


def halted_without_c() -> Stage:
    play = stage("exact")
    play.begins(*SOURCES)
    play.uploads("a", 0)
    play.uploads("b", 0)
    play.goes("c")
    play.never_found(1)
    play.after(TERMS.exact_wait_s)
    assert play.root.stage == "halted"
    assert named("c").short in play.root.reason
    assert len(play.said("halted")) == 1
    return play


def test_halted_it_goes_on_when_the_one_it_waits_for_is_back() -> None:
    play = halted_without_c()
    play.after(1000)
    play.joins("d")
    assert play.root.stage == "halted", "another does not help"
    play.joins("c", incarnation=2)
    assert play.root.stage == "train", "and has the whole time again"
    play.after(TERMS.exact_wait_s - 1)
    assert play.root.stage == "train"
    play.uploads("c", 0)
    assert play.story()[-1] == "aggregate 0 of 3"


def test_halted_it_goes_on_with_the_missed_upload() -> None:
    play = halted_without_c()
    assert play.uploads("c", 0) is None
    assert play.root.stage == "aggregating"


def test_halted_it_goes_on_with_the_missed_replica() -> None:
    """A death that is told while the tree is halted: the record that it leaves ends the wait."""
    play = stage("exact")
    play.begins(*SOURCES)
    play.uploads("a", 0)
    play.uploads("b", 0)
    play.after(TERMS.deadline_s)
    play.never_found(1)
    play.after(TERMS.exact_wait_s)
    assert play.root.stage == "halted"
    play.goes("c")
    assert play.recovers()[-1] == named("c")
    play.retrieved(2, record("c", 0))
    assert play.root.stage == "aggregating"


def test_when_all_have_left_the_round_is_opened_anew_for_whoever_comes() -> None:
    """The agents were stopped, and others started under other names."""
    play = stage("exact")
    play.begins(*SOURCES)
    play.goes(*SOURCES, cause="left")
    assert (play.root.stage, play.root.reason) == ("halted", "nobody is left to contribute")
    play.joins("t0")
    assert play.root.stage == "halted"
    assert Announce("train", 0) in play.joins("d")
    assert play.uploads("d", 0) is None
    assert play.story()[-1] == "aggregate 0 of 1"


def test_in_mode_drop_a_round_that_found_everyone_dead_begins_with_who_is_restarted() -> None:
    play = stage("drop")
    play.begins(*SOURCES)
    for name in SOURCES:
        play.uploads(name, 0)
    play.aggregated()
    play.goes(*SOURCES)
    play.is_durable()
    assert play.root.stage == "halted"
    play.joins("b", incarnation=2)
    assert play.root.stage == "train"
    assert play.uploads("b", 1) is None
    assert play.story()[-1] == "aggregate 1 of 1"



# --- many things at once ---------------------------------------------------------------------------------------------------


def test_a_straggler_is_not_dead_its_replica_serves_and_its_own_comes_too_late() -> None:
    play = stage("substitute", quorum=0.5)
    play.begins(*SOURCES)
    play.closes(0, *SOURCES)
    play.uploads("a", 1)
    play.uploads("b", 1)
    play.after(TERMS.deadline_s)
    assert play.recovers() == [named("c")]
    play.retrieved(1, record("c", 0))
    assert play.last(Aggregate).slots[named("c")].way == "substitute"
    play.aggregated()
    play.is_durable()
    assert play.uploads("c", 1) == "train of round 1 is not open"
    assert play.root.liveness.members[named("c")].state == "alive"
    assert play.said("agent_lost") == []
    assert play.root.losses == [0.5, 0.5]


def test_a_straggler_that_comes_before_its_replica_counts_itself() -> None:
    play = stage("substitute")
    play.begins(*SOURCES)
    play.closes(0, *SOURCES)
    play.uploads("a", 1)
    play.uploads("b", 1)
    play.after(TERMS.deadline_s)
    assert play.uploads("c", 1) is None
    assert play.last(Aggregate).slots[named("c")].way == "upload"
    play.retrieved(1, record("c", 0))
    assert play.story()[-1] == "aggregate 1 of 3"


def test_a_straggler_is_looked_for_anew_in_each_round() -> None:
    """It lives, and makes new records: what was found of it in the last round is not its newest."""
    play = stage("substitute", rounds=4)
    play.begins(*SOURCES)
    play.closes(0, *SOURCES)
    for number in (1, 2):
        play.uploads("a", number)
        play.uploads("b", number)
        play.after(TERMS.deadline_s)
        play.retrieved(number, record("c", number - 1))
        play.aggregated()
        play.is_durable()
    assert play.recovers() == [named("c")] * 2


def test_a_dead_agent_is_looked_for_once_and_serves_until_it_is_too_old() -> None:
    """Its last contribution is of round 0; staleness_max is 2."""
    play = stage("substitute", rounds=6)
    play.begins(*SOURCES)
    play.closes(0, *SOURCES)
    play.goes("c")
    play.retrieved(1, record("c", 0))
    factors = []
    for number in (1, 2, 3, 4):
        play.uploads("a", number)
        play.uploads("b", number)
        folded = play.last(Aggregate).slots
        factors.append(folded[named("c")].factor if named("c") in folded else None)
        play.aggregated()
        play.is_durable()
    assert factors == [0.5, 0.25, None, None]
    assert play.recovers() == [named("c")]
    play.joins("c", incarnation=2)
    play.goes("c", incarnation=2)
    assert play.recovers() == [named("c")] * 2, "another life, another record"


def test_what_was_lost_is_looked_for_again_when_somebody_is_back_who_may_hold_it() -> None:
    """The owner and its holders died together; one of the holders has it on its disk."""
    play = stage("substitute", rounds=4)
    play.begins("a", "b", "c", "d")
    play.closes(0, "a", "b", "c", "d")
    play.goes("c", "d")
    play.never_found(1)
    play.never_found(2)
    play.uploads("a", 1)
    play.uploads("b", 1)
    assert play.story()[-1] == "aggregate 1 of 2"
    play.aggregated()
    play.is_durable()
    looks = len(play.recovers())
    play.uploads("a", 2)
    play.joins("d", incarnation=2)
    play.uploads("d", 2)
    play.uploads("b", 2)
    assert play.story()[-1] == "aggregate 2 of 3", "c was given up in this round"
    play.aggregated()
    play.is_durable()
    assert play.recovers()[looks:] == [named("c")]
    play.retrieved(play.last(Recover).number, record("c", 1))
    for name in "abd":
        play.uploads(name, 3)
    assert play.story()[-1] == "aggregate 3 of 4"


def test_two_that_die_at_once_are_each_recovered() -> None:
    play = stage("exact")
    play.begins(*SOURCES)
    play.uploads("a", 0)
    play.goes("b", "c")
    assert play.recovers() == [named("b"), named("c")]
    play.retrieved(2, record("c", 0))
    assert play.root.stage == "train"
    play.retrieved(1, record("b", 0))
    assert play.story()[-1] == "aggregate 0 of 3"


def test_owner_and_holders_that_die_together_are_said_to_be_lost_and_waited_for() -> None:
    """exact: nothing is left anywhere, and no round goes on without them; their next lives begin the round anew."""
    play = stage("exact")
    play.begins(*SOURCES)
    play.goes(*SOURCES)
    for request in (1, 2, 3):
        play.never_found(request)
    assert len(play.said("record_lost")) == 3
    assert (play.root.stage, play.root.losses) == ("train", [])
    play.joins(*SOURCES, incarnation=2)
    for name in SOURCES:
        assert play.uploads(name, 0) is None
    assert play.story()[-1] == "aggregate 0 of 3"


def test_a_death_during_a_recovery_is_a_recovery_of_its_own() -> None:
    play = stage("exact")
    play.begins(*SOURCES)
    play.goes("c")
    play.goes("b")
    assert play.recovers() == [named("c"), named("b")]
    play.retrieved(2, record("b", 0))
    play.retrieved(1, record("c", 0))
    play.uploads("a", 0)
    assert [slot.way for _, slot in sorted(play.last(Aggregate).slots.items())].count("replica") == 2


def test_a_manager_that_died_in_the_middle_of_a_retrieval_begins_it_anew() -> None:
    """What it knew of the look is gone with it; that its member is silent is not."""
    before = stage("exact")
    before.begins(*SOURCES)
    before.goes("c")
    assert next(iter(before.root.recoveries)).outcome == "running"
    play = stage("exact")
    play.took(play.root.start(0.0))
    play.located(resumed(0, *SOURCES, version=1))
    play.joins("a", "b")
    play.uploads("a", 0)
    play.uploads("b", 0)
    play.retrieved(1, record("c", 0))
    assert play.root.stage == "train", "an answer to a question of the life before"
    play.after(PLAN.orphan_max_s)
    assert play.recovers() == [named("c")]
    play.retrieved(1, record("c", 0))
    assert play.story()[-1] == "aggregate 0 of 3"


def test_one_wrongly_thought_dead_comes_back_and_counts_once() -> None:
    """The same life is heard again while its record is looked for; then both its own and its replica come."""
    for own_first in (True, False):
        play = stage("exact")
        play.begins(*SOURCES)
        play.uploads("a", 0)
        play.goes("c")
        play.joins("c")
        assert play.root.liveness.members[named("c")].reason == "heard again"
        if own_first:
            assert play.uploads("c", 0) is None
            play.retrieved(1, record("c", 0))
        else:
            play.retrieved(1, record("c", 0))
            assert "already, by replica" in str(play.uploads("c", 0))
        play.uploads("b", 0)
        assert play.story()[-1] == "aggregate 0 of 3"


def test_a_replaced_machine_takes_its_predecessors_place() -> None:
    """The same name at another address: the earlier life is recovered, its place in the round is the later one's."""
    play = stage("exact")
    play.begins(*SOURCES)
    play.uploads("a", 0)
    play.uploads("b", 0)
    elsewhere = replace(info("c", 2), peer=replace(info("c", 2).peer, host="10.0.0.9", port=7900))
    play.took(play.root.members_changed([elsewhere], [], play.now))
    assert play.recovers() == [named("c")]
    play.retrieved(1, record("c", 0, complete=False))
    play.goes("c", incarnation=1)
    assert play.root.liveness.members[named("c")].state == "alive", "late news of the life before"
    assert play.uploads("c", 0) is None
    assert play.story()[-1] == "aggregate 0 of 3"
    assert play.root.liveness.members[named("c")].info.peer.host == "10.0.0.9"

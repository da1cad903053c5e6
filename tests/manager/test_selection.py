"""Who takes part in a round: who may, and whom a policy chooses."""

from __future__ import annotations

from collections import Counter

import pytest

from fmrec_manager.liveness import Member, State
from fmrec_manager.selection import Policy, Seen, Selection, choose, contribution, select
from protocol.identifiers import NodeId, Peer
from protocol.wire.messages import RecoveryMode
from protocol.wire.values import MemberInfo


def members(**states: State) -> dict[NodeId, Member]:
    made = {}
    for index, (name, state) in enumerate(reversed(states.items())):
        peer = Peer(NodeId(100 - index), "h", 1, 1)
        made[peer.id] = Member(MemberInfo(peer, name, "source", 1), state, "", 0.0)
    return made


def test_the_modes_that_recover_expect_the_dead_too_in_the_order_of_ids() -> None:
    three = members(a="alive", b="suspect", c="dead")
    for mode in ("exact", "substitute"):
        assert select(three, mode) == tuple(sorted(three))  # type: ignore[arg-type]


def test_without_recovery_only_who_may_be_alive_takes_part() -> None:
    three = members(a="alive", b="suspect", c="dead")
    assert {three[i].info.name for i in select(three, "drop")} == {"a", "b"}


@pytest.mark.parametrize("mode", ["exact", "substitute", "drop"])
def test_nobody_is_nobody(mode: RecoveryMode) -> None:
    assert select({}, mode) == ()


# --- whom a policy chooses -------------------------------------------------------------------------------------------------

CROWD = tuple(NodeId(1000 * index) for index in range(1, 21))
SEEN = {agent: Seen(50 * index, 0.1 * index) for index, agent in enumerate(CROWD, 1)}


def chosen(policy: Policy, number: int = 0, fraction: float = 0.25, **facts: object) -> tuple[NodeId, ...]:
    return choose(CROWD, Selection(policy, fraction, seed=7, **facts), number, SEEN)  # type: ignore[arg-type]


def test_all_are_all_whatever_the_fraction_says() -> None:
    assert chosen("all") == CROWD


@pytest.mark.parametrize("policy", ["fraction", "samples", "nufm"])
def test_equal_facts_give_equal_choices_in_the_order_of_ids(policy: Policy) -> None:
    """A later life of the manager, or a standby, has nothing but the facts."""
    for number in range(20):
        once = chosen(policy, number)
        assert len(once) == 5
        assert list(once) == sorted(once)
        assert chosen(policy, number) == once


def test_rounds_and_seeds_choose_differently() -> None:
    assert len({chosen("fraction", number) for number in range(20)}) > 15
    assert len({choose(CROWD, Selection("fraction", 0.25, seed), 0, {}) for seed in range(20)}) > 15


def test_who_leaves_makes_room_for_one_and_changes_nobody_elses_draw() -> None:
    for policy in ("fraction", "samples"):
        before = chosen(policy)  # type: ignore[arg-type]
        rest = tuple(agent for agent in CROWD if agent != before[0])
        after = choose(rest, Selection(policy, 0.25, seed=7), 0, SEEN)  # type: ignore[arg-type]
        assert len(set(after) - set(before)) == 1
        assert set(before[1:]) < set(after)


def test_a_random_fraction_is_fair() -> None:
    """2000 rounds, 5 of 20: 500 times each, with a deviation of 19; five of these either way."""
    times = Counter(agent for number in range(2000) for agent in chosen("fraction", number))
    assert all(400 < times[agent] < 600 for agent in CROWD)


def test_by_data_size_one_is_drawn_in_proportion_to_it() -> None:
    """2000 rounds, one of 20: |D_i| = 50 i of 10 500 in all. Five deviations of the binomial law."""
    times = Counter(agent for number in range(2000) for agent in chosen("samples", number, 0.05))
    for index, agent in enumerate(CROWD, 1):
        p = index / 210
        assert abs(times[agent] - 2000 * p) < 5 * (2000 * p * (1 - p)) ** 0.5 + 1


def test_who_has_no_data_is_drawn_last() -> None:
    seen = {agent: Seen(0 if agent in CROWD[:15] else 9) for agent in CROWD}
    assert all(choose(CROWD, Selection("samples", 0.25, 7), number, seen) == CROWD[15:] for number in range(20))


def test_nufm_by_hand() -> None:
    """u = |g|^2 - 2 (lambda_1 + lambda_2 / sqrt |D|) |g|, Yue et al. 2022."""
    assert contribution(Seen(25, 3.0), 0.5, 2.0) == 9 - 2 * (0.5 + 0.4) * 3
    assert contribution(Seen(25), 0.5, 2.0) is None
    assert chosen("nufm") == CROWD[-5:], "without lambdas the largest gradients"
    few_samples = {agent: Seen(1 if agent in CROWD[-5:] else 10**6, 3.0) for agent in CROWD}
    by_data = choose(CROWD, Selection("nufm", 0.75, 7, lambda_2=1.0), 0, few_samples)
    assert by_data == CROWD[:15], "of equal gradients those of more data"


@pytest.mark.parametrize("policy", ["samples", "nufm"])
def test_who_has_brought_no_figure_yet_goes_first(policy: Policy) -> None:
    seen = {agent: said for agent, said in SEEN.items() if agent not in CROWD[3:7]}
    assert set(CROWD[3:7]) < set(choose(CROWD, Selection(policy, 0.25, 7), 0, seen))
    assert set(choose(CROWD, Selection(policy, 0.1, 7), 0, seen)) < set(CROWD[3:7])


def test_nufm_knows_nothing_of_an_agent_whose_method_reports_no_norm() -> None:
    seen = SEEN | {CROWD[0]: Seen(50)}
    assert choose(CROWD, Selection("nufm", 0.05, 7), 0, seen) == CROWD[:1]


def test_as_many_as_the_aggregation_needs_are_chosen_whatever_the_fraction_says() -> None:
    assert len(chosen("fraction", fraction=0.01)) == 1
    assert len(chosen("nufm", fraction=0.01, contributions_min=7)) == 7
    assert chosen("nufm", contributions_min=99) == CROWD

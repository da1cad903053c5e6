"""The failure detector, rule 9: the dead are remembered and dialled again (protocol/overlay/suspicion.py)."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.identifiers import NodeId, Peer
from protocol.overlay import effects as fx
from protocol.overlay.detector import Detector
from protocol.overlay.suspicion import BURST_KEPT, RECENT_MAX, REFUSED_SELDOMER, DeadOnes
from tests.overlay.scene import P, detector, facts, of, peer, run_timers, watching

A = peer(0x90)


def bury(judge: Detector, other: Peer, now: float, *, silent: bool = False) -> None:
    """A node alone: its own dial is all that counts."""
    judge.suspect(other, "reset", now)
    assert of(fx.PeerDied, judge.dial_ended(other, None, not silent, "silent" if silent else "refused", now))


def test_rule_9_one_dead_is_dialled_again_with_doubling_waits_and_jitter_for_ever() -> None:
    judge = watching(A)
    bury(judge, A, 0.0, silent=True)
    times = [0.0] + [when for when, effect in run_timers(judge, 60.0) if effect == fx.Dial(A)]
    waits = [after - before for before, after in pairwise(times)]
    for attempt, wait in enumerate(waits):
        nominal = min(min(P.silence_max_s, P.retry_max_s) * 2**attempt, P.retry_max_s)
        assert 0.75 * nominal <= wait <= 1.25 * nominal + 1e-9
    assert len({round(wait, 6) for wait in waits[-5:]}) == 5, "jitter: a crowd that died together does not come back together"
    assert len(waits) >= 60 / (1.25 * P.retry_max_s), "it never gives up: partitions heal however long they lasted"


def test_rule_9_who_refused_is_given_retry_max_s_at_first() -> None:
    """Its host has answered: no cut keeps it from us, and a crowd that was killed at once is not dialled by all who knew it."""
    judge = watching(A)
    bury(judge, A, 0.0)
    [first, *_] = [when for when, effect in run_timers(judge, 60.0) if effect == fx.Dial(A)]
    assert 0.75 * P.retry_max_s <= first <= 1.25 * P.retry_max_s


@pytest.mark.parametrize("dead", [1, 10, 50])
def test_rule_9_all_the_dead_together_cost_one_dial_in_retry_max_s_in_the_long_run(dead: int) -> None:
    """A partition of half the ring: its healing is looked for at a price that does not grow with it."""
    judge = detector(replace(P, remembered_dead_max=128))
    for leading in range(1, dead + 1):
        bury(judge, peer(leading), 0.0)
    share_s = P.retry_max_s * REFUSED_SELDOMER  # bury() has them refuse
    warm = 4 * share_s * dead
    run_timers(judge, warm)
    dials = of(fx.Dial, [effect for _, effect in run_timers(judge, warm + 100 * share_s)])
    assert 70 <= len(dials) <= 140
    if dead > 1:
        assert len({dial.peer for dial in dials}) == dead, "and every one of them gets its turn"


@pytest.mark.parametrize("incarnation", [1, 2], ids=["the same life", "restarted meanwhile"])
def test_rule_9_one_that_is_found_again_is_met_again(incarnation: int) -> None:
    """A healed partition, or a manager that restarted and remembers nobody: it is we who must bring it back into the ring."""
    judge = watching(A)
    died_at = 0.5
    bury(judge, A, died_at)
    back = replace(A, incarnation=incarnation)
    effects = judge.dial_ended(A, back, False, "", 8.0)
    assert facts(effects) == ["peer_back"]
    assert of(fx.PeerCleared, effects) == [fx.PeerCleared(back, died_at if incarnation == 1 else None)]
    assert judge.recently_dead(8.0) == ()
    assert not run_timers(judge, 60.0), "and it is dialled no more"


def test_rule_9_no_more_dead_are_remembered_than_the_limit() -> None:
    judge = detector(replace(P, remembered_dead_max=6))
    for leading in (1, 2, 3, 4, 5):
        bury(judge, peer(leading), 0.0)
    assert judge.recently_dead(0.0) == tuple(peer(leading).id for leading in (5, 4, 3)), "latest first"
    dialled = {effect.peer for _, effect in run_timers(judge, 30.0) if isinstance(effect, fx.Dial)}
    assert dialled == {peer(leading) for leading in (3, 4, 5)}


def test_rule_9_the_other_side_of_a_cut_is_not_forgotten_for_those_that_die_one_by_one() -> None:
    """Churn during a long cut: neither who refuses nor who falls silent alone may take the room of the way back."""
    dead, now = DeadOnes(P, Random(1)), 0.0
    cut = [peer(leading) for leading in range(1, 21)]
    for other in cut:
        dead.add(other, now, reached=False)
    for number in range(200):
        now += 2 * P.verdict_max_s
        dead.add(peer(21 + number), now, reached=number % 2 == 0)
        assert len(dead.ids()) <= P.remembered_dead_max
    assert [other.id for other in cut if other.id in dead.ids()] == [other.id for other in cut[-BURST_KEPT:]]
    waits = [dead.next_wait_s(other.id) for other in cut[-BURST_KEPT:] for _ in range(12)]
    assert max(waits) <= 1.25 * P.retry_max_s * P.remembered_dead_max // 2, "those that refuse do not make them wait"


def test_rule_9_one_that_left_in_order_is_not_remembered() -> None:
    judge = watching(A)
    [gone] = of(fx.PeerDied, judge.goodbye(A, 1.0))
    assert (gone.peer, gone.in_order) == (A, True)
    assert judge.recently_dead(1.0) == ()
    assert judge.lives() == []
    assert not run_timers(judge, 60.0)


LEADS = st.integers(1, 20)


PAUSES = st.sampled_from([0.0, 0.5, 2 * P.verdict_max_s])


@given(st.lists(st.tuples(st.integers(1, 40), PAUSES, st.booleans()), max_size=60), st.integers(1, 8))
@settings(deadline=None, max_examples=150)
def test_who_died_last_is_remembered_however_the_others_died(deaths: list[tuple[int, float, bool]], most: int) -> None:
    """Of the bursts that are left when single deaths have made room, the one under way may be the smallest."""
    dead, now = DeadOnes(replace(P, remembered_dead_max=2 * most), Random(1)), 0.0
    for leading, later_s, reached in deaths:
        now += later_s
        forgotten, wait_s = dead.add(peer(leading), now, reached)
        assert wait_s > 0
        assert peer(leading).id in dead.ids()
        assert not dead.ids() & {*forgotten}
        assert len(dead.ids()) <= 2 * most


@pytest.mark.parametrize("size", [2, 4, 8])
def test_rule_9_one_that_falls_silent_alone_after_bursts_is_remembered(size: int) -> None:
    judge = detector()
    for number in range(P.remembered_dead_max // 2):
        bury(judge, peer(1 + number), 100.0 * (number // size), silent=True)
    bury(judge, peer(200), 10_000.0, silent=True)
    assert judge.recently_dead(10_000.0)[0] == peer(200).id


@given(st.lists(st.tuples(st.sampled_from(["add", "add", "forget", "wait"]), LEADS, st.floats(0, 3)), max_size=60), st.integers(1, 8))
@settings(deadline=None, max_examples=150)
def test_the_dead_agree_with_a_plain_list(steps: list[tuple[str, int, float]], most: int) -> None:
    parameters = replace(P, remembered_dead_max=2 * most)
    dead, model, now = DeadOnes(parameters, Random(1)), dict[NodeId, tuple[Peer, float]](), 0.0
    for what, leading, later_s in steps:
        now += later_s
        other = peer(leading)
        if what == "add":
            model.pop(other.id, None)
            model[other.id] = other, now
            forgotten, wait_s = dead.add(other, now, reached=True)
            expected = list(model)[: max(0, len(model) - most)]
            assert forgotten == expected, "of those that refused the longest dead go"
            for identifier in expected:
                del model[identifier]
            assert 0 < wait_s <= 1.25 * P.retry_max_s
        elif what == "forget":
            dead.forget(other.id)
            model.pop(other.id, None)
        elif other.id in model:
            assert dead.next_wait_s(other.id) <= 1.25 * P.retry_max_s * REFUSED_SELDOMER * most
        assert set(dead.ids()) == set(model)
        assert dead.get(other.id) == model.get(other.id, (None, 0))[0]
        lately = [identifier for identifier, (_, died_at) in reversed(model.items()) if died_at >= now - 2]
        assert dead.since(now - 2) == tuple(lately[:RECENT_MAX])

"""The failure detector, rule by rule (numbers as in its docstring; SWIM and Lifeguard where they come from)."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest

from protocol.overlay import effects as fx
from protocol.overlay.detector import Detector
from protocol.parameters import OverlayParameters
from protocol.wire.messages import Superseded
from tests.overlay.scene import ME, P, facts, of, peer, sent

A, B = peer(0x90), peer(0x70)


def detector(parameters: OverlayParameters = P, seed: int = 1) -> Detector:
    return Detector(ME, parameters, Random(seed))


def watching(*peers: object, now: float = 0.0) -> Detector:
    """All of them heard and watched."""
    found = detector()
    for one in peers:
        found.heard(one, now)
    found.watch(peers, now)
    return found


def run_timers(judge: Detector, until: float) -> list[tuple[float, fx.Effect]]:
    """Fire each timer at its time."""
    seen: list[tuple[float, fx.Effect]] = []
    while (when := judge.next_deadline()) is not None and when <= until:
        seen += [(when, effect) for effect in judge.on_timer(when)]
        judge.check_invariants()
    return seen


def test_rule_1_any_message_stands_for_a_heartbeat() -> None:
    judge = watching(A)
    for tick in range(1, 20):
        judge.heard(A, tick * 0.8 * P.silence_max_s)
        assert not run_timers(judge, tick * 0.8 * P.silence_max_s)
    assert not judge.is_suspect(A.id)


def test_rules_2_and_4_a_killed_process_is_known_after_one_refused_dial() -> None:
    """A reset, a fresh dial, a refusal: dead after three calls, without waiting for any timer."""
    judge = watching(A)
    effects = judge.suspect(A, "connection reset", 1.0)
    assert of(fx.Dial, effects) == [fx.Dial(A)]
    assert judge.is_suspect(A.id)
    effects = judge.dial_ended(A, None, True, "refused", 1.001)
    assert of(fx.PeerDied, effects) == [fx.PeerDied(A, "connection reset; refused", False, 1.001)]
    assert of(fx.Disconnect, effects) == [fx.Disconnect(A)]
    assert judge.is_dead(A)
    assert not judge.is_suspect(A.id)
    assert judge.recently_dead() == (A.id,)


def test_rules_3_and_4_a_hang_is_dead_within_silence_and_a_trial() -> None:
    """SIGSTOP: no reset, no refusal, and the dial never ends either. The trial has a deadline of its own (P8)."""
    judge = watching(A)
    seen = run_timers(judge, 5.0)
    dials = [when for when, effect in seen if effect == fx.Dial(A)]
    died = [when for when, effect in seen if isinstance(effect, fx.PeerDied)]
    assert dials[0] == pytest.approx(P.silence_max_s)
    assert died == [pytest.approx(P.silence_max_s + 1.5 * P.probe_timeout_s)]


def test_rule_3_nobody_else_is_suspected_for_silence() -> None:
    judge = watching(A)
    judge.heard(B, 0.0)
    judge.watch([], 0.1)
    assert not run_timers(judge, 60.0)


def test_rule_4_a_hello_clears_a_suspect() -> None:
    judge = watching(A)
    judge.suspect(A, "silent", 1.0)
    effects = judge.dial_ended(A, A, False, "", 1.1)
    assert of(fx.PeerCleared, effects) == [fx.PeerCleared(A)]
    assert not judge.is_suspect(A.id)
    assert not of(fx.PeerDied, [effect for _, effect in run_timers(judge, 1.1 + 0.9 * P.silence_max_s)])


def test_rule_4_who_spoke_during_a_dial_that_timed_out_is_cleared() -> None:
    """The machine was too busy to accept a connection, but its messages kept coming."""
    judge = watching(A)
    judge.suspect(A, "reset", 1.0)
    judge.heard(A, 1.4)
    effects = judge.dial_ended(A, None, False, "no hello in time", 1.5)
    assert of(fx.PeerCleared, effects) == [fx.PeerCleared(A)]
    assert not of(fx.PeerDied, effects)


def test_rule_4_a_message_on_the_way_does_not_save_a_process_that_is_gone() -> None:
    """Its last words arrive after its connection broke: the refusal is the stronger evidence."""
    judge = watching(A)
    judge.suspect(A, "reset", 1.0)
    judge.heard(A, 1.001)
    assert of(fx.PeerDied, judge.dial_ended(A, None, True, "refused", 1.002))


def test_rule_4_another_node_at_its_address_is_a_refusal() -> None:
    """The port was given to another process."""
    judge = watching(A)
    judge.suspect(A, "reset", 1.0)
    died = of(fx.PeerDied, judge.dial_ended(A, B, False, "", 1.1))
    assert [effect.peer for effect in died] == [A]
    assert B.id.short in died[0].reason


def test_rule_4_a_suspect_is_dialled_once() -> None:
    judge = watching(A)
    assert of(fx.Dial, judge.suspect(A, "reset", 1.0))
    assert judge.suspect(A, "silent too", 1.1) == []


def test_rule_4_a_later_life_that_nobody_finds_kills_nobody() -> None:
    """P7: a peer that invents a later life of our neighbour, at an address where nobody listens, must not bury the real one."""
    judge = watching(A)
    invented = replace(A, incarnation=99, port=1)
    assert of(fx.Dial, judge.suspect(invented, "silent when probed", 1.0)) == [fx.Dial(invented)]
    effects = judge.dial_ended(invented, None, True, "refused", 1.1)
    assert not of(fx.PeerDied, effects)
    assert of(fx.PeerCleared, effects) == [fx.PeerCleared(A)]
    assert not judge.is_dead(A)
    assert A in judge.lives()


def test_rule_4_an_earlier_life_that_answers_does_not_stand_for_the_later_one() -> None:
    """The later life was heard, and broke off; at its address a paused earlier process wakes up."""
    judge = watching(replace(A, incarnation=2))
    judge.suspect(replace(A, incarnation=2), "reset", 1.0)
    effects = judge.dial_ended(replace(A, incarnation=2), A, False, "", 1.1)
    assert [effect.peer.incarnation for effect in of(fx.PeerDied, effects)] == [2]
    assert sent(effects, Superseded) == [(A, Superseded(replace(A, incarnation=2)))]


def test_rule_5_the_higher_incarnation_wins_at_once() -> None:
    judge = watching(A)
    welcome, effects = judge.heard(replace(A, incarnation=2), 1.0)
    assert welcome
    died = of(fx.PeerDied, effects)
    assert [effect.peer for effect in died] == [A]
    assert "restarted as incarnation 2" in died[0].reason
    assert judge.is_dead(A)
    assert not judge.is_dead(replace(A, incarnation=2))
    assert judge.recently_dead() == (), "its id lives"


def test_rule_5_a_lower_one_that_speaks_is_told_so_and_ignored() -> None:
    later = replace(A, incarnation=2)
    judge = watching(later)
    assert judge.heard(A, 1.0) == (False, [fx.Send(A, Superseded(later))])
    assert judge.suspect(A, "reset", 1.1) == [], "nor is its death news"


def test_rule_5_a_restart_found_by_the_trial_is_the_death_of_the_earlier_life() -> None:
    """Killed and restarted at the same address before our dial: the hello names the next incarnation."""
    judge = watching(A)
    judge.suspect(A, "reset", 1.0)
    effects = judge.dial_ended(A, replace(A, incarnation=2), False, "", 1.1)
    assert [effect.peer for effect in of(fx.PeerDied, effects)] == [A]
    assert not judge.is_suspect(A.id)
    assert judge.next_deadline() is None, "nothing of the trial is left"


def test_rule_5_a_suspect_known_only_by_hearsay_dies_when_a_later_life_is_heard() -> None:
    """A candidate told by others restarts while it is on trial: whoever waits for the verdict gets one."""
    judge = detector()
    judge.suspect(A, "silent when probed", 1.0)
    _, effects = judge.heard(replace(A, incarnation=2), 1.1)
    assert [effect.peer for effect in of(fx.PeerDied, effects)] == [A]
    assert not judge.is_suspect(A.id)


def test_rule_6_the_dead_are_dialled_again_with_doubling_waits_and_jitter() -> None:
    judge = watching(A)
    judge.suspect(A, "reset", 0.0)
    judge.dial_ended(A, None, True, "refused", 0.0)
    times = [0.0] + [when for when, effect in run_timers(judge, 30.0) if effect == fx.Dial(A)]
    waits = [after - before for before, after in pairwise(times)]
    for attempt, wait in enumerate(waits):
        nominal = min(P.retry_min_s * 2**attempt, P.retry_max_s)
        assert 0.75 * nominal <= wait <= 1.25 * nominal + 1e-9
    assert len({round(wait, 6) for wait in waits[-5:]}) == 5, "jitter: a crowd that died together does not come back together"
    assert len(waits) > 10, "it never gives up: partitions heal however long they lasted"


@pytest.mark.parametrize("incarnation", [1, 2], ids=["the same life", "restarted meanwhile"])
def test_rule_6_one_that_is_found_again_is_met_again(incarnation: int) -> None:
    """A healed partition, or a manager that restarted and remembers nobody: it is we who must bring it back into the ring."""
    judge = watching(A)
    judge.suspect(A, "silent", 0.0)
    judge.dial_ended(A, None, False, "no hello", 1.0)
    back = replace(A, incarnation=incarnation)
    effects = judge.dial_ended(A, back, False, "", 8.0)
    assert facts(effects) == ["peer_back"]
    assert of(fx.PeerCleared, effects) == [fx.PeerCleared(back)]
    assert judge.recently_dead() == ()
    assert not run_timers(judge, 60.0), "and it is dialled no more"


def test_rule_6_no_more_dead_are_remembered_than_the_limit() -> None:
    judge = detector(replace(P, remembered_dead_max=3))
    for leading in (1, 2, 3, 4, 5):
        judge.suspect(peer(leading), "reset", 0.0)
        judge.dial_ended(peer(leading), None, True, "refused", 0.0)
    assert judge.recently_dead() == tuple(peer(leading).id for leading in (3, 4, 5))
    dialled = {effect.peer for _, effect in run_timers(judge, 10.0) if isinstance(effect, fx.Dial)}
    assert dialled == {peer(leading) for leading in (3, 4, 5)}


def test_rule_6_one_that_left_in_order_is_not_remembered() -> None:
    judge = watching(A)
    died = of(fx.PeerDied, judge.goodbye(A, 1.0))
    assert [(effect.peer, effect.in_order) for effect in died] == [(A, True)]
    assert judge.recently_dead() == ()
    assert judge.lives() == []
    assert not run_timers(judge, 60.0)


def test_rule_7_a_node_that_slept_forgives_and_dials_anew() -> None:
    """Lifeguard: a node that is itself slow first doubts itself. Everyone was silent because we did not listen."""
    judge = watching(A, B)
    judge.suspect(A, "reset", 0.1)
    woke = 100.0
    assert judge.forgive(woke) == [fx.Dial(A)]
    assert not of(fx.PeerDied, judge.on_timer(woke)), "the old trial's deadline is over, but it was our fault"
    assert not judge.is_suspect(B.id)
    assert of(fx.PeerDied, [effect for _, effect in run_timers(judge, woke + 1.5 * P.probe_timeout_s)]), "asleep no more: judged"


def test_a_trial_and_a_silence_that_end_in_the_same_moment() -> None:
    """A timer rings a little late and finds both due; the verdict of the one takes the subject from the other."""
    judge = watching(A)
    judge.suspect(A, "reset", P.silence_max_s - 1.5 * P.probe_timeout_s - 0.05)
    assert len(of(fx.PeerDied, judge.on_timer(P.silence_max_s))) == 1
    judge.heard(A, 2.0)
    assert not run_timers(judge, 60.0), "no deadline is left behind for one that nobody watches"


def test_lives_are_bounded_and_the_watched_are_kept() -> None:
    """A cluster of agents that come once and never again must not fill a manager that runs for months."""
    judge = Detector(ME, replace(P, remembered_lives_max=4), Random(1))
    judge.heard(A, 0.0)
    judge.watch([A], 0.0)
    for leading in range(1, 20):
        judge.heard(peer(leading), float(leading))
    assert judge.lives() == [A, *(peer(leading) for leading in (17, 18, 19))]


def test_we_never_suspect_ourselves() -> None:
    assert detector().suspect(ME, "told so by others", 0.0) == []

"""The failure detector, rules 6 to 8 and 10: refutation, local health, lives, sleep (SWIM 4.2; Lifeguard IV-A). Rule 9: test_the_dead.py.

And the errands that it runs for others.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from protocol.overlay import effects as fx
from protocol.overlay.detector import VOUCHED_MAX
from protocol.overlay.suspicion import Errands
from protocol.wire.messages import Heartbeat, IndirectAnswer, IndirectProbe, Superseded, Suspected
from tests.overlay.scene import FRIENDS, ME, P, deaths, detector, facts, of, on_trial, peer, run_timers, sent, watching

A, B, C = peer(0x90), peer(0x70), peer(0xA0)


# --- rules 6 to 8, and 10 ---------------------------------------------------------------------------------------------


def test_rule_6_the_helper_tells_the_suspect_who_doubts_it() -> None:
    helper = detector()
    helper.indirect_probe(B, A, 1.0)
    assert sent(helper.dial_ended(A, A, False, "", 1.1), Suspected) == [(A, Suspected(B))]


def test_rule_6_who_is_doubted_dials_the_doubter_and_is_heard_by_it() -> None:
    """A's hello and heartbeat, on a connection of its own making, end the trial at the doubter."""
    doubted, doubter = detector(), watching(ME)
    assert doubted.suspected(A, 1.0) == [fx.Dial(A)]
    assert doubted.suspected(A, 1.0) == [], "it is dialled already"
    assert sent(doubted.dial_ended(A, A, False, "", 1.1), Heartbeat) == [(A, Heartbeat())]
    assert sent(doubted.dial_ended(A, A, False, "", 1.2), Heartbeat) == [], "once"
    doubter.suspect(B, "silent", 1.0)
    assert of(fx.PeerCleared, doubter.heard(B, 1.1)[1]) == [fx.PeerCleared(B)]


def test_rule_6_doubters_are_dialled_within_a_bound_and_not_for_ever() -> None:
    """P7: nobody can make us dial the world by naming it."""
    doubted = detector()
    many = [peer(leading) for leading in range(1, 60)]
    dials = [effect for doubter in many for effect in doubted.suspected(doubter, 1.0)]
    assert len(dials) == P.helpers**2
    assert doubted.suspected(ME, 1.0) == []
    assert not run_timers(doubted, 1.0 + 2 * P.probe_timeout_s)
    assert doubted.suspected(many[-1], 3.0) == [fx.Dial(many[-1])]


def test_rule_6_asked_to_probe_ourselves_we_answer_the_asker_itself() -> None:
    me = detector()
    assert me.indirect_probe(A, ME, 1.0) == [fx.Send(A, Heartbeat())]
    assert me.indirect_probe(A, replace(ME, incarnation=7), 1.0) == [], "that life we are not"


def test_rule_7_helpers_that_are_silent_at_the_end_make_us_doubt_ourselves() -> None:
    """Not even a nack: it may be our own link. The suspect is dead all the same, at the end of its time."""
    judge, asked = on_trial(A)
    assert not of(fx.PeerDied, judge.dial_ended(A, None, False, "no hello", 1.0 + P.probe_timeout_s))
    assert not deaths(run_timers(judge, 1.0 + P.trial_max_s))
    assert judge.health == 1
    judge.dial_ended(A, None, False, "no hello", 3.0)
    others = len(FRIENDS) - len(asked)
    assert f"no word from {others} helpers" in deaths(run_timers(judge, 60.0))[0][1].reason, "those that had not been asked"


def test_rule_7_helpers_are_not_missed_by_who_hears_others() -> None:
    """Their words are late, those of another are not: it is not our link."""
    judge, asked = on_trial(A)
    judge.dial_ended(A, None, False, "no hello", 1.0 + P.probe_timeout_s)
    for helper in asked[:2]:
        judge.indirect_answer(helper, IndirectAnswer(A, "silent"), 1.0 + P.probe_timeout_s)
    judge.heard(B, 1.0 + P.trial_max_s - P.probe_timeout_s)
    assert deaths(run_timers(judge, 1.0 + P.trial_max_s))
    assert judge.health == 0


def test_rule_7_a_dial_that_comes_to_no_end_extends_the_trial_so_many_times() -> None:
    """Each time is a point against us: a shell that cannot end one dial in time is no witness. But the trial has an end (P8)."""
    judge = watching(A)
    judge.suspect(A, "reset", 1.0)
    for extension in range(1, P.local_health_max + 1):
        assert not deaths(run_timers(judge, 1.0 + extension * P.trial_max_s))
        assert judge.health == extension
        assert judge.is_suspect(A.id)
    [(when, gone)] = deaths(run_timers(judge, 60.0))
    assert when == pytest.approx(1.0 + (1 + P.local_health_max) * P.trial_max_s)
    assert "no end of the dial" in gone.reason


@pytest.mark.parametrize("alive", [True, False])
def test_rule_7_the_end_of_the_dial_decides_an_extended_trial_at_once(alive: bool) -> None:
    judge = watching(A)
    judge.suspect(A, "reset", 1.0)
    run_timers(judge, 1.1 + P.trial_max_s)
    effects = judge.dial_ended(A, A if alive else None, False, "no hello", 1.2 + P.trial_max_s)
    assert bool(of(fx.PeerDied, effects)) != alive
    assert bool(of(fx.PeerCleared, effects)) == alive
    assert not judge.is_suspect(A.id)


def test_rule_7_who_is_the_slow_one_suspects_nobody_on_hearsay_whom_it_has_heard_lately() -> None:
    judge = watching(A)
    assert facts(judge.suspect(A, "B believes it dead", 1.0)) == ["peer_suspected"], "well: it is looked at"
    for health in range(1, P.local_health_max + 1):
        judge = watching(A)
        for _ in range(health):
            judge.forgive(P.delay_max_s, 0.0)
        judge.deadlines.drop(("health", ME.id))
        assert judge.suspect(A, "B believes it dead", 0.9 * health * P.silence_max_s, hearsay=True) == []
        late = judge.suspect(A, "B believes it dead", 1.1 * health * P.silence_max_s, hearsay=True)
        assert facts(late) == ["peer_suspected"]


def test_rule_7_direct_evidence_stands_however_unwell_we_are() -> None:
    """Rules 2 and 4: a connection that broke, a hop that did not acknowledge, a refusal."""
    judge = watching(A)
    judge.forgive(P.delay_max_s, 0.0)
    assert facts(judge.suspect(A, "reset", 0.1)) == ["peer_suspected"]
    judge = watching(A)
    judge.forgive(P.delay_max_s, 0.0)
    assert facts(judge.dial_ended(A, None, True, "refused", 0.1)) == ["peer_suspected"]


def test_rule_5_an_errand_in_vain_is_nothing_against_who_was_heard_meanwhile() -> None:
    """A slow node under load: its hello is late, its messages come. Found by a thousand nodes under the faults of seed 1."""
    judge = watching(A, *FRIENDS)
    judge.indirect_probe(FRIENDS[0], A, 1.0)
    judge.heard(A, 1.2)
    effects = judge.dial_ended(A, None, False, "no hello in time", 1.0 + P.probe_timeout_s)
    assert [effect.message for effect in of(fx.Send, effects)] == [IndirectAnswer(A, "silent")]
    assert not judge.is_suspect(A.id)


def test_rule_5_a_hello_ends_the_memory_of_silence() -> None:
    judge = watching(A, B)
    judge.dial_ended(A, None, False, "no hello", 1.0)
    assert [effect.message for effect in of(fx.Send, judge.indirect_probe(B, A, 1.05))] == [IndirectAnswer(A, "silent")]
    judge.heard(A, 1.1)
    assert of(fx.Dial, judge.indirect_probe(B, A, 1.2)) == [fx.Dial(A)]


def test_rule_7_a_suspect_that_answers_others_but_not_our_dial_says_something_of_us() -> None:
    judge, asked = on_trial(A)
    judge.dial_ended(A, None, False, "no hello", 1.3)
    judge.indirect_answer(asked[0], IndirectAnswer(A, "answered"), 1.4)
    assert judge.health == 1


def test_rule_7_each_point_adds_silence_and_trial_to_themselves_once_more() -> None:
    for health in range(P.local_health_max + 1):
        judge = detector(friends=FRIENDS)
        for _ in range(health):
            judge.forgive(P.delay_max_s, 0.0)
        assert judge.health == health
        judge.heard(A, 0.0)
        judge.watch([A], 0.0)
        judge.deadlines.drop(("health", ME.id))
        suspected_at = (1 + health) * P.silence_max_s
        seen = run_timers(judge, suspected_at + P.probe_timeout_s)
        assert next(when for when, effect in seen if effect == fx.Dial(A, 1 + health)) == pytest.approx(suspected_at)
        assert not of(fx.PeerDied, judge.dial_ended(A, None, False, "no hello", suspected_at + P.probe_timeout_s))
        for helper in [to for to, _ in sent((effect for _, effect in seen), IndirectProbe)][:2]:
            judge.indirect_answer(helper, IndirectAnswer(A, "silent"), suspected_at + P.probe_timeout_s)
        [(when, _)] = deaths(run_timers(judge, 60.0))
        assert when == pytest.approx((1 + health) * (P.silence_max_s + P.trial_max_s))


def test_rule_7_health_is_bounded_and_mends_with_time() -> None:
    judge = detector()
    for _ in range(10):
        judge.forgive(P.delay_max_s, 0.0)
    assert judge.health == P.local_health_max
    for point in range(P.local_health_max):
        assert judge.health == P.local_health_max - point
        run_timers(judge, 2 * P.silence_max_s * (point + 1))
    assert judge.health == 0
    assert judge.next_deadline() is None


def test_rule_8_the_higher_incarnation_wins_at_once() -> None:
    judge = watching(A)
    welcome, effects = judge.heard(replace(A, incarnation=2), 1.0)
    assert welcome
    [gone] = of(fx.PeerDied, effects)
    assert gone.peer == A
    assert "restarted as incarnation 2" in gone.reason
    assert judge.is_dead(A)
    assert not judge.is_dead(replace(A, incarnation=2))
    assert judge.recently_dead(1.0) == (), "its id lives"


def test_rule_8_a_lower_one_that_speaks_is_told_so_and_ignored() -> None:
    later = replace(A, incarnation=2)
    judge = watching(later)
    assert judge.heard(A, 0.1) == (False, [fx.Send(A, Superseded(later))])
    assert judge.suspect(A, "reset", 0.2) == [], "nor is its death news"


def test_rule_8_a_later_life_that_was_not_heard_lately_is_put_on_trial_instead() -> None:
    """It is dead, and the clock of the host on which its id begins again is behind: it was kept out until everybody forgot."""
    judge, later = detector(), replace(A, incarnation=1000)
    judge.heard(later, 0.0)
    now = 2 * P.silence_max_s
    welcome, effects = judge.heard(A, now)
    assert not welcome
    assert of(fx.Dial, effects) == [fx.Dial(later)]
    assert not sent(effects, Superseded)
    assert [effect.peer for effect in of(fx.PeerDied, judge.dial_ended(later, None, True, "refused", now + 0.1))] == [later]
    assert judge.heard(A, now + 0.2)[0]


def test_rule_8_a_later_life_that_lives_is_found_by_that_trial() -> None:
    judge, later = detector(), replace(A, incarnation=1000)
    judge.heard(later, 0.0)
    now = 2 * P.silence_max_s
    judge.heard(A, now)
    assert not of(fx.PeerDied, judge.dial_ended(later, later, False, "", now + 0.1))
    assert judge.heard(A, now + 0.2) == (False, [fx.Send(A, Superseded(later))])


def test_rule_8_a_later_life_that_lives_for_others_is_not_tried_to_death() -> None:
    """Our way to it is cut, others answer for it again and again, and the earlier life, which was stopped, has woken up."""
    judge, later, now = detector(friends=FRIENDS), replace(A, incarnation=1000, port=7), 2 * P.silence_max_s
    judge.heard(later, 0.0)
    told: list[fx.Effect] = []
    for _ in range(2 * VOUCHED_MAX):
        welcome, effects = judge.heard(A, now)
        assert not welcome
        told += [effect for effect in effects if effect == fx.Send(A, Superseded(later))]
        for helper, probe in sent(judge.dial_ended(later, None, False, "silent", now + 0.01), IndirectProbe):
            assert not of(fx.PeerDied, judge.indirect_answer(helper, IndirectAnswer(probe.suspect, "answered"), now + 0.02))
        now += P.heartbeat_interval_s
    assert len(told) == VOUCHED_MAX, "whenever its life has been vouched for"
    judge.heard(A, now)
    assert of(fx.PeerDied, judge.dial_ended(later, None, True, "refused", now + 0.01)), "and when it is dead, that is found"
    assert judge.heard(A, now + 0.02)[0]


def test_rule_8_a_restart_found_by_the_trial_is_the_death_of_the_earlier_life() -> None:
    """Killed and restarted at the same address before our dial: the hello names the next incarnation."""
    judge = watching(A, friends=FRIENDS)
    judge.suspect(A, "reset", 1.0)
    effects = judge.dial_ended(A, replace(A, incarnation=2), False, "", 1.1)
    assert [effect.peer for effect in of(fx.PeerDied, effects)] == [A]
    assert not judge.is_suspect(A.id)
    assert judge.next_deadline() is None, "nothing of the trial is left"


def test_rule_8_a_suspect_known_only_by_hearsay_dies_when_a_later_life_is_heard() -> None:
    """A candidate told by others restarts while it is on trial: whoever waits for the verdict gets one."""
    judge = detector()
    judge.suspect(A, "silent when probed", 1.0)
    _, effects = judge.heard(replace(A, incarnation=2), 1.1)
    assert [effect.peer for effect in of(fx.PeerDied, effects)] == [A]
    assert not judge.is_suspect(A.id)


@pytest.mark.parametrize("refused", [True, False], ids=["refused", "silent"])
def test_rule_8_a_later_life_that_nobody_finds_kills_nobody(refused: bool) -> None:
    """P7: a peer that invents a later life of our neighbour, at an address where nobody listens, must not bury the real one."""
    judge = watching(A)
    invented = replace(A, incarnation=99, port=1)
    assert of(fx.Dial, judge.suspect(invented, "silent when probed", 1.0)) == [fx.Dial(invented)]
    effects = judge.dial_ended(invented, None, refused, "no", 1.1)
    assert not of(fx.PeerDied, effects)
    assert of(fx.PeerCleared, effects) == [fx.PeerCleared(A)]
    assert not judge.is_dead(A)
    assert A in judge.lives()


def test_rule_8_what_is_found_where_another_life_should_be_says_nothing_of_this_one() -> None:
    """A is on trial; asked to probe an invented later life of it, we are refused at that address. A may yet answer at its own."""
    judge = watching(A)
    judge.suspect(A, "reset", 1.0)
    invented = replace(A, incarnation=99, port=1)
    judge.indirect_probe(B, invented, 1.01)
    assert sent(judge.dial_ended(invented, None, True, "refused", 1.02), IndirectAnswer) == [(B, IndirectAnswer(invented, "refused"))]
    assert judge.is_suspect(A.id)
    assert of(fx.PeerCleared, judge.dial_ended(A, A, False, "", 1.03))


def test_rule_8_an_earlier_life_that_answers_does_not_stand_for_the_later_one() -> None:
    """The later life was heard, and broke off; at its address a paused earlier process wakes up."""
    later = replace(A, incarnation=2)
    judge = watching(later)
    judge.suspect(later, "reset", 0.1)
    effects = judge.dial_ended(later, A, False, "", 0.2)
    assert [effect.peer for effect in of(fx.PeerDied, effects)] == [later]
    assert sent(effects, Superseded) == [(A, Superseded(later))]


def test_rule_8_an_earlier_life_that_answers_elsewhere_does_not_end_the_trial_of_the_later() -> None:
    """It came back at another port; the paused process at the old one answers somebody's errand. The later life is still being dialled."""
    later = replace(A, incarnation=2, port=7)
    judge = watching(later)
    judge.suspect(later, "reset", 0.1)
    judge.indirect_probe(B, A, 0.1)
    effects = judge.dial_ended(A, A, False, "", 0.2)
    assert not of(fx.PeerDied, effects)
    assert sent(effects, Superseded) == [(A, Superseded(later))]
    assert of(fx.PeerCleared, judge.dial_ended(later, later, False, "", 0.3))


def test_rule_10_a_node_that_slept_forgives_and_dials_anew() -> None:
    """Lifeguard: a node that is itself slow first doubts itself. Everyone was silent because we did not listen."""
    judge = watching(A, B)
    judge.suspect(A, "reset", 0.1)
    woke = 100.0
    assert judge.forgive(woke - 0.1, woke) == [fx.Dial(A, patience=2)]
    assert judge.health == 1
    assert not of(fx.PeerDied, judge.on_timer(woke)), "the old trial's deadline is over, but it was our fault"
    assert not judge.is_suspect(B.id)
    gone = of(fx.PeerDied, judge.dial_ended(A, None, False, "no hello", woke + P.probe_timeout_s))
    assert [death.peer for death in gone] == [A], "asleep no more: judged"


def test_rule_10_a_hang_is_found_out_by_a_node_that_is_late_now_and_then() -> None:
    """A tenth of the time was slept: that much longer it takes, and no more."""
    judge, now, late_s = watching(A), 0.0, P.late_max_s + 0.01
    while not judge.is_suspect(A.id):
        run_timers(judge, now + 10 * late_s)
        now += 11 * late_s
        judge.forgive(late_s, now)
        assert now < 3 * (1 + P.local_health_max) * P.silence_max_s, "it hangs, and nobody says so"


def test_rule_10_a_trial_is_not_begun_anew_for_ever() -> None:
    """P8: a node that sleeps again and again comes to a verdict all the same."""
    judge, now = watching(A), 1.0
    judge.suspect(A, "reset", now)
    for _ in range(4 * P.local_health_max):
        now += 2 * P.probe_timeout_s
        judge.forgive(P.probe_timeout_s + 0.01, now)
        if not judge.is_suspect(A.id):
            break
        judge.dial_ended(A, None, False, "no hello", now)
    assert not judge.is_suspect(A.id)


def test_rule_10_the_word_of_helpers_asked_before_the_sleep_counts_no_more() -> None:
    judge, asked = on_trial(A)
    judge.forgive(99.0, 100.0)
    for helper in asked:
        assert judge.indirect_answer(helper, IndirectAnswer(A, "silent"), 100.1) == []
    assert len(sent(judge.dial_ended(A, None, False, "no hello", 100.2), IndirectProbe)) == P.helpers, "others are asked anew"
    assert judge.is_suspect(A.id)


# --- errands ----------------------------------------------------------------------------------------------------------


def test_an_errand_is_run_once_for_all_who_ask() -> None:
    errands = Errands(2)
    assert errands.take(B, A)
    assert not errands.take(C, A)
    assert not errands.take(ME, A), "two askers are as many as are answered"
    assert errands.done(A) == [B, C]
    assert errands.done(A) == []
    assert errands.take(B, A)


def test_no_more_errands_than_the_limit_at_a_time() -> None:
    errands = Errands(2)
    assert [errands.take(ME, other) for other in (A, B, C)] == [True, True, False]
    errands.drop(A.id)
    assert errands.take(ME, C)


def test_an_errand_for_a_later_life_takes_the_place_of_the_earlier_ones() -> None:
    """What the dial of the earlier life comes to is then nobody's answer."""
    errands, later = Errands(4), replace(A, incarnation=2)
    assert errands.take(B, A)
    assert errands.take(C, later)
    assert errands.done(A) == []
    assert errands.done(later) == [C]

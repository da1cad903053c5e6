"""The failure detector, rules 1 to 5: evidence, and what others say (numbers as in its docstring; SWIM 4.1). 6 to 10: test_suspicion.py."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.identifiers import Peer
from protocol.overlay import effects as fx
from protocol.overlay.detector import VOUCHED_MAX
from protocol.wire.messages import IndirectAnswer, IndirectProbe
from tests.overlay.scene import ASKED_AT, FRIENDS, ME, P, deaths, detector, facts, of, on_trial, peer, run_timers, sent, watching

A, B = peer(0x90), peer(0x70)


# --- rules 1 to 4 -----------------------------------------------------------------------------------------------------


def test_rule_1_any_message_stands_for_a_heartbeat() -> None:
    judge = watching(A)
    for tick in range(1, 20):
        judge.heard(A, tick * 0.8 * P.silence_max_s)
        assert not run_timers(judge, tick * 0.8 * P.silence_max_s)
    assert not judge.is_suspect(A.id)
    assert judge.heard_at(A.id) == 19 * 0.8 * P.silence_max_s


def test_rule_1_a_message_during_a_trial_ends_it() -> None:
    """The machine was too busy to accept a connection, but its messages kept coming."""
    judge, _ = on_trial(A)
    welcome, effects = judge.heard(A, 1.4)
    assert welcome
    assert of(fx.PeerCleared, effects) == [fx.PeerCleared(A)]
    assert judge.dial_ended(A, None, False, "no hello in time", 1.5) == [], "what the dial comes to is no news any more"
    assert not deaths(run_timers(judge, 1.4 + 0.9 * P.silence_max_s))


def test_rules_2_and_4_a_killed_process_is_known_after_one_refused_dial() -> None:
    """A reset, a fresh dial, a refusal: dead after three calls, without waiting for any timer or asking anybody."""
    judge = watching(A, friends=FRIENDS)
    effects = judge.suspect(A, "connection reset", 1.0)
    assert of(fx.Dial, effects) == [fx.Dial(A)]
    assert judge.is_suspect(A.id)
    effects = judge.dial_ended(A, None, True, "refused", 1.001)
    assert of(fx.PeerDied, effects) == [fx.PeerDied(A, "connection reset; refused", False, 1.001)]
    assert of(fx.Disconnect, effects) == [fx.Disconnect(A)]
    assert not sent(effects, IndirectProbe)
    assert judge.is_dead(A)
    assert not judge.is_suspect(A.id)
    assert judge.recently_dead(1.001) == (A.id,)


def test_rules_3_to_5_a_hang_is_dead_within_silence_and_a_trial() -> None:
    """SIGSTOP: no reset, no refusal, our dial ends in silence, and most helpers meet the same. The trial has a deadline of its own (P8)."""
    judge, dial_ends_at = watching(A, friends=FRIENDS), P.silence_max_s + P.probe_timeout_s
    seen = run_timers(judge, dial_ends_at)
    assert next(when for when, effect in seen if effect == fx.Dial(A)) == pytest.approx(P.silence_max_s)
    assert not deaths((dial_ends_at, effect) for effect in judge.dial_ended(A, None, False, "no hello", dial_ends_at))
    asked = [to for to, _ in sent((effect for _, effect in seen), IndirectProbe)]
    for helper in asked[:2]:
        assert not judge.indirect_answer(helper, IndirectAnswer(A, "silent"), dial_ends_at + 0.1)
    seen += run_timers(judge, P.silence_max_s + P.trial_max_s)
    assert [when for when, _ in deaths(seen)] == [pytest.approx(P.silence_max_s + P.trial_max_s)]


def test_rule_5_where_most_helpers_give_no_word_the_trial_begins_anew_once() -> None:
    """A machine so busy that neither our dial nor anybody's answer comes through in time: 500 nodes in four processes buried each other."""
    judge = watching(A, friends=FRIENDS)
    judge.suspect(A, "no acknowledgement", 1.0, silent=True)
    judge.dial_ended(A, None, False, "no hello", 1.0 + P.probe_timeout_s)
    [(again, dialled)] = [(when, effect) for when, effect in run_timers(judge, 1.0 + P.trial_max_s) if isinstance(effect, fx.Dial)]
    assert again == pytest.approx(1.0 + P.trial_max_s)
    assert dialled == fx.Dial(A, patience=2), "with more time than before"
    assert judge.is_suspect(A.id)
    judge.dial_ended(A, None, False, "no hello", again + 2 * P.probe_timeout_s)
    assert [when for when, _ in deaths(run_timers(judge, 60.0))] == [pytest.approx(again + 2 * P.trial_max_s)], "but it has an end"


def test_rule_5_helpers_without_a_word_are_replaced_once_and_then_are_gone_too() -> None:
    """A node that is well keeps to its patience: where half of the hosts vanish at once, there is no time for more."""
    judge = watching(A, friends=FRIENDS)
    asked = {to for to, _ in sent(judge.suspect(A, "no acknowledgement", 1.0, silent=True), IndirectProbe)}
    judge.dial_ended(A, None, False, "no hello", 1.0 + P.probe_timeout_s)
    judge.heard(B, 1.0 + P.trial_max_s - 0.01)
    again = judge.on_timer(1.0 + P.trial_max_s)
    assert not of(fx.PeerDied, again)
    assert not asked & {to for to, _ in sent(again, IndirectProbe)}, "others are asked"
    judge.dial_ended(A, None, False, "no hello", 1.0 + P.trial_max_s + P.probe_timeout_s)
    judge.heard(B, 1.0 + 2 * P.trial_max_s - 0.01)
    assert judge.health == 0
    assert [when for when, _ in deaths(run_timers(judge, 60.0))] == [pytest.approx(1.0 + 2 * P.trial_max_s)]


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
    assert not deaths(run_timers(judge, 1.1 + 0.9 * P.silence_max_s))


def test_rule_4_a_refusal_stands_though_its_last_words_arrive_after_the_reset() -> None:
    """A message on the way clears it, and then the dial is refused: a trial of its own, which a fresh dial decides."""
    judge = watching(A)
    judge.suspect(A, "reset", 1.0)
    judge.heard(A, 1.001)
    effects = judge.dial_ended(A, None, True, "refused", 1.002)
    assert of(fx.Dial, effects) == [fx.Dial(A)]
    assert not of(fx.PeerDied, effects), "the refusal may be older than the word"
    assert judge.is_suspect(A.id)
    assert of(fx.PeerDied, judge.dial_ended(A, None, True, "refused", 1.003))


def test_rule_4_a_refusal_makes_a_suspect_of_a_life_that_is_known_and_of_nobody_else() -> None:
    """P7: nobody can put others on trial by naming an address where nobody listens."""
    judge = watching(A)
    assert judge.dial_ended(B, None, True, "refused", 1.0) == [], "never heard"
    assert judge.dial_ended(replace(A, incarnation=2, port=1), None, True, "refused", 1.0) == [], "another life, elsewhere"
    assert judge.dial_ended(A, None, False, "no hello", 1.0) == [], "silence is no refusal"
    assert facts(judge.dial_ended(A, None, True, "refused", 1.0)) == ["peer_suspected"]


def test_rule_4_another_node_at_its_address_is_a_refusal() -> None:
    """The port was given to another process."""
    judge = watching(A)
    judge.suspect(A, "reset", 1.0)
    [gone] = of(fx.PeerDied, judge.dial_ended(A, B, False, "", 1.1))
    assert gone.peer == A
    assert B.id.short in gone.reason


def test_rule_4_a_suspect_is_dialled_once() -> None:
    judge = watching(A)
    assert of(fx.Dial, judge.suspect(A, "reset", 1.0))
    assert judge.suspect(A, "silent too", 1.1) == []


# --- rule 5 -----------------------------------------------------------------------------------------------------------


def test_rule_5_without_an_answer_within_the_delay_helpers_are_asked() -> None:
    """Not before delay_max_s, k of them, each another, and never the suspect itself or another suspect."""
    judge = watching(A, friends=(A, B, *FRIENDS))
    judge.suspect(B, "reset", 0.99)
    judge.suspect(A, "reset", 1.0)
    asked = [(when, e.peer) for when, e in run_timers(judge, ASKED_AT) if isinstance(e, fx.Send) and e.message == IndirectProbe(A)]
    assert [when for when, _ in asked] == [pytest.approx(ASKED_AT)] * P.helpers
    assert {to for _, to in asked} < set(FRIENDS)
    assert len({to for _, to in asked}) == P.helpers


def test_rule_5_a_dial_that_ends_in_silence_early_asks_at_once() -> None:
    """No route to the host: nothing is won by waiting for delay_max_s."""
    judge = watching(A, friends=FRIENDS)
    judge.suspect(A, "silent", 1.0)
    effects = judge.dial_ended(A, None, False, "no route to host", 1.01)
    assert len(sent(effects, IndirectProbe)) == P.helpers
    assert not sent((effect for _, effect in run_timers(judge, ASKED_AT)), IndirectProbe), "once"


def test_rule_5_one_helper_that_gets_a_hello_clears_the_suspect() -> None:
    """Our link to it is lossy, it is well (SWIM 4.1)."""
    judge, asked = on_trial(A)
    judge.indirect_answer(asked[0], IndirectAnswer(A, "silent"), 1.3)
    effects = judge.indirect_answer(asked[1], IndirectAnswer(A, "answered"), 1.4)
    assert of(fx.PeerCleared, effects) == [fx.PeerCleared(A)]
    assert not judge.is_suspect(A.id)
    assert judge.health == 0, "our own dial has not failed yet: nothing is wrong with us"
    assert judge.indirect_answer(asked[2], IndirectAnswer(A, "silent"), 1.5) == []


def test_rule_5_refused_at_a_helper_while_our_own_dial_timed_out_is_dead() -> None:
    """Our packets are dropped, but the helper's host says that the process is gone: no need for the other words."""
    judge, asked = on_trial(A)
    assert not of(fx.PeerDied, judge.dial_ended(A, None, False, "no hello within 0.5 s", 1.5))
    [gone] = of(fx.PeerDied, judge.indirect_answer(asked[0], IndirectAnswer(A, "refused"), 1.55))
    assert gone.reason == f"reset; no hello within 0.5 s; refused to {asked[0].id.short}"


def test_rule_5_a_refusal_at_a_helper_waits_for_our_own_dial() -> None:
    """A firewall between the two of them also refuses: as long as our dial may be answered, nobody is dead."""
    judge, asked = on_trial(A)
    assert judge.indirect_answer(asked[0], IndirectAnswer(A, "refused"), 1.3) == []
    assert of(fx.PeerCleared, judge.dial_ended(A, A, False, "", 1.4)) == [fx.PeerCleared(A)]


def test_rule_5_all_silent_is_dead_before_the_trial_is_over() -> None:
    judge, asked = on_trial(A)
    judge.dial_ended(A, None, False, "no hello", 1.5)
    for helper in asked[:-1]:
        assert judge.indirect_answer(helper, IndirectAnswer(A, "silent"), 1.6) == []
    [gone] = of(fx.PeerDied, judge.indirect_answer(asked[-1], IndirectAnswer(A, "silent"), 1.7))
    assert all(f"silent to {helper.id.short}" in gone.reason for helper in asked)
    assert 1.0 + P.trial_max_s > 1.7
    assert judge.health == 0, "the helpers agree with us: we are well"


def test_rule_5_with_nobody_to_ask_our_own_dial_decides() -> None:
    """A ring of two."""
    judge = watching(A)
    judge.suspect(A, "silent", 1.0)
    assert not run_timers(judge, ASKED_AT)
    assert of(fx.PeerDied, judge.dial_ended(A, None, False, "no hello", 1.5))


@pytest.mark.parametrize("verdict", ["answered", "refused", "silent"])
def test_rule_5_only_who_was_asked_and_about_this_life_is_believed(verdict: str) -> None:
    """P7: neither a stranger nor word of another life moves a trial; nor is one helper heard twice."""
    judge, asked = on_trial(A)
    judge.dial_ended(A, None, False, "no hello", 1.5)
    stranger = next(friend for friend in FRIENDS if friend not in asked)
    assert judge.indirect_answer(stranger, IndirectAnswer(A, verdict), 1.6) == []
    assert judge.indirect_answer(asked[0], IndirectAnswer(replace(A, incarnation=2), verdict), 1.6) == []
    assert judge.indirect_answer(asked[0], IndirectAnswer(A, "silent"), 1.6) == []
    assert judge.indirect_answer(asked[0], IndirectAnswer(A, verdict), 1.6) == []
    assert judge.is_suspect(A.id)


def test_rule_5_who_answers_others_time_and_again_and_never_us_is_dead_to_us() -> None:
    """A cut between the two of us alone: VOUCHED_MAX trials are forgiven, the next is its end, for we cannot route through it."""
    judge, now = watching(A, friends=FRIENDS), 1.0
    for trial in range(VOUCHED_MAX + 1):
        judge.suspect(A, "no acknowledgement", now)
        [helper, *_] = [to for to, _ in sent((effect for _, effect in run_timers(judge, now + P.delay_max_s)), IndirectProbe)]
        effects = judge.indirect_answer(helper, IndirectAnswer(A, "answered"), now + 0.3)
        assert bool(of(fx.PeerDied, effects)) == (trial == VOUCHED_MAX)
        assert bool(of(fx.PeerCleared, effects)) == (trial < VOUCHED_MAX)
        now += 0.5
    assert "never us" in of(fx.PeerDied, effects)[0].reason


def test_rule_5_one_message_of_its_own_outweighs_every_word_of_others() -> None:
    judge, now = watching(A, friends=FRIENDS), 1.0
    for _ in range(3 * VOUCHED_MAX):
        judge.suspect(A, "no acknowledgement", now)
        [helper, *_] = [to for to, _ in sent((effect for _, effect in run_timers(judge, now + P.delay_max_s)), IndirectProbe)]
        assert not of(fx.PeerDied, judge.indirect_answer(helper, IndirectAnswer(A, "answered"), now + 0.3))
        judge.heard(A, now + 0.4)
        now += 0.5


# --- rule 5, as a helper ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "refused", "verdict"),
    [(A, False, "answered"), (None, True, "refused"), (None, False, "silent"), (B, False, "refused"),
     (replace(A, incarnation=2), False, "refused")],
    ids=["hello", "refused", "silent", "another node there", "a later life there"],
)  # fmt: skip
def test_rule_5_a_helper_says_what_its_dial_came_to(found: Peer | None, refused: bool, verdict: str) -> None:
    helper = detector()
    assert helper.indirect_probe(B, A, 1.0) == [fx.Dial(A)]
    effects = helper.dial_ended(A, found, refused, "", 1.1)
    assert (B, IndirectAnswer(A, verdict)) in sent(effects, IndirectAnswer)
    assert not of(fx.PeerDied, effects), "it is none of the helper's own suspects"


def test_rule_5_what_a_helper_heard_just_now_is_no_answer() -> None:
    """The asker heard it just now, too: then it was killed. Only a dial tells, and it is refused."""
    helper = detector()
    helper.heard(A, 1.0)
    assert helper.indirect_probe(B, A, 1.0) == [fx.Dial(A)]
    effects = helper.dial_ended(A, None, True, "refused", 1.001)
    assert sent(effects, IndirectAnswer) == [(B, IndirectAnswer(A, "refused"))]
    assert helper.is_suspect(A.id), "and of this life the helper has a suspect of its own"


def test_rule_5_many_askers_cost_one_dial_and_each_is_answered() -> None:
    """A crowd notices the same death at the same time."""
    helper = detector()
    assert helper.indirect_probe(FRIENDS[0], A, 1.0) == [fx.Dial(A)]
    for asker in (*FRIENDS[1:], FRIENDS[1]):
        assert helper.indirect_probe(asker, A, 1.0) == []
    answers = sent(helper.dial_ended(A, None, True, "refused", 1.1), IndirectAnswer)
    assert sorted(to.port for to, _ in answers) == sorted(friend.port for friend in FRIENDS), "each once"
    assert helper.dial_ended(A, None, True, "refused", 1.2) == [], "done is done"


def test_rule_5_errands_are_bounded_and_end() -> None:
    """P7: nobody can make us dial the world; and a dial that never ends blocks its place for two probe timeouts only."""
    helper = detector(replace(P, held_messages_max=3))
    many = [peer(leading) for leading in range(1, 9)]
    dials = [effect for suspect in many for effect in helper.indirect_probe(B, suspect, 1.0)]
    assert dials == [fx.Dial(suspect) for suspect in many[:3]]
    assert not run_timers(helper, 1.0 + 2 * P.probe_timeout_s)
    assert helper.indirect_probe(B, many[5], 3.0) == [fx.Dial(many[5])]


# --- whatever comes ---------------------------------------------------------------------------------------------------

STEPS = st.lists(
    st.tuples(st.sampled_from(["hear", "later", "suspect", "hello", "refused", "silent", "help", "word", "bye", "timer", "sleep"]),
              st.integers(0, 3), st.integers(0, 3), st.sampled_from([0.0, 0.01, 0.3, 1.0])),
    max_size=60,
)  # fmt: skip


@given(STEPS)
@settings(deadline=None, max_examples=200)
def test_a_verdict_needs_a_failed_dial_a_goodbye_a_later_life_or_the_word_of_others(steps: list[tuple[str, int, int, float]]) -> None:
    """Whatever order the evidence comes in: each trial ends within its time, each verdict has its reason, nobody dies twice."""
    judge, now = watching(A, B, friends=FRIENDS), 0.0
    others = (A, B, FRIENDS[0], FRIENDS[1])
    seen: list[tuple[float, fx.Effect]] = []
    slept_s = sum(1.5 * helper for what, _, helper, _ in steps if what == "sleep")
    for what, which, helper, wait_s in steps:
        now += wait_s
        seen += run_timers(judge, now)
        other = others[which]
        match what:
            case "hear":
                found = judge.heard(other, now)[1]
            case "later":
                found = judge.heard(replace(other, incarnation=1 + helper), now)[1]
            case "suspect":
                found = judge.suspect(other, "missed", now)
            case "hello":
                found = judge.dial_ended(other, other, False, "", now)
            case "refused" | "silent":
                found = judge.dial_ended(other, None, what == "refused", what, now)
            case "help":
                found = judge.indirect_probe(FRIENDS[helper], other, now)
            case "word":
                verdict = ("answered", "refused", "silent")[helper % 3]
                found = [e for friend in FRIENDS for e in judge.indirect_answer(friend, IndirectAnswer(other, verdict), now)]
            case "bye":
                found = judge.goodbye(other, now)
            case "timer":
                found = judge.on_timer(now)
            case _:
                found = judge.forgive(1.5 * helper, now)
        seen += [(now, effect) for effect in found]
        judge.check_invariants()
    # Two trials with the patience of a node that is not well, and its extensions; time slept does not count.
    seen += run_timers(judge, now + slept_s + P.trial_max_s * (2 + 3 * P.local_health_max))
    assert not any(judge.is_suspect(other.id) for other in others if other not in (A, B)), "a trial has an end"
    reasons = ("refused", "silent", "no end of the dial", "left in order", "restarted as", "never us", "an earlier life")
    assert all(any(reason in gone.reason for reason in reasons) for _, gone in deaths(seen))


def test_a_trial_and_a_silence_that_end_in_the_same_moment() -> None:
    """A timer rings a little late and finds both due; the verdict of the one takes the subject from the other."""
    judge = watching(A, friends=FRIENDS)
    judge.suspect(A, "reset", 0.0)
    assert sent(judge.dial_ended(A, None, False, "no hello", 0.1), IndirectProbe), "helpers, who will be silent"
    assert not of(fx.PeerDied, judge.on_timer(P.silence_max_s + P.trial_max_s)), "a second trial"
    judge.dial_ended(A, None, False, "no hello", 3.0)
    assert len(of(fx.PeerDied, judge.on_timer(20.0))) == 1
    judge.heard(A, 20.0)
    assert not run_timers(judge, 90.0), "no deadline is left behind for one that nobody watches"


def test_lives_are_bounded_and_the_watched_are_kept() -> None:
    """A cluster of agents that come once and never again must not fill a manager that runs for months."""
    judge = detector(replace(P, remembered_lives_max=4))
    judge.heard(A, 0.0)
    judge.watch([A], 0.0)
    for leading in range(1, 20):
        judge.heard(peer(leading), float(leading))
    assert judge.lives() == [A, *(peer(leading) for leading in (17, 18, 19))]
    assert judge.heard_at(peer(1).id) < 0


def test_we_never_suspect_ourselves() -> None:
    assert detector().suspect(ME, "told so by others", 0.0) == []


def test_a_death_is_told_for_twice_as_long_as_a_message_may_be_held() -> None:
    """recently_dead(): what leaf-set probes tell. Later it is nobody's news."""
    judge = watching(A)
    judge.suspect(A, "reset", 1.0)
    judge.dial_ended(A, None, True, "refused", 1.0)
    assert judge.recently_dead(1.0 + 2 * P.hold_max_s) == (A.id,)
    assert judge.recently_dead(1.1 + 2 * P.hold_max_s) == ()
    assert facts(judge.heard(A, 20.0)[1]) == ["peer_back"]


def test_each_death_is_news_for_the_others_once() -> None:
    judge = watching(*FRIENDS)
    for friend, after in pairwise(FRIENDS):
        judge.suspect(friend, "reset", 1.0)
        judge.dial_ended(friend, None, True, "refused", 1.0)
        assert not judge.is_dead(after)
    assert judge.recently_dead(1.0) == tuple(friend.id for friend in reversed(FRIENDS[:-1])), "latest first"

"""Failure detection and recovery, rule by rule.

SWIM (Das, Gupta & Motivala, DSN 2002), Lifeguard (Dadgar, Phillips & Currey, DSN-W 2018), Bamboo (Rhea et al., USENIX 2004). Each docstring
restates a sentence of the paper and names its section.
"""

from __future__ import annotations

import pytest

from protocol.overlay import effects as fx
from protocol.overlay import events as ev
from protocol.wire import messages as m
from tests.papers.stage import SMALL, Fed, P, Seen, node_id, of, peer, sent, told
from tests.scenarios.network import Network

SUSPECT = "84"
OTHERS = ("88", "8c", "7c", "78", "74")
BEFORE_HELP_S = P.delay_max_s


def suspecting() -> tuple[Fed, list[str], list[fx.Effect]]:
    """The connection to the suspect broke, and our dial is silent. The node, whom it has asked for help, and all effects so far."""
    node = Fed(SUSPECT, *OTHERS)
    effects = node.do(ev.PeerLost(peer(SUSPECT), "reset"))
    effects += [effect for _, effect in node.until(BEFORE_HELP_S, hearing=OTHERS)]
    return node, [to.id.short[:2] for to, _ in sent(effects, m.IndirectProbe)], effects


def silent_dial(node: Fed) -> list[fx.Effect]:
    return node.do(ev.DialEnded(peer(SUSPECT), None, False, "no hello in time"))


def answer(node: Fed, helper: str, verdict: str) -> list[fx.Effect]:
    return node.hear(helper, m.IndirectAnswer(peer(SUSPECT), verdict))  # type: ignore[arg-type]


def when_dead(seen: Seen) -> float | None:
    return next((when for when, effect in seen if isinstance(effect, fx.Notify) and effect.fact == "peer_died"), None)


# --- SWIM -------------------------------------------------------------------------------------------------------------


def test_a_member_that_does_not_answer_is_probed_indirectly_through_k_others() -> None:
    """If the direct probe is not acknowledged in time, k other members are asked to probe the target (SWIM 3.1)."""
    _, helpers, effects = suspecting()
    assert fx.Dial(peer(SUSPECT)) in effects
    assert len(helpers) == P.helpers
    assert set(helpers) <= set(OTHERS)


def test_a_helper_probes_the_target_and_passes_the_answer_on() -> None:
    """Each of these probes the target in turn, and forwards an acknowledgement to who asked (SWIM 3.1)."""
    helper = Fed(SUSPECT, *OTHERS)
    helper.now = 1.0
    effects = helper.hear("88", m.IndirectProbe(peer(SUSPECT)))
    assert of(fx.Dial, effects) == [fx.Dial(peer(SUSPECT))]
    effects = helper.do(ev.DialEnded(peer(SUSPECT), peer(SUSPECT)))
    assert sent(effects, m.IndirectAnswer) == [(peer("88"), m.IndirectAnswer(peer(SUSPECT), "answered"))]


def test_one_answer_through_a_helper_is_enough() -> None:
    """A target that answers directly, or through any of the k, is alive (SWIM 3.1)."""
    node, helpers, _ = suspecting()
    silent_dial(node)
    answer(node, helpers[0], "silent")
    answer(node, helpers[1], "answered")
    assert when_dead(node.until(2.0, hearing=[*OTHERS, SUSPECT])) is None
    assert SUSPECT in node.leaf_set()


def test_silence_makes_a_suspect_which_stays_a_member() -> None:
    """A member that does not answer is not declared failed but suspected; it is treated as a member meanwhile (SWIM 4.2)."""
    node, _, effects = suspecting()
    assert not node.dead(effects)
    assert SUSPECT in node.leaf_set()


def test_a_suspect_is_declared_failed_after_a_while() -> None:
    """If it has not been found alive by the end of a period, the suspect is declared faulty (SWIM 4.2)."""
    node, helpers, _ = suspecting()
    silent_dial(node)
    for helper in helpers[:2]:
        answer(node, helper, "silent")
    died = when_dead(node.until(3.0, hearing=OTHERS))
    assert died is not None
    assert died <= P.trial_max_s + 0.001
    assert SUSPECT not in node.leaf_set()


def test_any_word_of_a_suspect_ends_the_suspicion() -> None:
    """A member that suspects another, and hears it, takes it off its list of suspects (SWIM 4.2)."""
    node, _, _ = suspecting()
    node.hear(SUSPECT, m.Heartbeat())
    assert when_dead(node.until(3.0, hearing=[*OTHERS, SUSPECT])) is None


def test_the_higher_incarnation_of_a_member_wins() -> None:
    """A message of a higher incarnation overrides those of lower ones, about the same member (SWIM 4.2)."""
    node, _, _ = suspecting()
    effects = node.do(ev.MessageReceived(peer(SUSPECT, life=2), m.LeafProbe((node.me,))))
    assert node_id(SUSPECT) in node.dead(effects), "the first life, at once"
    assert [member for member in node.pastry.leaf_set if member.id == node_id(SUSPECT)] == [peer(SUSPECT, life=2)]
    assert told(node.do(ev.MessageReceived(peer(SUSPECT, life=1), m.Heartbeat())), m.Superseded) == {SUSPECT}


def test_word_of_an_older_incarnation_changes_nothing() -> None:
    """What is said of a lower incarnation than the known one is stale (SWIM 4.2)."""
    node, helpers, _ = suspecting()
    node.do(ev.MessageReceived(peer(SUSPECT, life=2), m.LeafProbe((node.me,))))
    assert not node.dead(answer(node, helpers[0], "refused"))
    assert not node.dead(node.do(ev.DialEnded(peer(SUSPECT), None, True, "refused")))
    assert SUSPECT in node.leaf_set()


# --- Lifeguard --------------------------------------------------------------------------------------------------------


def test_a_helper_that_gets_no_answer_says_so() -> None:
    """A nack tells who asked that the helper itself is well, though the target gave no answer (Lifeguard IV-A)."""
    helper = Fed(SUSPECT, *OTHERS)
    helper.now = 1.0
    helper.hear("88", m.IndirectProbe(peer(SUSPECT)))
    assert sent(silent_dial(helper), m.IndirectAnswer) == [(peer("88"), m.IndirectAnswer(peer(SUSPECT), "silent"))]


def test_missing_nacks_say_that_we_are_the_slow_one() -> None:
    """The local health score grows when no nack comes back either, nor anything else: it is us who hears nobody (Lifeguard IV-A)."""
    nacked, missed = suspecting(), suspecting()
    for node, helpers, _ in (nacked, missed):
        silent_dial(node)
        if node is nacked[0]:
            for helper in helpers:
                answer(node, helper, "silent")
        node.until(2.0, hearing=OTHERS if node is nacked[0] else ())
    assert nacked[0].node.detector.health == 0
    assert missed[0].node.detector.health == 1


def test_a_suspect_of_ours_that_answers_others_says_that_we_are_the_slow_one() -> None:
    """Having to refute, or to take back, a suspicion counts against one's own health (Lifeguard IV-A)."""
    node, helpers, _ = suspecting()
    silent_dial(node)
    answer(node, helpers[0], "answered")
    assert node.node.detector.health == 1


def test_bad_local_health_multiplies_the_timeouts() -> None:
    """Probe timeout and suspicion are scaled by the score plus one: who is slow gives others more time (Lifeguard IV-A)."""
    well, ill = Fed(SUSPECT, *OTHERS), Fed(SUSPECT, *OTHERS)
    ill.node.detector.health = 2
    for node, times in ((well, 1), (ill, 3)):
        node.until(0.5, hearing=[SUSPECT, *OTHERS])
        quiet_since = node.now
        seen = node.until(quiet_since + 6.0, hearing=OTHERS)
        suspicion = next(when for when, effect in seen if fx.Dial(peer(SUSPECT), times) == effect)
        assert suspicion - quiet_since == pytest.approx(times * P.silence_max_s, abs=P.heartbeat_interval_s)


def test_local_health_is_bounded_and_mends_with_time() -> None:
    """The score has a maximum, and goes down again as probes succeed (Lifeguard IV-A)."""
    node = Fed(SUSPECT, *OTHERS)
    for _ in range(10):
        node.now += 30.0
        node.do(ev.TimerFired())
    assert node.node.detector.health <= P.local_health_max
    node.until(node.now + 10 * P.silence_max_s, hearing=[SUSPECT, *OTHERS])
    assert node.node.detector.health == 0


def test_a_node_whose_timer_comes_late_is_the_slow_one() -> None:
    """A process that was not scheduled takes its own lateness for the silence of others, unless it knows (Lifeguard II, IV-A)."""
    node = Fed(SUSPECT, *OTHERS)
    node.until(1.0, hearing=[SUSPECT, *OTHERS])
    node.now += 10.0
    effects = node.do(ev.TimerFired())
    assert not [note for note in of(fx.Notify, effects) if note.fact == "peer_suspected"]
    assert node.node.detector.health == 1


def test_independent_confirmations_shorten_a_suspicion() -> None:
    """A suspicion lasts long at first, and ends the sooner the more others confirm it (Lifeguard IV-B)."""
    alone, confirmed = suspecting(), suspecting()
    for node, helpers, _ in (alone, confirmed):
        silent_dial(node)
        if node is confirmed[0]:
            effects = [effect for helper in helpers for effect in answer(node, helper, "silent")]
            assert node_id(SUSPECT) in node.dead(effects), "all have met the same silence"
    seen = alone[0].until(P.trial_max_s, hearing=OTHERS)
    assert when_dead(seen) is None
    silent_dial(alone[0])
    assert when_dead(alone[0].until(3.0, hearing=OTHERS)) == pytest.approx(2 * P.trial_max_s), "of two trials, with other helpers"


def test_a_suspect_is_told_first_so_that_it_can_refute() -> None:
    """Buddy system: whoever reaches a suspect tells it of the suspicion in that very message (Lifeguard IV-C)."""
    helper = Fed(SUSPECT, *OTHERS)
    helper.now = 1.0
    helper.hear("88", m.IndirectProbe(peer(SUSPECT)))
    effects = helper.do(ev.DialEnded(peer(SUSPECT), peer(SUSPECT)))
    assert sent(effects, m.Suspected) == [(peer(SUSPECT), m.Suspected(peer("88")))]


def test_a_suspect_that_is_told_so_refutes_at_once() -> None:
    """The suspect answers the suspicion without waiting for its own next probe (Lifeguard IV-C; SWIM 4.2)."""
    node = Fed(SUSPECT, *OTHERS)
    assert of(fx.Dial, node.hear("88", m.Suspected(peer("7c")))) == [fx.Dial(peer("7c"))]
    assert told(node.do(ev.DialEnded(peer("7c"), peer("7c"))), m.Heartbeat) == {"7c"}


# --- Bamboo -----------------------------------------------------------------------------------------------------------


def test_a_missed_change_is_found_by_the_periodic_exchange() -> None:
    """In periodic recovery a node shares its leaf set with its members now and then, whether or not it has seen a change (Bamboo 4.1)."""
    network = Network()
    network.ring(a="10", b="30", d="70")
    network.name("c", "50")
    network.hold(("c", "a"))
    network.start("c", ["b"])
    network.advance(3.0)
    while network.held[("c", "a")]:
        network.drop(("c", "a"))
    assert network.peer("c").id not in network["a"].pastry.leaf_set, "all that c has told a was lost"
    network.release(("c", "a"))
    network.advance(4 * P.exchange_interval_s)
    assert network.peer("c").id in network["a"].pastry.leaf_set


def test_exchanges_take_turns_at_intervals_that_do_not_depend_on_failures() -> None:
    """One member at a time is chosen each period: the cost of recovery is independent of how many nodes fail (Bamboo 4.1)."""
    node = Fed(*OTHERS[:2], *OTHERS[2:4], parameters=SMALL)
    seen = node.until(8 * SMALL.exchange_interval_s, hearing=OTHERS[:4])
    times = [when for when, effect in seen if isinstance(effect, fx.Send) and isinstance(effect.message, m.LeafProbe)]
    assert 6 <= len(times) <= 11
    assert len(told([effect for _, effect in seen], m.LeafProbe)) == 4, "each in turn"


def test_a_death_at_the_edge_of_the_leaf_set_costs_one_question_and_not_a_round_of_all() -> None:
    """Reactive recovery that tells all of every failure feeds congestion; what is not urgent waits for the period (Bamboo 4.1)."""
    node = Fed(SUSPECT, *OTHERS)
    assert len(sent(node.kill("8c"), m.LeafProbe)) == 1


def test_deaths_are_confirmed_before_recovery_spends_anything() -> None:
    """A node that only lost some messages must not set off recovery: a missed probe is not a failure (Bamboo 4.1)."""
    _, _, effects = suspecting()
    assert not sent(effects, m.LeafProbe)


def test_timeouts_come_from_measured_round_trips() -> None:
    """Timeouts are calculated from past round trips to the same neighbour, mean plus four deviations, as TCP does (Bamboo 4.2)."""
    node = Fed(SUSPECT, *OTHERS)
    for rtt_s in (0.020, 0.020, 0.020, 0.020, 0.020, 0.020, 0.020, 0.020):
        ((_, route),) = sent(node.route("84"), m.Route)
        node.now += rtt_s
        node.hear(SUSPECT, m.RouteAck(route.sequence))
    assert node.pastry.proximity.ack_timeout_s(node_id(SUSPECT)) == P.ack_timeout_min_s
    ((_, route),) = sent(node.route("84"), m.Route)
    node.now += 0.150
    node.hear(SUSPECT, m.RouteAck(route.sequence))
    assert node.pastry.proximity.ack_timeout_s(node_id(SUSPECT)) > 0.150, "one slow answer, and it has more time"

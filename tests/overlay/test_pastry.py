"""Who is in the ring, rule by rule (numbers as in pastry.py): joining, consistency, repair (Pastry 2.4, 2.5; MSPastry 3.1, 4.1).

Rule 3, mutual neighbours, is in test_mutual_neighbours.py; the way of a message in test_forwarding.py.
"""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.identifiers import RING, Address, NodeId, Peer, clockwise
from protocol.overlay import effects as fx
from protocol.overlay.candidates import CANDIDATES_PER_LEAF
from protocol.overlay.pastry import PROBES_MAX
from protocol.wire.messages import Datagram, Heartbeat, JoinReply, JoinRequest, LeafProbe, LeafProbeReply, Route
from tests.overlay.ring import Ring, among
from tests.overlay.scene import ME, P, facts, of, peer, sent

SEED, OTHER_SEED = Address("seed", 1), Address("seed", 2)
A, B, C = peer(0x90), peer(0x70), peer(0xA0)
MANY = tuple(peer(0x80 + step) for step in range(-7, 8) if step)
"""More than a leaf set holds."""


def test_rules_1_and_2_it_joins_through_a_seed_and_is_active_when_every_candidate_has_answered() -> None:
    """JOIN to the seed; the closest node answers; A, B, C are probed; only after the third reply does the node count itself in."""
    ring = Ring()
    assert ring.pastry.start((SEED,), (), 0.0) == [fx.DialSeed(SEED)]
    assert ring.pastry.seed_answered(C, 0.1) == [fx.Send(C, Route(ME.id, JoinRequest(ME)))]
    effects = ring.pastry.join_reply(A, JoinReply((C,), (A, B)), 0.2)
    assert {to.id for to, _ in sent(effects, LeafProbe)} == {A.id, B.id, C.id}
    for answering in (A, B):
        assert not of(fx.Activated, ring.pastry.probe_received(answering, LeafProbeReply((A, B, C)), 0.3))
        assert not ring.pastry.active
    assert of(fx.Activated, ring.pastry.probe_received(C, LeafProbeReply((A, B)), 0.4))
    assert {other.id for other in ring.pastry.leaf_set} == {A.id, B.id, C.id}


def test_rule_1_a_seed_that_does_not_answer_is_named_and_the_next_one_tried() -> None:
    ring = Ring()
    ring.pastry.start((SEED, OTHER_SEED), (), 0.0)
    effects = ring.pastry.seed_failed(SEED, "refused", 0.1)
    assert effects == [fx.Notify("seed_failed", {"address": SEED, "reason": "refused"}), fx.DialSeed(OTHER_SEED)]
    effects = ring.pastry.seed_failed(OTHER_SEED, "refused", 0.2)
    assert facts(effects) == ["seed_failed", "no_seed_reachable"]
    assert of(fx.Notify, effects)[-1].details["tried"] == (SEED, OTHER_SEED)


def test_rule_1_seeds_that_stay_away_are_tried_for_ever_with_growing_waits() -> None:
    """No storm when a seed comes back: waits double, with jitter, up to retry_max_s; and never more than that (P8)."""
    ring, now = Ring(), 0.0
    assert ring.pastry.start((SEED,), (), now)
    waits = []
    for _ in range(12):
        ring.pastry.seed_failed(SEED, "refused", now)
        began, effects = now, []
        while fx.DialSeed(SEED) not in effects:
            now = ring.pastry.next_deadline()
            effects = ring.pastry.on_timer(now)
        waits.append(now - began)
    assert all(0.75 * P.retry_min_s * 2**i <= wait <= 1.25 * P.retry_min_s * 2**i for i, wait in enumerate(waits[:4]))
    assert max(waits) <= 1.25 * P.retry_max_s
    assert len({round(wait, 6) for wait in waits}) == len(waits)


def test_rule_1_a_join_that_nobody_answers_goes_through_the_next_seed() -> None:
    """The seed said hello, and died before the JOIN reached the closest node."""
    ring = Ring()
    ring.pastry.start((SEED, OTHER_SEED), (), 0.0)
    ring.pastry.seed_answered(A, 0.1)
    assert fx.DialSeed(OTHER_SEED) in [effect for _, effect in ring.until(0.1 + P.join_timeout_s)]


def test_rule_1_our_own_address_among_the_seeds_is_no_seed() -> None:
    """One list of seeds for every node of a cluster, the first one included."""
    ring = Ring()
    assert of(fx.Activated, ring.pastry.start((ME.address,), (), 0.0))


def test_rule_1_a_join_goes_past_an_older_life_of_the_joiner() -> None:
    """The joiner restarted before its death was noticed: its own id is still in our leaf set, and must not be asked."""
    joiner = peer(0x91, incarnation=2)
    ring = among(peer(0x91, incarnation=1), A, B)
    effects = ring.pastry.forwarding.route(Route(joiner.id, JoinRequest(joiner)), 1.0)
    [(hop, forwarded)] = sent(effects, Route)
    assert hop == A
    assert ME in forwarded.body.candidates, "each hop adds itself"
    assert joiner.id not in {found.id for found in forwarded.body.candidates}


def test_rule_1_the_closest_node_answers_a_join_with_its_leaf_set() -> None:
    ring = among(A, B)
    joiner = peer(0x81)
    [delivered] = of(fx.DeliverBody, ring.pastry.forwarding.route(Route(joiner.id, JoinRequest(joiner, (C,))), 1.0))
    [(to, reply)] = sent(ring.pastry.join_request(delivered.body), JoinReply)
    assert to == joiner
    assert set(reply.leaf_set) == {A, B}
    assert {ME, C} <= set(reply.candidates)


def test_rule_2_an_inactive_node_delivers_nothing_and_passes_nothing_on() -> None:
    """P3: it cannot know yet what is its own. What comes is held, and goes its way on activation."""
    ring = Ring()
    ring.pastry.start((SEED,), (), 0.0)
    assert ring.pastry.forwarding.route(Route(ME.id, Datagram(b"mine")), 0.1) == []
    assert ring.pastry.originate(A.id, Datagram(b"its"), 0.1) == []
    ring.pastry.join_reply(A, JoinReply((), ()), 0.2)
    effects = ring.pastry.probe_received(A, LeafProbeReply((ME,)), 0.3)
    assert [effect.body.payload for effect in of(fx.DeliverBody, effects)] == [b"mine"]
    assert [(to, message.body.payload) for to, message in sent(effects, Route)] == [(A, b"its")]


def test_rule_2_a_probe_from_a_node_that_is_joining_too_activates_nobody() -> None:
    """Both restarted; the other was told of our earlier life and probes it. Whom it names may all be joining, as we are: our place, an
    active node has to tell us."""
    ring = Ring()
    ring.pastry.start((SEED,), (), 0.0)
    ring.pastry.probe_received(A, LeafProbe((), active=False), 0.1)
    assert not ring.pastry.active
    assert ring.pastry.forwarding.route(Route(ME.id, Datagram(b"x")), 0.2) == []
    ring.pastry.probe_received(A, LeafProbe((ME, B), active=False), 0.3)
    ring.pastry.probe_received(B, LeafProbeReply((ME, A)), 0.4)
    assert not ring.pastry.active, "nobody has told it its place"
    ring.pastry.join_reply(B, JoinReply((), (A, C)), 0.5)
    assert not ring.pastry.active, "C is to answer first"
    ring.pastry.probe_received(C, LeafProbeReply((ME, A)), 0.6)
    assert ring.pastry.active


def test_rule_2_a_join_passes_by_who_is_joining() -> None:
    """It would wait there for a node that may be waiting for it."""
    ring = among(A, B)
    ring.settle()
    ring.pastry.probe_received(C, LeafProbe((), active=False), 0.1)
    joiner = Peer(NodeId(C.id + 1), "h", 1, 1)
    effects = ring.pastry.forwarding.route(Route(joiner.id, JoinRequest(joiner)), 0.2)
    assert [to for to, _ in sent(effects, Route)] == [A]
    ring.pastry.probe_received(C, LeafProbe((ME,)), 0.3)
    effects = ring.pastry.forwarding.route(Route(joiner.id, JoinRequest(joiner)), 0.4)
    assert [to for to, _ in sent(effects, Route)] == [C]


def test_rule_2_neighbours_told_by_others_are_probed_never_taken_over() -> None:
    ring = among(A)
    effects = ring.pastry.probe_received(A, LeafProbe((B, C, ME)), 1.0)
    assert {to for to, _ in sent(effects, LeafProbe)} == {B, C}
    assert {other.id for other in ring.pastry.leaf_set} == {A.id}
    assert ring.pastry.table.get(C.id) is None


def test_rule_2_a_death_told_by_others_is_judged_never_taken_over() -> None:
    """For the leaf set and the table alike: nobody else would tell us that an entry of the table hangs."""
    ring = among(A, B)
    far = peer(0x11)
    ring.pastry.table.insert(far)
    stranger = peer(0x33)
    effects = ring.pastry.probe_received(A, LeafProbe((ME,), (B.id, far.id, stranger.id, A.id, ME.id)), 1.0)
    assert [effect.peer for effect in of(fx.Suspect, effects)] == [B, far]
    assert B.id in ring.pastry.leaf_set


def test_rule_2_those_known_to_be_dead_are_not_probed() -> None:
    ring = among(A)
    ring.dead.add(B)
    assert not sent(ring.pastry.probe_received(A, LeafProbe((B,)), 1.0), LeafProbe)


def test_rule_2_a_candidate_that_lives_but_never_answers_is_dropped_and_what_waited_for_it_goes_on() -> None:
    """P8: a message whose key the candidate might own was held. It must not be held for ever."""
    ring = among(A)
    near = peer(0x81)
    ring.pastry.probe_received(A, LeafProbe((near, ME)), 1.0)
    assert ring.pastry.forwarding.route(Route(near.id, Datagram(b"x")), 1.0) == [], "the candidate is closer: not ours to deliver"
    seen = [effect for _, effect in ring.until(1.0 + (PROBES_MAX + 1) * P.probe_timeout_s)]
    assert len(sent(seen, LeafProbe)) >= PROBES_MAX - 1
    assert fx.Suspect(near, "silent when probed") in seen
    assert "candidate_dropped" in facts(seen)
    assert [effect.key for effect in of(fx.DeliverBody, seen)] == [near.id]


def test_rule_2_a_peer_cannot_make_us_probe_without_bound() -> None:
    """P7: one message may list thousands of nodes that do not exist."""
    ring = among(A)
    ids = Random(1)
    many = tuple(Peer(NodeId(ids.getrandbits(128)), "victim", 1, 1) for _ in range(5000))
    for _ in range(3):
        ring.pastry.probe_received(A, LeafProbe(many), 1.0)
    assert len(ring.pastry._candidates) <= CANDIDATES_PER_LEAF * P.leaf_set_size


def half_lost(*, in_silence: bool) -> Ring:
    """A full leaf set, and then all but the nearest three on either side are dead."""
    ring = among(*MANY)
    ring.settle()
    assert ring.pastry.settled
    gone = [peer(leading) for leading in (0x86, 0x85, 0x84, 0x7A, 0x7B, 0x7C)]
    ring.dead |= set(gone)
    for one in gone:
        ring.pastry.died(one, 1.0, in_silence=in_silence)
    ring.settle(1.0)
    return ring


def ours(ring: Ring, now: float) -> bool:
    """Is a key next to us delivered here?"""
    return bool(of(fx.DeliverBody, ring.pastry.originate(NodeId(ME.id + 1), Datagram(b"x"), now)))


def test_rule_3_who_has_lost_half_of_a_full_leaf_set_in_silence_may_be_cut_off_and_delivers_nothing_for_a_while() -> None:
    """Five of 250 nodes were cut off, and did not know each other: each was the closest of all that it knew (a seed of the simulator)."""
    ring = half_lost(in_silence=True)
    assert not ring.pastry.settled
    assert not ours(ring, 1.1)
    wait_s = 2 * P.verdict_max_s
    assert not of(fx.DeliverBody, [effect for _, effect in ring.until(1.0 + wait_s - 0.01)]), "held"
    assert ours(half_lost(in_silence=False), 1.1), "their hosts have said that they are gone"


def test_rule_3_who_was_cut_off_delivers_again_when_it_has_waited_or_found_others() -> None:
    ring = half_lost(in_silence=True)
    ring.until(1.0 + 2 * P.verdict_max_s)
    assert ours(ring, ring.now)
    ring = half_lost(in_silence=True)
    ring.join(peer(0x88), 1.1)
    ring.settle(1.1)
    assert ours(ring, 1.2)


# --- rule 4 -----------------------------------------------------------------------------------------------------------


def test_rule_4_heartbeats_go_to_the_left_neighbour_only_and_the_right_one_is_watched() -> None:
    """MSPastry 4.1: half of the heartbeats of a ring in which everyone watches both."""
    ring = among(A, B, C, peer(0x60))
    assert ring.pastry.watched() == (A,)
    seen = ring.until(20.2 * P.heartbeat_interval_s)
    beats = [(when, e.peer) for when, e in seen if isinstance(e, fx.Send) and e.message == Heartbeat()]
    assert {to for _, to in beats} == {B}
    assert 19 <= len(beats) <= 20
    assert all(after - before == pytest.approx(P.heartbeat_interval_s) for (before, _), (after, _) in pairwise(beats))


def test_rule_4_whatever_else_was_sent_stands_for_a_heartbeat() -> None:
    """Who sees every message go (node.py) says so, and one heartbeat is saved; the next is due again."""
    ring = among(A, B)
    assert ring.pastry.left_id == B.id
    ring.until(1.0)
    ring.pastry.sent_left = True
    quiet = [e for _, e in ring.until(ring.now + P.heartbeat_interval_s)]
    assert not sent(quiet, Heartbeat)
    assert [to for to, _ in sent((e for _, e in ring.until(ring.now + P.heartbeat_interval_s)), Heartbeat)] == [B]


# --- rule 5 -----------------------------------------------------------------------------------------------------------


def test_rule_5_a_verified_death_next_to_us_is_told_to_the_whole_leaf_set() -> None:
    ring = among(*MANY)
    members, next_to_us = set(ring.pastry.leaf_set), peer(0x81)
    ring.dead.add(next_to_us)
    effects = ring.pastry.died(next_to_us, 1.0)
    assert of(fx.LeafSetChanged, effects)
    assert {to for to, _ in sent(effects, LeafProbe)} == members - {next_to_us}
    assert all(probe.failed == (next_to_us.id,) for _, probe in sent(effects, LeafProbe))
    assert next_to_us.id not in ring.pastry.leaf_set
    assert ring.pastry.table.get(next_to_us.id) is None


def test_rule_5_one_farther_off_is_repaired_by_asking_the_farthest_on_its_side() -> None:
    """Pastry 2.5: it is the one whose leaf set reaches beyond ours. The other side need not know."""
    for side, gone, farthest in (("right", 0x83, 0x86), ("left", 0x7D, 0x7A), ("right", 0x86, 0x85), ("left", 0x7A, 0x7B)):
        ring = among(*MANY)
        effects = ring.pastry.died(peer(gone), 1.0)
        assert [to for to, _ in sent(effects, LeafProbe)] == [peer(farthest)], side


def test_rule_5_what_the_asked_one_names_is_probed_and_fills_the_gap() -> None:
    ring = among(*MANY)
    ring.pastry.died(peer(0x83), 1.0)
    told = ring.pastry.probe_received(peer(0x86), LeafProbeReply((peer(0x87), peer(0x88), peer(0x85), peer(0x84))), 1.1)
    assert peer(0x87) in {to for to, _ in sent(told, LeafProbe)}
    assert not ring.pastry.leaf_set.get(peer(0x87).id), "not before it has answered"
    ring.pastry.probe_received(peer(0x87), LeafProbeReply((peer(0x88),)), 1.2)
    assert ring.pastry.leaf_set.get(peer(0x87).id) == peer(0x87)


def test_rule_5_with_half_of_the_leaf_set_gone_the_table_is_asked_too() -> None:
    ring = among(A, B)
    ring.pastry.table.insert(C)
    ring.dead.add(A)
    assert C in dict(sent(ring.pastry.died(A, 1.0), LeafProbe)), "a candidate, probed first"
    assert C.id not in ring.pastry.leaf_set


def test_rule_5_who_lacks_members_says_so_and_who_never_had_them_does_not() -> None:
    """A ring of three is complete with two in each leaf set; a ring in which a whole side died is not."""
    small = among(A, B)
    assert not small.pastry.probe(1.0).lacking
    ring = among(*MANY)
    assert not ring.pastry.probe(1.0).lacking
    probes = sent(ring.pastry.died(peer(0x81), 1.0), LeafProbe)
    assert probes
    assert all(probe.lacking for _, probe in probes)


def test_rule_5_who_lacks_members_is_told_the_nearest_of_all_that_we_know() -> None:
    """A asks: from leaf set and table, on both sides of it, us included, A itself not."""
    ring = among(*MANY)
    far, near = peer(0x95), (peer(0x91), peer(0x8F))
    for known in (A, far, *near, peer(0xF0)):
        ring.pastry.table.insert(known)
    [(to, reply)] = sent(ring.pastry.probe_received(A, LeafProbe((), (), True), 1.0), LeafProbeReply)
    assert to == A
    known = [ME, *ring.pastry.leaf_set, *ring.pastry.table]
    assert set(reply.near) <= set(known)
    for way in (lambda other: clockwise(A.id, other.id), lambda other: clockwise(other.id, A.id)):
        nearest = sorted({other.id: other for other in known if other.id != A.id}.values(), key=way)[: P.side]
        assert set(nearest) <= set(reply.near)
    assert A not in reply.near
    [(_, plain)] = sent(ring.pastry.probe_received(A, LeafProbe(()), 1.0), LeafProbeReply)
    assert plain.near == ()


def test_rule_5_those_named_as_near_are_probed_never_taken_over_and_only_so_many() -> None:
    ring = among(A)
    crowd = tuple(peer(leading) for leading in range(0x10, 0x50))
    effects = ring.pastry.probe_received(A, LeafProbeReply((ME,), (), crowd), 1.0)
    assert 0 < len(sent(effects, LeafProbe)) <= 2 * P.leaf_set_size
    assert {other.id for other in ring.pastry.leaf_set} == {A.id}


def test_rule_5_the_death_of_an_earlier_life_leaves_the_later_one_in_place() -> None:
    ring = among(peer(0x90, incarnation=2))
    ring.pastry.died(peer(0x90, incarnation=1), 1.0)
    assert ring.pastry.leaf_set.get(A.id) == peer(0x90, incarnation=2)
    assert ring.pastry.table.get(A.id) == peer(0x90, incarnation=2)


def test_rule_6_every_member_compares_leaf_sets_with_us_in_its_turn() -> None:
    """Bamboo 3.1: what every other rule has missed comes right, at one message in exchange_interval_s."""
    others = (A, B, C, peer(0x60))
    ring = among(*others)
    ring.settle()
    seen = [effect for _, effect in ring.until(1.3 * len(others) * P.exchange_interval_s)]
    asked = [to for to, _ in sent(seen, LeafProbe)]
    assert set(asked) == set(others)
    assert len(others) <= len(asked) <= 2 * len(others)


def test_rule_7_a_node_with_nobody_left_goes_back_to_its_seeds_and_delivers_nothing() -> None:
    ring = Ring()
    ring.pastry.start((SEED,), (), 0.0)
    ring.pastry.join_reply(A, JoinReply((), ()), 0.1)
    ring.pastry.probe_received(A, LeafProbeReply((ME,)), 0.2)
    effects = ring.pastry.died(A, 1.0)
    assert "ring_lost" in facts(effects)
    assert of(fx.DialSeed, effects) == [fx.DialSeed(SEED)]
    assert ring.pastry.forwarding.route(Route(ME.id, Datagram(b"x")), 1.1) == []


def test_rule_7_without_seeds_it_is_a_ring_of_one() -> None:
    ring = Ring()
    assert of(fx.Activated, ring.pastry.start((), (), 0.0))
    assert of(fx.DeliverBody, ring.pastry.forwarding.route(Route(A.id, Datagram(b"x")), 0.1))
    ring = among(A)
    ring.pastry.died(A, 1.0)
    assert ring.pastry.active


def test_rule_7_hints_that_do_not_answer_keep_nobody_from_starting() -> None:
    """A manager that restarts with the addresses of agents that are all gone."""
    ring = Ring()
    assert ring.pastry.start((), (SEED,), 0.0) == [fx.DialSeed(SEED)]
    assert of(fx.Activated, ring.pastry.seed_failed(SEED, "refused", 0.1))


def test_rule_7_without_seeds_it_keeps_trying_those_it_remembers() -> None:
    """It is a ring of one, and answers; but the others may only be late."""
    ring = Ring()
    ring.pastry.start((), (SEED,), 0.0)
    ring.pastry.seed_failed(SEED, "refused", 0.1)
    dials = [when for when, effect in ring.until(20 * P.retry_max_s) if effect == fx.DialSeed(SEED)]
    assert all(after - before <= 1.25 * P.retry_max_s + 1e-9 for before, after in pairwise(dials))
    assert len(dials) >= 10


# --- rule 8 -----------------------------------------------------------------------------------------------------------


def test_rule_8_who_was_believed_dead_and_is_heard_is_asked_for_our_place_in_its_ring() -> None:
    """A healed partition: our JOIN, routed in the other ring, ends at the neighbours that we should have there."""
    ring = among(A, B)
    assert sent(ring.pastry.found_again(C, 10.0), Route) == [(C, Route(ME.id, JoinRequest(ME)))]
    assert ring.pastry.found_again(peer(0x11), 10.1) == [], "of the many that come back together, one is asked"
    assert ring.pastry.found_again(peer(0x11), 10.1 + P.delay_max_s)
    effects = ring.pastry.join_reply(peer(0x81), JoinReply((), (peer(0x7F), C)), 10.2)
    assert {to for to, _ in sent(effects, LeafProbe)} == {peer(0x81), peer(0x7F), C}


def test_rule_8_while_joining_nobody_else_is_asked() -> None:
    ring = Ring()
    ring.pastry.start((SEED,), (), 0.0)
    assert ring.pastry.found_again(C, 10.0) == []


def test_rule_8_now_and_then_a_seed_is_asked_whether_there_is_a_ring_without_us() -> None:
    """Two rings that each forgot the other: only a name that the user gave leads from one to the other."""
    ring = Ring()
    ring.pastry.start((SEED, OTHER_SEED), (), 0.0)
    ring.join(A)
    ring.pastry.join_reply(A, JoinReply((), ()), 0.0)
    seen = ring.until(20 * P.row_interval_s)
    dials = [when for when, effect in seen if isinstance(effect, fx.DialSeed)]
    assert {effect.address for _, effect in seen if isinstance(effect, fx.DialSeed)} == {SEED, OTHER_SEED}
    assert 10 <= len(dials) <= 30
    assert sent(ring.pastry.seed_answered(C, 300.0), Route) == [(C, Route(ME.id, JoinRequest(ME)))]


def test_rule_8_the_larger_the_ring_the_seldomer_a_seed_is_asked() -> None:
    """A seed hears as much from a ring of thousands as from one of a hundred."""
    ring = Ring()
    ring.pastry.start((SEED,), (), 0.0)
    close = [Peer(NodeId(ME.id + step * (RING // 6400)), "h", 1, 1) for step in range(-6, 7) if step]
    for other in close:
        ring.join(other)
    ring.pastry.join_reply(close[0], JoinReply((), ()), 0.0)
    assert ring.pastry.upkeep.nodes() == pytest.approx(6400)
    dials = [effect for _, effect in ring.until(20 * P.row_interval_s) if isinstance(effect, fx.DialSeed)]
    assert len(dials) <= 1


def test_rule_8_a_reply_that_nobody_asked_for_lately_is_ignored_by_who_is_in_the_ring() -> None:
    """P7: candidates are probed, and probes cost."""
    ring = among(A)
    assert ring.pastry.join_reply(C, JoinReply((), (peer(0x81),)), 1.0) == []
    ring.pastry.found_again(C, 10.0)
    assert ring.pastry.join_reply(C, JoinReply((), (peer(0x81),)), 10.1 + P.look_up_timeout_s) == []


# --- whatever comes ---------------------------------------------------------------------------------------------------

STEPS = st.lists(st.tuples(st.sampled_from(["probe", "reply", "join", "died", "meet", "back", "wait"]), st.integers(1, 30),
                           st.integers(1, 30), st.sampled_from([0.0, 0.05, 0.5])), max_size=50)  # fmt: skip


@given(STEPS)
@settings(deadline=None, max_examples=100)
def test_only_who_was_heard_is_ever_in_leaf_set_or_table(steps: list[tuple[str, int, int, float]]) -> None:
    """Rule 2 over any story: neighbours, candidates and rows told by others are asked first."""
    ring, heard, now = among(A, B), {A.id, B.id}, 0.0
    for what, who, told, wait_s in steps:
        now += wait_s
        ring.until(now)
        other, named = peer(who * 8), tuple(peer(8 * ((told + step) % 32)) for step in range(4) if (told + step) % 32 != 16)
        if other.id == ME.id:
            continue
        if what in ("probe", "reply", "join", "meet", "back"):
            heard.add(other.id)
            ring.pastry.meet(other, now)
        match what:
            case "probe":
                ring.pastry.probe_received(other, LeafProbe(named, (), told % 2 == 0), now)
            case "reply":
                ring.pastry.probe_received(other, LeafProbeReply(named, (), named), now)
            case "join":
                ring.pastry.join_reply(other, JoinReply(named, named), now)
            case "died":
                ring.pastry.died(other, now)
            case "back":
                ring.pastry.found_again(other, now)
        ring.pastry.check_invariants()
        assert {found.id for found in (*ring.pastry.leaf_set, *ring.pastry.table)} <= heard

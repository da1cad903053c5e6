"""Pastry's decisions, rule by rule: joining, consistency, repair (Pastry 2.4, 2.5; MSPastry 3.1). Routing has a file of its own."""

from __future__ import annotations

from random import Random

from protocol.identifiers import Address, NodeId, Peer
from protocol.overlay import effects as fx
from protocol.overlay.pastry import CANDIDATES_PER_LEAF, PROBES_MAX, Pastry
from protocol.parameters import OverlayParameters
from protocol.wire.messages import Datagram, Heartbeat, JoinReply, JoinRequest, LeafProbe, LeafProbeReply, Ping, Route
from tests.overlay.scene import ME, P, facts, node_id, of, peer, sent

SEED, OTHER_SEED = Address("seed", 1), Address("seed", 2)
A, B, C = peer(0x90), peer(0x70), peer(0xA0)


class Ring:
    """A Pastry under test, and the detector's word as we dictate it."""

    def __init__(self, parameters: OverlayParameters = P) -> None:
        self.suspects: set[NodeId] = set()
        self.dead: set[Peer] = set()
        self.pastry = Pastry(
            ME,
            parameters,
            Random(1),
            lambda identifier: identifier in self.suspects,
            lambda other: other in self.dead,
            lambda: tuple(sorted(other.id for other in self.dead)),
        )

    def until(self, end: float) -> list[tuple[float, fx.Effect]]:
        seen: list[tuple[float, fx.Effect]] = []
        while (when := self.pastry.next_deadline()) is not None and when <= end:
            seen += [(when, effect) for effect in self.pastry.on_timer(when)]
            self.pastry.check_invariants()
        return seen


def alone() -> Ring:
    ring = Ring()
    ring.pastry.start((), (), 0.0)
    return ring


def among(*others: Peer) -> Ring:
    """Active, with these as its leaf set."""
    ring = alone()
    for other in others:
        ring.pastry.probe_received(other, LeafProbe(()), 0.0)
    return ring


def test_rule_2_it_joins_through_a_seed_and_is_active_when_every_candidate_has_answered() -> None:
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


def test_rule_2_a_seed_that_does_not_answer_is_named_and_the_next_one_tried() -> None:
    ring = Ring()
    ring.pastry.start((SEED, OTHER_SEED), (), 0.0)
    effects = ring.pastry.seed_failed(SEED, "refused", 0.1)
    assert effects == [fx.Notify("seed_failed", {"address": SEED, "reason": "refused"}), fx.DialSeed(OTHER_SEED)]
    effects = ring.pastry.seed_failed(OTHER_SEED, "refused", 0.2)
    assert facts(effects) == ["seed_failed", "no_seed_reachable"]
    assert of(fx.Notify, effects)[-1].details["tried"] == (SEED, OTHER_SEED)


def test_rule_2_seeds_that_stay_away_are_tried_for_ever_with_growing_waits() -> None:
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


def test_rule_2_a_join_that_nobody_answers_goes_through_the_next_seed() -> None:
    """The seed said hello, and died before the JOIN reached the closest node."""
    ring = Ring()
    ring.pastry.start((SEED, OTHER_SEED), (), 0.0)
    ring.pastry.seed_answered(A, 0.1)
    assert fx.DialSeed(OTHER_SEED) in [effect for _, effect in ring.until(0.1 + P.join_timeout_s)]


def test_rule_2_our_own_address_among_the_seeds_is_no_seed() -> None:
    """One list of seeds for every node of a cluster, the first one included."""
    ring = Ring()
    assert of(fx.Activated, ring.pastry.start((ME.address,), (), 0.0))


def test_rule_2_a_join_goes_past_an_older_life_of_the_joiner() -> None:
    """The joiner restarted before its death was noticed: its own id is still in our leaf set, and must not be asked."""
    joiner = peer(0x91, incarnation=2)
    ring = among(peer(0x91, incarnation=1), A, B)
    effects = ring.pastry.route(Route(joiner.id, JoinRequest(joiner)), 1.0)
    [(hop, forwarded)] = sent(effects, Route)
    assert hop == A
    assert ME in forwarded.body.candidates, "each hop adds itself"
    assert joiner.id not in {found.id for found in forwarded.body.candidates}


def test_rule_2_the_closest_node_answers_a_join_with_its_leaf_set() -> None:
    ring = among(A, B)
    joiner = peer(0x81)
    [delivered] = of(fx.DeliverBody, ring.pastry.route(Route(joiner.id, JoinRequest(joiner, (C,))), 1.0))
    [(to, reply)] = sent(ring.pastry.join_request(delivered.body, delivered.key), JoinReply)
    assert to == joiner
    assert set(reply.leaf_set) == {A, B}
    assert {ME, C} <= set(reply.candidates)


def test_rule_3_an_inactive_node_delivers_nothing_and_passes_nothing_on() -> None:
    """P3: it cannot know yet what is its own. What comes is held, and goes its way on activation."""
    ring = Ring()
    ring.pastry.start((SEED,), (), 0.0)
    assert ring.pastry.route(Route(ME.id, Datagram(b"mine")), 0.1) == []
    assert ring.pastry.originate(A.id, Datagram(b"its"), 0.1) == []
    ring.pastry.join_reply(A, JoinReply((), ()), 0.2)
    effects = ring.pastry.probe_received(A, LeafProbeReply((ME,)), 0.3)
    assert [effect.body.payload for effect in of(fx.DeliverBody, effects)] == [b"mine"]
    assert [(to, message.body.payload) for to, message in sent(effects, Route)] == [(A, b"its")]


def test_rule_3_a_probe_from_a_node_that_is_joining_too_activates_nobody() -> None:
    """Both restarted; the other was told of our earlier life and probes it. It knows nobody yet: we two are not the ring."""
    ring = Ring()
    ring.pastry.start((SEED,), (), 0.0)
    ring.pastry.probe_received(A, LeafProbe(()), 0.1)
    assert not ring.pastry.active
    assert ring.pastry.route(Route(ME.id, Datagram(b"x")), 0.2) == []
    ring.pastry.probe_received(A, LeafProbe((ME, B)), 0.3)
    assert not ring.pastry.active, "B is to answer first"
    ring.pastry.probe_received(B, LeafProbeReply((ME, A)), 0.4)
    assert ring.pastry.active


def test_rule_3_neighbours_told_by_others_are_probed_never_taken_over() -> None:
    ring = among(A)
    effects = ring.pastry.probe_received(A, LeafProbe((B, C, ME)), 1.0)
    assert {to for to, _ in sent(effects, LeafProbe)} == {B, C}
    assert {other.id for other in ring.pastry.leaf_set} == {A.id}
    assert ring.pastry.table.get(C.id) is None


def test_rule_3_a_death_told_by_others_is_judged_never_taken_over() -> None:
    """For the leaf set and the table alike: nobody else would tell us that an entry of the table hangs."""
    ring = among(A, B)
    far = peer(0x11)
    ring.pastry.table.insert(far)
    stranger = peer(0x33)
    effects = ring.pastry.probe_received(A, LeafProbe((ME,), (B.id, far.id, stranger.id, A.id, ME.id)), 1.0)
    assert [effect.peer for effect in of(fx.Suspect, effects)] == [B, far]
    assert B.id in ring.pastry.leaf_set


def test_rule_3_those_known_to_be_dead_are_not_probed() -> None:
    ring = among(A)
    ring.dead.add(B)
    assert not sent(ring.pastry.probe_received(A, LeafProbe((B,)), 1.0), LeafProbe)


def test_rule_3_a_candidate_that_lives_but_never_answers_is_dropped_and_what_waited_for_it_goes_on() -> None:
    """P8: a message whose key the candidate might own was held. It must not be held for ever."""
    ring = among(A)
    near = peer(0x81)
    ring.pastry.probe_received(A, LeafProbe((near,)), 1.0)
    assert ring.pastry.route(Route(near.id, Datagram(b"x")), 1.0) == [], "the candidate is closer: not ours to deliver"
    seen = [effect for _, effect in ring.until(1.0 + (PROBES_MAX + 1) * P.probe_timeout_s)]
    assert len(sent(seen, LeafProbe)) >= PROBES_MAX - 1
    assert fx.Suspect(near, "silent when probed") in seen
    assert "candidate_dropped" in facts(seen)
    assert [effect.key for effect in of(fx.DeliverBody, seen)] == [near.id]


def test_rule_3_a_peer_cannot_make_us_probe_without_bound() -> None:
    """P7: one message may list thousands of nodes that do not exist."""
    ring = among(A)
    ids = Random(1)
    many = tuple(Peer(NodeId(ids.getrandbits(128)), "victim", 1, 1) for _ in range(5000))
    for _ in range(3):
        ring.pastry.probe_received(A, LeafProbe(many), 1.0)
    assert len(ring.pastry._probing) <= CANDIDATES_PER_LEAF * P.leaf_set_size


def test_rule_4_a_message_for_a_suspect_waits_for_the_verdict() -> None:
    """Cleared: it goes there. Dead: to the next closest. In neither case is it delivered here before that is known."""
    next_closest = peer(0x94)
    for dies in (False, True):
        ring = among(A, next_closest)
        ring.suspects.add(A.id)
        assert ring.pastry.route(Route(A.id, Datagram(b"x")), 1.0) == []
        assert ring.pastry.release(1.1) == []
        ring.suspects.clear()
        if dies:
            ring.pastry.died(A, 1.2)
        [(to, _)] = sent(ring.pastry.release(1.2), Route)
        assert to == (next_closest if dies else A)


def test_rule_4_a_suspect_entry_of_the_table_is_routed_around() -> None:
    others = [peer(0x80 + step) for step in range(1, 8)] + [peer(0x80 - step) for step in range(1, 8)]
    ring = among(*others)
    entry, same_digit = peer(0x35), peer(0x20)
    for known in (entry, same_digit):
        ring.pastry.table.insert(known)
    assert ring.pastry.next_hop(node_id(0x3A)) == entry
    ring.suspects.add(entry.id)
    hop = ring.pastry.next_hop(node_id(0x3A))
    assert hop is not None
    assert hop.id != entry.id


def test_rule_4_no_more_is_held_than_the_limit() -> None:
    ring = Ring()
    ring.pastry.start((SEED,), (), 0.0)
    effects = [effect for _ in range(P.held_messages_max + 5) for effect in ring.pastry.originate(A.id, Datagram(b"x"), 0.1)]
    assert facts(effects) == ["route_dropped"] * 5


def test_rule_5_a_verified_death_is_told_to_the_leaf_set_and_the_gap_filled_from_the_table() -> None:
    ring = among(A, B)
    ring.pastry.table.insert(C)
    ring.dead.add(A)
    effects = ring.pastry.died(A, 1.0)
    assert of(fx.LeafSetChanged, effects)
    probes = dict(sent(effects, LeafProbe))
    assert probes[B].failed == (A.id,)
    assert C in probes, "a candidate, probed first"
    assert A.id not in ring.pastry.leaf_set
    assert ring.pastry.table.get(A.id) is None


def test_rule_5_the_death_of_an_earlier_life_leaves_the_later_one_in_place() -> None:
    ring = among(peer(0x90, incarnation=2))
    ring.pastry.died(peer(0x90, incarnation=1), 1.0)
    assert ring.pastry.leaf_set.get(A.id) == peer(0x90, incarnation=2)
    assert ring.pastry.table.get(A.id) == peer(0x90, incarnation=2)


def test_rule_6_every_member_and_every_entry_gets_its_turn() -> None:
    """Neighbours get a heartbeat each beat; everyone else, one exchange or one ping a turn, so that no hang stays unseen."""
    ring, far = among(A, B, C, peer(0x60)), peer(0x11)
    ring.pastry.table.insert(far)
    turns = 8 * P.heartbeat_misses
    seen = [effect for _, effect in ring.until((turns + 0.5) * P.heartbeat_interval_s)]
    assert {to for to, _ in sent(seen, Heartbeat)} == {A, B}
    assert len(sent(seen, Heartbeat)) == 2 * turns
    assert {to for to, _ in sent(seen, LeafProbe)} == set(ring.pastry.leaf_set)
    assert far in {to for to, _ in sent(seen, Ping)}
    assert fx.Suspect(far, "silent when pinged") in seen


def test_rule_7_a_node_with_nobody_left_goes_back_to_its_seeds_and_delivers_nothing() -> None:
    ring = Ring()
    ring.pastry.start((SEED,), (), 0.0)
    ring.pastry.join_reply(A, JoinReply((), ()), 0.1)
    ring.pastry.probe_received(A, LeafProbeReply((ME,)), 0.2)
    effects = ring.pastry.died(A, 1.0)
    assert "ring_lost" in facts(effects)
    assert of(fx.DialSeed, effects) == [fx.DialSeed(SEED)]
    assert ring.pastry.route(Route(ME.id, Datagram(b"x")), 1.1) == []


def test_rule_7_without_seeds_it_is_a_ring_of_one() -> None:
    ring = Ring()
    assert of(fx.Activated, ring.pastry.start((), (), 0.0))
    assert of(fx.DeliverBody, ring.pastry.route(Route(A.id, Datagram(b"x")), 0.1))
    ring = among(A)
    ring.pastry.died(A, 1.0)
    assert ring.pastry.active


def test_rule_7_hints_that_do_not_answer_keep_nobody_from_starting() -> None:
    """A manager that restarts with the addresses of agents that are all gone."""
    ring = Ring()
    assert ring.pastry.start((), (SEED,), 0.0) == [fx.DialSeed(SEED)]
    assert of(fx.Activated, ring.pastry.seed_failed(SEED, "refused", 0.1))


def test_too_many_hops_are_a_fault_that_is_said() -> None:
    assert facts(among(A).pastry.route(Route(A.id, Datagram(b"x"), P.hops_max + 1), 1.0)) == ["route_dropped"]

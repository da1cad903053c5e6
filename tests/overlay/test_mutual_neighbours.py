"""Pastry's rule 3: a key is ours to deliver only while the neighbour on its side has named us as its own (MSPastry 3.1).

What a node has missed (a join, a death told to others only, its own sleep) makes it wait, and never makes it deliver for another.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from random import Random

import pytest

from protocol.identifiers import BITS, Address, NodeId, Peer
from protocol.overlay import effects as fx
from protocol.overlay import events as ev
from protocol.overlay.node import OverlayNode
from protocol.wire.messages import Datagram, LeafProbe, LeafProbeReply, Route
from tests.overlay.ring import Ring, among
from tests.overlay.scene import ME, P, node_id, of, peer, sent

A, B, C = peer(0x90), peer(0x70), peer(0xA0)
BETWEEN = peer(0x88)
RIGHT_KEY, LEFT_KEY = node_id(0x82), node_id(0x7E)
"""Both closest to ME: one towards A, one towards B."""


def delivers(ring: Ring, key: NodeId, now: float = 1.0) -> bool:
    effects = ring.pastry.forwarding.route(Route(key, Datagram(b"x")), now)
    assert not sent(effects, Route), "nobody else is closer"
    return bool(of(fx.DeliverBody, effects))


def settled() -> Ring:
    """ME between B and A, named by both; C beyond A."""
    ring = among(A, B, C)
    ring.pastry.probe_received(A, LeafProbeReply((C, B, ME)), 0.0)
    ring.pastry.probe_received(B, LeafProbeReply((ME, A, C)), 0.0)
    assert ring.pastry.settled
    return ring


def test_rule_3_named_by_both_neighbours_a_node_delivers_on_both_sides() -> None:
    ring = settled()
    assert delivers(ring, RIGHT_KEY)
    assert delivers(ring, LEFT_KEY)


def test_rule_3_until_they_have_named_us_nothing_but_our_own_id_is_ours() -> None:
    """That we have heard the neighbours does not mean that they have heard of us."""
    ring = among(A, B)
    assert not delivers(ring, RIGHT_KEY)
    assert not delivers(ring, LEFT_KEY)
    assert delivers(ring, ME.id)
    effects = ring.pastry.probe_received(A, LeafProbeReply((B, ME)), 1.1)
    assert [effect.key for effect in of(fx.DeliverBody, effects)] == [RIGHT_KEY], "what was held for it goes on at once"
    effects = ring.pastry.probe_received(B, LeafProbeReply((ME, A)), 1.2)
    assert [effect.key for effect in of(fx.DeliverBody, effects)] == [LEFT_KEY]


@pytest.mark.parametrize("kind", [LeafProbe, LeafProbeReply])
def test_rule_3_a_node_whose_neighbour_names_another_does_not_deliver_on_that_side(kind: type) -> None:
    """BETWEEN has joined, A knows it, we do not yet: the keys between are perhaps already its own."""
    ring = settled()
    effects = ring.pastry.probe_received(A, kind((C, B, ME, BETWEEN)), 1.0)
    assert [to for to, _ in sent(effects, LeafProbe)] == [BETWEEN], "whom it is to be asked about"
    assert not delivers(ring, RIGHT_KEY)
    assert delivers(ring, LEFT_KEY), "the other side is as it was"
    ring.pastry.probe_received(BETWEEN, LeafProbeReply((A, C, B, ME)), 1.2)
    assert delivers(ring, RIGHT_KEY, 1.2)
    assert sent(ring.pastry.forwarding.route(Route(node_id(0x86), Datagram(b"x")), 1.2), Route)[0][0] == BETWEEN


def test_rule_3_after_the_death_of_a_neighbour_the_next_one_must_name_us() -> None:
    """It may know another beyond the dead one, of whom the dead one alone has told nobody."""
    ring = settled()
    effects = ring.pastry.died(A, 1.0)
    assert C in {to for to, _ in sent(effects, LeafProbe)}, "it is told"
    assert not delivers(ring, RIGHT_KEY)
    assert delivers(ring, LEFT_KEY)
    ring.pastry.probe_received(C, LeafProbeReply((B, ME, A)), 1.1)
    assert not delivers(ring, RIGHT_KEY), "it still names the dead one"
    effects = ring.pastry.probe_received(C, LeafProbeReply((B, ME)), 1.2)
    assert [effect.key for effect in of(fx.DeliverBody, effects)] == [RIGHT_KEY] * 2


def test_rule_3_after_a_sleep_longer_than_our_neighbours_patience_nothing_is_ours_until_they_answer() -> None:
    """They may have buried us, and given our keys to others."""
    ring = settled()
    effects = ring.pastry.slept(P.silence_max_s + 0.1, P.silence_max_s + 0.2, 100.0)
    assert {to for to, _ in sent(effects, LeafProbe)} == {A, B, C}
    assert not delivers(ring, RIGHT_KEY, 100.0)
    assert not delivers(ring, LEFT_KEY, 100.0)
    ring.pastry.probe_received(A, LeafProbeReply((C, B)), 100.1)
    assert not delivers(ring, RIGHT_KEY, 100.1), "it has forgotten us indeed"
    ring.pastry.probe_received(A, LeafProbeReply((C, B, ME)), 100.2)
    assert delivers(ring, RIGHT_KEY, 100.2)


def test_rule_3_a_nap_that_nobody_can_have_noticed_changes_nothing() -> None:
    ring = settled()
    assert ring.pastry.slept(P.late_max_s + 0.01, P.burial_min_s, 100.0) == [], "and nobody is asked: a busy machine is not made busier"
    assert delivers(ring, RIGHT_KEY, 100.0)


def test_rule_3_a_nap_as_long_as_a_burial_takes_is_asked_about_next_to_us() -> None:
    """A message that we did not acknowledge, helpers, their dials: our keys are others' after that, though no heartbeat was missed."""
    ring = settled()
    effects = ring.pastry.slept(P.late_max_s + 0.01, P.burial_min_s + 0.01, 100.0)
    right, left = ring.pastry.leaf_set.right[0], ring.pastry.leaf_set.left[0]
    assert {to for to, _ in sent(effects, LeafProbe)} == {right, left}
    assert not delivers(ring, RIGHT_KEY, 100.0)
    assert not delivers(ring, LEFT_KEY, 100.0)


@pytest.mark.parametrize("newcomer", [BETWEEN, peer(0x78)], ids=["right", "left"])
def test_rule_3_whoever_gets_a_new_neighbour_tells_it(newcomer: Peer) -> None:
    ring = settled()
    effects = ring.pastry.probe_received(newcomer, LeafProbe((C, ME)), 1.0)
    [(_, told)] = [(to, probe) for to, probe in sent(effects, LeafProbe) if to == newcomer]
    assert {A, B, C} <= set(told.leaf_set)
    assert not [to for to, _ in sent(effects, LeafProbe) if to != newcomer], "and nobody else"


def test_rule_3_one_farther_off_than_a_neighbour_is_not_told() -> None:
    assert not sent(settled().pastry.probe_received(peer(0x98), LeafProbe((C, A)), 1.0), LeafProbe)


def test_rule_3_until_it_has_answered_in_kind_it_is_asked_again_with_each_heartbeat() -> None:
    """Its answer was lost."""
    ring = settled()
    ring.pastry.died(A, 0.0)
    beats = 5
    asked = [(when, e.peer) for when, e in ring.until((beats + 0.01) * P.heartbeat_interval_s)
             if isinstance(e, fx.Send) and isinstance(e.message, LeafProbe)]  # fmt: skip
    assert {to for _, to in asked} == {C}, "B has long named us"
    assert beats - 1 <= len(asked) <= beats + 1
    ring.pastry.probe_received(C, LeafProbeReply((B, ME)), ring.now)
    assert not sent((e for _, e in ring.until(ring.now + P.heartbeat_interval_s)), LeafProbe)


def test_rule_3_a_neighbour_that_restarted_must_name_us_anew_and_is_told() -> None:
    """Its earlier life named us. The later one may have joined beside somebody whom we have missed."""
    ring, back = settled(), replace(A, incarnation=2)
    effects = ring.pastry.meet(back, 1.0)
    assert back in {to for to, _ in sent(effects, LeafProbe)}
    assert ring.pastry.leaf_set.get(A.id) == back
    assert not delivers(ring, RIGHT_KEY)
    ring.pastry.probe_received(back, LeafProbe((C, B, ME)), 1.1)
    assert delivers(ring, RIGHT_KEY, 1.1)


def test_rule_3_a_neighbour_that_knows_nobody_any_more_names_us_no_more() -> None:
    """It lost its ring and joins again: its empty leaf set is word that we are not in it."""
    ring = settled()
    ring.pastry.probe_received(A, LeafProbe(()), 1.0)
    assert not delivers(ring, RIGHT_KEY)


def test_rule_3_one_between_us_that_is_dead_to_us_alone_is_reached_through_the_neighbour() -> None:
    """Perhaps only the way from us to it is cut: what is closer to it goes through A, what is closer to us is ours; and it is dialled."""
    ring = settled()
    ring.dead.add(BETWEEN)
    effects = ring.pastry.probe_received(A, LeafProbe((C, B, ME, BETWEEN)), 1.0)
    assert of(fx.Dial, effects) == [fx.Dial(BETWEEN)]
    assert not sent(effects, LeafProbe)
    assert delivers(ring, RIGHT_KEY), "closer to us than to the one between"
    [(hop, message)] = sent(ring.pastry.forwarding.route(Route(node_id(0x86), Datagram(b"x")), 1.0), Route)
    assert (hop, message.key) == (A, node_id(0x86))


def test_rule_3_a_ring_of_two_and_a_ring_of_one() -> None:
    ring = among()
    assert delivers(ring, node_id(0x01)), "alone, everything is ours"
    ring = among(A)
    assert not delivers(ring, RIGHT_KEY)
    ring.pastry.probe_received(A, LeafProbeReply((ME,)), 1.0)
    assert delivers(ring, RIGHT_KEY)
    assert delivers(ring, node_id(0x10)), "A is its neighbour on both sides"


def test_rule_3_a_candidate_under_probe_that_is_closer_comes_first() -> None:
    ring, near = settled(), peer(0x85)
    ring.pastry.probe_received(C, LeafProbe((near, A)), 1.0)
    assert not delivers(ring, node_id(0x84))
    assert delivers(ring, node_id(0x81)), "that one is ours whoever the candidate is"


# --- a whole ring -----------------------------------------------------------------------------------------------------


class LossyRing:
    """Nodes that join through the first one, at once; every message may be lost or late, every dial is answered."""

    def __init__(self, seed: int, count: int, loss: float) -> None:
        self.rng, self.loss, self.now = Random(seed), loss, 0.0
        ids = [NodeId(self.rng.getrandbits(BITS)) for _ in range(count)]
        self.peers = {Address("h", index): Peer(identifier, "h", index, 1) for index, identifier in enumerate(ids)}
        self.nodes = {one.id: OverlayNode(one, P, Random(seed + index)) for index, one in enumerate(self.peers.values())}
        self.under_way: deque[tuple[NodeId, ev.Event]] = deque()
        for index, identifier in enumerate(ids):
            self.tell(identifier, ev.Started(() if index == 0 else (Address("h", 0),)))

    def tell(self, whom: NodeId, event: ev.Event) -> None:
        node = self.nodes[whom]
        node.next_deadline()
        for effect in node.handle(event, self.now):
            match effect:
                case fx.Send(to, message) if self.rng.random() >= self.loss:
                    self.under_way.append((to.id, ev.MessageReceived(node.self_peer, message)))
                case fx.Dial(to):
                    self.under_way.append((whom, ev.DialEnded(to, to)))
                case fx.DialSeed(address):
                    self.under_way.append((whom, ev.SeedAnswered(address, self.peers[address])))
        node.check_invariants()

    def step(self) -> None:
        """A hundredth of a second: timers, and some of what is under way, in any order."""
        self.now += 0.01
        for identifier, node in self.nodes.items():
            if (due := node.next_deadline()) is not None and due <= self.now:
                self.tell(identifier, ev.TimerFired())
        self.rng.shuffle(self.under_way)
        for _ in range(len(self.under_way) // 2 + 1):
            if self.under_way:
                self.tell(*self.under_way.popleft())

    def claimants(self, key: NodeId) -> list[NodeId]:
        """Who would deliver it now."""

        def claims(node: OverlayNode) -> bool:
            return node.pastry.active and node.pastry.next_hop(key) is None and node.pastry._claim(key)[0]

        return [identifier for identifier, node in self.nodes.items() if claims(node)]


@pytest.mark.parametrize("seed", range(6))
def test_rule_3_nodes_that_join_together_over_a_bad_network_never_deliver_the_same_key(seed: int) -> None:
    """P3 while twenty nodes join at once and a fifth of all messages is lost; and once all is quiet, somebody delivers every key."""
    ring = LossyRing(seed, 20, loss=0.2)
    keys = [NodeId(ring.rng.getrandbits(BITS)) for _ in range(40)]
    for _ in range(200):
        ring.step()
        for key in keys:
            assert len(ring.claimants(key)) <= 1, f"at {ring.now:.2f} s two deliver {key}"
    ring.loss = 0.0
    for _ in range(400):
        ring.step()
    for key in keys:
        nearest = min(ring.nodes, key=lambda identifier: (min((identifier - key) % 2**BITS, (key - identifier) % 2**BITS), identifier))
        assert ring.claimants(key) == [nearest]

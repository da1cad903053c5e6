"""Joining: whom a node asks, and when it founds a ring of its own (rules of joining.py)."""

from __future__ import annotations

import itertools

from protocol.identifiers import Address, Peer
from protocol.overlay import effects as fx
from protocol.wire.messages import JoinReply, JoinRequest, LeafProbe, LeafProbeReply, Route
from tests.overlay.ring import Ring
from tests.overlay.scene import ME, P, of, peer, sent

SEED, OTHER = Address("seed", 1), Address("seed", 2)
SMALLER, LARGER = peer(0x10), peer(0xF0)


def joining(*inactive: Peer) -> Ring:
    """Seeds that are themselves joining, and have said so."""
    ring = Ring()
    ring.pastry.start((SEED, OTHER), (), 0.0)
    for other in inactive:
        ring.pastry.probe_received(other, LeafProbe((), active=False), 0.0)
        ring.pastry.probe_received(other, LeafProbeReply((ME,), active=False), 0.0)
    return ring


def test_rule_2_the_smallest_of_those_that_wait_for_each_other_founds_the_ring() -> None:
    """A power cut: every process starts anew, each with the others as its seeds."""
    ring = joining(LARGER)
    seen = ring.until(20.0)
    founded = [when for when, effect in seen if isinstance(effect, fx.Activated)]
    assert len(founded) == 1
    dials = [effect.address for when, effect in seen if isinstance(effect, fx.DialSeed) and when <= founded[0]]
    assert dials.count(SEED) + 1 >= 2, "every seed was tried twice (the first dial was at the start)"
    assert dials.count(OTHER) >= 2


def test_rule_2_whoever_has_heard_a_smaller_id_leaves_it_to_that_one() -> None:
    ring = joining(SMALLER, LARGER)
    ring.until(60.0)
    assert not ring.pastry.active


def test_rule_2_an_active_node_that_was_heard_is_waited_for() -> None:
    """There is a ring: it is a matter of time."""
    ring = joining(LARGER)
    ring.pastry.probe_received(peer(0xA0), LeafProbe((ME,)), 0.1)
    ring.until(60.0)
    assert not ring.pastry.active


def test_rule_2_who_has_lost_its_ring_founds_none_on_what_it_heard_in_there() -> None:
    """A cut, with few on our side: a node that joined just before was still joining when it was last heard. Whoever is cut off with us and
    does the same delivers our keys as well (500 nodes, seed 9, a cut of 2 %)."""
    ring = joining()
    ring.pastry.join_reply(LARGER, JoinReply((), ()), 0.1)
    ring.pastry.probe_received(LARGER, LeafProbeReply((ME,)), 0.2)
    newcomer = peer(0xE0)
    ring.pastry.probe_received(newcomer, LeafProbe((), active=False), 0.3)
    assert ring.pastry.active
    for other in (newcomer, LARGER):
        ring.pastry.died(other, 0.4)
    ring.pastry.probe_received(peer(0x20), LeafProbe((), active=False), 0.5)
    assert not ring.pastry.active
    ring.until(60.0)
    assert not ring.pastry.active, "0x20 is the one to found it"


def test_rule_2_who_has_heard_nobody_founds_nothing() -> None:
    """It may be the one that is cut off."""
    ring = joining()
    effects = ring.until(60.0)
    assert not ring.pastry.active
    waits = [when for when, effect in effects if isinstance(effect, fx.Notify) and effect.fact == "no_seed_reachable"]
    assert len(waits) > 5
    gaps = [later - earlier for earlier, later in itertools.pairwise(waits)]
    assert max(gaps) < 1.25 * P.retry_max_s + 2 * P.join_timeout_s + 0.01, "rule 1: the waits are bounded"
    assert max(gaps) > gaps[0], "and grow"


def test_rule_1_seeds_before_remembered_peers() -> None:
    ring = Ring()
    hint = Address("hint", 3)
    first = ring.pastry.start((SEED,), (hint,), 0.0)
    assert of(fx.DialSeed, first) == [fx.DialSeed(SEED)]
    assert of(fx.DialSeed, ring.pastry.seed_failed(SEED, "refused", 0.1)) == [fx.DialSeed(hint)]


def test_rule_1_who_is_in_a_ring_and_probes_us_is_asked_as_a_seed_is() -> None:
    """Our seeds are gone for good; after a cut those who had lost us have found us again."""
    ring, other = joining(), peer(0xA0)
    ring.until(10.0)
    probed = ring.pastry.probe_received(LARGER, LeafProbe((ME,)), 10.0)
    assert [(to, route.body) for to, route in sent(probed, Route)] == [(LARGER, JoinRequest(ME))]
    assert sent(ring.pastry.probe_received(other, LeafProbe((ME,)), 10.1), Route) == [], "one at a time"
    assert sent(ring.pastry.probe_received(SMALLER, LeafProbe((ME,), active=False), 20.0), Route) == [], "it waits for a place itself"
    again = ring.pastry.probe_received(other, LeafProbe((ME,)), 10.2 + P.join_timeout_s)
    assert [to for to, _ in sent(again, Route)] == [other], "the first has not brought us a place"
    ring.pastry.join_reply(other, JoinReply((), (LARGER,)), 10.3 + P.join_timeout_s)
    assert sent(ring.pastry.probe_received(LARGER, LeafProbe((ME,)), 30.0), Route) == [], "we know our place"

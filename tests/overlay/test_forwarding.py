"""One step of a routed message, rule by rule (numbers as in forwarding.py; Pastry 2.3, MSPastry 3.2)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.identifiers import NodeId, Peer, rank, shared_prefix
from protocol.overlay import effects as fx
from protocol.overlay.forwarding import HOPS_TRIED_MAX
from protocol.wire.messages import Datagram, JoinReply, JoinRequest, LeafProbeReply, Route, RouteAck
from tests.overlay.ring import Ring, among
from tests.overlay.scene import ME, P, facts, node_id, of, peer, sent

A, B = peer(0x90), peer(0x70)
MANY = tuple(peer(0x80 + step) for step in range(-7, 8) if step)
"""More than a leaf set holds: it reaches from 0x7A to 0x86."""
ENTRY, SAME_ROW, NEAR_KEY = peer(0x35), peer(0x20), peer(0x40)
KEY = node_id(0x3A)


def with_table(*known: Peer) -> Ring:
    ring = among(*MANY)
    ring.settle()
    for entry in known:
        ring.pastry.table.insert(entry)
    return ring


def route(ring: Ring, key: NodeId, now: float = 1.0, message: Route | None = None) -> list[fx.Effect]:
    effects = ring.pastry.forwarding.route(message or Route(key, Datagram(b"x")), now)
    ring.pastry.check_invariants()
    return effects


def hops(effects: list[fx.Effect]) -> list[Peer]:
    return [to for to, _ in sent(effects, Route)]


def unacknowledged(effects: list[fx.Effect]) -> list[Peer]:
    """Who is suspected for that, and not for a ping."""
    return [effect.peer for effect in of(fx.Suspect, effects) if effect.reason.startswith("no acknowledgement")]


# --- rule 1 -----------------------------------------------------------------------------------------------------------


def test_rule_1_within_the_leaf_set_the_numerically_closest_is_the_hop() -> None:
    """Pastry 2.3, lines 1 to 3."""
    ring = with_table(ENTRY)
    assert ring.pastry.next_hop(NodeId(peer(0x84).id + 5)) == peer(0x84)
    assert ring.pastry.next_hop(NodeId(ME.id + 5)) is None


def test_rule_1_beyond_it_the_entry_of_the_table() -> None:
    """Lines 5 to 8: it shares one more digit with the key than we do, however near the key another node is."""
    key, entry = node_id(0x3F), ENTRY
    ring = with_table(entry, NEAR_KEY)
    assert rank(key, NEAR_KEY.id) < rank(key, entry.id)
    assert ring.pastry.next_hop(key) == entry
    assert ring.pastry.next_hop(KEY) == ENTRY
    assert shared_prefix(ENTRY.id, KEY) > shared_prefix(ME.id, KEY)


def test_rule_1_the_rare_case_any_node_that_is_closer_with_no_shorter_a_prefix() -> None:
    """Lines 9 to 14: the place in the table is free. 0x40 is closer to 0x3A than we are; so is all of our left side, but less."""
    ring = with_table(NEAR_KEY, peer(0xC0))
    assert ring.pastry.next_hop(KEY) == NEAR_KEY


def test_rule_1_a_suspect_entry_of_the_table_is_routed_around() -> None:
    ring = with_table(ENTRY, SAME_ROW)
    ring.suspects.add(ENTRY.id)
    hop = ring.pastry.next_hop(KEY)
    assert hop not in (None, ENTRY)
    assert rank(KEY, hop.id) < rank(KEY, ME.id), "closer all the same: that is why a route ends"


def test_rule_1_a_tree_joins_through_one_that_is_not_suspected_where_another_closer_one_is_known() -> None:
    """Within the leaf set a message waits for the verdict on the closest (rule 3); a JOIN of a tree need not: any way up will do."""
    key, ring = NodeId(peer(0x84).id + 5), among(*MANY)
    ring.suspects.add(peer(0x84).id)
    assert ring.pastry.forwarding.next_hop(key) == (peer(0x84), False)
    assert ring.pastry.next_hop(key) == peer(0x85)
    ring.suspects.add(peer(0x85).id)
    assert ring.pastry.next_hop(key) == peer(0x83)
    ring.suspects |= {other.id for other in MANY}
    assert ring.pastry.next_hop(key) == peer(0x84), "all are in doubt: the closest, and never None, which would say that we are"


def test_rule_1_who_is_farther_than_we_are_is_no_way_around_a_suspect() -> None:
    ring = among(A, B)
    ring.suspects.add(A.id)
    assert ring.pastry.next_hop(A.id) == A


@given(st.lists(st.integers(1, 255).filter(lambda leading: leading != 0x80), unique=True, max_size=40), st.integers(0, 2**128 - 1),
       st.sets(st.integers(1, 255), max_size=20))  # fmt: skip
@settings(deadline=None, max_examples=150)
def test_rule_1_every_hop_gains_a_digit_or_comes_closer_whoever_is_suspect(others: list[int], key: int, suspects: set[int]) -> None:
    """And a hop that is not to be used now is held for, never gone to."""
    ring = among(*(peer(leading) for leading in others))
    ring.suspects |= {node_id(leading) for leading in suspects}
    hop, usable = ring.pastry.forwarding.next_hop(NodeId(key))
    if hop is None:
        assert all(rank(key, ME.id) < rank(key, other.id) for other in ring.pastry.leaf_set)
    else:
        assert shared_prefix(hop.id, key) > shared_prefix(ME.id, key) or rank(key, hop.id) < rank(key, ME.id)
        assert usable == (hop.id not in ring.suspects)


# --- rule 2 -----------------------------------------------------------------------------------------------------------


def test_rule_2_a_hop_is_acknowledged_to_whom_it_came_from_and_sent_on_under_a_number_of_our_own() -> None:
    ring = with_table(ENTRY)
    effects = ring.pastry.forwarding.received(B, Route(KEY, Datagram(b"x"), 3, 77), 1.0)
    assert sent(effects, RouteAck) == [(B, RouteAck(77))]
    [(hop, onward)] = sent(effects, Route)
    assert (hop, onward.hops) == (ENTRY, 4)
    assert onward.sequence > 0
    again = sent(ring.pastry.forwarding.received(B, Route(KEY, Datagram(b"y"), 3, 78), 1.0), Route)
    assert again[0][1].sequence != onward.sequence


def test_rule_2_a_message_that_wants_no_acknowledgement_gets_none() -> None:
    ring = with_table(ENTRY)
    assert not sent(ring.pastry.forwarding.received(B, Route(KEY, Datagram(b"x"), 3, 0), 1.0), RouteAck)
    assert not sent(ring.pastry.forwarding.received(B, Route(KEY, Datagram(b"x"), 3, -1), 1.0), RouteAck)


def test_rule_2_an_acknowledgement_ends_it_and_its_time_is_the_hops_round_trip() -> None:
    ring = with_table(ENTRY)
    [(_, onward)] = sent(route(ring, KEY, 1.0), Route)
    assert ring.pastry.forwarding.acknowledged(ENTRY, onward.sequence, 1.004) == []
    assert ring.pastry.proximity.rtt_s(ENTRY.id) == pytest.approx(0.004)
    assert not unacknowledged([effect for _, effect in ring.until(1.0 + 2 * P.delay_max_s)])
    assert ring.pastry.forwarding.acknowledged(ENTRY, onward.sequence, 1.5) == [], "a second one is no sample"
    assert ring.pastry.proximity.rtt_s(ENTRY.id) == pytest.approx(0.004)


def test_rule_2_only_the_hop_itself_can_acknowledge() -> None:
    ring = with_table(ENTRY, SAME_ROW)
    [(_, onward)] = sent(route(ring, KEY, 1.0), Route)
    for who, number in ((SAME_ROW, onward.sequence), (ENTRY, onward.sequence + 1), (ENTRY, 0), (ENTRY, -1)):
        ring.pastry.forwarding.acknowledged(who, number, 1.01)
    assert unacknowledged([effect for _, effect in ring.until(1.0 + P.delay_max_s)]) == [ENTRY]


def test_rule_2_a_hop_that_does_not_acknowledge_is_gone_around_at_once_and_suspected() -> None:
    """An entry that was killed in silence costs one timeout of its round trip, not a verdict."""
    ring = with_table(ENTRY, NEAR_KEY)
    ring.pastry.proximity.sample(ENTRY.id, 0.001)
    assert hops(route(ring, KEY, 1.0)) == [ENTRY]
    seen = [(when, e) for when, e in ring.until(1.0 + 2 * P.ack_timeout_min_s) if isinstance(e, fx.Suspect) or hops([e])]
    assert [when for when, _ in seen] == [pytest.approx(1.0 + P.ack_timeout_min_s)] * 2
    assert [effect.peer for effect in of(fx.Suspect, [e for _, e in seen])] == [ENTRY]
    assert hops([e for _, e in seen]) == [NEAR_KEY]


def test_rule_2_so_many_hops_in_silence_are_enough_and_the_message_waits_for_a_verdict() -> None:
    """Our own link is down: no need to suspect the whole table."""
    ring = with_table(ENTRY, SAME_ROW, NEAR_KEY, peer(0x50), peer(0x60))
    assert hops(route(ring, KEY, 1.0))
    seen = [effect for _, effect in ring.until(1.0 + P.hold_max_s - 0.01)]
    assert len(unacknowledged(seen)) == len(set(unacknowledged(seen))) == HOPS_TRIED_MAX
    assert "route_dropped" not in facts(seen)
    assert hops(ring.pastry.forwarding.release(1.0 + P.hold_max_s - 0.01)) == [ENTRY], "and any news lets it try anew"


# --- rules 3 and 4 ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dies", [False, True], ids=["cleared", "dead"])
def test_rule_3_the_last_hop_cannot_be_gone_around(dies: bool) -> None:
    """Cleared: the message goes there. Dead: to the next closest. In neither case is it delivered elsewhere before that is known."""
    key, last, next_closest = peer(0x84).id, peer(0x84), peer(0x83)
    ring = with_table(ENTRY)
    assert hops(route(ring, key, 1.0)) == [last]
    seen = [effect for _, effect in ring.until(1.0 + P.delay_max_s)]
    assert unacknowledged(seen) == [last]
    assert not hops(seen)
    assert not of(fx.DeliverBody, seen)
    ring.suspects.add(last.id)
    assert ring.pastry.forwarding.release(1.3) == [], "a suspect still"
    ring.suspects.clear()
    effects = ring.pastry.died(last, 1.4) if dies else []
    effects += ring.pastry.forwarding.release(1.4)
    assert hops(effects) == [next_closest if dies else last]


def test_rule_3_a_message_for_a_suspect_waits_without_being_sent() -> None:
    ring = with_table()
    ring.suspects.add(peer(0x84).id)
    assert route(ring, peer(0x84).id) == []
    assert ring.pastry.forwarding.release(1.1) == []


def test_rule_4_what_a_dead_hop_has_not_acknowledged_goes_another_way() -> None:
    """Killed between our message and its acknowledgement: known by the reset, before any timeout."""
    ring = with_table(ENTRY, NEAR_KEY)
    for _ in range(3):
        assert hops(route(ring, KEY, 1.0)) == [ENTRY]
    assert hops(ring.pastry.died(ENTRY, 1.001)) == [NEAR_KEY] * 3
    assert ENTRY not in unacknowledged([effect for _, effect in ring.until(1.0 + P.delay_max_s)])


def test_rule_4_what_was_acknowledged_is_not_sent_again() -> None:
    """The hop answers for it from there; whoever asked asks again."""
    ring = with_table(ENTRY, NEAR_KEY)
    [(_, onward)] = sent(route(ring, KEY, 1.0), Route)
    ring.pastry.forwarding.acknowledged(ENTRY, onward.sequence, 1.0005)
    assert hops(ring.pastry.died(ENTRY, 1.001)) == []


# --- rule 5 -----------------------------------------------------------------------------------------------------------


def test_rule_5_what_is_not_certainly_ours_waits_until_our_neighbours_have_named_us() -> None:
    ring = among(A, B)
    assert route(ring, node_id(0x82)) == []
    effects = ring.pastry.probe_received(A, LeafProbeReply((B, ME)), 1.1)
    assert [(effect.key, effect.hops) for effect in of(fx.DeliverBody, effects)] == [(node_id(0x82), 0)]


def test_rule_5_a_join_is_answered_by_the_closest_though_it_is_not_sure_of_its_neighbours() -> None:
    """A ring in trouble must not keep out those who would mend it; the joiner probes whom it is told of."""
    joiner = peer(0x81)
    assert of(fx.DeliverBody, route(among(A, B), joiner.id, message=Route(joiner.id, JoinRequest(joiner))))


def test_rule_5_nothing_is_held_for_longer_than_hold_max_s_and_that_is_said() -> None:
    ring = among(A, B)
    route(ring, node_id(0x82), 1.0)
    route(ring, node_id(0x83), 1.5)
    seen = [(when, e) for when, e in ring.until(20.0) if facts([e]) == ["route_dropped"]]
    assert [(when, e.details["key"]) for when, e in seen] == [
        (pytest.approx(1.0 + P.hold_max_s), node_id(0x82)),
        (pytest.approx(1.5 + P.hold_max_s), node_id(0x83)),
    ]
    assert "waited" in seen[0][1].details["reason"]


def test_rule_5_time_on_the_way_to_hops_that_failed_counts() -> None:
    """It came first, was tried for a while, and is held last: it is also the first to go."""
    ring = with_table()
    assert hops(route(ring, peer(0x84).id, 1.0)) == [peer(0x84)]
    ring.suspects.add(peer(0x85).id)
    assert route(ring, peer(0x85).id, 1.2) == []
    ring.suspects.add(peer(0x84).id)
    seen = [(when, e) for when, e in ring.until(20.0) if facts([e]) == ["route_dropped"]]
    assert [(when, e.details["key"]) for when, e in seen] == [
        (pytest.approx(1.0 + P.hold_max_s), peer(0x84).id),
        (pytest.approx(1.2 + P.hold_max_s), peer(0x85).id),
    ]


def test_rule_5_what_is_tried_anew_time_and_again_does_not_live_for_ever() -> None:
    """A hop that is suspected and cleared in turn, and never acknowledges."""
    ring, now, seen = with_table(), 1.0, []
    seen += route(ring, peer(0x84).id, now)
    while now < 1.0 + P.hold_max_s + P.probe_timeout_s:
        now += 0.05
        seen += [effect for _, effect in ring.until(now)]
        seen += ring.pastry.forwarding.release(now)
    assert facts(seen).count("route_dropped") == 1
    assert ring.pastry.forwarding.release(now) == []


def test_an_inactive_node_holds_what_comes_and_no_more_than_the_limit() -> None:
    """The last it does not even acknowledge: the hop before shall go around us."""
    ring = Ring()
    ring.pastry.start((A.address,), (), 0.0)
    received = [ring.pastry.forwarding.received(B, Route(A.id, Datagram(b"x"), 1, 9), 0.1) for _ in range(P.held_messages_max + 5)]
    assert all(sent(effects, RouteAck) for effects in received[: P.held_messages_max])
    assert [facts(effects) for effects in received[P.held_messages_max :]] == [["route_dropped"]] * 5
    assert not any(sent(effects, RouteAck) for effects in received[P.held_messages_max :])
    ring.pastry.join_reply(A, JoinReply((), ()), 0.2)
    assert len(hops(ring.pastry.probe_received(A, LeafProbeReply((ME,)), 0.3))) == P.held_messages_max


def test_too_many_hops_are_a_fault_that_is_said() -> None:
    assert facts(route(among(A), A.id, message=Route(A.id, Datagram(b"x"), P.hops_max + 1))) == ["route_dropped"]


def test_a_join_carries_the_rows_of_the_way_and_never_the_joiner() -> None:
    """Pastry 2.4: row i from the i-th hop, the first one gives all up to its own; MSPastry takes them along the route."""
    joiner = peer(0x3A)
    ring = with_table(ENTRY, SAME_ROW, peer(0x8A), replace(joiner, incarnation=0))
    ring.pastry.table.remove(joiner.id)
    ring.pastry.table.insert(ENTRY)
    [(hop, onward)] = sent(route(ring, joiner.id, message=Route(joiner.id, JoinRequest(joiner))), Route)
    assert hop == ENTRY
    named = onward.body.candidates
    assert {ME, ENTRY, SAME_ROW} <= set(named)
    assert joiner.id not in {other.id for other in named}
    assert len(set(named)) == len(named)
    [(_, onward)] = sent(route(ring, joiner.id, message=Route(joiner.id, JoinRequest(joiner, (A,) * 500))), Route)
    assert len(onward.body.candidates) <= 8 * P.leaf_set_size, "bounded, whatever the hops before said (P7)"

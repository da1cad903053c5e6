"""Zones, and places outside of them (protocol/overlay/far_places.py), rule by rule."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.identifiers import BITS, ZONE_BITS, NodeId, Peer, agent_id, shared_prefix, zone_of
from protocol.overlay import effects as fx
from protocol.overlay.far_places import copies_abroad, in_order, opposite
from protocol.overlay.leaf_set import LeafSet
from protocol.overlay.replication import Replication
from protocol.parameters import PlacementPolicy
from protocol.wire.keeping import FarQuery, FarReply, Stray
from protocol.wire.messages import LookUp, LookUpReply
from protocol.wire.values import Holding
from tests.overlay.holder import TREE, targets
from tests.overlay.scene import P, of, record, sent


def at(zone: int, low: int) -> Peer:
    """The node 0xzone.. of a zone, at so much of its stretch."""
    return Peer(NodeId(zone << (BITS - ZONE_BITS) | low << (BITS - ZONE_BITS - 8)), "10.0.0.1", (zone >> 8 << 8) + low, 1)


HOME, ABROAD, THIRD = 0x1000, 0x9A00, 0x9B00
ME = at(HOME, 0x80)
HERE = [at(HOME, low) for low in (0x90, 0x70, 0xA0, 0x60)]
KEY = (ME.id, TREE)
THERE = [at(ABROAD, low) for low in (0x81, 0x7F, 0x88, 0x70)]


def node(policy: PlacementPolicy, me: Peer = ME, neighbours: list[Peer] = HERE) -> Replication:
    leaf_set = LeafSet(me.id, P.side)
    for neighbour in neighbours:
        leaf_set.insert(neighbour)
    return Replication(me, replace(P, placement=policy), leaf_set)


def test_agents_of_one_zone_are_neighbours_and_keep_their_own_ids_in_it() -> None:
    first, second, elsewhere = agent_id("c", "a", "rack-1"), agent_id("c", "b", "rack-1"), agent_id("c", "a", "rack-2")
    assert zone_of(first) == zone_of(second) != zone_of(elsewhere)
    assert shared_prefix(first, second) >= ZONE_BITS // 4
    assert first != second
    assert agent_id("c", "a", "") == agent_id("c", "a")
    assert zone_of(agent_id("other", "a", "rack-1")) != zone_of(first), "clusters do not share zones"


@pytest.mark.parametrize(
    ("policy", "order"),
    [("local", [*HERE, at(THIRD, 1)]), ("spread", [*THERE, at(THIRD, 1), *HERE]), ("mixed", [HERE[0], THERE[0], HERE[1], THERE[1]])],
)
def test_at_home_abroad_or_in_turn(policy: PlacementPolicy, order: list[Peer]) -> None:
    near = [HERE[0], at(THIRD, 1), *HERE[1:]]
    assert in_order(ME.id, near, THERE, policy)[: len(order)] == order


@pytest.mark.parametrize("policy", ["local", "spread", "mixed"])
def test_where_nobody_has_a_zone_it_is_the_leaf_set(policy: PlacementPolicy) -> None:
    """Every id is a zone of its own then."""
    near = [at(0x1000 * number, 1) for number in (2, 0, 3)]
    assert in_order(ME.id, near, THERE, policy) == near


def test_rule_1_half_way_round_somebody_names_the_zone_that_has_most_nodes_there() -> None:
    """A manager's node, whose id is a tree's, is alone in its zone, and would get the copies of all."""
    lonely = at(0x9000, 0)
    answering = node("spread", lonely, [*THERE, at(THIRD, 1)])
    [turned] = of(fx.RouteBody, answering.far_query_delivered(FarQuery(ME.id, ME)))
    assert turned == fx.RouteBody(at(ABROAD, 0x80).id, FarQuery(ME.id, ME, turned=True))


def test_rule_1_nodes_without_a_zone_do_not_stand_in_for_a_zone_that_is_dead() -> None:
    lonely = at(0x9000, 0)
    answering = node("spread", lonely, [at(THIRD, 1), HERE[0]])
    [(_, reply)] = sent(answering.far_query_delivered(FarQuery(ME.id, ME)), FarReply)
    assert reply.places == ()


def test_rule_2_who_is_closest_there_names_itself_and_its_neighbours() -> None:
    answering = node("spread", THERE[0], [*THERE[1:], HERE[0]])
    [(asker, reply)] = sent(answering.far_query_delivered(FarQuery(ME.id, ME, turned=True)), FarReply)
    assert asker == ME
    assert reply.places[0] == THERE[0]
    assert set(reply.places) == set(THERE), "nobody of the owner's own zone"


def test_rule_3_the_owner_asks_brings_and_asks_again() -> None:
    owner = node("spread")
    effects = owner.replicate(record(ME, 1), 0.0)
    assert of(fx.RouteBody, effects) == [fx.RouteBody(opposite(ME.id), FarQuery(ME.id, ME))]
    assert targets(effects) == HERE[:3], "as long as it knows nobody elsewhere"
    for push in of(fx.Push, effects):
        owner.push_ended(push.transfer, "stored", "", 0.1)
    owner.far_replied(FarReply(ME.id, tuple(THERE)), 0.2)
    later = owner.replicate(record(ME, 2), 1.0)
    assert not of(fx.RouteBody, later)
    assert targets(later) == THERE[:3]
    assert of(fx.RouteBody, owner.on_timer(P.upkeep_interval_s)) == [fx.RouteBody(opposite(ME.id), FarQuery(ME.id, ME))]


def test_rule_3_who_is_not_named_any_more_is_replaced() -> None:
    owner = node("spread")
    owner.far_replied(FarReply(ME.id, tuple(THERE)), 0.0)
    for push in of(fx.Push, owner.replicate(record(ME, 1), 0.1)):
        owner.push_ended(push.transfer, "stored", "", 0.2)
    again = Peer(THERE[1].id, "10.0.0.9", 1, 2)
    assert not of(fx.Push, owner.far_replied(FarReply(ME.id, (THERE[0], again, *THERE[2:])), 5.0))
    effects = owner.on_timer(5.0 + P.mend_after_s)
    assert targets(effects) == [again], "it has started again, perhaps without its disk"
    assert owner.far_replied(FarReply(ME.id, (THERE[0], again, *THERE[2:])), 9.0) == []


def brought(owner: Replication, effects: list[fx.Effect], now: float) -> list[fx.Effect]:
    """Every push succeeds; what follows. No copy that counts is lost on the way."""
    seen: list[fx.Effect] = []
    for push in of(fx.Push, effects):
        before = len(owner.holders(KEY))
        seen += owner.push_ended(push.transfer, "stored", "", now)
        owner.check_invariants()
        assert len(owner.holders(KEY)) >= before
    return seen


def at_home(policy: PlacementPolicy = "spread") -> Replication:
    """Its record is durable, and complete, while no other zone is known."""
    owner = node(policy)
    assert of(fx.Durable, brought(owner, owner.replicate(record(ME, 1), 0.0), 0.1))
    assert set(owner.holders(KEY)) == {peer.id for peer in HERE[:3]}
    owner.on_timer(0.1 + P.mend_after_s)
    return owner


def spread(owner: Replication) -> int:
    """How many copies that count are abroad."""
    return sum(zone_of(holder) != HOME for holder in owner.holders(KEY))


@pytest.mark.parametrize(("policy", "abroad"), [("spread", 3), ("mixed", 1)])
def test_rule_5_what_was_brought_before_they_were_known_is_brought_there(policy: PlacementPolicy, abroad: int) -> None:
    """The owner asks when it has its first record to bring, or the other zone is started an hour later."""
    owner = at_home(policy)
    assert not of(fx.Push, owner.far_replied(FarReply(ME.id, tuple(THERE)), 5.0))
    moving = owner.on_timer(5.0 + P.mend_after_s)
    assert targets(moving) == THERE[:abroad]
    assert spread(owner) == 0, "those at home count until then"
    assert not of(fx.Push, brought(owner, moving, 6.0))
    assert (spread(owner), len(owner.holders(KEY))) == (abroad, P.replicas)
    assert owner.far_replied(FarReply(ME.id, tuple(THERE)), 7.0) == []
    assert owner.leaf_set_changed(8.0) == []


def test_rule_5_nothing_more_is_brought_where_they_become_known_before_it_is_durable() -> None:
    owner = node("spread")
    home = owner.replicate(record(ME, 1), 0.0)
    assert owner.far_replied(FarReply(ME.id, tuple(THERE)), 0.1) == []
    [durable] = of(fx.Durable, brought(owner, home, 0.2))
    assert set(durable.holders) <= {peer.id for peer in HERE}, "its quorum is not kept waiting"
    moving = owner.on_timer(0.2 + P.mend_after_s)
    assert targets(moving) == THERE[:3]
    brought(owner, moving, 1.0)
    assert spread(owner) == P.replicas


def test_rule_5_they_die_and_are_back() -> None:
    owner = at_home()
    owner.far_replied(FarReply(ME.id, tuple(THERE)), 5.0)
    brought(owner, owner.on_timer(5.0 + P.mend_after_s), 6.0)
    home = owner.far_replied(FarReply(ME.id, ()), 10.0)
    assert targets(home) == HERE[:3], "no copy is left that counts"
    brought(owner, home, 10.1)
    owner.on_timer(10.1 + P.mend_after_s)
    later = [replace(peer, incarnation=2) for peer in THERE]
    owner.far_replied(FarReply(ME.id, tuple(later)), 15.0)
    brought(owner, owner.on_timer(15.0 + P.mend_after_s), 16.0)
    assert spread(owner) == P.replicas


@pytest.mark.parametrize("outcome", ["refused", "failed"])
def test_rule_5_where_nobody_there_takes_it_the_copies_at_home_stay(outcome: str) -> None:
    owner = at_home()
    owner.far_replied(FarReply(ME.id, tuple(THERE[:2])), 5.0)
    moving = owner.on_timer(5.0 + P.mend_after_s)
    assert targets(moving) == THERE[:2]
    for push in of(fx.Push, moving):
        assert not of(fx.Push, owner.push_ended(push.transfer, outcome, "", 6.0)), "nobody else is there, and home has enough"
    assert set(owner.holders(KEY)) == {peer.id for peer in HERE[:3]}
    again = owner.on_timer(6.0 + P.retry_max_s)
    assert targets(again) == (THERE[:2] if outcome == "failed" else [])


def test_rule_5_a_newer_version_goes_there_at_once() -> None:
    owner = at_home()
    owner.far_replied(FarReply(ME.id, tuple(THERE)), 5.0)
    moving = of(fx.Push, owner.on_timer(5.0 + P.mend_after_s))
    assert len(moving) == P.replicas
    effects = owner.replicate(record(ME, 2), 6.0)
    assert {effect.transfer for effect in of(fx.CancelTransfer, effects)} == {push.transfer for push in moving}
    assert targets(effects) == THERE[:3]


def test_rule_5_what_is_adopted_stays_at_home() -> None:
    heir = node("spread", at(HOME, 0x7E), HERE)
    home = heir.record_held(record(ME, 3), 0.0)
    assert heir.adopted() == (KEY,)
    for push in of(fx.Push, home):
        heir.push_ended(push.transfer, "stored", "", 0.1)
    heir.far_replied(FarReply(heir._me.id, tuple(THERE)), 1.0)
    assert not of(fx.Push, heir.on_timer(60.0))


@pytest.mark.parametrize("policy", ["local", "spread", "mixed"])
@pytest.mark.parametrize("copies", [1, 2, 3, 4])
def test_rule_5_as_many_are_brought_there_as_are_among_the_first_places(policy: PlacementPolicy, copies: int) -> None:
    first = in_order(ME.id, HERE, THERE, policy)[:copies]
    assert copies_abroad(policy, copies) == sum(zone_of(peer.id) != HOME for peer in first)


@pytest.mark.parametrize("policy", ["spread", "mixed"])
@given(st.lists(st.tuples(st.sampled_from(["far", "write", "stored", "failed", "refused", "time"]), st.integers(0, 9)), max_size=40))
@settings(deadline=None, max_examples=200)
def test_rule_5_whatever_comes_and_goes_they_are_abroad_at_last_and_stay(policy: PlacementPolicy, steps: list[tuple[str, int]]) -> None:
    owner, version, now = node(policy), 1, 0.0
    under_way: dict[int, fx.Push] = {}

    def follow(effects: list[fx.Effect]) -> None:
        owner.check_invariants()
        for effect in effects:
            if isinstance(effect, fx.Push):
                under_way[effect.transfer] = effect
            elif isinstance(effect, fx.CancelTransfer):
                under_way.pop(effect.transfer, None)

    def ends(which: int, outcome: str) -> None:
        push = under_way.pop(sorted(under_way)[which % len(under_way)])
        follow(owner.push_ended(push.transfer, outcome, "", now))

    follow(owner.replicate(record(ME, version), now))
    for what, which in steps:
        now += 0.05
        if what == "far":
            follow(owner.far_replied(FarReply(ME.id, tuple(THERE[:which])), now))
        elif what == "write":
            version += 1
            follow(owner.replicate(record(ME, version), now))
        elif what == "time":
            now += 0.3 * which
            follow(owner.on_timer(now))
        elif under_way:
            ends(which, what)
    follow(owner.far_replied(FarReply(ME.id, tuple(THERE)), now))
    follow(owner.leaf_set_changed(now))
    for _ in range(3):
        while under_way:
            ends(0, "stored")
        now += P.mend_after_s
        follow(owner.on_timer(now))
    assert len(owner.holders(KEY)) == P.replicas
    assert spread(owner) >= copies_abroad(policy, P.replicas)
    follow([*owner.leaf_set_changed(now), *owner.on_timer(now + 60.0)])
    assert not under_way


def test_rule_3_a_seeker_waits_for_both_answers_and_takes_the_newest() -> None:
    seeker = node("mixed", at(HOME, 0x10))
    near, far = of(fx.RouteBody, seeker.retrieve(1, ME.id, TREE, 0.0))
    assert (near.key, far.key) == (ME.id, opposite(ME.id))
    assert far.body == LookUp(1, ME.id, TREE, at(HOME, 0x10), far=True)
    assert seeker.look_up_answered(LookUpReply(1, (Holding(HERE[0], record(ME, 1)),)), 0.1) == []
    effects = seeker.look_up_answered(LookUpReply(1, (Holding(THERE[0], record(ME, 2)),), far=True), 0.2)
    assert [(fetch.peer, fetch.record.version) for fetch in of(fx.Fetch, effects)] == [(THERE[0], 2)]


def test_rule_3_and_not_for_ever() -> None:
    """The other zone is cut off: what is near is taken, and it is said that it may be old."""
    seeker = node("mixed", at(HOME, 0x10))
    now = 0.0
    effects = seeker.retrieve(1, ME.id, TREE, now)
    while not of(fx.Fetch, effects):
        if of(fx.RouteBody, effects):
            assert not of(fx.Fetch, seeker.look_up_answered(LookUpReply(1, (Holding(HERE[0], record(ME, 1)),)), now))
        now = seeker.next_deadline() or 0.0
        effects = seeker.on_timer(now)
    [end] = of(fx.RetrievalEnded, seeker.fetch_ended(of(fx.Fetch, effects)[0].transfer, record(ME, 1), "", now))
    assert (end.record, end.complete, end.sure) == (record(ME, 1), False, False)


def test_a_look_up_for_far_places_is_turned_and_then_answered() -> None:
    answering = node("spread", at(0x9000, 0), THERE)
    look_up = LookUp(1, ME.id, TREE, HERE[0], far=True)
    [turned] = of(fx.RouteBody, answering.look_up_delivered(look_up, 0.0))
    assert (turned.key, turned.body) == (at(ABROAD, 0x80).id, replace(look_up, turned=True))
    alone = node("spread", THERE[0], [])
    [(_, reply)] = sent(alone.look_up_delivered(replace(look_up, turned=True), 0.0), LookUpReply)
    assert reply.far


def test_rule_4_with_one_zone_copies_stay_at_home() -> None:
    answering = node("spread", HERE[0], [ME, *HERE[1:]])
    assert sent(answering.far_query_delivered(FarQuery(ME.id, ME)), FarReply) == [(ME, FarReply(ME.id, ()))]
    assert not of(fx.RouteBody, answering.look_up_delivered(LookUp(1, ME.id, TREE, HERE[1], far=True), 0.0)), "it is answered here"


def test_who_stands_in_does_not_release_the_copies_abroad() -> None:
    """It has only places at home to put in their place."""
    heir = node("spread", at(HOME, 0x7E), [*HERE, *[at(HOME, low) for low in (0x78, 0x88, 0x98, 0x50, 0x40, 0x30, 0xB0, 0xC0)]])
    effects = heir.record_held(record(ME, 3), 0.0)
    for push in of(fx.Push, effects):
        heir.push_ended(push.transfer, "stored", "", 0.1)
    assert heir.adopted() == (record(ME, 3).key,)
    assert heir.stray_delivered(Stray(record(ME, 3), THERE[0]), 1.0) == []
    assert heir.stray_delivered(Stray(record(ME, 3), at(HOME, 0x01)), 1.0), "one at home that is too far may go"

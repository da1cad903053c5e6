"""Look-ups (replication.py, rule 5): the closest node asks its leaf set, and whom it need not wait for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from protocol.identifiers import Peer
from protocol.overlay import effects as fx
from protocol.parameters import OverlayParameters
from protocol.wire.messages import HoldingsQuery, HoldingsReply, LookUp, LookUpReply
from protocol.wire.values import Holding
from tests.overlay.holder import ASKER, FIVE, OWNER, TREE, Node
from tests.overlay.scene import ME, P, facts, node_id, record, sent


def look_up(asker: Peer = ASKER, request: int = 7) -> LookUp:
    return LookUp(request, OWNER.id, TREE, asker)


def test_rule_5_the_closest_node_asks_its_leaf_set_and_answers_newest_first() -> None:
    node = Node(*FIVE[:2])
    node.machine.record_held(record(OWNER, 2), 0.0)
    queries = sent(node.machine.look_up_delivered(look_up(), 0.0), HoldingsQuery)
    assert [to for to, _ in queries] == FIVE[:2]
    number = queries[0][1].request
    assert node.machine.reply_received(FIVE[0], HoldingsReply(number, record(OWNER, 3))) == []
    effects = node.machine.reply_received(FIVE[1], HoldingsReply(number, None))
    expected = (Holding(FIVE[0], record(OWNER, 3)), Holding(ME, record(OWNER, 2)))
    assert sent(effects, LookUpReply) == [(ASKER, LookUpReply(7, expected))]


def test_rule_5_what_has_come_to_the_closest_node_while_it_waited_is_in_its_answer() -> None:
    """A holder that was on the other side of a cut brings it, and another is still silent."""
    node = Node(*FIVE[:2])
    [(_, query), _] = sent(node.machine.look_up_delivered(look_up(), 0.0), HoldingsQuery)
    node.machine.reply_received(FIVE[0], HoldingsReply(query.request, record(OWNER, 1)))
    node.machine.record_held(record(OWNER, 12), 0.1)
    [(_, reply)] = sent(node.until(P.gather_timeout_s), LookUpReply)
    assert reply.holdings == (Holding(ME, record(OWNER, 12)), Holding(FIVE[0], record(OWNER, 1)))


def test_rule_5_it_answers_with_what_it_has_when_somebody_stays_silent() -> None:
    node = Node(*FIVE[:2])
    [(_, query), _] = sent(node.machine.look_up_delivered(look_up(), 0.0), HoldingsQuery)
    node.machine.reply_received(FIVE[1], HoldingsReply(query.request, record(OWNER, 3)))
    assert node.until(0.9 * P.gather_timeout_s) == []
    [(_, reply)] = sent(node.until(P.gather_timeout_s), LookUpReply)
    assert [holding.holder for holding in reply.holdings] == [FIVE[1]]
    assert node.machine.reply_received(FIVE[0], HoldingsReply(query.request, record(OWNER, 9))) == [], "too late"


def test_rule_5_it_does_not_wait_for_the_dead_nor_ask_the_asker() -> None:
    """The owner restarts, and its next neighbour asks for it... which is itself in the leaf set."""
    node = Node(*FIVE[:3])
    queries = sent(node.machine.look_up_delivered(look_up(asker=FIVE[2]), 0.0), HoldingsQuery)
    assert [to for to, _ in queries] == FIVE[:2]
    node.machine.reply_received(FIVE[0], HoldingsReply(queries[0][1].request, None))
    assert sent(node.machine.died(FIVE[1], 0.1), LookUpReply)


def test_rule_5_a_suspect_holds_up_nobody_for_long() -> None:
    """A neighbour hangs, and its verdict takes a second: every look-up until then would last a quarter of one."""
    node = Node(*FIVE[:3])
    node.suspects.add(FIVE[1].id)
    queries = sent(node.machine.look_up_delivered(look_up(), 0.0), HoldingsQuery)
    for holder in (FIVE[0], FIVE[2]):
        assert not sent(node.machine.reply_received(holder, HoldingsReply(queries[0][1].request, record(OWNER, 3))), LookUpReply)
    [(_, reply)] = sent(node.until(P.ack_timeout_min_s), LookUpReply)
    assert (len(reply.holdings), reply.silent) == (2, 1)


def test_rule_5_who_becomes_a_suspect_later_is_not_waited_for_either() -> None:
    node = Node(*FIVE[:2])
    queries = sent(node.machine.look_up_delivered(look_up(), 0.0), HoldingsQuery)
    assert not sent(node.until(P.ack_timeout_min_s), LookUpReply), "it is only slow"
    node.suspects.add(FIVE[1].id)
    [(_, reply)] = sent(node.machine.reply_received(FIVE[0], HoldingsReply(queries[0][1].request, None)), LookUpReply)
    assert reply.silent == 1


def test_rule_5_a_killed_neighbour_costs_only_the_time_until_it_is_found_dead() -> None:
    """Owner and holder die together: the reset makes a suspect, the refused dial a dead one, in milliseconds."""
    node = Node(*FIVE[:2])
    node.suspects.add(FIVE[1].id)
    queries = sent(node.machine.look_up_delivered(look_up(), 0.0), HoldingsQuery)
    assert not sent(node.machine.reply_received(FIVE[0], HoldingsReply(queries[0][1].request, record(OWNER, 3))), LookUpReply)
    [(_, reply)] = sent(node.machine.died(FIVE[1], 0.002), LookUpReply)
    assert (len(reply.holdings), reply.silent) == (1, 0)


BYTES = record(OWNER, 3).record_bytes
REPLACED_S = P.verdict_max_s + P.mend_after_s + P.transfer_timeout_s(BYTES)
"""As long as it may take until the copies of that record that a death has cost are in other places."""
NOW = REPLACED_S + 0.01


def asked(node: Node, asker: Peer = ASKER, now: float = NOW, *, all: bool = False) -> int:
    """The number of the queries with which this node goes round for `asker`."""
    wanted = replace(look_up(asker), all=all)
    return sent(node.machine.look_up_delivered(wanted, now), HoldingsQuery)[0][1].request


def settled(*neighbours: Peer, parameters: OverlayParameters = P) -> Node:
    """A node of a leaf set in which all of this is so since time 0."""
    node = Node(*neighbours, parameters=parameters)
    node.machine.leaf_set_changed(0.0)
    return node


def answers(node: Node, number: int, *holders: Peer, version: int = 3, size: int = BYTES) -> list[LookUpReply]:
    """What a look-up is told once these have said that they hold this version."""
    held = HoldingsReply(number, replace(record(OWNER, version), record_bytes=size))
    effects = [effect for holder in holders for effect in node.machine.reply_received(holder, held)]
    return [reply for _, reply in sent(effects, LookUpReply)]


def test_rule_5_of_fewer_than_a_quorum_nobody_waits_for_the_slowest() -> None:
    """Of two holders of what is durable one has been heard, whoever the last is. The owner's own death changes nothing in that."""
    node = settled(*FIVE[:3], OWNER)
    node.leaf_set.remove(OWNER.id)
    node.machine.leaf_set_changed(NOW)
    number = asked(node)
    assert answers(node, number, FIVE[0]) == [], "two are unheard"
    [reply] = answers(node, number, FIVE[2])
    assert (len(reply.holdings), reply.silent) == (2, 1)
    assert answers(node, number, FIVE[1]) == [], "once"


@pytest.mark.parametrize(("quorum", "heard"), [(1, 5), (2, 4), (3, 3)])
def test_rule_5_how_many_are_not_waited_for_follows_from_the_quorum(quorum: int, heard: int) -> None:
    node = settled(*FIVE, parameters=replace(P, write_quorum=quorum))
    number = asked(node)
    assert answers(node, number, *FIVE[: heard - 1]) == []
    assert answers(node, number, FIVE[heard - 1])


def test_rule_5_everybody_is_heard_where_nothing_was_found() -> None:
    node = settled(*FIVE[:2])
    number = asked(node)
    assert node.machine.reply_received(FIVE[0], HoldingsReply(number, None)) == [], "the other may have it"
    assert answers(node, number, FIVE[1])


@pytest.mark.parametrize("why", ["the owner asks", "all are asked for", "replicas are far away too"])
def test_rule_5_everybody_is_heard_where(why: str) -> None:
    node = settled(*FIVE[:2], parameters=replace(P, placement="mixed") if why == "replicas are far away too" else P)
    number = asked(node, OWNER if why == "the owner asks" else ASKER, all=why == "all are asked for")
    assert answers(node, number, FIVE[0]) == []
    assert answers(node, number, FIVE[1])


@pytest.mark.parametrize("moved", ["joins", "dies", "is born again"])
def test_rule_5_everybody_is_heard_while_holders_may_be_in_replacement(moved: str) -> None:
    """Who died may have been the other holder, and who joined may have taken the place of one. A new life may be known before the death
    of the old one is, and is then in the leaf set in its place."""
    node = settled(*FIVE[:4])
    others = FIVE[1:4]
    if moved == "dies":
        node.leaf_set.remove(FIVE[3].id)
        others = FIVE[1:3]
    else:
        joins = FIVE[4] if moved == "joins" else replace(FIVE[3], incarnation=FIVE[3].incarnation + 1)
        node.leaf_set.insert(joins)
        others = [*FIVE[1:4], joins] if moved == "joins" else [*FIVE[1:3], joins]
    node.machine.leaf_set_changed(NOW)
    for now, waits in ((NOW, True), (NOW + REPLACED_S - 0.01, True), (NOW + REPLACED_S + 0.01, False)):
        number = asked(node, now=now)
        assert (answers(node, number, *others) == []) is waits
        assert bool(answers(node, number, FIVE[0])) is waits


def test_rule_5_a_large_record_takes_longer_to_replace() -> None:
    node = settled(*FIVE[:2])
    number = asked(node)
    assert answers(node, number, FIVE[0], size=100 * BYTES) == []
    number = asked(node, now=P.verdict_max_s + P.mend_after_s + P.transfer_timeout_s(100 * BYTES) + 0.01)
    assert answers(node, number, FIVE[0], size=100 * BYTES)


@pytest.mark.parametrize("how", ["it is found dead", "its next life answers"])
def test_rule_5_everybody_is_heard_where_somebody_dies_meanwhile(how: str) -> None:
    node = settled(*FIVE[:3])
    number = asked(node)
    if how == "it is found dead":
        node.machine.died(FIVE[0], NOW)
    else:
        node.machine.reply_received(replace(FIVE[0], incarnation=2), HoldingsReply(number, None))
    assert answers(node, number, FIVE[1]) == []
    assert answers(node, number, FIVE[2])


def test_rule_5_a_ring_of_one_answers_at_once() -> None:
    node = Node()
    assert sent(node.machine.look_up_delivered(look_up(), 0.0), LookUpReply) == [(ASKER, LookUpReply(7, ()))]


def test_rule_5_answers_about_another_record_and_from_strangers_do_not_count() -> None:
    node = Node(*FIVE[:1])
    [(_, query)] = sent(node.machine.look_up_delivered(look_up(), 0.0), HoldingsQuery)
    assert node.machine.reply_received(FIVE[4], HoldingsReply(query.request, record(OWNER, 99))) == []
    wrong = HoldingsReply(query.request, record(OWNER, 99, tree=node_id(0x11)))
    assert sent(node.machine.reply_received(FIVE[0], wrong), LookUpReply)[0][1].holdings == ()


def test_rule_5_a_holder_says_what_it_holds() -> None:
    node = Node(*FIVE)
    for version in (1, 3, 2):
        node.machine.record_held(record(OWNER, version), 0.0)
    query = HoldingsQuery(5, OWNER.id, TREE)
    assert node.machine.query_received(FIVE[0], query) == [fx.Send(FIVE[0], HoldingsReply(5, record(OWNER, 3)))]


def test_rule_5_look_ups_being_answered_are_bounded() -> None:
    node = Node(*FIVE, parameters=replace(P, held_messages_max=4))
    effects = [effect for request in range(9) for effect in node.machine.look_up_delivered(look_up(request=request), 0.0)]
    assert facts(effects) == ["look_up_dropped"] * 5


@pytest.mark.parametrize("dies", [True, False])
def test_rule_5_who_was_not_heard_may_be_the_last_holder_where_another_has_just_died(dies: bool) -> None:
    """Two of k were a quorum: one of them dies with the owner, the other stalls. What a third has is older, perhaps."""
    node = settled(*FIVE[:4])
    number = asked(node)
    if dies:
        node.neighbours = [FIVE[1], FIVE[2], FIVE[3]]
        node.machine.died(FIVE[0], NOW + 0.002)
        node.machine.leaf_set_changed(NOW + 0.002)
    said = answers(node, number, FIVE[2], version=2)
    assert said == []
    said = [reply for _, reply in sent(node.until(NOW + P.gather_timeout_s), LookUpReply)]
    assert [(reply.holdings[0].record.version, reply.silent > 0, reply.settled) for reply in said] == [(2, True, not dies)]

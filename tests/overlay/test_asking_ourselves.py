"""Look-ups (look_ups.py) where the asker's leaf set is the whole ring: it goes round itself, where it knows as much as the closest node."""

from __future__ import annotations

from dataclasses import replace

import pytest

from protocol.identifiers import NodeId, Peer
from protocol.overlay import effects as fx
from protocol.overlay import events as ev
from protocol.parameters import OverlayParameters
from protocol.wire.messages import HoldingsQuery, HoldingsReply, LookUp, LookUpReply
from tests.overlay.holder import FIVE, OWNER, TREE, Node
from tests.overlay.scene import ME, P, of, peer, record, sent
from tests.scenarios.network import Network

QUIET_S = P.verdict_max_s + 0.01
NOW = 100.0


def ring(*others: Peer, owner: Peer = OWNER, parameters: OverlayParameters = P) -> Node:
    """A node that knows these since time 0 and is named by its neighbours; the owner died just before NOW."""
    node = Node(*others, owner, parameters=parameters)
    node.named = True
    node.machine.leaf_set_changed(0.0)
    node.leaf_set.remove(owner.id)
    node.machine.leaf_set_changed(NOW - 0.01)
    return node


def retrieve(node: Node, owner: NodeId = OWNER.id, now: float = NOW) -> list[fx.Effect]:
    return node.note(node.machine.retrieve(1, owner, TREE, now))


def routed(effects: list[fx.Effect]) -> list[LookUp]:
    return [effect.body for effect in of(fx.RouteBody, effects) if isinstance(effect.body, LookUp)]


def answers(node: Node, number: int, *holders: Peer, version: int = 3) -> list[fx.Effect]:
    """What follows when these say that they hold this version; what the node sends itself arrives at once."""
    effects: list[fx.Effect] = []
    for holder in holders:
        effects += node.machine.reply_received(holder, HoldingsReply(number, record(OWNER, version)))
    for to, reply in sent(effects, LookUpReply):
        assert to == ME
        effects += node.note(node.machine.look_up_answered(reply, NOW + 0.01))
    return effects


def asked(effects: list[fx.Effect]) -> tuple[list[Peer], int]:
    queries = sent(effects, HoldingsQuery)
    return [to for to, _ in queries], queries[0][1].request


def test_it_asks_everyone_itself_and_waits_for_whom_the_closest_would_wait_for() -> None:
    node = ring(*FIVE)
    effects = retrieve(node)
    whom, number = asked(effects)
    assert set(whom) == set(FIVE)
    assert routed(effects) == []
    spared = P.write_quorum - 1
    assert of(fx.Fetch, answers(node, number, *FIVE[: -spared - 1])) == []
    (fetch,) = of(fx.Fetch, answers(node, number, FIVE[-1]))
    assert (fetch.record.version, {fetch.peer, *fetch.others}) == (3, {*FIVE[: -spared - 1], FIVE[-1]})


def test_a_copy_of_its_own_needs_no_transfer() -> None:
    node = ring(*FIVE)
    node.machine.record_held(record(OWNER, 3), 0.0)
    _, number = asked(retrieve(node))
    (ended,) = of(fx.RetrievalEnded, answers(node, number, *FIVE[1:]))
    assert (ended.record, ended.reason) == (record(OWNER, 3), "held here")


@pytest.mark.parametrize(
    "why",
    ["a neighbour does not name it", "the leaf set is full", "the owner lives", "it is the owner", "another died", "another joined",
     "another was born again"],
)  # fmt: skip
def test_the_closest_node_is_asked_where(why: str) -> None:
    node = ring(*FIVE)
    owner = OWNER.id
    match why:
        case "a neighbour does not name it":
            node.named = False
        case "the leaf set is full":
            node = ring(*FIVE, parameters=replace(P, leaf_set_size=4))
        case "the owner lives":
            node.leaf_set.insert(OWNER)
        case "it is the owner":
            owner = ME.id
        case "another died":
            node.leaf_set.remove(FIVE[2].id)
        case "another joined":
            node.leaf_set.insert(peer(0x33))
        case "another was born again":
            node.leaf_set.insert(replace(FIVE[2], incarnation=FIVE[2].incarnation + 1))
    node.machine.leaf_set_changed(NOW - QUIET_S + 0.02)
    effects = retrieve(node, owner)
    assert sent(effects, HoldingsQuery) == []
    assert [look_up.all for look_up in routed(effects)] == [False]


@pytest.mark.parametrize("told", [True, False])
def test_the_ring_must_have_been_at_rest_for_as_long_as_a_verdict_takes(told: bool) -> None:
    """Also where the node is about to be told of the change."""
    for rest_s, itself in ((QUIET_S, True), (P.verdict_max_s - 0.01, False)):
        node = ring(*FIVE)
        node.leaf_set.remove(FIVE[2].id)
        if told or itself:
            node.machine.leaf_set_changed(NOW - rest_s)
        assert bool(sent(retrieve(node), HoldingsQuery)) is itself


def test_a_suspect_is_as_good_as_dead_and_is_asked_too() -> None:
    """The closest node would hold the look-up until the verdict. It may be wrong: then the owner itself answers."""
    node = Node(*FIVE, OWNER)
    node.named = True
    node.machine.leaf_set_changed(0.0)
    node.suspects.add(OWNER.id)
    whom, number = asked(retrieve(node))
    assert set(whom) == {*FIVE, OWNER}
    answers(node, number, *FIVE[:4])
    (fetch,) = of(fx.Fetch, answers(node, number, OWNER, version=4))
    assert (fetch.peer, fetch.record.version) == (OWNER, 4)


def test_the_verdict_on_the_owner_comes_meanwhile() -> None:
    """It is not asked for again, and all that are left need not be heard for it."""
    node = Node(*FIVE, OWNER)
    node.named = True
    node.machine.leaf_set_changed(0.0)
    node.suspects.add(OWNER.id)
    _, number = asked(retrieve(node))
    node.leaf_set.remove(OWNER.id)
    assert node.note(node.machine.died(OWNER, NOW)) == []
    node.machine.leaf_set_changed(NOW)
    assert of(fx.Fetch, answers(node, number, *FIVE[:4])), "one is unheard"


def test_another_death_meanwhile_has_all_that_are_left_heard() -> None:
    node = ring(*FIVE)
    _, number = asked(retrieve(node))
    assert routed(node.note(node.machine.died(FIVE[4], NOW))) == []
    assert of(fx.Fetch, answers(node, number, *FIVE[:3])) == []
    assert of(fx.Fetch, answers(node, number, FIVE[3]))


def test_where_nothing_is_found_the_closest_node_is_asked_after_all() -> None:
    node = ring(*FIVE)
    _, number = asked(retrieve(node))
    effects = [effect for holder in FIVE for effect in node.machine.reply_received(holder, HoldingsReply(number, None))]
    ((_, reply),) = sent(effects, LookUpReply)
    assert reply.silent == 0
    (again,) = routed(node.note(node.machine.look_up_answered(reply, NOW)))
    assert again.all


def test_where_a_quorum_is_unheard_the_closest_node_is_asked_after_all() -> None:
    node = ring(*FIVE)
    _, number = asked(retrieve(node))
    assert of(fx.Fetch, answers(node, number, FIVE[0])) == []
    ((_, reply),) = sent(node.until(NOW + P.gather_timeout_s), LookUpReply)
    assert reply.silent == len(FIVE) - 1
    (again,) = routed(node.note(node.machine.look_up_answered(reply, NOW + P.gather_timeout_s)))
    assert again.all
    (fetch,) = of(fx.Fetch, node.machine.look_up_answered(LookUpReply(again.request, reply.holdings, 2), NOW + 1))
    assert fetch.peer == FIVE[0]


def test_a_hung_owner_is_looked_up_before_anybody_has_a_verdict() -> None:
    """Real nodes: a look-up that is routed to the owner's id would wait for one, at the last hop."""
    network = Network()
    network.ring(a="10", b="40", c="70", d="a0", e="d0")
    network.advance(2 * network.parameters.verdict_max_s)
    owner = network.peer("c")
    network.tell("c", ev.Replicate(record(owner, 7)))
    for happened in list(network.trace):
        if isinstance(happened.what, fx.Push):
            holder = next(name for name, process in network.processes.items() if process.peer == happened.what.peer)
            network.tell(holder, ev.RecordHeld(record(owner, 7)))
    network.stop("c")
    assert network.run_until(lambda: network["b"].detector.is_suspect(owner.id), 5.0)
    network.tell("b", ev.Retrieve(1, owner.id, TREE))
    network.settle()
    found = [happened.what for happened in network.trace if happened.at == "b"]
    assert len(of(fx.Fetch, found)) + len(of(fx.RetrievalEnded, found)) == 1
    assert network["b"].detector.is_suspect(owner.id)

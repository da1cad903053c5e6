"""Pastry (Rowstron & Druschel, Middleware 2001), rule by rule. Each docstring restates a sentence of the paper and names its section."""

from __future__ import annotations

from math import log
from random import Random

import pytest

from protocol.identifiers import BITS, DIGITS, NodeId, Peer, closest, digit, shared_prefix
from protocol.overlay import effects as fx
from protocol.overlay import events as ev
from protocol.parameters import OverlayParameters
from protocol.wire import messages as m
from tests.papers.stage import SMALL, Fed, node_id, of, peer, sent, told
from tests.scenarios.network import Network

CROWD = 100


def ring_of(count: int, parameters: OverlayParameters | None = None, seed: int = 1) -> Network:
    rng = Random(seed)
    network = Network(parameters, seed)
    network.ring(**{f"n{index}": f"{rng.getrandbits(BITS):032x}" for index in range(count)})
    return network


@pytest.fixture(scope="module")
def crowd() -> Network:
    """A hundred nodes that have joined one after the other, and an upkeep's time later."""
    network = ring_of(CROWD)
    network.advance(2 * network.parameters.row_interval_s)
    return network


def deliveries(network: Network, since: int) -> list[tuple[NodeId, fx.Delivered]]:
    found = [happened for happened in network.trace[since:] if isinstance(happened.what, fx.Delivered)]
    return [(network.peer(happened.at).id, happened.what) for happened in found]


def route_many(network: Network, count: int) -> list[tuple[NodeId, fx.Delivered]]:
    """From everywhere to anywhere: who delivered what."""
    rng, since = Random(2), len(network.trace)
    alive = [name for name, process in network.processes.items() if process.alive]
    for _ in range(count):
        network.tell(rng.choice(alive), ev.RouteMessage(NodeId(rng.getrandbits(BITS)), b""))
    network.settle()
    return deliveries(network, since)


# --- 2.1 Pastry node state --------------------------------------------------------------------------------------------


def test_the_leaf_set_is_the_half_l_nodes_with_the_closest_larger_and_the_half_l_with_the_closest_smaller_ids(crowd: Network) -> None:
    """The leaf set is the |L|/2 nodes with numerically closest larger nodeIds, and the |L|/2 with closest smaller ones (2.1)."""
    around = sorted(process.peer.id for process in crowd.processes.values())
    for process in crowd.processes.values():
        index = around.index(process.peer.id)
        leaf_set = process.node.pastry.leaf_set
        assert [member.id for member in leaf_set.right] == [around[(index + step) % CROWD] for step in range(1, 7)]
        assert [member.id for member in leaf_set.left] == [around[index - step] for step in range(1, 7)]


def test_row_n_of_the_table_shares_n_digits_and_its_column_is_the_next_digit(crowd: Network) -> None:
    """An entry at row n shares the present node's nodeId in the first n digits, and its n + 1th digit is that of the column (2.1)."""
    for process in crowd.processes.values():
        table = process.node.pastry.table
        for row in range(DIGITS):
            entries = table.row(row)
            assert len({digit(entry.id, row) for entry in entries}) == len(entries) <= 15
            assert all(shared_prefix(entry.id, process.peer.id) == row for entry in entries)


def test_about_log16_n_rows_are_populated(crowd: Network) -> None:
    """With nodeIds uniformly spread, only log16 N rows are populated on average (2.1); the first one is full."""
    rows = [process.node.pastry.table.rows for process in crowd.processes.values()]
    assert sum(rows) / CROWD < log(CROWD, 16) + 1.5
    occupied = {digit(process.peer.id, 0) for process in crowd.processes.values()}
    first = [len(process.node.pastry.table.row(0)) for process in crowd.processes.values()]
    assert sum(first) / CROWD > 0.95 * (len(occupied) - 1)


@pytest.mark.parametrize("count", [2, 3, 13])
def test_a_ring_of_at_most_l_plus_one_nodes_is_in_everybodys_leaf_set(count: int) -> None:
    """With no more than L other nodes, the leaf set holds them all, and every message takes at most one hop (2.1, 2.2)."""
    network = ring_of(count)
    assert all(len(process.node.pastry.leaf_set) == count - 1 for process in network.processes.values())
    ids = [process.peer.id for process in network.processes.values()]
    for where, delivered in route_many(network, 40):
        assert where == closest(delivered.key, ids)
        assert delivered.hops <= 1


def test_a_ring_of_one_delivers_everything_itself() -> None:
    """The closest of one node is that node (2.2)."""
    alone = Fed()
    assert of(fx.Delivered, alone.route("01")) == [fx.Delivered(node_id("01"), b"x", 0)]


# --- 2.2 Routing ------------------------------------------------------------------------------------------------------

RIGHT, LEFT = ("84", "88"), ("7c", "78")


def test_a_key_within_the_leaf_sets_range_goes_to_the_closest_member_in_one_hop() -> None:
    """If the key falls within the range covered by the leaf set, it is forwarded directly to the node whose nodeId is closest (2.2)."""
    node = Fed(*RIGHT, *LEFT, parameters=SMALL)
    assert told(node.route("855"), m.Route) == {"84"}
    assert told(node.route("79"), m.Route) == {"78"}


def test_else_it_goes_to_a_node_that_shares_one_more_digit_with_the_key() -> None:
    """Else the message is forwarded to a node that shares a common prefix with the key by at least one more digit (2.2)."""
    node = Fed(*RIGHT, *LEFT, parameters=SMALL)
    node.learn("2f", 0.01)
    assert told(node.route("21"), m.Route) == {"2f"}


def test_in_the_rare_case_it_goes_to_a_node_with_no_shorter_a_prefix_that_is_closer_to_the_key() -> None:
    """Where no such node is known, it goes to one that shares at least as long a prefix with the key and is closer to it (2.2)."""
    node = Fed(*RIGHT, *LEFT, parameters=SMALL)
    node.learn("10", 0.01)
    node.learn("30", 0.01)
    assert told(node.route("28"), m.Route) == {"30"}, "no entry for 2: of those closer than we, the closest"


def test_in_the_rare_case_a_shorter_prefix_does_not_do_even_where_it_is_closer() -> None:
    """T is in the union of leaf set, table and neighbourhood such that shl(T, D) >= l and |T - D| < |A - D| (2.2)."""
    node = Fed("81", "82", *LEFT, parameters=SMALL)
    node.learn("89", 0.01)
    node.learn("90", 0.01)
    assert told(node.route("8f"), m.Route) == {"89"}, "90 is closer to 8f than 89, and shares no digit with it"


def test_each_step_shares_a_longer_prefix_or_is_closer(crowd: Network) -> None:
    """Each step takes the message to a node that shares a longer prefix with the key, or as long a one and is closer: no loops (2.2)."""
    since = len(crowd.trace)
    route_many(crowd, 200)
    for happened in crowd.trace[since:]:
        if isinstance(happened.what, ev.MessageReceived) and isinstance(route := happened.what.message, m.Route):
            here, before = crowd.peer(happened.at).id, happened.what.peer.id
            longer = shared_prefix(here, route.key) > shared_prefix(before, route.key)
            assert longer or closest(route.key, [here, before]) == here


def test_a_message_is_delivered_by_the_node_numerically_closest_to_its_key(crowd: Network) -> None:
    """Pastry routes a message to the node with the nodeId that is numerically closest to the key, among all live nodes (2.2)."""
    ids = [process.peer.id for process in crowd.processes.values()]
    found = route_many(crowd, 500)
    assert len(found) == 500
    assert all(where == closest(delivered.key, ids) for where, delivered in found)


def test_a_message_takes_fewer_than_log16_n_hops_on_average(crowd: Network) -> None:
    """The expected number of routing steps is log16 N; the leaf set saves the last ones (2.2, 3.1)."""
    hops = [delivered.hops for _, delivered in route_many(crowd, 500)]
    assert sum(hops) / len(hops) < log(CROWD, 16) + 0.1
    assert max(hops) <= 4


def test_two_nodes_equally_far_from_a_key_agree_on_which_of_them_it_is() -> None:
    """The closest node is one node: distances are compared along the ring, and equal ones decided the same way by all (2.2)."""
    network = Network()
    network.ring(a="10", b="30")
    for name in ("a", "b"):
        network.tell(name, ev.RouteMessage(node_id("20"), b""))
    network.settle()
    assert [where for where, _ in deliveries(network, 0)] == [network.peer("a").id] * 2


# --- 2.4 Self-organization and adaptation: node arrival ---------------------------------------------------------------


def test_a_join_is_routed_to_the_node_closest_to_the_joiner() -> None:
    """X asks A to route a special join message with the key equal to X; it arrives at Z, whose id is closest to X (2.4)."""
    network = Network()
    network.ring(a="10", b="50", c="90", d="d0")
    network.name("x", "93")
    network.start("x", ["a"])
    network.settle()
    replies = [h.other for h in network.trace if h.at == "x" and isinstance(getattr(h.what, "message", None), m.JoinReply)]
    assert replies == ["c"]


def test_a_joiner_takes_row_i_from_the_ith_node_on_its_way() -> None:
    """X_0 is A's row 0; B, the next on the way, shares one digit with X, so its row 1 is appropriate for X's row 1, and so on (2.4)."""
    node = Fed(*RIGHT, *LEFT, parameters=SMALL)
    node.learn("2f", 0.01)
    first = m.JoinRequest(peer("2345"))
    ((hop, onward),) = sent(node.hear("84", m.Route(node_id("2345"), first, 0)), m.Route)
    row_0 = {entry.id for entry in node.pastry.table.row(0)}
    assert hop == peer("2f")
    assert isinstance(onward.body, m.JoinRequest)
    assert {candidate.id for candidate in onward.body.candidates} == row_0 | {node.me.id}

    second = Fed("30", "31", "2d", "2c", digits="2f", parameters=SMALL)
    second.learn("21", 0.01)
    second.learn("238", 0.01)
    ((hop, later),) = sent(second.hear("80", onward), m.Route)
    assert hop == peer("238")
    assert isinstance(later.body, m.JoinRequest)
    added = {candidate.id for candidate in later.body.candidates} - {candidate.id for candidate in onward.body.candidates}
    assert added <= {entry.id for entry in second.pastry.table.row(1)} | {second.me.id}
    assert peer("21").id in added, "row 1 of the second node"


def test_a_joiner_takes_its_leaf_set_from_z() -> None:
    """Z has the closest existing nodeId to X, thus its leaf set is the basis for X's leaf set (2.4)."""
    z = Fed(*RIGHT, *LEFT, parameters=SMALL)
    (reply,) = [reply for to, reply in sent(z.hear("84", m.Route(node_id("81"), m.JoinRequest(peer("81")), 1)), m.JoinReply)]
    assert {member.id for member in reply.leaf_set} == {node_id(digits) for digits in (*RIGHT, *LEFT)}


def test_all_who_need_to_know_of_a_newcomer_do_once_it_has_joined() -> None:
    """X informs the nodes that need to be aware of its arrival; they update their own state (2.4)."""
    network = Network(OverlayParameters(leaf_set_size=4, replicas=2))
    network.ring(a="10", b="30", c="50", d="70", e="90", f="b0")
    network.name("x", "60")
    network.start("x", ["a"])
    network.settle()
    for name in "bcde":
        assert network.peer("x").id in network[name].pastry.leaf_set, f"x is within L/2 of {name}"


# --- 2.4 Self-organization and adaptation: node departure -------------------------------------------------------------


def test_a_failed_leaf_is_replaced_by_asking_the_live_node_with_the_largest_index_on_its_side() -> None:
    """To replace a node in the leaf set, its neighbour asks the live node with the largest index on the side of the failed one (2.4)."""
    network = Network(OverlayParameters(leaf_set_size=6, replicas=2))
    network.ring(a="10", b="20", c="30", d="40", e="50", f="60", g="70", h="80", i="90")
    network.settle()
    since = len(network.trace)
    network.kill("c")
    network.settle()
    asked = [h for h in network.trace[since:] if h.other == "a" and isinstance(getattr(h.what, "message", None), m.LeafProbe)]
    assert asked[0].at == "d", "a's right side was b, c, d; c has failed"
    assert [member.id for member in network["a"].pastry.leaf_set.right] == [network.peer(name).id for name in "bde"]


def test_a_replacement_is_first_verified_to_be_alive() -> None:
    """Of the nodes in that leaf set it chooses an appropriate one, verifies that it is alive by contacting it, and takes it in (2.4)."""
    node = Fed(*RIGHT, *LEFT, parameters=SMALL)
    node.kill("84")
    effects = node.hear("88", m.LeafProbeReply((peer("8a"), peer("80"))))
    assert "8a" in told(effects, m.LeafProbe)
    assert "8a" not in node.leaf_set()
    node.hear("8a", m.LeafProbeReply((peer("88"), peer("80"))))
    assert "8a" in node.leaf_set()


def table_node() -> Fed:
    """Row 0 holds 1., 2., 3., 4.; row 1 holds 85."""
    node = Fed("81", "82", *LEFT, parameters=SMALL)
    for entry in ("10", "20", "30", "40", "85"):
        node.learn(entry, 0.01)
    return node


def asked_after_the_death_of(node: Fed, digits: str) -> list[tuple[Peer, m.Message]]:
    """Tables are repaired lazily: at some moment of the next exchange interval."""
    assert not sent(node.kill(digits), m.RowRequest)
    others = {"81", "82", *LEFT, "10", "20", "30", "40", "85"} - {digits}
    seen = node.until(node.now + SMALL.exchange_interval_s, hearing=sorted(others))
    return sent((effect for _, effect in seen), m.RowRequest)


def test_a_failed_table_entry_is_replaced_by_asking_another_entry_of_its_row() -> None:
    """To repair R[l][d], the node first asks another entry of the same row for its own entry for that place (2.4)."""
    node = table_node()
    ((whom, request),) = asked_after_the_death_of(node, "20")
    assert request == m.RowRequest(0)
    assert whom in node.pastry.table.row(0)
    assert "2b" in told(node.hear(whom.id.short[:2], m.RowReply(0, (peer("2b"),))), m.Ping), "and again it is verified first"
    node.hear("2b", m.Pong())
    assert node.pastry.table.at((0, 2)) == peer("2b")


def test_if_nobody_of_the_row_has_one_an_entry_of_the_next_row_is_asked() -> None:
    """If none of the entries in row l has a pointer to a live node with the prefix, the node next asks an entry of row l + 1 (2.4)."""
    node = table_node()
    ((whom, _),) = asked_after_the_death_of(node, "20")
    asked = [whom]
    while more := sent(node.hear(asked[-1].id.short[:2], m.RowReply(0, ())), m.RowRequest):
        asked.append(more[0][0])
    rows = [shared_prefix(other.id, node.me.id) for other in asked]
    assert rows == [0, 0, 1]


def test_messages_are_delivered_rightly_after_fewer_than_half_l_adjacent_nodes_die_at_once() -> None:
    """With concurrent node failures, eventual delivery is guaranteed unless |L|/2 nodes with adjacent nodeIds fail simultaneously (2.4)."""
    network = ring_of(40)
    around = sorted(network.processes, key=lambda name: network.peer(name).id)
    for name in around[10 : 10 + network.parameters.side - 1]:
        network.kill(name)
    network.advance(0.1)
    ids = [process.peer.id for process in network.processes.values() if process.alive]
    found = route_many(network, 200)
    assert len(found) == 200
    assert all(where == closest(delivered.key, ids) for where, delivered in found)


# --- 2.5 Locality -----------------------------------------------------------------------------------------------------


def test_of_two_nodes_for_one_place_the_nearer_stays_in_the_table() -> None:
    """Among the nodes with the right prefix, an entry refers to one that is near the present node by the proximity metric (2.5)."""
    node = Fed(*RIGHT, *LEFT, parameters=SMALL)
    node.learn("21", 0.050)
    node.learn("2f", 0.010)
    assert node.pastry.table.at((0, 2)) == peer("2f")
    node.learn("23", 0.040)
    assert node.pastry.table.at((0, 2)) == peer("2f")


def test_a_node_finds_the_nearer_ones_by_asking_its_entries_for_their_rows() -> None:
    """In a second stage a node asks those in its table for their state, compares distances, and takes the nearer ones (2.5)."""
    node = Fed(*RIGHT, *LEFT, parameters=SMALL)
    node.learn("21", 0.050)
    seen = node.until(1.25 * SMALL.row_interval_s, hearing=[*RIGHT, *LEFT, "21"])
    assert sent((effect for _, effect in seen), m.RowRequest), "each row in turn, in the background"
    effects = node.hear("21", m.RowReply(0, (peer("2f"),)))
    assert told(effects, m.Ping) == {"2f"}
    node.now += 0.002
    node.hear("2f", m.Pong())
    assert node.pastry.table.at((0, 2)) == peer("2f")


def test_routes_go_through_near_nodes_first() -> None:
    """The first hops of a route are short, as there are many nodes to choose from for the first digits (2.5)."""
    network = Network(SMALL)
    for near in ("n2", "n3"):
        network.latency_s |= {("me", near): 0.002, (near, "me"): 0.002}
    for far in ("f2", "f3", "x4", "x6", "x8", "xa"):
        network.latency_s |= {("me", far): 0.080, (far, "me"): 0.080}
    network.ring(x4="40", f2="21", f3="31", x6="60", x8="80", xa="a0", me="f0", n2="2f", n3="3f")
    network.advance(8 * SMALL.row_interval_s)
    table = network["me"].pastry.table
    assert table.at((0, 2)) == network.peer("n2")
    assert table.at((0, 3)) == network.peer("n3")

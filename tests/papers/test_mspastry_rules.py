"""MSPastry (Castro, Costa & Rowstron, Performance and dependability of structured peer-to-peer overlays, DSN 2004), rule by rule.

Each docstring restates a sentence of the paper and names its section.
"""

from __future__ import annotations

from math import log

import pytest

from protocol.overlay import effects as fx
from protocol.overlay import events as ev
from protocol.overlay.failure_rate import probe_period_s, unnoticed
from protocol.overlay.pastry import PROBES_MAX
from protocol.overlay.table_upkeep import MEASURED_AT_ONCE
from protocol.wire import messages as m
from tests.papers.stage import SMALL, Fed, P, node_id, of, peer, sent, told
from tests.scenarios.network import Network

RIGHT, LEFT = ("84", "88"), ("7c", "78")
AROUND = (*RIGHT, *LEFT)


def node_among() -> Fed:
    return Fed(*AROUND, parameters=SMALL)


def suspected(effects: list[fx.Effect]) -> set[str]:
    return {str(note.details["peer"])[:2] for note in of(fx.Notify, effects) if note.fact == "peer_suspected"}


def cleared(node: Fed, digits: str) -> list[fx.Effect]:
    """The suspect answers our dial."""
    return node.do(ev.DialEnded(peer(digits), peer(digits)))


# --- 3.1 Consistent routing -------------------------------------------------------------------------------------------


def test_a_joiner_is_active_only_when_every_member_of_its_leaf_set_has_answered_its_probe() -> None:
    """A joining node probes all the nodes in its leaf set, and becomes active only after it has heard from all of them (3.1)."""
    network = Network()
    network.ring(a="10", b="50", d="90")
    network.hold(("d", "x"))
    network.name("x", "70")
    network.start("x", ["a"])
    network.settle()
    assert not network["x"].pastry.active
    network.release(("d", "x"))
    network.settle()
    assert network["x"].pastry.active


def test_an_inactive_node_delivers_nothing_but_keeps_it_until_it_is_active() -> None:
    """Messages that reach a node that is not active are not delivered; they are kept and routed again later (3.1)."""
    network = Network()
    network.ring(a="10", b="50", d="90")
    network.hold(("d", "x"))
    network.name("x", "70")
    network.start("x", ["a"])
    network.settle()
    network.tell("b", ev.RouteMessage(node_id("70"), b""))
    network.settle()
    assert not [happened for happened in network.trace if isinstance(happened.what, fx.Delivered)]
    network.release(("d", "x"))
    network.settle()
    assert [happened.at for happened in network.trace if isinstance(happened.what, fx.Delivered)] == ["x"]


def test_nobody_inserts_a_node_that_it_has_not_heard() -> None:
    """A node is added to a leaf set only when a message has been received from that very node: others' leaf sets name candidates (3.1)."""
    node = node_among()
    effects = node.hear("84", m.LeafProbe((peer("81"), node.me)))
    assert "81" in told(effects, m.LeafProbe)
    assert "81" not in node.leaf_set()
    node.hear("81", m.LeafProbeReply((peer("84"), node.me)))
    assert "81" in node.leaf_set()


def test_a_death_told_by_others_is_verified_before_it_is_believed() -> None:
    """Nodes in the received set of failed ones are probed, and not removed before they were found faulty (3.1)."""
    node = node_among()
    effects = node.hear("88", m.LeafProbe((node.me,), failed=(node_id("84"),)))
    assert fx.Dial(peer("84")) in effects
    assert "84" in node.leaf_set()
    cleared(node, "84")
    assert "84" in node.leaf_set()


def test_nobody_passes_on_a_death_that_it_has_not_verified() -> None:
    """The failed set of a probe holds the nodes that its sender has itself found faulty (3.1)."""
    node = node_among()
    node.hear("88", m.LeafProbe((node.me,), failed=(node_id("84"),)))
    ((_, before),) = sent(node.hear("78", m.LeafProbe((node.me,))), m.LeafProbeReply)
    assert before.failed == ()
    node.do(ev.DialEnded(peer("84"), None, refused=True))
    ((_, after),) = sent(node.hear("78", m.LeafProbe((node.me,))), m.LeafProbeReply)
    assert after.failed == (node_id("84"),)


def test_a_death_in_the_leaf_set_is_told_to_all_its_members() -> None:
    """When a neighbour is found faulty, all the other members of the leaf set are probed, with it in the set of failed ones (3.1, 4.1)."""
    effects = node_among().kill("84")
    probes = sent(effects, m.LeafProbe)
    assert {"88", "7c", "78"} <= told(effects, m.LeafProbe)
    assert all(node_id("84") in probe.failed for _, probe in probes)


def test_a_node_with_an_empty_side_does_not_deliver() -> None:
    """A node delivers only while its leaf set has members on both sides: else somebody closer may live there (3.1)."""
    node = node_among()
    node.kill("84")
    node.kill("88")
    assert not of(fx.Delivered, node.route("83")), "whoever follows us on the ring has not named us"
    assert of(fx.Delivered, node.route("7f")), "on the other side nothing has changed"
    released = node.hear("78", m.LeafProbeReply((peer("7c"), node.me)))
    assert of(fx.Delivered, released), "now 78 says that we are the one before it: there is nobody between"


def test_a_candidate_that_is_silent_is_probed_again_and_given_up_after_a_few() -> None:
    """A probe that is not answered is sent again a few times before the node is marked faulty; the joiner does not wait for ever (3.1)."""
    node = node_among()
    node.hear("84", m.LeafProbe((peer("81"), node.me)))
    seen = node.until(PROBES_MAX * P.probe_timeout_s + 0.1, hearing=AROUND)
    assert len([to for to, _ in sent((e for _, e in seen), m.LeafProbe) if to == peer("81")]) == PROBES_MAX - 1
    assert "81" not in node.leaf_set()


# --- 3.2 Reliable routing ---------------------------------------------------------------------------------------------


def test_each_hop_acknowledges_a_message() -> None:
    """Every node that receives a message acknowledges it to the hop before (3.2)."""
    effects = node_among().hear("88", m.Route(node_id("801"), m.Datagram(b"x"), hops=1, sequence=7))
    assert sent(effects, m.RouteAck) == [(peer("88"), m.RouteAck(7))]
    assert of(fx.Delivered, effects)


@pytest.mark.parametrize(("rtt_s", "timeout_s"), [(0.1, 0.3), (0.04, 0.12), (0.001, P.ack_timeout_min_s)])
def test_the_timeout_of_an_acknowledgement_follows_the_round_trip(rtt_s: float, timeout_s: float) -> None:
    """The retransmission timer follows round trips as in TCP, with a shorter minimum: srtt + 4 deviations, at first 3 srtt (3.2)."""
    node = node_among()
    node.learn("2f", rtt_s)
    node.route("21")
    seen = node.until(0.6, hearing=AROUND)
    missed = next(when for when, effect in seen if isinstance(effect, fx.Dial))
    assert missed == pytest.approx(timeout_s)


def test_the_timeout_doubles_for_a_hop_that_has_just_missed_one() -> None:
    """Timers back off until an acknowledgement comes again (3.2; Karn's rule in TCP)."""
    node = node_among()
    node.learn("2f", 0.04)
    node.route("21")
    node.until(0.2, hearing=AROUND)
    node.hear("2f", m.Heartbeat())
    sent_at = node.now
    node.route("22")
    seen = node.until(0.6, hearing=AROUND)
    assert next(when for when, effect in seen if effect == fx.Dial(peer("2f"))) - sent_at == pytest.approx(0.24)


def test_on_a_miss_the_message_goes_around_the_hop_which_is_probed_and_not_dead() -> None:
    """If there is no acknowledgement in time, the message is routed around the node, which is probed; one miss is no failure (3.2)."""
    node = node_among()
    node.learn("2f", 0.02)
    node.learn("30", 0.02)
    assert told(node.route("21"), m.Route) == {"2f"}
    seen = [effect for _, effect in node.until(0.1, hearing=AROUND)]
    assert told(seen, m.Route) == {"30"}
    assert fx.Dial(peer("2f")) in seen
    assert node.pastry.table.get(node_id("2f")) == peer("2f")
    assert not node.dead(seen)
    cleared(node, "2f")
    assert told(node.route("21"), m.Route) == {"2f"}, "it is used again as soon as it has answered"


def test_a_hop_that_has_missed_an_acknowledgement_is_left_out_until_it_answers() -> None:
    """A suspect is temporarily excluded from routing, though it stays in the routing state until it is marked faulty (3.2)."""
    node = node_among()
    node.learn("2f", 0.02)
    node.learn("30", 0.02)
    node.route("21")
    node.until(0.1, hearing=AROUND)
    assert told(node.route("22"), m.Route) == {"30"}


def test_the_last_hop_is_waited_for() -> None:
    """A node that would be the root is not routed around: delivering elsewhere, while it may be alive, is inconsistent (3.2)."""
    node = node_among()
    assert told(node.route("855"), m.Route) == {"84"}
    seen = [effect for _, effect in node.until(0.4, hearing=("88", *LEFT))]
    assert fx.Dial(peer("84")) in seen
    assert not sent(seen, m.Route)
    assert told(cleared(node, "84"), m.Route) == {"84"}


def test_the_last_hops_message_goes_to_the_next_closest_once_it_is_found_dead() -> None:
    """Once the root is marked faulty, and only then, the message goes to the next closest node (3.2)."""
    node = node_among()
    node.route("86a")
    node.until(0.4, hearing=("84", *LEFT))
    assert told(node.do(ev.DialEnded(peer("88"), None, refused=True)), m.Route) == {"84"}


# --- 4.1 Detecting faults with low overhead ---------------------------------------------------------------------------


def test_heartbeats_go_to_the_left_neighbour_only() -> None:
    """Each node sends a heartbeat to its left neighbour only, not to all of its leaf set (4.1)."""
    seen = [effect for _, effect in node_among().until(2.0, hearing=AROUND)]
    assert told(seen, m.Heartbeat) == {"7c"}


def test_the_right_neighbours_silence_is_suspicious_and_nobody_elses() -> None:
    """If a node does not hear from its right neighbour for T_ls + T_o, it probes it (4.1)."""
    for silent, expected in (("84", {"84"}), ("7c", set()), ("88", set())):
        node = node_among()
        seen = node.until(P.silence_max_s + 0.1, hearing=[member for member in AROUND if member != silent])
        assert suspected([effect for _, effect in seen]) == expected


def test_any_message_to_the_left_neighbour_stands_for_a_heartbeat() -> None:
    """Messages between two nodes replace failure-detection traffic: heartbeats and probes are suppressed (4.1)."""
    node = node_among()
    for _ in range(10):
        effects = node.route("7b")
        ((_, route),) = sent(effects, m.Route)
        node.hear("7c", m.RouteAck(route.sequence))
        seen = node.until(node.now + P.heartbeat_interval_s / 2, hearing=AROUND)
        assert not sent((effect for _, effect in seen), m.Heartbeat)


def test_a_table_entry_that_was_heard_within_t_rt_is_not_probed() -> None:
    """Any message received from a routing-table entry makes its liveness probe needless (4.1)."""
    silent, heard = node_among(), node_among()
    for node in (silent, heard):
        node.learn("21", 0.01)
    long_s = 1.5 * P.table_probe_max_s
    assert "21" in told([effect for _, effect in silent.until(long_s, hearing=AROUND)], m.Ping)
    assert "21" not in told([effect for _, effect in heard.until(long_s, hearing=[*AROUND, "21"])], m.Ping)


@pytest.mark.parametrize(("session_s", "nodes"), [(60, 1_000), (5 * 60, 10_000), (15 * 60, 100_000)])
def test_t_rt_is_the_longest_period_that_keeps_raw_loss_at_its_target(session_s: float, nodes: int) -> None:
    """L_r = 1 - (1 - P_f(T_ls + (r + 1) T_o)) (1 - P_f(T_rt + (r + 1) T_o)) ** (h - 1), solved for T_rt; h = 15/16 log16 N (4.1)."""
    rate, hops = 1 / session_s, 15 / 16 * log(nodes, 16)
    period_s = probe_period_s(rate, nodes, P)
    table, leaf = unnoticed(period_s + P.trial_max_s, rate), unnoticed(P.silence_max_s + P.trial_max_s, rate)
    loss = 1 - (1 - leaf) * (1 - table) ** (hops - 1)
    assert P.silence_max_s < period_s < P.table_probe_max_s
    assert loss == pytest.approx(P.raw_loss_target)


def test_t_rt_has_limits() -> None:
    """T_rt is never below T_ls + T_o, and we bound it above: even in a ring without deaths an entry is heard of now and then (4.1)."""
    assert probe_period_s(1.0, 10_000, P) == P.silence_max_s
    assert probe_period_s(1e-9, 10_000, P) == P.table_probe_max_s


def test_t_rt_is_longer_in_a_quiet_ring_and_shorter_where_nodes_die() -> None:
    """The failure rate is estimated from the last failures seen, and T_rt follows it (4.1): at once, and to the formula's value."""
    node = node_among()
    entries = [f"{digit}0" for digit in "123456abcdef"]
    for entry in entries:
        node.learn(entry, 0.01)
    node.until(20.0, hearing=[*AROUND, *entries])
    upkeep = node.pastry.upkeep
    assert upkeep.period_s == P.table_probe_max_s
    began = node.now
    for lost in range(1, 9):
        node.lose(entries[lost - 1])
        assert entries[lost - 1] not in {member.id.short[:2] for member in node.pastry.table}
        node.until(began + 2 * P.verdict_max_s * lost, hearing=[*AROUND, *entries[lost:]])
    # Nine deaths, the one that may come now among them, in all the time: before there were sixteen, MSPastry counts from the join.
    known = len({*(member.id for member in node.pastry.table), *(member.id for member in node.pastry.leaf_set)})
    rate = 9 / (known * (node.now + P.row_interval_s))
    assert upkeep.period_s == pytest.approx(probe_period_s(rate, upkeep.nodes(), P), rel=0.15)
    assert upkeep.period_s < 0.8 * P.table_probe_max_s


def test_who_refused_costs_no_timeout_and_a_burst_is_one_event() -> None:
    """Ours: mu is of deaths in silence, and those of one moment say nothing of how soon the next will come (failure_rate.py)."""
    node = node_among()
    entries = [f"{digit}0" for digit in "123456abcdef"]
    for entry in entries:
        node.learn(entry, 0.01)
    node.until(60.0, hearing=[*AROUND, *entries])
    before_s = node.pastry.upkeep.period_s
    for entry in entries[:4]:
        node.kill(entry)
    assert node.pastry.upkeep.period_s == before_s
    for entry in entries[4:8]:
        node.lose(entry)
    assert {member.id.short[:2] for member in node.pastry.table} >= set(entries[8:])
    assert not {member.id.short[:2] for member in node.pastry.table} & set(entries[:8])
    assert node.pastry.upkeep._rate.per_peer(1, node.now) < 3 / (node.now + P.row_interval_s)


def test_the_number_of_nodes_is_estimated_from_the_density_of_the_leaf_set() -> None:
    """N is estimated from the density of nodeIds in the leaf set (4.1)."""
    assert node_among().pastry.upkeep.nodes() == pytest.approx(64)
    assert Fed("81", "82", "7f", "7e", parameters=SMALL).pastry.upkeep.nodes() == pytest.approx(256)


def test_leaf_sets_are_repaired_eagerly_and_tables_lazily() -> None:
    """Consistency needs leaf sets only: these are repaired at once, table entries when they are needed or in the background (4.1)."""
    node = node_among()
    for entry in ("10", "20", "30"):
        node.learn(entry, 0.01)
    assert len(sent(node.kill("20"), m.LeafProbe)) == 0
    assert len(sent(node.kill("10"), m.RowRequest)) == 0, "in the background"
    assert len(told(node.kill("84"), m.LeafProbe)) >= 3


# --- 4.2 Low delay: proximity neighbour selection ---------------------------------------------------------------------


def test_distance_is_measured_by_one_side_and_told_to_the_other() -> None:
    """When i has measured the round trip to j, it sends the value to j, which considers i for its own table without a probe (4.2)."""
    node = node_among()
    assert told(node.hear("84", m.RowReply(0, (peer("21"),))), m.Ping) == {"21"}
    node.now += 0.030
    assert sent(node.hear("21", m.Pong()), m.Measured) == [(peer("21"), m.Measured(30_000))]

    other = node_among()
    other.hear("21", m.Measured(30_000))
    assert other.pastry.proximity.rtt_s(node_id("21")) == pytest.approx(0.030)
    assert other.pastry.table.get(node_id("21")) == peer("21")


def test_own_measurements_stand_above_what_is_told() -> None:
    """The value told is a symmetric guess; who has measured keeps its own (4.2)."""
    node = node_among()
    node.hear("84", m.RowReply(0, (peer("21"),)))
    node.now += 0.030
    node.hear("21", m.Pong())
    node.hear("21", m.Measured(1))
    assert node.pastry.proximity.rtt_s(node_id("21")) == pytest.approx(0.030)


def test_gossip_of_rows_is_constrained() -> None:
    """Candidates come from rows of nodes that are in the table already, few at a time: the cost of finding near nodes is bounded (4.2)."""
    node = node_among()
    for entry in ("10", "20", "30"):
        node.learn(entry, 0.01)
    others = tuple(peer(f"{row}{column}") for row in "123" for column in "123456")
    assert len(sent(node.hear("10", m.RowReply(0, others)), m.Ping)) <= MEASURED_AT_ONCE


def test_a_candidate_for_a_free_place_is_heard_before_it_is_taken() -> None:
    """As with leaf sets, no entry is taken over from others unheard: stale entries do not spread (4.2)."""
    node = node_among()
    assert told(node.hear("84", m.RowReply(0, (peer("21"),))), m.Ping) == {"21"}
    assert node.pastry.table.get(node_id("21")) is None

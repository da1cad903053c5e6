"""Upkeep of the routing table, rule by rule (numbers as in table_upkeep.py; Pastry 2.5, MSPastry 4.1 and 4.2)."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.identifiers import RING, NodeId, Peer
from protocol.overlay import effects as fx
from protocol.overlay.routing_table import NEARER
from protocol.overlay.table_upkeep import ASKED_FOR_A_REPAIR, MEASURED_AT_ONCE, PINGS_MAX, REPAIRS_MAX, TableUpkeep
from protocol.wire.messages import Measured, Ping, RowReply, RowRequest
from tests.overlay.ring import Ring, among
from tests.overlay.scene import ME, P, of, peer, sent

A, B = peer(0x90), peer(0x70)
FIRST, SECOND = peer(0x31), peer(0x35)
"""For the same place: row 0, digit 3."""
ROW_0 = tuple(peer(digit << 4) for digit in (1, 2, 4, 5, 6))
ROW_1 = tuple(peer(0x80 + digit) for digit in (1, 2, 3))


def with_table(*known: Peer) -> tuple[Ring, TableUpkeep]:
    ring = among(A, B)
    for entry in known:
        ring.pastry.table.insert(entry)
    return ring, ring.pastry.upkeep


def pong(upkeep: TableUpkeep, who: Peer, rtt_s: float, now: float = 1.0) -> list[fx.Effect]:
    """It is pinged, and answers after rtt_s."""
    assert upkeep.ping(who, now) == [fx.Send(who, Ping())]
    return upkeep.pong_received(who, now + rtt_s)


def pinged(effects: list[fx.Effect]) -> list[Peer]:
    return [to for to, _ in sent(effects, Ping)]


def asked(effects: list[fx.Effect]) -> list[tuple[Peer, int]]:
    return [(to, request.row) for to, request in sent(effects, RowRequest)]


def repairing(upkeep: TableUpkeep, dead: Peer, now: float) -> list[fx.Effect]:
    """It dies, and its place comes up for repair."""
    assert upkeep.died(dead, now, in_silence=True) == []
    when = upkeep.deadlines.when(("repair", dead.id))
    assert when is not None
    assert now <= when <= now + P.exchange_interval_s
    return upkeep.on_timer(when)


# --- rules 1 and 2 ----------------------------------------------------------------------------------------------------


def test_rule_1_candidates_are_pinged_and_enter_with_their_pong() -> None:
    ring, upkeep = with_table()
    assert upkeep.consider(SECOND, 10.1) == [fx.Send(SECOND, Ping())]
    assert upkeep.consider(SECOND, 10.2) == [], "once"
    assert ring.pastry.table.get(SECOND.id) is None
    upkeep.pong_received(SECOND, 10.3)
    assert ring.pastry.table.get(SECOND.id) == SECOND


def test_rule_1_the_measurer_tells_the_other_and_the_other_believes_it() -> None:
    """MSPastry 4.2: distance is symmetric. One ping measures for two."""
    _, ours = with_table()
    [(to, told)] = sent(pong(ours, FIRST, 0.0042), Measured)
    assert (to, told) == (FIRST, Measured(4200))
    ring, theirs = with_table()
    assert theirs.measured(A, told.rtt_us) == []
    assert ring.pastry.proximity.rtt_s(A.id) == pytest.approx(0.0042)
    assert not sent(pong(ours, FIRST, 0.0050, 2.0), Measured), "once: later pings are for its life"


@pytest.mark.parametrize("rtt_us", [-1, 1 << 41, 2**63])
def test_rule_1_a_round_trip_that_cannot_be_is_not_believed(rtt_us: int) -> None:
    ring, upkeep = with_table()
    upkeep.measured(FIRST, rtt_us)
    assert ring.pastry.proximity.rtt_s(FIRST.id) is None
    assert ring.pastry.table.get(FIRST.id) is None


@pytest.mark.parametrize("entry", [True, False], ids=["entry", "stranger"])
def test_rule_1_silence_makes_a_suspect_of_an_entry_and_a_stranger_nobodys_concern(entry: bool) -> None:
    ring, upkeep = with_table(*([FIRST] if entry else []))
    upkeep.ping(FIRST, 1.0)
    seen = [effect for _, effect in ring.until(1.0 + P.probe_timeout_s)]
    assert (fx.Suspect(FIRST, "silent when pinged") in seen) == entry
    assert upkeep.pong_received(FIRST, 2.0) == [], "too late to be a measurement"


def test_rule_1_a_pong_that_nobody_asked_for_is_nothing() -> None:
    ring, upkeep = with_table()
    assert upkeep.pong_received(FIRST, 1.0) == []
    assert ring.pastry.table.get(FIRST.id) is None


def test_rule_1_a_stranger_whose_connection_is_lost_makes_room_and_an_entry_is_waited_for() -> None:
    """No connection, no pong. Of an entry the detector hears, and its silence counts all the same."""
    _, upkeep = with_table(FIRST)
    stranger = peer(0x40)
    upkeep.ping(FIRST, 1.0)
    upkeep.ping(stranger, 1.0)
    upkeep.lost(stranger)
    upkeep.lost(FIRST)
    assert upkeep.pinged.keys() == {FIRST.id}
    assert upkeep.ping(stranger, 1.1) == [fx.Send(stranger, Ping())], "another time it may be asked again"
    upkeep.check_invariants()


def test_rule_1_the_dead_are_not_pinged_and_not_more_than_the_limit_at_a_time() -> None:
    ring, upkeep = with_table()
    ring.dead.add(FIRST)
    assert upkeep.ping(FIRST, 1.0) == []
    crowd = [Peer(NodeId(port + 1), "h", 1, 1) for port in range(2 * PINGS_MAX)]
    pings = sent((effect for other in crowd for effect in upkeep.ping(other, 1.0)), Ping)
    assert [to for to, _ in pings] == crowd[:PINGS_MAX]
    upkeep.pong_received(crowd[0], 1.1)
    assert upkeep.ping(crowd[-1], 1.1) == [fx.Send(crowd[-1], Ping())], "an answer makes room for another question"
    assert upkeep.ping(crowd[-2], 1.1) == []


def test_rule_2_of_two_for_one_place_the_nearer_stays() -> None:
    """Pastry 2.5, with a margin that noise does not cross."""
    ring, upkeep = with_table()
    pong(upkeep, FIRST, 0.010)
    pong(upkeep, SECOND, 0.010 * NEARER + 0.0001)
    assert ring.pastry.table.at((0, 3)) == FIRST, "hardly nearer"
    third = peer(0x3A)
    pong(upkeep, third, 0.005)
    assert ring.pastry.table.at((0, 3)) == third
    assert ring.pastry.table.get(FIRST.id) is None
    upkeep.measured(SECOND, 1000)
    assert ring.pastry.table.at((0, 3)) == third, "SECOND was measured here, its own word does not count"
    upkeep.measured(peer(0x3C), 1000)
    assert ring.pastry.table.at((0, 3)) == peer(0x3C), "of one that we have not measured, its word does"


def test_rule_2_one_whose_distance_is_known_takes_the_place_of_one_whose_is_not() -> None:
    ring, upkeep = with_table(FIRST)
    pong(upkeep, SECOND, 1.0)
    assert ring.pastry.table.at((0, 3)) == SECOND


# --- rule 3 -----------------------------------------------------------------------------------------------------------


def quiet_hours(ring: Ring, until_s: float) -> list[tuple[float, Peer]]:
    """Nobody speaks but to answer a ping, within a millisecond. Who was pinged when."""
    upkeep, pings = ring.pastry.upkeep, list[tuple[float, Peer]]()
    while (when := upkeep.next_deadline()) is not None and when <= until_s:
        for to in pinged(upkeep.on_timer(when)):
            pings.append((when, to))
            ring.heard[to.id] = when + 0.001
            upkeep.pong_received(to, when + 0.001)
        upkeep.check_invariants()
    return pings


def test_rule_3_every_entry_is_heard_within_t_rt() -> None:
    """In quiet hours too, when nothing but our pings makes them speak; and nobody is pinged oftener than that needs."""
    ring, upkeep = with_table(*ROW_0)
    assert upkeep.period_s == P.table_probe_max_s, "in so small a ring no hop goes by table"
    pings = quiet_hours(ring, 20 * P.table_probe_max_s)
    for entry in ROW_0:
        times = [when for when, to in pings if to == entry and when > P.table_probe_max_s]
        assert max(after - before for before, after in pairwise(times)) <= P.table_probe_max_s + 0.01
        assert 18 <= len(times) <= 21


def test_rule_3_one_that_spoke_just_before_its_turn_is_heard_again_within_t_rt_of_that() -> None:
    """The worst case: whenever it spoke, its next turn but one is not later than T_rt."""
    ring, upkeep = with_table(*ROW_0)
    quiet_hours(ring, 2 * P.table_probe_max_s)
    entry = ROW_0[0]
    for shift in range(20):
        spoke = (4 + 3 * shift + shift / 20) * P.table_probe_max_s
        quiet_hours(ring, spoke)
        ring.heard[entry.id] = spoke
        next_ping = min(when for when, to in quiet_hours(ring, spoke + 2 * P.table_probe_max_s) if to == entry)
        assert next_ping - spoke <= upkeep.period_s + 0.01


def test_rule_3_traffic_suppresses_the_probes() -> None:
    """MSPastry 4.1: at a high rate of look-ups, hardly a probe is sent."""
    ring, upkeep = with_table(*ROW_0)
    talkative, now, pings = ROW_0[0], 0.0, list[Peer]()
    while now < 10 * upkeep.period_s:
        ring.heard[talkative.id] = now
        now += upkeep.period_s / 5
        pings += [to for _, to in quiet_hours(ring, now)]
    assert talkative not in pings
    assert set(ROW_0[1:]) <= set(pings)


def crowded() -> tuple[Ring, TableUpkeep]:
    """In a ring of about a million, which the leaf set tells by how dense it lies."""
    ring, upkeep = with_table(*ROW_0)
    for step in range(-P.side, P.side + 1):
        ring.pastry.leaf_set.insert(Peer(NodeId(ME.id + step * (RING >> 20)), "h", 1, 1))
    upkeep.begin(0.0)
    return ring, upkeep


def test_rule_3_the_size_of_the_ring_is_told_by_the_leaf_set() -> None:
    assert crowded()[1].nodes() == pytest.approx(2**20)
    assert with_table()[1].nodes() == 3


def test_rule_3_the_period_follows_the_deaths_that_are_seen() -> None:
    """A newcomer supposes that all was calm before it came; then it grows with the quiet; then they die, and it falls."""
    ring, upkeep = crowded()
    new_s = upkeep.period_s
    assert 5 * P.silence_max_s < new_s < P.table_probe_max_s
    quiet_hours(ring, 4000.0)
    relaxed_s = upkeep.period_s
    assert relaxed_s > new_s
    for death in range(16):
        ring.pastry.table.insert(entry := peer(0xC0 + death))
        upkeep.died(entry, 4000.0 + 2 * P.verdict_max_s * death, in_silence=True)
    assert upkeep.period_s < relaxed_s / 10, "at once"


def test_rule_3_an_entry_that_does_not_answer_is_suspected() -> None:
    _, upkeep = crowded()
    suspected = set[Peer]()
    while (when := upkeep.next_deadline()) is not None and when < 2 * P.table_probe_max_s:
        suspected |= {effect.peer for effect in of(fx.Suspect, upkeep.on_timer(when))}
    assert set(ROW_0) <= suspected


# --- rule 4 -----------------------------------------------------------------------------------------------------------


def test_rule_4_when_an_entry_dies_others_of_its_row_are_asked_then_one_of_the_next() -> None:
    """Pastry 2.5: each that has nobody for the place leads to the next; then it is left to the exchange."""
    _, upkeep = with_table(FIRST, *ROW_0, *ROW_1)
    effects, order = repairing(upkeep, FIRST, 1.0), []
    while asked(effects):
        [(to, row)] = asked(effects)
        assert row == 0
        order.append(to)
        effects = upkeep.row_reply(RowReply(0, ()), 1.1)
    assert len(order) == len(set(order)) == ASKED_FOR_A_REPAIR
    assert set(order[:-1]) <= {*ROW_0, A, B}
    assert order[-1] in ROW_1


def test_rule_4_nobody_is_asked_where_the_place_was_taken_meanwhile() -> None:
    ring, upkeep = with_table(FIRST, *ROW_0)
    assert upkeep.died(FIRST, 1.0, in_silence=True) == []
    assert not asked(upkeep.row_reply(RowReply(0, ()), 1.0)), "an exchange that had been begun before"
    ring.pastry.table.insert(SECOND)
    assert not asked(upkeep.on_timer(1.0 + P.exchange_interval_s))


def test_rule_4_somebody_for_the_place_ends_the_repair() -> None:
    ring, upkeep = with_table(FIRST, *ROW_0, *ROW_1)
    assert asked(repairing(upkeep, FIRST, 1.0))
    effects = upkeep.row_reply(RowReply(0, (ME, ROW_0[0], SECOND)), 1.1)
    assert pinged(effects) == [SECOND], "pinged first; neither we ourselves nor who is in the table already"
    assert not asked(effects), "its answer is waited for"
    upkeep.pong_received(SECOND, 1.2)
    assert ring.pastry.table.at((0, 3)) == SECOND
    assert not asked(upkeep.row_reply(RowReply(0, ()), 1.3))


def test_rule_4_with_its_row_empty_the_next_row_alone_is_asked() -> None:
    ring, upkeep = with_table(FIRST, *ROW_1)
    for entry in (A, B):
        ring.pastry.table.remove(entry.id)
    [(to, row)] = asked(repairing(upkeep, FIRST, 1.0))
    assert to in ROW_1
    assert row == 0


def test_rule_4_nobody_is_asked_for_one_that_was_in_no_place() -> None:
    _, upkeep = with_table(*ROW_0)
    upkeep.died(FIRST, 1.0, in_silence=True)
    assert ("repair", FIRST.id) not in upkeep.deadlines
    later = Peer(ROW_0[0].id, "h", 1, 2)
    _, upkeep = with_table(later)
    upkeep.died(ROW_0[0], 1.0, in_silence=True)
    assert ("repair", later.id) not in upkeep.deadlines, "an earlier life of an entry"


def test_rule_4_a_place_that_was_filled_in_another_way_is_repaired_again() -> None:
    """The one that was asked for the first repair died itself, and never answered."""
    ring, upkeep = with_table(FIRST, *ROW_0)
    assert asked(repairing(upkeep, FIRST, 1.0))
    ring.pastry.table.insert(SECOND)
    assert asked(repairing(upkeep, SECOND, 4.0))


def test_rule_4_repairs_are_bounded() -> None:
    """Half of the ring dies at once: the row exchange finds the rest."""
    ring, upkeep = with_table()
    rows = [Peer(NodeId(ME.id ^ (digit << (124 - 4 * row))), "h", 1, 1) for row in range(12) for digit in range(1, 12)]
    for entry in rows:
        ring.pastry.table.insert(entry)
    for entry in rows:
        upkeep.died(entry, 1.0, in_silence=True)
        ring.pastry.check_invariants()
    assert len(upkeep._repairs) <= REPAIRS_MAX


# --- rule 5 -----------------------------------------------------------------------------------------------------------


def test_rule_5_one_row_after_the_other_a_node_of_the_row_is_asked_for_it() -> None:
    ring, _ = with_table(*ROW_0, *ROW_1)
    questions = [asked([e])[0] for _, e in ring.until(12 * P.row_interval_s) if asked([e])]
    rows = [row for _, row in questions]
    assert all(row != after for row, after in pairwise(rows)), "in turn"
    assert set(rows) == {0, 1}
    assert 9 <= len(rows) <= 17, "at about row_interval_s, with jitter"
    assert all(to in ({*ROW_0, A, B} if row == 0 else ROW_1) for to, row in questions)


def test_rule_5_asked_for_a_row_we_tell_it() -> None:
    _, upkeep = with_table(*ROW_0, *ROW_1)
    assert upkeep.row_request(A, RowRequest(1)) == [fx.Send(A, RowReply(1, ROW_1))]
    for row in (7, -1, 1 << 40):
        assert upkeep.row_request(A, RowRequest(row)) == [fx.Send(A, RowReply(row, ()))]


def test_rule_5_free_places_are_pinged_and_a_few_of_those_whose_distance_is_unknown() -> None:
    """MSPastry 4.2, constrained gossip: a nearer one is found in time, and no exchange costs more than a few pings."""
    _, upkeep = with_table(*ROW_0)
    free = (peer(0xB0), peer(0xD0))
    rivals = tuple(peer((digit << 4) + 1 + other) for digit in (1, 2, 4, 5) for other in range(3))
    effects = upkeep.row_reply(RowReply(0, (*free, *rivals)), 1.0)
    assert set(free) <= set(pinged(effects))
    assert len(pinged(effects)) == len(free) + MEASURED_AT_ONCE


def test_rule_5_one_whose_distance_is_known_is_not_measured_again() -> None:
    ring, upkeep = with_table(*ROW_0)
    ring.pastry.proximity.sample(peer(0x11).id, 0.5)
    assert pinged(upkeep.row_reply(RowReply(0, (peer(0x11),)), 1.0)) == []


def test_rule_5_a_reply_of_any_length_costs_a_bounded_number_of_pings() -> None:
    """P7."""
    _, upkeep = with_table()
    many = tuple(Peer(NodeId(leading << 112), "h", 1, 1) for leading in range(1, 5000))
    assert len(pinged(upkeep.row_reply(RowReply(0, many), 1.0))) <= 4 * P.leaf_set_size


# --- whatever comes ---------------------------------------------------------------------------------------------------

STEPS = st.lists(
    st.tuples(st.sampled_from(["ping", "pong", "told", "row", "died", "wait"]), st.integers(1, 60), st.floats(0, 1)), max_size=60
)


@given(STEPS)
@settings(deadline=None, max_examples=100)
def test_whatever_comes_every_ping_ends_and_the_table_holds_whom_it_has_heard(steps: list[tuple[str, int, float]]) -> None:
    (ring, upkeep), now, heard = with_table(), 0.0, {A.id, B.id}
    for what, who, size in steps:
        other = peer(4 * who)
        if other.id == ME.id:
            continue
        match what:
            case "ping":
                upkeep.ping(other, now)
            case "pong":
                heard |= {other.id}
                upkeep.pong_received(other, now)
            case "told":
                heard |= {other.id}
                upkeep.measured(other, int(size * 1e5))
            case "row":
                upkeep.row_reply(RowReply(who % 3, tuple(peer(4 * ((who + step) % 60) + 1) for step in range(int(8 * size)))), now)
            case "died":
                upkeep.died(other, now, in_silence=True)
            case _:
                now += size
                ring.until(now)
        ring.pastry.check_invariants()
        assert {entry.id for entry in ring.pastry.table} <= heard
    ring.until(now + P.probe_timeout_s)
    assert all(since > now for _, since in upkeep.pinged.values()), "no ping outlasts its time"

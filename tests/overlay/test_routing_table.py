"""The routing table (Pastry, section 2.2)."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.identifiers import RING, NodeId, Peer, digit, shared_prefix
from protocol.overlay.routing_table import NEARER, RoutingTable

BASE = 0x0123456789ABCDEF0123456789ABCDEF
CLOSE = st.tuples(st.integers(0, 31), st.integers(0, 15), st.integers(0, 2)).map(
    lambda t: NodeId((BASE ^ (t[1] << (4 * (31 - t[0])))) ^ (t[2] if t[0] < 31 else 0))
)
"""Ids that share any number of digits with BASE, so that slots collide."""
IDS = st.one_of(CLOSE, st.integers(0, RING - 1).map(NodeId))
STEPS = st.lists(st.tuples(st.sampled_from(["insert", "insert", "remove"]), IDS, st.integers(1, 3)), max_size=60)


@given(STEPS, IDS)
@settings(deadline=None, max_examples=150)
def test_each_entry_is_in_the_row_of_its_prefix_and_the_column_of_its_next_digit(steps: list[tuple[str, NodeId, int]], key: NodeId) -> None:
    table, model = RoutingTable(NodeId(BASE)), dict[tuple[int, int], Peer]()
    for what, identifier, life in steps:
        if identifier == BASE:
            assert not table.insert(Peer(identifier, "h", 1, life))
            assert not table.remove(identifier)
            assert not table.wants(identifier)
            continue
        row = shared_prefix(BASE, identifier)
        slot, peer = (row, digit(identifier, row)), Peer(identifier, "h", 1, life)
        entry = model.get(slot)
        assert table.wants(identifier) == (entry is None)
        if what == "remove":
            assert table.remove(identifier) == (entry is not None and entry.id == identifier)
            if entry is not None and entry.id == identifier:
                del model[slot]
        else:
            taken = entry is None or (entry.id == identifier and entry.incarnation < life)
            assert table.insert(peer) == taken
            if taken:
                model[slot] = peer
    assert sorted(table, key=lambda peer: peer.id) == sorted(model.values(), key=lambda peer: peer.id)
    assert len(table) == len(model)
    for index in range(32):
        assert table.row(index) == tuple(model[slot] for slot in sorted(model) if slot[0] == index)
    towards = table.towards(key)
    assert towards is None or shared_prefix(towards.id, key) > shared_prefix(BASE, key), "a hop by the table gains a digit"
    assert towards == (model.get((shared_prefix(BASE, key), digit(key, shared_prefix(BASE, key)))) if key != BASE else None)


def test_an_entry_in_place_is_kept_until_it_dies_where_no_distance_is_known() -> None:
    """A later arrival with the same prefix is no reason to drop a node that is known to work."""
    table = RoutingTable(NodeId(0))
    first, second = Peer(NodeId(0xA << 124), "h", 1, 1), Peer(NodeId((0xA << 124) + 1), "h", 2, 1)
    assert table.insert(first)
    assert not table.insert(second)
    assert not table.remove(second.id)
    assert table.get(second.id) is None
    assert table.remove(first.id)
    assert table.insert(second)
    assert table.get(first.id) is None


DISTANCES = st.one_of(st.none(), st.floats(0, 1))


@given(st.lists(st.tuples(st.integers(0, 5), DISTANCES), min_size=1, max_size=30))
@settings(deadline=None)
def test_of_two_for_one_place_the_nearer_stays(arrivals: list[tuple[int, float | None]]) -> None:
    """Pastry 2.5. A known distance beats an unknown one; a newcomer must be nearer by NEARER, so that noise moves nobody."""
    distance = dict[NodeId, float | None]()
    table, holder = RoutingTable(NodeId(0), distance.get), None
    for which, way_s in arrivals:
        newcomer = Peer(NodeId((0xA << 124) + which), "h", which, 1)
        if newcomer.id not in distance:
            distance[newcomer.id] = way_s
        ours, theirs = distance[newcomer.id], distance[holder.id] if holder else None
        nearer = ours is not None and (theirs is None or ours < NEARER * theirs)
        taken = holder is None or (newcomer != holder and nearer)
        assert table.insert(newcomer) == taken
        holder = newcomer if taken else holder
        assert list(table) == [holder]
        assert table.at((0, 0xA)) == table.get(holder.id) == holder


def test_who_is_replaced_is_gone_from_every_view_of_the_table() -> None:
    way_s = {NodeId(0xA << 124): 0.1, NodeId((0xA << 124) + 1): 0.01}
    table = RoutingTable(NodeId(0), way_s.get)
    far, near = (Peer(identifier, "h", 1, 1) for identifier in way_s)
    assert table.insert(far)
    assert table.insert(near)
    assert table.get(far.id) is None
    assert not table.remove(far.id)
    assert table.towards(0xA << 124) == near
    assert table.row(0) == (near,)
    assert not table.insert(far)


def test_rows_are_counted_to_the_last_that_has_entries() -> None:
    table = RoutingTable(NodeId(0))
    assert table.rows == 0
    table.insert(Peer(NodeId(1 << 116), "h", 1, 1))
    assert table.rows == 3
    assert table.row(0) == table.row(1) == ()
    assert table.slot(1 << 116) == (2, 1)
    table.remove(NodeId(1 << 116))
    assert table.rows == 0

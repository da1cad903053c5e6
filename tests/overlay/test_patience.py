"""A node that is not well multiplies its timeouts by the failure detector's patience: those of the ring and of the trees, too."""

from __future__ import annotations

import pytest

from protocol.identifiers import NodeId, Peer
from protocol.overlay import effects as fx
from protocol.wire.messages import Datagram, LeafProbe, Ping, Route, TreeJoin
from tests.overlay.grove import TREE, Node
from tests.overlay.ring import Ring, among
from tests.overlay.scene import ME, P, member, of, peer, sent

A, B, FAR = peer(0x90), peer(0x70), peer(0x31)


def unwell(patience: int) -> Ring:
    ring = among(A, B)
    ring.settle()
    ring.patience = patience
    return ring


@pytest.mark.parametrize("patience", [1, 3])
def test_the_next_hop_is_given_more_time_to_acknowledge(patience: int) -> None:
    ring = unwell(patience)
    key = NodeId(A.id + 1)
    ((hop, _),) = sent(ring.pastry.forwarding.route(Route(key, Datagram(b"x")), 1.0), Route)
    first_sequence = 1
    assert ring.pastry.forwarding.deadlines.when(first_sequence) == pytest.approx(
        1.0 + patience * ring.pastry.proximity.ack_timeout_s(hop.id)
    )


@pytest.mark.parametrize("patience", [1, 3])
def test_who_is_pinged_or_probed_is_given_more_time_to_answer(patience: int) -> None:
    ring = unwell(patience)
    assert sent(ring.pastry.upkeep.ping(FAR, 1.0), Ping)
    assert ring.pastry.upkeep.deadlines.when(("ping", FAR.id)) == pytest.approx(1.0 + patience * P.probe_timeout_s)
    assert sent(ring.pastry.meet(peer(0x81), 1.0), LeafProbe)
    assert ring.pastry.deadlines.when(("probe", peer(0x81).id)) == pytest.approx(1.0 + patience * P.probe_timeout_s)


def test_a_join_of_a_tree_waits_longer_for_its_answer() -> None:
    waits = []
    for health in (0, 2):
        node = Node()
        node.judge.health = health
        assert sent(node.scribe.join(TREE, member(ME), 1.0), TreeJoin)
        due = node.scribe.deadlines.when(("attach", TREE))
        assert due is not None
        waits.append(due - 1.0)
    assert waits[1] == pytest.approx(3 * waits[0]), "of the same chance"


@pytest.mark.parametrize("health", [0, 2])
def test_the_dial_of_a_suspect_is_told_how_patient_it_is_to_be(health: int) -> None:
    judge = Node().judge
    judge.health = health
    suspect: Peer = peer(0x90)
    assert of(fx.Dial, judge.suspect(suspect, "reset", 1.0)) == [fx.Dial(suspect, 1 + health)]
    assert judge.deadlines.when(("trial", suspect.id)) == pytest.approx(1.0 + (1 + health) * P.trial_max_s)

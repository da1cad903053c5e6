"""Cuts that outlast every timeout and the memory of many deaths, with preset lan."""

from __future__ import annotations

from random import Random

from protocol.identifiers import NodeId
from protocol.overlay import effects as fx
from protocol.overlay import events as ev
from protocol.parameters import lan
from scripts.simulation.cluster import Cluster, Process

REPLACED = 90
"""On each side, during the cut: more than the dead that anybody remembers."""
OLD = 5
"""On each side so many live through all of it."""


def ring(seed: int, nodes: int) -> tuple[Cluster, Random, list[Process]]:
    """Nodes that joined through the first, which has no seeds."""
    simulation, rng = Cluster(seed, lan(), check_every=97), Random(seed)
    first = simulation.start("first", NodeId(rng.getrandbits(128)))
    others = []
    for index in range(nodes - 1):
        others.append(simulation.start(f"node-{index}", NodeId(rng.getrandbits(128)), [first.peer.address]))
        simulation.clock.run(0.05)
    assert simulation.clock.run_until(simulation.view.ring_is_right, 60), simulation.story()
    return simulation, rng, [first, *others]


def test_a_cut_heals_though_most_nodes_were_replaced_meanwhile_and_no_seed_lives() -> None:
    simulation, rng, (first, *others) = ring(5, 41)
    simulation.kill(first)
    assert simulation.clock.run_until(simulation.view.ring_is_right, 60), simulation.story()
    sides = others[::2], others[1::2]
    cut = simulation.network.cut(*(frozenset(process.index for process in side) for side in sides))
    simulation.clock.run(15.0)
    for number in range(REPLACED):
        for side, here, name in zip(sides, (cut.here, cut.there), ("here", "there"), strict=True):
            simulation.kill(side.pop(OLD), silent=number % 2 == 0)
            newcomer = simulation.start(f"{name}-{number}", NodeId(rng.getrandbits(128)), [p.peer.address for p in rng.sample(side, 2)])
            cut.here.discard(newcomer.index)
            cut.there.discard(newcomer.index)
            here.add(newcomer.index)
            side.append(newcomer)
        simulation.clock.run(4.0)
    simulation.clock.run(20.0)
    ids = [{process.peer.id for process in side} for side in sides]
    assert all(ids[0].isdisjoint(member.id for member in process.node.pastry.leaf_set) for process in sides[1]), "they are two rings"
    simulation.network.heal(cut)
    assert simulation.clock.run_until(simulation.view.ring_is_right, 60, 1.0), simulation.story()


def test_who_has_no_seeds_and_lost_everybody_asks_whom_it_knows_before_it_is_a_ring_of_one() -> None:
    simulation, rng, (first, *others) = ring(3, 30)
    cut = simulation.network.cut(frozenset({first.index}), frozenset(process.index for process in others))
    pastry = first.node.pastry
    assert simulation.clock.run_until(lambda: not len(pastry.leaf_set), 60), simulation.story("first")
    first.outcome.clear()
    while not pastry.active:
        simulation.tell(first, ev.RouteMessage(NodeId(rng.getrandbits(128)), b"whose"))
        assert not [told for told in first.outcome if isinstance(told, fx.Delivered)], "it may be cut off: nothing is its own"
        simulation.clock.run(0.25)
    tried = [words for _, words in first.facts if words.startswith("seed_failed")]
    assert len(tried) >= OLD, "it has asked those of its table"
    simulation.network.heal(cut)
    assert simulation.clock.run_until(simulation.view.ring_is_right, 60, 1.0), simulation.story("first")

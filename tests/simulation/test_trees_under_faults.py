"""The trees with a low cap on fan-out, under deaths, lost roots and partitions drawn from a seed: nobody is left out, no order is lost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest

from protocol.identifiers import NodeId, TreeId, agent_id, tree_id
from protocol.overlay import effects as fx
from protocol.overlay import events as ev
from protocol.parameters import loopback
from protocol.wire.messages import RoundOpen
from protocol.wire.values import MemberInfo
from scripts.simulation.cluster import Cluster, Process
from scripts.simulation.terrain import Cut

SEEDS = range(1, 4)
TREE = tree_id("main", "parking")


def cluster(seed: int, nodes: int, *, fan_out_max: int = 4) -> Cluster:
    """A manager and agents, all of them members."""
    simulation = Cluster(seed, replace(loopback(), fan_out_max=fan_out_max))
    simulation.tell(simulation.start("manager", TREE), ev.CreateTree(TREE))
    for index in range(nodes - 1):
        start_agent(simulation, f"agent-{index}")
        simulation.clock.run(0.01)
    assert simulation.clock.run_until(lambda: complete(simulation), 20), simulation.story()
    return simulation


def start_agent(simulation: Cluster, name: str) -> Process:
    agent = simulation.start(name, agent_id("test", name), [simulation.processes["manager"].peer.address])
    join(simulation, agent, TREE)
    return agent


def join(simulation: Cluster, agent: Process, tree: TreeId) -> None:
    simulation.tell(agent, ev.JoinTree(tree, MemberInfo(agent.peer, agent.name, "source", 1)))


def agents(simulation: Cluster) -> list[str]:
    return [process.name for process in simulation.view.awake() if process.node.scribe.trees.get(TREE) is None or process.peer.id != TREE]


def complete(simulation: Cluster) -> bool:
    return simulation.view.ring_is_right() and simulation.view.tree_is_right(TREE)


def crash_inner(simulation: Cluster, rng: Random, most: int) -> list[str]:
    """Nodes that others hang on: the deaths that cost most."""
    inner = [name for name in agents(simulation) if simulation.processes[name].node.scribe.trees[TREE].children]
    chosen = rng.sample(inner, min(most, len(inner)))
    for name in chosen:
        simulation.kill(simulation.processes[name])
    return chosen


def split(simulation: Cluster, here: Iterable[str], there: Iterable[str]) -> Cut:
    """Nothing passes between the two groups."""
    return simulation.network.cut(*(frozenset(simulation.processes[name].index for name in group) for group in (here, there)))


def order(simulation: Cluster, number: int) -> None:
    manager = simulation.processes["manager"]
    simulation.tell(manager, ev.SendMulticast(TREE, RoundOpen("train", number, 1, "exact", manager.peer)))


def check_orders(simulation: Cluster, names: Iterable[str], last: int) -> None:
    """Each once and in order; where one is missing, the next one says so. Nobody has missed the last."""
    for name in names:
        got = [effect for effect in simulation.processes[name].outcome if isinstance(effect, fx.MulticastReceived)]
        rounds = [effect.body.round for effect in got]
        assert rounds == sorted(set(rounds)), f"{name} got {rounds}\n{simulation.story(name)}"
        assert rounds[-1] == last, f"{name} got {rounds}\n{simulation.story(name)}"
        skipped = [after for before, after in pairwise(got) if after.body.round != before.body.round + 1]
        assert all(effect.gap for effect in skipped), f"{name} was not told of a gap: {rounds}\n{simulation.story(name)}"
        assert sum(effect.gap for effect in got) == len(skipped), f"{name} was told of a gap that there is not"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_stream_of_orders_while_inner_nodes_die(seed: int) -> None:
    """One hundred orders in a second or two; those who lost their parent meanwhile get what they missed from the next one."""
    simulation, rng = cluster(seed, 60), Random(seed)
    order(simulation, 0)
    simulation.clock.run(0.1)
    dead: list[str] = []
    for number in range(1, 101):
        order(simulation, number)
        simulation.clock.run(rng.uniform(0.0, 0.04))
        if number in (20, 40, 60):
            dead += crash_inner(simulation, rng, 3)
    assert simulation.clock.run_until(lambda: complete(simulation), 15), simulation.story()
    simulation.clock.run(1.0)
    check_orders(simulation, agents(simulation), 100)
    for name in agents(simulation):
        got = [effect for effect in simulation.processes[name].outcome if isinstance(effect, fx.MulticastReceived)]
        assert len(got) == 101 or any(effect.gap for effect in got), simulation.story(name)
    assert dead


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("fan_out_max", [2, 4])
def test_the_root_is_lost_again_and_again(seed: int, fan_out_max: int) -> None:
    """Most hang where they were pushed, not on their route: without the root, the ways to it lead through each other's descendants."""
    simulation, rng = cluster(seed, 24, fan_out_max=fan_out_max), Random(seed)
    for number in range(2):
        simulation.kill(simulation.processes["manager"])
        crash_inner(simulation, rng, 1)
        simulation.clock.run(rng.choice([0.3, 2.0]))
        hints = [simulation.processes[name].peer.address for name in agents(simulation)[:3]]
        manager = simulation.start("manager", TREE, hints=hints)
        simulation.tell(manager, ev.CreateTree(TREE))
        assert simulation.clock.run_until(lambda: complete(simulation), 15), simulation.story()
        order(simulation, number)
        simulation.clock.run(1.0)
        for name in agents(simulation):
            got = [effect for effect in simulation.processes[name].outcome if isinstance(effect, fx.MulticastReceived)]
            assert got[-1].body.round == number, simulation.story(name)
            assert not got[-1].gap, "the first order of a life lacks nothing"


@pytest.mark.parametrize("seed", SEEDS)
def test_the_root_moves_to_another_host(seed: int) -> None:
    """The manager hangs; it is started elsewhere with the same id; then the old one wakes up."""
    simulation = cluster(seed, 20)
    order(simulation, 0)
    simulation.clock.run(0.2)
    simulation.pause(old := simulation.processes["manager"])
    simulation.clock.run(0.5)
    hints = [simulation.processes[name].peer.address for name in agents(simulation)[:3]]
    manager = simulation.start("manager", TREE, hints=hints, moved=True)
    simulation.tell(manager, ev.CreateTree(TREE))
    members = [simulation.processes[name] for name in agents(simulation)]
    assert simulation.clock.run_until(lambda: simulation.view.tree_is_right(TREE, members), 15), simulation.story()
    simulation.resume(old)
    simulation.clock.run(1.0)
    assert not old.alive
    assert complete(simulation), simulation.story()
    order(simulation, 1)
    simulation.clock.run(1.0)
    for name in agents(simulation):
        got = [effect.body.round for effect in simulation.processes[name].outcome if isinstance(effect, fx.MulticastReceived)]
        assert got == [0, 1], simulation.story(name)


@pytest.mark.parametrize("seed", SEEDS)
def test_two_rootless_halves_merge_into_the_one_tree(seed: int) -> None:
    """The manager dies and the network splits: each half hangs on its closest node, which is no member of the other."""
    simulation = cluster(seed, 20)
    names = agents(simulation)
    simulation.kill(simulation.processes["manager"])
    cut = split(simulation, names[::2], names[1::2])
    simulation.clock.run(4.0)
    simulation.network.heal(cut)
    manager = simulation.start("manager", TREE, hints=[simulation.processes[names[0]].peer.address])
    simulation.tell(manager, ev.CreateTree(TREE))
    assert simulation.clock.run_until(lambda: complete(simulation), 20), simulation.story()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_manager_that_was_cut_off_is_found_again_and_sends_what_was_missed(seed: int) -> None:
    simulation = cluster(seed, 20)
    order(simulation, 0)
    simulation.clock.run(0.2)
    cut = split(simulation, ["manager"], agents(simulation))
    for number in range(1, 4):
        order(simulation, number)
        simulation.clock.run(1.5)
    simulation.network.heal(cut)
    assert simulation.clock.run_until(lambda: complete(simulation), 20), simulation.story()
    simulation.clock.run(1.0)
    check_orders(simulation, agents(simulation), 3)


@pytest.mark.parametrize("seed", SEEDS)
def test_many_trees_on_one_ring(seed: int) -> None:
    """Eight managers, each with its own tree through the same twenty agents; one manager dies, the others do not notice."""
    simulation, rng = cluster(seed, 20), Random(seed)
    seeds = [simulation.processes["manager"].peer.address]
    trees: dict[str, NodeId] = {f"root-{index}": tree_id(f"tree-{index}", "parking") for index in range(8)}
    members = {name: [simulation.processes[agent] for agent in rng.sample(agents(simulation), 10)] for name in trees}
    for name, tree in trees.items():
        simulation.tell(simulation.start(name, tree, seeds), ev.CreateTree(tree))
        for agent in members[name]:
            join(simulation, agent, tree)

    def right(name: str) -> bool:
        return simulation.view.tree_is_right(trees[name], members[name])

    assert simulation.clock.run_until(lambda: all(map(right, trees)), 15), simulation.story()
    simulation.kill(simulation.processes["root-0"])
    simulation.clock.run(1.0)
    assert all(right(name) for name in trees if name != "root-0"), simulation.story()

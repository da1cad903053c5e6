"""The ring, the trees and the replicas at 50 nodes, under crashes drawn from a seed. A failure prints the seed and the trace."""

from __future__ import annotations

from random import Random

import pytest

from protocol.identifiers import Address, NodeId, TreeId, agent_id, tree_id
from protocol.overlay import effects as fx
from protocol.overlay import events as ev
from protocol.wire.codec import decode, encode
from protocol.wire.messages import RoundOpen
from protocol.wire.values import MemberInfo, RecordSummary
from scripts.simulation.cluster import Cluster, Process

SEEDS = range(1, 4)
NODES = 50
TREE = tree_id("main", "parking")


def record(process: Process, version: int, tree: TreeId = TREE) -> RecordSummary:
    return RecordSummary(process.peer.id, tree, version, process.peer.incarnation, version, 0, True, 1000, bytes(32))


def cluster(seed: int, nodes: int = NODES, *, together: bool = False) -> Cluster:
    """A manager whose node has the treeId, and agents that join through it: one after the other, or all at once."""
    simulation = Cluster(seed, codec=(encode, decode))
    manager = simulation.start("manager", TREE)
    simulation.tell(manager, ev.CreateTree(TREE))
    for index in range(nodes - 1):
        start_agent(simulation, f"agent-{index}")
        if not together:
            simulation.clock.run(0.01)
    assert simulation.clock.run_until(lambda: whole(simulation), 20), simulation.story()
    return simulation


def start_agent(simulation: Cluster, name: str, seeds: tuple[Address, ...] | None = None) -> Process:
    if seeds is None:
        seeds = (simulation.processes["manager"].peer.address,)
    agent = simulation.start(name, agent_id("test", name), seeds)
    simulation.tell(agent, ev.JoinTree(TREE, MemberInfo(agent.peer, name, "source", 1)))
    return agent


def agents(simulation: Cluster) -> list[str]:
    return [process.name for process in simulation.view.awake() if process.name != "manager"]


def whole(simulation: Cluster) -> bool:
    return simulation.view.ring_is_right() and simulation.view.tree_is_right(TREE)


def route_everywhere(simulation: Cluster, rng: Random, count: int) -> None:
    """P3: each message is delivered once, by the live node closest to its key."""
    for process in simulation.processes.values():
        process.outcome.clear()
    keys = [NodeId(rng.getrandbits(128)) for _ in range(count)]
    for key in keys:
        simulation.tell(rng.choice(simulation.view.awake()), ev.RouteMessage(key, b"x"))
    simulation.clock.run(1.0)
    got = delivered(simulation)
    at = {effect.key: process for process, effect in got}
    wrong = [key for key in keys if at.get(key) is not simulation.view.root_of(key)]
    assert not wrong, f"{wrong}\n{simulation.story()}"
    assert len(got) == count


def delivered(simulation: Cluster) -> list[tuple[Process, fx.Delivered]]:
    return [(p, effect) for p in simulation.processes.values() for effect in p.outcome if isinstance(effect, fx.Delivered)]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("together", [False, True], ids=["in turn", "at once"])
def test_fifty_nodes_join_into_one_ring_and_one_tree(seed: int, together: bool) -> None:
    simulation = cluster(seed, together=together)
    route_everywhere(simulation, Random(seed), 200)
    assert max(effect.hops for _, effect in delivered(simulation)) <= 4


@pytest.mark.parametrize("seed", SEEDS)
def test_a_fifth_of_the_nodes_is_killed_in_the_same_instant(seed: int) -> None:
    simulation = cluster(seed)
    rng = Random(seed)
    for name in rng.sample(agents(simulation), NODES // 5):
        simulation.kill(simulation.processes[name])
    assert simulation.clock.run_until(lambda: whole(simulation), 10), simulation.story()
    route_everywhere(simulation, rng, 200)


@pytest.mark.parametrize("seed", SEEDS)
def test_crashes_pauses_and_restarts_for_a_minute(seed: int) -> None:
    """Faults one after the other while the last are still being repaired; then quiet, and everything must be right."""
    simulation = cluster(seed, nodes=30)
    rng = Random(seed)
    down: list[str] = []
    asleep: list[str] = []
    for _ in range(40):
        simulation.clock.run(rng.uniform(0.05, 1.5))
        fault = rng.choice(["crash", "pause", "back", "back"])
        if fault == "crash" and len(down) < 8:
            down.append(rng.choice(agents(simulation)))
            simulation.kill(simulation.processes[down[-1]])
        elif fault == "pause" and len(asleep) < 4:
            asleep.append(rng.choice(agents(simulation)))
            simulation.pause(simulation.processes[asleep[-1]])
        elif down and rng.random() < 0.6:
            start_agent(simulation, down.pop(rng.randrange(len(down))))
        elif asleep:
            simulation.resume(simulation.processes[asleep.pop(rng.randrange(len(asleep)))])
    for name in asleep:
        simulation.resume(simulation.processes[name])
    assert simulation.clock.run_until(lambda: whole(simulation), 20), simulation.story()
    route_everywhere(simulation, rng, 100)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_manager_is_killed_and_comes_back(seed: int) -> None:
    """P4: the tree is rooted at the manager again, through the peers that it remembers."""
    simulation = cluster(seed, nodes=20)
    hints = [simulation.processes[name].peer.address for name in agents(simulation)[:3]]
    simulation.kill(simulation.processes["manager"])
    simulation.clock.run(3.0)
    assert simulation.view.ring_is_right(), simulation.story()
    manager = simulation.start("manager", TREE, hints=hints)
    simulation.tell(manager, ev.CreateTree(TREE))
    assert simulation.clock.run_until(lambda: whole(simulation), 10), simulation.story("manager")


@pytest.mark.parametrize("seed", SEEDS)
def test_a_partition_heals_into_one_ring(seed: int) -> None:
    simulation = cluster(seed, nodes=24)
    island = frozenset(simulation.processes[name].index for name in agents(simulation)[::3])
    main = frozenset(process.index for process in simulation.view.living) - island
    cut = simulation.network.cut(island, main)
    simulation.clock.run(8.0)
    simulation.network.heal(cut)
    assert simulation.clock.run_until(lambda: whole(simulation), 20), simulation.story()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_record_outlives_its_owner_and_a_holder(seed: int) -> None:
    """P2: what was durable is found, in its newest version, though the owner and one holder die together."""
    simulation = cluster(seed, nodes=20)
    owner = simulation.processes["agent-3"]
    for version in (1, 2, 3):
        owner.store[owner.peer.id, TREE] = record(owner, version)
        simulation.tell(owner, ev.Replicate(record(owner, version)))
        assert simulation.clock.run_until(lambda v=version: durable(owner) == v, 5), simulation.story("agent-3")
    holders = [name for name in agents(simulation) if (owner.peer.id, TREE) in simulation.processes[name].store and name != "agent-3"]
    assert len(holders) == 3
    simulation.kill(simulation.processes["agent-3"])
    simulation.kill(simulation.processes[holders[0]])
    manager = simulation.processes["manager"]
    simulation.tell(manager, ev.Retrieve(7, owner.peer.id, TREE))
    assert simulation.clock.run_until(lambda: ended(manager, 7) is not None, 5), simulation.story("manager")
    found = ended(manager, 7)
    assert found is not None
    assert found.record is not None
    assert found.record.version == 3
    again = start_agent(simulation, "agent-3")
    simulation.tell(again, ev.Retrieve(1, again.peer.id, TREE))
    assert simulation.clock.run_until(lambda: ended(again, 1) is not None, 5), simulation.story("agent-3")
    own = ended(again, 1)
    assert own is not None
    assert own.record is not None
    assert own.record.version == 3


def durable(process: Process) -> int:
    return max((effect.record.version for effect in process.outcome if isinstance(effect, fx.Durable)), default=0)


def ended(process: Process, request: int) -> fx.RetrievalEnded | None:
    return next((e for e in process.outcome if isinstance(e, fx.RetrievalEnded) and e.request == request), None)


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_held_is_said_to_be_lost(seed: int) -> None:
    simulation = cluster(seed, nodes=12)
    victim = simulation.processes["agent-5"]
    simulation.kill(simulation.processes["agent-5"])
    manager = simulation.processes["manager"]
    simulation.tell(manager, ev.Retrieve(1, victim.peer.id, TREE))
    assert simulation.clock.run_until(lambda: ended(manager, 1) is not None, 5)
    found = ended(manager, 1)
    assert found is not None
    assert found.record is None
    assert "no live node" in found.reason


@pytest.mark.parametrize("seed", SEEDS)
def test_a_multicast_reaches_every_member_once(seed: int) -> None:
    simulation = cluster(seed)
    manager = simulation.processes["manager"]
    body = RoundOpen("init", 0, 1, "exact", manager.peer)
    simulation.tell(manager, ev.SendMulticast(TREE, body))
    simulation.clock.run(1.0)
    for name in agents(simulation):
        got = [effect for effect in simulation.processes[name].outcome if isinstance(effect, fx.MulticastReceived)]
        assert [effect.body for effect in got] == [body], simulation.story(name)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_root_is_told_of_a_death_with_its_reason(seed: int) -> None:
    simulation = cluster(seed)
    manager = simulation.processes["manager"]
    killed = simulation.clock.now
    victim = simulation.processes["agent-7"]
    simulation.kill(victim)

    def told() -> bool:
        return any(
            departed.id == victim.peer.id and departed.cause == "died"
            for effect in manager.outcome
            if isinstance(effect, fx.MembersChanged)
            for departed in effect.departed
        )

    assert simulation.clock.run_until(told, 1.0), simulation.story("manager", "agent-7")
    assert simulation.clock.now - killed < 0.1


@pytest.mark.parametrize("seed", SEEDS)
def test_the_older_of_two_lives_quits(seed: int) -> None:
    """Two agents with one name: the later one joins elsewhere, the older leaves and says why, the ring keeps one."""
    simulation = cluster(seed, nodes=20)
    old = simulation.processes["agent-2"]
    later = simulation.start("later", old.peer.id, [simulation.processes["manager"].peer.address], incarnation=2)
    assert simulation.clock.run_until(lambda: not old.alive, 2), simulation.story("agent-2", "later")
    reasons = [effect.reason for effect in old.outcome if isinstance(effect, fx.Quit)]
    assert len(reasons) == 1
    assert str(later.peer.address) in reasons[0]
    assert simulation.clock.run_until(simulation.view.ring_is_right, 5), simulation.story("later")

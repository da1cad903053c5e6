"""The simulator itself: the same seed is the same run, faults do what they are called, and each judge finds what it is there to find."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from protocol.identifiers import RING, NodeId, clockwise
from protocol.overlay import effects as fx
from protocol.overlay import events as ev
from protocol.parameters import lan
from protocol.wire.messages import Ping
from scripts.simulation.checkers import Deaths, Routing, grace_s, window_s
from scripts.simulation.cluster import Cluster, Process
from scripts.simulation.faults import PRESETS, Faults, parse
from scripts.simulation.population import TREE, Population
from scripts.simulation.run import Options, Run

ROOT = Path(__file__).resolve().parents[2]
NODES = 20
PING = Ping()


def command(*arguments: str, hash_seed: str = "0") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "scripts/simulate.py", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def ring(seed: int = 1, nodes: int = NODES) -> tuple[Cluster, Population]:
    """A whole ring with its tree, under the lan preset."""
    cluster = Cluster(seed, lan(), keep=False)
    population = Population(cluster, Random(seed))
    population.build(nodes)
    assert cluster.clock.run_until(lambda: cluster.view.ring_is_right() and cluster.view.tree_is_right(TREE), 20), cluster.story()
    return cluster, population


def two(cluster: Cluster) -> tuple[Process, Process]:
    """A node and its right neighbour."""
    first = cluster.processes["n1"]
    second = cluster.view.get(first.node.pastry.leaf_set.right[0].id)
    assert second is not None
    return first, second


# --- determinism and the command --------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_trace_whatever_the_hash_seed() -> None:
    asked = ("--seed", "3", "--nodes", "24", "--seconds", "10", "--faults", "wild", "--json")
    first, second = (json.loads(command(*asked, hash_seed=hash_seed).stdout) for hash_seed in ("1", "2"))
    assert first["trace_digest"] == second["trace_digest"]
    assert first["sent"] == second["sent"]
    other = json.loads(command("--seed", "4", *asked[2:]).stdout)
    assert other["trace_digest"] != first["trace_digest"]


def test_json_is_one_object_with_every_figure() -> None:
    done = command("--seeds", "1-2", "--nodes", "12", "--seconds", "2", "--faults", "none", "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    assert found.keys() >= {
        "seed", "nodes", "routed", "wrong_roots", "lost", "hops_mean", "control_msgs_per_s_per_node", "false_deaths",
        "lookups_right_after_s", "trees_complete_after_s", "trace_digest", "wall_s",
    }  # fmt: skip
    assert found["seed"] == "1-2"
    assert len(found["trace_digest"]) == 2


def test_the_options_come_first() -> None:
    first, second, *_ = command("--nodes", "5", "--seconds", "1", "--faults", "burst-10,silent_share=0.5").stdout.splitlines()
    assert first.startswith("seed 1, nodes 5")
    assert second == "faults burst-10,silent_share=0.5: silent_share=0.5,burst_share=0.1"


WRONG = [("nonsense", "are no faults"), ("burst=1", "no fault 'burst'"), ("slow_share=2", "0 and 1")]


@pytest.mark.parametrize(("wrong", "said"), WRONG)
def test_a_wrong_specification_is_a_usage_error(wrong: str, said: str) -> None:
    done = command("--faults", wrong)
    assert done.returncode == 2
    assert said in done.stderr


def test_a_failure_tells_the_seed_the_nodes_and_the_command_that_replays_it() -> None:
    """Nobody can converge in a ring whose every message stalls for longer than any timeout."""
    stalls = "stall_share=1,stall_min_s=30,stall_max_s=30"
    options = Options(seed=9, nodes=10, faults=stalls, seconds=5)
    run = Run(options)
    run.injector.heal = lambda: None  # type: ignore[method-assign]
    result = run.go()
    assert result.failures
    assert result.story.startswith("seed 9")
    assert "peer_suspected" in result.story
    assert result.command == f"python scripts/simulate.py --seed 9 --nodes 10 --faults {stalls} --seconds 5"
    assert Options(seed=9, nodes=10, faults="wild").command() == "make simulate SEED=9 NODES=10 FAULTS=wild"


@pytest.mark.parametrize("name", PRESETS)
def test_faults_are_told_in_words_that_make_them_again(name: str) -> None:
    told = str(PRESETS[name])
    assert str(parse(told, Random(0))) == told


def test_drawn_faults_are_the_seeds() -> None:
    assert parse("drawn", Random(5)) == parse("drawn", Random(5))
    assert len({parse("drawn", Random(seed)) for seed in range(20)}) > 15
    assert parse("drawn,burst_share=0.25", Random(5)) == replace(parse("drawn", Random(5)), burst_share=0.25)
    assert parse("none", Random(1)) == Faults()


def between(left: Process, right: Process) -> NodeId:
    """A key closest to `right`, and next to `left`."""
    return NodeId((left.peer.id + clockwise(left.peer.id, right.peer.id) // 2 + 1) % RING)


# --- the judges -------------------------------------------------------------------------------------------------------


def deliver(cluster: Cluster, routing: Routing, sender: Process, key: NodeId, at: Process) -> None:
    """As if the ring had brought a message for the key there."""
    number = routing.routed
    routing.route(sender, key)
    if number in routing.underway:
        cluster.on_delivered(at, fx.Delivered(key, number.to_bytes(8, "big"), 1))


def test_a_delivery_at_the_wrong_node_is_found() -> None:
    cluster, _ = ring()
    routing = Routing(cluster)
    wrong, right = two(cluster)
    sender = cluster.processes["n5"]
    deliver(cluster, routing, sender, between(wrong, right), wrong)
    assert routing.wrong.count == 1
    assert right.name in routing.wrong.names
    deliver(cluster, routing, sender, right.peer.id, right)
    assert routing.wrong.count == 1
    cluster.clock.run(1.0)
    assert routing.duplicates == 2, "the ring has delivered both as well"


def test_a_delivery_in_a_partition_is_excused_until_the_grace_is_over() -> None:
    cluster, _ = ring()
    routing = Routing(cluster)
    wrong, right = two(cluster)
    cut = cluster.network.cut(frozenset({right.index}), frozenset({wrong.index}))
    cluster.clock.run(1.0)
    cluster.network.heal(cut)
    deliver(cluster, routing, wrong, between(wrong, right), wrong)
    assert (routing.wrong.count, routing.wrong_excused) == (0, 1)
    cluster.clock.run(grace_s(cluster.parameters) + 0.1)
    deliver(cluster, routing, wrong, between(wrong, right), wrong)
    assert (routing.wrong.count, routing.wrong_excused) == (1, 1)


def test_what_is_never_delivered_is_lost_and_excused_only_with_its_holder_or_where_that_was_said() -> None:
    cluster, _ = ring()
    routing = Routing(cluster)
    Deaths(cluster, routing)
    holder, far = two(cluster)
    cluster.pause(holder)
    routing.route(cluster.processes["n5"], holder.peer.id)
    cluster.clock.run(0.1)
    lost, excused, said = routing.lost()
    assert (lost.count, excused, said) == (1, 0, 0)
    assert routing.underway[0].holder is not holder, "a paused node has read nothing"
    cluster.on_fact(far, fx.Notify("route_dropped", {"key": holder.peer.id, "reason": "it waited"}))
    assert routing.lost()[2] == 1
    routing.underway[0].holder = far
    cluster.kill(far)
    assert routing.lost()[1:] == (1, 0)


def test_a_false_death_is_found_and_a_true_one_is_none() -> None:
    cluster, _ = ring()
    deaths = Deaths(cluster)
    judge, victim = two(cluster)
    verdict = fx.Notify("peer_died", {"peer": victim.peer, "reason": "planted"})
    cluster.on_fact(judge, verdict)
    assert deaths.false.count == 1
    assert "planted" in deaths.false.words[0]
    cluster.pause(victim)
    cluster.clock.run(0.5)
    cluster.resume(victim)
    cluster.on_fact(judge, verdict)
    assert (deaths.false.count, deaths.false_excused) == (1, 1)
    cluster.clock.run(window_s(cluster.parameters) + 0.1)
    cluster.kill(victim)
    cluster.on_fact(judge, verdict)
    assert (deaths.false.count, deaths.false_excused) == (1, 1)


def test_who_is_declared_dead_by_mistake_fails_a_run_in_which_nothing_can_be_the_cause() -> None:
    for faults, fails in (("stalls", True), ("crashes", False)):
        run = Run(Options(nodes=8, faults=faults, seconds=0.5, routed=8))
        run.deaths.false.add("agent-1 declared agent-2 dead")
        assert ("1 declared dead by mistake" in run.go().failures) == fails


def test_a_member_that_the_root_does_not_list_is_found() -> None:
    cluster, population = ring()
    members = population.root.node.scribe.trees[TREE].members
    missing = members.pop(next(iter(members)))
    assert not cluster.view.tree_is_right(TREE)
    assert any(missing.name in line for line in cluster.view.what_is_wrong(TREE))


def test_a_cycle_in_a_tree_is_found() -> None:
    cluster, _ = ring()
    first, second = two(cluster)
    for child, parent in ((first, second), (second, first)):
        child.node.scribe.trees[TREE].parent = parent.peer
    assert not cluster.view.tree_is_right(TREE)


def test_a_leaf_set_with_a_stranger_is_found() -> None:
    cluster, _ = ring()
    first, second = two(cluster)
    first.node.pastry.leaf_set.remove(second.peer.id)
    assert not cluster.view.ring_is_right()
    assert any("lacks" in line for line in cluster.view.what_is_wrong())


# --- the network ------------------------------------------------------------------------------------------------------


def test_a_stalled_message_delays_those_behind_it() -> None:
    """Head of line: what TCP does with a lost packet."""
    cluster, _ = ring()
    first, second = two(cluster)
    link = cluster.network.link(first, second.peer)
    assert link is not None
    before, link.last = link.last, cluster.clock.now + 5.0
    first.node.handle(ev.TimerFired(), cluster.clock.now)
    cluster.network.send(first, fx.Send(second.peer, PING))
    assert link.last == cluster.clock.now + 5.0 > before


def test_a_vanished_host_is_silent_and_a_killed_process_is_not() -> None:
    cluster, _ = ring()
    deaths = Deaths(cluster)
    first, second = two(cluster)
    cluster.kill(second)
    cluster.clock.run(0.1)
    assert deaths.facts.get("peer_died", 0) > 0
    noticed = dict(deaths.facts)
    third = cluster.view.get(first.node.pastry.leaf_set.right[0].id)
    assert third is not None
    cluster.kill(third, silent=True)
    cluster.clock.run(0.5)
    assert deaths.facts["peer_died"] == noticed["peer_died"], "nobody was told"
    assert cluster.clock.run_until(cluster.view.ring_is_right, 10), cluster.story(first.name)


def test_a_restarted_host_resets_what_it_does_not_know() -> None:
    cluster, population = ring()
    first, second = two(cluster)
    cluster.kill(second, silent=True)
    cluster.start(second.name, second.peer.id, (population.root.peer.address,))
    link = cluster.network.link(first, second.peer)
    assert link is not None
    assert link.state == "stale"


def test_what_was_sent_into_a_cut_arrives_after_it() -> None:
    cluster, _ = ring()
    first, second = two(cluster)
    cut = cluster.network.cut(frozenset({first.index}), frozenset({second.index}), one_way=True)
    cluster.network.send(first, fx.Send(second.peer, PING))
    link = cluster.network.link(first, second.peer)
    assert link is not None
    assert link.queue == [PING]
    cluster.clock.run(0.2)
    cluster.network.heal(cut)
    cluster.clock.run(0.3)
    assert not link.queue


def test_who_starts_while_the_network_is_cut_is_on_one_side_of_it() -> None:
    """From a place that reaches both sides a node would join one ring and be missed by the other, and no protocol could help that."""
    cluster, population = ring()
    living = [process.index for process in cluster.view.living]
    cut = cluster.network.cut(frozenset(living[::2]), frozenset(living[1::2]))
    first, _ = two(cluster)
    was_here = first.index in cut.here
    cluster.kill(first)
    again = cluster.start(first.name, first.peer.id, (population.root.peer.address,))
    assert (again.index in cut.here, again.index in cut.there) == (was_here, not was_here), "a host stays where it is"
    new = [population.arrive() for _ in range(12)]
    here = [process.index in cut.here for process in new]
    assert [process.index in cut.there for process in new] == [not side for side in here]
    assert len(set(here)) == 2, "on either side"


def test_a_paused_process_reads_what_has_come_in_before_its_late_timer() -> None:
    cluster, _ = ring()
    first, _ = two(cluster)
    cluster.pause(first)
    cluster.clock.run(2.0)
    assert first.late
    assert first.inbox
    told: list[ev.Event] = []
    handle = first.handle
    first.handle = lambda event, now: told.append(event) or handle(event, now)  # type: ignore[func-returns-value]
    cluster.resume(first)
    assert isinstance(told[-1], ev.TimerFired)
    assert isinstance(told[0], ev.MessageReceived)
    assert not first.inbox


def test_a_slow_node_handles_one_event_after_the_other() -> None:
    cluster, _ = ring()
    first, _ = two(cluster)
    first.slow_s = 0.5
    cluster.clock.run(1.2)
    assert first.blocked
    assert first.inbox

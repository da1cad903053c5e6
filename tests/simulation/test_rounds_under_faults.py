"""Records and rounds with their judges, under faults drawn from seeds; and the judges themselves, which must find what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fmrec_manager.orders import Aggregate
from fmrec_manager.round import Slot
from protocol.identifiers import NodeId
from protocol.overlay import effects as fx
from protocol.wire.messages import RoundOpen
from protocol.wire.values import RecordSummary
from scripts.simulation.agents import Agent
from scripts.simulation.learning import Content, aggregate, contribution, first_theta, undisturbed
from scripts.simulation.population import ROOT, TREE
from scripts.simulation.rounds import RoundOptions, RoundRun
from scripts.survival import lost_share, survive

ROOT_FOLDER = Path(__file__).resolve().parents[2]
WILD = "wild,crash_per_node_s=0.02,pause_per_node_s=0.01,partition_per_s=0.1,partition_max_s=5"


@pytest.mark.parametrize("seed", range(1, 4))
def test_theta_is_that_of_the_undisturbed_run_whatever_strikes(seed: int) -> None:
    """Crashes, hangs, resets, cuts, and a manager that is killed: nothing durable or committed is lost, nothing counts twice."""
    result = RoundRun(RoundOptions(seed, 16, WILD, "loopback", 8.0, 4)).go()
    assert not result.failures, "\n".join([*result.failures, result.story, result.command])
    assert result.theta_equal
    assert result.rounds == 4
    assert sum(result.struck.values()) > 0


def test_half_of_them_dead_in_one_instant_without_disks_and_theta_is_the_same() -> None:
    faults = "burst-50,crash_per_node_s=0.02,disk_kept_share=0,down_mean_s=1"
    result = RoundRun(RoundOptions(5, 16, faults, "loopback", 4.0, 4)).go()
    assert not result.failures, "\n".join([*result.failures, result.story, result.command])
    assert result.theta_equal


def test_a_run_is_its_seed() -> None:
    first, second = (RoundRun(RoundOptions(7, 10, WILD, "loopback", 2.0, 2)).go() for _ in range(2))
    assert first.trace_digest == second.trace_digest


def test_what_survives_is_what_is_found_and_the_law_says_how_much_that_is() -> None:
    assert round(lost_share(24, 12, 3), 4) == 0.0932
    assert lost_share(24, 3, 3) == 0.0, "two others cannot be all three holders"
    result = survive(16, 8, 3, 2, seed=1)
    assert result["found"] == result["survived"]
    assert result["survived"] + result["lost"] == 16


# --- the judges -------------------------------------------------------------------------------------------------------


def small(**others: Any) -> RoundRun:
    return RoundRun(RoundOptions(**({"seed": 3, "nodes": 8, "faults": "none", "preset": "loopback", "seconds": 1.0, "rounds": 2} | others)))


def broken(run: RoundRun, promise: str) -> bool:
    result = run.go()
    assert result.failures, "the judge has seen nothing"
    return any(failure.startswith(f"{promise} is broken") for failure in result.failures)


def test_p5_one_agent_that_learns_something_else_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bit of its state is lost at a checkpoint."""
    seal = Agent._seal

    def forgetful(agent: Agent, content: Content) -> RecordSummary:
        wrong = Content(content.phase, content.round, content.done, content.complete, bytes(16))
        return seal(agent, wrong if agent.name == "n2" and content.complete else content)

    monkeypatch.setattr(Agent, "_seal", forgetful)
    assert broken(small(), "P5")


def test_p2_a_life_that_finds_nothing_while_its_record_is_held_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its retrieval says: nobody has anything, and everyone was heard."""
    retrieved = Agent.retrieved

    def blind(agent: Agent, ended: fx.RetrievalEnded) -> None:
        retrieved(agent, fx.RetrievalEnded(ended.request, None, (), 0.0, 0.0, 0))

    monkeypatch.setattr(Agent, "retrieved", blind)
    run = small(faults="burst_share=0.4,down_mean_s=2,disk_kept_share=1", seconds=3.0, rounds=4)
    assert broken(run, "P2")


def with_a_durable_record() -> tuple[RoundRun, Agent, RecordSummary]:
    run = small()
    assert run._build()
    agent = run.agents.lives["n3"]
    run.cluster.clock.run_until(lambda: agent._durable > 0, 5.0)
    return run, agent, agent.process.store[agent.process.peer.id, TREE]


def test_p2_the_last_copy_that_dies_long_after_the_others_is_found() -> None:
    """As if nobody had repaired: the others were dropped without a word."""
    run, agent, record = with_a_durable_record()
    holders = [process for process in run.cluster.view.living if record.key in process.store and process is not agent.process]
    for holder in holders:
        del holder.store[record.key]
        run.durability._copies[record.key].pop(holder.index)
    run.durability._count(record.key)
    run.durability._alone[record.key] = run.cluster.clock.now - 60.0
    agent.process.awake_since = -100.0
    run.cluster.kill(agent.process)
    assert run.durability.mistakes["P2"].count == 1


def test_p2_a_last_copy_that_is_discarded_is_found() -> None:
    run, _, record = with_a_durable_record()
    for process in list(run.cluster.view.living):
        run.cluster.transfers.discard(process, fx.Discard(process.store.get(record.key, record)))
    assert run.durability.mistakes["P2"].count == 1


def test_p6_an_order_before_its_commit_and_a_life_that_goes_back_are_found() -> None:
    run = small()
    assert run._build()
    run.cluster.clock.run(1.0)
    root = run.population.root
    theta = root.store[TREE, TREE]
    later = RecordSummary(TREE, TREE, theta.version + 1, 1, theta.round + 1, 0, False, 1000, bytes(32))
    run.durability.announced(root, RoundOpen("train", theta.round + 1, 1, "exact", root.peer, later))
    assert run.durability.mistakes["P6"].count == 1
    run.durability.resumed(root, fx.RetrievalEnded(0, None, (), 0.0, 0.0, 0))
    assert run.durability.mistakes["P6"].count == 2


def folded(run: RoundRun, change: Callable[[dict[Any, Slot], dict[Any, Content]], None], number: int = 0) -> dict[str, int]:
    """What the judges say of a round that was folded so."""
    agents, theta = [process.peer for name, process in run.cluster.processes.items() if name != ROOT], first_theta(run.work.seed)
    contents = {
        peer.id: Content("train", 0, 4, True, contribution(run.work.seed, peer.id, 0, theta, run.work.iterations)) for peer in agents
    }
    slots = {
        peer.id: Slot(run.agents.contents.seal(peer, TREE, 1, contents[peer.id], 1000), 1.0, "upload") for peer in agents
    }  # fmt: skip
    change(slots, contents)
    run.durability.aggregated(run.population.root, Aggregate(number, slots), contents, theta)
    return {promise: mistakes.count for promise, mistakes in run.durability.mistakes.items() if mistakes.count}


def test_p1_what_does_not_belong_into_a_round_is_found() -> None:
    run = small()
    run.population.build(4)

    def stale(slots: dict[Any, Slot], contents: dict[Any, Content]) -> None:
        first = min(contents)
        contents[first] = Content("train", 7, 4, True, contents[first].value)

    def twice(slots: dict[Any, Slot], contents: dict[Any, Content]) -> None:
        first, second, *_ = sorted(slots)
        slots[first] = slots[second]

    assert folded(run, lambda slots, contents: None) == {}
    assert folded(run, stale) == {"P1": 1}
    assert folded(run, twice) == {"P1": 2}
    assert folded(run, lambda slots, contents: None, number=1)["P1"] > 2, "folded into a theta that is for another round"


def test_theta_depends_on_each_contribution_and_not_on_the_order_in_which_they_come() -> None:
    agents = [NodeId(1000 + number) for number in range(4)]
    theta = first_theta(1)
    parts = {agent: contribution(1, agent, 0, theta, 4) for agent in agents}
    assert aggregate(theta, parts) == aggregate(theta, dict(reversed(parts.items())))
    assert aggregate(theta, parts) == undisturbed(1, agents, 1, 4)
    assert aggregate(theta, parts) != undisturbed(1, agents[:-1], 1, 4)




# --- the tools --------------------------------------------------------------------------------------------------------


def tool(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, f"scripts/{name}", *arguments]
    return subprocess.run(command, cwd=ROOT_FOLDER, capture_output=True, text=True, check=False, timeout=120)


def test_simulate_with_rounds_prints_one_object_for_programs() -> None:
    run = tool("simulate.py", "--rounds", "2", "--nodes", "6", "--faults", "none", "--preset", "loopback", "--seconds", "1", "--json")
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert (found["theta_equal"], found["double_contributions"], found["durable_lost"], found["committed_lost"]) == (True, 0, 0, 0)
    assert tool("simulate.py", "--rounds", "2", "--no-tree").returncode == 2


def test_survival_prints_one_object_for_programs() -> None:
    run = tool("survival.py", "--agents", "10", "--killed", "5", "--replicas", "2", "--trials", "1", "--json")
    assert run.returncode == 0, run.stderr
    [found] = json.loads(run.stdout)["results"]
    assert found["found"] == found["survived"] == found["dead"] - found["lost"]
    assert tool("survival.py", "--agents", "10", "--killed", "10").returncode == 2

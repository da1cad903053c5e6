"""Records and rounds with their judges, under faults drawn from seeds; and the judges themselves, which must find what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from math import inf
from pathlib import Path
from typing import Any

import pytest

from fmrec_manager.orders import Aggregate
from fmrec_manager.round import Slot, Way
from protocol.identifiers import NodeId, Peer
from protocol.overlay import effects as fx
from protocol.overlay.absences import Absences
from protocol.overlay.far_places import FarPlaces
from protocol.overlay.takeover import Takeover
from protocol.parameters import PlacementPolicy
from protocol.wire.messages import RecoveryMode, RoundOpen
from protocol.wire.values import RecordSummary
from scripts.simulation.agents import Agent
from scripts.simulation.learning import Content, aggregate, contribution, first_theta, undisturbed
from scripts.simulation.population import ROOT, TREE
from scripts.simulation.rounds import RoundOptions, RoundRun
from scripts.survival import lost_share, survive

ROOT_FOLDER = Path(__file__).resolve().parents[2]
WILD = "wild,crash_per_node_s=0.02,pause_per_node_s=0.01,partition_per_s=0.1,partition_max_s=5"


@pytest.mark.parametrize("seed", [1, 2])
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


@pytest.mark.parametrize(("mode", "selected"), [("substitute", 1.0), ("substitute", 0.4), ("drop", 1.0), ("exact", 0.5)])
def test_in_every_mode_and_selection_rounds_go_on_and_nothing_counts_twice(mode: RecoveryMode, selected: float) -> None:
    """Some never come back, new ones come; who is late or dead is stood in for, or given up, as the mode says."""
    result = RoundRun(RoundOptions(2, 16, WILD, "loopback", 25.0, 8, mode, selected)).go()
    assert not result.failures, "\n".join([*result.failures, result.story, result.command])
    assert result.rounds == 8
    assert result.theta_equal is (True if mode == "exact" else None)
    assert (result.ways.get("substitute", 0) > 0) == (mode == "substitute")
    assert result.ways["none"] == 0 or mode != "exact"


@pytest.mark.parametrize("seed", [59, 66])
def test_what_was_done_on_the_other_side_of_a_cut_is_not_given_up(seed: int) -> None:
    """Found here: who was taken for dead finished its round over there, and died; those who held that came back, and nobody asked them."""
    result = RoundRun(RoundOptions(seed, 16, WILD, "loopback", 25.0, 8, "substitute")).go()
    assert not result.failures, "\n".join([*result.failures, result.story, result.command])


@pytest.mark.parametrize("mode", ["exact", "substitute"])
@pytest.mark.parametrize("seed", [2, 3])
def test_whoever_roots_the_tree_there_is_one_chain_of_thetas(seed: int, mode: RecoveryMode) -> None:
    """Managers are killed and hang, standbys take their place, the first comes back or wakes, and cuts go through them."""
    result = RoundRun(RoundOptions(seed, 16, WILD, "loopback", 40.0, 8, mode, standbys=2)).go()
    assert not result.failures, "\n".join([*result.failures, result.story, result.command])
    assert result.rounds == 8
    assert result.theta_equal is (True if mode == "exact" else None)
    assert result.takeovers > 0


@pytest.mark.parametrize(
    ("seed", "nodes", "mode"),
    [
        # The first manager hangs, its successor commits and is killed, the first wakes: nobody serves it, and it stood there for ever.
        (603, 16, "exact"),
        # In a ring beside the ring a life finds half of its round's work; the round is closed with the whole, and the rings become one.
        (662, 10, "exact"),
        # The newest version came to the node that answers a look-up while it waited for others.
        (620, 16, "substitute"),
    ],
)
def test_what_was_found_by_chance_stays_mended(seed: int, nodes: int, mode: RecoveryMode) -> None:
    result = RoundRun(RoundOptions(seed, nodes, WILD, "loopback", 40.0, 8, mode, standbys=2)).go()
    assert not result.failures, "\n".join([*result.failures, result.story, result.command])
    assert result.rounds == 8
    assert result.theta_equal is (True if mode == "exact" else None)


def test_who_hears_late_that_its_version_was_committed_does_no_harm() -> None:
    """The first manager sleeps before the last elector's word is heard, and wakes when another has gone on from that version: judged as a
    round that is done again, until the order of versions was."""
    faults = "wild,crash_per_node_s=0.02,pause_per_node_s=0.01,partition_per_s=0.1,partition_max_s=15"
    result = RoundRun(RoundOptions(2010, 14, faults, "loopback", 40.0, 8, "substitute", standbys=2)).go()
    assert not result.failures, "\n".join([*result.failures, result.story, result.command])


@pytest.mark.parametrize("placement", ["spread", "mixed"])
def test_a_zone_does_not_take_with_it_what_has_had_time_to_leave_it(placement: PlacementPolicy) -> None:
    """Zones are longer than a leaf set, so that most of it lies within its own."""
    result = RoundRun(RoundOptions(1, 32, "zone_per_s=0.05", "loopback", 40.0, 16, zones=2, placement=placement)).go()
    assert not result.failures, "\n".join([*result.failures, result.story, result.command])
    assert result.theta_equal
    assert result.judged_abroad > 0


def test_who_comes_back_among_many_finds_what_those_hold_who_were_its_neighbours() -> None:
    """Of a ring of six, which has seen thirty others die, all thirty come back in one instant."""
    faults = "session_mean_s=5,silent_share=0.5"
    result = RoundRun(RoundOptions(8, 6, faults, "loopback", 30.0, 8, "substitute")).go()
    assert not result.failures, "\n".join([*result.failures, result.story, result.command])


def forgetful(seed: int) -> RoundRun:
    """Agents live for less long than records of who is gone are kept, and come under ever new names."""
    options = RoundOptions(seed, 6, "session_mean_s=8,silent_share=0.5", "loopback", 40.0, 12, "substitute", forget_after_s=10.0)
    run = RoundRun(options)
    run.go()
    return run


def test_what_agents_leave_that_never_come_back_is_forgotten_in_time_and_nothing_before() -> None:
    result = forgetful(4).result
    assert not result.failures, "\n".join([*result.failures, result.story, result.command])
    assert result.rounds == 12
    assert result.forgotten > 10


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


def test_p2_copies_that_stay_in_their_zone_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody hears of a place abroad."""
    monkeypatch.setattr(FarPlaces, "replied", lambda places, reply: False)
    run = small(seed=1, nodes=32, faults="zone_per_s=0.05", seconds=40.0, rounds=16, zones=2, placement="spread")
    assert broken(run, "P2")


def test_a_time_that_is_not_handed_on_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each who stands in would begin to wait anew, and live no longer than it waits."""
    monkeypatch.setattr(Takeover, "_absent_s", lambda self, record, now: 0.0)
    assert broken(forgetful(4), "kept")


def test_p2_what_is_forgotten_too_early_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Absences, "since", lambda self, record: -inf)
    assert broken(forgetful(1), "P2")


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


def test_p6_an_order_before_its_commit_and_a_commit_of_an_earlier_round_are_found() -> None:
    run = small()
    assert run._build()
    run.cluster.clock.run(1.0)
    root = run.population.root
    theta = root.store[TREE, TREE]
    later = RecordSummary(TREE, TREE, theta.version + 1, 1, theta.round + 1, 0, False, 1000, bytes(32))
    run.durability.announced(root, RoundOpen("train", theta.round + 1, 1, "exact", root.peer, later))
    assert run.durability.mistakes["P6"].count == 1
    run.durability.committed(root, theta.version + 1, theta.round - 1)
    assert run.durability.mistakes["P6"].count == 2


class Folding:
    """Rounds of three agents that are folded by hand; and what the judges have found by then."""

    def __init__(self, mode: RecoveryMode) -> None:
        self.run = small(mode=mode)
        self.run.population.build(4)
        self.theta = first_theta(self.run.work.seed)
        self.agents = [process.peer for name, process in self.run.cluster.processes.items() if name != ROOT]

    def slot(self, peer: Peer, number: int, way: Way = "upload", factor: float = 1.0, value: bytes | None = None) -> Slot:
        """What this agent adds to a round, from the present theta."""
        work = self.run.work
        right = contribution(work.seed, peer.id, number, self.theta, work.iterations)
        content = Content("train", number, work.iterations, True, value or right)
        return Slot(self.run.agents.contents.seal(peer, TREE, number + 1, content, 1000), factor, way)

    def fold(self, number: int, *others: Slot) -> dict[str, int]:
        """Mistakes by promise, with these slots in the place of their owners' right ones."""
        slots = {peer.id: self.slot(peer, number) for peer in self.agents} | {slot.record.owner: slot for slot in others}
        return self.put(number, slots)

    def put(self, number: int, slots: dict[NodeId, Slot]) -> dict[str, int]:
        judge = self.run.contributions
        after = self.run.agents.contents.folded(self.theta, slots)
        judge.aggregated(self.run.population.root, Aggregate(number, slots), self.theta, after)
        self.theta = after
        found = {promise: mistakes.count for promise, mistakes in judge.mistakes.items() if mistakes.count}
        for mistakes in judge.mistakes.values():
            mistakes.count = 0
        return found


@pytest.mark.parametrize("mode", ["exact", "substitute"])
def test_p1_and_p5_what_does_not_belong_into_a_round_is_found(mode: RecoveryMode) -> None:
    made = Folding(mode)
    first, second, third = made.agents
    early = made.slot(first, 0)
    assert made.fold(0) == {}
    assert made.fold(1, made.slot(second, 1, value=bytes(16))) == {"P5": 1}
    assert made.fold(2, early) == {"P1": 1}, "an old one, as if it were this round's own"
    assert made.fold(3, made.slot(third, 7)) == {"P1": 1}
    slots = {peer.id: made.slot(peer, 4) for peer in made.agents}
    slots[first.id] = slots[second.id]
    assert made.put(4, slots) == {"P1": 1, "P5": 1}, "another agent's"
    assert made.fold(6) == {"P1": 1}, "folded into a theta that is for another round"


def test_p1_a_substitute_is_of_its_agent_no_staler_than_allowed_and_at_its_discount() -> None:
    made = Folding("substitute")
    first = made.agents[0]
    early, wrong = made.slot(first, 0), made.slot(first, 0, value=bytes(16))
    assert made.fold(0) == {}
    assert made.fold(1, Slot(early.record, 0.5, "substitute")) == {}
    assert made.fold(2, Slot(early.record, 0.5, "substitute")) == {"P1": 1}, "it is two rounds behind"
    assert made.fold(3, Slot(wrong.record, 0.125, "substitute")) == {"P5": 1}
    assert [made.fold(number) for number in (4, 5)] == [{}, {}]
    assert made.fold(6, Slot(early.record, 0.5**6, "substitute")) == {"P1": 1}, "it is too old"


def test_p6_two_managers_that_commit_against_each_other_are_found() -> None:
    run = small(mode="substitute", standbys=1)
    assert run._build()
    judge, process, start = run.contributions, run.manager.process, first_theta(run.work.seed)
    ours = run.agents.contents.folded(start, {})
    judge.aggregated(process, Aggregate(0, {}), start, ours)
    judge.committed(process, 1, ours)
    judge.committed(process, 1, ours)
    assert judge.mistakes["P6"].count == 0
    judge.committed(process, 1, bytes(16))
    assert judge.mistakes["P6"].count == 1, "of one round, another theta"
    judge.committed(process, 2, bytes(16))
    assert judge.mistakes["P6"].count == 2, "made from a theta that was not committed"
    run._sum_up(0.0)
    assert run.result.committed_lost == 2


@pytest.mark.parametrize("mode", ["exact", "substitute", "drop"])
def test_p2_whose_contribution_is_left_out_though_it_is_at_hand_is_found(mode: RecoveryMode) -> None:
    run = small(mode=mode, rounds=4)
    assert run._build()
    root = run.manager.root
    assert run.cluster.clock.run_until(lambda: root.next_round == 2 and root.stage == "train", 20.0, 0.01)
    first, *others = (life.process for life in run.agents.lives.values())
    assert root.work is not None
    root.work.slots = {each.peer.id: Slot(each.store[each.peer.id, TREE], 1.0, "upload") for each in others}
    run.contributions.closed(run.manager.process, root.work, {first.peer.id: run.cluster.clock.now})
    assert run.contributions.mistakes["P2"].count == (mode != "drop")
    for holder in run.cluster.view.living:
        holder.store.pop((first.peer.id, TREE), None)
    run.durability._copies.clear()
    run.contributions.closed(run.manager.process, root.work, {first.peer.id: run.cluster.clock.now})
    assert run.contributions.mistakes["P2"].count == {"exact": 2, "substitute": 1, "drop": 0}[mode], "nobody had it"


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

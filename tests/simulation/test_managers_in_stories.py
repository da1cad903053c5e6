"""Managers and standbys, each a story in virtual time (P6; rules of standby.py)."""

from __future__ import annotations

from random import Random

import pytest

from fmrec_manager.orders import Commit
from protocol.identifiers import NodeId, Peer, rank
from protocol.overlay.promise import Promise, TreePromise
from protocol.wire.messages import RecoveryMode, RoundOpen
from protocol.wire.values import RecordSummary
from scripts.simulation.agents import Agent, Work
from scripts.simulation.manager import Manager
from scripts.simulation.population import ROOT, TREE
from scripts.simulation.rounds import RoundOptions, RoundRun

CUT_S = 14.0
AN_HOUR = 3_600_000
"""In milliseconds, as terms are."""


def in_order(run: RoundRun, rounds: int, within_s: float) -> None:
    """All rounds are done, of one chain of thetas, and nothing durable is lost."""
    assert run.cluster.clock.run_until(lambda: run.managers.done() is not None, within_s), run.manager.root.reason
    assert run.durability.committed_round == rounds
    for judge in (run.contributions.mistakes, run.durability.mistakes):
        assert not any(mistakes.count for mistakes in judge.values())


@pytest.mark.parametrize("seed", [1, 2])
def test_on_the_smaller_side_of_a_cut_a_standby_does_not_begin_the_run_anew(seed: int) -> None:
    """With it are agents that have just started without disks: nobody there holds any record of the tree, nor has promised anything."""
    run = RoundRun(RoundOptions(seed, 23, "disk_kept_share=0", "loopback", 1.0, 12, "substitute", standbys=1))
    assert run._build()
    clock, cluster, root = run.cluster.clock, run.cluster, run.manager.root
    assert clock.run_until(lambda: root.next_round >= 4, 60.0)
    standby = run.managers.standbys["standby-1"]
    assert (TREE, TREE) not in standby.process.store, "the seed is for another story"
    agents = sorted((life.process for life in run.agents.lives.values()), key=lambda process: rank(TREE, process.peer.id))
    far = agents[-5:]
    here = frozenset(process.index for process in (standby.process, *far))
    cut = cluster.network.cut(here, frozenset(process.index for process in cluster.view.living) - here)
    for process in far:
        cluster.kill(process)
    clock.run(1.0)
    for process in far:
        cluster.start(process.name, process.peer.id, (standby.process.peer.address,))
    before = root.next_round
    clock.run(CUT_S)
    assert standby.taken == 0
    assert "of the tree's record was committed, and nobody here has any" in standby.standby.reason
    assert root.next_round > before, "the run goes on on the other side"
    cluster.network.heal(cut)
    assert clock.run_until(lambda: root.stage == "done", 120.0)
    assert run.managers.takeovers == 0
    assert not run.contributions.mistakes["P6"].count


def test_a_promise_of_an_earlier_run_ends_no_root_that_is_in_order_for_good() -> None:
    """Somebody joins who was an elector of an earlier run of this name, whose manager's clock was an hour ahead. It serves no root of an
    earlier term, and nobody asks it, for it is far from the tree. The root that it turns away stands by, and comes back after that term."""
    run = RoundRun(RoundOptions(3, 20, "none", "loopback", 1.0, 12, "substitute", standbys=2))
    assert run._build()
    clock, cluster = run.cluster.clock, run.cluster
    assert clock.run_until(lambda: run.manager.root.version >= 3, 60.0)
    first = run.manager.process
    earlier = Peer(TREE, "10.9.9.9", 7000, AN_HOUR)
    assert cluster._promises is not None
    cluster._promises["late"] = (TreePromise(TREE, Promise(AN_HOUR, 5, AN_HOUR, earlier, 2)),)
    far = max((NodeId(Random(number).getrandbits(128)) for number in range(200)), key=lambda identifier: rank(TREE, identifier))
    run.population._join(cluster.start("late", far, run.population._seeds()))
    assert clock.run_until(lambda: not first.alive, 30.0), "it is told at once"
    in_order(run, 12, 120.0)
    assert run.manager.process.peer.incarnation > AN_HOUR


@pytest.mark.parametrize("mode", ["exact", "substitute"])
def test_a_root_that_wakes_when_nobody_remembers_its_dead_successor_makes_way(mode: RecoveryMode) -> None:
    """The electors have no disks, and were all started again; but the tree has handed the orders of the successor on to them, and whoever
    has these takes all of the first root's for old ones."""
    faults = "disk_kept_share=0"
    run = RoundRun(RoundOptions(5, 13, faults, "loopback", 1.0, 12, mode, standbys=1), Work(5, step_s=6.0))
    assert run._build()
    clock, cluster, first = run.cluster.clock, run.cluster, run.manager
    assert clock.run_until(lambda: first.root.version >= 3 and first.root.stage == "train", 200.0)
    cluster.pause(first.process)
    assert clock.run_until(lambda: run.manager is not first and run.manager.root.version >= 6 and run.manager.root.stage == "train", 400.0)
    for process in [life.process for life in run.agents.lives.values()]:
        run.population.died(process)
        cluster.kill(process)
        run.population.come_back(process.name, run.faults)
        clock.run(0.8)
    cluster.kill(cluster.processes["standby-1"])
    cluster.resume(first.process)
    in_order(run, 12, 1200.0)
    assert not first.process.alive


@pytest.mark.parametrize("promised", [False, True])
def test_after_a_manager_whose_clock_was_ahead_and_that_left_nothing_the_next_says_so(
    promised: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is killed before it has committed anything; the next one's clock is right. Members take its orders for old ones, or electors have
    promised the later term: it is told. That nothing was committed nobody can say, so it does not begin anew, but says what to do."""
    run = RoundRun(RoundOptions(4, 12, "none", "loopback", 1.0, 4, standbys=1))
    clock, cluster, population = run.cluster.clock, run.cluster, run.population
    bring, commit = Agent._bring, Manager._commit

    def brings(agent: Agent, record: RecordSummary, body: RoundOpen) -> None:
        if promised or (body.phase, body.holder.incarnation) != ("init", AN_HOUR):
            bring(agent, record, body)

    def commits(manager: Manager, order: Commit) -> None:
        if manager.process.peer.incarnation != AN_HOUR:
            commit(manager, order)

    monkeypatch.setattr(population, "_start_root", lambda: cluster.start(ROOT, TREE, (), (), AN_HOUR))
    monkeypatch.setattr(Agent, "_bring", brings)
    monkeypatch.setattr(Manager, "_commit", commits)
    population.build(11)
    clock.run(1.0)
    ahead = run.manager
    assert (ahead.root.stage, ahead.root.version) == (("committing", 1) if promised else ("init", 0))
    assert any(process.node.terms.promised(TREE) for process in cluster.view.living) == promised
    cluster.kill(ahead.process)
    clock.run(3.0)
    cluster.start("root2", TREE, population._seeds(), (), round(1000 * clock.now))
    clock.run(20.0)
    assert run.durability.committed_round == -1
    assert not any(process.alive for process in cluster.processes.values() if process.peer.id == TREE)
    assert f"a root of term {AN_HOUR} was here, and nobody here has its record" in run.managers.standbys["standby-0"].standby.reason

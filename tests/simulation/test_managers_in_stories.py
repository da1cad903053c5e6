"""Managers and standbys, each a story in virtual time (P6; rules of standby.py)."""

from __future__ import annotations

import pytest

from protocol.identifiers import rank
from scripts.simulation.population import TREE
from scripts.simulation.rounds import RoundOptions, RoundRun

CUT_S = 14.0


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

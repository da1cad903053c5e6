"""Eight agents on four hosts and a manager, over links that are slow, lossy, cut one way and cut altogether (DESIGN 7, promises P1, P5)."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

pytest.importorskip("pyroute2", reason="pyroute2 makes the hosts: `make setup` installs it")

from protocol.aio.sockets import half_open_max_s
from protocol.parameters import loopback
from scripts.hosts import Network
from tests.real_hosts.cluster import HostsCluster, names

EVERYBODY = {f"host-{host}-{index}" for host in (1, 2, 3, 4) for index in (0, 1)}
ROUNDS = 8
"""Of the run that ends."""
AGENT_SET = (
    "learning.iterations_per_round=10",
    "learning.batch=8",
    "learning.adapt_iterations=10",
    "learning.adapt_batch=32",
    "checkpoint_every=5",
)
START_S = 40.0
"""Five processes load torch at once."""
ROUNDS_S = 30.0
CUT_S = half_open_max_s(loopback()) + 2.0
"""Longer than every timeout: silence, trial, orphaned relatives, and the kernel's own."""
HEALED_S = 20.0


def cluster(folder: Path, network: Network, *sets: str, rounds: int = 1_000_000) -> HostsCluster:
    """sets: of the overlay, for everybody, and of the manager's tree. Without `rounds`, the run has no end."""
    overlay = [each for each in sets if each.startswith("overlay.")]
    tree = [f"tree.main.rounds={rounds}", "tree.main.sources_min=7", "tree.main.targets_min=1"]
    return HostsCluster(folder, network, manager_set=[*tree, *sets], agent_set=[*AGENT_SET, *overlay])


async def under_way(hosts: HostsCluster, closed: int = 1) -> None:
    """Everybody is a member, and so many rounds are closed."""
    await hosts.until(lambda status: names(status) == EVERYBODY and status["round"] >= closed, START_S)


async def one_ring(hosts: HostsCluster) -> None:
    """Everybody is a member again, and each has all the others, and the manager, for neighbours: eight on one ring."""
    await hosts.until(lambda status: names(status) == EVERYBODY, HEALED_S)
    wanted = dict.fromkeys(EVERYBODY, len(EVERYBODY))
    found: dict[str, int] = {}
    deadline = time.monotonic() + HEALED_S
    while found != wanted:
        assert time.monotonic() < deadline, f"not one ring: neighbours by agent {found}"
        found = await hosts.neighbours()
    assert names(hosts.status_command()) == EVERYBODY


async def test_all_join_and_rounds_close_over_a_slow_link(network: Network, tmp_path: Path) -> None:
    """20 Mbit/s each way: a token bucket that runs dry when the agents of a host fetch theta and send their records at once."""
    network.limit("20mbit")
    async with cluster(tmp_path, network) as hosts:
        await under_way(hosts)
        status = await hosts.rounds(3, ROUNDS_S)
        assert status["recoveries"] == []
        await one_ring(hosts)


async def test_lost_packets_kill_nobody(network: Network, tmp_path: Path) -> None:
    """One packet in fifty that comes to a host is lost: rounds go on, and nobody is declared dead by mistake."""
    async with cluster(tmp_path, network, "overlay.preset=lan") as hosts:
        await under_way(hosts)
        for host in network.hosts:
            network.lose(host, one_in=50)
        began = time.monotonic()
        status = await hosts.rounds(5, ROUNDS_S)
        while time.monotonic() < began + 15:
            status = await hosts.rounds(1, ROUNDS_S)
        assert status["recoveries"] == []
        assert names(status) == EVERYBODY


async def test_a_one_way_cut_between_two_hosts_does_not_stop_the_run(network: Network, tmp_path: Path) -> None:
    """Host 3 hears nothing of host 2; everybody else reaches both."""
    async with cluster(tmp_path, network) as hosts:
        await under_way(hosts)
        network.cut(3, source=2)
        began = time.monotonic()
        await hosts.rounds(3, ROUNDS_S)
        while time.monotonic() < began + CUT_S:
            await hosts.rounds(1, ROUNDS_S)
        network.heal(3)
        await hosts.rounds(3, ROUNDS_S)
        await one_ring(hosts)


async def test_a_host_cut_off_is_recovered_elsewhere_and_healed(network: Network, tmp_path: Path) -> None:
    """Mode substitute: its agents are declared dead, the source's record is found on another host (the target has none yet), rounds go
    on; then all is one ring again."""
    async with cluster(tmp_path, network, "tree.main.recovery=substitute") as hosts:
        await under_way(hosts, closed=2)
        cut_off = {"host-4-0", "host-4-1"}
        network.isolate(4)
        began = time.monotonic()
        status = await hosts.until(lambda status: names(status) == EVERYBODY - cut_off, ROUNDS_S)
        status = await hosts.rounds(3, ROUNDS_S)
        assert {recovery["agent"] for recovery in status["recoveries"]} == cut_off
        first = next(recovery for recovery in status["recoveries"] if recovery["agent"] == "host-4-0")
        assert first["outcome"] == "verified", first
        assert first["holder"] not in cut_off
        await asyncio.sleep(max(0.0, began + CUT_S - time.monotonic()))  # the length of the cut is the story
        network.heal(4)
        await one_ring(hosts)
        await hosts.rounds(3, ROUNDS_S)


async def test_exact_waits_for_a_host_cut_off_and_theta_is_the_same(network: Network, tmp_path: Path) -> None:
    """Mode exact: the round waits for those who are cut off, and ends with what it would have ended with (P5)."""
    async with cluster(tmp_path / "undisturbed", network, rounds=ROUNDS) as hosts:
        undisturbed = await hosts.until(lambda status: status["phase"] == "done", START_S + ROUNDS_S)
        assert undisturbed["recoveries"] == []
    async with cluster(tmp_path / "cut", network, rounds=ROUNDS) as hosts:
        await under_way(hosts, closed=2)
        network.isolate(3)
        await hosts.until(lambda status: names(status) == EVERYBODY - {"host-3-0", "host-3-1"}, ROUNDS_S)
        await asyncio.sleep(CUT_S)
        network.heal(3)
        final = await hosts.until(lambda status: status["phase"] == "done", HEALED_S + ROUNDS_S)
        assert final["theta_digest"] == undisturbed["theta_digest"]
        await one_ring(hosts)

"""The plan of a chaos run: drawn from the seed alone, and within its bounds; and whom it strikes."""

from __future__ import annotations

from itertools import pairwise

import pytest

from scripts.chaos_run.cluster import MANAGERS, named_in, places
from scripts.chaos_run.plan import KINDS, PARTITION_MAX_S, STOP_MAX_S, STOP_MIN_S, Fault, Kind, draw_plan

HOSTS = range(1, 5)
AGENTS = list(places(16, HOSTS))


def plan(seed: int, *kinds: Kind, seconds: float = 600.0) -> list[Fault]:
    return draw_plan(seed, seconds, 2.0, kinds or KINDS, AGENTS, list(MANAGERS), HOSTS)


def test_the_seed_is_the_plan() -> None:
    assert plan(1) == plan(1)
    assert plan(1) != plan(2)
    assert plan(1, seconds=60.0) == [fault for fault in plan(1) if fault.at_s < 60], "a shorter run is the beginning of a longer one"


def test_one_fault_in_two_seconds_on_average_of_every_kind_and_to_everybody() -> None:
    faults = [fault for seed in range(10) for fault in plan(seed)]
    assert 2700 < len(faults) < 3300
    assert [fault.at_s for fault in plan(1)] == sorted(fault.at_s for fault in plan(1))
    struck = {fault.victim for fault in faults if fault.kind != "partition"}
    assert struck == {*AGENTS, *MANAGERS}
    at_managers = sum(fault.victim in MANAGERS for fault in faults) / sum(fault.kind != "partition" for fault in faults)
    assert 0.12 < at_managers < 0.18
    assert all(STOP_MIN_S <= fault.lasts_s <= STOP_MAX_S for fault in faults if fault.kind == "stop")
    shapes = {len(fault.cuts) for fault in faults if fault.kind == "partition"}
    assert shapes == {1, 6, 8}, "deaf, one host cut off in both directions, two halves"


def test_partitions_do_not_overlap() -> None:
    parted = [fault for fault in plan(3) if fault.kind == "partition"]
    assert len(parted) > 20
    assert all(before.ends_s < after.at_s for before, after in pairwise(parted))
    alone = plan(3, "partition")
    assert {fault.kind for fault in alone} == {"partition"}
    assert all(0 < fault.lasts_s <= PARTITION_MAX_S for fault in alone)


def test_only_what_is_asked_for() -> None:
    assert {fault.kind for fault in plan(1, "kill", "stop")} == {"kill", "stop"}
    with pytest.raises(ValueError, match="a kind of fault"):
        draw_plan(1, 10.0, 2.0, [], AGENTS, list(MANAGERS), HOSTS)
    with pytest.raises(ValueError, match="two hosts"):
        draw_plan(1, 10.0, 2.0, ["partition"], AGENTS, list(MANAGERS), [1])


def test_agents_are_spread_evenly() -> None:
    assert places(5, [1, 2, 3, 4]) == {"host-1-0": 1, "host-1-1": 1, "host-2-0": 2, "host-3-0": 3, "host-4-0": 4}


def test_a_launchers_log_names_the_newest_process_of_each_agent() -> None:
    log = """name                 role     agentId                               pid   port
host-1-0             source   943f572ac9b8d1b8b8a25a2c64f5e1b1    21104  20027
host-1-1             source   5d748697c9b8d1b8b8a25a2c64f5e1b1    21105  20028
2026-11-25 21:00:40,602 WARNING fmrec.launcher host-1-0 (pid 21104) was killed by SIGKILL, version 21 durable; started again as pid 21230
2026-11-25 21:00:40,783 INFO    fmrec.agent host-1-0: goes on from version 21, round 4, iteration 100
"""
    assert named_in(log) == {"host-1-0": 21230, "host-1-1": 21105}

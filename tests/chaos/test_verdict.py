"""The verdict on a chaos run: each promise can be broken, and is then said to be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from scripts.chaos_run.promises import GROWTH_MAX_PCT, LIVES_MIN, SPAN_MIN_S, Life, Sample, Steady, growth_pct, growths, unhealed
from scripts.chaos_run.verdict import Seen, judge

LOG_A = """
2026-01-01 00:00:01,000 INFO    fmrec.tree.main committed round=0 version=1 by=7 of 12 electors agree theta=aa
2026-01-01 00:00:02,000 INFO    fmrec.tree.main aggregates round=0 contributions=4 owners=abcd upload=4
2026-01-01 00:00:02,000 INFO    fmrec.tree.main committed round=1 version=2 by=7 of 12 electors agree theta=bb
"""
LOG_B = """
2026-01-01 00:00:03,000 WARNING fmrec.manager main: the root is gone: this standby takes over, with term 9
2026-01-01 00:00:04,000 INFO    fmrec.tree.main goes_on round=1 version=3 by=7 of 12 electors agree theta=bb
2026-01-01 00:00:04,000 INFO    fmrec.tree.main aggregates round=1 contributions=4 owners=abcd replica=1 upload=3
2026-01-01 00:00:05,000 INFO    fmrec.tree.main committed round=2 version=4 by=7 of 12 electors agree theta=cc
"""
THETAS = {0: {"aa"}, 1: {"bb"}, 2: {"cc"}}
FINE = Seen(
    agents=4,
    owners="abcd",
    faults=("kill", "stop", "kill"),
    healed_s=1.0,
    stuck=None,
    manager_logs={"manager-a": LOG_A, "manager-b": LOG_B},
    logs={"manager-a.log": LOG_A, "manager-b.log": LOG_B, "agents-1.log": "host-1-0 was killed; started again"},
    lives={"host-1-0": (Life(1, 0, True, 5), Life(2, 6, True, 8))},
    thetas=THETAS,
    warm=(Sample("host-1-0", 7, 1.0, 8, 14, 20.0),),
    samples=(Sample("host-1-0", 7, 1.0, 10, 14, 20.0), Sample("host-1-0", 8, 60.0, 10, 15, 20.0)),
    calm_s=50.0,
    strays=(),
    late=(),
    odd_ends=(),
)


def broken(undisturbed: dict[int, set[str]] = THETAS, **changes: Any) -> list[str]:
    return list(judge(replace(FINE, **changes), undisturbed)["broken"])


def test_nothing_is_broken() -> None:
    report = judge(FINE, THETAS)
    assert report["broken"] == []
    assert (report["rounds"], report["faults_by_kind"], report["takeovers"], report["lives"]) == (2, {"kill": 2, "stop": 1}, 1, 2)
    assert (report["theta_equal"], report["thetas_compared"]) == (True, 3)


def test_a_round_committed_by_both_managers() -> None:
    twice = LOG_B.replace("goes_on round=1 version=3", "committed round=1 version=3")
    assert broken(manager_logs={"manager-a": LOG_A, "manager-b": twice}) == ["P1: round 1 was committed 2 times"]
    same_version = LOG_B.replace("version=4", "version=2")
    assert "P1: version 2 was committed 2 times" in broken(manager_logs={"manager-a": LOG_A, "manager-b": same_version})


@pytest.mark.parametrize("contributions", [3, 5])
def test_an_aggregate_of_too_many_or_too_few(contributions: int) -> None:
    wrong = LOG_B.replace("contributions=4", f"contributions={contributions}")
    (sentence,) = broken(manager_logs={"manager-a": LOG_A, "manager-b": wrong})
    assert sentence == f"P1: round 1 was aggregated from {contributions} contributions of 4 agents"


def test_an_aggregate_of_one_agent_twice_and_of_another_never() -> None:
    wrong = LOG_B.replace("owners=abcd", "owners=abbb")
    assert broken(manager_logs={"manager-a": LOG_A, "manager-b": wrong}) == [
        "P1: round 1 was aggregated from one agent twice, or from a stranger"
    ]
    silent = LOG_B.replace("owners=abcd ", "")
    assert broken(manager_logs={"manager-a": LOG_A, "manager-b": silent}) == [
        "P1: round 1 was aggregated from one agent twice, or from a stranger"
    ]


def test_an_aggregate_that_nobody_told_of() -> None:
    silent = LOG_B.replace("aggregates", "sums up")
    assert broken(manager_logs={"manager-a": LOG_A, "manager-b": silent}) == ["P1: nobody told how round 2 was made"]


@pytest.mark.parametrize("number", [0, 4])
def test_a_round_lost_or_passed_over(number: int) -> None:
    wrong = LOG_B.replace("committed round=2", f"goes_on round={number}")
    (sentence,) = [each for each in broken(manager_logs={"manager-a": LOG_A, "manager-b": wrong}) if each.startswith("P6")]
    assert sentence == f"P6: version 4 is of round {number} (manager-b), and version 3 was of round 1"


def life(began_from: int, durable: int, worked: bool = True) -> Life:
    return Life(1, began_from, worked, durable, last_s=9.0)


def test_a_later_life_that_knows_less() -> None:
    lost = ["P2: a began from version 4 at 9.0 s, and version 5 was durable"]
    assert broken(lives={"a": (life(0, 5), life(4, 4))}) == lost
    assert broken(lives={"a": (life(0, 5), life(0, 0, worked=False), life(4, 6))}) == lost, "the life between has seen nothing"
    assert broken(lives={"a": (life(0, 5), life(0, 0, worked=False), life(5, 6))}) == []


def test_what_was_durable_at_a_death_its_launcher_says() -> None:
    """It was durable after the last look."""
    died = "00:00:01,000 WARNING fmrec.launcher host-1-0 (pid 77) was killed by SIGKILL, version {} durable; started again as pid 78"
    for durable, lost in ((6, []), (7, ["P2: host-1-0 began from version 6 at 0.0 s, and version 7 was durable"])):
        logs = {"agents-1.log": died.format(durable)}
        assert broken(logs=logs, lives={"host-1-0": (Life(1, 0, True, 5, pid=77), Life(2, 6, True, 8, pid=78))}) == lost


def test_what_a_life_began_from_may_be_found_late() -> None:
    status = {"durable_version": 0, "resumed_from": None, "version": 0, "pid": 7}
    seen = Life(2)
    seen.see(status, 1.0)
    assert not seen.worked, "it is looking"
    for resumed, version, worked in ((9, 9, False), (10, 10, False), (10, 11, True)):
        seen.see(status | {"resumed_from": {"version": resumed}, "version": version}, 2.0)
        assert (seen.began_from, seen.worked) == (resumed, worked)
    seen.see(status | {"resumed_from": {"version": 12}, "version": 12}, 3.0)
    assert (seen.began_from, seen.worked) == (10, True), "it has worked from an older one"
    fresh = Life(2)
    fresh.see(status | {"version": 1}, 1.0)
    assert (fresh.began_from, fresh.worked) == (0, True)


def test_another_theta() -> None:
    assert broken({0: {"aa"}, 1: {"bb"}, 2: {"dd"}}) == ["P5: theta of round 2: cc"]
    assert broken(thetas=THETAS | {1: {"bb", "ee"}}) == ["P5: theta of round 1: bb, ee"]


def test_a_theta_that_nobody_looked_at_is_in_the_log() -> None:
    """A round that is over before the next look."""
    wrong = LOG_A.replace("theta=bb", "theta=dd"), LOG_B.replace("theta=bb", "theta=dd")
    logs = dict(zip(("manager-a", "manager-b"), wrong, strict=True))
    assert broken(manager_logs=logs, thetas={0: {"aa"}, 2: {"cc"}}) == ["P5: theta of round 1: dd"]
    assert judge(replace(FINE, thetas={2: {"cc"}}), THETAS)["thetas_compared"] == 3


def test_the_last_round_is_the_last_committed() -> None:
    """As many rounds are done again undisturbed: one that was committed when nobody looked any more is among them."""
    assert replace(FINE, thetas={0: {"aa"}, 1: {"bb"}}).rounds == 2


def test_a_theta_that_was_compared_only_in_part_is_not_shown() -> None:
    late = {0: {"aa"}, 1: {"bb"}}
    said = "P5: not shown: theta of {} of 3 rounds is not compared, the undisturbed run had none: {}"
    assert broken(late) == [said.format(1, "2")]
    assert broken({0: {"aa"}, 2: {"cc"}}) == [said.format(1, "1")], "one between"
    assert broken({}) == [said.format(3, "0, 1, 2")]
    assert judge(FINE, late)["theta_equal"] is False


def test_without_a_fault_nothing_is_shown() -> None:
    assert broken(faults=()) == ["no fault struck: nothing is shown"]


def test_what_is_left_over() -> None:
    assert broken(strays=(77,), late=("host-1-0 (pid 7)",)) == [
        "P8: process 77 is nobody's",
        "P8: host-1-0 (pid 7) did not leave in order",
    ]
    many = (*FINE.samples[:1], Sample("host-1-0", 8, 60.0, 50, 19, 20.0), Sample("host-1-0", 8, 62.0, 10, 20, 20.0))
    assert broken(samples=many) == ["P8: host-1-0 (pid 8) holds 19 other descriptors, where 18 are the most"]
    assert broken(samples=(*many, Sample("host-1-0", 8, 64.0, 10, 18, 20.0))) == [], "what was more was under way"
    assert broken(samples=many, calm_s=63.0) == []
    crowd = (*FINE.samples[:1], Sample("host-1-0", 8, 61.0, 13, 14, 20.0))
    assert broken(samples=crowd) == ["P8: host-1-0 (pid 8) holds 13 connections, where 12 are the most"]


@pytest.mark.parametrize("line", ["Traceback (most recent call last):", "00:00 ERROR   fmrec.x: no", "a died 11 times within a minute"])
def test_a_log_that_tells_of_trouble(line: str) -> None:
    assert broken(logs={"agents-1.log": line}) == [f"P8: agents-1.log: {line}"]


def test_what_did_not_heal_is_told_first() -> None:
    assert broken(stuck="P4: not whole within 60 s: no manager roots the tree", odd_ends=("manager-a ended with exit code 1",)) == [
        "P4: not whole within 60 s: no manager roots the tree",
        "P8: manager-a ended with exit code 1",
    ]


def grown(name: str, pid: int, *quarters: float, span_s: float = SPAN_MIN_S) -> list[Sample]:
    """A process whose size is this in each quarter of its life."""
    return [Sample(name, pid, span_s * at / 8, 1, 1, quarters[min(at // 2, 3)]) for at in range(9)]


def test_growth_is_that_of_the_median_process_after_its_youth() -> None:
    agents = [*grown("host-1-0", 1, 5, 20, 20, 21), *grown("host-1-1", 2, 10, 20, 21, 22), *grown("host-1-1", 3, 10, 20, 30, 26)]
    managers = [*grown("manager-a", 4, 50, 200, 195, 190), *grown("launcher-1", 5, 10, 20, 30, 40, span_s=SPAN_MIN_S - 1)]
    assert growth_pct(growths([*agents, *managers])) == {"agent": (10.0, 3), "manager": (-5.0, 1)}


def test_a_moment_in_which_a_sibling_is_dead_is_no_growth() -> None:
    looks = [Sample("host-1-0", 1, 2.0 * at, 1, 1, 40.0 if at == 60 else 20.0) for at in range(61)]
    assert growth_pct(growths(looks)) == {"agent": (0.0, 1)}


def test_a_role_that_goes_on_growing() -> None:
    leak = [sample for pid in range(LIVES_MIN) for sample in grown("host-1-0", pid, 5, 10, 11, 12)]
    assert broken(samples=(*FINE.samples, *leak), calm_s=999.0) == [
        f"P8: the median agent of {LIVES_MIN} that were seen for 120 s grew by 20.0 %, where {GROWTH_MAX_PCT:g} are the most"
    ]
    assert broken(samples=(*FINE.samples, *leak[: len(leak) // LIVES_MIN]), calm_s=999.0) == [], "one may have its reasons"


def leaking(name: str, pid: int, mb_a_minute: float, minutes: float) -> list[Sample]:
    """A process of 60 MB at first, looked at every two seconds."""
    return [Sample(name, pid, 2.0 * at, 1, 1, 60 + mb_a_minute * at / 30) for at in range(int(30 * minutes) + 1)]


def test_a_few_that_leak_among_many_that_do_not() -> None:
    sound = [sample for pid in range(8) for sample in leaking(f"host-1-{pid}", pid, 0.0, 30)]
    leaks = [sample for pid in range(8, 15) for sample in leaking(f"host-2-{pid}", pid, 60.0, 30)]
    (sentence,) = broken(samples=(*FINE.samples, *sound, *leaks), calm_s=1e6)
    assert sentence.startswith("P8: agents grow, MB a minute, where 2 are the most: host-2-")
    assert sentence.count("by 60.0") == 7


def test_agents_that_leak_slowly() -> None:
    leaks = [sample for pid in range(6) for sample in leaking(f"host-1-{pid}", pid, 3.0, 2)]
    (sentence,) = broken(samples=(*FINE.samples, *leaks), calm_s=1e6)
    assert sentence.count("by 3.0") == 6


def test_managers_that_leak_though_there_are_but_two() -> None:
    both = [sample for place, name in enumerate("ab") for sample in leaking(f"manager-{name}", place, 60.0, 3)]
    assert broken(samples=(*FINE.samples, *both), calm_s=1e6) == [
        "P8: managers grow, MB a minute, where 2 are the most: manager-a by 60.0, manager-b by 60.0"
    ]


@pytest.mark.parametrize(("minutes", "breaks"), [(9, False), (11, True)])
def test_a_single_process_that_leaks_is_told_after_ten_minutes(minutes: float, breaks: bool) -> None:
    assert bool(broken(samples=(*FINE.samples, *leaking("host-1-0", 1, 3.0, minutes)), calm_s=1e6)) is breaks


def status(name: str, parent: str | None, neighbours: int = 3) -> dict[str, Any]:
    above = f"ab12@{parent}" if parent else None
    return {"name": name, "address": name, "parent": above, "in_ring": True, "neighbours": neighbours}


def tree(*alive: str) -> dict[str, Any]:
    return {"members": [{"name": name, "state": "alive"} for name in alive]}


@pytest.mark.parametrize(
    ("members", "agents", "why_not"),
    [
        (("a", "b"), {"a": status("a", "manager"), "b": status("b", "a")}, None),
        (("a",), {"a": status("a", "manager"), "b": status("b", "a")}, "the manager misses b"),
        (("a", "b"), {"a": status("a", "manager"), "b": None}, "no answer from b"),
        (("a", "b"), {"a": status("a", "manager"), "b": status("b", "a", 2)}, "fewer than 3 neighbours: b"),
        (("a", "b"), {"a": status("a", "b"), "b": status("b", "a")}, "a is below itself in the tree"),
        (("a", "b"), {"a": status("a", None), "b": status("b", "manager")}, "a hangs in the tree without a parent"),
    ],
)
def test_whole(members: tuple[str, ...], agents: dict[str, Any], why_not: str | None) -> None:
    assert unhealed(tree(*members), agents, 3) == why_not


def test_whole_is_what_stays_whole() -> None:
    steady = Steady(2.0)
    assert steady.look(None, 10.0) == "whole for 0.0 s only", "the dead one has not been missed yet"
    assert steady.look("no answer from a", 11.0) == "no answer from a"
    assert steady.look(None, 12.5) == "whole for 0.0 s only", "what was before the break does not count"
    assert steady.look(None, 14.0) == "whole for 1.5 s only"
    assert steady.look(None, 14.5) is None
    assert steady.since_s == 12.5


def test_without_a_root_nothing_is_whole() -> None:
    assert unhealed(None, {}, 3) == "no manager roots the tree"

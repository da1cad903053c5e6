"""The benchmark of the overlay: its verdicts on look-ups, lives and deaths, and a run of the whole with few nodes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from protocol.identifiers import RING, NodeId
from scripts.overlay_bench.fleet import Completions
from scripts.overlay_bench.ledger import LOST_AFTER_S, Ledger, LookUp, percentile, spread
from scripts.overlay_bench.tables import judged

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "bench_overlay.py"
SMALL = ["--nodes", "12", "--processes", "2", "--preset", "loopback", "--look-ups", "20", "--idle", "0.5"]
PROMPT_S = 0.5
LEFT, RIGHT, FAR = NodeId(100), NodeId(200), NodeId(RING - 100)


def key(value: int) -> str:
    return f"{value:032x}"


def drained(**noted: list[object]) -> dict[str, list[object]]:
    return {"asked": [], "answered": [], "delivered": [], "deaths": []} | noted


@pytest.fixture
def ledger() -> Ledger:
    """Three nodes that have always lived."""
    ledger = Ledger()
    for node in (LEFT, RIGHT, FAR):
        ledger.born(node, 1, 0.0)
    return ledger


def asked(
    ledger: Ledger, at: int, by: NodeId, asked_s: float, delivered_s: float, answered_s: float | None = None, request: int = 1
) -> LookUp:
    answered: list[object] = [] if answered_s is None else [[request, key(by), answered_s, False]]
    ledger.take(drained(asked=[[request, key(at), asked_s]], delivered=[[request, key(by), 1, delivered_s]], answered=answered))
    return ledger.look_ups[request]


@pytest.mark.parametrize(
    ("at", "by", "wrong"),
    [(140, LEFT, False), (140, RIGHT, True), (150, LEFT, False), (150, RIGHT, True), (5, FAR, True), (RING - 5, FAR, False)],
)
def test_a_delivery_is_right_at_the_closest_node(ledger: Ledger, at: int, by: NodeId, wrong: bool) -> None:
    """Also across the end of the ring, and the smaller of two that are equally far."""
    assert ledger.wrong(asked(ledger, at, by, 1.0, 1.1)) is wrong


def test_a_node_that_came_or_went_on_the_way_need_not_have_had_it(ledger: Ledger) -> None:
    late = NodeId(180)
    ledger.born(late, 1, 1.05)
    assert not ledger.wrong(asked(ledger, 181, RIGHT, 1.0, 1.1)), "it was not yet there when it was asked"
    assert ledger.wrong(asked(ledger, 181, RIGHT, 1.2, 1.3, request=2))
    ledger.ended([late], 1.35)
    assert not ledger.wrong(asked(ledger, 181, RIGHT, 1.3, 1.4, request=3)), "it died on the way"
    ledger.born(late, 2, 2.0)
    assert ledger.wrong(asked(ledger, 181, RIGHT, 2.1, 2.2, request=4)), "its second life counts as well"


def test_deliveries_and_answers_come_from_processes_in_any_order(ledger: Ledger) -> None:
    ledger.take(drained(delivered=[[7, key(LEFT), 2, 1.1]]))
    ledger.take(drained(asked=[[7, key(101), 1.0]], answered=[[7, key(LEFT), 1.2, True]]))
    look_up = ledger.look_ups[7]
    assert (look_up.dialled, look_up.lost, len(look_up.deliveries)) == (True, False, 1)
    assert look_up.rtt_ms == pytest.approx(200)
    assert look_up.deliveries[0].hops == 2


def test_an_answer_proves_a_delivery_that_nobody_is_left_to_tell_of(ledger: Ledger) -> None:
    ledger.take(drained(asked=[[7, key(101), 1.0]], answered=[[7, key(LEFT), 1.2, False]]))
    assert not ledger.look_ups[7].lost
    assert not ledger.wrong(ledger.look_ups[7])


def test_what_comes_after_the_deadline_is_lost(ledger: Ledger) -> None:
    assert asked(ledger, 101, LEFT, 1.0, 1.5 + LOST_AFTER_S).lost
    ledger.take(drained(asked=[[2, key(101), 1.0]]))
    assert ledger.look_ups[2].lost


def test_right_again_when_the_last_disturbed_look_up_is_over(ledger: Ledger) -> None:
    fine = asked(ledger, 101, LEFT, 12.0, 12.1, 12.2)
    assert ledger.right_again([fine], 10.0, PROMPT_S) == 0
    late = asked(ledger, 101, LEFT, 10.1, 10.9, 11.0, request=2)
    assert ledger.right_again([fine, late], 10.0, PROMPT_S) == pytest.approx(1.0), "until its answer came"
    wrong = asked(ledger, 101, RIGHT, 11.2, 11.3, 11.4, request=3)
    assert ledger.right_again([fine, late, wrong], 10.0, PROMPT_S) == pytest.approx(1.3), "until it was delivered at the wrong node"
    ledger.take(drained(asked=[[4, key(101), 11.6]]))
    lost = ledger.look_ups[4]
    assert ledger.right_again([fine, lost], 10.0, PROMPT_S) == pytest.approx(1.6), "until it was asked"
    assert ledger.calm([fine, lost], 11.7, 13.0, PROMPT_S)
    assert not ledger.calm([fine, lost], 11.0, 13.0, PROMPT_S)
    assert not ledger.calm([fine], 13.0, 14.0, PROMPT_S), "nobody has asked: that proves nothing"


def test_a_death_is_false_where_that_very_life_goes_on(ledger: Ledger) -> None:
    ledger.ended([LEFT], 5.0)
    ledger.born(LEFT, 2, 6.0)
    ledger.take(drained(deaths=[[5.1, key(LEFT), 1], [6.5, key(LEFT), 1]]))
    assert ledger.false_deaths() == 0
    assert ledger.detected_s([LEFT], 5.0) == pytest.approx(0.1)
    assert ledger.detected_s([LEFT, RIGHT], 5.0) is None
    ledger.take(drained(deaths=[[4.9, key(LEFT), 1], [7.0, key(RIGHT), 1], [7.1, key(RIGHT), 1]]))
    assert ledger.false_deaths() == 2, "each once, however many believed it"


def test_percentiles() -> None:
    assert percentile([1.0], 0.99) == 1.0
    assert percentile(list(range(1, 101)), 0.99) == 99
    assert spread([]) == {"p50": None, "p99": None}
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)


def test_a_multicast_is_complete_when_every_process_says_so() -> None:
    completions = Completions()
    completions.note(1, "a", 1.0)
    completions.note(2, "a", 2.0)
    completions.note(2, "b", 2.5)
    assert completions.completed({"a", "b"}) == {2: 2.5}


def run(*options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True
    )


def children(pid: int) -> list[int]:
    return [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]


def test_the_whole_job_with_few_nodes() -> None:
    """Issue: one object on standard output, with these keys; nobody is declared dead by mistake, no root is wrong."""
    bench = run(*SMALL, "--json")
    try:
        out, err = bench.communicate(timeout=60)
    finally:
        bench.kill()
    assert bench.returncode == 0, err
    report = json.loads(out)
    assert {
        "nodes", "processes", "join_ms_mean", "hops_mean", "rtt_warm_ms", "rtt_cold_ms", "wrong_roots", "lost", "multicast_ms",
        "after_kill_s", "after_stop_s", "memory_mb_per_node", "idle_cpu_pct_per_node",
    } <= report.keys()  # fmt: skip
    assert (report["nodes"], report["processes"]) == (12, 2)
    for name in ("rtt_warm_ms", "rtt_cold_ms", "multicast_ms"):
        assert report[name].keys() == {"p50", "p99"}
        assert 0 < report[name]["p50"] <= report[name]["p99"]
    assert report["look_ups"] > 3 * 20
    assert (report["wrong_roots"], report["false_deaths"]) == (0, 0)
    assert report["after_kill_s"] is not None
    assert report["after_stop_s"] is not None
    assert report["floor"]["echo_ms"]["p50"] > 0
    assert len(judged(report)) == 7


def test_an_interrupt_leaves_nobody_behind() -> None:
    bench = run(*SMALL)
    try:
        while len(children(bench.pid)) < 2:
            assert bench.poll() is None, bench.communicate()
            time.sleep(0.01)
        nodes = children(bench.pid)
        os.kill(nodes[0], signal.SIGSTOP)
        bench.send_signal(signal.SIGINT)
        bench.communicate(timeout=30)
    finally:
        bench.kill()
    assert bench.returncode == 130
    assert not [pid for pid in nodes if Path(f"/proc/{pid}").exists()]


def test_too_few_nodes_are_refused() -> None:
    bench = run("--nodes", "4")
    _, err = bench.communicate(timeout=30)
    assert bench.returncode == 2
    assert "--nodes must be at least" in err

"""The benchmark of recovery, run small: real processes, one JSON object, every figure. How good they are is for a quiet machine to say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from fmrec_agent.learning.learner import Job, LearnerError
from fmrec_agent.learning.options import LearningOptions
from protocol.aio.bulk import BulkError
from scripts import bench_bulk, bench_recovery
from scripts.local_cluster import ClusterError, Status
from scripts.recovery_bench import forecaster, tables
from scripts.recovery_bench.cluster import checked, is_worth_a_signal

SCRIPT = Path(bench_recovery.__file__)
FIGURES = ("durable_ms", "pause_ms", "detect_ms", "locate_ms", "transfer_ms", "raw_ms", "restart_ms", "repeat_ms", "stop_detect_ms")
NOT_QUICK = ("checkpoint_overhead_pct", "standby_kill_s", "standby_stop_s")


def test_one_object_with_every_figure_on_standard_output() -> None:
    command = [sys.executable, str(SCRIPT), "--quick", "--json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=240)
    report = json.loads(done.stdout)
    (size,) = report["sizes_mb"]
    found = report["sizes_mb"][size]
    assert all(found[name] > 0 for name in FIGURES if name != "transfer_ms"), found
    assert found["transfer_ms"] >= 0, "nothing, where the manager holds a replica"
    for signal in ("kill_ms", "stop_ms"):
        assert 0 < found[signal]["p50"] <= found[signal]["p99"]
    assert found["bulk_ratio"] > 0 < found["bulk_digest_ratio"]
    assert found["bytes"] == pytest.approx(1e6 * float(size), rel=0.1)
    assert found["verified"] == found["kills"] + found["stops"]
    for trial in found["trials"]["SIGKILL"]:
        assert trial["version"] >= trial["durable_version"] > 0
        assert trial["total_ms"] >= trial["detect_ms"] + trial["locate_ms"] + trial["transfer_ms"] - 1
    assert report["floor"]["fork_ms"] > 0 < report["floor"]["notice_ms"]
    assert [report[name] for name in NOT_QUICK] == [None] * 3, "there, and not measured"
    assert report["aims"] == tables.judged(report)


def agent_that(*, durable: int, resumed: int | None, done: int = 100) -> Status:
    resumed_from = None if resumed is None else {"version": resumed, "round": 1, "iteration": 9}
    return {"name": "agent-1", "durable_version": durable, "resumed_from": resumed_from, "job": {"done": done, "total": 400}}


@pytest.mark.parametrize(
    ("agent", "is_worth"),
    [
        (agent_that(durable=5, resumed=None), True),
        (agent_that(durable=0, resumed=None), False),
        (agent_that(durable=5, resumed=None, done=0), False),
        (agent_that(durable=5, resumed=None, done=400), False),
        (agent_that(durable=5, resumed=4), True),
        (agent_that(durable=5, resumed=5), False),
    ],
)
def test_who_has_only_replicated_again_what_it_was_restored_from_is_no_victim(agent: Status, is_worth: bool) -> None:
    """The manager has that version since the recovery before: it would be found without a transfer."""
    assert is_worth_a_signal(agent, []) == is_worth


def test_who_hung_is_no_victim_before_it_has_a_record_that_the_manager_has_not_fetched() -> None:
    """It was not restored from anything. What was fetched of others, or is being fetched, says nothing."""
    agent = agent_that(durable=5, resumed=None)
    others = [{"agent": "agent-2", "version": 7}, {"agent": "agent-1", "version": None}]
    assert is_worth_a_signal(agent, [*others, {"agent": "agent-1", "version": 4}])
    assert not is_worth_a_signal(agent, [*others, {"agent": "agent-1", "version": 5}])


@pytest.mark.parametrize(("outcome", "version"), [("lost", None), ("verified", 4)])
def test_a_recovery_that_lost_what_was_durable_is_no_time_but_an_error(outcome: str, version: int | None) -> None:
    before = agent_that(durable=5, resumed=None)
    assert checked({"outcome": "verified", "version": 5}, before)["version"] == 5
    with pytest.raises(ClusterError, match=f"agent-1 had version 5 durable.*{outcome}, version {version}"):
        checked({"outcome": outcome, "version": version}, before)


def test_the_99th_percentile_of_few_trials_is_the_worst_of_them() -> None:
    def spread(count: int) -> dict[str, float | None]:
        return bench_recovery.spread([{"total_ms": float(number)} for number in range(1, count + 1)], "total_ms")

    assert spread(0) == {"p50": None, "p99": None}
    assert spread(20) == {"p50": 10.5, "p99": 20.0}
    assert spread(1001)["p99"] == 991.0


def test_every_aim_can_be_missed() -> None:
    spreads = {"kill_ms": {"p50": 59.0, "p99": 251.0}, "stop_ms": {"p50": 1100.0, "p99": 1201.0}}
    ratios = {"bulk_ratio": 0.7, "bulk_digest_ratio": 0.49}
    found = {**spreads, **ratios, "restart_ms": 399.0, "restart_p99_ms": 401.0, "beyond_by_raw": 2.1, "pause_ms": 4.0, "snapshot_ms": 23.0}
    met = {row["what"]: row["met"] for row in tables.judged({"sizes_mb": {"10.396": found, "100": found}, "further_agent_mb": 12.1})}
    kill, stop, moved = ("SIGKILL to the verified record", "SIGSTOP to the verified record", "share of the floor's speed")
    assert met == {
        f"{kill}, 10.396 MB, p50, ms": True,
        f"{kill}, 10.396 MB, p99, ms": False,
        "training again after SIGKILL, 10.396 MB, p50, ms": True,
        "training again after SIGKILL, 10.396 MB, p99, ms": False,
        "training again after SIGKILL, 100 MB, p50, ms": True,
        "training again after SIGKILL, 100 MB, p99, ms": False,
        "SIGKILL, 100 MB: from detection to the verified record, by the raw transfer": False,
        f"{stop}, 10.396 MB, p50, ms": True,
        f"{stop}, 10.396 MB, p99, ms": False,
        f"{stop}, 100 MB, p50, ms": True,
        f"{stop}, 100 MB, p99, ms": False,
        f"bulk transfer, 10.396 MB, {moved}": True,
        f"bulk transfer with digests, 10.396 MB, {moved}": False,
        f"bulk transfer, 100 MB, {moved}": True,
        f"bulk transfer with digests, 100 MB, {moved}": False,
        "snapshot pause, 10.396 MB, ms, without waiting for a processor; 23 by the clock": True,
        "each further agent, MiB PSS": False,
    }


def test_a_missed_aim_is_told_by_the_exit_code(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for options, met, code in (([], True, 0), ([], False, 1), (["--quick"], False, 0)):
        aims = [{"what": "speed", "met": True}, {"what": "memory", "met": met}]
        monkeypatch.setattr(bench_recovery, "bench", lambda *_, aims=aims, **__: {"aims": aims})
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--json", *options])
        assert bench_recovery.main() == code
        assert json.loads(capsys.readouterr().out) == {"aims": aims}


@pytest.mark.parametrize("content", [None, "[metadata]\nname = x", "[]", '{"sizes_mb": {}}', b"\xff"])
def test_a_file_that_cannot_be_shown_is_said_in_a_sentence(
    content: str | bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "recovery.json"
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--show", str(path)])
    assert bench_recovery.main() == 1
    assert capsys.readouterr().err.startswith(f"error: {path} cannot be shown: ")


def test_the_forecasters_state_has_the_size_that_is_asked_for_and_all_that_the_next_iteration_reads() -> None:
    options = LearningOptions(batch=4, iterations_per_round=9)
    learner, other = (forecaster.mb_1(options, name="a", role="source", index=0) for _ in range(2))
    theta = learner.initial_parameters(1)
    learner.begin(Job("train", 0, 1), theta)
    for _ in range(3):
        learner.step()
    tensors, extra = learner.state()
    assert sum(tensor.nbytes for tensor in tensors.values()) == pytest.approx(1e6, rel=0.02)
    other.restore(tensors, extra)
    assert [learner.step() for _ in range(3)] == [other.step() for _ in range(3)]
    for name, gradient in learner.finish().tensors.items():
        assert np.array_equal(gradient, other.finish().tensors[name])
    with pytest.raises(LearnerError, match="of another size"):
        forecaster.mb_0_1(options, name="a", role="source", index=0).restore(tensors, extra)


@pytest.mark.parametrize("script", [bench_recovery, bench_bulk])
def test_a_transfer_that_fails_is_said_in_a_sentence(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise BulkError("no byte has moved for 1 s")

    monkeypatch.setattr(script, "bench", fails)
    monkeypatch.setattr("sys.argv", ["bench", "--json"])
    assert script.main() == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: a transfer")
    assert said.err.endswith("failed: no byte has moved for 1 s; run it again where less else runs\n")

"""The benchmark of recovery, run small: real processes, one JSON object, every figure. How good they are is for a quiet machine to say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fmrec_agent.learning.learner import Job, LearnerError
from fmrec_agent.learning.options import LearningOptions
from scripts.recovery_bench import forecaster, tables

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench_recovery.py"
FIGURES = ("durable_ms", "pause_ms", "detect_ms", "locate_ms", "transfer_ms", "raw_ms", "restart_ms", "repeat_ms")


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
        assert trial["total_ms"] >= trial["detect_ms"] + trial["locate_ms"] + trial["transfer_ms"] - 1
    assert report["floor"]["fork_ms"] > 0 < report["floor"]["notice_ms"]
    assert report["aims"] == tables.judged(report)


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

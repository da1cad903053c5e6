"""The benchmark of the methods, run small: every method has its figures, and they are those of its own timings."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.bench_methods import METHODS

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench_methods.py"


def test_one_object_on_standard_output() -> None:
    command = [sys.executable, str(SCRIPT), "--json", "--tasks", "8", "--repeats", "2"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    report = json.loads(done.stdout)
    assert list(report["methods"]) == METHODS
    for figures in report["methods"].values():
        assert figures["of_floor"] == pytest.approx(figures["together_ms"] / report["floor_ms"], rel=0.01)
        assert figures["speed_up"] == pytest.approx(figures["one_by_one_ms"] / figures["together_ms"], rel=0.01)

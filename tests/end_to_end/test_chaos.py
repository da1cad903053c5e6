"""Chaos, for half a minute: faults drawn from a seed strike real processes, and every promise that can be seen from outside holds."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "chaos.py"
WITHIN_S = 600.0
"""For a machine that does other things as well: chaos.py bounds each of its parts by itself."""


def chaos(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *options], capture_output=True, text=True, timeout=WITHIN_S, cwd=ROOT)


def test_every_promise_holds_under_chaos(tmp_path: Path) -> None:
    done = chaos("--seconds", "25", "--seed", "8", "--agents", "8", "--out", str(tmp_path), "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["broken"] == []
    assert report["faults"] > 5
    assert report["rounds"] > 3
    assert report["thetas_compared"] > 3
    assert report["theta_equal"] is True
    for leftover in ("durable_lost", "double_contributions", "rounds_lost", "leaked_processes", "leaked_fds"):
        assert report[leftover] == 0
    assert {"seed", "seconds", "memory_growth_pct", "healed_s", "command"} <= report.keys()


def test_an_interrupt_leaves_nobody_behind(tmp_path: Path) -> None:
    """Also in the background of a shell, where SIGINT is ignored."""
    command = [sys.executable, str(SCRIPT), "--agents", "4", "--out", str(tmp_path / "out")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        deadline = time.monotonic() + WITHIN_S
        while len(running(tmp_path)) < 5:  # itself, two managers, and the agents that have a disk
            assert time.monotonic() < deadline, running(tmp_path)
            assert run.poll() is None, "it ended by itself"
            time.sleep(0.05)
        run.terminate()
        assert run.wait(WITHIN_S) == 130
    assert running(tmp_path) == []


def running(folder: Path) -> list[int]:
    """The processes whose command names this folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if str(folder).encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def test_options_that_make_no_run() -> None:
    done = chaos("--agents", "2")
    assert done.returncode == 2
    assert "--agents is at least" in done.stderr

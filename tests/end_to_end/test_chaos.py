"""Chaos, for half a minute: faults drawn from a seed strike real processes, and every promise that can be seen from outside holds."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "chaos.py"
WITHIN_S = 600.0
"""For a machine that does other things as well: chaos.py bounds each of its parts by itself."""


def chaos(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *options], capture_output=True, text=True, timeout=WITHIN_S, cwd=ROOT)


def test_every_promise_holds_under_chaos(tmp_path: Path) -> None:
    done = chaos("--seconds", "15", "--seed", "8", "--agents", "8", "--out", str(tmp_path), "--json")
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


@pytest.mark.parametrize("started", [1, 2, 4])  # two managers, and the launchers of the hosts with a disk
def test_an_interrupt_leaves_nobody_behind(tmp_path: Path, started: int) -> None:
    """Also in the background of a shell, where SIGINT is ignored. Nor does it take away what is not its own."""
    out = tmp_path / "out"
    for path in (out / "of the user", out / "chaos" / "of an earlier run"):
        path.mkdir(parents=True)
    command = [sys.executable, str(SCRIPT), "--agents", "4", "--out", str(out)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        deadline = time.monotonic() + WITHIN_S
        while len(running(tmp_path, "/fmrec-")) < started:
            assert time.monotonic() < deadline, running(tmp_path)
            assert run.poll() is None, "it ended by itself"
            time.sleep(0.005)
        run.terminate()
        assert run.wait(WITHIN_S) == 130
    assert running(tmp_path) == []
    assert (out / "of the user").exists()
    assert not (out / "chaos" / "of an earlier run").exists()


def running(folder: Path, program: str = "") -> list[int]:
    """The processes whose command names this folder, and this program."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            command = path.read_bytes().decode()
            if str(folder) in command and program in command:
                found.append(int(path.parent.name))
    return found


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--agents", "2"), "--agents is at least"),
        (("--seconds", "inf"), "above 0 and finite"),
        (("--seconds", "nan"), "above 0 and finite"),
        (("--every", "inf"), "above 0 and finite"),
        (("--seconds", "0.001"), "no fault is drawn within 0.001 seconds"),
    ],
)
def test_options_that_make_no_run(tmp_path: Path, options: tuple[str, ...], said: str) -> None:
    done = chaos(*options, "--out", str(tmp_path))
    assert done.returncode == 2
    assert said in done.stderr


def test_a_file_is_no_folder_to_write_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in ("file", "file/below"):
        done = chaos("--out", str(tmp_path / out))
        assert done.returncode == 2
        assert "--out is a folder" in done.stderr
        assert "Traceback" not in done.stderr

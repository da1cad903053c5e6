"""The paper's figures again, run small: the keys, that FMRec's result is the undisturbed one's, and that the contrary would be seen."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts.paper import exact
from scripts.paper_run import recovery
from scripts.paper_run.runs import Seen

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "paper.py"


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fig. 1 in one process, and the recovery of ADMM on real processes, with SIGKILL to three of them."""
    out = tmp_path_factory.mktemp("paper")
    command = [sys.executable, str(SCRIPT), "--quick", "--only", "fig1", "--only", "recovery", "--seeds", "1"]
    subprocess.run([*command, "--out", str(out), "--runs", str(out / "runs")], check=True, timeout=300)
    return out


def test_fig1(paper: Path) -> None:
    report = json.loads((paper / "fig1.json").read_text())
    curves = report["rmse_pp"]
    assert report["fmrec_equals_undisturbed"]
    assert curves["fmrec"] == curves["undisturbed"]
    assert curves["unprotected"]["mean"][0] == curves["undisturbed"]["mean"][0]
    assert curves["unprotected"]["mean"][-1] > 2 * curves["undisturbed"]["mean"][-1]
    assert (paper / "fig1.png").read_bytes().startswith(b"\x89PNG")


def test_recovery(paper: Path) -> None:
    report = json.loads((paper / "recovery.json").read_text())
    assert report.keys() == {"admm"}
    row = report["admm"]
    assert row["theta_equal"]
    assert row["rounds_lost"] <= 1
    assert len(row["killed"]) == len(recovery.VICTIMS)


def test_the_page_has_each_part(paper: Path) -> None:
    page = (paper / "README.md").read_text()
    assert "equals the undisturbed one's bit for bit" in page
    assert "| admm | yes |" in page


def seen(theta: str) -> Seen:
    """A run of three rounds, in whose middle one an agent was killed that did 3 iterations again."""
    life: dict[str, Any] = {"name": "agent-1", "round": 1, "iteration": 21, "job": {"done": 9, "total": 12}}
    return Seen(final={"theta_digest": theta, "losses": [0.3, 0.2, 0.1], "rounds": 3}, lives=[life], resumed=[18], commits=[1.0, 3.5, 4.5])


def test_another_theta_is_told_and_what_kills_cost_is_counted() -> None:
    same, other = recovery.row("aa", seen("aa")), recovery.row("aa", seen("bb"))
    assert (same["theta_equal"], other["theta_equal"]) == (True, False)
    assert (same["rounds_lost"], same["seconds_lost"]) == (0.25, 1.5)
    assert exact("recovery", {"admm": same})
    assert not exact("recovery", {"admm": same, "lin": other})

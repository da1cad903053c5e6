"""The paper's figures again, run small: the keys, that FMRec's result is the undisturbed one's, and that the contrary would be seen."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import scripts.paper
from fmrec_manager.aggregation import AggregationError
from scripts.paper import arguments, exact, main
from scripts.paper_run import fig4, recovery
from scripts.paper_run.finished import Finished
from scripts.paper_run.runs import Seen

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "paper.py"


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fig. 1 in one process and a point of it on real ones, and the recovery of ADMM on real processes, with SIGKILL to three of them."""
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
    (point,) = report["on_processes"]
    assert (point["theta_equal"], point["rmse_equal"]) == (True, True), "what one process computes is what real ones do"
    assert (paper / "fig1.png").read_bytes().startswith(b"\x89PNG")


def test_recovery(paper: Path) -> None:
    report = json.loads((paper / "recovery.json").read_text())
    assert report.keys() == {"admm"}
    row = report["admm"]
    assert row["theta_equal"]
    assert row["rounds_lost"] <= 1
    assert len(row["killed"]) == len(recovery.VICTIMS)


def test_the_page_has_each_part_and_says_what_was_run_and_how(paper: Path) -> None:
    page = (paper / "README.md").read_text()
    assert page.count("Run small (`--quick`)") == 2
    assert page.count("`scripts/paper.py --quick --only fig1 --only recovery --seeds 1 --out ") == 2
    assert "equals the undisturbed one's bit for bit" in page
    assert "| admm | yes |" in page


def test_a_small_run_does_not_write_over_the_figures(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["paper.py", "--quick", "--only", "recovery"])
    with pytest.raises(SystemExit):
        arguments()
    assert "--quick makes no figures, and would write over those in" in capsys.readouterr().err


def test_a_round_that_fails_is_told_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def fails(*_: Any) -> dict[str, Any]:
        raise AggregationError("the step makes tensor w of theta overflow: lower server_rate")

    monkeypatch.setattr(sys, "argv", ["paper.py", "--quick", "--only", "parking", "--out", str(tmp_path)])
    monkeypatch.setattr(scripts.paper, "measured", fails)
    assert main() == 1
    assert capsys.readouterr().err == "error: the step makes tensor w of theta overflow: lower server_rate\n"


def test_an_interruption_while_a_result_is_written_leaves_those_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "finished.json"
    write = Path.write_text

    def interrupted(self: Path, text: str) -> int:
        write(self, text[: len(text) // 2])
        raise KeyboardInterrupt

    async def two_results() -> None:
        finished = Finished(path, resume=False)
        await finished.once("first", partial(result, 1))
        await finished.once("second", partial(result, 2))

    async def result(value: int) -> int:
        made.append(value)
        if value == 2:
            monkeypatch.setattr(Path, "write_text", interrupted)
        return value

    made: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(two_results())
    monkeypatch.undo()
    assert asyncio.run(Finished(path, resume=True).once("first", partial(result, 0))) == 1
    assert made == [1, 2]


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


def test_a_drift_of_the_machine_does_not_hide_what_a_failure_costs() -> None:
    """Each point runs at another speed of the machine; FMRec costs 1 % of its own baseline, and beginning anew all that was done."""
    points, speeds = (100, 400), {100: (1.0, 1.7, 0.8), 400: (1.5, 0.6, 1.2)}
    costs = {"baseline": (1.0, 0.0), "checkpoints": (1.005, 0.0), "fmrec": (1.01, 0.0), "baseline_failure": (1.0, 1 / 400)}
    """By variant: what a run without a failure takes, and each iteration that was done before one."""

    def ran(seconds: float, theta: str = "aa") -> dict[str, Any]:
        figures = {"wall_s": seconds, "cpu_s": seconds / 2, "record_bytes": 1_300_000, "iterations_again": 0}
        return {**figures, "theta": theta, "rmse_pp": 3.5}

    took = {
        (name, at): [ran(10 * speed * (whole + each * at)) for speed in speeds[at]]
        for name, (whole, each) in costs.items()
        for at in points
    }
    report = fig4.report(points, took)
    assert report["fmrec_over_baseline"] == report["fmrec_cpu_over_baseline"] == 1.01
    assert [point["baseline_failure_over_baseline"] for point in report["points"]] == [1.25, 2.0]
    assert (report["checkpoints_over_baseline"], report["baseline_s"], report["aim"]["met"]) == (1.005, 11.0, True)
    low, high = report["baseline_s_over_the_one_before"]
    assert high - low > 0.3
    assert exact("fig4", report)
    took["fmrec", 400][2] = ran(12.0, theta="bb")
    assert not exact("fig4", fig4.report(points, took))

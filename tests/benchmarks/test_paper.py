"""The paper's figures again, run small: the keys, that FMRec's result is the undisturbed one's, and that the contrary would be seen."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import scripts.paper
from fmrec_agent.learning.options import LearningOptions
from fmrec_manager.aggregation import AggregationError
from scripts.federation import Stage, adapted, train
from scripts.paper import PARTS, arguments, exact, main
from scripts.paper_run import fig1, fig4, recovery
from scripts.paper_run.finished import Finished
from scripts.paper_run.runs import Seen

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "paper.py"


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every part; among them a point of Fig. 1, Fig. 4, and the recovery of ADMM, on real processes with SIGKILL."""
    out = tmp_path_factory.mktemp("paper")
    command = [sys.executable, str(SCRIPT), "--quick", "--seeds", "1", "2", "--repeats", "1"]
    subprocess.run([*command, "--out", str(out), "--runs", str(out / "runs")], check=True, timeout=540)
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


def test_a_target_in_one_process_draws_what_a_real_one_draws() -> None:
    """Fig. 1 compares its fates with real processes (test_fig1)."""
    options = LearningOptions.model_validate({"adapt_iterations": fig1.ITERATIONS, "task": {"name": "parking", "data": "synthetic"}})
    trained = train(options, sources=fig1.SOURCES, stages=(Stage(1, fig1.SERVER_RATE),), optimizer="adam", seed=1)
    found = [fig1.fate(options, trained.theta, index, 1, 1).undisturbed for index in range(2)]
    assert [one["rmse_pp"] for one in adapted(options, trained, targets=2, seed=1)] == found


def test_fig4(paper: Path) -> None:
    report = json.loads((paper / "fig4.json").read_text())
    (point,) = report["points"]
    assert (point["iterations"], report["repeats"], report["result_equal"]) == (fig4.EVERY, 1, True)
    assert point["fmrec_iterations_again"] < fig4.EVERY
    began_anew = [run["iterations_again"] for run in report["runs"] if run["variant"] == "baseline_failure"]
    assert min(began_anew) >= fig4.EVERY, "without checkpoints all that was done is done again"
    assert (paper / "fig4.png").read_bytes().startswith(b"\x89PNG")


def test_parking(paper: Path) -> None:
    """Small: two targets, one seed; whose errors are the targets' own, and persistence the same for all."""
    report = json.loads((paper / "parking.json").read_text())
    assert list(report) == ["1", "3", "6", "24"]
    for row in report.values():
        assert row.keys() == {"fedavg", "maml", "ridge", "persistence"}
        assert all(len(set(found["rmse_pp_by_target"])) == 2 for found in row.values())
        assert row["persistence"] == report["1"]["persistence"]
        assert row["maml"]["seeds"] == [1]
    assert report["24"]["ridge"]["rmse_pp_mean"] < report["24"]["persistence"]["rmse_pp_mean"]


def test_recovery(paper: Path) -> None:
    report = json.loads((paper / "recovery.json").read_text())
    assert report.keys() == {"admm"}
    row = report["admm"]
    assert row["theta_equal"]
    assert row["rounds_lost"] <= 1
    assert len(row["killed"]) == len(recovery.VICTIMS)


def test_the_page_has_each_part_and_says_what_was_run_and_how(paper: Path) -> None:
    page = (paper / "README.md").read_text()
    assert "Not run here yet: `" not in page
    assert page.count("Run small (`--quick`)") == len(PARTS)
    assert page.count("`scripts/paper.py --quick --seeds 1 2 --repeats 1 --out ") == len(PARTS)
    assert re.search(r"^\| 50 \| \d\.\d\d \| ", page, re.MULTILINE), "Fig. 4's one point"
    for method in ("fedavg, hidden size 1", "maml, hidden size 4", "persistence", "ridge"):
        assert re.search(rf"^\| {method} (\| \d+\.\d\d ){{4}}\|$", page, re.MULTILINE)
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
    assert [Finished(where, resume=True).resumed for where in (path, tmp_path / "another")] == [True, False]
    assert not Finished(path, resume=False).resumed
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


def test_what_a_failure_adds_beside_the_iterations_is_told_by_the_pace_of_the_run() -> None:
    """Two lives at 20 and 25 ms an iteration; half a second before the first, a whole one between them."""
    ran = Seen(final={"elapsed_s": 12.0}, adapting=1.0)
    first, second = [(1.0, 0), (1.52, 1), (3.5, 100), (5.5, 200)], [(6.5, 200), (6.525, 201), (9.0, 300), (11.5, 400)]
    ran.sights = {7: first, 8: second, 9: [(11.6, 400)]}
    pace_s = ((5.5 - 1.52) + (11.5 - 6.525)) / (199 + 199)
    assert ran.beside_iterations_s == pytest.approx(11.0 - 400 * pace_s)
    assert 1.5 < ran.beside_iterations_s < 2.1


def test_fig4_runs_each_failure_of_fmrec_beside_its_baseline_and_takes_turns() -> None:
    """What drifts favours neither; the run of checkpoints alone stands beside that baseline, too."""
    for repeat, pair in enumerate((("baseline", "fmrec"), ("fmrec", "baseline"), ("baseline", "fmrec"))):
        order = fig4.order_of((100, 400), repeat)
        assert len(order) == len(set(order)) == 7
        assert [at for _, at in order] == [100] * 4 + [400] * 3
        for at in (100, 400):
            assert tuple(variant for variant, its in order if its == at and variant in pair) == pair
        assert abs(order.index(("checkpoints", 100)) - order.index(("baseline", 100))) == 1


def test_a_drift_of_the_machine_does_not_hide_what_a_failure_costs() -> None:
    """Each point runs at another speed of the machine; FMRec costs 1 % of its own baseline, and beginning anew all that was done."""
    points, speeds = (100, 400), {100: (1.0, 1.7, 0.8), 400: (1.5, 0.6, 1.2)}
    costs = {"baseline": (1.0, 0.0), "checkpoints": (1.005, 0.0), "fmrec": (1.01, 0.0), "baseline_failure": (1.0, 1 / 400)}
    """By variant: what a run without a failure takes, and each iteration that was done before one."""

    def ran(seconds: float, theta: str = "aa", beside: float = 0.05) -> dict[str, Any]:
        times = {"wall_s": seconds, "cpu_s": seconds / 2, "beside_iterations_s": beside}
        figures = {**times, "record_bytes": 1_300_000, "iterations_again": 0}
        return {**figures, "theta": theta, "rmse_pp": 3.5}

    took = {
        (name, at): [ran(10 * speed * (whole + each * at), beside=0.16 if name == "fmrec" else 0.05) for speed in speeds[at]]
        for name, (whole, each) in costs.items()
        for at in points
    }
    report = fig4.report(points, took)
    assert report["fmrec_over_baseline"] == report["fmrec_cpu_over_baseline"] == 1.01
    assert [point["baseline_failure_over_baseline"] for point in report["points"]] == [1.25, 2.0]
    assert (report["checkpoints_over_baseline"], report["baseline_s"], report["aim"]["met"]) == (1.005, 11.0, True)
    assert (report["fmrec_adds_s"], report["fmrec_adds_over_baseline"]) == (0.11, 0.01)
    low, high = report["baseline_s_over_the_one_before"]
    assert high - low > 0.3
    assert exact("fig4", report)
    took["fmrec", 400][2] = ran(12.0, theta="bb")
    assert not exact("fig4", fig4.report(points, took))

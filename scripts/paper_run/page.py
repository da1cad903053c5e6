"""docs/paper/README.md, from the JSON beside it: what was run, the tables, and what differs from the published figures."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from scripts.paper_run.fig4 import UNITS
from scripts.paper_run.recovery import METHODS

PUBLISHED = {
    "ALL (CLL-LSTM)": (4.52, 3.78, 3.56, 3.55),
    "FML-LSTM": (5.53, 4.74, 4.41, 4.05),
    "FML-GRU": (5.53, 4.91, 4.49, 4.52),
    "transfer-LSTM": (5.76, 5.00, 4.62, 4.55),
    "LSTM alone": (6.38, 4.96, 5.49, 5.51),
}
"""Mean RMSE x 100 over the targets for 1, 3, 6 and 24 days: Qu et al., Mathematics 10(12) 2039, 2022."""
QUICK = """
**Run small (`--quick`): this shows that it runs. Its figures are none.**
"""
FIG1_ROWS = {"undisturbed": "undisturbed", "fmrec": "FMRec", "anew": "unprotected, time left", "unprotected": "unprotected"}
ABOUT = """# The paper again

`make paper` (`DATA=folder` for the real parking data) runs the figures of Xu et al., *Fast Meta Failure Recovery for Federated
Meta-Learning*, on this machine and writes this page, the JSON and the pictures beside it. `scripts/paper.py --only fig4` does one
part. The synthetic data is used where no folder is named, and each part says which it was.
"""
FIG1_TEXT = """
Twelve targets adapt one trained theta for 400 iterations; a node loses its meta knowledge at iteration 390. *Unprotected* is the
paper's failure: what the node had is removed, and a random model is left. *Time left*: the node comes back at once and trains such
a model in the ten iterations that are left. *FMRec*: a new life restores the checkpoint of iteration 350. The curves are computed
in one process, by the Learner contract and the manager's Aggregator; the points on real processes are runs of 21 agents with
SIGKILL in the middle of the adaptation, and each target's RMSE there must equal that of one process bit for bit.

The paper's curve rises from 10 to 45, and says neither which nodes fail nor when. Ours begins lower because every target has
adapted; where it ends is what a random LSTM forecasts, which depends on its initialisation alone.
"""
FIG4_TEXT = """
Real processes. One target adapts an LSTM of hidden size {hidden} in batches of (256, 6, 1) at rate 0.02; a checkpoint holds its
parameters and Adam's moments, and eight of them, one every {checkpoint_every} of 400 iterations, are as large as the paper's 10.396
MB. {iterations} iterations are run, so that the agent still lives when the last checkpoint is durable. It is killed by SIGKILL
after so many iterations, FMRec's as soon as that checkpoint is durable; a kill at a random moment costs FMRec half an interval
more, {half} iterations, in the mean. *Baseline* takes no checkpoints. *CPU time* is the
target's, through all its lives: other programs on the machine lengthen it less. Medians of {repeats} interleaved repeats; each
percentage is the median of what runs took by the baseline beside them (FMRec's after it in one repeat, before it in the next), and not that
of the two columns' medians. The picture draws these ratios, on the median of all baselines.
"""
NOISE_MAX = 0.04
NOISY = """
Here equal runs differ by more than FMRec costs: other programs had the machine, or its host's. What the failure adds is told by the last
figure above; the others want a run where nothing else runs.
"""
FIG4_DIFFERS = """
The paper's FMRec costs about a minute on top of its baseline, whose length it does not say; its unprotected run nearly doubles at
10 MB. What doubles is the work: all that was done is done again.
"""
RECOVERY_TEXT = """
Real processes: 12 agents, 9 of them sources, 8 rounds; SIGKILL to three sources in the middle of a round, `--restart on-failure`,
mode `exact`. Their theta is compared with that of the undisturbed run, made in one process by the same learners and the manager's
Aggregator. *rounds lost*: the most work that one agent did again, in rounds, and any round that closed without one. *seconds lost*:
the rounds in which agents were killed, beside the median of the others of that run.
"""
PARKING_TEXT = """
By the Learner contract and the manager's Aggregator, without a network: a run of real processes ends with the same theta. Mean over
the targets of RMSE x 100. *ridge* is the linear model with a learnt prior, trained for each number of days; *maml* and *fedavg* are
LSTMs, trained once, *fedavg* the published one; all on the sources alone (docs/learning.md), from each seed. Nothing in *ridge* is left
to chance. The published rows are of Qu et al. (2022), on the real data.
"""


def write(folder: Path) -> None:
    """The page, of the parts that are there."""
    runs = _read(folder / "runs.json")
    parts = {"fig1": _fig1, "fig4": _fig4, "parking": _parking, "recovery": _recovery}
    made = [f"\n{make(_read(folder / f'{part}.json'), runs[part])}" for part, make in parts.items() if part in runs]
    missing = [f"`--only {part}`" for part in parts if part not in runs]
    rest = f"\nNot run here yet: {', '.join(missing)}.\n" if missing else ""
    (folder / "README.md").write_text(ABOUT + rest + "".join(made))


def _read(path: Path) -> Any:
    return json.loads(path.read_text())


def _table(head: list[str], rows: list[list[Any]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n" + "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def _source(about: dict[str, Any]) -> str:
    took = f"{about['seconds']:.0f} s{' since it was resumed' if about['resumed'] else ''}"
    return (QUICK if about["quick"] else "") + (
        f"\nData: {about['data']}. `{about['command']}`, {took} on {about['hardware']}; "
        f"load average {about['load']}, which every time here depends on.\n"
    )


def _fig1(report: dict[str, Any], about: dict[str, Any]) -> str:
    shown = [number for number in report["nodes"] if number % 3 == 0]
    rows = [[words, *(f"{report['rmse_pp'][name]['mean'][number]:.2f}" for number in shown)] for name, words in FIG1_ROWS.items()]
    equal = "equals the undisturbed one's bit for bit, in every node"
    if not report["fmrec_equals_undisturbed"]:
        equal = "DIFFERS from the undisturbed one's"
    seeds = ", ".join(str(seed) for seed in report["seeds"])
    points = [
        [point["curve"], point["nodes"], f"{point['rmse_pp']:.2f}", _yes(point["theta_equal"]), _yes(point["rmse_equal"])]
        for point in report["on_processes"]
    ]
    head = ["on real processes", "nodes", "RMSE, pp", "theta equal to that of one process", "each target's RMSE equal"]
    return (
        "## Fig. 1: what lost meta knowledge does to the forecast\n\n![Fig. 1](fig1.png)\n"
        + FIG1_TEXT
        + _source(about)
        + f"\nMean RMSE in percentage points, seeds {seeds}. FMRec's {equal}.\n"
        + _table(["nodes that lost it", *(str(number) for number in shown)], rows)
        + (_table(head, points) if points else "")
    )


def _fig4(report: dict[str, Any], about: dict[str, Any]) -> str:
    rows = [
        [
            point["iterations"],
            f"{point['mb']:.2f}",
            f"{point['baseline_s']:.2f}",
            f"{point['baseline_failure_s']:.2f} ({_more(point['baseline_failure_over_baseline'])})",
            f"{point['fmrec_s']:.2f} ({_more(point['fmrec_over_baseline'])})",
            _more(point["baseline_failure_cpu_over_baseline"]),
            _more(point["fmrec_cpu_over_baseline"]),
            f"{point['fmrec_iterations_again']:g}",
        ]
        for point in report["points"]
    ]
    equal = "the same bit for bit" if report["result_equal"] else "NOT the same"
    half = report["checkpoint_every"] // 2
    head = ["killed at iteration", "MB accumulated", "baselines, s", "baseline with failure, s", "FMRec with failure, s"]
    head += ["CPU time, baseline with failure", "CPU time, FMRec", "iterations FMRec did again"]
    return (
        "## Fig. 4: the time of adaptation\n\n![Fig. 4](fig4.png)\n"
        + FIG4_TEXT.format(**report, half=half)
        + _source(about)
        + _fig4_all(report)
        + (NOISY if _width(report["baseline_s_over_the_one_before"]) > NOISE_MAX else "")
        + _table(head, rows)
        + f"\nCheckpoints without a failure: {report['checkpoints_s']:.2f} s ({_more(report['checkpoints_over_baseline'])}), "
        f"CPU time {_more(report['checkpoints_cpu_over_baseline'])}. "
        f"theta and the target's RMSE of the baseline and of FMRec are {equal}.\n" + FIG4_DIFFERS
    )


def _fig4_all(report: dict[str, Any]) -> str:
    wall, cpu = (_range(report[f"baseline_{unit}_over_the_one_before"]) for unit in UNITS)
    more, cpu_more = _more(report["fmrec_over_baseline"]), _more(report["fmrec_cpu_over_baseline"])
    return (
        f"\nBaseline: {report['baseline_s']:.2f} s. FMRec with a failure, over all points: {more}, CPU time {cpu_more}.\n"
        f"Half of the baselines took {wall} of the one before, CPU time {cpu}.\n"
        f"Beside the iterations, by the pace of the same run, the failure adds at least {report['fmrec_adds_s']:.3f} s to FMRec's time: "
        f"{_more(1 + report['fmrec_adds_over_baseline'])} of the baseline's.\n"
    )


def _parking(report: dict[str, Any], about: dict[str, Any]) -> str:
    days = list(report)
    methods = sorted({method for row in report.values() for method in row})
    rows = [
        [_named(method, report[days[0]][method]), *(f"{report[day][method]['rmse_pp_mean']:.2f}" for day in days)] for method in methods
    ]
    rows += [[f"{name}, published", *(f"{value:.2f}" for value in values)] for name, values in PUBLISHED.items()]
    head = ["days of target data", *days]
    return "## Parking: RMSE in four settings\n" + PARKING_TEXT + _source(about) + _table(head, rows)


def _named(method: str, row: dict[str, Any]) -> str:
    hidden = f", hidden size {row['hidden']}" if row["hidden"] else ""
    seeds = f", {len(row['seeds'])} seeds" if len(row["seeds"]) > 1 else ""
    return method + hidden + seeds


def _recovery(report: dict[str, Any], about: dict[str, Any]) -> str:
    rows = [
        [method, _yes(row["theta_equal"]), f"{row['rounds_lost']:.2f}", f"{row['seconds_lost']:.2f}", "; ".join(row["killed"])]
        for method, row in report.items()
    ]
    missing = [method for method in METHODS if method not in report]
    rest = f"\nNot run here yet: {', '.join(missing)}.\n" if missing else ""
    head = ["method", "theta equal, bit for bit", "rounds lost", "seconds lost", "killed"]
    return "## Every method, 3 of 12 agents killed\n" + RECOVERY_TEXT + _source(about) + _table(head, rows) + rest


def _range(quartiles: list[float]) -> str:
    return " to ".join(f"{100 * ratio:.1f} %" for ratio in quartiles)


def _width(quartiles: list[float]) -> float:
    return max(quartiles) - min(quartiles) if len(quartiles) > 1 else math.inf


def _more(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f} %"


def _yes(value: bool) -> str:
    return "yes" if value else "NO"

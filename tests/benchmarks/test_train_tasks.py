"""Training the tasks from the command line, run small: the cases that were asked for, and figures that any JSON reader takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.train_tasks import HARMONICS

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "train_tasks.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=300, check=False)


def test_only_the_case_that_is_asked_for_from_each_seed() -> None:
    done = run("sinusoid", "--quick", "--only", "pre-trained", "--threads", "2", "--seeds", "0", "1", "--json")
    assert done.returncode == 0, done.stderr

    def refused(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    report = json.loads(done.stdout, parse_constant=refused)
    assert (report["threads"], report["quick"]) == (2, True)
    found = [(row["case"], row["seed"], row["rounds"]) for row in report["rows"]]
    assert found == [(f"pre-trained, at {rate}", seed, 250) for seed in (0, 1) for rate in (0.001, 0.01)]
    assert all(row["mse_after_1"] > 0 for row in report["rows"])


def test_a_case_that_there_is_not_names_those_that_there_are() -> None:
    done = run("sinusoid", "--quick", "--only", "meta")
    assert done.returncode == 2
    assert "'meta' is in no case's name: Meta-SGD, losses of steps 1 and 10, pre-trained" in done.stderr


@pytest.mark.parametrize("option", [("--only", "ridge"), ("--threads", "2")], ids=str)
@pytest.mark.parametrize("experiment", ["synthetic", "parking"])
def test_an_option_that_an_experiment_does_not_know_is_refused(experiment: str, option: tuple[str, str]) -> None:
    done = run(experiment, "--quick", *option)
    assert done.returncode == 2
    assert f"{option[0]} is of sinusoid and omniglot, and does nothing to {experiment}" in done.stderr


def test_what_is_compared_on_left_out_lots() -> None:
    done = run("parking-choice", "--quick", "--seeds", "3", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    kinds = [f"{harmonics} harmonics, {kind}" for harmonics in HARMONICS for kind in ("products", "plain")]
    assert [row["case"] for row in rows] == [f"{days} days, {kind}" for days in (1, 3, 6, 24) for kind in kinds]
    assert all(0 < row["rmse_pp"] < 100 for row in rows)
    assert len({row["rmse_pp"] for row in rows}) == len(rows), "each is another model or another target's data"

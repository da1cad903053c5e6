"""The benchmark of aggregation, run small: every rule gives its figures. How good they are is for a quiet machine to say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scripts import bench_aggregation

SCRIPT = Path(bench_aggregation.__file__)


def test_quick_prints_one_object_on_standard_output() -> None:
    command = [sys.executable, str(SCRIPT), "--quick", "--json"]
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout)
    cpu = report["devices"]["cpu"]
    assert cpu["copy_gb_per_s"] > 0
    assert [row["rule"] for row in cpu["rows"]] == ["weighted_mean", "median", "trimmed_mean", "krum"]
    assert all((row["agents"], row["parameters"]) == (5, 1000) and row["seconds"] > 0 for row in cpu["rows"])
    assert report["aims"] == [], "so little says nothing about bandwidth"


def test_the_mean_of_a_gibibyte_or_more_has_an_aim() -> None:
    sizes = {"weighted_mean": [(500, 1_000_000, 0.81), (300, 1_000_000, 0.79), (100, 1_000_000, 0.1)], "krum": [(500, 1_000_000, 0.01)]}
    rows = [
        {"agents": agents, "parameters": parameters, "rule": rule, "share_of_copy": share}
        for rule, measured in sizes.items()
        for agents, parameters, share in measured
    ]
    judged = bench_aggregation.aims({"cpu": {"rows": rows}})
    assert [(aim["what"], aim["met"]) for aim in judged] == [
        ("weighted_mean of 500 x 1,000,000 on cpu", True),
        ("weighted_mean of 300 x 1,000,000 on cpu", False),
    ]


def test_bytes_are_counted_as_they_are_defined() -> None:
    part = bench_aggregation.bench_device(torch.device("cpu"), [(40, 50_000)], ["weighted_mean", "krum"], 1, 1 << 20)
    for row in part["rows"]:
        assert row["read_gb_per_s"] * row["seconds"] == pytest.approx(4 * 40 * 50_000 / 1e9, rel=0.05)
        assert row["share_of_copy"] == pytest.approx(row["read_gb_per_s"] / part["copy_gb_per_s"], rel=0.05, abs=1e-3)
    assert [row["rule"] for row in part["rows"]] == ["weighted_mean", "krum"]


@pytest.mark.parametrize(("option", "value"), [("--agents", "2"), ("--parameters", "0"), ("--trials", "0")])
def test_sizes_that_make_no_sense_are_said_in_a_sentence(
    option: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), option, value])
    with pytest.raises(SystemExit) as ended:
        bench_aggregation.main()
    assert ended.value.code == 2
    assert "--agents must be at least 3 each, --parameters and --trials at least 1" in capsys.readouterr().err

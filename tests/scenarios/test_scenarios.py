"""Every scenario leaves the trace that its file says. The files are the documentation; runner.py says how they are written."""

from __future__ import annotations

from difflib import unified_diff
from pathlib import Path

import pytest

from tests.scenarios.runner import RULE, Scenario, files, replay


@pytest.mark.parametrize("path", files(), ids=lambda path: path.stem)
def test_the_trace_is_the_one_told(path: Path) -> None:
    told = path.read_text()
    now = replay(told)
    diff = "\n".join(unified_diff(told.splitlines(), now.splitlines(), "told", "now", lineterm=""))
    assert now == told, f"{diff}\n\nIf it is right now: python -m tests.scenarios.runner --rewrite {path}, and read every line."


def test_there_are_scenarios() -> None:
    assert len(files()) >= 14


@pytest.mark.parametrize("path", files(), ids=lambda path: path.stem)
def test_a_scenario_opens_with_its_title_and_the_race_in_words(path: Path) -> None:
    title, race = path.read_text().split("\n\n")[:2]
    assert len(title.splitlines()) == 1, f"{path.name}: one line of title, then a blank line"
    assert RULE not in race.splitlines(), f"{path.name}: say in words what the race is before the first command"


def test_an_unknown_command_is_named() -> None:
    with pytest.raises(ValueError, match="no such command: 'explode a'"):
        Scenario().run("explode a")

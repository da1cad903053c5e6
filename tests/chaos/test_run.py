"""A chaos run's own parts: what it waits for, and what it keeps where that does not come."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scripts.chaos_run import run
from scripts.chaos_run.run import ChaosRun, Options
from scripts.hosts import OneMachine


class Nobody:
    """A cluster without a process."""

    def __init__(self) -> None:
        self.managers: dict[str, Any] = {}
        self.addresses: dict[str, Any] = {}

    def pids(self) -> dict[str, int]:
        return {}

    async def __aenter__(self) -> Nobody:
        return self

    async def __aexit__(self, *_: object) -> None: ...


async def test_an_undisturbed_run_that_does_not_end_gives_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disturbed run, half an hour of it, is judged all the same."""
    monkeypatch.setattr(run, "START_S", 0.0)
    monkeypatch.setattr(run, "UNDISTURBED_ROUND_S", 0.0)
    told: list[str] = []
    chaos = ChaosRun(Options(1, 4, ()), OneMachine(4), tmp_path, told.append)
    monkeypatch.setattr(chaos, "_cluster", lambda *_, **__: Nobody())
    assert await chaos.undisturbed(3) == {}
    assert told[-1] == "the undisturbed run does not end within 0 s: round 0"

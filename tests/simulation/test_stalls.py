"""Healthy nodes whose messages stall: a lost packet holds up all behind it, and nobody is declared dead for that."""

from __future__ import annotations

from scripts.simulation.run import Options, Run


def test_a_minute_of_stalls_kills_nobody() -> None:
    result = Run(Options(seed=1, nodes=200, faults="stalls", seconds=60, routed=2000)).go()
    assert not result.failures, "\n".join([*result.failures, result.story, result.command])
    assert result.sent["Heartbeat"] > 1.0, "it was no idle minute"
    assert result.false_deaths == result.false_deaths_excused == 0

"""A thousand nodes under faults drawn from the seed: P3 and P4 hold, whatever strikes; with records and rounds P1, P2, P5 and P6. A failure
prints what replays it."""

from __future__ import annotations

import pytest

from scripts.simulation.rounds import RoundOptions, RoundRun
from scripts.simulation.run import Options, Run


@pytest.mark.parametrize("seed", [1, 4])
def test_a_thousand_nodes_under_the_faults_of_a_seed(seed: int) -> None:
    result = Run(Options(seed=seed, nodes=1000, seconds=10, routed=3000)).go()
    assert not result.failures, "\n".join([*result.failures, result.story, f"faults {result.faults}", result.command])


def test_a_thousand_agents_with_records_and_rounds() -> None:
    result = RoundRun(RoundOptions(1, 1002, "wild", "lan", 4.0, 2, "exact", standbys=1)).go()
    assert not result.failures, "\n".join([*result.failures, result.story, result.command])
    assert (result.rounds, result.theta_equal) == (2, True)
    assert result.durables >= 1000 * 2 * 4, "each agent's record, after each of its iterations"
    assert result.struck

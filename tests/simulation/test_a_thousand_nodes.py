"""A thousand nodes under faults drawn from the seed: P3 and P4 hold, whatever strikes. A failure prints what replays it."""

from __future__ import annotations

import pytest

from scripts.simulation.run import Options, Run


@pytest.mark.parametrize("seed", range(1, 6))
def test_a_thousand_nodes_under_the_faults_of_a_seed(seed: int) -> None:
    result = Run(Options(seed=seed, nodes=1000, seconds=10, routed=3000)).go()
    assert not result.failures, "\n".join([*result.failures, result.story, f"faults {result.faults}", result.command])

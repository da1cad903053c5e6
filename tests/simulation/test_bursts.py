"""Many die in one instant, the root's neighbours among them: how soon all is right again, with preset lan."""

from __future__ import annotations

import pytest

from scripts.simulation.run import Options, Run

LOOK_UPS_WITHIN_S = 10.0
TREES_WITHIN_S = 15.0


@pytest.mark.parametrize(
    "who", ["", ",silent_share=1", ",silent_share=1,root_too=1"], ids=["processes", "hosts", "hosts, the root among them"]
)
@pytest.mark.parametrize("share", [10, 50])
def test_after_a_burst_of_deaths_look_ups_and_trees_are_right_in_time(share: int, who: str) -> None:
    result = Run(Options(seed=1, nodes=200, faults=f"burst-{share}{who}", seconds=1, routed=200)).go()
    assert not result.failures, "\n".join([*result.failures, result.story, result.command])
    assert result.live == 200 - int(share / 100 * 199)
    assert result.lookups_right_after_s is not None
    assert result.lookups_right_after_s < LOOK_UPS_WITHIN_S
    assert result.trees_complete_after_s is not None
    assert result.trees_complete_after_s < TREES_WITHIN_S

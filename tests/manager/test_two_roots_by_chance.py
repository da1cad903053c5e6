"""Managers that hang, wake, are cut off, die and are followed: of all of them one alone commits each round, and none is lost (P6).

The network between them is chance: at each step the world is cut anew, anybody may hang with what it was about to do, and a later root
may start at any time, whoever lives. No standby's care is needed for this: it holds though they fight.
"""

from __future__ import annotations

from random import Random

import pytest

from tests.manager.rivals import World


class Chance(World):
    """Whom a manager reaches is chance. joined, electors_max: of the agents `names`, as World says; others join as time goes on. killed:
    how many members lose all that they have promised, a step."""

    def __init__(self, seed: int, names: str, joined: int, electors_max: int, killed: float = 0.0) -> None:
        dice = Random(f"reach/{seed}")

        def reach() -> set[str]:
            share = dice.choice((0.3, 0.6, 1.0))
            return {name for name in names if dice.random() < share}

        super().__init__(seed, names, joined, electors_max, reach)
        self._killed = killed

    def step(self) -> None:
        if self._killed and self.chance.random() < self._killed:
            self.reborn(self.chance.choice(self.joined))
        if self.chance.random() < 0.01:
            # Two standbys whose clocks are behind may choose one term.
            self.start(self.managers[-1].me.incarnation if self.chance.random() < 0.1 else None)
        if len(self.joined) < len(self.names) and self.chance.random() < 0.01:
            self.joined.append(self.names[len(self.joined)])
            for manager in self.managers[-3:]:
                if self.chance.random() < 0.5 and not manager.superseded:
                    self.meet(manager, self.joined[-1:])
        self.act(self.chance.choice(self.managers[-3:]))


@pytest.mark.parametrize(("names", "joined", "electors_max"), [("abcde", 5, 12), ("abcdefghij", 3, 3)], ids=["a few", "more join"])
@pytest.mark.parametrize("killed", [0.0, 0.01], ids=["they live", "electors are killed"])
@pytest.mark.parametrize("block", range(3))
def test_of_managers_that_fight_one_alone_commits_each_round_and_none_is_lost(
    block: int, killed: float, names: str, joined: int, electors_max: int
) -> None:
    """Electors that are killed have no disk: the rule for those who remember nothing, without which some of these seeds lose a round."""
    committed = roots = 0
    for seed in range(25 * block, 25 * block + 25):
        world = Chance(seed, names, joined, electors_max, killed)
        world.start()
        try:
            for _ in range(1500):
                world.step()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
        assert all(len(managers) == 1 for managers in world.by.values()), f"seed {seed}: {world.by}"
        committed += len(world.announced)
        roots += len({port for managers in world.by.values() for port in managers})
    assert committed > 200, "hardly anything is ever committed: the chances are wrong"
    assert roots > 50, "hardly any manager follows another: the chances are wrong"

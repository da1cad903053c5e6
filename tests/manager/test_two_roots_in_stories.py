"""Races between managers of one tree, each as a story: who had reached whom when another began (terms.py, ballot.py)."""

from __future__ import annotations

from protocol.identifiers import rank
from tests.manager.rivals import Manager, World
from tests.manager.stage import TREE, named

NAMES = sorted("abcdef", key=lambda name: rank(TREE, named(name)), reverse=True)
"""The nearest to the tree last."""


class Story(World):
    """Six agents; `now_reached` is who a manager reaches."""

    def __init__(self, joined: int, electors_max: int) -> None:
        self.now_reached = set(NAMES)
        super().__init__(1, NAMES, joined, electors_max, lambda: self.now_reached)

    def gets_to(self, manager: Manager, version: int, stage: str, reached: str | list[str]) -> None:
        """The manager acts until it is at this stage with this version, reaching only these; then it hangs."""
        self.now_reached = set(reached)
        self.until(manager, lambda: (manager.root.version, manager.root.stage) == (version, stage))

    def announces(self, manager: Manager, version: int, reached: str | list[str]) -> None:
        self.gets_to(manager, version, "train", reached)


def test_what_was_never_committed_does_not_hide_what_was_though_its_number_is_higher() -> None:
    """Two roots in a row get as far as their holders, and no further; a third, which cannot see these, commits. The fourth sees all."""
    world = Story(6, 12)
    a, b, c, d, e, f = NAMES
    first = world.start()
    world.announces(first, 3, NAMES)
    world.gets_to(first, 4, "committing", NAMES)
    world.gets_to(first, 4, "electing", [a, b])
    second = world.start()
    world.gets_to(second, 5, "committing", [a, c, d, e, f])
    world.gets_to(second, 5, "electing", [a, b])
    third = world.start()
    world.announces(third, 4, [c, d, e, f])
    fourth = world.start()
    world.announces(fourth, 5, NAMES)
    assert world.announced[5][:4] == world.announced[4]


def test_who_goes_on_from_a_version_asks_those_as_well_that_it_was_put_to() -> None:
    """It may never have been committed. All electors change with it: the old ones may be asked for another in its place."""
    world = Story(3, 3)
    old, new = NAMES[:3], NAMES[3:]
    first = world.start()
    world.announces(first, 1, NAMES)
    world.meet(first, new)
    world.gets_to(first, 2, "committing", new)
    world.gets_to(first, 2, "electing", new)
    second = world.start()
    world.gets_to(second, 2, "electing", new)
    for _ in range(100):
        world.act(second)
    assert second.root.stage == "electing", "the new ones alone cannot let it go on"
    third = world.start()
    world.announces(third, 2, old)
    world.now_reached = set(NAMES)
    world.until(second, lambda: second.superseded)
    world.announces(third, 4, NAMES)


def test_a_root_whose_successor_died_commits_nothing_with_electors_that_were_born_anew() -> None:
    """Ballot, rule 6. Found by half an hour of chaos: the second root takes over in a cut, commits, and dies before the cut heals. Nobody
    else has heard of it but its electors, of which those without disks die one after the other before the first root asks them."""
    world = Story(6, 12)
    there = NAMES[2:]
    first = world.start()
    world.announces(first, 2, NAMES)
    world.gets_to(first, 3, "committing", NAMES)
    second = world.start()
    world.announces(second, 3, there)
    world.now_reached = set(NAMES)
    for name in there[:3]:
        world.reborn(name)
    for _ in range(100):
        world.act(first)
    assert first.superseded
    third = world.start()
    world.announces(third, 4, NAMES)
    assert world.announced[4][:3] == world.announced[3]


def test_a_root_goes_on_though_all_its_electors_were_born_anew() -> None:
    """Nobody remembers a later one: there was none, or there is nobody left who could say so."""
    world = Story(6, 12)
    first = world.start()
    world.announces(first, 2, NAMES)
    for name in NAMES:
        world.reborn(name)
    world.announces(first, 3, NAMES)
    assert world.announced[3][:2] == world.announced[2]

"""One tree's root under events of chance: whatever happens it raises nothing, counts nobody twice, and comes to its end."""

from __future__ import annotations

import random

import pytest

from fmrec_manager.orders import Aggregate, Recover
from protocol.wire.messages import RecoveryMode
from tests.manager.stage import MODES, SOURCES, Stage, named, record, resumed, stage

# --- whatever happens ------------------------------------------------------------------------------------------------------------


def _something(play: Stage, chance: random.Random, lives: dict[str, int]) -> None:
    """One thing that a network, a process or a daemon may do next, apt or not."""
    root, name = play.root, chance.choice(list(lives))
    number = root.next_round - chance.choice((0, 0, 0, 1))
    phase = root.work.phase if root.work is not None and chance.random() < 0.9 else chance.choice(("train", "adapt", "init", "done"))
    wanted = [r for r in root.recoveries if r.outcome == "running" and r.again_at is None]
    daemons = ("retrieve", "aggregated", "durable", "located", "unfit", "start")
    what = chance.choice(("join", "go", "upload", "upload", "upload", "time", *daemons))
    if what == "join":
        lives[name] += chance.choice((0, 1))
        play.joins(name, incarnation=lives[name])
    elif what == "go":
        cause, life = chance.choice(("died", "died", "left", "moved", "orphaned")), max(1, lives[name] - chance.choice((0, 0, 1)))
        play.goes(name, cause=cause, incarnation=life)
    elif what == "upload":
        if root.stage == "init" or phase != "init":
            play.uploads(name, number, phase, chance.randrange(9), complete=chance.random() < 0.95)
    elif what == "retrieve" and wanted:
        target = chance.choice(wanted)
        owner = next(n for n in lives if named(n) == target.agent)
        found = record(owner, max(0, number - chance.randrange(4)), complete=chance.random() < 0.7)
        play.retrieved(target.number, found if chance.random() < 0.7 else None)
    elif what == "aggregated" and root.stage == "aggregating":
        if chance.random() < 0.2:
            play.took(root.unusable([chance.choice(list(play.last(Aggregate).slots))], "odd", play.now))
        else:
            play.aggregated()
    elif what == "durable" and root.version:
        play.is_durable(root.version - chance.choice((0, 0, 1)))
    elif what == "located":
        play.located(None if chance.random() < 0.8 or root.stage != "locating" else resumed(chance.randrange(3), *SOURCES))
    elif what == "unfit":
        play.took(root.unfit(record(name, number), phase, "odd", play.now))
    elif what == "time":
        play.after(chance.choice((0.01, 0.5, 5.0, 50.0)))
    elif what == "start":
        play.took(root.start(play.now))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("block", range(4))
def test_whatever_happens_nothing_is_raised_and_nobody_is_folded_in_twice(mode: RecoveryMode, block: int) -> None:
    done = 0
    for seed in range(25 * block, 25 * block + 25):
        chance = random.Random(f"{mode}/{seed}")
        play = stage(mode, quorum=chance.choice((0.3, 1.0)), rounds=3)
        play.took(play.root.start(0.0))
        lives = dict.fromkeys(("a", "b", "c", "d", "t0", "t1"), 1)
        try:
            for _ in range(250):
                play.now += 0.01
                _something(play, chance, lives)
        except Exception as error:
            raise AssertionError(f"{mode}/{seed}: after {play.story()}") from error
        story = [line.split(" of ")[0] for line in play.story() if line.startswith("aggregate")]
        numbers = [int(line.split()[1]) for line in story]
        assert numbers == sorted(numbers), f"{mode}/{seed}: a round was folded in after a later one: {story}"
        assert len(play.root.losses) == play.root.next_round, f"{mode}/{seed}: a round was counted twice or not at all"
        for order in play.orders:
            if isinstance(order, Aggregate):
                for agent, slot in order.slots.items():
                    behind = order.round - slot.record.round
                    assert slot.record.owner == agent
                    assert slot.record.complete
                    assert (behind == 0 and slot.factor == 1.0) or (slot.way == "substitute" and behind > 0 and slot.factor < 1.0)
        begun = {order.number for order in play.orders if isinstance(order, Recover)}
        assert begun >= {recovery.number for recovery in play.root.recoveries}, f"{mode}/{seed}: a recovery was never ordered"
        done += play.root.stage == "done"
    assert done, "none of these came to its end: the chances are wrong"


@pytest.mark.parametrize("mode", MODES)
def test_after_the_last_fault_every_run_comes_to_its_end(mode: RecoveryMode) -> None:
    """First harm, then peace: everyone is restarted and does what it is asked. Promise P8 for a whole tree."""
    for seed in range(40):
        chance = random.Random(f"peace/{mode}/{seed}")
        play = stage(mode, rounds=3)
        play.took(play.root.start(0.0))
        lives = dict.fromkeys(("a", "b", "c", "t0"), 1)
        for _ in range(chance.randrange(150)):
            play.now += 0.01
            _something(play, chance, lives)
        for name in lives:
            lives[name] += 1
            play.joins(name, incarnation=lives[name])
        for _ in range(60):
            _serve(play, lives)
            if play.root.stage == "done":
                break
            play.after(1.0)
        assert play.root.stage == "done", f"{mode}/{seed}: stuck in {play.root.stage}: {play.root.reason}: {play.story()}"


def _serve(play: Stage, lives: dict[str, int]) -> None:
    """What healthy daemons do with the root's present state."""
    root = play.root
    for recovery in root.recoveries:
        if recovery.outcome == "running" and recovery.again_at is None:
            play.retrieved(recovery.number, None)
    if root.stage == "locating":
        play.located()
    if root.stage == "init":
        play.uploads("a", 0, "init")
    if root.stage == "committing":
        play.is_durable()
    if root.work is not None and root.stage in ("train", "adapt", "halted"):
        for name in lives:
            play.uploads(name, root.work.number if root.work else -1, root.work.phase if root.work else "done")
    if root.stage == "aggregating":
        play.aggregated()

"""One agent's whole life in this process, beside a real manager's node: it starts, stops in order, and fails in words."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmrec_agent.daemon import AgentDaemon, MayPass
from fmrec_agent.settings import AgentSettings
from protocol.aio.connections import Connections
from protocol.aio.process import UserError
from protocol.identifiers import Peer, tree_id
from protocol.overlay.effects import MembersChanged
from protocol.overlay.events import CreateTree, JoinTree
from protocol.wire.values import Departed, MemberInfo
from tests.agent import counting
from tests.agent.ring import PARAMETERS, TREE, Host, Manager, Ring, free_port, until

LINE = 1 + next(at for at, text in enumerate(Path(counting.__file__).read_text().splitlines()) if "raise ZeroDivisionError" in text)


@pytest.fixture(autouse=True)
def _switch_interval() -> Iterator[None]:
    before = sys.getswitchinterval()
    yield
    sys.setswitchinterval(before)


class Life:
    """An agent that runs as a task here."""

    def __init__(self, manager: Manager, learner: str = "counting", **changes: Any) -> None:
        given = {"cluster": "c", "name": "a", "port": free_port(), "join": (str(manager.me.address),), "task": "counting", **changes}
        settings = AgentSettings(learning={"learner": f"tests.agent.counting:{learner}"}, **given)
        self.peers: list[Peer] = []
        self.stop = asyncio.Event()
        self.daemon = AgentDaemon(settings, 0, self.peers.append)
        self.task = asyncio.create_task(self.daemon.run(self.stop))

    async def ended(self) -> int:
        return await asyncio.wait_for(self.task, 10)


def departed(manager: Manager) -> list[Departed]:
    return [gone for effect in manager.effects if isinstance(effect, MembersChanged) for gone in effect.departed]


async def ordered(manager: Manager, life: Life) -> None:
    """The agent has joined the tree, and is ordered to train."""
    await until(lambda: manager.joined() == {"a"} or life.task.done())
    manager.multicast(manager.order("train", 0))


async def test_it_says_where_it_listens_trains_and_leaves_in_order(ring: Ring) -> None:
    manager = await ring.manager()
    life = Life(manager)
    await ordered(manager, life)
    await until(lambda: manager.brought)
    status = json.loads(life.daemon.status())
    assert (status["name"], status["phase"], status["round"], status["iteration"], status["in_ring"]) == ("a", "train", 0, 10, True)
    assert (status["pid"], status["address"]) == (os.getpid(), str(life.peers[0].address))
    life.stop.set()
    assert await life.ended() == 0
    await until(lambda: departed(manager))
    assert {gone.cause for gone in departed(manager)} == {"left"}, "nobody shall recover who leaves in order"


async def test_the_root_hears_how_far_a_learner_is_whose_figures_are_numpys(ring: Ring) -> None:
    """Its Alive messages could not be sent: the root buried it, and the branch below it."""
    manager = await ring.manager()
    life = Life(manager, "numpys")
    await ordered(manager, life)
    await until(lambda: manager.brought)
    await until(lambda: [branch.progress.iteration for branch in manager.node.scribe.trees[TREE].children.values()] == [10])
    (branch,) = manager.node.scribe.trees[TREE].children.values()
    assert branch.progress.loss == life.daemon.trainer.loss
    assert manager.brought[0][1].metrics == {"rmse_pp": float(np.float32(0.1))}
    life.stop.set()
    assert await life.ended() == 0


@pytest.mark.parametrize(
    ("learner", "error", "said"),
    [
        ("diverging", UserError, "a cannot go on learning: the loss diverged: lower the rate"),
        (
            "crashing",
            MayPass,
            "a cannot go on learning: step() of learner tests.agent.counting:Counting failed (ZeroDivisionError: a mistake in somebody's "
            f"learner, raised in {counting.__file__}, line {LINE}): mend it",
        ),
        (
            "unsealable",
            UserError,
            "a cannot go on learning: what it brings for round 0 cannot be made a record: a record of these tensors cannot be made: "
            "tensor 'w' of object has no form in safetensors",
        ),
        (
            "measuring",
            UserError,
            "a cannot go on learning: what it brings for round 0 cannot be made a record: a record carries at most 64 metrics, not 65",
        ),
    ],
)
async def test_who_fails_says_no_goodbye(ring: Ring, learner: str, error: type[Exception], said: str) -> None:
    """A goodbye would tell the manager that nothing is to be recovered: the round would go on without it."""
    manager = await ring.manager()
    life = Life(manager, learner)
    await ordered(manager, life)
    with pytest.raises(error) as caught:
        await life.ended()
    assert str(caught.value) == said
    await until(lambda: departed(manager))
    assert {gone.cause for gone in departed(manager)} == {"died"}


async def test_a_learner_that_cannot_be_built_is_told_in_a_sentence(ring: Ring) -> None:
    life = Life(await ring.manager(), "folderless")
    with pytest.raises(UserError, match=r"^there is no folder data$"):
        await life.ended()
    assert life.peers == [], "and it never listened"


async def test_a_host_that_is_not_this_machines_is_told_at_once(ring: Ring) -> None:
    """Not after every port up to 32768 has been tried."""
    life = AgentDaemon(AgentSettings(host="192.0.2.1"), 0, lambda peer: None)
    life.connections = Connections("c", PARAMETERS)
    with pytest.raises(UserError, match=r"port 7710 on 192\.0\.2\.1 cannot be listened on"):
        await life._listen()
    await life.connections.close()


async def test_a_host_that_has_no_name_is_told_in_a_sentence(ring: Ring) -> None:
    """A label of a name has at most 63 letters."""
    host = 70 * "x"
    life = Life(await ring.manager(), host=host, port="auto")
    with pytest.raises(UserError, match=f"port 7710 on '{host}' is no address"):
        await life.ended()
    await life.daemon.connections.close()


async def test_auto_takes_the_next_port_where_one_is_taken(ring: Ring) -> None:
    manager = await ring.manager()
    first, second = Life(manager, port="auto"), Life(manager, port="auto", name="b")
    await until(lambda: first.peers and second.peers)
    assert first.peers[0].port != second.peers[0].port
    for life in (first, second):
        life.stop.set()
        await life.ended()


async def test_a_later_life_resumes_from_its_disk_and_has_a_higher_incarnation(ring: Ring, tmp_path: Path) -> None:
    manager = await ring.manager()
    life = Life(manager, state_dir=tmp_path)
    await ordered(manager, life)
    await until(lambda: manager.brought)
    life.stop.set()
    await life.ended()
    (tmp_path / "a" / "incarnation").write_text(str(life.peers[0].incarnation + 10**9))  # the clock was set back since
    later = Life(manager, state_dir=tmp_path)
    await until(lambda: len(manager.brought) == 2)
    assert later.peers[0].incarnation == life.peers[0].incarnation + 10**9 + 1
    assert manager.brought[0][0] == manager.brought[1][0], "what was finished is brought again"
    assert json.loads(later.daemon.status())["resumed_from"] == {"version": 1, "round": 0, "iteration": 10}
    later.stop.set()
    await later.ended()


@pytest.mark.parametrize("learner", ["roomless", "counting"])
async def test_a_record_for_which_there_is_no_room_now_may_be_gone_on_from_later(
    ring: Ring, learner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither on the learner's device, nor in memory: another life may be luckier, and nobody is told to begin anew."""
    manager = await ring.manager()
    life = Life(manager, state_dir=tmp_path)
    await ordered(manager, life)
    await until(lambda: manager.brought)
    life.stop.set()
    await life.ended()

    def full(*arguments: Any, **options: Any) -> Any:
        raise MemoryError

    if learner == "counting":
        monkeypatch.setattr("protocol.knowledge._opened", full)
    said = {"roomless": "CUDA out of memory", "counting": "there is no memory for what is in it: free some"}
    with pytest.raises(MayPass, match=said[learner]):
        await Life(manager, learner, state_dir=tmp_path).ended()


@pytest.mark.parametrize("torn", [b"", b"17\xff", b"17 and a half", b"18446744073709551615", b"9" * 30])
async def test_an_incarnation_that_is_torn_is_written_anew(
    ring: Ring, torn: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By a power cut, say; or beyond what messages carry. The clock tells this life from the last, and the life after it knows of this
    one."""
    manager = await ring.manager()
    (tmp_path / "a").mkdir()
    path = tmp_path / "a" / "incarnation"
    path.write_bytes(torn)
    with caplog.at_level(logging.WARNING):
        life = Life(manager, state_dir=tmp_path)
        await until(lambda: life.peers)
    assert f"{path} is torn" in caplog.text
    assert path.read_text() == str(life.peers[0].incarnation)
    life.stop.set()
    assert await life.ended() == 0


async def test_a_second_life_on_the_state_of_one_that_runs_is_refused(ring: Ring, tmp_path: Path) -> None:
    """It would write over what the first has made durable, or sweep away what that is writing."""
    manager = await ring.manager()
    life = Life(manager, state_dir=tmp_path)
    await until(lambda: manager.joined() == {"a"})
    kept = (tmp_path / "a" / "incarnation").read_text()
    second = Life(manager, state_dir=tmp_path)
    with pytest.raises(UserError, match=r"the state in .*/a is in use by another process"):
        await second.ended()
    assert second.peers == [], "and it never listened"
    assert (tmp_path / "a" / "incarnation").read_text() == kept
    life.stop.set()
    assert await life.ended() == 0


async def test_with_its_seed_gone_a_later_life_joins_through_a_remembered_peer(ring: Ring, tmp_path: Path) -> None:
    manager = await ring.manager()
    seed = await ring.agent("seed")
    life = Life(manager, state_dir=tmp_path, join=(str(seed.me.address),))
    await until(lambda: manager.joined() == {"a"})
    book = tmp_path / "a" / "peers.json"
    await until(book.exists)
    life.stop.set()
    await life.ended()
    await ring.kill(seed)
    later = Life(manager, state_dir=tmp_path, join=(str(seed.me.address),))
    await until(lambda: later.peers)
    await until(lambda: later.peers[0] in {info.peer for e in manager.effects if isinstance(e, MembersChanged) for info in e.joined})
    later.stop.set()
    assert await later.ended() == 0


async def test_where_the_disk_cannot_be_written_it_lives_in_memory_and_says_so(
    ring: Ring, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a").write_text("a file where the agent's folder should be")
    manager = await ring.manager()
    with caplog.at_level(logging.WARNING):
        life = Life(manager, state_dir=tmp_path)
        await ordered(manager, life)
        await until(lambda: manager.brought)
    assert "cannot be used" in caplog.text
    assert "the incarnation is not kept" in caplog.text
    life.stop.set()
    assert await life.ended() == 0


async def test_a_tree_that_nobody_roots_is_told_once_until_somebody_does(ring: Ring, caplog: pytest.LogCaptureFixture) -> None:
    """The ring takes any agent in, and a peer that is closer to the treeId takes it as a child; but no order ever comes."""
    manager = await ring.manager()
    peer = await ring.agent("peer")
    tree = tree_id("foo", "counting")
    peer.driver.dispatch(JoinTree(tree, MemberInfo(peer.me, "peer", "source", 1)))
    life = Life(manager, tree="foo", overlay={"delay_max_s": 0.05})

    def doing() -> str:
        return str(json.loads(life.daemon.status())["doing"])

    with caplog.at_level(logging.WARNING):
        await until(lambda: life.peers and doing() == "waiting for a manager that roots tree foo of task counting")
        root = Host(tree)
        await ring.enter(root)
        root.driver.dispatch(CreateTree(tree))
        await until(lambda: doing() == "waiting for orders")
    remedy = "start a manager with it, or set tree and task as the manager's"
    assert caplog.messages.count(f"a: nobody roots tree foo of task counting: {remedy}") == 1
    life.stop.set()
    assert await life.ended() == 0


async def test_a_tree_that_had_a_root_is_known_to_be_the_right_one(ring: Ring, caplog: pytest.LogCaptureFixture) -> None:
    """Its manager may be away for long."""
    manager = await ring.manager()
    life = Life(manager)
    await until(lambda: manager.joined() == {"a"} and life.daemon._rooted)
    await ring.kill(manager)
    await until(lambda: not life.daemon.node.scribe.trees[TREE].reaches_root)
    with caplog.at_level(logging.WARNING):
        life.daemon._look_for_root(1e9)
    assert "nobody roots" not in caplog.text
    assert json.loads(life.daemon.status())["doing"] == "waiting for orders"
    life.stop.set()
    assert await life.ended() == 0

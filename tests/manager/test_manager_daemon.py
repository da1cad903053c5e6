"""One manager process: its trees' nodes are in one ring, and a standby takes them over one by one. Real sockets; a bystander for a ring."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmrec_manager.daemon import ManagerDaemon
from fmrec_manager.ledger import Ledger, LedgerMember
from fmrec_manager.orders import StepDown
from fmrec_manager.settings import ManagerSettings, TreeSettings
from protocol.aio.process import UserError
from protocol.aio.store import RecordStore
from protocol.identifiers import agent_id, tree_id
from protocol.knowledge import Knowledge, seal
from protocol.overlay.events import MessageReceived
from protocol.wire.electing import TermRequest
from scripts.local_cluster import free_ports
from tests.agent.ring import Host

TREES = {name: TreeSettings(task="t") for name in ("one", "two", "three")}
Started = Callable[..., Awaitable["Running"]]
WITHIN_S = 20.0


class Running:
    """A daemon in a task, and how to stop it: in order, or as a kill would."""

    def __init__(self, settings: ManagerSettings) -> None:
        self.daemon = ManagerDaemon(settings)
        self.stop = asyncio.Event()
        self.task = asyncio.create_task(self.daemon.run(self.stop))

    def tree(self, name: str) -> dict[str, Any]:
        if not (self.daemon._rooted or self.daemon._standby):
            return {}  # it still loads
        document: Any = self.daemon.document()
        found: dict[str, Any] = document["trees"].get(name) or document["standby"].get(name) or {}
        return found

    async def until(self, condition: Callable[[], object], timeout_s: float = WITHIN_S) -> None:
        end = asyncio.get_running_loop().time() + timeout_s
        while not condition():
            if self.task.done():
                self.task.result()
            assert asyncio.get_running_loop().time() < end, self.daemon.document()
            await asyncio.sleep(0.01)


@pytest.fixture
async def started() -> AsyncIterator[Started]:
    """started(**settings) -> a Running daemon of three trees; all are stopped at the end."""
    running: list[Running] = []

    async def started(**changes: Any) -> Running:
        running.append(Running(ManagerSettings(cluster="c", device="cpu", tree=TREES, **changes)))
        return running[-1]

    yield started
    for each in running:
        each.stop.set()
    await asyncio.gather(*(each.task for each in running))


@pytest.fixture
async def bystander() -> AsyncIterator[Host]:
    """A node that is in the ring and has no part in any tree; it founds the ring."""
    host = Host(agent_id("c", "bystander"))
    await host.listen()
    await host.enter()
    yield host
    await host.close()


def port() -> str:
    return f"127.0.0.1:{free_ports(1)}"


async def test_the_trees_of_one_manager_are_in_one_ring(started: Started) -> None:
    """The second tree's node enters the ring through the first one, at the address that both have."""
    manager = await started(listen=port())
    await manager.until(lambda: all(manager.tree(name).get("stage") == "waiting" for name in TREES))
    nodes = [host.node for host in manager.daemon._hosts.values()]
    for node in nodes:
        others = {other.self_peer.id for other in nodes} - {node.self_peer.id}
        await manager.until(lambda: {peer.id for peer in node.pastry.leaf_set} == others)  # noqa: B023


async def test_a_standby_roots_what_a_manager_leaves_and_nothing_before(started: Started, bystander: Host) -> None:
    """Nothing was committed yet: that is known for certain, and there is nobody whose promise could be broken."""
    ring = str(bystander.me.address)
    manager = await started(listen=port(), join=(ring,))
    standby = await started(listen=port(), standby=True, join=(ring,))
    await standby.until(lambda: all(standby.tree(name).get("root") for name in TREES))
    assert not standby.daemon._rooted
    manager.stop.set()
    assert await manager.task == 0
    await standby.until(lambda: all(standby.tree(name)["stage"] == "waiting" for name in TREES))
    assert set(standby.daemon._rooted) == set(TREES)


async def left_on_disk(state_dir: Path, name: str, settings: TreeSettings) -> None:
    """The record of a run that had come to round 3, whose one agent lives no more."""
    tree, gone = tree_id(name, settings.task), agent_id("c", "gone")
    member = LedgerMember(id=str(gone), host="127.0.0.1", port=free_ports(1), incarnation=1, name="gone", role="source", pid=1)
    ledger = Ledger(seed=settings.seed, losses=(0.5, 0.4, 0.3), members=(member,), results={}, put_to=((str(gone),),))
    tensors = {"theta": {"w": np.ones(3)}, "server": {"steps": np.array([3], dtype=np.int64)}}
    state = ledger.model_dump_json().encode()
    found = seal(Knowledge(tree, tree, 7, 1000, "train", 3, 0, False, state=state, tensors=tensors))
    store = RecordStore(state_dir / "trees" / name, 1 << 30, pytest.fail)
    await store.load()
    store.put(*found)
    await store.flush()
    await store.close()


async def test_a_standby_knows_what_its_own_disk_holds(bystander: Host, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """After a power cut agents without disks are back, and both managers under supervisors, as standbys: nobody else has the record."""
    caplog.set_level("INFO", "fmrec")
    settings = TreeSettings(task="t", rounds=9, server_optimizer="sgd")
    await left_on_disk(tmp_path, "main", settings)
    ring = str(bystander.me.address)
    standby = Running(
        ManagerSettings(cluster="c", device="cpu", listen=port(), standby=True, join=(ring,), state_dir=tmp_path, tree={"main": settings})
    )
    await standby.until(lambda: standby.tree("main").get("round") == 3)
    assert set(standby.daemon._rooted) == {"main"}
    assert len([message for message in caplog.messages if "looking for its record" in message]) == 1, "a reason is told once"
    standby.stop.set()
    assert await standby.task == 0


async def test_a_manager_that_finds_a_later_one_in_its_place_stands_by(
    started: Started, bystander: Host, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody starts a second manager by hand while the first one lives: the later one has the trees, the first says where they are, and
    has them again when that one stops."""
    ring, other = str(bystander.me.address), port()
    first = await started(listen=port(), join=(ring,))
    await first.until(lambda: all(first.tree(name).get("stage") == "waiting" for name in TREES))
    second = await started(listen=other, join=(ring,))
    await first.until(lambda: not first.daemon._rooted)
    assert f"is rooted at {other}, or was last, with term" in caplog.text
    assert caplog.text.count("this manager stands by for it") == len(TREES)
    await second.until(lambda: all(second.tree(name)["stage"] == "waiting" for name in TREES))
    await first.until(lambda: all(first.tree(name)["root"] == other for name in TREES))
    terms = {name: second.daemon._rooted[name].me.incarnation for name in TREES}
    second.stop.set()
    assert await second.task == 0
    await first.until(lambda: all(first.tree(name)["stage"] == "waiting" for name in TREES))
    assert all(first.daemon._rooted[name].me.incarnation > term for name, term in terms.items())


async def test_of_several_trees_it_stands_by_for_the_one_that_has_another_root_alone(started: Started, bystander: Host) -> None:
    manager = await started(listen=port(), join=(str(bystander.me.address),))
    await manager.until(lambda: all(manager.tree(name).get("stage") == "waiting" for name in TREES))
    old = manager.daemon._rooted["two"].me
    term = old.incarnation + 3_600_000
    bystander.driver.dispatch(MessageReceived(replace(old, incarnation=term), TermRequest(1, old.id, term, 0)))
    await manager.until(lambda: f"a root of term {term} was here, and nobody here has its record" in str(manager.tree("two").get("reason")))
    assert set(manager.daemon._rooted) == {"one", "three"}
    assert manager.tree("one")["stage"] == manager.tree("three")["stage"] == "waiting"


async def test_a_manager_that_is_superseded_and_alone_takes_no_verdict_from_itself(started: Started, bystander: Host) -> None:
    """Its only neighbour goes when it has told of a later root: that one may live, and what was committed may be where that is."""
    manager = await started(listen=port(), join=(str(bystander.me.address),))
    await manager.until(lambda: all(manager.tree(name).get("stage") == "waiting" for name in TREES))
    for name in TREES:
        later = replace(manager.daemon._rooted[name].me, incarnation=manager.daemon._rooted[name].me.incarnation + 9)
        bystander.driver.dispatch(MessageReceived(later, TermRequest(1, later.id, later.incarnation, 0)))
    await manager.until(lambda: not manager.daemon._rooted)
    await bystander.close()
    await manager.until(lambda: all("cut off, or alone" in manager.tree(name)["reason"] for name in TREES))


async def test_a_manager_that_is_stopped_as_it_steps_down_has_written_what_it_held(
    started: Started, bystander: Host, tmp_path: Path
) -> None:
    manager = await started(listen=port(), join=(str(bystander.me.address),), state_dir=tmp_path)
    await manager.until(lambda: all(manager.tree(name).get("stage") == "waiting" for name in TREES))
    host = manager.daemon._rooted["two"]
    tensors = {"theta": {"w": np.ones(9, np.float32)}}
    record, data = seal(Knowledge(agent_id("c", "a"), host.tree, 1, 1, "train", 0, 0, False, tensors=tensors))
    host.store.put(record, data)
    host.superseded.set_result(StepDown("is rooted elsewhere", host.me.incarnation + 9))
    manager.stop.set()
    assert await manager.task == 0
    again = RecordStore(tmp_path / "trees" / "two", 1 << 30, print)
    await again.load()
    assert again.get(*record.key) is not None
    await again.close()


async def test_a_second_manager_on_the_state_of_one_that_runs_is_refused(started: Started, tmp_path: Path) -> None:
    first = await started(listen=port(), state_dir=tmp_path)
    await first.until(lambda: all(first.tree(name).get("stage") == "waiting" for name in TREES))
    second = ManagerDaemon(ManagerSettings(cluster="c", device="cpu", tree=TREES, listen=port(), state_dir=tmp_path))
    with pytest.raises(UserError, match=r"the state in .* is in use by another process"):
        await second.run(asyncio.Event())
    first.stop.set()
    assert await first.task == 0
    third = await started(listen=port(), state_dir=tmp_path)
    await third.until(lambda: third.tree("one"))

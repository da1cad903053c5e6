"""Everything loses its power at once: what was durable is on the disks of its holders, and the run goes on from there (P2, P6)."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

from protocol.aio.promises import PromiseFile
from protocol.aio.store import RecordStore
from protocol.identifiers import NodeId, agent_id
from protocol.parameters import OverlayParameters
from scripts.life_line import send
from scripts.local_cluster import CLUSTER, LocalCluster, Status
from tests.aio.waiting import until
from tests.end_to_end.stories import AGENTS, ROUNDS, SOURCES, STORY_S, story, the_end

QUORUM = OverlayParameters().write_quorum


async def kill_everything(cluster: LocalCluster) -> None:
    """SIGKILL to the manager, the launcher and every agent, one right after the other."""
    for pid in cluster.processes():
        send(pid, signal.SIGKILL)
    cluster.kill_manager()
    assert cluster.launcher is not None
    cluster.launcher.wait()
    await until(lambda: not cluster.processes(), STORY_S)


def record_directories(folder: Path) -> list[Path]:
    """The agents' and the manager's."""
    return sorted({path.parent for path in folder.rglob("*.record")})


def promise_files(folder: Path) -> list[Path]:
    """The agents'."""
    return sorted(folder.rglob("promises"))


async def held_on_disk(folder: Path) -> dict[Path, dict[NodeId, int]]:
    """For each directory of records, the versions in it by owner. Every file in it must be a whole record."""
    found = {}
    for directory in record_directories(folder):
        said: list[str] = []
        store = RecordStore(directory, 1 << 30, said.append)
        await store.load()
        await store.close()
        assert not said, "a kill leaves the old file or the new one"
        found[directory] = {summary.owner: summary.version for summary in store.held()}
    return found


async def test_all_durable_versions_come_back(tmp_path: Path, undisturbed: str) -> None:
    async with story(tmp_path, agents_on_disk=True) as cluster:
        await cluster.until(lambda status: status["round"] >= 4, STORY_S)
        lives: list[Status] = [life for index in range(SOURCES) if (life := await cluster.agent(index)) is not None]
        await kill_everything(cluster)
        assert len(lives) == SOURCES

        disks = await held_on_disk(tmp_path)
        for life in lives:
            owner = agent_id(CLUSTER, life["name"])
            assert life["durable_version"] > 0
            holders = [
                directory
                for directory, versions in disks.items()
                if versions.get(owner, 0) >= life["durable_version"] and life["name"] not in directory.parts
            ]
            assert len(holders) >= QUORUM, f"version {life['durable_version']} of {life['name']} is on {len(holders)} disks but its own"

        said: list[str] = []
        words = [word for path in promise_files(tmp_path) for word in PromiseFile(path, said.append).read()]
        assert not said
        assert sum(word.promise.version >= 4 for word in words) > AGENTS / 2, "the electors keep their word, too"

        # One has lost its disk as well, and may ask for its record before those are back that hold it.
        shutil.rmtree(tmp_path / "agents" / lives[0]["name"])
        cluster.start_manager()
        cluster.start_agents()
        await cluster.until(lambda status: status["counts"]["alive"] == AGENTS, STORY_S)
        final = await the_end(cluster)
        for life in lives:
            after = await cluster.agent(int(life["name"].rsplit("-", 1)[1]))
            assert after is not None
            assert after["incarnation"] > life["incarnation"]
            assert after["resumed_from"]["version"] >= life["durable_version"]
        assert (final["round"], len(final["losses"])) == (ROUNDS, ROUNDS)
        assert final["theta_digest"] == undisturbed

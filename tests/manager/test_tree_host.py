"""A tree's host does what its root orders: contributions in, theta out, records sealed. Its ring is of one, its members are told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmrec_manager.orders import StepDown
from fmrec_manager.report import digest_of_owners
from fmrec_manager.selection import Seen
from fmrec_manager.settings import ManagerSettings, TreeSettings
from fmrec_manager.tree_host import OWN_RECORD, TreeHost
from protocol.aio.connections import Connections
from protocol.aio.process import UserError
from protocol.identifiers import Address, Peer, agent_id
from protocol.knowledge import Knowledge, open_record, seal
from protocol.overlay.effects import Durable, MembersChanged, RetrievalEnded
from protocol.overlay.events import RecordHeld
from protocol.parameters import OverlayParameters
from protocol.wire.messages import Phase
from protocol.wire.values import Departed, MemberInfo, RecordSummary

ZERO = {"w": np.zeros(3)}
ONES = {"w": np.ones(3)}
AGENTS = {name: Peer(agent_id("c", name), "127.0.0.1", 7710, 1) for name in ("a", "b")}
Hosted = Callable[..., Awaitable[TreeHost]]


@pytest.fixture
async def hosted() -> AsyncIterator[Hosted]:
    """hosted(state_dir=..., **tree settings) -> a TreeHost in its ring of one; closed at the end."""
    hosts: list[tuple[TreeHost, Connections]] = []

    async def hosted(state_dir: Path | None = None, **changes: Any) -> TreeHost:
        tree = TreeSettings(**{"rounds": 2, "sources_min": 2, "server_optimizer": "sgd", "server_rate": 0.5, **changes})
        settings, parameters = ManagerSettings(device="cpu", state_dir=state_dir, tree={"main": tree}), OverlayParameters()
        connections = Connections("c", parameters)
        host = TreeHost("main", tree, settings, parameters, connections, Address("127.0.0.1", 7700))
        await host.load()
        host.start((), ())
        hosts.append((host, connections))
        return host

    yield hosted
    for host, connections in hosts:
        await host.close()
        await connections.close()


async def until(host: TreeHost, condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Wait for it. What the host has failed with is raised here."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            if host.driver.failed.done():
                host.driver.failed.result()
            await asyncio.sleep(0.005)


async def failure(host: TreeHost) -> str:
    with pytest.raises(UserError) as caught:
        await asyncio.wait_for(asyncio.shield(host.driver.failed), 10)
    return str(caught.value)


def made(
    host: TreeHost, name: str, number: int, tensors: Mapping[str, Any] | None = None, phase: Phase = "train", **facts: Any
) -> tuple[RecordSummary, bytes]:
    """A record of this agent. tensors: of its contribution, or of its theta."""
    group = "theta" if phase == "init" else "contribution"
    fields: dict[str, Any] = {"loss": 0.5, "samples": 10, **facts}
    tensors = {group: ONES if tensors is None else tensors} if tensors != {} else {}
    return seal(Knowledge(AGENTS[name].id, host.tree, number + 2, 1, phase, number, 50, True, tensors=tensors, **fields))


async def bring(host: TreeHost, name: str, number: int, *args: Any, **kwargs: Any) -> str | None:
    return await host.on_upload(*made(host, name, number, *args, **kwargs), AGENTS[name])


async def committed(host: TreeHost, version: int) -> None:
    """This version is sealed; then its quorum has it. The electors are asked, and found gone: nobody listens where these agents live."""
    await until(host, lambda: host.theta_record is not None and host.theta_record.version == version and host.root.stage == "committing")
    assert host.theta_record is not None
    host(Durable(host.theta_record, ()))
    await until(host, lambda: host.root.stage not in ("committing", "electing"))


def members(host: TreeHost, *names: str) -> None:
    host(MembersChanged(host.tree, tuple(MemberInfo(AGENTS[name], name, "source", 1) for name in names), ()))


async def in_round_0(host: TreeHost) -> TreeHost:
    await until(host, lambda: host.root.stage == "waiting")
    members(host, "a", "b")
    await until(host, lambda: host.root.stage == "init")
    assert await bring(host, "a", 0, ZERO, "init") is None
    await committed(host, 1)
    assert host.root.stage == "train"
    return host


async def test_contributions_become_theta_and_theta_a_record(hosted: Hosted) -> None:
    host = await in_round_0(await hosted())
    assert await bring(host, "a", 0, {"w": np.full(3, 2.0)}, samples=30) is None
    assert await bring(host, "b", 0, {"w": np.zeros(3)}) is None
    await committed(host, 2)
    # omega = 3/4, 1/4; the mean is 1.5, the rate 0.5.
    np.testing.assert_array_equal(host.theta["w"], np.full(3, -0.75))
    held = host.store.get(host.tree, host.tree)
    assert held is not None
    np.testing.assert_array_equal(open_record(*held).tensors["theta"]["w"], host.theta["w"])
    assert (host.root.stage, host.root.next_round, host.root.losses) == ("train", 1, [0.5])


@pytest.mark.parametrize(
    ("optimizer", "metrics", "said"), [("adam", {"difference": 1.0}, 1), ("adam", {}, 0), ("sgd", {"difference": 1.0}, 0)]
)
async def test_differences_of_parameters_that_are_taken_for_gradients_are_said_once(
    optimizer: str, metrics: dict[str, float], said: int, hosted: Hosted, caplog: pytest.LogCaptureFixture
) -> None:
    host = await in_round_0(await hosted(server_optimizer=optimizer, rounds=3))
    for number in range(2):
        for name in AGENTS:
            assert await bring(host, name, number, metrics=metrics) is None
        await committed(host, number + 2)
    warned = [message for message in caplog.messages if "server_optimizer=sgd" in message]
    assert len(warned) == said


async def test_whose_contributions_make_an_aggregate_is_told(hosted: Hosted, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "fmrec")
    host = await in_round_0(await hosted())
    assert await bring(host, "b", 0) is None
    assert await bring(host, "a", 0) is None
    owners = digest_of_owners(peer.id for peer in AGENTS.values())
    assert f"aggregates round=0 contributions=2 owners={owners} upload=2" in caplog.messages
    assert owners != digest_of_owners([AGENTS["a"].id] * 2)


async def test_brought_twice_a_contribution_still_counts_once(hosted: Hosted) -> None:
    """An agent that restarts brings its finished record again: the very bytes that fill its slot already."""
    host = await in_round_0(await hosted())
    assert await bring(host, "a", 0) is None
    refused = await bring(host, "a", 0)
    assert refused is not None
    assert "already, by upload" in refused
    assert await bring(host, "b", 0) is None
    await committed(host, 2)
    np.testing.assert_array_equal(host.theta["w"], np.full(3, -0.5))


@pytest.mark.parametrize(
    ("tensors", "facts", "said"),
    [
        (ONES, {"loss": float("nan")}, "the loss is nan"),
        (ONES, {"loss": None}, "the loss is None"),
        ({"w": np.array([1.0, np.inf, 0.0])}, {}, "w holds values that are not finite"),
        ({"w": np.ones(3, dtype=np.int64)}, {}, "tensor w is int64"),
        ({}, {}, "the record holds no contribution"),
    ],
)
async def test_what_cannot_be_used_is_refused_and_given_up(hosted: Hosted, tensors: Any, facts: Any, said: str) -> None:
    host = await in_round_0(await hosted())
    assert await bring(host, "a", 0) is None
    refused = await bring(host, "b", 0, tensors, **facts)
    assert refused is not None
    assert said in refused
    await committed(host, 2)
    np.testing.assert_array_equal(host.theta["w"], np.full(3, -0.5))


async def test_a_contribution_of_another_shape_is_given_up(hosted: Hosted) -> None:
    host = await in_round_0(await hosted())
    assert await bring(host, "a", 0) is None
    assert await bring(host, "b", 0, {"w": np.ones(4)}) is None, "that theta has another layout shows when it is folded in"
    await committed(host, 2)
    np.testing.assert_array_equal(host.theta["w"], np.full(3, -0.5))


@pytest.mark.parametrize("theta", [{}, {"w": np.zeros((0, 3))}, {"w": np.array([np.nan])}, {"steps": np.array([1])}])
async def test_a_theta_0_that_no_round_can_use_is_refused(hosted: Hosted, theta: Any) -> None:
    host = await hosted()
    await until(host, lambda: host.root.stage == "waiting")
    members(host, "a", "b")
    await until(host, lambda: host.root.stage == "init")
    assert await bring(host, "a", 0, theta, "init") is not None
    assert (host.root.stage, host.theta) == ("init", {})


async def test_a_record_of_another_tree_is_refused(hosted: Hosted) -> None:
    host = await in_round_0(await hosted())
    record, data = seal(Knowledge(AGENTS["a"].id, type(host.tree)(5), 1, 1, "train", 0, 50, True, 0.5, 10))
    refused = await host.on_upload(record, data, AGENTS["a"])
    assert refused is not None
    assert "is not rooted here" in refused
    assert await host.on_upload(record, data[:-1], AGENTS["a"]) is not None


async def test_what_was_trained_from_another_theta_is_no_contribution_to_the_round_of_its_number(hosted: Hosted) -> None:
    """The tree began anew, while its agents and their records lived on: round 0 is another round 0."""
    host = await in_round_0(await hosted())
    another = {"theta": b"another's"}
    refused = await bring(host, "a", 0, **another)
    assert refused == "it was trained from another theta than that of train round 0"
    assert await bring(host, "a", 0, theta=host.theta_digest) is None
    host(MembersChanged(host.tree, (), (Departed(AGENTS["b"].id, 1, "died", "refused"),)))
    (recovery,) = host.root.recoveries
    record, data = made(host, "b", 0, **another)
    host.store.put(record, data)
    host(RetrievalEnded(recovery.number, record, (), 0.0, 0.0, 1))
    await until(host, lambda: "another theta" in recovery.reason)
    assert (host.root.stage, host.root.work and set(host.root.work.slots)) == ("train", {AGENTS["a"].id}), "b's next life is awaited"
    assert await bring(host, "b", 0, theta=host.theta_digest) is None
    await committed(host, 2)


@pytest.mark.parametrize(
    ("number", "said"), [(5, "it is of round 5, and this run is in round 1"), (1, "another theta than that of train round 1")]
)
async def test_what_is_found_between_two_rounds_may_be_of_before_the_tree_began_anew(hosted: Hosted, number: int, said: str) -> None:
    """It would stand in when the run comes to the round of its number."""
    host = await in_round_0(await hosted())
    for name in AGENTS:
        assert await bring(host, name, 0) is None
    await until(host, lambda: host.root.stage == "committing" and host.theta_record is not None and host.theta_record.version == 2)
    host(MembersChanged(host.tree, (), (Departed(AGENTS["b"].id, 1, "died", "refused"),)))
    (recovery,) = host.root.recoveries
    record, data = made(host, "b", number, theta=b"another's")
    host.store.put(record, data)
    host(RetrievalEnded(recovery.number, record, (), 0.0, 0.0, 1))
    await until(host, lambda: said in recovery.reason)
    assert recovery.record is None


async def test_a_replica_that_cannot_be_used_is_no_contribution_and_no_harm(hosted: Hosted) -> None:
    """P7: it has its digest, but inside is not what it is said to be, or no record at all."""
    host = await in_round_0(await hosted())
    assert await bring(host, "a", 0) is None
    host(MembersChanged(host.tree, (), (Departed(AGENTS["b"].id, 1, "died", "refused"),)))
    (recovery,) = host.root.recoveries
    record, data = made(host, "b", 0, {})
    host.store.put(record, data)
    host(RetrievalEnded(recovery.number, record, (), 0.0, 0.0, 1))
    await until(host, lambda: "the record holds no contribution" in recovery.reason)
    gone, _ = made(host, "b", 2)
    host(RetrievalEnded(recovery.number, gone, (), 0.0, 0.0, 1))
    await until(host, lambda: "is no longer held here" in recovery.reason)
    await until(host, lambda: recovery.outcome == "lost")
    assert host.root.stage == "train"


async def test_a_replica_fills_the_slot_and_its_owner_comes_too_late(hosted: Hosted) -> None:
    host = await in_round_0(await hosted())
    host(MembersChanged(host.tree, (), (Departed(AGENTS["b"].id, 1, "died", "refused"),)))
    record, data = made(host, "b", 0)
    host.store.put(record, data)
    (recovery,) = host.root.recoveries
    host(RetrievalEnded(recovery.number, record, (), 0.0, 0.0, 1))
    await until(host, lambda: recovery.outcome == "verified")
    refused = await host.on_upload(record, data, AGENTS["b"])
    assert refused is not None
    assert "already, by replica" in refused
    assert await bring(host, "a", 0) is None
    await committed(host, 2)


async def test_whose_step_overflows_theta_is_given_up_and_the_rest_folded_in(hosted: Hosted) -> None:
    """3e38 is a figure that float32 has, and theta, which is negative, has none beyond it."""
    host = await hosted(server_rate=1.0)
    await until(host, lambda: host.root.stage == "waiting")
    members(host, "a", "b")
    await until(host, lambda: host.root.stage == "init")
    assert await bring(host, "a", 0, {"w": np.full(3, -1e38, np.float32)}, "init") is None
    await committed(host, 1)
    assert await bring(host, "a", 0, {"w": np.full(3, 3e38, np.float32)}, samples=90) is None
    assert await bring(host, "b", 0, {"w": np.ones(3, np.float32)}) is None
    await committed(host, 2)
    np.testing.assert_array_equal(host.theta["w"], np.full(3, -1e38, np.float32))


async def test_a_server_rate_that_overflows_with_everybody_halts_the_tree(hosted: Hosted) -> None:
    host = await in_round_0(await hosted(server_rate=1e300))
    for name in AGENTS:
        await bring(host, name, 0, {"w": np.full(3, 1e300)})
    await until(host, lambda: host.root.stage == "halted")
    assert host.root.reason.startswith("nobody is left to contribute; ")
    assert all(f"tensor w of agent {peer.id.short} makes theta overflow" in host.root.reason for peer in AGENTS.values())
    assert "lower server_rate" in host.root.reason


async def test_a_round_without_a_sample_halts_the_tree_in_each_life_of_the_manager(hosted: Hosted, tmp_path: Path) -> None:
    """One of two trains a round, and has no data: nothing was learnt, so theta stays; and it may yet bring something."""
    one = {"selection": "fraction", "selection_fraction": 0.5}
    first = await in_round_0(await hosted(tmp_path, **one))
    await first.store.flush()
    later = await hosted(tmp_path, **one)
    await until(later, lambda: later.root.stage == "committing")
    members(later, "a", "b")
    await committed(later, 2)
    for host in (first, later):
        assert host.root.work is not None
        (chosen,) = host.root.work.expected
        (name,) = (name for name, peer in AGENTS.items() if peer.id == chosen)
        assert await bring(host, name, 0, samples=0) is None
        await until(host, lambda host=host: host.root.stage == "halted")  # type: ignore[misc]
        assert host.root.reason.startswith(f"nobody is left to contribute; {chosen.short}: none of 1 contributions has a weight above 0")
        np.testing.assert_array_equal(host.theta["w"], ZERO["w"])
    assert await bring(later, name, 0) is None
    await committed(later, 3)
    np.testing.assert_array_equal(later.theta["w"], np.full(3, -0.5))


async def test_its_own_old_record_changes_nothing_in_the_middle_of_a_run(hosted: Hosted) -> None:
    host = await in_round_0(await hosted())
    assert host.theta_record is not None
    first = host.theta_record
    for name in AGENTS:
        await bring(host, name, 0)
    await committed(host, 2)
    host.theta = {"w": np.full(3, 7.0)}  # folded in, and not committed yet
    host(RetrievalEnded(OWN_RECORD, first, (), 0.0, 0.0, 1))
    np.testing.assert_array_equal(host.theta["w"], np.full(3, 7.0))
    assert (host.root.next_round, host.theta_record.version) == (1, 2)


# --- a manager that starts again -------------------------------------------------------------------------------------------------


async def stopped_after_round_0(hosted: Hosted, state_dir: Path, **changes: Any) -> TreeHost:
    host = await in_round_0(await hosted(state_dir, **changes))
    for name in AGENTS:
        await bring(host, name, 0)
    await committed(host, 2)
    await host.store.flush()
    return host


async def test_it_goes_on_from_its_disk(hosted: Hosted, tmp_path: Path) -> None:
    before = await stopped_after_round_0(hosted, tmp_path, server_optimizer="adam")
    host = await hosted(tmp_path, server_optimizer="adam")
    await committed(host, 3)
    assert host.root.stage == "train"
    assert (host.root.next_round, host.root.version, host.root.losses) == (1, 3, [0.5]), "version 2, written anew"
    np.testing.assert_array_equal(host.theta["w"], before.theta["w"])
    ours, theirs = host.aggregator.state(), before.aggregator.state()
    assert {name: value.tobytes() for name, value in ours.items()} == {name: value.tobytes() for name, value in theirs.items()}


@pytest.mark.parametrize(
    ("before", "change", "said"),
    [
        ({}, {"seed": 9}, "it is of a run with seed 1, and the settings say 9"),
        ({}, {"server_optimizer": "adam"}, "the state is of another optimizer than adam"),
        ({"server_optimizer": "adam"}, {"server_optimizer": "yogi"}, "the state is of another optimizer than yogi: it is of adam"),
    ],
)
async def test_settings_that_do_not_fit_the_record_are_told_in_a_sentence(
    hosted: Hosted, tmp_path: Path, before: dict[str, Any], change: dict[str, Any], said: str
) -> None:
    await stopped_after_round_0(hosted, tmp_path, **before)
    host = await hosted(tmp_path, **change)
    sentence = await failure(host)
    assert sentence.startswith("tree main cannot go on from its record, version 2: ")
    assert said in sentence


async def test_a_record_without_a_ledger_is_told_in_a_sentence(hosted: Hosted, tmp_path: Path) -> None:
    before = await stopped_after_round_0(hosted, tmp_path)
    before.store.put(*seal(Knowledge(before.tree, before.tree, 9, before.me.incarnation, "train", 1, 0, False, tensors={"theta": ONES})))
    await before.store.flush()
    sentence = await failure(await hosted(tmp_path))
    assert sentence.startswith("tree main cannot go on from its record, version 9: its round state cannot be read")


def damaged(state_dir: Path) -> tuple[Path, bytes]:
    """The one record on disk, of which a bit has flipped."""
    (path,) = state_dir.glob("trees/main/*.record")
    flipped = bytearray(path.read_bytes())
    flipped[-20] ^= 1
    path.write_bytes(flipped)
    return path, bytes(flipped)


async def test_a_record_on_disk_that_cannot_be_read_is_never_begun_over(
    hosted: Hosted, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """P2: nobody else has a copy, and all who are needed have come: the tree waits for people, says so once, and leaves the file alone."""
    caplog.set_level("INFO", "fmrec")
    await stopped_after_round_0(hosted, tmp_path)
    path, content = damaged(tmp_path)
    host = await hosted(tmp_path)
    said = f"the record in {path} cannot be read: restore it, or remove it to begin anew, and start again"
    await until(host, lambda: host.root.reason == said)
    members(host, "a", "b")
    for _ in range(2):
        host(RetrievalEnded(OWN_RECORD, None, (), 0.0, 0.0, 0))
    assert (host.root.stage, host.document()["reason"]) == ("locating", said)
    assert host.root.next_deadline(0.0) is not None, "it looks again"
    assert caplog.text.count("not_begun") == 1
    await host.store.flush()
    assert path.read_bytes() == content
    path.unlink()
    assert (await in_round_0(await hosted(tmp_path))).root.next_round == 0, "whoever removes it begins anew"


async def test_a_record_that_the_disk_has_lost_comes_from_the_ring(hosted: Hosted, tmp_path: Path) -> None:
    before = await stopped_after_round_0(hosted, tmp_path)
    held = before.store.get(before.tree, before.tree)
    assert held is not None
    path, content = damaged(tmp_path)
    host = await hosted(tmp_path)
    await until(host, lambda: "cannot be read" in host.root.reason)
    host.store.put(*held)  # as a look that finds a copy does
    host(RetrievalEnded(OWN_RECORD, held[0], (), 0.0, 0.0, 1))
    await committed(host, 3)
    assert (host.root.stage, host.root.next_round) == ("train", 1)
    await host.store.flush()
    assert path.with_suffix(".record.damaged").read_bytes() == content
    assert (await hosted(tmp_path)).store.held()[0].version == 3


async def test_a_root_whose_clock_is_behind_that_of_the_record_steps_down(hosted: Hosted) -> None:
    """What it would write looks older than what is there, to every holder."""
    host = await hosted()
    await until(host, lambda: host.root.stage == "waiting")
    ahead, data = seal(Knowledge(host.tree, host.tree, 9, host.me.incarnation + 5, "train", 1, 0, False, tensors={"theta": ONES}))
    host.store.put(ahead, data)
    host.driver.dispatch(RecordHeld(ahead))
    members(host, "a", "b")
    order = await asyncio.wait_for(asyncio.shield(host.superseded), 10)
    assert order == StepDown(f"has had a root of term {ahead.incarnation} already", ahead.incarnation)


async def test_whom_nufm_chooses_comes_back_from_its_disk(hosted: Hosted, tmp_path: Path) -> None:
    """Each is heard once; then the one with the larger gradient trains, before and after a restart. A norm that is not finite is none."""
    nufm = {"selection": "nufm", "selection_fraction": 0.5, "rounds": 4}
    host = await in_round_0(await hosted(tmp_path, **nufm))
    names = {peer.id: name for name, peer in AGENTS.items()}
    heard = []
    for number in (0, 1):
        assert host.root.work is not None
        (chosen,) = host.root.work.expected
        heard.append(names[chosen])
        norm = {"a": 1.5, "b": 2.5}[names[chosen]]
        assert await bring(host, names[chosen], number, samples=7, metrics={"nufm_gradient_norm": norm}) is None
        await committed(host, number + 2)
    assert sorted(heard) == ["a", "b"]
    seen = {AGENTS["a"].id: Seen(7, 1.5), AGENTS["b"].id: Seen(7, 2.5)}
    await host.store.flush()
    later = await hosted(tmp_path, **nufm)
    await committed(later, 4)
    for life in (host, later):
        assert life.root.seen == seen
        assert life.root.work is not None
        assert (life.root.work.number, life.root.work.expected) == (2, (AGENTS["b"].id,))
    assert await bring(later, "b", 2, metrics={"nufm_gradient_norm": float("inf")}) is None
    await committed(later, 5)
    assert later.root.seen[AGENTS["b"].id] == Seen(10, None)

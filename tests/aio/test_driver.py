"""The loop: order, one timer, effects and their ends, and mistakes that are not swallowed. The node here follows a script."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from protocol.aio.driver import FULL_AGAIN_S, Driver, not_before
from protocol.aio.store import RecordStore
from protocol.chunks import bind
from protocol.errors import RecordInvalid, RemoteProtocolError
from protocol.identifiers import Address, Peer, agent_id, tree_id
from protocol.overlay import effects, events
from protocol.parameters import OverlayParameters
from protocol.wire.messages import Datagram, Ping, Pong, Route
from protocol.wire.values import RecordSummary

Start = Callable[..., Any]


@dataclass
class Scripted:
    """A node that answers each kind of event with what the test said, and keeps what it was told."""

    self_peer: Peer
    script: Callable[[Any], list[Any]] = lambda event: []
    deadline: float | None = None
    seen: list[tuple[Any, float]] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def handle(self, event: Any, now: float) -> list[Any]:
        self.seen.append((event, now))
        self.changed.set()
        return self.script(event)

    def next_deadline(self) -> float | None:
        return self.deadline

    @property
    def events(self) -> list[Any]:
        return [event for event, _ in self.seen]

    async def until(self, kind: type) -> Any:
        async with asyncio.timeout(5):
            while not (found := [event for event in self.events if isinstance(event, kind)]):
                self.changed.clear()
                await self.changed.wait()
        return found[-1]


@dataclass
class Daemon:
    """An application that keeps what it is handed."""

    effects: list[Any] = field(default_factory=list)
    uploads: list[tuple[RecordSummary, bytes, Peer]] = field(default_factory=list)
    then: Callable[[Any], None] = lambda effect: None

    def __call__(self, effect: Any) -> None:
        self.effects.append(effect)
        self.then(effect)

    async def on_upload(self, summary: RecordSummary, data: Any, sender: Peer) -> str | None:
        self.uploads.append((summary, bytes(data), sender))
        return None if summary.version > 1 else "too old"


@dataclass
class Host:
    driver: Driver
    node: Scripted
    daemon: Daemon
    store: RecordStore

    @property
    def peer(self) -> Peer:
        return self.node.self_peer


@pytest.fixture
async def host(start: Start) -> AsyncIterator[Callable[..., Any]]:
    """host(name, script) -> Host, closed at the end."""
    hosts: list[Host] = []

    async def host(name: str, script: Callable[[Any], list[Any]] = lambda event: []) -> Host:
        process = await start(name)
        node, daemon, store = Scripted(process.peer, script), Daemon(), RecordStore(None, 1 << 24, print)
        driver = Driver(node, process.connections, store, daemon, OverlayParameters())
        driver.start()
        hosts.append(Host(driver, node, daemon, store))
        return hosts[-1]

    yield host
    for each in hosts:
        await each.driver.close()


def record(version: int = 1, size: int = 1000) -> tuple[RecordSummary, bytes]:
    digest, data = bind([[bytes([version]) * size]])
    return RecordSummary(agent_id("c", "o"), tree_id("t", "u"), version, 1, 0, 0, False, len(data), digest), bytes(data)


@pytest.mark.parametrize("when", [36943.768000000004, 36943.768, 36943.7681, 0.0])
def test_no_timer_rings_early(when: float) -> None:
    """The first of them, times 1000, is a whole number."""
    assert when <= not_before(when) < when + 0.0011


async def test_the_timer_follows_the_next_deadline(host: Any) -> None:
    a = await host("a")
    loop = asyncio.get_running_loop()
    a.node.deadline = loop.time() + 3600
    a.driver.dispatch(events.Started())
    a.node.deadline = due = loop.time() + 0.05
    a.node.script = lambda event: setattr(a.node, "deadline", None) or []  # type: ignore[func-returns-value]
    a.node.deadline = due
    a.driver._arm()
    await a.node.until(events.TimerFired)
    assert [type(event) for event in a.node.events] == [events.Started, events.TimerFired]
    assert a.node.seen[-1][1] >= due, "a timer that rings early would ring again"
    assert a.driver._timer is None


async def test_a_deadline_that_has_passed_is_handled_at_once_but_not_inside(host: Any) -> None:
    a = await host("a")
    a.node.deadline = 0.0
    a.driver.dispatch(events.Started())
    assert a.node.events == [events.Started()]
    a.node.script = lambda event: setattr(a.node, "deadline", None) or []  # type: ignore[func-returns-value]
    await a.node.until(events.TimerFired)


async def test_what_is_dispatched_inside_is_handled_after(host: Any) -> None:
    facts = {events.Started: ["one", "two"], events.Leave: ["three"]}
    a = await host("a", lambda event: [effects.Notify(fact) for fact in facts[type(event)]])
    a.daemon.then = lambda effect: a.driver.dispatch(events.Leave()) if effect.fact == "one" else None
    a.driver.dispatch(events.Started())
    assert [effect.fact for effect in a.daemon.effects] == ["one", "two", "three"]


async def test_messages_and_losses_arrive_as_events(host: Any) -> None:
    b = await host("b", lambda event: [effects.Send(event.peer, Pong())] if isinstance(event, events.MessageReceived) else [])
    a = await host("a", lambda event: [effects.Send(b.peer, Ping())] if isinstance(event, events.Started) else [])
    a.driver.dispatch(events.Started())
    assert await a.node.until(events.MessageReceived) == events.MessageReceived(b.peer, Pong())
    a.node.script = lambda event: [effects.Disconnect(b.peer)]
    a.driver.dispatch(events.Leave())
    assert (await b.node.until(events.PeerLost)).peer == a.peer


async def test_dials_end_in_events(host: Any, free_port: Callable[[], int]) -> None:
    b = await host("b")
    nowhere = Address("127.0.0.1", free_port())
    dead = Peer(agent_id("c", "dead"), *nowhere, 1)
    a = await host("a", lambda event: [effects.Dial(b.peer), effects.DialSeed(b.peer.address)] if event == events.Started() else [])
    a.driver.dispatch(events.Started())
    assert (await a.node.until(events.DialEnded)).found == b.peer
    assert await a.node.until(events.SeedAnswered) == events.SeedAnswered(b.peer.address, b.peer)
    a.node.script = lambda event: [effects.Dial(dead), effects.DialSeed(nowhere)] if event == events.Leave() else []
    a.node.seen.clear()
    a.driver.dispatch(events.Leave())
    assert (await a.node.until(events.DialEnded)).refused
    assert (await a.node.until(events.SeedFailed)).address == nowhere


async def test_a_replica_is_pushed_held_and_fetched_back(host: Any) -> None:
    summary, data = record()
    b = await host("b")
    a = await host("a", lambda event: [effects.Push(1, b.peer, summary)] if event == events.Started() else [])
    a.store.put(summary, data)
    a.driver.dispatch(events.Started())
    assert await a.node.until(events.PushEnded) == events.PushEnded(1, "stored")
    assert b.node.events == [events.RecordHeld(summary)]
    c = await host("c", lambda event: [effects.Fetch(2, b.peer, summary)] if event == events.Started() else [])
    c.driver.dispatch(events.Started())
    assert await c.node.until(events.FetchEnded) == events.FetchEnded(2, summary)
    assert bytes(c.store.get(summary.owner, summary.tree)[1]) == data
    c.node.script = lambda event: [effects.Discard(summary)]
    c.driver.dispatch(events.Leave())
    assert c.store.held() == []


async def test_a_full_holder_refuses(host: Any) -> None:
    summary, data = record(2, size=1 << 24)
    b = await host("b")
    b.store.put(*record(1, size=10))
    b.store._bytes_max = 100
    a = await host("a", lambda event: [effects.Push(1, b.peer, summary)] if event == events.Started() else [])
    a.store.put(summary, data)
    a.driver.dispatch(events.Started())
    ended = await a.node.until(events.PushEnded)
    assert ended.outcome == "refused"
    assert "the store is full" in ended.reason


@pytest.mark.parametrize("too_many", [True, False], ids=["records", "bytes"])
async def test_that_it_is_full_is_told_once_a_minute(host: Any, too_many: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    a = await host("a")
    held, _ = record(1, size=10)
    a.store.put(*record(1, size=10))
    a.driver._parameters = replace(a.driver._parameters, held_records_max=1 if too_many else 10)
    a.store._bytes_max = 1 << 20 if too_many else 1100
    other = replace(record(1)[0], owner=agent_id("c", "p"))
    a.node.script = lambda event: [effects.Discard(held)] if event == events.Started() else []

    def told() -> list[Any]:
        return [effect.details["reason"] for effect in a.daemon.effects if effect.fact == "store_full"]

    reasons = [a.driver.admit(other, "replica") for _ in range(3)]
    assert reasons[0] is not None
    assert told() == reasons[:1]
    assert a.driver.admit(replace(held, version=2), "replica") is None, "a newer version takes the place of what is there"
    a.driver.dispatch(events.Started())
    assert a.driver.admit(other, "replica") is None
    a.store.put(*record(3, size=10))
    assert a.driver.admit(other, "replica") is not None
    assert len(told()) == 1, "however often something comes and goes"
    monkeypatch.setattr(a.driver, "_full_again", a.driver._full_again - FULL_AGAIN_S)
    assert a.driver.admit(other, "replica") is not None
    assert len(told()) == 2


async def test_a_record_that_was_superseded_is_not_pushed(host: Any) -> None:
    b = await host("b")
    a = await host("a", lambda event: [effects.Push(1, b.peer, record(1)[0])] if event == events.Started() else [])
    a.store.put(*record(2))
    a.driver.dispatch(events.Started())
    assert (await a.node.until(events.PushEnded)).outcome == "failed"


async def test_a_cancelled_transfer_says_nothing_more(host: Any) -> None:
    b = await host("b")
    wanted = record(9)[0]
    answers = {events.Started: [effects.Fetch(5, b.peer, wanted)], events.Leave: [effects.CancelTransfer(5), effects.CancelTransfer(6)]}
    a = await host("a", lambda event: answers.get(type(event), []))
    a.driver.dispatch(events.Started())
    (task,) = a.driver._tasks
    a.driver.dispatch(events.Leave())
    await asyncio.wait({task}, timeout=5)
    assert task.cancelled()
    assert [type(event) for event in a.node.events] == [events.Started, events.Leave]


async def test_uploads_go_to_the_application(host: Any) -> None:
    a, b = await host("a"), await host("b")
    assert (await a.driver.upload(b.peer, *record(2))).outcome == "stored"
    assert (await a.driver.upload(b.peer, *record(1))).reason == "too old"
    assert b.daemon.uploads == [(*record(2), a.peer), (*record(1), a.peer)]
    assert not b.node.events
    assert b.store.held() == []


async def test_an_upload_that_cannot_be_opened_is_refused_and_the_rest_goes_on(host: Any) -> None:
    """P7: whoever sent it is told, and nobody else hears of it."""
    a, b = await host("a"), await host("b")
    taken = b.daemon.on_upload

    async def unreadable(*arguments: Any) -> str | None:
        raise RecordInvalid("the record cannot be read: tensor 't' has a name that is no text")

    b.daemon.on_upload = unreadable
    outcome = await a.driver.upload(b.peer, *record(2))
    assert (outcome.outcome, outcome.reason) == ("refused", "the record cannot be read: tensor 't' has a name that is no text")
    assert not b.driver.failed.done()
    b.daemon.on_upload = taken
    assert (await a.driver.upload(b.peer, *record(2))).outcome == "stored"


async def test_a_daemon_fetches_for_itself(host: Any) -> None:
    a, b = await host("a"), await host("b")
    fetching = asyncio.create_task(a.driver.fetch(b.peer, record()[0].owner, record()[0].tree, 3, patience_s=5))
    await asyncio.sleep(0)
    b.store.put(*record(3))
    summary, data = await fetching
    assert (summary, bytes(data)) == record(3)
    assert not a.node.events


async def test_a_peer_that_errs_is_dropped_and_nothing_else(host: Any) -> None:
    """P7."""

    def strict(event: Any) -> list[Any]:
        if isinstance(event, events.MessageReceived):
            raise RemoteProtocolError("a ping out of turn")
        return []

    b = await host("b", strict)
    a = await host("a", lambda event: [effects.Send(b.peer, Ping())] if isinstance(event, events.Started) else [])
    a.driver.dispatch(events.Started())
    assert "a ping out of turn" in (await a.node.until(events.PeerLost)).reason
    assert (await b.node.until(events.PeerLost)).peer == a.peer
    assert not b.driver.failed.done()


async def test_what_cannot_be_sent_is_dropped_and_the_rest_goes_on(host: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A message too long for a frame, or with a number that has no wire form, is one lost message, and said to be."""
    b = await host("b")
    key = agent_id("c", "key")
    sends: list[Any] = [
        Route(key, Datagram(bytes(OverlayParameters().control_frame_bytes_max))),
        Route(key, Datagram(b""), hops=2**70),
        Ping(),
    ]
    wanted = [*(effects.Send(b.peer, message) for message in sends), effects.Dial(b.peer)]
    a = await host("a", lambda event: wanted if isinstance(event, events.Started | events.Leave) else [])
    a.driver.dispatch(events.Started())
    assert (await a.node.until(events.DialEnded)).found == b.peer
    assert (await b.node.until(events.MessageReceived)).message == Ping()
    facts = [effect.details for effect in a.daemon.effects if effect.fact == "unsendable"]
    assert [(fact["peer"], fact["message"]) for fact in facts] == [(b.peer, "Route")] * 2
    assert "a control frame has at most" in facts[0]["reason"]
    a.driver.dispatch(events.Leave())
    assert caplog.text.count("is dropped") == 1, "once a kind"
    assert not a.driver.failed.done()


@pytest.mark.parametrize("where", ["node", "application", "upload"])
async def test_a_mistake_of_ours_is_loud(host: Any, where: str, caplog: pytest.LogCaptureFixture) -> None:
    a = await host("a", lambda event: [effects.Notify("fact")] if where == "application" else [][1] if where == "node" else [])
    a.daemon.then = lambda effect: {}["no such key"]
    if where == "upload":
        b = await host("b")

        async def wrong(*arguments: Any) -> str | None:
            raise KeyError("no such round")

        a.daemon.on_upload = wrong
        await b.driver.upload(a.peer, *record())
    else:
        a.driver.dispatch(events.Started())
    with pytest.raises(LookupError):
        await a.driver.failed
    assert "a mistake in FMRec" in caplog.text
    seen = len(a.node.seen)
    a.driver.dispatch(events.Leave())
    assert len(a.node.seen) == seen, "nothing more is handled"


async def test_closing_cancels_what_is_under_way(host: Any) -> None:
    b = await host("b")
    a = await host("a", lambda event: [effects.Fetch(5, b.peer, record(9)[0]), effects.Dial(b.peer)])
    a.node.deadline = asyncio.get_running_loop().time() + 0.01
    a.driver.dispatch(events.Started())
    await a.driver.close()
    a.driver.dispatch(events.Leave())
    assert a.node.events == [events.Started()]
    assert not a.driver._tasks


async def test_where_one_holder_is_gone_another_that_was_named_delivers(host: Any, free_port: Callable[[], int]) -> None:
    summary, data = record(2)
    b = await host("b")
    b.store.put(summary, data)
    gone = Peer(agent_id("c", "gone"), "127.0.0.1", free_port(), 1)
    fetch = effects.Fetch(3, gone, summary, (b.peer,))
    a = await host("a", lambda event: [fetch] if event == events.Started() else [])
    a.driver.dispatch(events.Started())
    assert await a.node.until(events.FetchEnded) == events.FetchEnded(3, summary)


@pytest.mark.parametrize("ours", [False, True])
async def test_a_full_store_fetches_nothing_but_its_own_nodes_record(host: Any, ours: bool) -> None:
    a = await host("a")
    a.driver.store = a.store = RecordStore(None, 1000, print)
    owner = a.peer.id if ours else agent_id("c", "o")
    summary, data = record(2)
    summary = replace(summary, owner=owner)
    b = await host("b")
    b.store.put(summary, data)
    a.node.script = lambda event: [effects.Fetch(3, b.peer, summary)] if event == events.Started() else []
    a.driver.dispatch(events.Started())
    ended = await a.node.until(events.FetchEnded)
    assert (ended.record, len(a.store)) == ((summary, 1) if ours else (None, 0))
    assert ours or "the store is full" in ended.reason


async def test_a_holder_says_stored_when_a_power_cut_would_leave_the_record(host: Any, tmp_path: Path) -> None:
    """P2: what is acknowledged is on disk where there is one."""
    summary, data = record(2)
    b = await host("b")
    b.driver.store = b.store = RecordStore(tmp_path, 1 << 24, print)
    a = await host("a", lambda event: [effects.Push(1, b.peer, summary)] if event == events.Started() else [])
    a.store.put(summary, data)
    a.driver.dispatch(events.Started())
    assert (await a.node.until(events.PushEnded)).outcome == "stored"
    again = RecordStore(tmp_path, 1 << 24, print)
    await again.load()
    assert again.held() == [summary]
    await again.close()
    await b.store.close()


async def test_a_holder_whose_disk_fails_counts_like_one_without_and_tries_again(
    host: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary, data = record(2)
    said: list[str] = []
    b = await host("b")
    b.driver.store = b.store = RecordStore(tmp_path, 1 << 24, said.append)
    a = await host("a", lambda event: [effects.Push(1, b.peer, summary)] if event == events.Started() else [])
    a.store.put(summary, data)
    sync = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: os.close(-1))
    a.driver.dispatch(events.Started())
    assert (await a.node.until(events.PushEnded)).outcome == "stored"
    assert "records are kept in memory only" in said[0]
    assert b.store.get(*summary.key) is not None
    assert not b.store.is_settled(summary)
    a.node.seen.clear()
    monkeypatch.setattr(os, "fdatasync", sync)
    a.driver.dispatch(events.Started())
    assert (await a.node.until(events.PushEnded)).outcome == "stored"
    assert b.store.is_settled(summary)
    assert a.driver._connections.bulk.moved.sent_bytes == 1000, "its bytes were there already"
    await b.store.close()


async def test_what_was_discarded_while_the_disk_synced_is_not_said_to_be_stored(
    host: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary, data = record(2)
    b = await host("b")
    b.driver.store = b.store = RecordStore(tmp_path, 1 << 24, print)
    syncing, go_on, sync = asyncio.Event(), threading.Event(), os.fdatasync
    loop = asyncio.get_running_loop()

    def slow(descriptor: int) -> None:
        loop.call_soon_threadsafe(syncing.set)
        go_on.wait(10)
        sync(descriptor)

    monkeypatch.setattr(os, "fdatasync", slow)
    a = await host("a", lambda event: [effects.Push(1, b.peer, summary)] if event == events.Started() else [])
    a.store.put(summary, data)
    a.driver.dispatch(events.Started())
    await syncing.wait()
    b.store.discard(summary)
    go_on.set()
    ended = await a.node.until(events.PushEnded)
    assert (ended.outcome, "discarded" in ended.reason) == ("refused", True)
    await b.store.close()

"""Alarms on a loop that is late (aio/alarm.py)."""

from __future__ import annotations

import asyncio
import socket
import time

from protocol.aio.alarm import LATE_S, Alarm


async def test_what_came_in_while_the_loop_stood_still_is_read_before_a_late_alarm() -> None:
    """A process that was stopped: the heartbeat is in its socket, and the deadline for it is over."""
    loop, told = asyncio.get_running_loop(), list[str]()
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    rung = asyncio.Event()
    loop.add_reader(ours, lambda: told.append(ours.recv(16).decode()))
    Alarm(loop, loop.time() + LATE_S, lambda: (told.append("alarm"), rung.set()))
    theirs.send(b"heartbeat")
    time.sleep(4 * LATE_S)  # noqa: ASYNC251 (the loop stands still)
    async with asyncio.timeout(10):
        await rung.wait()
    loop.remove_reader(ours)
    ours.close()
    theirs.close()
    assert told == ["heartbeat", "alarm"]


async def test_a_cancelled_alarm_does_not_ring_whenever_it_is_cancelled() -> None:
    loop, told, later = asyncio.get_running_loop(), list[str](), asyncio.Event()
    early = Alarm(loop, loop.time() + LATE_S, lambda: told.append("early"))
    early.cancel()
    late = Alarm(loop, loop.time() + LATE_S, lambda: told.append("late"), 10.0)
    time.sleep(4 * LATE_S)  # noqa: ASYNC251 (the loop stands still)
    Alarm(loop, loop.time(), later.set)
    async with asyncio.timeout(10):
        await later.wait()  # after the turn in which `late` gave way
    late.cancel()
    assert told == []

"""A process of its own with few file descriptors, for test_descriptors.py: one node that answers and dials whoever pings it.

    python -m tests.aio.few_descriptors LOOP LIMIT PORT

It says "ready" once it listens, and takes two orders as datagrams: `fill` opens files until no descriptor is left, `free` closes them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import sys

import uvloop

from protocol.aio.connections import Connections
from protocol.aio.process import set_up_logging
from protocol.identifiers import Peer, agent_id
from protocol.parameters import OverlayParameters
from protocol.wire.messages import Datagram, Message, Ping, Pong, Route

HUB = agent_id("c", "hub")


class Hub:
    """Answers a ping on the connection that it came by, and dials back."""

    def __init__(self, connections: Connections, me: Peer) -> None:
        self._connections = connections
        self._me = me
        self._files: list[int] = []
        self._dials: set[asyncio.Task[object]] = set()

    def received(self, peer: Peer, message: Message) -> None:
        match message:
            case Ping():
                dial = asyncio.create_task(self._connections.dial_fresh(self._me, peer))
                self._dials.add(dial)
                dial.add_done_callback(self._dials.discard)
            case Route(_, Datagram(b"fill")):
                with contextlib.suppress(OSError):
                    while True:
                        self._files.append(os.open(os.devnull, os.O_RDONLY))
            case Route(_, Datagram(b"free")):
                while self._files:
                    os.close(self._files.pop())
        self._connections.send(self._me, peer, Pong())

    def lost(self, peer: Peer, reason: str) -> None:
        pass


async def main(limit: int, port: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    connections = Connections("c", OverlayParameters())
    address = await connections.listen("127.0.0.1", port)
    me = Peer(HUB, address.host, address.port, 1)
    connections.serve(me, Hub(connections, me))
    print("ready", flush=True)
    await stop.wait()
    await connections.close()


if __name__ == "__main__":
    set_up_logging("warning")
    factory = uvloop.new_event_loop if sys.argv[1] == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main(int(sys.argv[2]), int(sys.argv[3])))

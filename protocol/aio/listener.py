"""Accepting: what waits at the listening socket, some in each turn of the loop.

1. In each turn so many connections are taken as ACCEPTED_AT_ONCE. The loops' own servers differ in this: uvloop's takes one a turn, so that
   in a process that is busy, whose turns are long, the queue outlives the patience of those in it.
2. Who has given up (its dial has timed out) is closed unread and does not count: else a queue full of these stands before all who still
   wait, and nobody is answered in time ever again.
3. A connection that is under way to its link when all ends is closed by uvloop, which then never tells the link: we do.
4. Without a file descriptor nothing is taken for PAUSE_S; who is told of it may make some free.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Coroutine

from protocol.aio.link import Link
from protocol.aio.sockets import given_up
from protocol.identifiers import Address

ACCEPT_QUEUE = 1024
"""Connections that the kernel keeps until we accept them."""
ACCEPTED_AT_ONCE = 8
"""In one turn of the loop, so that their owner hears of them before the last descriptors are gone."""
PAUSE_S = 0.1


class Listener:
    """One listening socket. make_link: what a connection is given to; exhausted: told that there was no descriptor for one."""

    def __init__(
        self,
        make_link: Callable[[], Link],
        exhausted: Callable[[], None],
        spawn: Callable[[Coroutine[object, object, None]], object],
    ) -> None:
        self._make_link = make_link
        self._exhausted = exhausted
        self._spawn = spawn
        self._loop = asyncio.get_running_loop()
        self._socket: socket.socket | None = None
        self._paused: asyncio.TimerHandle | None = None

    async def listen(self, host: str, port: int) -> Address:
        """The address bound; OSError where it cannot be."""
        # The loop's server knows how to bind; accepting is ours, on the same socket.
        server = await self._loop.create_server(self._make_link, host, port, start_serving=False)
        self._socket = socket.socket(fileno=os.dup(server.sockets[0].fileno()))
        server.close()
        await server.wait_closed()
        self._socket.setblocking(False)
        self._socket.listen(ACCEPT_QUEUE)
        self._loop.add_reader(self._socket.fileno(), self._accept)
        bound = self._socket.getsockname()
        return Address(bound[0], bound[1])

    def close(self) -> None:
        """Nothing is accepted any more; what waits is refused by the kernel."""
        if self._socket is None:
            return
        if self._paused is not None:
            self._paused.cancel()
        else:
            self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        self._socket = self._paused = None

    def _accept(self) -> None:
        taken = 0
        for _ in range(ACCEPT_QUEUE):
            if self._socket is None or taken == ACCEPTED_AT_ONCE:
                return
            try:
                accepted, _ = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    raise
                self._pause()
                self._exhausted()
                return
            if given_up(accepted):
                accepted.close()
                continue
            taken += 1
            accepted.setblocking(False)
            self._spawn(self._hand_over(accepted))

    async def _hand_over(self, accepted: socket.socket) -> None:
        link = self._make_link()
        try:
            await self._loop.connect_accepted_socket(lambda: link, accepted)
        except OSError:  # it ended in this very moment
            accepted.close()
        except asyncio.CancelledError:
            link.cut("this process is closing")
            raise

    def _pause(self) -> None:
        """A socket that is ready and cannot be accepted from would keep the loop busy."""
        assert self._socket is not None
        self._loop.remove_reader(self._socket.fileno())
        self._paused = self._loop.call_later(PAUSE_S, self._resume)

    def _resume(self) -> None:
        assert self._socket is not None
        self._paused = None
        self._loop.add_reader(self._socket.fileno(), self._accept)

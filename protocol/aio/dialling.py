"""One dial: a TCP connection and the hello on it, under one deadline. Tells a host that refuses from one that says nothing.

The difference matters: a refusal is an answer, from a machine that lives, that the process is gone. Silence proves nothing.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
from collections.abc import Callable
from functools import lru_cache, partial

from protocol.aio.alarm import Alarm
from protocol.aio.link import Link, LinkClosed
from protocol.identifiers import Address
from protocol.wire.messages import Refusal


class DialFailed(Exception):
    """No link came of it; the message says why.

    refused: the host answered that nobody listens there, or who listens says that the id does not live there.

    exhausted: it was we who had no file descriptor left, which says nothing about the other side.
    """

    def __init__(self, reason: str, *, refused: bool = False, exhausted: bool = False) -> None:
        super().__init__(reason)
        self.refused = refused
        self.exhausted = exhausted


GIVEN_UP = Refusal("busy", "the dial was given up")
"""Our last word on a connection that was accepted too late: a close alone would make the other side, which is busy, suspect us and dial."""


async def dial(make_link: Callable[[], Link], address: Address, timeout_s: float) -> Link:
    """A link whose hello is through. DialFailed otherwise, nothing left open."""
    link: Link | None = None
    loop = asyncio.get_running_loop()
    deadline = asyncio.timeout(None)
    # Time in which our own loop stood still is not held against the other side.
    alarm = Alarm(loop, loop.time() + timeout_s, partial(_expire, deadline), timeout_s)
    try:
        async with deadline:
            link = await _connect(make_link, address)
            await link.ready()
            return link
    except TimeoutError as error:
        raise DialFailed(f"{address} gave no {'hello' if link else 'answer'} within {timeout_s:g} s") from error
    except asyncio.CancelledError:
        if link is not None:
            # The hello may have come in this same turn: nobody will ever use the link.
            link.close("the dial was given up")
        raise
    except LinkClosed as error:
        refusal = link.session.refusal if link else None
        raise DialFailed(str(error), refused=refusal is not None and refusal.code == "receiver") from error
    finally:
        alarm.cancel()
        del alarm, deadline  # they know the task, whose end may know this frame, and the record that the link was for
        if link is not None and link.session.hello is None:
            link.refuse(GIVEN_UP)


def _expire(deadline: asyncio.Timeout) -> None:
    deadline.reschedule(asyncio.get_running_loop().time())


async def _connect(make_link: Callable[[], Link], address: Address) -> Link:
    """To the first of the host's addresses that accepts. Refused only where all of them refuse."""
    if not 0 < address.port < 1 << 16:
        raise DialFailed(f"{address} is no address: ports are 1 to 65535")  # uvloop would take the lower 16 bits
    loop = asyncio.get_running_loop()
    errors: list[OSError] = []
    try:
        for host in await _hosts(address):
            link = make_link()
            try:
                await loop.create_connection(partial(_itself, link), host, address.port)
                return link
            except TimeoutError:
                raise
            except asyncio.CancelledError:
                # The connection may have been made in this same turn: uvloop closes it then, and never tells the link.
                link.cut("the dial was given up")
                raise
            except OSError as error:
                errors.append(error)
    except (ValueError, OverflowError, TypeError) as error:
        raise DialFailed(f"{address} is no address: {error}") from error
    refused = all(error.errno == errno.ECONNREFUSED for error in errors)
    exhausted = any(error.errno in (errno.EMFILE, errno.ENFILE) for error in errors)
    if refused:
        raise DialFailed(f"{address} refused the connection: nobody listens there", refused=True)
    raise DialFailed(f"{address} cannot be reached: {errors[0].strerror or errors[0]}", exhausted=exhausted)


def _itself(link: Link) -> Link:
    return link


@lru_cache(maxsize=4096)
def _numeric(host: str) -> bool:
    """Kept: the same few are dialled again and again, and to find out takes a tenth of a dial."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def _hosts(address: Address) -> list[str]:
    """The numeric addresses of a host, in the resolver's order; a numeric one is itself, without a thread's help."""
    if _numeric(address.host):
        return [address.host]
    try:
        found = await asyncio.get_running_loop().getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise DialFailed(f"{address.host!r} has no address: {error.strerror or error}") from error
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))

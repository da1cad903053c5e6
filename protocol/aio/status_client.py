"""Asks a running daemon how it is, or to stop. Whoever listens at the address answers; no node is needed on this side."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from protocol.aio.dialling import DialFailed, dial
from protocol.aio.link import Link, LinkClosed
from protocol.aio.process import UserError
from protocol.errors import RemoteProtocolError
from protocol.identifiers import Address, NodeId, Peer
from protocol.wire.messages import StatusReply, StatusRequest, StopRequest
from protocol.wire.session import Session

DOCUMENT_BYTES_MAX = 16 << 20
"""A manager of some thousand agents says about a megabyte."""
NOBODY = Peer(NodeId(0), "", 0, 0)
"""Who we are in the hello: no node, and nobody can dial us."""


async def request_status(address: Address, cluster: str, timeout_s: float) -> dict[str, Any]:
    """The daemon's status document. UserError, in a sentence, where there is no answer within timeout_s seconds."""
    return await _ask(address, cluster, timeout_s, StatusRequest())


async def request_stop(address: Address, cluster: str, timeout_s: float) -> dict[str, Any]:
    """Asks the daemon to leave in order and exit; the last status document before that. UserError as for request_status()."""
    return await _ask(address, cluster, timeout_s, StopRequest())


async def _ask(address: Address, cluster: str, timeout_s: float, question: StatusRequest | StopRequest) -> dict[str, Any]:
    def make() -> Link:
        session = Session.dialling(cluster, NOBODY, None, "status", DOCUMENT_BYTES_MAX)
        return Link(session, _Nobody(), timeout_s, timeout_s, inbound=False)

    link: Link | None = None
    try:
        async with asyncio.timeout(timeout_s):
            link = await dial(make, address, timeout_s)
            link.send(question)
            answer = await link.receive()
    except (DialFailed, LinkClosed, RemoteProtocolError) as error:
        raise UserError(f"no status from {address}: {error}") from error
    except TimeoutError as error:
        raise UserError(f"no status from {address} within {timeout_s:g} s: is it the right address?") from error
    finally:
        if link is not None:
            link.abort("answered")
            await link.closed()
    if not isinstance(answer, StatusReply):
        raise UserError(f"no status from {address}: it answered with {type(answer).__name__}")
    try:
        document = json.loads(answer.document)
    except ValueError as error:
        raise UserError(f"no status from {address}: what it sent is not JSON ({error})") from error
    return document if isinstance(document, dict) else {"status": document}


class _Nobody:
    """The link's owner, which has nothing to keep."""

    def link_made(self, link: Link) -> None: ...

    def link_greeted(self, link: Link) -> None: ...

    def link_ended(self, link: Link, reason: str) -> None: ...

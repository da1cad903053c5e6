"""A process of its own that holds one record for whoever fetches it, for test_cross_memory.py.

    python -m tests.aio.holding_process HOST PORT BYTES

It says "ready" once it listens, and goes when it is killed.
"""

from __future__ import annotations

import asyncio
import sys

import uvloop

from protocol.aio.connections import Connections
from protocol.identifiers import Peer, agent_id
from protocol.parameters import OverlayParameters
from tests.aio.shelf import OWNER, TREE, Shelf, noise

HOLDER = agent_id("c", "holder")


async def main(host: str, port: int, size: int) -> None:
    connections = Connections("c", OverlayParameters(delay_max_s=0.1))
    address = await connections.listen(host, port)
    me = Peer(HOLDER, address.host, address.port, 1)
    connections.bulk.serve(me.id, Shelf(offers={(OWNER, TREE): noise(size)}))
    connections.serve(me, Silent())
    print("ready", flush=True)
    await asyncio.get_running_loop().create_future()


class Silent:
    """A node that answers no message."""

    def received(self, peer: Peer, message: object) -> None:
        pass

    def lost(self, peer: Peer, reason: str) -> None:
        pass


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))

"""The hosts themselves: that the faults which the stories are about do happen; and what the kernel finds when a host vanishes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyroute2", reason="pyroute2 makes the hosts: `make setup` installs it")

from protocol.aio.connections import Connections
from protocol.aio.sockets import half_open_max_s
from protocol.identifiers import Peer, agent_id
from protocol.parameters import OverlayParameters
from protocol.wire.messages import Message, Ping
from scripts.hosts import Network, enter, inside

PORT = 7700
PARAMETERS = OverlayParameters()


ARRIVES_S = 1.0
"""What has not come by then is lost: on a busy machine the kernel may deliver a datagram later than it is sent."""


def echoes(network: Network, source: int, host: int, count: int = 1) -> int:
    """How many of so many datagrams come back from the host."""

    def open_socket() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.settimeout(ARRIVES_S)
        return made

    def arrived(at: socket.socket, count: int) -> Iterator[Any]:
        """Who sent each of at most so many datagrams."""
        with contextlib.suppress(TimeoutError):
            for _ in range(count):
                yield at.recvfrom(1)[1]

    def sent(by: socket.socket, to: Iterable[Any]) -> int:
        """How many the kernel took: it may refuse one that has no way."""
        taken = 0
        for address in to:
            with contextlib.suppress(OSError):
                taken += by.sendto(b"?", address)
        return taken

    listener, caller = inside(network.namespace(host), open_socket), inside(network.namespace(source), open_socket)
    with listener, caller:
        listener.bind((network.address(host), PORT))
        away = sent(caller, [(network.address(host), PORT)] * count)
        back = sent(listener, list(arrived(listener, away)))
        return len(list(arrived(caller, back)))


def test_hosts_reach_each_other_and_faults_happen(network: Network) -> None:
    assert all(echoes(network, a, b) == 1 for a in network.hosts for b in network.hosts if a != b)
    network.cut(3, source=2)
    assert echoes(network, 2, 3) == 0
    assert echoes(network, 1, 3) == 1
    network.heal(3)
    network.isolate(4)
    assert echoes(network, 4, 1) == echoes(network, 1, 4) == 0
    assert echoes(network, 4, 4) == 1, "it reaches itself"
    network.heal(4)
    assert echoes(network, 4, 1) == 1
    network.lose(1, one_in=2)
    assert 20 <= echoes(network, 2, 1, 100) <= 80


class Ear:
    """A local node that only wants to know whom it has lost, and when."""

    def __init__(self, me: Peer) -> None:
        self.me = me
        self.heard = asyncio.Event()
        self.lost_at: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    def received(self, peer: Peer, message: Message) -> None:
        self.heard.set()

    def lost(self, peer: Peer, reason: str) -> None:
        self.lost_at.set_result(time.monotonic())


async def vanish(network: Network) -> list[float]:
    """Hosts 1 and 2 connected, 2 cut off. How long it then takes each side to lose the other, with nothing to send."""
    ears = []
    pools = []
    for host in (1, 2):
        enter(network.namespace(host))
        pools.append(Connections("c", PARAMETERS))
        address = await pools[-1].listen(network.address(host), PORT)
        ears.append(Ear(Peer(agent_id("c", str(host)), address.host, address.port, 1)))
        pools[-1].serve(ears[-1].me, ears[-1])
    pools[1].send(ears[1].me, ears[0].me, Ping())
    await ears[0].heard.wait()
    await asyncio.to_thread(network.isolate, 2)
    began = time.monotonic()
    async with asyncio.timeout(3 * half_open_max_s(PARAMETERS)):
        lost = await asyncio.gather(*(ear.lost_at for ear in ears))
    for pool in pools:
        await pool.close()
    return [at - began for at in lost]


def test_both_ends_of_a_half_open_connection_find_out(network: Network) -> None:
    """The last resort, for what nobody uses: no message is sent, no heartbeat missed, and still the connection ends."""
    took = inside(network.namespace(1), lambda: asyncio.run(vanish(network)))
    for seconds in took:
        assert 0.5 * half_open_max_s(PARAMETERS) < seconds < half_open_max_s(PARAMETERS) + 2


def test_everything_is_removed(network: Network) -> None:
    made = Network(2)
    names = [made.switch, *map(made.namespace, made.hosts)]
    assert all((Path("/var/run/netns") / name).exists() for name in names)
    made.close()
    assert not any((Path("/var/run/netns") / name).exists() for name in names)

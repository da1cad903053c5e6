"""Hosts on one machine: network namespaces on a switch, whose links can be slow, lossy or cut. All that is made is removed.

    host 1 .. N, each a namespace with 10.77.0.<n> on eth0 --veth--> a bridge in a namespace of its own, which has 10.77.0.254

What is done inside a namespace is done by a thread that has entered it (inside()); sockets and processes that it makes stay there.
A thread of its own also because pyroute2 runs an event loop, which cannot be where one runs already.
Speed is a token bucket (tbf) at both ends of a host's cable. Loss and cuts are nftables rules in the host. Needs root, or rather
CAP_SYS_ADMIN and CAP_NET_ADMIN; no command-line tool.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

from pyroute2 import IPRoute, NetlinkError, netns
from pyroute2.nftables.expressions import genex, ipv4addr, verdict
from pyroute2.nftables.main import NFTables

NETWORK = "10.77.0"
SWITCH = 254
LOOPBACK = "127.0.0.1"
TABLE = "faults"
TBF_BURST_BYTES = 32 * 1024
TBF_LATENCY = "100ms"
IPV4, ACCEPT, DROP = 2, 1, 0
EQUAL, NOT_EQUAL = 0, 1
RANDOM = 1
_T = TypeVar("_T")
_numbers = itertools.count()


def enter(namespace: str) -> None:
    """Moves the calling thread; what it opens from here on is there."""
    netns.setns(namespace)


def inside(namespace: str, call: Callable[[], _T]) -> _T:
    """call() in this namespace. A thread enters it and ends there: no other code of this process is moved."""
    done: Future[_T] = Future()

    def run() -> None:
        try:
            enter(namespace)
            done.set_result(call())
        except BaseException as error:
            done.set_exception(error)

    thread = threading.Thread(target=run, name=f"in {namespace}")
    thread.start()
    thread.join()
    return done.result()


class OneMachine:
    """What stands for a Network where none can be made: the same hosts, all of them this machine, and no faults of the links."""

    def __init__(self, count: int) -> None:
        self.hosts = range(1, count + 1)

    def address(self, host: int) -> str:
        return LOOPBACK

    def on(self, host: int, call: Callable[[], _T]) -> _T:
        """call(), here."""
        return call()

    def close(self) -> None:
        """Nothing was made."""


class Unable(Exception):
    """This process may not make hosts; the message says why."""


class Network:
    """`count` hosts, numbered from 1. Unable, nothing made, where this process may not make them. close() removes all."""

    def __init__(self, count: int) -> None:
        self._prefix = f"fmrec-{os.getpid()}-{next(_numbers)}"
        self.hosts = range(1, count + 1)
        self.switch = f"{self._prefix}-switch"
        self._made = contextlib.ExitStack()
        try:
            self._make_namespaces()
            inside(self.switch, self._make_switch)
            for host in self.hosts:
                inside(self.namespace(host), partial(_plug_in, self.address(host)))
        except (OSError, NetlinkError) as error:
            self.close()
            raise Unable(f"hosts are network namespaces, which cannot be made here: {error}") from error
        except BaseException:
            self.close()
            raise

    def namespace(self, host: int) -> str:
        return f"{self._prefix}-{host}"

    def address(self, host: int) -> str:
        return f"{NETWORK}.{host}"

    def on(self, host: int, call: Callable[[], _T]) -> _T:
        """call() on this host."""
        return inside(self.namespace(host), call)

    def close(self) -> None:
        """Removes the namespaces, and with them every cable and rule. Nothing may run in them any more."""
        self._made.close()

    # --- faults -------------------------------------------------------------------------------------------------------

    def limit(self, rate: str) -> None:
        """Every host's cable carries so much each way ("20mbit")."""
        for host in self.hosts:
            for namespace, device in ((self.namespace(host), "eth0"), (self.switch, f"port{host}")):
                inside(namespace, partial(_bucket, device, rate))

    def lose(self, host: int, one_in: int) -> None:
        """Of the packets that come to the host, one in so many is lost, at random: numgen random mod one_in == 0."""
        number = [("NFTA_NG_DREG", 1), ("NFTA_NG_MODULUS", one_in), ("NFTA_NG_TYPE", RANDOM), ("NFTA_NG_OFFSET", 0)]
        draw = {"attrs": [("NFTA_EXPR_NAME", "numgen"), ("NFTA_EXPR_DATA", {"attrs": number})]}
        is_zero = genex("cmp", {"sreg": 1, "op": EQUAL, "data": {"attrs": [("NFTA_DATA_VALUE", bytes(4))]}})
        self._rule(host, "input", (self._foreign(host, "src"), [draw, is_zero], verdict(DROP)))

    def cut(self, host: int, source: int) -> None:
        """Nothing that `source` sends reaches the host any more; the other way stays open."""
        self._rule(host, "input", (ipv4addr(src=self.address(source)), verdict(DROP)))

    def isolate(self, host: int) -> None:
        """Nothing enters or leaves the host."""
        self._rule(host, "input", (self._foreign(host, "src"), verdict(DROP)))
        self._rule(host, "output", (self._foreign(host, "dst"), verdict(DROP)))

    def heal(self, host: int) -> None:
        """The host's losses and cuts end."""
        self._nft(host, lambda nft: nft.table("del", name=TABLE))

    def _foreign(self, host: int, end: str) -> list[Any]:
        return ipv4addr(**{end: self.address(host)}, op=NOT_EQUAL)

    def _rule(self, host: int, hook: str, expressions: tuple[list[Any], ...]) -> None:
        def add(nft: NFTables) -> None:
            nft.table("add", name=TABLE)
            nft.chain("add", table=TABLE, name=hook, hook=hook, type="filter", policy=ACCEPT)
            nft.rule("add", table=TABLE, chain=hook, expressions=expressions)

        self._nft(host, add)

    def _nft(self, host: int, act: Callable[[NFTables], None]) -> None:
        def talk() -> None:
            nft = NFTables(nfgen_family=IPV4)
            try:
                act(nft)
            finally:
                nft.close()

        inside(self.namespace(host), talk)

    # --- making -------------------------------------------------------------------------------------------------------

    def _make_namespaces(self) -> None:
        for namespace in (self.switch, *map(self.namespace, self.hosts)):
            netns.create(namespace)
            self._made.callback(netns.remove, namespace)

    def _make_switch(self) -> None:
        with IPRoute() as net:
            net.link("add", ifname="switch", kind="bridge")
            (bridge,) = net.link_lookup(ifname="switch")
            net.addr("add", index=bridge, address=f"{NETWORK}.{SWITCH}", prefixlen=24)
            (loopback,) = net.link_lookup(ifname="lo")
            for index in (bridge, loopback):
                net.link("set", index=index, state="up")
            for host in self.hosts:
                net.link("add", ifname=f"port{host}", kind="veth", peer={"ifname": "eth0", "net_ns_fd": self.namespace(host)})
                (port,) = net.link_lookup(ifname=f"port{host}")
                net.link("set", index=port, master=bridge, state="up")


def _plug_in(address: str) -> None:
    """In a host: its cable is there; give it an address."""
    with IPRoute() as net:
        (cable,) = net.link_lookup(ifname="eth0")
        (loopback,) = net.link_lookup(ifname="lo")
        net.addr("add", index=cable, address=address, prefixlen=24)
        for index in (cable, loopback):
            net.link("set", index=index, state="up")


def _bucket(device: str, rate: str) -> None:
    with IPRoute() as net:
        (index,) = net.link_lookup(ifname=device)
        net.tc("add", "tbf", index=index, handle=0x10000, rate=rate, burst=TBF_BURST_BYTES, latency=TBF_LATENCY)

"""One process of the benchmark: many overlay nodes on one event loop, each what an agent has but for the learning.

    OverlayNode -> Driver -> Connections with a listener of its own, an empty RecordStore, real TCP also to nodes of the same process

The controller orders by lines of JSON on a socket that this process inherits: {"id", "do", ...}, answered by {"id", ...} or
{"id", "error"}, with "late" where time ran out. It is told unasked of {"complete": round, "at": s} when every member here has a
multicast, and of {"failed": reason}. It is no part of the ring. When its end of the socket closes, this process ends; the kernel
kills it when the controller dies.

How a look-up's round trip is measured: a Datagram whose payload says who asks is routed to the key; the node that it is delivered at
answers the asker with one direct message, a LookUpReply (the very message with which the closest node answers a LookUp) with a number
that no machine waits for. So a round trip is the routed way there and one hop back, as in FreePastry's.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import gc
import json
import os
import resource
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from random import Random
from struct import Struct
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from protocol.aio.connections import Connections
from protocol.aio.driver import Driver
from protocol.aio.process import run, set_up_logging
from protocol.aio.store import RecordStore
from protocol.identifiers import BITS, Address, NodeId, Peer
from protocol.knowledge import Data
from protocol.overlay.effects import Activated, Delivered, Effect, MulticastReceived, Notify, Quit
from protocol.overlay.events import CreateTree, JoinTree, RouteMessage, SendMulticast, Started
from protocol.overlay.node import OverlayNode
from protocol.parameters import PRESETS, OverlayParameters
from protocol.wire.codec import prepare
from protocol.wire.messages import LookUpReply, Message, RoundOpen
from protocol.wire.values import MemberInfo, RecordSummary
from scripts.overlay_bench.ledger import LOST_AFTER_S

HOST = "127.0.0.1"
CLUSTER = "bench-overlay"
START_TIMEOUT_S = 60.0
LINE_BYTES_MAX = 1 << 26
DESCRIPTORS_SPARE = 0.6
"""Share of the process's file descriptors that no node's pool may count on: for listeners, and for connections that begin or end."""
REQUEST_BITS = 40
GC_NEW_OBJECTS, GC_YOUNG = 20_000, 1_000_000
"""How many objects more than before start a collection, and how many of these one that looks at what outlived them: none in a run."""
PR_SET_PDEATHSIG = 1

_PAYLOAD = Struct("!16sHQQ")
"""Who asks (id, port, incarnation), and the number of the question."""
PAYLOAD_BYTES = _PAYLOAD.size
Reply = dict[str, Any]


class Tally:
    """What the nodes of this process have noted since the controller last asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, str, float]] = []
        self.answered: list[tuple[int, str, float, bool]] = []
        self.delivered: list[tuple[int, str, int, float]] = []
        self.receipts: list[tuple[int, str, str, float]] = []  # of a multicast: its number, by whom, from which parent, when
        self.deaths: list[tuple[float, str, int]] = []
        self.facts: list[tuple[float, str, str, str]] = []  # when, at whom, what, and its details
        self.quits = 0


class MeasuredDriver(Driver):
    """Notes the time of an answer to the benchmark's own questions before the node sees it."""

    def __init__(self, answered: Callable[[Peer, int], None], *arguments: Any) -> None:
        super().__init__(*arguments)
        self._answered = answered

    def received(self, peer: Peer, message: Message) -> None:
        if type(message) is LookUpReply:
            self._answered(peer, message.request)
        super().received(peer, message)


class HostedNode:
    """One node, and the application above it."""

    def __init__(self, host: NodeProcess, me: Peer, connections: Connections) -> None:
        self._host = host
        self.me = me
        self.connections = connections
        self.member = False
        node = OverlayNode(me, host.parameters, Random(f"{me.id}/{me.incarnation}"))
        store = RecordStore(None, 1 << 20, print)
        self.driver = MeasuredDriver(host.answered, node, connections, store, self, host.parameters)
        self.driver.failed.add_done_callback(host.node_failed)
        self.active: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    def __call__(self, effect: Effect) -> None:
        now_s, tally = time.monotonic(), self._host.tally
        match effect:
            case Activated() if not self.active.done():
                self.active.set_result(now_s)
            case Delivered():
                self._answer(effect, now_s)
            case MulticastReceived():
                tally.receipts.append((effect.body.round, str(self.me.id), str(effect.parent.id), now_s))
                self._host.received(effect.body.round, now_s)
            case Notify(fact, details):
                said = ", ".join(f"{name} {value}" for name, value in details.items())
                tally.facts.append((now_s, self.me.id.short, fact, said))
                if fact == "peer_died" and isinstance(peer := details.get("peer"), Peer):
                    tally.deaths.append((now_s, str(peer.id), peer.incarnation))
            case Quit():
                tally.quits += 1
                self._host.spawn(self.driver.close())

    async def on_upload(self, summary: RecordSummary, data: Data, sender: Peer) -> str | None:
        return "nothing is uploaded here"

    def _answer(self, effect: Delivered, now_s: float) -> None:
        packed, port, incarnation, request = _PAYLOAD.unpack(effect.payload)
        asker = Peer(NodeId.unpack(packed), HOST, port, incarnation)
        self._host.tally.delivered.append((request, str(self.me.id), effect.hops, now_s))
        if asker == self.me:
            self._host.answered(self.me, request)
        else:
            self.connections.send(self.me, asker, LookUpReply(request, ()))

    def ask(self, key: NodeId, request: int) -> float:
        """Routes the question; the time just before."""
        payload = _PAYLOAD.pack(self.me.id.pack(), self.me.port, self.me.incarnation, request)
        asked_s = time.monotonic()
        self._host.tally.asked.append((request, str(key), asked_s))
        self.driver.dispatch(RouteMessage(key, payload))
        return asked_s


class NodeProcess:
    """The orders of the controller, by name: every public coroutine that do() lists."""

    def __init__(self, number: int, parameters: OverlayParameters, nodes_max: int) -> None:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        # Each node has a pool of its own, as if it were alone in its process; but the descriptors they share.
        share = int((1 - DESCRIPTORS_SPARE) * hard / nodes_max)
        self.parameters = replace(parameters, connections_max=min(parameters.connections_max, share))
        self.parameters.validate()
        self.tally = Tally()
        self.nodes: dict[str, HostedNode] = {}
        self._rng = Random(number)
        self._request = number << REQUEST_BITS
        self._waiting: dict[int, tuple[asyncio.Future[None], set[NodeId]]] = {}
        self._received: Counter[int] = Counter()
        self._flow: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writer: asyncio.StreamWriter | None = None
        self._orders: dict[str, Callable[..., Coroutine[Any, Any, Reply]]] = {
            order.__name__: order
            for order in (self.start, self.join_tree, self.multicast, self.look_ups, self.flow, self.drain)
        }

    async def serve(self, control: socket.socket) -> None:
        """Until the controller's end closes."""
        reader, self._writer = await asyncio.open_connection(sock=control, limit=LINE_BYTES_MAX)
        while line := await reader.readline():
            order = json.loads(line)
            self.spawn(self._do(order.pop("id"), order.pop("do"), order))

    async def _do(self, number: int, name: str, arguments: Reply) -> None:
        try:
            reply = await self._orders[name](**arguments)
        except TimeoutError:
            reply = {"error": "not in time", "late": True}
        except OSError as error:
            reply = {"error": str(error)}
        self._tell({"id": number, **reply})

    def _tell(self, said: Reply) -> None:
        if self._writer is not None:
            self._writer.write(json.dumps(said).encode() + b"\n")

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._tell({"failed": repr(error)})

    # --- from the nodes -----------------------------------------------------------------------------------------------

    def node_failed(self, failed: asyncio.Future[None]) -> None:
        if not failed.cancelled() and (error := failed.exception()) is not None:
            self._tell({"failed": repr(error)})

    def answered(self, peer: Peer, request: int) -> None:
        waiting = self._waiting.pop(request, None)
        if waiting is not None:
            done, connected = waiting
            self.tally.answered.append((request, str(peer.id), time.monotonic(), peer.id not in connected))
            if not done.done():
                done.set_result(None)

    def received(self, number: int, now_s: float) -> None:
        """One member here has multicast `number`."""
        self._received[number] += 1
        if self._received[number] == sum(node.member for node in self.nodes.values()):
            self._tell({"complete": number, "at": now_s})

    # --- orders -------------------------------------------------------------------------------------------------------

    async def start(self, node: str, port: int, incarnation: int, seeds: list[int], root: bool) -> Reply:
        """A node on a listener of its own, into the ring through these ports of HOST. Answered when it is active."""
        connections = Connections(CLUSTER, self.parameters)
        address = await connections.listen(HOST, port)
        me = Peer(NodeId(int(node, 16)), address.host, address.port, incarnation)
        hosted = self.nodes[node] = HostedNode(self, me, connections)
        hosted.driver.start()
        if root:
            hosted.driver.dispatch(CreateTree(me.id))
        began_s = time.monotonic()
        hosted.driver.dispatch(Started(tuple(Address(HOST, seed) for seed in seeds)))
        async with asyncio.timeout(START_TIMEOUT_S):
            active_s = await asyncio.shield(hosted.active)
        return {"began_s": began_s, "active_s": active_s}

    async def join_tree(self, tree: str, nodes: list[str]) -> Reply:
        """These nodes become members."""
        identifier = NodeId(int(tree, 16))
        for name in nodes:
            node = self.nodes[name]
            node.member = True
            node.driver.dispatch(JoinTree(identifier, MemberInfo(node.me, node.me.id.short, "bench", os.getpid())))
        return {}

    async def multicast(self, tree: str, number: int) -> Reply:
        """One RoundOpen from the root, which lives here; the time just before."""
        root = self.nodes[tree]
        sent_s = time.monotonic()
        root.driver.dispatch(SendMulticast(root.me.id, RoundOpen("train", number, 0, "drop", root.me)))
        return {"sent_s": sent_s}

    async def look_ups(self, pairs: list[tuple[str, str]]) -> Reply:
        """One after another: (asker, key). Answered with the request numbers when the last has its answer or is given up."""
        requests = []
        for asker, key in pairs:
            node, request = self.nodes[asker], self._next_request()
            requests.append(request)
            done = asyncio.get_running_loop().create_future()
            self._waiting[request] = done, {peer.id for peer in node.connections.peers(node.me)} | {node.me.id}
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOST_AFTER_S):
                    node.ask(NodeId(int(key, 16)), request)
                    await done
        return {"requests": requests}

    async def flow(self, per_s: float, keys: list[str]) -> Reply:
        """From now on so many look-ups a second, from random nodes here, half to random keys and half to these; 0 ends it."""
        if self._flow is not None:
            self._flow.cancel()
            self._flow = None
        if per_s:
            self._flow = self.spawn(self._pour(1 / per_s, [NodeId(int(key, 16)) for key in keys]))
        return {}

    async def _pour(self, every_s: float, keys: list[NodeId]) -> None:
        loop = asyncio.get_running_loop()
        when = loop.time()
        askers = list(self.nodes.values())
        while True:
            node, request = self._rng.choice(askers), self._next_request()
            key = self._rng.choice(keys) if keys and self._rng.random() < 0.5 else NodeId(self._rng.getrandbits(BITS))
            self._waiting[request] = loop.create_future(), set()
            node.ask(key, request)
            # By the clock, not by pauses: what a busy loop has missed is not asked later in one heap.
            when = max(when + every_s, loop.time())
            await asyncio.sleep(when - loop.time())

    def _next_request(self) -> int:
        self._request += 1
        return self._request

    async def drain(self) -> Reply:
        """What was noted since this was last ordered."""
        tally, self.tally = self.tally, Tally()
        return vars(tally)


def main() -> int:
    """Parse, then serve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--control", type=int, required=True, help="the file descriptor of the inherited socket")
    parser.add_argument("--number", type=int, required=True, help="of this process, at least 1: request numbers begin with it")
    parser.add_argument("--preset", choices=PRESETS, required=True)
    parser.add_argument("--nodes-max", type=int, required=True, help="nodes that will be here at most: they share the file descriptors")
    parser.add_argument("--parent", type=int, required=True, help="the pid of the controller")
    chosen = parser.parse_args()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != chosen.parent:
        return 1
    set_up_logging("warning")
    prepare()
    # Any collection but the youngest looks at the objects of all nodes here, and stops every one of them for a second; an agent's looks
    # at its own.
    gc.freeze()
    gc.set_threshold(GC_NEW_OBJECTS, GC_YOUNG, GC_YOUNG)

    async def program(_: asyncio.Event) -> None:
        process = NodeProcess(chosen.number, PRESETS[chosen.preset](), chosen.nodes_max)
        await process.serve(socket.socket(fileno=chosen.control))
        os._exit(0)  # nobody is left who would read an orderly end, and closing a thousand connections takes its time

    return run(program)


if __name__ == "__main__":
    sys.exit(main())

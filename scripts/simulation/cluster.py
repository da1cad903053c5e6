"""The processes of a simulated cluster, and the seam to the machines: an event in, its effects done, one timer armed.

A process is one life: what starts again at its place is another. What reaches a paused or busy one waits in its inbox; on going on, the
timer that is late gives way to it once, as in production (aio/alarm.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from heapq import heappush
from math import inf
from random import Random
from typing import Any

from protocol.identifiers import Address, NodeId, Peer, TreeId
from protocol.overlay import effects as fx
from protocol.overlay import events as ev
from protocol.overlay.node import OverlayNode
from protocol.overlay.promise import TreePromise
from protocol.parameters import OverlayParameters, loopback
from protocol.wire.messages import Message, Route
from protocol.wire.values import RecordSummary
from scripts.simulation.clock import Act, Clock
from scripts.simulation.network import Codec, Link, Network
from scripts.simulation.terrain import TERRAINS, Terrain, address_of
from scripts.simulation.transfers import Transfers
from scripts.simulation.view import View

FACTS_KEPT = 40
TIMER = ev.TimerFired()
Machine = Callable[..., OverlayNode]
"""Of a peer, parameters, chance and, where there are disks for them, the promises of an earlier life."""


class Process:
    """One life of one node, with its place, its inbox and what it told its application."""

    __slots__ = (
        "alive", "armed", "awake_since", "began", "blocked", "busy", "cluster", "due", "facts", "gave_way", "handle", "host_gone", "inbox",
        "index", "late", "links", "name", "next_deadline", "node", "outcome", "paused", "peer", "slept_at", "slow_s", "store", "x",
        "y",
    )  # fmt: skip

    def __init__(self, cluster: Cluster, index: int, name: str, peer: Peer, node: OverlayNode, place: tuple[float, float]) -> None:
        self.cluster = cluster
        self.index = index
        self.name = name
        self.peer = peer
        self.node = node
        self.handle = node.handle
        self.next_deadline = node.next_deadline
        self.x, self.y = place
        self.began = cluster.clock.now
        self.awake_since = -inf
        """Since when it has run without a pause, and never further behind than a healthy peer may be; for ever, where it always has."""
        self.slept_at = inf
        """When it was stopped, where it is."""
        self.alive = True
        self.paused = self.busy = self.blocked = False
        """blocked: paused or busy; events wait in the inbox."""
        self.host_gone = False
        self.slow_s = 0.0
        self.due = inf
        """What the node last said of its next deadline."""
        self.armed = inf
        """When the one timer that counts fires; others in the heap are stale."""
        self.late = self.gave_way = False
        """The timer is due; it has let what had come in be read first."""
        self.links: dict[Any, Link] = {}
        self.inbox: deque[tuple[float, Act, Any, Any]] = deque()
        """What has reached it while it could not read, and when."""
        self.store: dict[tuple[NodeId, TreeId], RecordSummary] = {}
        self.outcome: list[fx.Effect] = []
        """What the node told its application, in order; kept where the cluster is told to."""
        self.facts: deque[tuple[float, str]] = deque(maxlen=FACTS_KEPT)

    @property
    def settled(self) -> bool:
        """In the ring, as the node itself sees it: it delivers."""
        pastry = self.node.pastry
        return getattr(pastry, "settled", pastry.active)

    def put_off(self, act: Act, subject: Any, detail: Any = None) -> None:
        """For when it is no longer blocked."""
        self.inbox.append((self.cluster.clock.now, act, subject, detail))

    @property
    def awake(self) -> bool:
        """Does it run, and keep up with what reaches it? Who is further behind than delay_max_s hangs, as all others see it."""
        cluster = self.cluster
        return not self.paused and not (self.inbox and self.inbox[0][0] < cluster.clock.now - cluster.parameters.delay_max_s)

    def __str__(self) -> str:
        return f"{self.name} ({self.peer})"


class Cluster:
    """Processes on a network under virtual time. A run is a seed: nothing here reads a clock or a global random source.

    check_every: a node checks its invariants after so many events of the whole cluster. keep: remember what nodes tell their applications.
    disks: what a node has promised outlives it (else it is forgotten, as without a disk); records are for whoever starts it to bring back.
    on_delivered, on_fact, on_route: called for every Delivered, every Notify, and every Route that reaches a node; on_told for what is left
    for the application; on_start and on_end with each life, before its node is told anything, and when it has ended.
    """

    def __init__(
        self,
        seed: int,
        parameters: OverlayParameters | None = None,
        terrain: Terrain = TERRAINS["lan"],
        codec: Codec | None = None,
        *,
        check_every: int = 1,
        keep: bool = True,
        disks: bool = False,
        machine: Machine = OverlayNode,
    ) -> None:
        self.seed = seed
        self.rng = Random(seed)
        self.parameters = parameters or loopback()
        self.clock = Clock()
        self.view = View(self.parameters.side)
        self.network = Network(self.clock, Random(self.rng.getrandbits(64)), self.parameters, terrain, self.tell, self._receive, codec)
        self.transfers = Transfers(self)
        self.processes: dict[str, Process] = {}
        """The latest life under each name."""
        self.on_delivered: Callable[[Process, fx.Delivered], None] = lambda process, effect: None
        self.on_fact: Callable[[Process, fx.Notify], None] = lambda process, effect: None
        self.on_route: Callable[[Process, Route], None] = lambda process, message: None
        self.on_told: Callable[[Process, fx.Effect], None] = lambda process, effect: None
        self.on_start: Callable[[Process], None] = lambda process: None
        self.on_end: Callable[[Process], None] = lambda process: None
        self.handled = 0
        self._keep = keep
        self._promises: dict[str, tuple[TreePromise, ...]] | None = {} if disks else None
        """On the disk of each name."""
        self._machine = machine
        self._check_every = self._check_in = check_every
        self._places = 0
        self._lives = 0
        nowhere = Peer(NodeId(0), "0.0.0.0", 0, 0)
        self.nobody = Process(self, 0, "nobody", nowhere, machine(nowhere, self.parameters, Random(0)), (0.5, 0.5))
        self.nobody.alive = False
        self._do: dict[type, Callable[[Process, Any], None]] = {
            fx.Send: self.network.send,
            fx.Dial: self.network.dial,
            fx.DialSeed: self.network.dial_seed,
            fx.Disconnect: self.network.disconnect,
            fx.Push: self.transfers.push,
            fx.Fetch: self.transfers.fetch,
            fx.CancelTransfer: self.transfers.cancel,
            fx.Discard: self.transfers.discard,
            fx.KeepPromises: self._keep_promises,
            fx.Notify: self._fact,
            fx.Delivered: self._delivered,
            fx.Quit: self._quit,
        }

    # --- lives --------------------------------------------------------------------------------------------------------

    def start(
        self,
        name: str,
        identifier: NodeId,
        seeds: Iterable[Address] = (),
        hints: Iterable[Address] = (),
        incarnation: int = 1,
        *,
        moved: bool = False,
    ) -> Process:
        """Start a process, or again one under its name: same id, next incarnation, and same address unless it has moved."""
        before = self.processes.get(name)
        if before is not None:
            identifier, incarnation = before.peer.id, max(incarnation, before.peer.incarnation + 1)
        if before is None or moved:
            self._places += 1
            host, port = address_of(self._places)
            place = self.rng.random(), self.rng.random()
        else:
            host, port, place = before.peer.host, before.peer.port, (before.x, before.y)
            self.network.host_is_back(before)
            before.links.clear()
        peer = Peer(identifier, host, port, incarnation)
        self._lives += 1
        promised = () if self._promises is None else (self._promises.get(name, ()),)
        node = self._machine(peer, self.parameters, Random(self.rng.getrandbits(64)), *promised)
        process = self.processes[name] = self.network.at[peer.address] = Process(self, self._lives, name, peer, node, place)
        self.network.started(process, None if moved else before)
        self.view.add(process)
        self.note(process, f"started at {peer.address}, incarnation {incarnation}")
        self.on_start(process)
        self.tell(process, ev.Started(tuple(seeds), tuple(hints)))
        return process

    def kill(self, process: Process, *, silent: bool = False) -> None:
        """SIGKILL: whoever was connected sees a reset. silent: the host is gone, and nobody is told anything."""
        if not process.alive:
            return
        self._end(process, "its host is gone" if silent else "killed")
        process.host_gone = silent
        self.network.vanish(process, silent=silent)

    def leave(self, process: Process) -> None:
        """In order: it counts no longer, says its goodbyes, and ends when these have had time to leave."""
        self.view.remove(process)
        self.note(process, "leaves")
        self.tell(process, ev.Leave())
        self.clock.after(self.parameters.delay_max_s, self._left, process)

    def _left(self, process: Process, _: None) -> None:
        self._end(process, "left")
        for link in list(process.links.values()):
            self.network.close(link)

    def _end(self, process: Process, how: str) -> None:
        process.alive = process.paused = process.busy = process.blocked = False
        process.inbox.clear()
        self.view.remove(process)
        self.note(process, how)
        self.on_end(process)

    def pause(self, process: Process) -> None:
        """SIGSTOP."""
        if process.alive and not process.paused:
            process.paused = process.blocked = True
            process.awake_since, process.slept_at = inf, self.clock.now
            self.note(process, "stopped")

    def resume(self, process: Process) -> None:
        """SIGCONT: what has come in, then the late timer."""
        if process.alive and process.paused:
            process.paused = False
            process.awake_since, process.slept_at = self.clock.now, inf
            self.note(process, "continued")
            if not process.busy:
                self._go_on(process, None)

    def note(self, process: Process, words: str) -> None:
        """For the stories of this process."""
        process.facts.append((self.clock.now, words))
        self.clock.note(process, words)

    # --- the seam -----------------------------------------------------------------------------------------------------

    def tell(self, process: Process, event: ev.Event) -> None:
        """The event reaches the process now, or waits for it."""
        if process.blocked:
            process.put_off(self.tell, process, event)
        elif process.alive:
            self._handle(process, event)

    def _receive(self, link: Link, message: Message) -> None:
        if link.alive:
            process = link.target
            if process.blocked:
                process.put_off(self._receive, link, message)
            elif process.alive:
                if message.__class__ is Route:
                    self.on_route(process, message)
                self._handle(process, ev.MessageReceived(link.sender, message))

    def _handle(self, process: Process, event: ev.Event) -> None:
        now = self.clock.now
        do = self._do
        for effect in process.handle(event, now):
            act = do.get(effect.__class__)
            if act is not None:
                act(process, effect)
            else:
                self._told(process, effect)
        when = process.next_deadline()
        process.due = when = inf if when is None else when
        if when < process.armed and process.alive:
            process.armed = when
            clock = self.clock
            heappush(clock.heap, (when if when > now else now, clock.ticket(), self._ring, process, when))
        self.handled += 1
        self._check_in -= 1
        if not self._check_in:
            self._check_in = self._check_every
            process.node.check_invariants()
        if process.slow_s:
            process.busy = process.blocked = True
            self.clock.after(process.slow_s, self._rested, process)

    def _ring(self, process: Process, when: float) -> None:
        """The timer, unless it is stale; where the deadline has moved on, it is only armed anew."""
        if process.armed != when or not process.alive:
            return
        process.armed = inf
        if process.blocked:
            process.late = True
            return
        due = process.due
        if due <= self.clock.now:
            self._handle(process, TIMER)
        elif due < inf:
            process.armed = due
            self.clock.at(due, self._ring, process, due)

    def _rested(self, process: Process, _: None) -> None:
        process.busy = False
        if not process.paused:
            self._go_on(process, None)

    def _go_on(self, process: Process, _: None) -> None:
        """Neither paused nor busy any more: what waits, until it is paused or busy again; then the late timer, at the latest next time."""
        process.blocked = False
        if process.late and process.gave_way:
            self._late_timer(process)
        process.gave_way = process.late
        while process.inbox and not process.blocked:
            when, act, subject, detail = process.inbox.popleft()
            if when < self.clock.now - self.parameters.delay_max_s:
                process.awake_since = self.clock.now
            act(subject, detail)
        if process.late and not process.blocked:
            self._late_timer(process)

    def _late_timer(self, process: Process) -> None:
        process.late = process.gave_way = False
        if process.alive:
            self._handle(process, TIMER)

    # --- effects for the application ----------------------------------------------------------------------------------

    def _told(self, process: Process, effect: fx.Effect) -> None:
        if self._keep:
            process.outcome.append(effect)
            self.clock.note(process, effect)
        self.on_told(process, effect)

    def _delivered(self, process: Process, effect: fx.Delivered) -> None:
        self.clock.note(process, effect)
        if self._keep:
            process.outcome.append(effect)
        self.on_delivered(process, effect)

    def _fact(self, process: Process, effect: fx.Notify) -> None:
        details = ", ".join(f"{name} {value}" for name, value in effect.details.items())
        self.note(process, f"{effect.fact}: {details}")
        self.on_fact(process, effect)

    def _keep_promises(self, process: Process, effect: fx.KeepPromises) -> None:
        assert self._promises is not None, "who has no disk keeps none"
        self._promises[process.name] = effect.promises
        self.network.send(process, effect.answer)

    def _quit(self, process: Process, effect: fx.Quit) -> None:
        self._told(process, effect)
        self.kill(process)

    # --- stories ------------------------------------------------------------------------------------------------------

    def story(self, *names: str, lines_max: int = 40) -> str:
        """The seed, what is wrong, the facts that these processes told and the last lines of their trace."""
        lines = [f"seed {self.seed}", *self.view.what_is_wrong()[:20]]
        for name in names or list(self.processes)[:3]:
            facts = self.processes[name].facts if name in self.processes else ()
            lines += [f"{when:10.4f} {name:10} {words}"[:240] for when, words in facts]
        return "\n".join([*lines, "...", *self.clock.trace.story(names or self.processes, lines_max)])

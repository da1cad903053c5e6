"""The simulator: the machines that production runs, under virtual time and faults drawn from a seed.

One heap of (when, sequence, node, event). The network keeps what TCP keeps: order on each link; a reset when a process dies, seen by
whoever was connected to it; refused dials where nobody listens; silence, not refusal, from a process that is paused or cut off. A
run is a seed: nothing here reads a clock or a global random source.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from random import Random

from protocol.identifiers import Address, NodeId, Peer, TreeId, closest
from protocol.overlay import effects as fx
from protocol.overlay import events as ev
from protocol.overlay.node import OverlayNode
from protocol.parameters import OverlayParameters, loopback
from protocol.wire.messages import Alive, Heartbeat, Message, TreePulse
from protocol.wire.values import RecordSummary

TRACE_LINES = 400
QUIET = (Heartbeat, Alive, TreePulse)
"""Too many to be worth a line of the trace."""


@dataclass(slots=True)
class Process:
    """One process of the simulated cluster, through all its lives."""

    name: str
    peer: Peer
    node: OverlayNode
    alive: bool = True
    paused: bool = False
    store: dict[tuple[NodeId, TreeId], RecordSummary] = field(default_factory=dict)
    connected: dict[Address, None] = field(default_factory=dict)
    inbox: list[ev.Event] = field(default_factory=list)
    timer: float | None = None
    outcome: list[fx.Effect] = field(default_factory=list)
    """What the node told its application, in order."""


class Simulation:
    """A cluster under virtual time. `codec`: pass each message through these two functions (encode, decode)."""

    def __init__(
        self,
        seed: int,
        parameters: OverlayParameters | None = None,
        codec: tuple[Callable[[Message], bytes], Callable[[bytes], Message]] | None = None,
    ) -> None:
        self.seed = seed
        self.rng = Random(seed)
        self.parameters = parameters or loopback()
        self.codec = codec
        self.now = 0.0
        self.processes: dict[str, Process] = {}
        self.trace: deque[tuple[float, str, object]] = deque(maxlen=TRACE_LINES)
        self.sent = 0
        self.delivered: list[tuple[float, str, fx.Delivered]] = []
        self._at: dict[Address, Process] = {}
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = 0
        self._links: dict[tuple[Address, Address], float] = {}
        self._cut: set[tuple[Address, Address]] = set()
        self._port = 10000

    # --- time ---------------------------------------------------------------------------------------------------------

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        self._sequence += 1
        heapq.heappush(self._heap, (self.now + delay_s, self._sequence, action))

    def run(self, seconds: float) -> None:
        """Let virtual time pass."""
        self.run_until(lambda: False, seconds)

    def run_until(self, condition: Callable[[], bool], within_s: float) -> bool:
        """Run until the condition holds; False where it does not within so many virtual seconds."""
        end = self.now + within_s
        while not condition():
            if not self._heap or self._heap[0][0] > end:
                self.now = end
                return condition()
            self.now, _, action = heapq.heappop(self._heap)
            action()
        return True

    # --- processes ----------------------------------------------------------------------------------------------------

    def start(
        self, name: str, identifier: NodeId, seeds: Iterable[Address] = (), hints: Iterable[Address] = (), incarnation: int = 1
    ) -> Process:
        """Start a process, or restart one under its name: same id, next incarnation, same address."""
        before = self.processes.get(name)
        if before is None:
            self._port += 1
            peer = Peer(identifier, "127.0.0.1", self._port, incarnation)
        else:
            peer = Peer(identifier, before.peer.host, before.peer.port, before.peer.incarnation + 1)
        process = Process(name, peer, OverlayNode(peer, self.parameters, Random(self.rng.getrandbits(64))))
        self.processes[name] = self._at[peer.address] = process
        self.tell(process, ev.Started(tuple(seeds), tuple(hints)))
        return process

    def crash(self, name: str) -> None:
        """SIGKILL: whoever was connected sees a reset."""
        process = self.processes[name]
        process.alive = process.paused = False
        self._note(process, "killed")
        for address in list(process.connected):
            other = self._at.get(address)
            if other is not None and other.alive and process.peer.address in other.connected:
                del other.connected[process.peer.address]
                self._post(process, other, ev.PeerLost(process.peer, "connection reset"))

    def pause(self, name: str) -> None:
        """SIGSTOP."""
        self.processes[name].paused = True
        self._note(self.processes[name], "stopped")

    def resume(self, name: str) -> None:
        """SIGCONT: what has come in is read, then the timer that is late."""
        process = self.processes[name]
        process.paused = False
        inbox, process.inbox = process.inbox, []
        self._note(process, "continued")
        self.tell(process, ev.TimerFired())
        for event in inbox:
            self.tell(process, event)

    def cut(self, here: Iterable[str], there: Iterable[str]) -> None:
        """Nothing passes between the two groups, in either direction, and nobody is told."""
        for a in here:
            for b in there:
                self._cut |= {
                    (self.processes[a].peer.address, self.processes[b].peer.address),
                    (self.processes[b].peer.address, self.processes[a].peer.address),
                }

    def heal(self) -> None:
        self._cut.clear()

    def living(self) -> list[Process]:
        """Those that run and are not paused."""
        return [process for process in self.processes.values() if process.alive and not process.paused]

    # --- the seam -----------------------------------------------------------------------------------------------------

    def tell(self, process: Process, event: ev.Event) -> None:
        if not process.alive or self._at.get(process.peer.address) is not process:
            return
        if process.paused:
            process.inbox.append(event)
            return
        if not isinstance(event, ev.TimerFired):
            self._note(process, event)
        for effect in process.node.handle(event, self.now):
            self._do(process, effect)
        process.node.check_invariants()
        self._arm(process)

    def _arm(self, process: Process) -> None:
        when = process.node.next_deadline()
        if when is None or when == process.timer:
            return
        process.timer = when

        def fire() -> None:
            if process.timer == when:
                process.timer = None
                self.tell(process, ev.TimerFired())

        self.after(max(0.0, when - self.now), fire)

    def _do(self, process: Process, effect: fx.Effect) -> None:
        match effect:
            case fx.Send():
                self._send(process, effect.peer, effect.message)
            case fx.Dial():
                self._dial(process, effect.peer)
            case fx.DialSeed():
                self._dial_seed(process, effect.address)
            case fx.Push():
                self._move(process, effect.peer, effect.record, lambda ok: ev.PushEnded(effect.transfer, "stored" if ok else "failed"))
            case fx.Fetch():
                self._fetch(process, effect)
            case fx.Disconnect():
                process.connected.pop(effect.peer.address, None)
            case fx.CancelTransfer() | fx.Discard():
                pass
            case _:
                if not isinstance(effect, fx.Notify):
                    process.outcome.append(effect)
                if isinstance(effect, fx.Delivered):
                    self.delivered.append((self.now, process.name, effect))
                if isinstance(effect, fx.Quit):
                    process.alive = False
                self._note(process, effect)

    # --- the network --------------------------------------------------------------------------------------------------

    def _delay(self) -> float:
        return self.rng.uniform(0.0002, 0.002)

    def _post(self, source: Process, target: Process, event: ev.Event) -> None:
        """Deliver over the link, in order."""
        link = source.peer.address, target.peer.address
        when = max(self.now + self._delay(), self._links.get(link, 0.0))
        self._links[link] = when
        self.after(when - self.now, lambda: self.tell(target, event))

    def _reachable(self, source: Process, address: Address) -> bool:
        return (source.peer.address, address) not in self._cut

    def _send(self, source: Process, peer: Peer, message: Message) -> None:
        self.sent += 1
        if not self._reachable(source, peer.address):
            return
        target = self._at.get(peer.address)
        if target is None or not target.alive or target.peer.id != peer.id:
            source.connected.pop(peer.address, None)
            self.after(self._delay(), lambda: self.tell(source, ev.PeerLost(peer, "refused")))
            return
        source.connected[peer.address] = target.connected[source.peer.address] = None
        if self.codec is not None:
            message = self.codec[1](self.codec[0](message))
        self._post(source, target, ev.MessageReceived(source.peer, message))

    def _dial(self, source: Process, peer: Peer) -> None:
        target = self._at.get(peer.address)
        if not self._reachable(source, peer.address) or (target is not None and target.paused):
            late = ev.DialEnded(peer, None, False, "no hello in time")
            self.after(self.parameters.probe_timeout_s, lambda: self.tell(source, late))
        elif target is None or not target.alive:
            self.after(self._delay(), lambda: self.tell(source, ev.DialEnded(peer, None, True, "refused")))
        else:
            found = target.peer
            self.after(2 * self._delay(), lambda: self.tell(source, ev.DialEnded(peer, found)))

    def _dial_seed(self, source: Process, address: Address) -> None:
        target = self._at.get(address)
        if target is None or not target.alive:
            self.after(self._delay(), lambda: self.tell(source, ev.SeedFailed(address, "refused")))
        elif target.paused or not self._reachable(source, address):
            self.after(self.parameters.probe_timeout_s, lambda: self.tell(source, ev.SeedFailed(address, "no hello in time")))
        else:
            self.after(2 * self._delay(), lambda: self.tell(source, ev.SeedAnswered(address, target.peer)))

    def _move(self, source: Process, peer: Peer, record: RecordSummary, ended: Callable[[bool], ev.Event]) -> None:
        target = self._at.get(peer.address)
        ok = target is not None and target.alive and not target.paused and self._reachable(source, peer.address)

        def arrive() -> None:
            if ok and target is not None and target.alive:
                target.store[record.key] = record
                self.tell(target, ev.RecordHeld(record))
            self.tell(source, ended(ok))

        self.after(3 * self._delay(), arrive)

    def _fetch(self, process: Process, effect: fx.Fetch) -> None:
        def arrive() -> None:
            holder = self._at.get(effect.peer.address)
            record = holder.store.get(effect.record.key) if holder is not None and holder.alive and not holder.paused else None
            if record is not None:
                process.store[record.key] = record
            self.tell(process, ev.FetchEnded(effect.transfer, record, "" if record else "holder gone"))

        self.after(3 * self._delay(), arrive)

    # --- the global view ----------------------------------------------------------------------------------------------

    def root_of(self, key: NodeId) -> str:
        """Who should deliver a message for this key."""
        return next(p.name for p in self.living() if p.peer.id == closest(key, [q.peer.id for q in self.living()]))

    def ring_is_right(self) -> bool:
        """Every living node is active, and its leaf set is exactly its living neighbours."""
        lives = {process.peer for process in self.living()}
        return all(
            process.node.pastry.active
            and {peer.id for peer in process.node.pastry.leaf_set} == self._near(process)
            and set(process.node.pastry.leaf_set) <= lives
            for process in self.living()
        )

    def _near(self, process: Process) -> set[NodeId]:
        """Who belongs into its leaf set."""
        around = sorted(other.peer.id for other in self.living())
        index = around.index(process.peer.id)
        steps = range(1, min(self.parameters.side, len(around) - 1) + 1)
        return {around[(index + step) % len(around)] for step in steps} | {around[(index - step) % len(around)] for step in steps}

    def tree_is_right(self, tree: TreeId, members: Iterable[str]) -> bool:
        """Every member reaches the root through parents, and the root's list is exact."""
        parents: dict[NodeId, NodeId | None] = {}
        root: Process | None = None
        for process in self.living():
            found = process.node.scribe.trees.get(tree)
            if found is None:
                continue
            if found.is_root:
                root = process
            parents[process.peer.id] = found.parent.id if found.parent else None
        wanted = {self.processes[name].peer.id for name in members}
        if root is None or not wanted <= parents.keys():
            return False
        for member in wanted:
            seen: set[NodeId] = set()
            at: NodeId | None = member
            while at is not None and at != root.peer.id:
                if at in seen:
                    return False
                seen.add(at)
                at = parents.get(at)
            if at is None:
                return False
        return {m.peer for m in root.node.scribe.trees[tree].members.values()} == {self.processes[name].peer for name in members}

    def _note(self, process: Process, what: object) -> None:
        if not (isinstance(what, ev.MessageReceived) and isinstance(what.message, QUIET)):
            self.trace.append((self.now, process.name, what))

    def what_is_wrong(self, tree: TreeId | None = None) -> list[str]:
        """Where nodes, and the tree, differ from what they should be."""
        living = {process.peer.id: process for process in self.living()}
        wrong = [f"{p.name} is not active" for p in living.values() if not p.node.pastry.active]
        for process in living.values():
            for peer in process.node.pastry.leaf_set:
                if peer.id not in living or living[peer.id].peer != peer:
                    wrong.append(f"{process.name} still has {peer} in its leaf set")
            missing = self._near(process) - {peer.id for peer in process.node.pastry.leaf_set}
            wrong += [f"{process.name} lacks {living[identifier].name}" for identifier in sorted(missing)]
            if tree is not None and (found := process.node.scribe.trees.get(tree)) is not None and not found.is_root:
                parent = living.get(found.parent.id) if found.parent else None
                if parent is None or process.peer.id not in parent.node.scribe.trees[tree].children:
                    wrong.append(f"{process.name} has parent {found.parent}, joining {found.joining}")
            if found is not None and found.is_root:
                listed = {member.peer: member.name for member in found.members.values()}
                alive = {p.peer: p.name for p in living.values() if p is not process}
                wrong += [f"the root lists {listed[peer]} {peer}, which does not live" for peer in listed.keys() - alive.keys()]
                wrong += [f"the root does not list {alive[peer]} {peer}" for peer in alive.keys() - listed.keys()]
        return wrong

    def story(self, *names: str) -> str:
        """What is wrong, the last lines of trace of these processes, and the seed that replays them."""
        trees = {tree for process in self.living() for tree in process.node.scribe.trees}
        wrong = [line for tree in trees or {None} for line in self.what_is_wrong(tree)]
        lines = [f"{when:9.4f} {name:9} {what}"[:240] for when, name, what in self.trace if not names or name in names]
        return "\n".join([f"seed {self.seed}", *wrong, *lines[-60:]])

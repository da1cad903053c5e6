"""Records on the move: pushes, fetches and uploads between the stores of processes, as bulk connections would do them.

1. A transfer is a connection of its own: a handshake, then the bytes at `RATE_BYTES_PER_S`, then the word that they are held.
2. Nobody listens: it fails after one round trip. A host that is gone, or cut off at the beginning: after `probe_timeout_s`.
3. Who is cut off later, or stopped, answers nothing: the transfer goes on when it goes on, and the machines have given it up by then.
4. A store keeps the newest version of each record; it refuses an older one, and says that it holds an equal one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from protocol.identifiers import Peer
from protocol.overlay import effects as fx
from protocol.overlay import events as ev
from protocol.wire.values import RecordSummary

if TYPE_CHECKING:
    from scripts.simulation.cluster import Cluster, Process

RATE_BYTES_PER_S = 100e6
HANDSHAKE = 3
"""Delays of one way until the receiver knows what comes: the connection, the hellos, the offer."""
Outcome = Callable[[str, str], None]
"""What an upload came to: "stored", "refused" or "failed", and why."""


class Upload:
    """A record for the application at `peer`, which tell() is to be told of."""

    __slots__ = ("done", "index", "name", "outcome", "peer", "record", "source")

    def __init__(self, source: Process, peer: Peer, record: RecordSummary, outcome: Outcome) -> None:
        self.source = source
        self.peer = peer
        self.record = record
        self.outcome = outcome
        self.done = False
        self.index, self.name = source.index, source.name


class Transfers:
    """All transfers of one cluster. on_held, on_discarded: what stores came to hold, and lost; on_upload: why it is not taken, or None."""

    def __init__(self, cluster: Cluster) -> None:
        self.on_held: Callable[[Process, RecordSummary], None] = lambda process, record: None
        self.on_discarded: Callable[[Process, RecordSummary], None] = lambda process, record: None
        self.on_upload: Callable[[Process, RecordSummary], str | None] = lambda process, record: "nobody takes uploads here"
        self.moved_bytes = 0
        self._cluster = cluster
        self._under_way: set[tuple[int, int]] = set()
        """(life, transfer) of those that nobody has given up."""

    # --- stores -------------------------------------------------------------------------------------------------------

    def put(self, process: Process, record: RecordSummary) -> bool:
        """Hold it, where it is newer than what is held."""
        held = process.store.get(record.key)
        if held is not None and held.order >= record.order:
            return False
        process.store[record.key] = record
        self.on_held(process, record)
        return True

    def discard(self, process: Process, effect: fx.Discard) -> None:
        held = process.store.get(effect.record.key)
        if held is not None and held.order <= effect.record.order:
            del process.store[effect.record.key]
            self.on_discarded(process, held)

    # --- the way there ------------------------------------------------------------------------------------------------

    def push(self, process: Process, effect: fx.Push) -> None:
        if process.store.get(effect.record.key) != effect.record:
            self._tell_soon(process, ev.PushEnded(effect.transfer, "failed", "no longer held here"), 0.0)
            return
        self._under_way.add((process.index, effect.transfer))
        failed = ev.PushEnded(effect.transfer, "failed", "not reached")
        self._begin(process, effect.peer, effect.record.record_bytes, self._pushed, effect, failed)

    def fetch(self, process: Process, effect: fx.Fetch) -> None:
        self._under_way.add((process.index, effect.transfer))
        self._begin(process, effect.peer, 0, self._asked, effect, ev.FetchEnded(effect.transfer, None, "not reached"))

    def cancel(self, process: Process, effect: fx.CancelTransfer) -> None:
        self._under_way.discard((process.index, effect.transfer))

    def upload(self, process: Process, peer: Peer, record: RecordSummary, outcome: Outcome) -> None:
        """Bring the record to the application at `peer`; the outcome may never come where processes die or stop."""
        upload = Upload(process, peer, record, outcome)
        way_s = self._way_s(process, peer, record.record_bytes)
        if way_s is None:
            self._cluster.clock.after(self._failure_s(process, peer), self._upload_ended, upload, "failed")
        else:
            self._cluster.clock.after(way_s, self._uploaded, upload)

    def _begin(self, process: Process, peer: Peer, record_bytes: int, act: Any, effect: fx.Push | fx.Fetch, failed: ev.Event) -> None:
        way_s = self._way_s(process, peer, record_bytes)
        if way_s is None:
            self._tell_soon(process, failed, self._failure_s(process, peer))
        else:
            self._cluster.clock.after(way_s, act, process, effect)

    def _way_s(self, process: Process, peer: Peer, record_bytes: int) -> float | None:
        other = self._other(peer)
        if other is None or self._is_cut(process, other):
            return None
        return HANDSHAKE * self._cluster.network.terrain.delay(process, other) + record_bytes / RATE_BYTES_PER_S

    def _failure_s(self, process: Process, peer: Peer) -> float:
        other = self._cluster.network.at.get(peer.address)
        if other is None or other.host_gone or self._is_cut(process, other):
            return self._cluster.parameters.probe_timeout_s
        return 2 * self._cluster.network.terrain.delay(process, other)

    def _other(self, peer: Peer) -> Process | None:
        """Who lives at the address under this id; None where nobody does."""
        other = self._cluster.network.at.get(peer.address)
        return other if other is not None and other.alive and other.peer.id == peer.id else None

    def _is_cut(self, a: Process, b: Process) -> bool:
        return self._cluster.network.blocked(a, b) or self._cluster.network.blocked(b, a)

    def _there(self, process: Process, peer: Peer, act: Any, effect: Any) -> Process | None:
        """The other side, where the transfer goes on now; one that is stopped goes on later, and so does a stopped sender."""
        other = self._other(peer)
        if not process.alive or other is None or self._is_cut(process, other):
            return None
        for end in (process, other):
            if end.blocked:
                end.put_off(act, process if not isinstance(effect, Upload) else effect, effect)
                return None
        return other

    # --- at the other side --------------------------------------------------------------------------------------------

    def _pushed(self, process: Process, effect: fx.Push) -> None:
        holder = self._there(process, effect.peer, self._pushed, effect)
        if holder is None or (process.index, effect.transfer) not in self._under_way:
            return
        held = holder.store.get(effect.record.key)
        outcome = ev.PushEnded(effect.transfer, "stored")
        if self.put(holder, effect.record):
            self.moved_bytes += effect.record.record_bytes
            self._cluster.tell(holder, ev.RecordHeld(effect.record))
        elif held is not None and held.order > effect.record.order:
            outcome = ev.PushEnded(effect.transfer, "refused", f"version {held.version} is held already")
        self._tell_soon(process, outcome, self._cluster.network.terrain.delay(process, holder), holder)

    def _asked(self, process: Process, effect: fx.Fetch) -> None:
        holder = self._there(process, effect.peer, self._asked, effect)
        if holder is None:
            return
        record = holder.store.get(effect.record.key)
        delay_s = self._cluster.network.terrain.delay(process, holder)
        if record is None or record.version < effect.record.version:
            self._tell_soon(process, ev.FetchEnded(effect.transfer, None, "the holder has it no more"), delay_s, holder)
        else:
            whole = fx.Fetch(effect.transfer, effect.peer, record)
            self._cluster.clock.after(delay_s + record.record_bytes / RATE_BYTES_PER_S, self._fetched, process, whole)

    def _fetched(self, process: Process, effect: fx.Fetch) -> None:
        """All bytes are here."""
        holder = self._there(process, effect.peer, self._fetched, effect)
        if holder is None or (process.index, effect.transfer) not in self._under_way:
            return
        self.put(process, effect.record)
        self.moved_bytes += effect.record.record_bytes
        self._tell_soon(process, ev.FetchEnded(effect.transfer, process.store[effect.record.key]), 0.0)

    def _uploaded(self, upload: Upload, _: Any) -> None:
        other = self._there(upload.source, upload.peer, self._uploaded, upload)
        if other is None:
            self._cluster.clock.after(self._cluster.parameters.probe_timeout_s, self._upload_ended, upload, "failed")
            return
        reason = self.on_upload(other, upload.record)
        delay_s = self._cluster.network.terrain.delay(upload.source, other)
        self._cluster.clock.after(delay_s, self._upload_ended, upload, "stored" if reason is None else f"refused: {reason}")

    def _upload_ended(self, upload: Upload, outcome: str) -> None:
        if upload.source.blocked:
            upload.source.put_off(self._upload_ended, upload, outcome)
        elif upload.source.alive and not upload.done:
            upload.done = True
            word, _, reason = outcome.partition(": ")
            upload.outcome(word, reason)

    # --- the way back -------------------------------------------------------------------------------------------------

    def _tell_soon(self, process: Process, event: ev.Event, delay_s: float, by: Process | None = None) -> None:
        """The end of a transfer reaches its beginner; from `by`, unless a cut keeps it."""
        if by is None or not self._is_cut(process, by):
            self._cluster.clock.after(delay_s, self._tell, process, event)

    def _tell(self, process: Process, event: ev.PushEnded | ev.FetchEnded) -> None:
        self._under_way.discard((process.index, event.transfer))
        self._cluster.tell(process, event)

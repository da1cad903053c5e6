"""Judges of records, an agent's and the tree's own, with the global view.

P2  A restored record is no older than what its owner was told is durable; else no copy as new is left on any living node (lost), or nobody
    who has one could be reached (said: the answer was not complete). So with a record that the root has retrieved, where a quorum of those
    who hold what was durable could be reached: a look-up of another's record need not hear all. And the last copy does not die, one that
    has lived on alone, awake and reachable, for longer than a repair takes. And where placement sends copies abroad, a zone that dies does
    not take with it what was durable a repair ago, of an owner that was awake and reachable since: it has a copy in another zone by then.
    And what was forgotten was of an owner that had been away for as long as its holders wait, who may not find it when it is back; after
    twice that and a repair nobody has it ("kept").
P6  Nothing is announced that is not committed, which is that the electors agreed; and nothing is committed for a round before one that was.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from math import inf

from protocol.identifiers import NodeId, TreeId, zone_of
from protocol.overlay import effects as fx
from protocol.parameters import OverlayParameters
from protocol.wire.messages import RoundOpen
from protocol.wire.values import RecordSummary
from scripts.simulation.checkers import Mistakes, reached_since, window_s
from scripts.simulation.cluster import Cluster, Process

RecordKey = tuple[NodeId, TreeId]
Order = tuple[int, int]
"""Of a record: incarnation, version."""


def repair_s(parameters: OverlayParameters, record_bytes: int) -> float:
    """The longest that it takes until a record with one copy left has more: deaths are judged, the holder tells, the closest node fetches,
    and brings it to others in its time; with one more turn where the first was in vain."""
    transfer_s = parameters.transfer_timeout_s(record_bytes) + parameters.delay_max_s
    return 2 * parameters.verdict_max_s + parameters.upkeep_interval_s + 2 * (transfer_s + parameters.mend_after_s)


def _words(order: Order) -> str:
    """(incarnation, version), for people."""
    return f"version {order[1]} of life {order[0]}" if order != (0, 0) else "nothing"


class Durability:
    """Watches one run. record_bytes: of an agent's record."""

    def __init__(self, cluster: Cluster, tree: TreeId, record_bytes: int) -> None:
        self.mistakes = {promise: Mistakes() for promise in ("P2", "kept", "P6")}
        self.durables = self.restores = self.found = self.lost = self.behind_said = 0
        self.retrieved = self.retrieved_behind = self.judged_abroad = self.forgotten = 0
        self.committed_round = -1
        self._rounds: dict[int, int] = {}
        """The round of each version that was committed."""
        self._committed: dict[int, Order] = {}
        """By life: the version that it knows to be committed."""
        self._cluster = cluster
        self._tree = tree
        self._window_s = window_s(cluster.parameters)
        self._repair_s = repair_s(cluster.parameters, record_bytes)
        self._durable: dict[RecordKey, Order] = {}
        """The newest version of each record that its owner was told is durable."""
        self._copies: dict[RecordKey, dict[int, tuple[Process, Order, float]]] = {}
        """On living nodes, by life: what each holds, and since when."""
        self._settling: dict[RecordKey, deque[tuple[float, Order]]] = {}
        """What became durable, and when: the last that was a repair ago, and all since, the newest at the end."""
        self._gone_abroad: dict[RecordKey, float] = {}
        """When a holder in another zone than the owner's died last."""
        self._alone: dict[RecordKey, float] = {}
        """Since when one copy only is left that is as new as the durable version."""
        self._lost: set[RecordKey] = set()
        self._kept: set[tuple[RecordKey, int]] = set()
        self._went: dict[NodeId, float] = {}
        """When each agent's last life was over, or stopped before that."""
        self._closed = False
        cluster.transfers.on_held = self._held
        cluster.transfers.on_discarded = lambda process, record: self._gone(process, record.key, died=False)
        cluster.on_end = self._ended

    # --- copies -------------------------------------------------------------------------------------------------------

    def _held(self, process: Process, record: RecordSummary) -> None:
        self._copies.setdefault(record.key, {})[process.index] = process, record.order, self._cluster.clock.now
        self._count(record.key)

    def _ended(self, process: Process) -> None:
        self._went[process.peer.id] = min(self._cluster.clock.now, process.slept_at)
        for key in process.store:
            self._gone(process, key, died=True)

    def _gone(self, process: Process, key: RecordKey, *, died: bool) -> None:
        copies = self._copies.get(key, {})
        if copies.pop(process.index, None) is None:
            return
        if died and zone_of(process.peer.id) != zone_of(key[0]):
            self._gone_abroad[key] = self._cluster.clock.now
        durable = self._durable.get(key)
        if durable is None or self._closed:
            return
        since = self._alone.get(key)
        if self._count(key) or since is None:
            return
        self._lost.add(key)
        now = self._cluster.clock.now
        words = f"{now:.4f}: the last copy of {key[0]}, {_words(durable)}, went with {process}, alone since {since:.4f}"
        if not died and self._away_s(key[0]) >= self._cluster.parameters.forget_after_s:
            self.forgotten += 1
        elif not died:
            self.mistakes["P2"].add(f"{words}: it was discarded", process)
        elif since < now - self._repair_s and process.awake_since < now - self._repair_s and not self._was_cut(since):
            self.mistakes["P2"].add(words, process)

    def _away_s(self, owner: NodeId) -> float:
        """For how long no life of it has been there."""
        process = self._cluster.view.get(owner)
        return 0.0 if process is not None and process.alive else self._cluster.clock.now - self._went.get(owner, inf)

    def look_for_kept(self) -> None:
        """Each copy of what should be forgotten, once: a holder that was cut off or asleep may have begun to wait anew."""
        for key, copies in self._copies.items():
            if key[0] == self._tree or self._away_s(key[0]) < 2 * self._cluster.parameters.forget_after_s + self._repair_s:
                continue
            for process, order, _ in [copy for index, copy in copies.items() if (key, index) not in self._kept]:
                self._kept.add((key, process.index))
                words = f"{self._cluster.clock.now:.4f}: {process} has {_words(order)} of {key[0]}"
                self.mistakes["kept"].add(f"{words}, which has been away for {self._away_s(key[0]):.1f} s", process)

    def _was_cut(self, since: float) -> bool:
        network = self._cluster.network
        return bool(network.cuts) or any(cut.ended >= since for cut in network.healed)

    def _count(self, key: RecordKey) -> int:
        """Copies as new as the durable version."""
        durable = self._durable.get(key)
        if durable is None:
            return 0
        count = sum(order >= durable for _, order, _ in self._copies.get(key, {}).values())
        if count != 1:
            self._alone.pop(key, None)
        else:
            self._alone.setdefault(key, self._cluster.clock.now)
        return count

    def _holders(self, key: RecordKey, order: Order, since: float = inf) -> list[Process]:
        """Of a copy as new as this, since then."""
        return [process for process, held, at in self._copies.get(key, {}).values() if held >= order and at <= since]

    # --- P2 -----------------------------------------------------------------------------------------------------------

    def durable(self, process: Process, record: RecordSummary) -> None:
        """Its owner was told so."""
        self.durables += 1
        if self._durable.get(record.key, (0, 0)) < record.order:
            self._durable[record.key] = record.order
            now = self._cluster.clock.now
            settling = self._settling.setdefault(record.key, deque())
            settling.append((now, record.order))
            while len(settling) > 1 and settling[1][0] <= now - self._repair_s:
                settling.popleft()
            self._lost.discard(record.key)
            self._alone.pop(record.key, None)
            self._count(record.key)

    def die_together(self, zone: Collection[Process]) -> None:
        """All of one zone are about to."""
        now, since = self._cluster.clock.now, self._cluster.clock.now - self._repair_s
        if self._cluster.parameters.placement == "local" or self._closed or self._was_cut(since):
            return
        for owner in zone:
            key = owner.peer.id, self._tree
            settled = [order for when, order in self._settling.get(key, ()) if when <= since]
            undisturbed = owner.began <= since and owner.awake_since <= since and self._gone_abroad.get(key, -inf) <= since
            if settled and undisturbed and key not in self._lost:
                self.judged_abroad += 1
                if all(holder in zone for holder in self._holders(key, settled[-1])):
                    words = f"{now:.4f}: {_words(settled[-1])} of {owner} is durable since before {since:.4f}, and in no other zone"
                    self.mistakes["P2"].add(words, owner)

    def restored(self, process: Process, ended: fx.RetrievalEnded) -> None:
        """A life has found its own record, or none."""
        key, found = (process.peer.id, self._tree), ended.record.order if ended.record is not None else (0, 0)
        self.restores += 1
        self.found += ended.record is not None
        durable = self._durable.get(key)
        if durable is None or found >= durable or self._closed:
            return
        if key in self._lost or process.began - self._went.get(key[0], inf) >= self._cluster.parameters.forget_after_s:
            self.lost += 1
            return
        holders = self._holders(key, durable)
        since = self._cluster.clock.now - self._window_s
        reached = [holder for holder in holders if reached_since(self._cluster, process, holder, since)]
        if not ended.complete or not reached:
            self.behind_said += 1
            return
        words = f"{self._cluster.clock.now:.4f}: {process} restored {_words(found)} and was told that {_words(durable)} is durable"
        self.mistakes["P2"].add(f"{words}, which {reached[0]} holds", process, reached[0])

    def retrieved_for_another(self, process: Process, owner: NodeId, ended: fx.RetrievalEnded) -> None:
        """The root has looked for an agent's record, this time the last, and goes on with what it got, or without."""
        key, found = (owner, self._tree), ended.record.order if ended.record is not None else (0, 0)
        self.retrieved += ended.record is not None
        now = self._cluster.clock.now
        began, durable = now - ended.located_s - ended.transferred_s, self._durable.get(key)
        if durable is None or found >= durable or self._closed or self._settling[key][-1][0] > began:
            return
        self.retrieved_behind += 1
        holders = self._holders(key, durable, began)  # who has got it since could not be found
        reached = [holder for holder in holders if reached_since(self._cluster, process, holder, began - self._window_s)]
        if key not in self._lost and len(reached) >= self._cluster.parameters.write_quorum:
            words = f"{now:.4f}: {process} retrieved {_words(found)} of {owner}, and {_words(durable)} is durable, which {reached[0]} holds"
            self.mistakes["P2"].add(words, process, reached[0])

    def within_reach(self, process: Process, owner: NodeId, since: float) -> list[RecordSummary]:
        """What the holders of this agent's durable record have, where it was durable by then, and a quorum of them has been in reach of
        this process since; else nothing."""
        key = owner, self._tree
        durable = self._durable.get(key)
        if durable is None or key in self._lost or self._settling[key][-1][0] > since:
            return []
        early = self._holders(key, durable, since)
        reached = [holder for holder in early if reached_since(self._cluster, process, holder, since - self._window_s)]
        quorum = self._cluster.parameters.write_quorum
        return [holder.store[key] for holder in self._holders(key, durable)] if len(reached) >= quorum else []

    # --- P6 -----------------------------------------------------------------------------------------------------------

    def committed(self, process: Process, version: int, number: int) -> None:
        """The electors have agreed to this version of the tree's own record, which is for this round; and whoever put it to them has heard
        so, late perhaps: one that has slept since then may hear it when another has gone on from there."""
        wrong = [(v, n) for v, n in self._rounds.items() if (v < version and n > number) or (v > version and n < number)]
        if wrong and (self._tree, self._tree) not in self._lost:
            words = f"version {version} of {process} is of round {number}, and version {wrong[0][0]} was committed for round {wrong[0][1]}"
            self.mistakes["P6"].add(f"{self._cluster.clock.now:.4f}: {words}", process)
        self._rounds[version] = number
        self._committed[process.index] = process.peer.incarnation, version
        self.committed_round = max(self.committed_round, number)

    def announced(self, process: Process, body: RoundOpen) -> None:
        """An order goes down the tree."""
        self._closed = self._closed or body.phase == "done"
        if body.theta is not None and body.theta.order != self._committed.get(process.index):
            self.mistakes["P6"].add(f"{self._cluster.clock.now:.4f}: round {body.round} was announced before it was committed", process)
